//! Services that call each other: `orders` has its own callers, and asks `stock` and `prices` for
//! each order. Calls go through VSTP over TCP, those to `prices` through CNP. Any number of tasks
//! call over one connection, and each gets its own answer, in whatever order they come.
//!
//! `cargo run --release -p fastdrop-messages --example service_mesh`: the services, and 64 callers,
//! in one process.

#![allow(clippy::print_stdout, reason = "an example")]

use fastdrop_messages::cnp;
use fastdrop_messages::vstp::tcp::Session;
use fastdrop_messages::vstp::{Call, Frame, FrameType, VstpError, VstpTcpClient, VstpTcpServer};
use std::future::pending;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

pub(crate) const CALLERS: u32 = 64;
/// The longest that one service is at work for one call.
pub(crate) const WORK_MAX: Duration = Duration::from_millis(4);
/// The time that a caller has who did not say any.
const TIME: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), VstpError> {
    let address = start(WORK_MAX).await?;
    let start = Instant::now();
    let mut callers = JoinSet::new();
    let orders = VstpTcpClient::connect(&address.to_string()).await?.into_session();
    for caller in 0..CALLERS {
        callers.spawn(order(orders.clone(), caller, 100));
    }
    let mut times = Vec::new();
    while let Some(Ok(caller)) = callers.join_next().await {
        times.extend(caller?);
    }
    let mean = times.iter().sum::<Duration>() / times.len().max(1) as u32;
    println!("{} orders in {:?}, {mean:?} each", times.len(), start.elapsed());
    Ok(())
}

/// Starts all three, and gives the address of `orders`.
pub(crate) async fn start(work_max: Duration) -> Result<SocketAddr, VstpError> {
    let stock = VstpTcpServer::bind("127.0.0.1:0").await?;
    let to_stock = stock.local_addr()?;
    tokio::spawn(serve_stock(stock, work_max));
    let prices = cnp::Server::bind("127.0.0.1:0").await.map_err(failed)?;
    let to_prices = prices.local_addr();
    tokio::spawn(serve_prices(prices, work_max));
    let orders = VstpTcpServer::bind("127.0.0.1:0").await?;
    let address = orders.local_addr()?;
    let stock = VstpTcpClient::connect(&to_stock.to_string()).await?.into_session();
    let prices = cnp::Client::connect(to_prices).await.map_err(failed)?;
    tokio::spawn(serve_orders(orders, stock, prices));
    Ok(address)
}

/// The number of pieces of an article.
pub(crate) async fn serve_stock(server: VstpTcpServer, work_max: Duration) -> Result<(), VstpError> {
    let count = move |call: Call| async move {
        let article = number(&call.frame().payload).ok_or_else(malformed)?;
        work(work_max).await;
        Ok(data(&stock_of(article).to_be_bytes()))
    };
    server.serve_calls(pending(), count).await.map(|_| ())
}

/// The price of an article.
pub(crate) async fn serve_prices(server: cnp::Server, work_max: Duration) {
    let price = move |request: cnp::Request| async move {
        let article = number(&request.body).ok_or("an article is four bytes")?;
        work(work_max).await;
        Ok(price_of(article).to_be_bytes().to_vec().into())
    };
    server.run_calls(CALLERS as usize, price).await;
}

/// The price of an order: it asks the two others at once, in the time that its own caller has left.
/// When that caller does not wait any more, this is dropped, and the two are told.
pub(crate) async fn serve_orders(
    server: VstpTcpServer,
    stock: Session,
    prices: cnp::Client,
) -> Result<(), VstpError> {
    let prices = cnp::Session::clone(&prices);
    let handle = move |call: Call| {
        let (stock, prices) = (stock.clone(), prices.clone());
        async move {
            let order = call.frame().payload.clone();
            let (article, wanted) = order.split_first_chunk::<4>().ok_or_else(malformed)?;
            let wanted = number(wanted).ok_or_else(malformed)?;
            let time = call.remaining().unwrap_or(TIME);
            let price = async { prices.call_within(article.to_vec(), time).await.map_err(failed) };
            let (there, price) = tokio::try_join!(stock.call_within(data(article), time), price)?;
            let there = number(&there.payload).ok_or_else(malformed)?;
            let price = number(&price).ok_or_else(malformed)?;
            if wanted > there {
                return Err(VstpError::Protocol(format!("{wanted} are wanted, and {there} are there")));
            }
            Ok(data(&wanted.saturating_mul(price).to_be_bytes()))
        }
    };
    server.serve_calls(pending(), handle).await.map(|_| ())
}

/// One of many callers over one connection. Returns the times that its orders took; an error if an
/// answer was not its own.
pub(crate) async fn order(orders: Session, caller: u32, count: u32) -> Result<Vec<Duration>, VstpError> {
    let mut times = Vec::new();
    for n in 0..count {
        let (article, wanted) = (caller + CALLERS * n, n % 9);
        let start = Instant::now();
        let order = [article.to_be_bytes(), wanted.to_be_bytes()].concat();
        let answer = orders.call(data(&order)).await;
        times.push(start.elapsed());
        let is_right = match answer {
            Ok(answer) => number(&answer.payload) == Some(wanted * price_of(article)),
            Err(VstpError::ServerError(_)) => wanted > stock_of(article),
            Err(error) => return Err(error),
        };
        if !is_right {
            return Err(VstpError::Protocol("this is not the answer to this order".into()));
        }
    }
    Ok(times)
}

fn stock_of(article: u32) -> u32 {
    4 + article % 8
}

fn price_of(article: u32) -> u32 {
    100 + article
}

/// As one task is longer than another.
async fn work(max: Duration) {
    let part = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX);
    if !max.is_zero() {
        tokio::time::sleep(max.mul_f64(part)).await;
    }
}

fn data(payload: &[u8]) -> Frame {
    Frame::new(FrameType::Data).with_payload(payload.to_vec())
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn malformed() -> VstpError {
    failed("this is no request of this service")
}

fn failed(error: impl ToString) -> VstpError {
    VstpError::Protocol(error.to_string())
}
