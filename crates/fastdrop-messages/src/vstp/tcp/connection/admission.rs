//! The beginning of a connection whose client needs a token.

use super::Connection;
use crate::vstp::tcp::complaint::reason_of;
use crate::vstp::types::{FrameType, VstpError};
use std::future::poll_fn;
use std::time::Duration;

impl Connection {
    /// The most that it may take until a client is let in.
    const ADMISSION_MAX: Duration = Duration::from_secs(10);

    /// Shows the token, if there is one, and waits until the server has let this end in.
    pub(crate) async fn introduce(&mut self) -> Result<(), VstpError> {
        if self.config.token.is_none() {
            return Ok(());
        }
        self.tally.set_introducing(true);
        let welcomed = async {
            self.hello().await?;
            match self.recv_bytes().await? {
                Some(frame) if frame.typ == FrameType::Welcome => Ok(()),
                Some(frame) if frame.typ == FrameType::Err => Err(VstpError::ServerError(reason_of(&frame))),
                Some(_) => Err(VstpError::UnexpectedFrameType),
                None => Err(VstpError::ConnectionClosed),
            }
        };
        let welcomed = tokio::time::timeout(Self::ADMISSION_MAX, welcomed).await;
        self.tally.set_introducing(false);
        welcomed.unwrap_or(Err(VstpError::Timeout))
    }

    /// Waits until the client has been let in, where it needs a token.
    pub(crate) async fn admit(&mut self) -> Result<(), VstpError> {
        let admitted = async {
            while !self.session.is_admitted() {
                if !poll_fn(|cx| self.poll_frame_in_time(cx)).await {
                    return Err(self.failure.take().unwrap_or(VstpError::ConnectionClosed));
                }
                if let Some(why) = self.session.refusal() {
                    return Err(VstpError::Protocol(format!("not let in: {why}")));
                }
            }
            Ok(poll_fn(|cx| self.poll_write(cx)).await?)
        };
        let admitted = tokio::time::timeout(Self::ADMISSION_MAX, admitted).await;
        let admitted = admitted.unwrap_or_else(|_| {
            self.stream.on_timed_out();
            Err(VstpError::Timeout)
        });
        if let Err(error) = &admitted {
            self.ended = true;
            if self.session.refusal().is_some() {
                self.tally.on_refused();
            }
            self.say_error(error).await;
        }
        admitted
    }
}
