//! Spans of connections and sessions, as a subscriber sees them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use bytes::Bytes;
use fastdrop_messages::cnp::{Client, Server};
use fastdrop_messages::vstp::tcp::TcpConfig;
use fastdrop_messages::vstp::{Frame, FrameType, VstpTcpClient, VstpTcpServer};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time")
}

/// The fields of a span or an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl Fields {
    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

#[derive(Debug, Default)]
struct Seen {
    spans: HashMap<u64, Fields>,
    /// Spans that something ran in.
    entered: Vec<u64>,
    /// Everything that was said, each with the spans around it, the innermost first.
    events: Vec<(Fields, Vec<u64>)>,
}

/// Remembers spans and events.
#[derive(Debug, Clone, Default)]
struct Recorder(Arc<Mutex<Seen>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if attributes.metadata().target().starts_with("fastdrop_messages") {
            assert_eq!(attributes.metadata().name(), "session");
            self.0.lock().unwrap().spans.insert(id.into_u64(), fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        if let Some(fields) = self.0.lock().unwrap().spans.get_mut(&id.into_u64()) {
            values.record(fields);
        }
    }

    fn on_enter(&self, id: &Id, _: Context<'_, S>) {
        self.0.lock().unwrap().entered.push(id.into_u64());
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let around = context.event_scope(event).into_iter().flatten().map(|span| span.id().into_u64());
        self.0.lock().unwrap().events.push((fields, around.collect()));
    }
}

impl Recorder {
    /// Sees what this thread, and so this test, does from now on.
    fn start() -> (Self, DefaultGuard) {
        let recorder = Self::default();
        let subscriber = tracing_subscriber::registry().with(recorder.clone());
        (recorder, tracing::subscriber::set_default(subscriber))
    }

    /// The only span around what the handler of this test said, and that of the end that connected.
    fn spans(&self, server: SocketAddr) -> (Fields, Fields) {
        let seen = self.0.lock().unwrap();
        let (_, around) = seen.events.iter().find(|(event, _)| event.get("message") == "handled").unwrap();
        let [span] = &around[..] else { panic!("{around:?} of {:?}", seen.spans) };
        let at_client: Vec<_> =
            seen.spans.iter().filter(|(_, fields)| fields.get("peer") == server.to_string()).collect();
        let [(id, at_client)] = at_client[..] else { panic!("{:?}", seen.spans) };
        assert!(seen.entered.contains(id), "the task of the client does not run in its span");
        (seen.spans[span].clone(), at_client.clone())
    }
}

fn data() -> Frame {
    Frame::new(FrameType::Data).with_payload(b"x".to_vec())
}

fn fields(protocol: &str, transport: &str, peer: SocketAddr, session: &str) -> Fields {
    let peer = peer.to_string();
    let all = [("protocol", protocol), ("transport", transport), ("peer", &peer), ("session", session)];
    Fields(all.into_iter().filter(|(_, value)| !value.is_empty()).map(|(k, v)| (k, v.to_owned())).collect())
}

#[tokio::test]
async fn by_vstp_handlers_and_tasks_run_in_the_span_of_their_connection() {
    for way in ["run", "peers", "calls", "plain", "accept"] {
        let (recorder, _guard) = Recorder::start();
        let keep_alive = Some(Duration::from_secs(60));
        let config = TcpConfig { keep_alive: keep_alive.filter(|_| way == "accept"), ..TcpConfig::default() };
        let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
        let address = server.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            match way {
                "run" => server.run(|_, _| async { tracing::info!("handled") }).await.unwrap(),
                "peers" => {
                    let handler = |peer: fastdrop_messages::vstp::tcp::Peer, _| async move {
                        tracing::info!("handled");
                        peer.send(data()).await.unwrap();
                    };
                    server.run_with_peers(pending(), handler).await.unwrap();
                }
                "accept" => {
                    let connection = server.accept().await.unwrap();
                    let served = connection.into_session();
                    while served.recv().await.unwrap().is_some() {}
                    tracing::info!("handled");
                }
                _ => {
                    let handler = |call: fastdrop_messages::vstp::Call| async move {
                        tracing::info!("handled");
                        Ok(call.into_frame())
                    };
                    server.serve_calls(pending(), handler).await.unwrap();
                }
            }
        });
        let client = VstpTcpClient::connect(&address.to_string()).await.unwrap().into_session();
        match way {
            "run" => soon(client.send_with_ack(data(), Duration::from_secs(60))).await.unwrap(),
            "peers" | "plain" => {
                client.send(data()).await.unwrap();
                soon(client.recv()).await.unwrap().unwrap();
            }
            "calls" => drop(soon(client.call(data())).await.unwrap()),
            _ => {
                // An application that accepts runs in its own span, and the task of the connection
                // in that of the connection.
                soon(client.send_with_ack(data(), Duration::from_secs(60))).await.unwrap();
                drop(client);
                soon(serving).await.unwrap();
                let seen = recorder.0.lock().unwrap();
                let of_server = |(_, fields): &(&u64, &Fields)| fields.get("session") == "1";
                let (id, fields) = seen.spans.iter().find(of_server).unwrap();
                assert!(seen.entered.contains(id) && fields.get("protocol") == "vstp", "{:?}", seen.spans);
                continue;
            }
        }
        let (at_server, at_client) = recorder.spans(address);
        let peer = at_server.get("peer").parse().unwrap();
        assert_ne!(peer, address);
        assert_eq!(at_server, fields("vstp", "tcp", peer, "1"), "{way}");
        assert_eq!(at_client, fields("vstp", "tcp", address, ""), "{way}");
        serving.abort();
    }
}

#[tokio::test]
async fn by_cnp_handlers_and_tasks_run_in_the_span_of_their_session() {
    for (udp, calls) in [(false, false), (false, true), (true, false), (true, true)] {
        let (recorder, _guard) = Recorder::start();
        let server = Server::builder().tcp(!udp).udp(udp).bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        let serving = tokio::spawn(async move {
            if calls {
                let handler = |_| async {
                    tracing::info!("handled");
                    Ok(Bytes::new())
                };
                server.run_calls(4, handler).await;
            } else {
                server.run(|_, _| async { tracing::info!("handled") }).await;
            }
        });
        let builder = Client::builder();
        let client = soon(if udp { builder.udp() } else { builder }.connect(address)).await.unwrap();
        if calls {
            soon(client.call("x")).await.unwrap();
        } else {
            soon(client.send("x")).await.unwrap();
            soon(client.close()).await.unwrap();
        }
        let (at_server, at_client) = recorder.spans(address);
        // By its id others could have the session: it is in no log.
        let id = client.agreed().id.text().into_owned();
        let seen = format!("{:?}", recorder.0.lock().unwrap());
        assert!(!id.is_empty() && !seen.contains(&id), "{seen}");
        let transport = if udp { "udp" } else { "tcp" };
        let peer = at_server.get("peer").parse().unwrap();
        assert_ne!(peer, address);
        let numbers = [&at_server, &at_client].map(|fields| fields.get("session").to_owned());
        assert!(numbers.iter().all(|number| number.parse::<u64>().is_ok()), "{numbers:?}");
        assert_ne!(numbers[0], numbers[1]);
        assert_eq!(at_server, fields("cnp", transport, peer, &numbers[0]), "calls: {calls}");
        assert_eq!(at_client, fields("cnp", transport, address, &numbers[1]), "calls: {calls}");
        serving.abort();
    }
}
