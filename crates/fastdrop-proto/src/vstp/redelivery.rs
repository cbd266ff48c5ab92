//! The frames of a client that have no outcome yet, over all its connections
//! (docs/protocol/vstp.md, section 11).

use super::frame::{Flags, FrameBytes, FrameError, HeadersBuf};
use super::handed_on::SPAN;
use super::ids::MSG_ID;
use std::collections::BTreeMap;

/// Frames in the order of their numbers, each with somebody who is told its outcome.
#[derive(Debug)]
pub struct Redelivery<T> {
    last: u64,
    waiting: BTreeMap<u64, Waiting<T>>,
    /// The server's memory of the session, on this connection.
    memory: Option<u64>,
    /// All below have left on this connection.
    next: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    frame: FrameBytes,
    told: T,
    /// The memory under which it left last, if it has left; None where the server named none.
    left_under: Option<Option<u64>>,
}

/// A frame to send, with its number in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    /// Its number.
    pub number: u64,
    /// The frame.
    pub frame: FrameBytes,
    /// It has left before, on another connection.
    pub again: bool,
}

impl<T> Default for Redelivery<T> {
    fn default() -> Self {
        Self { last: 0, waiting: BTreeMap::new(), memory: None, next: 0 }
    }
}

impl<T> Redelivery<T> {
    /// Takes a frame. A number that it has is replaced.
    ///
    /// # Errors
    ///
    /// Its headers are too long for a number more.
    pub fn push(&mut self, frame: &FrameBytes, told: T) -> Result<(), (FrameError, T)> {
        let number = self.last + 1;
        let frame = match numbered(frame, number) {
            Ok(frame) => frame,
            Err(error) => return Err((error, told)),
        };
        self.last = number;
        self.waiting.insert(number, Waiting { frame, told, left_under: None });
        Ok(())
    }

    /// A connection stands, and the server has named its memory of the session, if it has one.
    /// Returns those of whom it is not known whether they arrived, and which are not sent again:
    /// none, if `repeats`.
    pub fn on_connected(&mut self, memory: Option<u64>, repeats: bool) -> Vec<T> {
        self.memory = memory;
        self.next = 0;
        if repeats {
            return Vec::new();
        }
        let is_unknown = |waiting: &mut Waiting<T>| {
            waiting.left_under.is_some_and(|under| under.is_none() || under != memory)
        };
        self.waiting
            .extract_if(.., |_, waiting| is_unknown(waiting))
            .map(|(_, waiting)| waiting.told)
            .collect()
    }

    /// The next frame to send on this connection. None: there is none, or it waits for the outcome
    /// of one far below it.
    pub fn poll_leave(&mut self) -> Option<Leaving> {
        let (&lowest, _) = self.waiting.first_key_value()?;
        let (&number, waiting) = self.waiting.range_mut(self.next..).next()?;
        if number - lowest >= SPAN {
            return None;
        }
        let again = waiting.left_under.replace(self.memory).is_some();
        self.next = number + 1;
        Some(Leaving { number, frame: waiting.frame.clone(), again })
    }

    /// Reports whether [`Self::poll_leave`] gives one.
    pub fn has_leaving(&self) -> bool {
        let lowest = self.waiting.first_key_value();
        let next = self.waiting.range(self.next..).next();
        lowest.zip(next).is_some_and(|((lowest, _), (next, _))| next - lowest < SPAN)
    }

    /// The outcome of a frame has come; its sender, if that still waits.
    pub fn on_outcome(&mut self, number: u64) -> Option<T> {
        self.waiting.remove(&number).map(|waiting| waiting.told)
    }

    /// Forgets the frames that nobody waits for any more.
    pub fn forget(&mut self, is_given_up: impl Fn(&T) -> bool) {
        self.waiting.retain(|_, waiting| !is_given_up(&waiting.told));
    }

    /// The largest of the frames that have left on this connection, which is taken out: if the
    /// server says that one was too large, it was this one. None: it has not more than so many
    /// bytes, which something else had that left there.
    pub fn take_largest(&mut self, others: usize) -> Option<T> {
        let left = self.waiting.range(..self.next);
        let sized = left.map(|(number, waiting)| (waiting.frame.as_ref().encoded_len(), *number));
        let (size, number) = sized.max()?;
        if size > others { self.on_outcome(number) } else { None }
    }

    /// Takes out all frames, and says whether each has ever left.
    pub fn take_all(&mut self) -> Vec<(T, bool)> {
        let all = std::mem::take(&mut self.waiting);
        all.into_values().map(|waiting| (waiting.told, waiting.left_under.is_some())).collect()
    }

