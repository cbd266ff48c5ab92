//! Bounds on how long a connection may be silent, and the place that it holds.

use super::TcpConfig;
use crate::metrics::{Count, Metrics};
use crate::places::Place;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A reason for which a connection that is still there is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Overdue {
    #[error("no frame came within the time for the first one (TcpConfig::first_frame_timeout)")]
    FirstFrame,
    #[error("nothing was said for too long (TcpConfig::idle_timeout)")]
    Idle,
    #[error("the peer takes nothing of what is written (TcpConfig::write_timeout)")]
    Write,
    #[error("there are too many connections, and this one has said nothing for longest")]
    Place,
}

impl Overdue {
    /// The reason in an error of a guarded stream.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<Overdue> for io::Error {
    fn from(overdue: Overdue) -> Self {
        let kind = match overdue {
            Overdue::Place => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::TimedOut,
        };
        Self::new(kind, overdue)
    }
}

/// A stream that ends when its peer has been silent for too long, or its place is needed.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    inner: S,
    place: Option<Place>,
    first_frame_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    begun_at: Instant,
    has_spoken: bool,
    has_expired: bool,
    /// When a frame came, or something was written.
    active_at: Instant,
    /// Since when nothing can be written.
    blocked_at: Option<Instant>,
    reading: Timer,
    writing: Timer,
    metrics: Metrics,
}

impl<S> Guarded<S> {
    /// A place is given at the end that listens, where the first frame is waited for.
    pub(super) fn new(inner: S, config: &TcpConfig, place: Option<Place>) -> Self {
        let now = Instant::now();
        config.metrics.on(Count::Joined);
        Self {
            inner,
            first_frame_timeout: config.first_frame_timeout.filter(|_| place.is_some()),
            place,
            idle_timeout: config.idle_timeout,
            write_timeout: config.write_timeout,
            begun_at: now,
            has_spoken: false,
            has_expired: false,
            active_at: now,
            blocked_at: None,
            reading: Timer::default(),
            writing: Timer::default(),
            metrics: config.metrics.clone(),
        }
    }

    pub(super) fn inner(&self) -> &S {
        &self.inner
    }

    /// A whole frame came.
    pub(super) fn on_frame(&mut self, now: Instant) {
        self.has_spoken = true;
        self.active_at = now;
        if let Some(place) = &self.place {
            place.on_frame(now);
        }
    }

    fn poll_silent(&mut self, cx: &mut Context<'_>) -> Poll<Overdue> {
        if let Some(place) = &self.place
            && place.poll_lost(cx).is_ready()
        {
            return Poll::Ready(Overdue::Place);
        }
        let first = self.first_frame_timeout.filter(|_| !self.has_spoken);
        // A time that no clock reaches is never over.
        let first = first.and_then(|time| Some((self.begun_at.checked_add(time)?, Overdue::FirstFrame)));
        let idle =
            self.idle_timeout.and_then(|time| Some((self.active_at.checked_add(time)?, Overdue::Idle)));
        let Some((at, reason)) = [first, idle].into_iter().flatten().min_by_key(|(at, _)| *at) else {
            return Poll::Pending;
        };
        self.reading.poll_at(at, cx).map(|()| reason)
    }

    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<Overdue> {
        if let Some(place) = &self.place
            && place.poll_lost(cx).is_ready()
        {
            return Poll::Ready(Overdue::Place);
        }
        let since = *self.blocked_at.get_or_insert_with(Instant::now);
        match self.write_timeout.and_then(|time| since.checked_add(time)) {
            Some(at) => self.writing.poll_at(at, cx).map(|()| Overdue::Write),
            None => Poll::Pending,
        }
    }

    /// The connection ends for this reason.
    fn expire(&mut self, overdue: Overdue) -> io::Error {
        self.count_once(if overdue == Overdue::Place { Count::Refused } else { Count::TimedOut });
        overdue.into()
    }

    /// The peer was silent where it must not be, which its protocol says.
    pub(super) fn on_timed_out(&mut self) {
        self.count_once(Count::TimedOut);
    }

