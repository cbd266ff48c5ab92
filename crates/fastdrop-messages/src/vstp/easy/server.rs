//! The server for both transports.

use super::{TIMEOUT, within};
use crate::shutdown::{Shutdown, ShutdownSignal};
use crate::tls::ServerTls;
use crate::vstp::call::Call;
use crate::vstp::tcp::{Drained, TcpConfig, Unhandled, VstpTcpServer, serve_connection};
use crate::vstp::types::{Frame, FrameType, VstpError};
use crate::vstp::udp::VstpUdpServer;
use fastdrop_proto::vstp::FrameBytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Answers values with values.
pub struct VstpServer {
    tcp: Option<VstpTcpServer>,
    udp: Option<VstpUdpServer>,
    timeout: Duration,
}

impl VstpServer {
    /// Listens by TCP.
    pub async fn bind_tcp(addr: impl Into<String>) -> Result<Self, VstpError> {
        Self::bind_tcp_with_config(addr, TcpConfig::default()).await
    }

    /// The same, set up otherwise: for values of more than 8 MiB with a larger
    /// [`TcpConfig::frame_max`].
    pub async fn bind_tcp_with_config(addr: impl Into<String>, config: TcpConfig) -> Result<Self, VstpError> {
        let tcp = VstpTcpServer::bind_with_config(addr.into(), config).await?;
        Ok(Self { tcp: Some(tcp), udp: None, timeout: TIMEOUT })
    }

    /// Listens by TCP with TLS 1.3.
    #[cfg(feature = "tls")]
    pub async fn bind_tls(addr: impl Into<String>, tls: impl Into<ServerTls>) -> Result<Self, VstpError> {
        let tcp = VstpTcpServer::bind_tls(addr.into(), tls, TcpConfig::default()).await?;
        Ok(Self { tcp: Some(tcp), udp: None, timeout: TIMEOUT })
    }

    /// Listens by UDP.
    pub async fn bind_udp(addr: impl Into<String>) -> Result<Self, VstpError> {
        let udp = VstpUdpServer::bind(&addr.into()).await?;
        Ok(Self { tcp: None, udp: Some(udp), timeout: TIMEOUT })
    }

    /// Listens by TCP and by UDP, on the same port.
    pub async fn bind_auto(addr: impl Into<String>) -> Result<Self, VstpError> {
        let tcp = VstpTcpServer::bind(addr.into()).await?;
        let udp = VstpUdpServer::bind(&tcp.local_addr()?.to_string()).await?;
        Ok(Self { tcp: Some(tcp), udp: Some(udp), timeout: TIMEOUT })
    }

    /// The address on which it listens.
    pub fn local_addr(&self) -> Result<SocketAddr, VstpError> {
        match (&self.tcp, &self.udp) {
            (Some(tcp), _) => tcp.local_addr(),
            (None, Some(udp)) => udp.local_addr(),
            (None, None) => Err(VstpError::InvalidAddress),
        }
    }

    /// The time that a handler may take for an answer. Default 30 seconds.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Gives each value that comes to `handler`, and its answer back to the sender. An error of the
    /// handler becomes an ERR frame. What is no such value is told so in a DATA frame, as by
    /// version 0.2.
    pub async fn serve<F, Fut, T, R>(self, handler: F) -> Result<(), VstpError>
    where
        F: Fn(T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, VstpError>> + Send,
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
    {
        self.serve_until(std::future::pending(), handler).await.map(|_| ())
    }

    /// The same until `end`: then nothing more is taken or acknowledged, and the handlers that run
    /// have their time to finish, ten seconds unless [`TcpConfig::drain`] says otherwise. Says what
    /// was acknowledged and not handled.
    ///
    /// # Errors
    ///
    /// A socket is of no use any more.
    pub async fn serve_until<F, Fut, T, R>(
        self,
        end: impl Future<Output = ()>,
        handler: F,
    ) -> Result<Drained, VstpError>
    where
        F: Fn(T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, VstpError>> + Send,
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
    {
        let timeout = self.timeout;
        let handler = Arc::new(handler);
        let answer = move |call: Call| {
            let handler = Arc::clone(&handler);
            async move { answer(&*handler, &call.into_frame(), timeout).await.map(FrameBytes::try_from) }
        };
        let (shutdown, signal) = Shutdown::new();
        let tcp = async {
            let ended = match self.tcp {
                None => {
                    signal.clone().waited().await;
                    Ok(Drained::default())
                }
                Some(tcp) => serve_tcp(tcp, signal.clone(), answer.clone()).await,
            };
            shutdown.begin();
            ended
        };
        let udp = async {
            let ended = match self.udp {
                None => {
                    signal.clone().waited().await;
                    Ok(Drained::default())
                }
                Some(udp) => udp.serve_frames(signal.clone().waited(), answer.clone()).await,
            };
            shutdown.begin();
            ended
        };
        let word = async {
            tokio::select! { () = end => {}, () = signal.clone().waited() => {} }
            shutdown.begin();
        };
        let ((), tcp, udp) = tokio::join!(word, tcp, udp);
        let (tcp, udp) = (tcp?, udp?);
        Ok(Drained { unhandled: tcp.unhandled + udp.unhandled })
    }
}

async fn serve_tcp<A, Fut>(tcp: VstpTcpServer, end: ShutdownSignal, answer: A) -> Result<Drained, VstpError>
where
    A: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Option<Result<FrameBytes, VstpError>>> + Send,
{
    let (answer, unhandled) = (Arc::new(answer), Unhandled::default());
    let counted = unhandled.clone();
    let session =
        move |connection, signal| serve_connection(connection, signal, Arc::clone(&answer), counted.clone());
    tcp.serve(end.waited(), session).await?;
    Ok(unhandled.report())
}

/// The beginning of an answer to something that is no such value, as by version 0.2.
const COMPLAINT: &str = "Invalid data: ";

/// The frame that answers; None for what is no message.
async fn answer<F, Fut, T, R>(handler: &F, frame: &Frame, timeout: Duration) -> Option<Frame>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<R, VstpError>> + Send,
    T: DeserializeOwned,
    R: Serialize,
{
    // Two servers that are each made to believe that the other has asked would go on for ever (case
    // 75).
    if frame.typ != FrameType::Data || frame.payload.starts_with(COMPLAINT.as_bytes()) {
        return None;
    }
    let value = match serde_json::from_slice(&frame.payload) {
        Ok(value) => value,
        Err(error) => {
            let said = format!("{COMPLAINT}{error}").into_bytes();
            return Some(Frame::new(FrameType::Data).with_payload(said));
        }
    };
    let answered = within(timeout, handler(value)).await;
    let answered =
        answered.and_then(|value| serde_json::to_vec(&value).map_err(|_| VstpError::SerializationError));
    Some(match answered {
        Ok(payload) => Frame::new(FrameType::Data).with_payload(payload),
        Err(error) => {
            let mut reason = error.to_string();
            reason.truncate(reason.floor_char_boundary(255));
            Frame::new(FrameType::Err).with_header("code", "handler").with_header("reason", &reason)
        }
    })
}
