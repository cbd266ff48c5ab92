//! The sender, and what once went wrong in it.

use crate::{Desk, one_file};
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{
    Action, ChunkVerdict, Code, Completed, Control, Held, NeedTotals, Outcome, Refuse, Sender, SenderConfig,
    SkipReason, SkipRun, StreamId, Streams, Table, Transcript, root_digest,
};
use fastdrop_proto::units::{ChunkIndex, ChunkSize, EntryIndex};
use fastdrop_testing::fastdp::rng::Rng;
use fastdrop_testing::fastdp::world::{Source, SourceBuilder};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Three small files in one pack, and one of so many chunks.
fn pack_and_file(chunks: usize) -> Source {
    let mut builder = SourceBuilder::default();
    for size in [100, 200, 300] {
        builder.random(&mut Rng::new(size), size as usize);
    }
    builder.random(&mut Rng::new(1), chunks * 1024);
    builder.finish(vec![])
}

/// A sender that is to send everything, with so many data streams.
fn sender(source: &Source, streams: u16, now: Instant) -> Sender {
    let config = SenderConfig {
        streams: Streams::Fixed(streams),
        granted: streams,
        data_streams_from: 0,
        ..SenderConfig::default()
    };
    let table = Table::new(&source.manifest, ChunkSize::MIN).unwrap();
    let totals = NeedTotals { chunks: table.count(), bytes: source.manifest.bytes() };
    let mut sender = Sender::new(config, Arc::clone(&source.manifest), table, Algorithm::Xxh3, now);
    sender.handle_frame(StreamId::CONTROL, Control::Need(totals), now);
    while sender.poll_open(now) {
        sender.handle_stream_joined(now);
    }
    assert_eq!(sender.data_streams(), usize::from(streams));
    sender
}

/// Sends the next chunk on a stream, up to its last byte.
fn send(sender: &mut Sender, stream: StreamId, now: Instant) -> ChunkIndex {
    let Action::Send(chunk) = sender.poll_stream(stream, now) else { panic!("nothing to send") };
    sender.handle_read(chunk, &Algorithm::Xxh3.of(&chunk.0.to_be_bytes()));
    sender.handle_sent(stream, 1032, now);
    chunk
}

fn controls(sender: &mut Sender, now: Instant) -> Vec<Control> {
    std::iter::from_fn(|| match sender.poll_stream(StreamId::CONTROL, now) {
        Action::Control(control) => Some(control),
        _ => None,
    })
    .collect()
}

const ONE: StreamId = StreamId(1);
const TWO: StreamId = StreamId(2);

/// A sender of one file of three chunks that has offered it, to a receiver that knows identities or
/// does not.
fn offering(identity: bool, now: Instant) -> Sender {
    let source = one_file(3);
    let config = SenderConfig { identity, ..SenderConfig::default() };
    let table = Table::new(&source.manifest, ChunkSize::MIN).unwrap();
    Sender::new(config, Arc::clone(&source.manifest), table, Algorithm::Xxh3, now)
}

fn held(first: u32, bytes: &[u8]) -> Held {
    let sum = Algorithm::Xxh3.of(bytes);
    Held { first: ChunkIndex(first), checksums: sum.as_bytes().to_vec() }
}

