//! Messages that the application gives.

use super::{SendError, Session, State};
use crate::cnp::call_message::CallMessage;
use crate::cnp::packet::MessageKind;
use crate::cnp::sender::{SendId, TooLarge};
use bytes::Bytes;
use std::time::Instant;

impl Session {
    /// Sends a message, once the session is open and the window allows;
    /// [`Event::Acknowledged`](crate::cnp::Event::Acknowledged) says that it has arrived. What is
    /// sent before that waits.
    pub fn send(&mut self, now: Instant, message: Bytes) -> Result<SendId, SendError> {
        self.send_as(now, MessageKind::Plain, message)
    }

    /// Sends a message about a call, which is acknowledged when it has been received.
    ///
    /// # Errors
    ///
    /// As [`Self::send`], and [`SendError::NoCalls`] with a peer that knows none.
    pub fn send_call(&mut self, now: Instant, message: &CallMessage) -> Result<SendId, SendError> {
        if self.agreed().is_some_and(|agreed| agreed.calls.is_none()) {
            return Err(SendError::NoCalls);
        }
        self.send_as(now, MessageKind::Call, message.encode())
    }

    fn send_as(&mut self, now: Instant, kind: MessageKind, message: Bytes) -> Result<SendId, SendError> {
        if self.is_over() || self.closes {
            return Err(SendError::Over);
        }
        let channel =
            self.channel.as_mut().filter(|_| self.state == State::Open).ok_or(SendError::NotOpen)?;
        let (len, max) = (message.len(), channel.agreed.message_max());
        if !channel.agreed.fits(&message) {
            return Err(SendError::TooLarge(TooLarge { len, max }));
        }
        if channel.agreed.characters.is_some() && std::str::from_utf8(&message).is_err() {
            return Err(SendError::NotText);
        }
        Ok(channel.sender.send(now, kind, message))
    }
}
