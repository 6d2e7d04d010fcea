//! One server of an origin: its addresses, its health, and what was counted about it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use pingora::upstreams::peer::HttpPeer;
use serde::Serialize;
use tokio::time::{Instant, timeout};

use super::settings::{Balance, OriginUrl};
use crate::source::FetchError;

/// What the statistics say about one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpstreamSnapshot {
    /// Its URL.
    pub url: String,
    /// Whether it is chosen.
    pub state: UpstreamState,
    /// Questions that it was chosen for; probes do not count.
    pub requests: u64,
    /// Those of them that ended without a usable answer or with a broken body, connection failures included.
    pub errors: u64,
    /// How often none of its addresses took a connection.
    pub connect_failures: u64,
    /// Requests whose answer has not ended yet.
    pub in_flight: usize,
}

/// Whether a server is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamState {
    /// It is.
    Up,
    /// It refused a connection less than [`FAILING_FOR`] ago: only when no other server is up.
    Failing,
    /// The last probe failed: only when no other server is up.
    Down,
    /// It failed five times in a row: one request a second is let through until one is answered.
    Broken,
}

/// How long a server is passed over after a failed connection. Long enough that a dead server costs little, short enough that
/// nobody notices that it came back (guess).
pub const FAILING_FOR: Duration = Duration::from_secs(1);

/// So many requests without an answer, one after the other, open the circuit breaker of a server (guess: fewer would be chance).
pub const FAILURES_IN_A_ROW: u32 = 5;

/// How often a request is let through to a server whose circuit breaker is open, to see whether it answers again.
pub const TRIAL_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for a name: two tries of five seconds are the resolver's own default, and nobody should wait for both.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How a host name becomes addresses; another function in tests.
pub(super) type Lookup =
    Arc<dyn Fn(String, u16) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync>;

/// The resolver of the system, which reads `/etc/hosts` too.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|host, port| Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) }))
}

/// Turns an address into what pingora connects to.
pub(super) type MakePeer = Box<dyn Fn(SocketAddr) -> HttpPeer + Send + Sync>;

/// One server of an origin.
pub(super) struct Upstream {
    pub url: OriginUrl,
    make_peer: MakePeer,
    lookup: Lookup,
    resolve: Duration,
    addresses: ArcSwapOption<Addresses>,
    /// Held while a name is looked up, so that a thousand requests ask the resolver once.
    looking_up: tokio::sync::Mutex<()>,
    /// Index of the address that worked last.
    preferred: AtomicUsize,
    failing_until: Mutex<Option<Instant>>,
    breaker: Mutex<Breaker>,
    probed_down: AtomicBool,
    requests: AtomicU64,
    errors: AtomicU64,
    connect_failures: AtomicU64,
    in_flight: AtomicUsize,
}

/// The circuit breaker of a server that does not answer: those who ask it anyway would only wait for their timeouts.
#[derive(Debug, Default)]
struct Breaker {
    failures_in_a_row: u32,
    next_trial: Option<Instant>,
}

/// The addresses of a server, and how long they are good.
pub(super) struct Addresses {
    pub peers: Vec<Arc<HttpPeer>>,
    /// `None` where the URL holds an address.
    expires: Option<Instant>,
}

