//! The messages of a connection, as they are counted.

use crate::metrics::{Count, Metrics};
use crate::vstp::types::{Frame, FrameType};
use fastdrop_proto::vstp::{CallRole, FrameBytes, MSG_ID};
use std::collections::{BTreeSet, VecDeque};

/// Frames that the application has sent and that have no outcome yet.
#[derive(Debug)]
pub(super) struct Tally {
    metrics: Metrics,
    /// The ends of those that are to be written, where they stand among the bytes.
    unwritten: VecDeque<u64>,
    /// Numbers of those whose acknowledgement is waited for.
    expected: BTreeSet<u64>,
    /// HELLO and WELCOME are this end's own.
    introducing: bool,
}

impl Tally {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, unwritten: VecDeque::new(), expected: BTreeSet::new(), introducing: false }
    }

    /// This end says HELLO for itself, and waits for what is said to that; or not any more.
    pub(super) fn set_introducing(&mut self, introducing: bool) {
        self.introducing = introducing;
    }

    /// A frame came that is handed on.
    pub(super) fn on_received(&self, frame: &FrameBytes) {
        let is_message = match frame.typ {
            // It is late.
            FrameType::Ack => false,
            FrameType::Welcome | FrameType::Err if self.introducing => false,
            _ => !matches!(CallRole::of(&frame.as_ref()), Some(CallRole::Cancel(_))),
        };
        if is_message {
            self.metrics.on(Count::MessagesReceived);
        }
    }

    /// Something came that is no frame of this version, or was changed on the way.
    pub(super) fn on_malformed(&self) {
        self.metrics.on(Count::Malformed);
    }

    /// The peer was not let in.
    pub(super) fn on_refused(&self) {
        self.metrics.on(Count::Refused);
    }

    /// A message was not taken to be written.
    pub(super) fn on_not_taken(&self) {
        self.metrics.on(Count::MessagesFailed);
    }

    /// A frame is to be written that ends here, and nothing more is waited for.
    pub(super) fn on_pushed(&mut self, end: u64) {
        if !self.introducing {
            self.unwritten.push_back(end);
        }
    }

    /// A frame with this number is to be acknowledged.
    pub(super) fn expect(&mut self, msg_id: u64) {
        self.expected.insert(msg_id);
    }

    /// Returns true if the acknowledgement of this frame is waited for.
    pub(super) fn is_expected(&self, frame: &Frame) -> bool {
        let number = || frame.get_header(MSG_ID)?.parse().ok();
        !self.expected.is_empty() && number().is_some_and(|number: u64| self.expected.contains(&number))
    }

    /// The bytes before this have left.
    pub(super) fn on_written(&mut self, until: u64) {
        let before = self.unwritten.len();
        while self.unwritten.front().is_some_and(|end| *end <= until) {
            self.unwritten.pop_front();
        }
        self.metrics.add(Count::MessagesSent, (before - self.unwritten.len()) as u64);
    }

    /// Nothing more leaves.
    pub(super) fn on_broken(&mut self) {
        self.metrics.add(Count::MessagesFailed, self.unwritten.len() as u64);
        self.unwritten.clear();
    }

    /// A frame that was to be acknowledged has been, or will not be; false if nobody waits for
    /// that.
    pub(super) fn on_outcome(&mut self, msg_id: u64, acknowledged: bool) -> bool {
        let is_expected = self.expected.remove(&msg_id);
        if is_expected {
            self.metrics.on(if acknowledged { Count::MessagesSent } else { Count::MessagesFailed });
        }
        is_expected
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.on_broken();
        self.metrics.add(Count::MessagesFailed, self.expected.len() as u64);
    }
}
