//! The examples, as programs begin with them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::vstp::{VstpTcpClient, VstpUdpServer};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

#[allow(dead_code, reason = "its main function")]
#[path = "../examples/game_server.rs"]
mod game_server;
#[allow(dead_code, reason = "its main function")]
#[path = "../examples/sensor_gateway.rs"]
mod sensor_gateway;
#[allow(dead_code, reason = "its main function")]
#[path = "../examples/service_mesh.rs"]
mod service_mesh;

const PATIENCE: Duration = Duration::from_secs(120);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_player_sees_the_game_go_on_while_one_of_them_downloads_20_megabytes() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let map = game_server::frame("map", vec![7; game_server::MAP_BYTES]).unwrap();
    let game = tokio::spawn(game_server::serve(server, map));
    let mut players = JoinSet::new();
    for player in 0..8 {
        players.spawn(game_server::play(address, 2 * game_server::RATE, player == 0));
    }
    let played: Vec<_> = soon(players.join_all()).await.into_iter().map(Result::unwrap).collect();
    assert!(played.iter().all(|played| played.states >= 2 * game_server::RATE));
    let maps: Vec<_> = played.iter().filter_map(|played| played.map).collect();
    assert!(matches!(maps[..], [(game_server::MAP_BYTES, _)]), "{maps:?}");
    assert!(!game.is_finished());
    game.abort();
}

/// Sessions end in the middle of it, and readings are sent again whose acknowledgements were lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reading_is_kept_once_though_the_gateway_starts_again_in_between() {
    const SENSORS: u32 = 100;
    const READINGS: u32 = 40;
    let all = u64::from(SENSORS * READINGS);
    let store = Arc::new(sensor_gateway::Store::default());
    let server = sensor_gateway::bind("127.0.0.1:0", SENSORS).await.unwrap();
    let address = server.local_addr();
    let until = Arc::clone(&store);
    let half = async move { until.reached(all / 2).await };
    let gateway = tokio::spawn(sensor_gateway::serve(server, Arc::clone(&store), half));
    let mut sensors = JoinSet::new();
    for sensor in 0..SENSORS {
        sensors.spawn(sensor_gateway::report(address, sensor, READINGS, Duration::ZERO));
    }
    soon(gateway).await.unwrap();
    assert!(store.count() >= all / 2 && store.count() < all, "{}", store.count());
    let server = sensor_gateway::bind(&address.to_string(), SENSORS).await.unwrap();
    let gateway = tokio::spawn(sensor_gateway::serve(server, Arc::clone(&store), pending()));
    let times = soon(sensors.join_all()).await;
    assert!(times.iter().all(|times| times.len() == READINGS as usize));
    assert_eq!(store.count(), all);
    gateway.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_callers_of_a_mesh_get_their_own_answers_from_handlers_of_any_length() {
    let address = service_mesh::start(service_mesh::WORK_MAX).await.unwrap();
    let orders = VstpTcpClient::connect(&address.to_string()).await.unwrap().into_session();
    let mut callers = JoinSet::new();
    for caller in 0..service_mesh::CALLERS {
        callers.spawn(service_mesh::order(orders.clone(), caller, 20));
    }
    for times in soon(callers.join_all()).await {
        assert_eq!(times.unwrap().len(), 20);
    }
    assert_eq!(orders.unknown_replies(), 0);
}