impl Upstream {
    pub(super) fn new(url: OriginUrl, make_peer: MakePeer, lookup: Lookup, resolve: Duration) -> Self {
        let fixed = url.ip().map(|ip| {
            let peer = make_peer(SocketAddr::new(ip, url.port()));
            Arc::new(Addresses { peers: vec![Arc::new(peer)], expires: None })
        });
        Upstream {
            url,
            make_peer,
            lookup,
            resolve,
            addresses: ArcSwapOption::new(fixed),
            looking_up: tokio::sync::Mutex::new(()),
            preferred: AtomicUsize::new(0),
            failing_until: Mutex::new(None),
            breaker: Mutex::default(),
            probed_down: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            connect_failures: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// The addresses, the one that worked last first. Only the first request of all waits for a name: later ones use the old
    /// addresses while they are looked up anew.
    pub(super) async fn peers(self: &Arc<Self>) -> Result<Vec<Arc<HttpPeer>>, FetchError> {
        let addresses = match self.addresses.load_full() {
            Some(addresses) => {
                if addresses.expires.is_some_and(|expires| expires <= Instant::now()) {
                    self.look_up_behind();
                }
                addresses
            }
            None => self.look_up_first().await?,
        };
        let mut peers = addresses.peers.clone();
        let count = peers.len().max(1);
        peers.rotate_left(self.preferred.load(Ordering::Relaxed) % count);
        Ok(peers)
    }

    /// Remembers which address took a connection.
    pub(super) fn prefer(&self, peer: &Arc<HttpPeer>) {
        if let Some(addresses) = self.addresses.load().as_ref()
            && let Some(index) = addresses.peers.iter().position(|candidate| candidate._address == peer._address)
        {
            self.preferred.store(index, Ordering::Relaxed);
        }
    }

    async fn look_up_first(self: &Arc<Self>) -> Result<Arc<Addresses>, FetchError> {
        let _turn = self.looking_up.lock().await;
        match self.addresses.load_full() {
            Some(addresses) => Ok(addresses),
            None => self.look_up().await,
        }
    }

    fn look_up_behind(self: &Arc<Self>) {
        if self.looking_up.try_lock().is_ok() {
            let upstream = self.clone();
            tokio::spawn(async move {
                let Ok(_turn) = upstream.looking_up.try_lock() else { return };
                // Another task may have finished between the two looks at the lock.
                let expired = upstream.addresses.load().as_ref().is_some_and(|addresses| addresses.expired());
                if expired && upstream.look_up().await.is_err() {
                    tracing::warn!(origin = %upstream.url, "name does not resolve, the old addresses stay");
                    upstream.postpone_lookup();
                }
            });
        }
    }

    async fn look_up(&self) -> Result<Arc<Addresses>, FetchError> {
        let found = timeout(LOOKUP_TIMEOUT, (self.lookup)(self.url.host().to_owned(), self.url.port())).await;
        let found = match found {
            Ok(Ok(found)) if !found.is_empty() => found,
            Ok(Ok(_)) => return Err(FetchError::unreachable("the origin's name has no address")),
            Ok(Err(error)) => {
                tracing::debug!(origin = %self.url, %error, "lookup failed");
                return Err(FetchError::unreachable("the origin's name does not resolve"));
            }
            Err(_) => return Err(FetchError::unreachable("looking up the origin's name took too long")),
        };
        let mut peers: Vec<Arc<HttpPeer>> = Vec::with_capacity(found.len());
        for address in found {
            // Resolvers repeat an address once per socket type.
            if !peers.iter().any(|peer| peer._address.as_inet() == Some(&address)) {
                peers.push(Arc::new((self.make_peer)(address)));
            }
        }
        let addresses = Arc::new(Addresses { peers, expires: Some(Instant::now() + self.resolve) });
        self.addresses.store(Some(addresses.clone()));
        self.preferred.store(0, Ordering::Relaxed);
        Ok(addresses)
    }

    fn postpone_lookup(&self) {
        if let Some(addresses) = self.addresses.load_full() {
            let expires = Some(Instant::now() + self.resolve);
            self.addresses.store(Some(Arc::new(Addresses { peers: addresses.peers.clone(), expires })));
        }
    }

    /// No address took a connection: pass it over for a moment, and look its name up again when its turn comes.
    pub(super) fn failed_to_connect(&self) {
        self.connect_failures.fetch_add(1, Ordering::Relaxed);
        *self.failing_until.lock() = Some(Instant::now() + FAILING_FOR);
        if let Some(addresses) = self.addresses.load_full()
            && addresses.expires.is_some()
        {
            let expired = Addresses { peers: addresses.peers.clone(), expires: Some(Instant::now()) };
            self.addresses.store(Some(Arc::new(expired)));
        }
    }

    /// Whether a request may go there: always, but for a server that failed several times in a row.
    pub(super) fn admits(&self) -> bool {
        let mut breaker = self.breaker.lock();
        if breaker.failures_in_a_row < FAILURES_IN_A_ROW {
            return true;
        }
        let now = Instant::now();
        let due = breaker.next_trial.is_none_or(|next_trial| next_trial <= now);
        if due {
            breaker.next_trial = Some(now + TRIAL_INTERVAL);
        }
        due
    }

    /// Records whether a request got an answer, of whatever status.
    pub(super) fn answered(&self, answered: bool) {
        let changed = {
            let mut breaker = self.breaker.lock();
            let before = breaker.failures_in_a_row;
            breaker.failures_in_a_row = if answered { 0 } else { before.saturating_add(1) };
            if breaker.failures_in_a_row == FAILURES_IN_A_ROW {
                breaker.next_trial = Some(Instant::now() + TRIAL_INTERVAL);
            }
            (before < FAILURES_IN_A_ROW) != (breaker.failures_in_a_row < FAILURES_IN_A_ROW)
        };
        match (changed, answered) {
            (true, true) => tracing::info!(origin = %self.url, "origin answers again"),
            (true, false) => tracing::warn!(origin = %self.url, "origin failed {FAILURES_IN_A_ROW} times in a row"),
            _ => {}
        }
    }

    /// Records what a probe found.
    pub(super) fn probed(&self, up: bool) {
        let was_down = self.probed_down.swap(!up, Ordering::Relaxed);
        if up {
            *self.failing_until.lock() = None;
            self.answered(true);
        }
        match (was_down, up) {
            (true, true) => tracing::info!(origin = %self.url, "origin is up again"),
            (false, false) => tracing::warn!(origin = %self.url, "origin does not answer probes"),
            _ => {}
        }
    }

    pub(super) fn state(&self) -> UpstreamState {
        if self.probed_down.load(Ordering::Relaxed) {
            UpstreamState::Down
        } else if self.breaker.lock().failures_in_a_row >= FAILURES_IN_A_ROW {
            UpstreamState::Broken
        } else if self.failing_until.lock().is_some_and(|until| Instant::now() < until) {
            UpstreamState::Failing
        } else {
            UpstreamState::Up
        }
    }

    /// Counts one request as long as the result lives.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { upstream: self.clone() }
    }

    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> UpstreamSnapshot {
        UpstreamSnapshot {
            url: self.url.to_string(),
            state: self.state(),
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            connect_failures: self.connect_failures.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }
}

impl Addresses {
    fn expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Instant::now())
    }
}

