//! The examples in quantity: `cargo bench -p fastdrop-messages --bench programs` prints a table for
//! each of the game, the gateway and the mesh.
//!
//! Servers are processes of their own, the services of the mesh each; all clients are in this one.
//! Each has a tokio runtime of two threads. `-- --rounds 7 --only game --json FILE` chooses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::indexing_slicing)]

#[allow(dead_code, reason = "its main function")]
#[path = "../../examples/game_server.rs"]
mod game_server;
#[allow(dead_code, reason = "its main function")]
#[path = "../../examples/sensor_gateway.rs"]
mod sensor_gateway;
#[allow(dead_code, reason = "its main function")]
#[path = "../../examples/service_mesh.rs"]
mod service_mesh;

use fastdrop_messages::cnp;
use fastdrop_messages::vstp::{VstpTcpClient, VstpTcpServer, VstpUdpServer};
use fastdrop_testing::measure::{Arguments, median, percentiles, rounds};
use fastdrop_testing::peer::{Peer, say};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

fn main() {
    let arguments = Arguments::of_this_process();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(arguments) = arguments.of_peer() {
        return runtime.block_on(serve(arguments));
    }
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let tables = [game(), gateway(), mesh()].into_iter().filter(|table| arguments.wants(table.name));
    let results: Vec<_> = tables.map(|table| table.run(arguments.rounds(), &runtime)).collect();
    if let Some(file) = arguments.value("--json") {
        std::fs::write(file, serde_json::to_vec_pretty(&results).unwrap()).unwrap();
    }
}

/// The rows of one program, and how one is measured.
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Row>,
    measure: fn(&Row, &Runtime) -> Vec<f64>,
}

struct Row {
    name: String,
    count: u32,
    time: Duration,
}

impl Table {
    /// Prints the medians of the rounds, in which rows take turns.
    fn run(&self, count: usize, runtime: &Runtime) -> Value {
        let measured = rounds(count, self.rows.len(), |at| (self.measure)(&self.rows[at], runtime));
        println!("\n| {} | {} |", self.name, self.columns.join(" | "));
        println!("|{}", " --- |".repeat(self.columns.len() + 1));
        let rows = self.rows.iter().zip(measured).map(|(row, rounds)| {
            let figures: Vec<_> =
                (0..self.columns.len()).map(|n| median(rounds.iter().map(|figures| figures[n]))).collect();
            let shown: Vec<_> = figures.iter().copied().map(shown).collect();
            println!("| {} | {} |", row.name, shown.join(" | "));
            json!({ "row": row.name, "medians": figures, "all": rounds })
        });
        let rows: Vec<_> = rows.collect();
        json!({ "table": self.name, "columns": self.columns, "rows": rows })
    }
}

/// Three digits, or all of an integer; what is no number was not measured.
fn shown(figure: f64) -> String {
    let digits = match figure {
        _ if figure.is_nan() => return "–".into(),
        _ if figure >= 100.0 || figure == 0.0 => 0,
        _ if figure >= 10.0 => 1,
        _ if figure >= 0.1 => 2,
        _ => 4,
    };
    format!("{figure:.digits$}")
}

async fn serve(arguments: &[String]) {
    let who = arguments[0].as_str();
    let address = |n: usize| arguments[n].parse::<SocketAddr>().unwrap();
    let work_max = |n: usize| Duration::from_micros(arguments[n].parse().unwrap());
    match who {
        "game" => {
            let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr().unwrap());
            let map = game_server::frame("map", vec![7; game_server::MAP_BYTES]).unwrap();
            game_server::serve(server, map).await.unwrap();
        }
        "gateway" => {
            let [sensors, readings] = [1, 2].map(|n| arguments[n].parse::<u32>().unwrap());
            let server = sensor_gateway::bind("127.0.0.1:0", sensors).await.unwrap();
            say(server.local_addr());
            let store = Arc::new(sensor_gateway::Store::default());
            tokio::spawn(sensor_gateway::serve(server, Arc::clone(&store), pending()));
            store.reached(u64::from(sensors) * u64::from(readings)).await;
            say(store.count());
            pending::<()>().await;
        }
        "prices" => {
            let server = cnp::Server::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr());
            service_mesh::serve_prices(server, work_max(1)).await;
        }
        _ => {
            let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
            say(server.local_addr().unwrap());
            if who == "stock" {
                return service_mesh::serve_stock(server, work_max(1)).await.unwrap();
            }
            let stock = VstpTcpClient::connect(&address(1).to_string()).await.unwrap().into_session();
            let prices = cnp::Client::connect(address(2)).await.unwrap();
            service_mesh::serve_orders(server, stock, prices).await.unwrap();
        }
    }
}

/// Seconds of a game.
const SECONDS: u32 = 5;

