//! A TCP connection that several callers use: a task owns it, and they talk to the task.

use crate::vstp::tcp::{Connection, Next};
use crate::vstp::types::{Frame, VstpError};
use fastdrop_proto::vstp::{Acknowledgement, FrameBytes};
use std::collections::HashMap;
use std::time::Instant;
use tokio::sync::{Mutex, mpsc, oneshot};

/// What a caller wants of the task.
struct Order {
    frame: Frame,
    acknowledged: bool,
    told: oneshot::Sender<Result<(), VstpError>>,
}

/// The callers' side. When the last one is dropped, the task says BYE and ends.
#[derive(Debug)]
pub(super) struct Connected {
    orders: mpsc::Sender<Order>,
    received: Mutex<mpsc::Receiver<Result<Taken, VstpError>>>,
    /// Of frames that callers have taken. The task acknowledges as often as it reads, so that
    /// hardly more wait than [`Self::RECEIVED`].
    acknowledged: mpsc::UnboundedSender<Acknowledgement>,
}

/// A frame that came, and the acknowledgement that it asks for.
type Taken = (FrameBytes, Option<Acknowledgement>);

impl Connected {
    /// Orders that wait: beyond, callers do.
    const ORDERS: usize = 256;
    /// Frames that nobody has taken: beyond, the connection is not read. Each may have 8 MiB.
    const RECEIVED: usize = 16;

    pub(super) fn new(connection: Connection) -> Self {
        let (orders, taken) = mpsc::channel(Self::ORDERS);
        let (came, received) = mpsc::channel(Self::RECEIVED);
        let (acknowledged, taken_over) = mpsc::unbounded_channel();
        // It ends when its callers are gone or the connection is.
        tokio::spawn(
            Task {
                connection,
                orders: taken,
                came,
                acknowledged: taken_over,
                waiting: HashMap::new(),
                peer_ended: false,
            }
            .run(),
        );
        Self { orders, received: Mutex::new(received), acknowledged }
    }

    pub(super) async fn send(&self, frame: Frame, acknowledged: bool) -> Result<(), VstpError> {
        let (told, outcome) = oneshot::channel();
        let order = Order { frame, acknowledged, told };
        self.orders.send(order).await.map_err(|_| VstpError::ConnectionClosed)?;
        outcome.await.map_err(|_| VstpError::ConnectionClosed)?
    }

    pub(super) async fn recv(&self) -> Result<FrameBytes, VstpError> {
        let received = self.received.lock().await.recv().await;
        let (frame, wanted) =
            received.unwrap_or_else(|| Err(VstpError::Protocol("Connection closed".into())))?;
        if let Some(wanted) = wanted {
            // A connection that is gone acknowledges nothing any more.
            let _ = self.acknowledged.send(wanted);
        }
        Ok(frame)
    }
}

struct Task {
    connection: Connection,
    orders: mpsc::Receiver<Order>,
    came: mpsc::Sender<Result<Taken, VstpError>>,
    acknowledged: mpsc::UnboundedReceiver<Acknowledgement>,
    waiting: HashMap<u64, oneshot::Sender<Result<(), VstpError>>>,
    peer_ended: bool,
}

impl Task {
    async fn run(mut self) {
        // A clone, so that reserving a place does not borrow all of the task.
        let came = self.came.clone();
        loop {
            let ping_at = self.connection.ping_at();
            let pause = tokio::time::sleep_until(ping_at.unwrap_or_else(Instant::now).into());
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.handle(order).await,
                    None => break,
                },
                // A place first: what cannot be handed on is not read.
                received = receive(&came, &mut self.connection), if !self.peer_ended => {
                    self.peer_ended = self.handle_received(received);
                    if self.peer_ended {
                        // Whoever waits for the peer waits in vain.
                        self.waiting.clear();
                        self.orders.close();
                    }
                }
                Some(wanted) = self.acknowledged.recv(), if !self.peer_ended => {
                    // If it cannot be written, reading finds out why.
                    let _ = self.connection.acknowledge(wanted).await;
                }
                () = pause, if ping_at.is_some() => self.peer_ended |= self.connection.ping().await.is_err(),
            }
        }
        while let Ok(wanted) = self.acknowledged.try_recv() {
            let _ = self.connection.acknowledge(wanted).await;
        }
        if !self.peer_ended
            && let Err(error) = self.connection.close().await
        {
            tracing::debug!(%error, "the connection was gone before BYE");
        }
    }

    async fn handle(&mut self, Order { frame, acknowledged, told }: Order) {
        if self.peer_ended {
            return;
        }
        let sent = if acknowledged {
            let (frame, msg_id) = self.connection.numbered(frame);
            match self.connection.send(frame).await {
                Ok(()) => {
                    self.waiting.retain(|_, told| !told.is_closed());
                    self.waiting.insert(msg_id, told);
                    return;
                }
                failed => failed,
            }
        } else {
            self.connection.send(frame).await
        };
        // A caller that was dropped does not want to know.
        let _ = told.send(sent);
    }

    /// Whether that was the end.
    fn handle_received(&mut self, received: Received<'_>) -> bool {
        let Some((place, next)) = received else { return true };
        match next {
            Ok(Some(Next::Frame(frame, wanted))) => place.send(Ok((frame, wanted))),
            Ok(Some(Next::Acknowledged(msg_id))) => {
                if let Some(told) = self.waiting.remove(&msg_id) {
                    let _ = told.send(Ok(()));
                }
            }
            Ok(None) => return true,
            Err(error) => {
                place.send(Err(error));
                return true;
            }
        }
        false
    }
}

type Received<'a> = Option<(mpsc::Permit<'a, Result<Taken, VstpError>>, Result<Option<Next>, VstpError>)>;

/// The next frame with a place for it; None when nobody takes it any more.
async fn receive<'a>(
    came: &'a mpsc::Sender<Result<Taken, VstpError>>,
    connection: &mut Connection,
) -> Received<'a> {
    let place = came.reserve().await.ok()?;
    Some((place, connection.next().await))
}