/// A request whose answer has not ended.
pub(super) struct InFlight {
    pub upstream: Arc<Upstream>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.upstream.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Chooses a server that is not in `tried`: one that is up if there is one, otherwise any.
pub(super) fn choose(upstreams: &[Arc<Upstream>], balance: Balance, turn: usize, tried: &[usize]) -> Option<usize> {
    let open: Vec<usize> = (0..upstreams.len()).filter(|index| !tried.contains(index)).collect();
    let up: Vec<usize> = open.iter().copied().filter(|&index| upstreams[index].state() == UpstreamState::Up).collect();
    let candidates = if up.is_empty() { open } else { up };
    let in_turn = (0..candidates.len()).map(|offset| candidates[(turn.wrapping_add(offset)) % candidates.len()]);
    match balance {
        Balance::RoundRobin => in_turn.take(1).next(),
        Balance::LeastConnections => in_turn.min_by_key(|&index| upstreams[index].in_flight.load(Ordering::Relaxed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(url: &str, lookup: Lookup) -> Arc<Upstream> {
        let url = OriginUrl::parse(url).unwrap();
        let make_peer = |address: SocketAddr| HttpPeer::new(address, false, String::new());
        Arc::new(Upstream::new(url, Box::new(make_peer), lookup, Duration::from_secs(30)))
    }

    /// Answers one list after the other; the last one for ever. An empty list is a failure.
    fn scripted_lookup(answers: &[&[&str]]) -> (Lookup, Arc<AtomicUsize>) {
        let answers: Vec<Vec<SocketAddr>> =
            answers.iter().map(|list| list.iter().map(|text| text.parse().unwrap()).collect()).collect();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let lookup: Lookup = Arc::new(move |_, _| {
            let answer = answers[count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)].clone();
            Box::pin(async move { if answer.is_empty() { Err(io::Error::other("no")) } else { Ok(answer) } })
        });
        (lookup, asked)
    }

    async fn addresses(upstream: &Arc<Upstream>) -> String {
        let peers = upstream.peers().await.unwrap();
        peers.iter().map(|peer| peer._address.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_again_behind_the_requests_and_survives_a_failing_resolver() {
        let (lookup, asked) = scripted_lookup(&[&["127.0.0.1:1", "127.0.0.2:1", "127.0.0.1:1"], &[], &["127.0.0.3:1"]]);
        let upstream = upstream("http://origin.test:1/", lookup);
        assert_eq!(addresses(&upstream).await, "127.0.0.1:1 127.0.0.2:1");
        let second = upstream.peers().await.unwrap()[1].clone();
        upstream.prefer(&second);
        assert_eq!(addresses(&upstream).await, "127.0.0.2:1 127.0.0.1:1");
        assert_eq!(asked.load(Ordering::SeqCst), 1);

        for (round, expected) in [(2, "127.0.0.2:1 127.0.0.1:1"), (3, "127.0.0.3:1")] {
            tokio::time::advance(Duration::from_secs(31)).await;
            assert_eq!(addresses(&upstream).await, "127.0.0.2:1 127.0.0.1:1", "the old ones answer meanwhile");
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(asked.load(Ordering::SeqCst), round);
            assert_eq!(addresses(&upstream).await, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_without_an_address_is_unreachable_and_asked_again() {
        let (lookup, asked) = scripted_lookup(&[&[], &["127.0.0.1:1"]]);
        let upstream = upstream("http://origin.test:1/", lookup);
        assert!(matches!(upstream.peers().await, Err(FetchError::Unreachable(_))));
        assert_eq!(addresses(&upstream).await, "127.0.0.1:1");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_fails_in_a_row_is_tried_once_in_a_while() {
        let server = upstream("http://127.0.0.1:1", system_lookup());
        for _ in 0..2 {
            for _ in 1..FAILURES_IN_A_ROW {
                server.answered(false);
                assert!(server.admits() && server.state() == UpstreamState::Up);
            }
            server.answered(true);
        }
        for _ in 0..FAILURES_IN_A_ROW {
            server.answered(false);
        }
        for _ in 0..3 {
            assert_eq!(server.state(), UpstreamState::Broken);
            assert!(!server.admits());
            tokio::time::advance(TRIAL_INTERVAL).await;
            assert!(server.admits(), "a trial");
            assert!(!server.admits(), "one");
            server.answered(false);
        }
        server.answered(true);
        assert!(server.admits() && server.admits());
        assert_eq!(server.state(), UpstreamState::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_fails_is_passed_over_for_a_second_unless_all_fail() {
        let list: Vec<_> = ["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"]
            .map(|url| upstream(url, system_lookup()))
            .into();
        let order = |turns: std::ops::Range<usize>, balance| {
            turns.map(|turn| choose(&list, balance, turn, &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(order(0..4, Balance::RoundRobin), [0, 1, 2, 0]);
        list[1].failed_to_connect();
        assert_eq!(order(0..4, Balance::RoundRobin), [0, 2, 0, 2]);
        list[0].probed(false);
        assert_eq!(order(0..2, Balance::RoundRobin), [2, 2]);
        assert_eq!(choose(&list, Balance::RoundRobin, 0, &[2]), Some(0), "nobody is up, so anybody not tried");
        assert_eq!(choose(&list, Balance::RoundRobin, 0, &[0, 1, 2]), None);
        tokio::time::advance(FAILING_FOR).await;
        assert_eq!(order(0..2, Balance::RoundRobin), [1, 2]);
        list[0].probed(true);
        let busy = (list[0].begin(), list[2].begin());
        assert_eq!(order(0..3, Balance::LeastConnections), [1, 1, 1]);
        drop(busy);
        assert_eq!(order(0..3, Balance::LeastConnections), [0, 1, 2]);
    }
}
