//! A game over UDP: every player gets the state of the world thirty times a second, of which only
//! the newest counts, and says as often what it does. Joining is acknowledged. A player that has no
//! map downloads it, 20 MB, while the game goes on.
//!
//! `cargo run --release -p fastdrop-messages --example game_server [PLAYERS]`: a server and its
//! players, in one process, for five seconds.

#![allow(clippy::print_stdout, reason = "an example")]

use fastdrop_messages::vstp::udp::{PeerEvent, VstpUdpClient, VstpUdpServer};
use fastdrop_messages::vstp::{Frame, FrameBytes, FrameType, VstpError};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

/// States of the world a second.
pub(crate) const RATE: u32 = 30;
pub(crate) const MAP_BYTES: usize = 20_000_000;
/// A player of whom nothing has been heard for so long is gone.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// Positions in a state: it fits one datagram.
const SHOWN_MAX: usize = 250;

#[tokio::main]
async fn main() -> Result<(), VstpError> {
    let players = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(16);
    let server = VstpUdpServer::bind("127.0.0.1:0").await?;
    let address = server.local_addr()?;
    let map = frame("map", vec![7; MAP_BYTES])?;
    let game = tokio::spawn(serve(server, map));
    let mut playing = JoinSet::new();
    for player in 0..players {
        playing.spawn(play(address, 5 * RATE, player == 0));
    }
    while let Some(Ok(played)) = playing.join_next().await {
        let played = played?;
        let worst = played.gaps.iter().max().copied().unwrap_or_default();
        print!("{} states, {} missed, at most {worst:?} between two", played.states, played.missed);
        match played.map {
            Some((bytes, time)) => println!("; {bytes} bytes of map in {time:?}"),
            None => println!(),
        }
    }
    game.abort();
    Ok(())
}

/// The game, until the socket is of no use any more.
pub(crate) async fn serve(server: VstpUdpServer, map: FrameBytes) -> Result<(), VstpError> {
    let mut events = server.events(SILENT_AFTER);
    let server = Arc::new(server);
    let mut world = World::default();
    let (states, shown) = watch::channel(world.state()?);
    let mut players: HashMap<SocketAddr, Player> = HashMap::new();
    let mut ticks = ticks();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                world.tick += 1;
                states.send_replace(world.state()?);
            }
            Some(event) = events.next() => match event {
                PeerEvent::Gone(player, _) => {
                    players.remove(&player);
                    world.positions.remove(&player);
                }
                // Some of them may have gone.
                PeerEvent::Missed(_) => {
                    players.retain(|_, player| player.heard_at.elapsed() < SILENT_AFTER);
                    world.positions.retain(|player, _| players.contains_key(player));
                }
                _ => {}
            },
            received = server.recv_bytes() => {
                let (frame, from) = received?;
                if let Some(player) = players.get_mut(&from) {
                    player.heard_at = Instant::now();
                }
                match frame.headers().find("kind") {
                    Some(b"join") => {
                        world.positions.entry(from).or_default();
                        let show = || show(Arc::clone(&server), from, shown.clone());
                        players.entry(from).or_insert_with(|| Player::new(show()));
                    }
                    Some(b"move") => world.step(from, &frame.payload),
                    Some(b"download") => {
                        // One at a time, however often it asks.
                        if let Some(player) = players.get_mut(&from)
                            && player.download.as_ref().is_none_or(AbortHandle::is_finished)
                        {
                            while player.tasks.try_join_next().is_some() {}
                            let give = give(Arc::clone(&server), from, map.clone());
                            player.download = Some(player.tasks.spawn(give));
                        }
                    }
                    // HELLO and PING; or it is of another program.
                    _ => server.answer(&frame, from),
                }
            }
        }
    }
}

/// A player that is there. When it is dropped, its tasks end.
struct Player {
    tasks: JoinSet<()>,
    download: Option<AbortHandle>,
    heard_at: Instant,
}

