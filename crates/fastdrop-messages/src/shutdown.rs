//! The word that a server ends, for everything that it has under way.

use tokio::sync::watch;

/// The word that a server shuts down, as its sessions and handlers see it. Clones hear the same.
#[derive(Debug, Clone)]
pub struct ShutdownSignal(watch::Receiver<bool>);

/// Gives the word. When this is dropped, the word is given as well.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<bool>);

impl Shutdown {
    /// Creates one that has not been given, and a signal that hears of it.
    pub fn new() -> (Self, ShutdownSignal) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), ShutdownSignal(receiver))
    }

    /// Gives the word. Nothing happens if it has been given.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// One more signal that hears of it.
    pub fn signal(&self) -> ShutdownSignal {
        ShutdownSignal(self.0.subscribe())
    }
}

impl ShutdownSignal {
    /// Waits until the word has been given. May be dropped while it waits, and called again.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|begun| *begun).await;
    }

    /// Reports whether the word has been given.
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// The same, as the end that servers run until.
    pub async fn waited(mut self) {
        self.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_signal_hears_the_word_whenever_it_was_made_and_if_nobody_is_left_to_give_it() {
        let (shutdown, mut early) = Shutdown::new();
        assert!(!early.has_begun());
        let waits = tokio::spawn(early.clone().waited());
        shutdown.begin();
        waits.await.unwrap();
        early.wait().await;
        early.wait().await;
        let late = shutdown.signal();
        assert!(early.has_begun() && late.has_begun());
        late.waited().await;
        let (shutdown, mut left) = Shutdown::new();
        drop(shutdown);
        assert!(left.has_begun());
        left.wait().await;
    }
}
