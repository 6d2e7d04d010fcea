//! Connections without TLS that wait for their next request.
//!
//! Pingora's pool has a task, a timer and two channels for each time that a connection waits. Here waiting is an entry in a list, and
//! one task looks now and then for those that waited too long or were closed by the other side.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use pingora::protocols::l4::stream::Stream;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep};

use super::http::{POOL_CONNECTIONS, POOL_IDLE};

/// The idle connections of an origin, the one that waits for the shortest time last.
#[derive(Default)]
pub(super) struct IdleConnections {
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    waiting: VecDeque<Waiting>,
    /// Whether a task looks after them.
    swept: bool,
}

struct Waiting {
    address: SocketAddr,
    stream: Box<Stream>,
    since: Instant,
}

/// How often the idle connections are looked at: so long may one stay that the other side has closed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

impl IdleConnections {
    /// The connection to the address that waits longest, if the other side is silent on it, as it has to be until it is asked; else
    /// the next.
    pub(super) fn take(&self, address: SocketAddr) -> Option<Box<Stream>> {
        loop {
            let mut waiting = {
                let mut shelf = self.shelf.lock();
                let index = shelf.waiting.iter().position(|waiting| waiting.address == address)?;
                shelf.waiting.remove(index)?
            };
            if waiting.is_usable() {
                return Some(waiting.stream);
            }
        }
    }

    /// Keeps a connection whose last answer has ended cleanly, unless more came than that. Too many: the oldest goes.
    pub(super) fn put(self: &Arc<Self>, address: SocketAddr, stream: Box<Stream>) {
        let mut waiting = Waiting { address, stream, since: Instant::now() };
        if !waiting.is_usable() {
            return;
        }
        let (unswept, _surplus) = {
            let mut shelf = self.shelf.lock();
            shelf.waiting.push_back(waiting);
            let surplus = if shelf.waiting.len() > POOL_CONNECTIONS { shelf.waiting.pop_front() } else { None };
            (!std::mem::replace(&mut shelf.swept, true), surplus)
        };
        if unswept {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Closes those that are of no use any more. Says whether others are left.
    fn sweep_once(&self) -> bool {
        let mut useless = Vec::new();
        let mut shelf = self.shelf.lock();
        let waiting = std::mem::take(&mut shelf.waiting);
        for mut waiting in waiting {
            match waiting.since.elapsed() < POOL_IDLE && waiting.is_usable() {
                true => shelf.waiting.push_back(waiting),
                false => useless.push(waiting),
            }
        }
        shelf.swept = !shelf.waiting.is_empty();
        // Closed once nobody waits for the lock any more: every load takes it.
        let swept = shelf.swept;
        drop(shelf);
        swept
    }
}

/// Ends when nothing waits, and with the origin.
async fn sweep(connections: Weak<IdleConnections>) {
    loop {
        sleep(SWEEP_INTERVAL).await;
        match connections.upgrade() {
            Some(connections) if connections.sweep_once() => {}
            _ => return,
        }
    }
}

impl Waiting {
    /// Neither closed nor with bytes that nobody asked for. Asks the kernel only if it said that there is something to read.
    fn is_usable(&mut self) -> bool {
        let mut byte = [0];
        // A task that has used up its share of the runtime would be told that nothing is there to be read.
        let looking = tokio::task::unconstrained(self.stream.read(&mut byte));
        pin!(looking).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    struct Pair {
        ours: Box<Stream>,
        theirs: TcpStream,
    }

    async fn pair(listener: &TcpListener) -> Pair {
        let (ours, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        Pair { ours: Box::new(ours.unwrap().into()), theirs: accepted.unwrap().0 }
    }

    #[tokio::test]
    async fn only_a_silent_connection_waits_and_not_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, idle) = (listener.local_addr().unwrap(), Arc::new(IdleConnections::default()));

        let closed = pair(&listener).await;
        idle.put(address, closed.ours);
        drop(closed.theirs);
        while idle.sweep_once() {
            tokio::task::yield_now().await;
        }

        let mut talking = pair(&listener).await;
        idle.put(address, talking.ours);
        talking.theirs.write_all(b"HTTP/1.1 408").await.unwrap();
        while idle.sweep_once() {
            tokio::task::yield_now().await;
        }

        let silent = [pair(&listener).await, pair(&listener).await];
        let first = silent[0].ours.as_ref() as *const Stream;
        let theirs = silent.map(|pair| {
            idle.put(address, pair.ours);
            pair.theirs
        });
        assert!(idle.sweep_once());
        assert!(idle.take("127.0.0.2:1".parse().unwrap()).is_none());
        assert_eq!(idle.take(address).unwrap().as_ref() as *const Stream, first, "they take turns");
        assert!(idle.take(address).is_some());
        assert!(idle.take(address).is_none());
        drop(theirs);

        let old = pair(&listener).await;
        idle.put(address, old.ours);
        tokio::time::pause();
        tokio::time::advance(POOL_IDLE).await;
        assert!(!idle.sweep_once());
        assert!(idle.take(address).is_none());
    }

    /// However many are of no use: the runtime gives a task only so much at a time, and then says of everything that it waits.
    #[tokio::test]
    async fn none_of_many_that_talk_is_handed_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, idle) = (listener.local_addr().unwrap(), Arc::new(IdleConnections::default()));
        let mut others = Vec::new();
        for _ in 0..200 {
            let pair = pair(&listener).await;
            idle.put(address, pair.ours);
            others.push(pair.theirs);
        }
        let (last, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        others.push(accepted.unwrap().0);
        for other in &mut others {
            other.write_all(b"HTTP/1.1 408").await.unwrap();
        }
        // What was written before is known when this is.
        last.unwrap().readable().await.unwrap();
        assert!(idle.take(address).is_none());
    }
}
