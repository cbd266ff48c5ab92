//! Faults that happen to a pair.

use super::{Checked, Conn, Event, Pair};
use crate::fastdp::pipe::MILLI;
use crate::fastdp::plan::Fault;
use fastdrop_proto::units::{ChunkIndex, EntryIndex};

/// Sends until a fault that finds nothing to happen to is replaced by another.
const FAULT_PATIENCE: u32 = 12;

impl Pair {
    pub(super) fn happened(&mut self, fault: Fault) {
        self.trace(|| format!("!!! {fault:?}"));
        *self.stats.happened.entry(fault).or_default() += 1;
    }

    /// Data streams to which something can happen.
    pub(super) fn data_conns(&self) -> Vec<usize> {
        let live = |conn: &Conn| {
            conn.sender_open && conn.receiver_open && !conn.cut && !conn.retiring && !conn.forward.is_dark()
        };
        (1..self.attempt.conns.len()).filter(|&at| live(&self.attempt.conns[at])).collect()
    }

    pub(super) fn faults(&mut self) -> Checked {
        while let Some(&(after, fault)) = self.plan.faults.get(self.next_fault) {
            if after > self.stats.sends {
                break;
            }
            self.next_fault += 1;
            self.waiting_faults.push((self.stats.sends, fault));
        }
        for (since, fault) in std::mem::take(&mut self.waiting_faults) {
            if self.apply(fault) {
                continue;
            }
            if self.stats.sends < since + FAULT_PATIENCE {
                self.waiting_faults.push((since, fault));
            } else {
                self.duplicate_next += 1;
            }
        }
        Ok(())
    }

    /// Lets a fault happen; false if there is nothing now to which it could.
    fn apply(&mut self, fault: Fault) -> bool {
        let alive = !self.attempt.sender_dead && !self.attempt.receiver_dead;
        match fault {
            Fault::Duplicate => self.duplicate_next += 1,
            Fault::Flip => self.flip_next += 1,
            Fault::Unreadable => {
                let all = self.world.source.expendable.clone();
                self.make_unreadable(&all);
            }
            _ if !alive => return false,
            Fault::CutData | Fault::Stall => {
                let conns = self.data_conns();
                if conns.is_empty() {
                    return false;
                }
                let at = self.rng.pick(&conns);
                self.happened(fault);
                self.trace(|| format!("on {at}"));
                if fault == Fault::CutData {
                    if self.plan.lose_what_flies && self.rng.percent(50) {
                        let flying = self.flying_expendable(at);
                        self.make_unreadable(&flying);
                    }
                    let keep = self.rng.below(self.attempt.conns[at].forward.queued() + 1);
                    let keep_back = self.rng.below(self.attempt.conns[at].back.queued() + 1);
                    self.cut(at, keep, keep_back);
                } else {
                    self.attempt.conns[at].forward.darken();
                    self.attempt.conns[at].back.darken();
                }
            }
            _ if self.attempt.conns[0].cut => return false,
            Fault::CutControl | Fault::LoseEnd | Fault::LoseDone => {
                self.happened(fault);
                let keep = self.rng.below(self.attempt.conns[0].forward.queued() + 1);
                let keep_back = self.rng.below(self.attempt.conns[0].back.queued() + 1);
                self.cut(0, keep, keep_back);
            }
            Fault::StallControl => {
                if self.attempt.conns[0].forward.is_dark() {
                    return false;
                }
                self.happened(fault);
                self.attempt.conns[0].forward.darken();
                self.attempt.conns[0].back.darken();
            }
            Fault::CrashReceiver => {
                self.happened(fault);
                self.receiver_over();
                for at in 0..self.attempt.conns.len() {
                    self.cut(at, 0, 0);
                }
            }
            Fault::CrashSender => {
                self.happened(fault);
                self.sender_dies(false);
            }
        }
        true
    }

    fn make_unreadable(&mut self, among: &[EntryIndex]) {
        let left = |entry: &&EntryIndex| {
            !self.world.named[entry.at()] && self.world.unreadable[entry.at()].is_none()
        };
        let left: Vec<_> = among.iter().filter(left).copied().collect();
        if left.is_empty() {
            return;
        }
        let entry = self.rng.pick(&left);
        let size = self.world.source.data[entry.at()].len();
        let from = if self.rng.percent(50) { 0 } else { self.rng.below(size) };
        self.world.unreadable[entry.at()] = Some(from as u64);
        self.happened(Fault::Unreadable);
    }

    /// Files that may get lost, and of which something is on its way on this stream.
    fn flying_expendable(&self, at: usize) -> Vec<EntryIndex> {
        let flies = |entry: &&EntryIndex| {
            let chunks = self.world.table.chunks_of(**entry);
            chunks.is_some_and(|(first, count)| {
                let last = ChunkIndex(first.0 + count);
                self.attempt.conns[at].unconfirmed.range(first..last).next().is_some()
            })
        };
        self.world.source.expendable.iter().filter(flies).copied().collect()
    }

    /// Breaks a connection; so many bytes of what is on its way arrive yet.
    pub(super) fn cut(&mut self, at: usize, keep: usize, keep_back: usize) {
        let conn = &mut self.attempt.conns[at];
        conn.cut = true;
        let end = conn.forward.cut(self.now, keep);
        conn.back.cut(self.now, keep_back);
        self.schedule_at(end, Event::ToReceiver(at));
        let seen = self.rng.range(0, 50 * MILLI);
        self.schedule(seen, Event::Lost(at));
    }
}
