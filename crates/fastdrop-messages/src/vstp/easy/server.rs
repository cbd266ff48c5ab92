//! The server for both transports.

use super::{TIMEOUT, within};
use crate::tls::ServerTls;
use crate::vstp::call::Call;
use crate::vstp::tcp::{TcpConfig, Unhandled, VstpTcpServer, serve_connection};
use crate::vstp::types::{Frame, FrameType, VstpError};
use crate::vstp::udp::VstpUdpServer;
use fastdrop_proto::vstp::FrameBytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Answers values with values.
pub struct VstpServer {
    tcp: Option<VstpTcpServer>,
    udp: Option<VstpUdpServer>,
    timeout: Duration,
}

impl VstpServer {
    /// Handlers at once for datagrams.
    const HANDLERS_MAX: usize = 1024;

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
        let timeout = self.timeout;
        let handler = Arc::new(handler);
        let answer = {
            let handler = Arc::clone(&handler);
            move |frame: Frame| {
                let handler = Arc::clone(&handler);
                async move { answer(&*handler, &frame, timeout).await }
            }
        };
        let tcp = async {
            match self.tcp {
                None => std::future::pending().await,
                Some(tcp) => {
                    let answer = answer.clone();
                    let answer = Arc::new(move |call: Call| {
                        let answered = answer(call.into_frame());
                        async move { answered.await.map(FrameBytes::try_from) }
                    });
                    let session = move |connection, signal| {
                        serve_connection(connection, signal, Arc::clone(&answer), Unhandled::default())
                    };
                    tcp.serve(std::future::pending(), session).await
                }
            }
        };
        let udp = async {
            match self.udp {
                None => std::future::pending().await,
                Some(udp) => serve_udp(udp, answer.clone()).await,
            }
        };
        tokio::select! { ended = tcp => ended, ended = udp => ended }
    }
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

async fn serve_udp<A, Fut>(udp: VstpUdpServer, answer: A) -> Result<(), VstpError>
where
    A: Fn(Frame) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Option<Frame>> + Send,
{
    let udp = Arc::new(udp);
    let permits = Arc::new(Semaphore::new(VstpServer::HANDLERS_MAX));
    let mut handlers = JoinSet::new();
    loop {
        while handlers.try_join_next().is_some() {}
        let permit = Arc::clone(&permits).acquire_owned().await;
        let (frame, from) = udp.recv_bytes().await?;
        udp.answer(&frame, from);
        let (udp, answer) = (Arc::clone(&udp), answer.clone());
        handlers.spawn(async move {
            let _permit = permit;
            if let Some(answer) = answer(frame.into()).await
                && let Err(error) = udp.send(answer, from).await
            {
                tracing::debug!(peer = %from, %error, "the answer did not arrive");
            }
        });
    }
}