#[test]
fn case_103_only_a_receiver_that_knows_identities_is_believed_what_it_holds() {
    let now = Instant::now();
    let need = Control::Need(NeedTotals { chunks: 1, bytes: 1024 });
    let of = |bytes: &[u8]| Algorithm::Xxh3.of(bytes);
    // It marks what it holds of another version.
    let mut knowing = offering(true, now);
    for frame in [Control::Held(held(0, b"a")), Control::Compare(held(1, b"b")), need.clone()] {
        knowing.handle_frame(StreamId::CONTROL, frame, now);
    }
    assert_eq!(knowing.poll_compare(), Some(ChunkIndex(1)));
    assert_eq!(knowing.poll_compare(), None);
    knowing.handle_compared(ChunkIndex(1), &of(b"other"));
    assert_eq!(knowing.needed(), Some(NeedTotals { chunks: 2, bytes: 2048 }));
    assert_eq!(knowing.poll_stream(StreamId::CONTROL, now), Action::Send(ChunkIndex(1)));
    // One that does not is compared altogether, and begins anew where it differs.
    for (second, outcome) in [(&b"b"[..], None), (b"other", Some(Outcome::StartOver))] {
        let mut old = offering(false, now);
        for frame in [Control::Held(held(0, b"a")), Control::Held(held(1, b"b")), need.clone()] {
            old.handle_frame(StreamId::CONTROL, frame, now);
        }
        assert_eq!([old.poll_compare(), old.poll_compare()], [0, 1].map(|at| Some(ChunkIndex(at))));
        old.handle_compared(ChunkIndex(0), &of(b"a"));
        old.handle_compared(ChunkIndex(1), &of(second));
        assert_eq!(old.outcome(), outcome.as_ref());
        assert!(!matches!(old.poll_stream(StreamId::CONTROL, now), Action::Control(Control::Same(_))));
    }
    // Its small files cannot be compared.
    let skipped = SkipRun { first: EntryIndex(0), count: 1, reason: SkipReason::Held };
    for (identity, outcome) in [(true, None), (false, Some(Outcome::StartOver))] {
        let mut sender = offering(identity, now);
        sender.handle_frame(StreamId::CONTROL, Control::Skip(vec![skipped]), now);
        assert_eq!(sender.outcome(), outcome.as_ref());
    }
}

#[test]
fn a_file_is_read_once_for_a_receiver_that_asks_for_its_contents() {
    let now = Instant::now();
    let source = pack_and_file(2);
    let asks = |questions: &[&[u32]]| {
        let config = SenderConfig { content: true, ..SenderConfig::default() };
        let table = Table::new(&source.manifest, ChunkSize::MIN).unwrap();
        let mut sender = Sender::new(config, Arc::clone(&source.manifest), table, Algorithm::Xxh3, now);
        for entries in questions {
            let entries = entries.iter().copied().map(EntryIndex).collect();
            sender.handle_frame(StreamId::CONTROL, Control::Ask(entries), now);
        }
        (sender.outcome().is_none(), std::iter::from_fn(move || sender.poll_asked()).count())
    };
    assert_eq!(asks(&[&[0, 3], &[1]]), (true, 3));
    for questions in [&[&[0, 0][..]][..], &[&[0], &[0]], &[&[9]]] {
        assert_eq!(asks(questions), (false, 0), "{questions:?}");
    }
}

#[test]
fn a_file_that_two_streams_cannot_read_does_not_keep_the_transfer_from_its_end() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(2), 2, now);
    send(&mut sender, ONE, now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(1)));
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(2)));
    sender.handle_unreadable(Some(ONE), ChunkIndex(1), EntryIndex(3), Code::NotFound, "gone");
    assert!(matches!(controls(&mut sender, now)[..], [Control::Abandon { entry: EntryIndex(3), .. }]));
    sender.handle_frame(StreamId::CONTROL, Control::Abandoned(EntryIndex(3)), now);
    sender.handle_unreadable(Some(TWO), ChunkIndex(2), EntryIndex(3), Code::NotFound, "gone");
    assert!(matches!(controls(&mut sender, now)[..], [Control::End(_)]));
}

#[test]
fn a_chunk_whose_file_was_given_up_while_it_was_read_is_not_counted() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(2), 2, now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(0)));
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(1)));
    sender.handle_unreadable(Some(TWO), ChunkIndex(1), EntryIndex(3), Code::NotFound, "gone");
    assert_eq!(sender.poll_stream(TWO, now), Action::Wait);
    sender.handle_frame(StreamId::CONTROL, Control::Abandoned(EntryIndex(3)), now);
    // Its pieces are not needed any more, whoever reads them; the pack is still to come.
    sender.handle_read(ChunkIndex(2), &Algorithm::Xxh3.of(b"2"));
    assert!(!controls(&mut sender, now).iter().any(|frame| matches!(frame, Control::End(_))));
    sender.handle_read(ChunkIndex(0), &Algorithm::Xxh3.of(b"0"));
    assert!(matches!(controls(&mut sender, now)[..], [Control::End(_)]));
}

