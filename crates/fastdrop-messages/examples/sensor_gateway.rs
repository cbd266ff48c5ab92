//! A gateway for sensors: readings of a few bytes, each acknowledged when it is kept, and kept
//! once. CNP sees to that within a session. Across sessions the readings' own numbers do: a sensor
//! that has lost its session does not know whether its last reading arrived, and sends it again.
//!
//! `cargo run --release -p fastdrop-messages --example sensor_gateway [SENSORS]`: a gateway and its
//! sensors, 2,000, in one process, with ten readings each, two a second.

#![allow(clippy::print_stdout, reason = "an example")]

use fastdrop_messages::cnp::{Client, Error, Server};
use std::collections::HashMap;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The pause before a sensor that has lost its session asks for another.
const PAUSE: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> Result<(), Error> {
    let sensors = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(2000);
    let server = bind("127.0.0.1:0", sensors).await?;
    let address = server.local_addr();
    let store = Arc::new(Store::default());
    let gateway = tokio::spawn(serve(server, Arc::clone(&store), pending()));
    let start = Instant::now();
    let mut reporting = JoinSet::new();
    for sensor in 0..sensors {
        reporting.spawn(report(address, sensor, 10, Duration::from_millis(500)));
    }
    let slowest = reporting.join_all().await.into_iter().flatten().max().unwrap_or_default();
    println!(
        "{} readings of {sensors} sensors in {:?}; the slowest was acknowledged after {slowest:?}",
        store.count(),
        start.elapsed()
    );
    gateway.abort();
    Ok(())
}

/// A gateway for so many sensors. By UDP none listens here: a session by TCP costs a gateway less.
pub(crate) async fn bind(address: &str, sensors: u32) -> Result<Server, Error> {
    Server::builder().udp(false).sessions_max(sensors as usize).bind(address).await
}

/// Keeps readings until `end`. A reading is acknowledged when it is kept, and not before.
pub(crate) async fn serve(server: Server, store: Arc<Store>, end: impl Future<Output = ()>) {
    server
        .serve_until(end, move |delivery| {
            let store = Arc::clone(&store);
            async move {
                match Reading::from_bytes(delivery.message()) {
                    Some(reading) => {
                        store.keep(reading);
                        delivery.acknowledge();
                    }
                    // Dropped without that, it ends the session, and its sender hears why.
                    None => println!("{}: no reading", delivery.session().peer_addr()),
                }
            }
        })
        .await;
}

/// A reading of a sensor, in 12 bytes. Numbers begin with 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) sensor: u32,
    pub(crate) number: u32,
    pub(crate) value: i32,
}

impl Reading {
    fn to_bytes(self) -> Vec<u8> {
        [self.sensor.to_be_bytes(), self.number.to_be_bytes(), self.value.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (sensor, rest) = bytes.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let value = i32::from_be_bytes(rest.try_into().ok()?);
        let (sensor, number) = (u32::from_be_bytes(*sensor), u32::from_be_bytes(*number));
        Some(Self { sensor, number, value })
    }
}

/// The readings that were kept; a gateway that must not lose them when it is switched off writes
/// them to its disk in [`Self::keep`].
#[derive(Default)]
pub(crate) struct Store {
    newest: Mutex<HashMap<u32, Reading>>,
    count: watch::Sender<u64>,
}

impl Store {
    /// Keeps a reading, unless it is there already. A sensor sends one after the other, so the
    /// number of its newest says which are there.
    fn keep(&self, reading: Reading) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.get(&reading.sensor).is_none_or(|last| last.number < reading.number) {
            newest.insert(reading.sensor, reading);
            self.count.send_modify(|count| *count += 1);
        }
    }

    /// Readings that were kept.
    pub(crate) fn count(&self) -> u64 {
        *self.count.borrow()
    }

    /// Waits until so many were kept.
    #[allow(dead_code, reason = "for those who want to know")]
    pub(crate) async fn reached(&self, count: u64) {
        let _ = self.count.subscribe().wait_for(|kept| *kept >= count).await;
    }
}

/// A sensor that measures something each time that so much has passed. It sends a reading until
/// that is acknowledged, and then the next. Returns the times that they took.
pub(crate) async fn report(
    gateway: SocketAddr,
    sensor: u32,
    readings: u32,
    every: Duration,
) -> Vec<Duration> {
    let mut session = None;
    let mut times = Vec::new();
    for number in 1..=readings {
        let reading = Reading { sensor, number, value: 20_000 + number as i32 };
        let start = Instant::now();
        while let Err(error) = send(&mut session, gateway, reading).await {
            println!("sensor {sensor}: {error}; once more");
            session = None;
            tokio::time::sleep(PAUSE).await;
        }
        times.push(start.elapsed());
        tokio::time::sleep(every.saturating_sub(start.elapsed())).await;
    }
    times
}

/// Sends one reading, in a session that is there or a new one.
async fn send(session: &mut Option<Client>, gateway: SocketAddr, reading: Reading) -> Result<(), Error> {
    let session = match session {
        Some(session) => session,
        none => none.insert(Client::connect(gateway).await?),
    };
    session.send(reading.to_bytes()).await
}