impl Player {
    fn new(show: impl Future<Output = ()> + Send + 'static) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(show);
        Self { tasks, download: None, heard_at: Instant::now() }
    }
}

/// Sends a player the newest state, whenever there is one. A player that cannot be sent them so
/// fast gets fewer, and holds up nobody else.
async fn show(server: Arc<VstpUdpServer>, player: SocketAddr, mut states: watch::Receiver<FrameBytes>) {
    while states.changed().await.is_ok() {
        let state = states.borrow_and_update().clone();
        if let Err(error) = server.send_bytes(state, player).await {
            println!("{player}: {error}");
        }
    }
}

/// Sends a player the map. It is cut, paced, and what is lost is sent again.
async fn give(server: Arc<VstpUdpServer>, player: SocketAddr, map: FrameBytes) {
    if let Err(error) = server.send_bytes(map, player).await {
        println!("{player} has no map: {error}");
    }
}

#[derive(Default)]
struct World {
    tick: u32,
    positions: HashMap<SocketAddr, [i16; 2]>,
}

impl World {
    /// A player does something; what is malformed, or of nobody who has joined, does nothing.
    fn step(&mut self, player: SocketAddr, step: &[u8]) {
        if let (Some([x, y]), [dx, dy]) = (self.positions.get_mut(&player), step) {
            *x = x.wrapping_add(i16::from(*dx));
            *y = y.wrapping_add(i16::from(*dy));
        }
    }

    fn state(&self) -> Result<FrameBytes, VstpError> {
        let mut state = self.tick.to_be_bytes().to_vec();
        for [x, y] in self.positions.values().take(SHOWN_MAX) {
            state.extend(x.to_be_bytes().into_iter().chain(y.to_be_bytes()));
        }
        frame("state", state)
    }
}

pub(crate) fn frame(kind: &str, payload: Vec<u8>) -> Result<FrameBytes, VstpError> {
    Frame::new(FrameType::Data).with_header("kind", kind).with_payload(payload).try_into()
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// The game as one player has seen it.
#[derive(Debug, Default)]
pub(crate) struct Played {
    pub(crate) states: u32,
    pub(crate) missed: u32,
    /// The times between one state and the next.
    pub(crate) gaps: Vec<Duration>,
    /// The bytes of the map, and the time that it took.
    pub(crate) map: Option<(usize, Duration)>,
}

/// Plays until so many states have come, and the map, if it is wanted.
pub(crate) async fn play(server: SocketAddr, states: u32, wants_map: bool) -> Result<Played, VstpError> {
    let player = VstpUdpClient::bind("0.0.0.0:0").await?;
    player.send_with_ack(frame("join", Vec::new())?.into(), server).await?;
    let asked_at = Instant::now();
    if wants_map {
        player.send_with_ack(frame("download", Vec::new())?.into(), server).await?;
    }
    let mut played = Played::default();
    let mut newest: Option<(u32, Instant)> = None;
    let mut ticks = ticks();
    while played.states < states || (wants_map && played.map.is_none()) {
        tokio::select! {
            _ = ticks.tick() => player.send_bytes(frame("move", vec![1, 2])?, server).await?,
            received = player.recv_bytes() => {
                let (frame, _) = received?;
                match (frame.headers().find("kind"), frame.payload.first_chunk()) {
                    (Some(b"map"), _) => played.map = Some((frame.payload.len(), asked_at.elapsed())),
                    (Some(b"state"), Some(tick)) => {
                        let (tick, now) = (u32::from_be_bytes(*tick), Instant::now());
                        // One that comes late is of no use.
                        let Some((last, at)) = newest.filter(|(last, _)| *last < tick) else {
                            newest.get_or_insert((tick, now));
                            continue;
                        };
                        played.states += 1;
                        played.missed += tick - last - 1;
                        played.gaps.push(now - at);
                        newest = Some((tick, now));
                    }
                    _ => {}
                }
            }
        }
    }
    player.send(Frame::new(FrameType::Bye), server).await?;
    Ok(played)
}