    /// Whatever is still tried after that fails in the same way, or in another.
    fn count_once(&mut self, count: Count) {
        if !std::mem::replace(&mut self.has_expired, true) {
            self.metrics.on(count);
        }
    }

    /// The outcome of an attempt to write.
    fn written(&mut self, outcome: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(done) => {
                if let Ok(count) = done {
                    self.metrics.add(Count::BytesSent, count as u64);
                }
                self.blocked_at = None;
                if self.idle_timeout.is_some() {
                    self.active_at = Instant::now();
                }
                Poll::Ready(done)
            }
            Poll::Pending => self.poll_blocked(cx).map(|overdue| Err(self.expire(overdue))),
        }
    }
}

impl<S> Drop for Guarded<S> {
    fn drop(&mut self) {
        self.metrics.on(Count::Gone);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.inner).poll_read(cx, buf) {
            Poll::Ready(done) => {
                let came = buf.filled().len().saturating_sub(before);
                this.metrics.add(Count::BytesReceived, came as u64);
                // Whoever sends a large frame is not idle. Before the first one, its time is
                // bounded.
                if let Some(place) = this.place.as_ref().filter(|_| came > 0) {
                    place.on_heard(Instant::now());
                }
                Poll::Ready(done)
            }
            Poll::Pending => this.poll_silent(cx).map(|overdue| Err(this.expire(overdue))),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.written(outcome, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.written(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_flush(cx) {
            // That nothing waits is no sign of life.
            Poll::Ready(done) => {
                this.blocked_at = None;
                Poll::Ready(done)
            }
            Poll::Pending => this.poll_blocked(cx).map(|overdue| Err(this.expire(overdue))),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_shutdown(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => this.poll_blocked(cx).map(|overdue| Err(this.expire(overdue))),
        }
    }
}

/// A timer that is set anew only when it has rung, as it is put off with every frame.
#[derive(Debug, Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn poll_at(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
        if sleep.deadline() > at.into() {
            sleep.as_mut().reset(at.into());
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if sleep.deadline() >= at.into() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::places::{Limits, Origin, Places};
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Whoever sends a large frame is not idle before it is whole.
    #[tokio::test]
    async fn bytes_of_a_frame_are_signs_of_life() {
        let places = Places::new(Limits { all: 1, of_one: 1 });
        let place = places.take(Instant::now(), Origin::of([192, 0, 2, 1].into())).unwrap();
        let (mut peer, stream) = tokio::io::duplex(64);
        let mut guarded = Guarded::new(stream, &TcpConfig::default(), Some(place));
        let heard_at = |guarded: &Guarded<_>| guarded.place.as_ref().unwrap().heard_at();
        guarded.on_frame(Instant::now());
        let before = heard_at(&guarded);
        while before.elapsed() < Duration::from_millis(5) {
            tokio::task::yield_now().await;
        }
        peer.write_all(b"part").await.unwrap();
        guarded.read_exact(&mut [0; 4]).await.unwrap();
        assert!(heard_at(&guarded) > before);
    }

    /// Takes nothing, and does not end.
    struct Stuck;

    impl AsyncWrite for Stuck {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_gone_whatever_is_tried() {
        let config = TcpConfig { write_timeout: Some(Duration::from_millis(20)), ..TcpConfig::default() };
        for attempt in 0..3 {
            let mut guarded = Guarded::new(Stuck, &config, None);
            let tried = poll_fn(|cx| match attempt {
                0 => Pin::new(&mut guarded).poll_write(cx, b"x").map_ok(|_| ()),
                1 => Pin::new(&mut guarded).poll_flush(cx),
                _ => Pin::new(&mut guarded).poll_shutdown(cx),
            });
            let tried = tokio::time::timeout(Duration::from_secs(60), tried).await;
            let error = tried.expect("it is bounded").unwrap_err();
            assert_eq!(Overdue::of(&error), Some(Overdue::Write));
        }
    }
}
