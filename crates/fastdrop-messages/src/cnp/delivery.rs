//! A message that is acknowledged when its application has handled it.

use super::clock;
use super::error::Error;
use super::in_hand::InHand;
use super::session::Session;
use bytes::Bytes;
use fastdrop_proto::cnp::{ErrorCode, ReceiveId};
use std::future::poll_fn;

/// A received message that the application acknowledges when it has handled it.
///
/// Several may be held, and acknowledged in any order; acknowledgements leave in the order of the
/// messages. If one is dropped without that, the session ends, and the peer is told why: as
/// messages arrive in order, nothing behind it can be acknowledged.
#[derive(Debug)]
#[must_use = "a delivery that is dropped ends its session"]
pub struct Delivery {
    session: Session,
    id: ReceiveId,
    message: Bytes,
    acknowledged: bool,
    _in_hand: InHand,
}

impl Session {
    /// The next message, to be acknowledged when the application says so:
    /// [`Delivery::acknowledge`].
    ///
    /// # Errors
    ///
    /// As [`Self::recv`].
    pub async fn recv_delivery(&self) -> Result<Option<Delivery>, Error> {
        let taken = poll_fn(|cx| self.poll_take(cx)).await?;
        Ok(taken.map(|(id, message, _in_hand)| Delivery {
            session: self.clone(),
            id,
            message,
            acknowledged: false,
            _in_hand,
        }))
    }
}

impl Delivery {
    /// The message.
    pub fn message(&self) -> &Bytes {
        &self.message
    }

    /// The session that it came from.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Acknowledges the message. Nothing happens if the session is over.
    pub fn acknowledge(mut self) {
        self.acknowledged = true;
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let shared = &self.session.0.shared;
        let mut state = shared.lock();
        let now = clock::now();
        if self.acknowledged {
            state.session.acknowledge(now, self.id);
        } else {
            state.session.discard(now, self.id);
            state.session.abort(ErrorCode::Unhandled, "a message was dropped before it was handled");
        }
        drop(state);
        shared.changed.notify_one();
    }
}
