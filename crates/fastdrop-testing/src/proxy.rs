//! A proxy that misbehaves on command.

use crate::wait::DEADLINE;
use crate::words::target;
use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The frame number of DONE, which is the last word of a put.
const DONE: [u8; 4] = [0x80, 0, 0, 0x11];

/// Forwards TCP connections to a server, counts what passes, and cuts, holds, darkens, slows and
/// corrupts on command.
///
/// Bytes are counted when they are passed on. "Total" is both directions of all connections
/// together.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    server: Option<SocketAddr>,
    closing: bool,
    paused: bool,
    up: u64,
    down: u64,
    last_way: Option<Way>,
    answers: u64,
    connections: Vec<Connection>,
    hold_at: Option<u64>,
    cuts_at: Vec<u64>,
    cut_at_connection: Option<usize>,
    cuts: u64,
    dark_after: Option<(usize, u64)>,
    flips: Vec<u64>,
    flipped: u64,
    rate: Option<u64>,
    swallow_done: bool,
    swallowed: bool,
    resets: bool,
    pumps: Vec<JoinHandle<()>>,
}

struct Connection {
    /// To the client and to the server; none once neither way passes anything on any more. Then
    /// both are closed, and whoever still sends is told.
    sockets: Option<[TcpStream; 2]>,
    /// Ways that have ended.
    ended: u8,
    cut: bool,
    dark: bool,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Up,
    Down,
}

impl State {
    fn total(&self) -> u64 {
        self.up + self.down
    }