#[test]
fn a_sender_is_occupied_only_while_every_stream_that_carries_chunks_is_sending_one() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(4), 2, now);
    let first = send(&mut sender, ONE, now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(1)));
    assert!(!sender.is_occupied(), "the second stream has nothing to do");
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(2)));
    assert!(sender.is_occupied());
    sender.handle_frame(ONE, Control::Confirm(vec![first]), now);
    assert!(sender.is_occupied(), "a confirmation gives nobody work");
    sender.handle_stream_lost(TWO, now);
    assert!(!sender.is_occupied(), "there is a stream to open");
    sender.handle_frame(
        StreamId::CONTROL,
        Control::Refuse(Refuse { code: Code::NoSpace, message: "full".into(), paths: vec![] }),
        now,
    );
    assert!(!sender.is_occupied(), "it is over");
}

#[test]
fn a_pack_that_lost_a_slice_is_read_again_before_the_end() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(1), 2, now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(0)));
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(1)));
    sender.handle_read(ChunkIndex(0), &Algorithm::Xxh3.of(b"three slices"));
    sender.handle_stream_lost(ONE, now);
    sender.handle_read(ChunkIndex(1), &Algorithm::Xxh3.of(b"file"));
    // END would be due here; before the control stream comes for it the pack is read again, and
    // cannot be.
    sender.handle_sent(TWO, 1032, now);
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(0)));
    sender.handle_unreadable(Some(TWO), ChunkIndex(0), EntryIndex(1), Code::NotFound, "gone");
    assert!(matches!(controls(&mut sender, now)[..], [Control::Abandon { entry: EntryIndex(1), .. }]));
    sender.handle_frame(StreamId::CONTROL, Control::Abandoned(EntryIndex(1)), now);
    assert_eq!(controls(&mut sender, now), []);
    assert_eq!(sender.poll_stream(TWO, now), Action::Send(ChunkIndex(0)));
    let two = Algorithm::Xxh3.of(b"two slices");
    sender.handle_read(ChunkIndex(0), &two);
    let digest = root_digest(
        &Transcript::default(),
        [(ChunkIndex(0), two), (ChunkIndex(1), Algorithm::Xxh3.of(b"file"))].into_iter(),
    );
    assert_eq!(controls(&mut sender, now), [Control::End(digest)]);
}

#[test]
fn a_file_that_cannot_be_read_again_after_the_end_is_for_the_next_attempt() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(1), 1, now);
    send(&mut sender, ONE, now);
    send(&mut sender, ONE, now);
    assert!(matches!(controls(&mut sender, now)[..], [Control::End(_)]));
    sender.handle_frame(ONE, Control::Again(vec![ChunkIndex(1)]), now);
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(ChunkIndex(1)));
    sender.handle_unreadable(Some(ONE), ChunkIndex(1), EntryIndex(3), Code::NotFound, "gone");
    assert!(matches!(sender.outcome(), Some(Outcome::Lost(_))));
}

#[test]
fn a_pack_that_loses_a_slice_while_it_is_written_is_not_held() {
    let mut desk = Desk::new(pack_and_file(1));
    let three = desk.sum(0);
    assert_eq!(desk.arrives(0), Ok(ChunkVerdict::Write));
    desk.receiver.handle_abandon(EntryIndex(1)).unwrap();
    // The sender reads it anew, and that version may overtake the other one on its way to the disk.
    let two = desk.sum(0);
    assert_ne!(two, three);
    assert_eq!(desk.arrives(0), Ok(ChunkVerdict::Write));
    assert_eq!(desk.receiver.handle_written(ChunkIndex(0), &three), Completed::Nothing);
    assert_eq!(desk.receiver.checksum(ChunkIndex(0)), None);
    assert_eq!(
        desk.receiver.handle_written(ChunkIndex(0), &two),
        Completed::Pack(EntryIndex(0), EntryIndex(3))
    );
    assert_eq!(desk.receiver.checksum(ChunkIndex(0)), Some(two));
}