fn game() -> Table {
    let rows = [50, 100, 200, 400, 800].map(|count| Row {
        name: format!("{count} players"),
        count,
        time: Duration::ZERO,
    });
    Table {
        name: "game",
        columns: &[
            "states a second and player",
            "missed, %",
            "between two states, ms, median",
            "99 %",
            "99.9 %",
            "20 MB beside, s",
        ],
        rows: rows.into(),
        measure: |row, runtime| {
            let peer = Peer::start(&["game"]);
            let (server, states) = (peer.address, SECONDS * game_server::RATE);
            let played = runtime.block_on(async {
                let mut players = JoinSet::new();
                for player in 0..row.count {
                    players.spawn(game_server::play(server, states, player == 0));
                }
                players.join_all().await
            });
            let played: Vec<_> = played.into_iter().map(Result::unwrap).collect();
            let gaps: Vec<_> = played.iter().flat_map(|played| played.gaps.iter().copied()).collect();
            let seconds = gaps.iter().sum::<Duration>().as_secs_f64();
            let missed: u32 = played.iter().map(|played| played.missed).sum();
            let came: u32 = played.iter().map(|played| played.states).sum();
            let (_, download) = played.iter().find_map(|played| played.map).unwrap();
            let mut figures =
                vec![f64::from(came) / seconds, 100.0 * f64::from(missed) / f64::from(came + missed)];
            figures.extend(percentiles(gaps).into_iter().map(|micros| micros / 1e3));
            figures.push(download.as_secs_f64());
            figures
        },
    }
}

fn gateway() -> Table {
    let rows = [
        (2000, Duration::from_secs(1), "2,000 sensors, a reading a second each"),
        (2000, Duration::ZERO, "2,000 sensors, one reading after the other"),
        (8000, Duration::from_secs(1), "8,000 sensors, a reading a second each"),
    ];
    Table {
        name: "gateway",
        columns: &["readings a second", "acknowledged after, ms, median", "99 %", "99.9 %", "resident, MB"],
        rows: rows.map(|(count, time, name)| Row { name: name.into(), count, time }).into(),
        measure: |row, runtime| {
            let readings = if row.time.is_zero() { 100 } else { 5 };
            let mut peer = Peer::start(&["gateway", &row.count.to_string(), &readings.to_string()]);
            let to = peer.address;
            let start = Instant::now();
            let times = runtime.block_on(async {
                let mut sensors = JoinSet::new();
                for sensor in 0..row.count {
                    let every = row.time;
                    sensors.spawn(async move {
                        // They begin at any time of their interval.
                        let part = f64::from(getrandom::u32().unwrap()) / f64::from(u32::MAX);
                        tokio::time::sleep(every.mul_f64(part)).await;
                        sensor_gateway::report(to, sensor, readings, every).await
                    });
                }
                sensors.join_all().await
            });
            let seconds = start.elapsed().as_secs_f64();
            let count = f64::from(row.count * readings);
            // Each once.
            assert_eq!(peer.line().parse::<f64>().unwrap(), count);
            // Otherwise that is what they were told to send.
            let mut figures = vec![if row.time.is_zero() { count / seconds } else { f64::NAN }];
            // The first waits for its session.
            let times = times.into_iter().flat_map(|times| times.into_iter().skip(1)).collect();
            figures.extend(percentiles(times).into_iter().map(|micros| micros / 1e3));
            figures.push(peer.resident() as f64 / 1e6);
            figures
        },
    }
}

fn mesh() -> Table {
    let rows =
        [(service_mesh::WORK_MAX, "handlers of 0 to 4 ms"), (Duration::ZERO, "handlers that do not wait")];
    Table {
        name: "mesh",
        columns: &["orders a second", "calls a second", "answered after, ms, median", "99 %", "99.9 %"],
        rows: rows
            .map(|(time, name)| Row {
                name: format!("64 callers, {name}"),
                count: service_mesh::CALLERS,
                time,
            })
            .into(),
        measure: |row, runtime| {
            let work_max = row.time.as_micros().to_string();
            let [stock, prices] = ["stock", "prices"].map(|who| Peer::start(&[who, &work_max]));
            let (to_stock, to_prices) = (stock.address.to_string(), prices.address.to_string());
            let orders = Peer::start(&["orders", &to_stock, &to_prices]);
            let each = if row.time.is_zero() { 1000 } else { 300 };
            let start = Instant::now();
            let times = runtime.block_on(async {
                let to = orders.address.to_string();
                let session = VstpTcpClient::connect(&to).await.unwrap().into_session();
                let mut callers = JoinSet::new();
                for caller in 0..row.count {
                    callers.spawn(service_mesh::order(session.clone(), caller, each));
                }
                callers.join_all().await
            });
            let seconds = start.elapsed().as_secs_f64();
            let times: Vec<_> = times.into_iter().flat_map(Result::unwrap).collect();
            let rate = times.len() as f64 / seconds;
            // Each order asks two more.
            let mut figures = vec![rate, 3.0 * rate];
            figures.extend(percentiles(times).into_iter().map(|micros| micros / 1e3));
            figures
        },
    }
}
