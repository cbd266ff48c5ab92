//! Connections by TCP to a name that has several addresses.

use crate::incoming::set_options;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The time that an address has for itself before the next one is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to whichever of these answers first. Each is tried as soon as the one before it has
/// failed, or has not answered for a quarter of a second.
///
/// # Errors
///
/// The error of the first address, if none of them can be connected to.
pub(crate) async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter().copied().enumerate();
    let mut attempts = JoinSet::new();
    let mut failure: Option<(usize, io::Error)> = None;
    loop {
        if let Some((place, address)) = waiting.next() {
            attempts.spawn(async move { (place, TcpStream::connect(address).await) });
        }
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok((_, Ok(stream)))) => {
                    set_options(&stream)?;
                    return Ok(stream);
                }
                Some(Ok((place, Err(error)))) => {
                    if failure.as_ref().is_none_or(|(first, _)| place < *first) {
                        failure = Some((place, error));
                    }
                }
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => {
                    let none = || io::Error::new(io::ErrorKind::NotFound, "no address");
                    return Err(failure.map_or_else(none, |(_, error)| error));
                }
            },
            () = tokio::time::sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    fn closed() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn case_129_every_address_of_a_name_is_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        for addresses in
            [vec![open], vec![closed(), open], vec![closed(), closed(), open], vec![open, closed()]]
        {
            let stream = connect(&addresses).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), open, "{addresses:?}");
        }
        let error = connect(&[closed(), closed()]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&[]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// A listener whose queue is full answers nothing, as an address behind a firewall.
    #[tokio::test]
    async fn case_129_an_address_that_does_not_answer_holds_the_next_one_up_for_a_moment_only() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(1).unwrap();
        let silent = full.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = tokio::time::timeout(HEAD_START, TcpStream::connect(silent)).await {
            queued.push(stream.unwrap());
            assert!(queued.len() < 100, "the queue has an end");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let connected = tokio::time::timeout(Duration::from_secs(10), connect(&[silent, open])).await;
        assert_eq!(connected.unwrap().unwrap().peer_addr().unwrap(), open);
    }
}
