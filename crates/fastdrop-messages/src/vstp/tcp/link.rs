//! A connection in the hands of one caller, who drives it or has it driven.

use super::TcpConfig;
use super::connection::{Connection, Owed};
use super::orders::Control;
use super::served::Served;
use super::session::Session;
use crate::vstp::types::{ErrorCode, Frame, SessionId, VstpError};
use fastdrop_proto::vstp::{Acknowledgement, FrameBytes};
use std::net::SocketAddr;
use std::time::Duration;

/// One caller's connection. Where keep-alive is wanted, a task drives it, so that PINGs do not wait
/// for the caller; otherwise the caller does, which saves a change of tasks for each frame.
#[derive(Debug)]
pub(crate) enum Link {
    Own(Box<Connection>),
    Driven(Session),
}

impl Link {
    pub(super) fn new(connection: Connection, config: &TcpConfig, peer: SocketAddr) -> Self {
        if config.keep_alive.is_some() {
            Self::Driven(Session::start(connection, peer, false))
        } else {
            Self::Own(Box::new(connection))
        }
    }

    /// Has it driven by a task from now on.
    pub(super) fn into_session(self, peer: SocketAddr, serves: bool) -> Session {
        match self {
            Self::Own(connection) => Session::start(*connection, peer, serves),
            Self::Driven(session) => {
                if serves {
                    session.control(Control::Serve);
                }
                session
            }
        }
    }

    pub(super) fn session_id(&self) -> SessionId {
        match self {
            Self::Own(connection) => connection.session_id(),
            Self::Driven(session) => session.session_id(),
        }
    }

    pub(super) async fn send(&mut self, frame: Frame) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => connection.send(frame).await,
            Self::Driven(session) => session.send(frame).await,
        }
    }

    pub(super) async fn send_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => {
                connection.feed_bytes(frame).await?;
                connection.flush().await
            }
            Self::Driven(session) => session.send_bytes(frame.clone()).await,
        }
    }

    pub(super) async fn feed(&mut self, frame: Frame) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => connection.feed(frame).await,
            Self::Driven(session) => session.feed(frame).await,
        }
    }

    pub(super) async fn feed_bytes(&mut self, frame: &FrameBytes) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => connection.feed_bytes(frame).await,
            Self::Driven(session) => session.feed_bytes(frame.clone()).await,
        }
    }

    pub(super) async fn flush(&mut self) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => connection.flush().await,
            Self::Driven(session) => session.flush().await,
        }
    }

    pub(super) async fn send_with_ack(
        &mut self,
        frames: Vec<Frame>,
        patience: Duration,
    ) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => connection.send_with_ack(frames, patience).await,
            Self::Driven(session) => session.send_all_with_ack(frames, patience).await,
        }
    }

    pub(super) async fn hello(&mut self) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => connection.hello().await,
            Self::Driven(session) => session.hello().await,
        }
    }

    pub(super) async fn recv_bytes(&mut self) -> Result<Option<FrameBytes>, VstpError> {
        match self {
            Self::Own(connection) => connection.recv_bytes().await,
            Self::Driven(session) => session.recv_bytes().await,
        }
    }

    pub(super) async fn recv_owed(&mut self) -> Result<Option<Owed>, VstpError> {
        match self {
            Self::Own(connection) => connection.recv_owed().await,
            Self::Driven(session) => session.recv_owed().await,
        }
    }

    pub(super) async fn close(&mut self) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => connection.close().await,
            Self::Driven(session) => session.close().await,
        }
    }

    pub(super) async fn acknowledge(&mut self, wanted: Acknowledgement) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => connection.acknowledge(wanted).await,
            Self::Driven(session) => {
                session.acknowledge(wanted);
                session.flush().await
            }
        }
    }

    pub(super) async fn refuse(
        &mut self,
        wanted: Option<Acknowledgement>,
        code: ErrorCode,
        reason: &str,
    ) -> Result<(), VstpError> {
        match self {
            Self::Own(connection) => {
                connection.refuse(wanted, code, reason);
                connection.flush().await
            }
            Self::Driven(session) => {
                session.refuse(wanted, code, reason);
                session.flush().await
            }
        }
    }

    /// The application has dropped a frame that was handed on.
    pub(super) fn forgo(&mut self, wanted: Acknowledgement) {
        match self {
            Self::Own(connection) => connection.forgo(wanted),
            Self::Driven(session) => session.forgo(wanted),
        }
    }

    /// The part of a server in its task, if one drives it.
    pub(super) fn served(&self) -> Option<Served> {
        match self {
            Self::Own(_) => None,
            Self::Driven(session) => Some(Served::new(session)),
        }
    }

    /// Reads on and drops what comes, for at most this long: a connection that is closed with
    /// something unread is reset, which could take from the peer what it was told.
    pub(super) async fn linger(&mut self, bound: Duration) {
        match self {
            Self::Own(connection) => connection.discard(bound).await,
            Self::Driven(session) => session.discard(bound).await,
        }
    }
}
