//! CNP beside raw TCP and beside stop-and-wait: `cargo bench -p fastdrop-messages --bench cnp`.
//!
//! Three parts: `loopback`, acknowledged messages a second between two processes; `window`, over a relay that delays TCP, in real
//! time, beside the ceiling `window × size / RTT`; `loss`, over a simulated link in virtual time, beside the textbook. The contestants of
//! the first two take turns within every round, in another order each time; what is printed are medians.
//! `-- --rounds 5 --only loopback,window --json FILE --plot FILE` chooses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    missing_docs
)]

mod loopback;
mod loss;
mod plot;
mod relay;
mod window;

use serde_json::Value;
use std::path::{Path, PathBuf};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let [word, who, ..] = &arguments[..]
        && word == "peer"
    {
        return runtime.block_on(loopback::receive(who));
    }
    let value = |flag: &str| {
        arguments.iter().position(|argument| argument == flag).map(|at| arguments[at + 1].clone())
    };
    let rounds = value("--rounds").map_or(5, |text| text.parse().unwrap());
    let only = value("--only");
    let wanted =
        |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|part| name.contains(part)));
    let mut results: Vec<Value> = Vec::new();
    if wanted("loopback") {
        results.extend(loopback::run(rounds, &runtime));
    }
    let mut plots = Vec::new();
    if wanted("window") {
        let (figures, plot) = window::run(rounds, &runtime);
        results.extend(figures);
        plots.push(plot);
    }
    if wanted("loss") {
        let (figures, plot) = loss::run();
        results.extend(figures);
        plots.push(plot);
    }
    if let Some(file) = value("--json") {
        std::fs::write(path(&file), serde_json::to_vec_pretty(&results).unwrap()).unwrap();
    }
    if let Some(file) = value("--plot") {
        plot::draw(&path(&file), &plots);
    }
}

/// Cargo starts benchmarks in the folder of their crate; paths are meant from that of the repository.
fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