    /// Frames without an outcome.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Reports whether all frames have their outcome.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

fn numbered(frame: &FrameBytes, number: u64) -> Result<FrameBytes, FrameError> {
    let mut headers = HeadersBuf::default();
    for (key, value) in frame.headers().iter().filter(|(key, _)| *key != MSG_ID.as_bytes()) {
        headers.push(key, value)?;
    }
    headers.push(MSG_ID.as_bytes(), number.to_string().as_bytes())?;
    let numbered = FrameBytes::new(frame.typ, headers, frame.payload.clone());
    Ok(numbered.with_flag(frame.flags | Flags::REQ_ACK))
}

#[cfg(test)]
mod tests {
    use super::super::frame::FrameType;
    use super::*;
    use bytes::Bytes;

    fn frame(len: usize) -> FrameBytes {
        FrameBytes::new(FrameType::Data, HeadersBuf::default().with(MSG_ID, 99), vec![7; len].into())
    }

    fn with(count: u32) -> Redelivery<u32> {
        let mut frames = Redelivery::default();
        (1..=count).for_each(|n| frames.push(&frame(n as usize), n).unwrap());
        frames
    }

    fn leave(frames: &mut Redelivery<u32>) -> Vec<u64> {
        let mut left = Vec::new();
        while frames.has_leaving() {
            left.push(frames.poll_leave().unwrap().number);
        }
        assert_eq!(frames.poll_leave(), None);
        left
    }

    #[test]
    fn what_has_no_outcome_is_sent_again_in_order_and_with_its_number() {
        let mut frames = with(5);
        assert!(frames.on_connected(Some(1), false).is_empty());
        let first = frames.poll_leave().unwrap();
        assert_eq!(first.frame.headers().iter().collect::<Vec<_>>(), [(&b"msg-id"[..], &b"1"[..])]);
        assert!(first.frame.flags.contains(Flags::REQ_ACK));
        assert_eq!(leave(&mut frames), [2, 3, 4, 5]);
        assert_eq!((frames.on_outcome(2), frames.on_outcome(2)), (Some(2), None));
        assert!(frames.on_connected(Some(1), false).is_empty());
        assert_eq!(frames.poll_leave(), Some(Leaving { again: true, ..first }));
        assert_eq!(leave(&mut frames), [3, 4, 5]);
        frames.push(&frame(1), 6).unwrap();
        assert_eq!(leave(&mut frames), [6]);
    }

    #[test]
    fn what_left_under_another_memory_is_not_sent_again_in_silence() {
        for (under, now) in [(Some(1), Some(2)), (Some(1), None), (None, None), (None, Some(1))] {
            for repeats in [false, true] {
                let mut frames = with(3);
                frames.on_connected(under, repeats);
                assert_eq!(frames.poll_leave().unwrap().number, 1);
                assert_eq!(frames.poll_leave().unwrap().number, 2);
                let unknown = frames.on_connected(now, repeats);
                let (told, left) = if repeats { (vec![], vec![1, 2, 3]) } else { (vec![1, 2], vec![3]) };
                assert_eq!((unknown, leave(&mut frames)), (told, left), "{under:?} {now:?}");
            }
        }
    }

    #[test]
    fn no_number_leaves_far_above_one_without_an_outcome() {
        let span = u32::try_from(SPAN).unwrap();
        let mut frames = with(2 * span);
        frames.on_connected(Some(1), false);
        assert_eq!(leave(&mut frames).len(), span as usize);
        (2..=span).for_each(|n| assert!(frames.on_outcome(n.into()).is_some()));
        assert_eq!(frames.poll_leave(), None);
        frames.forget(|n| *n == 1);
        assert_eq!(leave(&mut frames).len(), span as usize);
    }

    #[test]
    fn a_frame_that_is_too_large_is_found_and_all_are_told_whether_they_left() {
        let mut frames = with(5);
        frames.on_connected(None, false);
        assert_eq!(frames.take_largest(0), None);
        (0..3).for_each(|_| drop(frames.poll_leave()));
        let size = frames.waiting[&3].frame.as_ref().encoded_len();
        assert_eq!(frames.take_largest(size), None);
        assert_eq!(frames.take_largest(size - 1), Some(3));
        assert_eq!(frames.take_all(), [(1, true), (2, true), (4, false), (5, false)]);
        assert!(frames.is_empty());
        let long = (0..129)
            .fold(HeadersBuf::default(), |headers, _| headers.with(&"k".repeat(255), "v".repeat(251)));
        let long = FrameBytes::new(FrameType::Data, long, Bytes::new());
        assert!(matches!(frames.push(&long, 6), Err((FrameError::TooLong(_), 6))));
        assert!(frames.is_empty());
    }
}