/// Lets the sender's timers run for so long, each stream writing its ALIVE at once; returns streams
/// to be closed.
fn pass(
    sender: &mut Sender,
    from: Instant,
    time: Duration,
    blocked: &[StreamId],
) -> (Instant, Vec<StreamId>) {
    let (mut now, mut closed, mut steps) = (from, Vec::new(), 0u32);
    while let Some(at) = sender.poll_timeout().filter(|&at| at <= from + time) {
        now = now.max(at);
        sender.handle_timeout(now);
        for id in (0..10).map(StreamId).filter(|id| !blocked.contains(id)) {
            if let Action::Control(_) = sender.poll_stream(id, now) {
                sender.handle_progress(id, now);
            }
        }
        closed.extend(std::iter::from_fn(|| sender.poll_close()));
        steps += 1;
        assert!(u128::from(steps) <= time.as_millis() / 40, "timers that spin");
    }
    (from + time, closed)
}

#[test]
fn an_alive_into_the_buffers_of_a_dark_stream_is_no_progress() {
    let now = Instant::now();
    let mut sender = sender(&one_file(2), 2, now);
    let chunk = send(&mut sender, ONE, now);
    send(&mut sender, ONE, now);
    // So the ALIVE is due before the stall.
    let later = now + Duration::from_secs(1);
    sender.handle_frame(ONE, Control::Confirm(vec![chunk]), later);
    let (_, closed) = pass(&mut sender, later, Duration::from_secs(8), &[]);
    assert_eq!(closed, [ONE]);
}

#[test]
fn a_stream_that_is_blocked_in_a_chunk_that_another_one_brought_stalls_too() {
    let now = Instant::now();
    let mut sender = sender(&pack_and_file(5), 2, now);
    let Action::Send(chunk) = sender.poll_stream(ONE, now) else { panic!() };
    sender.handle_read(chunk, &Algorithm::Xxh3.of(b"x"));
    sender.handle_frame(TWO, Control::Confirm(vec![chunk]), now);
    let (_, closed) = pass(&mut sender, now, Duration::from_secs(12), &[ONE]);
    assert_eq!(closed, [ONE]);
}

#[test]
fn a_stream_that_does_not_come_for_what_waits_is_closed() {
    let now = Instant::now();
    let mut sender = sender(&one_file(5), 1, now);
    let (_, closed) = pass(&mut sender, now, Duration::from_secs(12), &[ONE]);
    assert_eq!(closed, [ONE]);
}

#[test]
fn timers_of_blocked_drivers_do_not_spin() {
    let now = Instant::now();
    let mut sender = sender(&one_file(5), 1, now);
    let Action::Send(_) = sender.poll_stream(ONE, now) else { panic!() };
    pass(&mut sender, now, Duration::from_secs(50), &[StreamId::CONTROL, ONE]);
}

#[test]
fn a_data_stream_that_speaks_does_not_hide_a_dark_control_stream() {
    let now = Instant::now();
    let mut sender = sender(&one_file(200), 1, now);
    let mut at = now;
    for _ in 0..65 {
        let chunk = send(&mut sender, ONE, at);
        sender.handle_frame(ONE, Control::Confirm(vec![chunk]), at);
        at = pass(&mut sender, at, Duration::from_secs(1), &[]).0;
        if sender.outcome().is_some() {
            break;
        }
    }
    assert!(matches!(sender.outcome(), Some(Outcome::Lost(_))), "{:?}", sender.outcome());
}

#[test]
fn a_stream_entry_that_cannot_be_read_on_fails_the_transfer() {
    let now = Instant::now();
    let mut builder = SourceBuilder::default();
    builder.stream(vec![1; 5000]);
    let mut sender = sender(&builder.finish(vec![]), 1, now);
    let chunk = sender.handle_stream_filled().unwrap();
    assert_eq!(sender.poll_stream(ONE, now), Action::Send(chunk));
    sender.handle_unreadable(Some(ONE), chunk, EntryIndex(0), Code::Internal, "broken");
    assert!(matches!(sender.outcome(), Some(Outcome::Failed(failure)) if failure.code == Code::Internal));
}
