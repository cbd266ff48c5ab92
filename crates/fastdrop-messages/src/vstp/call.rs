//! Calls: requests that get their own replies, over either transport.

use super::types::{ErrorCode, Frame, FrameType, VstpError};
use fastdrop_proto::calls::CallId;
use fastdrop_proto::vstp::{FrameBytes, HeadersBuf};
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The facts about a call that came, beside its frame.
#[derive(Debug)]
pub(crate) struct IncomingCall {
    pub(crate) id: CallId,
    /// The time after which nobody waits for the reply any more.
    pub(crate) deadline: Option<Instant>,
    /// Ends when nobody waits any more.
    pub(crate) cancelled: oneshot::Receiver<()>,
}

/// A request that a handler replies to. Its handler is dropped when the caller does not wait any
/// more, or its deadline has passed.
#[derive(Debug)]
pub struct Call {
    pub(crate) frame: FrameBytes,
    pub(crate) from: SocketAddr,
    pub(crate) deadline: Option<Instant>,
}

impl Call {
    /// The request.
    pub fn frame(&self) -> &FrameBytes {
        &self.frame
    }

    /// Gives the request away.
    pub fn into_frame(self) -> Frame {
        self.frame.into()
    }

    /// The caller's address.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// The time that remains until the caller does not wait any more; None if it did not say.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// Runs the handler of a call until it is done, late or cancelled; None if nobody wants the reply.
pub(crate) async fn handle(
    call: IncomingCall,
    handler: impl Future<Output = Result<FrameBytes, VstpError>>,
) -> Option<FrameBytes> {
    let late = async {
        match call.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        _ = call.cancelled => None,
        reply = handler => {
            let reply = reply.and_then(|reply| match reply.typ {
                FrameType::Data | FrameType::Err => Ok(reply),
                _ => Err(VstpError::Protocol("the reply is neither DATA nor ERR".into())),
            });
            Some(reply.unwrap_or_else(|error| error_frame(ErrorCode::Unhandled, &error)))
        }
        () = late => Some(error_frame(ErrorCode::Timeout, &VstpError::Timeout)),
    }
}

/// The ERR frame that says what went wrong.
fn error_frame(code: ErrorCode, error: &VstpError) -> FrameBytes {
    // Words of the peer, or of the application, stand for themselves.
    let reason = match error {
        VstpError::ServerError(reason) | VstpError::Protocol(reason) => reason.clone(),
        other => other.to_string(),
    };
    let reason = reason.get(..reason.floor_char_boundary(255)).unwrap_or_default();
    let mut headers = HeadersBuf::default();
    // They are short enough.
    let _ = headers.push(b"code", code.as_str().as_bytes());
    let _ = headers.push(b"reason", reason.as_bytes());
    FrameBytes::new(FrameType::Err, headers, bytes::Bytes::new())
}

/// The reply, or what the peer says went wrong.
pub(crate) fn result_of(reply: FrameBytes) -> Result<FrameBytes, VstpError> {
    if reply.typ != FrameType::Err {
        return Ok(reply);
    }
    let headers = reply.headers();
    if headers.find("code") == Some(ErrorCode::Timeout.as_str().as_bytes()) {
        return Err(VstpError::Timeout);
    }
    let reason = headers.find("reason").or_else(|| headers.find("code")).unwrap_or(b"no reason given");
    Err(VstpError::ServerError(String::from_utf8_lossy(reason).into_owned()))
}