    fn cut(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.cut = true;
        for socket in connection.sockets.take().into_iter().flatten() {
            if self.resets {
                reset(&socket);
            } else {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    fn cut_all(&mut self) {
        for index in 0..self.connections.len() {
            self.cut(index);
        }
        self.cuts += 1;
    }
}

impl Proxy {
    /// In front of the server at this port of 127.0.0.1.
    pub fn to(server_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state =
            State { server: Some(SocketAddr::from(([127, 0, 0, 1], server_port))), ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let for_thread = Arc::clone(&shared);
        let acceptor = Some(std::thread::spawn(move || accept(&listener, &for_thread)));
        Self { port, shared, acceptor }
    }

    /// Its address and a path, as an argument.
    pub fn target(&self, path: impl AsRef<OsStr>) -> OsString {
        target(self.port, path.as_ref())
    }

    /// The port on which it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let answer = change(&mut self.state());
        self.shared.changed.notify_all();
        answer
    }

    /// New connections go to this port from now on.
    pub fn retarget(&self, server_port: u16) {
        self.change(|s| s.server = Some(SocketAddr::from(([127, 0, 0, 1], server_port))));
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state().connections.len()
    }

    /// Bytes from client to server so far.
    pub fn up(&self) -> u64 {
        self.state().up
    }

    /// Bytes from server to client so far.
    pub fn down(&self) -> u64 {
        self.state().down
    }

    /// The times that bytes from the server followed bytes from the client: round trips, if nothing
    /// overlaps.
    pub fn answers(&self) -> u64 {
        self.state().answers
    }

    /// Bytes in both directions so far.
    pub fn total(&self) -> u64 {
        self.state().total()
    }

    /// The times that all connections were cut.
    pub fn cuts(&self) -> u64 {
        self.state().cuts
    }

    /// The number of bits that were flipped.
    pub fn flipped(&self) -> u64 {
        self.state().flipped
    }

    /// Returns true if a DONE was kept from the client.
    pub fn swallowed(&self) -> bool {
        self.state().swallowed
    }

    /// The number of connections that are dark.
    pub fn dark(&self) -> usize {
        self.state().connections.iter().filter(|c| c.dark).count()
    }

    /// Cuts all connections; new ones work.
    pub fn cut_all(&self) {
        self.change(State::cut_all);
    }

    /// Cuts one connection, counted from 0 in the order of acceptance.
    pub fn cut_one(&self, index: usize) {
        self.change(|s| s.cut(index));
    }

    /// Cuts all connections whenever the total reaches one of these numbers.
    pub fn cut_at(&self, totals: &[u64]) {
        self.change(|s| {
            s.cuts_at = totals.to_vec();
            s.cuts_at.sort_unstable();
        });
    }

    /// Cuts all connections at the moment when this one, counted from 0, is accepted.
    pub fn cut_at_connection(&self, index: usize) {
        self.change(|s| s.cut_at_connection = Some(index));
    }

    /// Passes nothing on any more once the total has reached `total`, until [`Proxy::resume`].
    pub fn hold_at(&self, total: u64) {
        self.change(|s| s.hold_at = Some(total));
    }

    /// Waits until a hold is reached.
    #[track_caller]
    pub fn wait_held(&self) {
        let total = self.state().hold_at.expect("nothing was to be held");
        self.wait(&format!("a total of {total} bytes"), |s| s.total() >= total);
    }

    /// Waits until so many connections were accepted.
    #[track_caller]
    pub fn wait_connections(&self, count: usize) {
        self.wait("connections", |s| s.connections.len() >= count);
    }

    #[track_caller]
    fn wait(&self, what: &str, reached: impl Fn(&State) -> bool) {
        let end = Instant::now() + DEADLINE;
        let mut state = self.state();
        while !reached(&state) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (up, down) = (state.up, state.down);
                // Released first, so that the failure does not poison what the proxy's threads use.
                drop(state);
                panic!("the proxy never saw {what}; up {up}, down {down}");
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Passes nothing on, closes nothing.
    pub fn pause(&self) {
        self.change(|s| s.paused = true);
    }

    /// Ends a pause or a hold.
    pub fn resume(&self) {
        self.change(|s| {
            s.paused = false;
            s.hold_at = None;
        });
    }

    /// One connection, counted from 0, passes nothing on any more and stays open, after so many of
    /// its bytes.
    pub fn dark_after(&self, index: usize, bytes: u64) {
        self.change(|s| s.dark_after = Some((index, bytes)));
    }

    /// Flips one bit of these bytes, counted from 0 over everything from client to server.
    pub fn flip_at(&self, offsets: &[u64]) {
        self.change(|s| s.flips = offsets.to_vec());
    }

    /// At most so many bytes a second, of each direction of each connection.
    pub fn limit_rate(&self, bytes_a_second: u64) {
        self.change(|s| s.rate = Some(bytes_a_second));
    }

    /// From now on a connection that is cut is reset at both ends, as by a network that has
    /// forgotten it. A connection that merely ends looks to the older protocols like one that went
    /// well.
    pub fn cut_by_resets(&self) {
        self.change(|s| s.resets = true);
    }

    /// Cuts everything just before the first DONE from the server would pass: the last word is
    /// lost.
    pub fn swallow_done(&self) {
        self.change(|s| s.swallow_done = true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|s| {
            s.closing = true;
            s.cut_all();
        });
        // Wakes the acceptor.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.acceptor.take().unwrap().join();
        let pumps = std::mem::take(&mut self.state().pumps);
        for pump in pumps {
            let _ = pump.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        let server = {
            let state = shared.state.lock().unwrap();
            if state.closing {
                return;
            }
            state.server.unwrap()
        };
        // A server that is gone refuses: the client sees its connection end at once.
        let Ok(server) = TcpStream::connect_timeout(&server, Duration::from_secs(5)) else { continue };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let mut state = shared.state.lock().unwrap();
        let index = state.connections.len();
        for way in [Way::Up, Way::Down] {
            let (from, to) = match way {
                Way::Up => (&client, &server),
                Way::Down => (&server, &client),
            };
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let shared = Arc::clone(shared);
            state.pumps.push(std::thread::spawn(move || {
                pump(way, index, from, to, &shared);
                // The acceptor enters it before it lets go of the lock.
                let connection = &mut shared.state.lock().unwrap().connections[index];
                connection.ended += 1;
                if connection.ended == 2 {
                    connection.sockets = None;
                }
            }));
        }
        let sockets = Some([client, server]);
        state.connections.push(Connection { sockets, ended: 0, cut: false, dark: false, bytes: 0 });
        if state.cut_at_connection == Some(index) {
            state.cut_at_connection = None;
            state.cut_all();
        }
        drop(state);
        shared.changed.notify_all();
    }
}

fn pump(way: Way, index: usize, mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut buffer = vec![0; 64 << 10];
    let mut tail: Vec<u8> = Vec::new();
    loop {
        let read = from.read(&mut buffer);
        if read.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset) {
            let mut state = shared.state.lock().unwrap();
            let resets = std::mem::replace(&mut state.resets, true);
            state.cut(index);
            state.resets = resets;
            return;
        }
        let read = read.unwrap_or(0);
        if read == 0 {
            if may_pass(way, index, 0, shared).is_some() {
                let _ = to.shutdown(Shutdown::Write);
            }
            return;
        }
        let mut data = &mut buffer[..read];
        while !data.is_empty() {
            let Some(pass) = may_pass(way, index, data.len(), shared) else { return };
            let (now, later) = data.split_at_mut(pass.bytes);
            for offset in pass.flips {
                now[offset] ^= 0x10;
            }
            let swallow = pass.swallow_done.then(|| position_of_done(&mut tail, now)).flatten();
            let now = &now[..swallow.unwrap_or(now.len())];
            if let Some(pause) = pass.slow_down {
                std::thread::sleep(pause);
            }
            let written = to.write_all(now);
            let mut state = shared.state.lock().unwrap();
            if swallow.is_some() && !state.swallowed {
                state.swallowed = true;
                state.swallow_done = false;
                state.cut_all();
            }
            if state.cuts_at.first().is_some_and(|&at| state.total() >= at) {
                state.cuts_at.remove(0);
                state.cut_all();
            }
            drop(state);
            shared.changed.notify_all();
            if written.is_err() {
                return;
            }
            data = later;
        }
    }
}

/// Makes the end of a connection a reset, which comes when the threads that wait for it have closed
/// it, too.
fn reset(socket: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    // Says nothing to the peer, and wakes whoever reads.
    let _ = socket.shutdown(Shutdown::Read);
}

struct Pass {
    bytes: usize,
    flips: Vec<usize>,
    swallow_done: bool,
    slow_down: Option<Duration>,
}

/// Waits until something may pass, and counts it. None when the connection is over.
fn may_pass(way: Way, index: usize, wanted: usize, shared: &Shared) -> Option<Pass> {
    let mut guard = shared.state.lock().unwrap();
    loop {
        let state = &mut *guard;
        let total = state.total();
        let Some(connection) = state.connections.get_mut(index) else {
            // The acceptor has not entered it yet.
            guard = shared.changed.wait(guard).unwrap();
            continue;
        };
        if state.closing || connection.cut {
            return None;
        }
        let mut bytes = wanted as u64;
        if let Some((dark, after)) = state.dark_after
            && dark == index
        {
            connection.dark |= connection.bytes >= after;
            bytes = bytes.min(after.saturating_sub(connection.bytes));
        }
        if let Some(hold) = state.hold_at {
            bytes = bytes.min(hold.saturating_sub(total));
        }
        if let Some(cut) = state.cuts_at.first() {
            // At least one, so that a number that was passed meanwhile still cuts.
            bytes = bytes.min(cut.saturating_sub(total).max(1));
        }
        let stopped = state.paused || connection.dark || state.hold_at.is_some_and(|hold| total >= hold);
        if stopped || (bytes == 0 && wanted > 0) {
            guard = shared.changed.wait(guard).unwrap();
            continue;
        }
        connection.bytes += bytes;
        if bytes > 0 {
            state.answers += u64::from(way == Way::Down && state.last_way == Some(Way::Up));
            state.last_way = Some(way);
        }
        let before = if way == Way::Up { &mut state.up } else { &mut state.down };
        let start = *before;
        *before += bytes;
        let mut flips = Vec::new();
        if way == Way::Up {
            state.flips.retain(|&at| {
                let here = (start..start + bytes).contains(&at);
                if here {
                    flips.push((at - start) as usize);
                }
                !here
            });
            state.flipped += flips.len() as u64;
        }
        let slow_down = state.rate.map(|rate| Duration::from_secs_f64(bytes as f64 / rate as f64));
        let swallow_done = state.swallow_done && way == Way::Down;
        drop(guard);
        shared.changed.notify_all();
        return Some(Pass { bytes: bytes as usize, flips, swallow_done, slow_down });
    }
}

/// The place in `now` where a DONE begins, looking across the border to what came before.
fn position_of_done(tail: &mut Vec<u8>, now: &[u8]) -> Option<usize> {
    let before = tail.len();
    tail.extend_from_slice(now);
    let found = tail.windows(4).position(|window| window == DONE).map(|at| at.saturating_sub(before));
    let keep = tail.len().saturating_sub(3);
    tail.drain(..keep);
    found
}
