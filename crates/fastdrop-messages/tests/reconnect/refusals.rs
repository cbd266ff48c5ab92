//! Servers that a client does not trust, and clients that a server does not.

use crate::{Cutter, DeliverError, ReconnectConfig, Reconnecting, State, TcpConfig, data, eager, soon};
use fastdrop_messages::tls::{ClientTls, Identity, ServerTls, Trust};
use fastdrop_messages::vstp::VstpTcpServer;

async fn serve(tls: impl Into<ServerTls>) -> Cutter {
    let server = VstpTcpServer::bind_tls("127.0.0.1:0", tls, TcpConfig::default()).await.unwrap();
    let cutter = Cutter::start(server.local_addr().unwrap()).await;
    tokio::spawn(server.run(|_, _| async {}));
    cutter
}

/// Trying again would change nothing.
async fn assert_ends(client: &Reconnecting) {
    let error = soon(client.deliver(data("one"))).await.unwrap_err();
    assert!(matches!(error, DeliverError::NotSent(_)), "{error}");
    assert!(matches!(client.state(), State::Ended { .. }), "{:?}", client.state());
    assert_eq!(soon(client.recv()).await, None);
}

#[tokio::test]
async fn a_server_that_is_not_the_trusted_one_ends_the_client() {
    let (right, wrong) = (Identity::generate(&["right"]).unwrap(), Identity::generate(&["wrong"]).unwrap());
    let cutter = serve(&right).await;
    let start = |trusted: &Identity, config| {
        Reconnecting::start_tls(&cutter.address, Trust::Pinned(trusted.fingerprint()), config).unwrap()
    };
    let client = start(&right, eager());
    for _ in 0..3 {
        soon(client.deliver(data("one"))).await.unwrap();
        cutter.cut();
    }
    assert_ends(&start(&wrong, eager())).await;
    // Unless it is wanted.
    let tries = start(&wrong, ReconnectConfig { retry_refused: true, ..eager() });
    let mut states = tries.states();
    while !matches!(soon(states.changed()).await.unwrap(), State::Waiting { .. }) {}
    let before = cutter.connections();
    while !matches!(soon(states.changed()).await.unwrap(), State::Waiting { .. }) {}
    assert!(cutter.connections() > before);
}

#[tokio::test]
async fn a_client_without_the_certificate_that_a_server_requires_is_ended() {
    let (server, own) = (Identity::generate(&["server"]).unwrap(), Identity::generate(&["own"]).unwrap());
    let cutter = serve(ServerTls::new(&server).require_clients(Trust::Pinned(own.fingerprint()))).await;
    let trust = ClientTls::new(Trust::Pinned(server.fingerprint()));
    let client = Reconnecting::start_tls(&cutter.address, trust.clone().identity(&own), eager()).unwrap();
    soon(client.deliver(data("one"))).await.unwrap();
    assert_ends(&Reconnecting::start_tls(&cutter.address, trust, eager()).unwrap()).await;
}

/// That a connection breaks says nothing about whom it was with.
#[tokio::test]
async fn a_handshake_that_breaks_is_tried_again() {
    let identity = Identity::generate(&["server"]).unwrap();
    let cutter = serve(&identity).await;
    cutter.break_after(100);
    let trust = Trust::Pinned(identity.fingerprint());
    let client = Reconnecting::start_tls(&cutter.address, &trust, eager()).unwrap();
    let mut states = client.states();
    while !matches!(soon(states.changed()).await.unwrap(), State::Waiting { .. }) {}
    cutter.break_after(u64::MAX);
    soon(client.deliver(data("one"))).await.unwrap();
}
