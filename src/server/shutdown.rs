//! The end of a node, in steps, and the signals that start them.
//!
//! | state | `ready` | listeners | entered by |
//! |---|---|---|---|
//! | starting | fails | not yet | |
//! | ready | succeeds | accept | all parts are there |
//! | draining | fails | accept | SIGTERM, for `shutdown.delay` and until wanted entries are handed over; or `drain`, until it is undone |
//! | stopping | fails | closed | the delay is over, or SIGINT; connections end after their request |
//!
//! The process ends as soon as no connection is open, after `shutdown.timeout` at the latest, and with a second signal at
//! once. pingora's own shutdown is not used: it sleeps a fixed time whatever is in flight (300 s unless told otherwise).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Parts are being built.
    Starting,
    /// Serving.
    Ready,
    /// Serving, but not for long.
    Draining,
    /// Not accepting any longer.
    Stopping,
}

impl State {
    /// The word for statistics and for a failing `ready`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Ready => "ready",
            State::Draining => "draining",
            State::Stopping => "stopping",
        }
    }
}

/// The life of a node, shared by all who have to know of it.
#[derive(Debug)]
pub struct Lifecycle {
    state: watch::Sender<State>,
    stop: watch::Sender<bool>,
    open: watch::Sender<usize>,
    hand_over: watch::Sender<HandOver>,
}

/// How far the node is with giving its entries to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// Nobody would take them.
    Impossible,
    /// Nobody has asked for it.
    Idle,
    /// It is to be done, or under way.
    Wanted,
    /// It was done.
    Done,
}

impl Lifecycle {
    /// A node that is starting.
    pub fn new() -> Arc<Self> {
        Arc::new(Lifecycle {
            state: watch::Sender::new(State::Starting),
            stop: watch::Sender::new(false),
            open: watch::Sender::new(0),
            hand_over: watch::Sender::new(HandOver::Impossible),
        })
    }

    /// The present state.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Tells of every change of the state.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// What pingora's listeners and connections listen to: turns true when accepting ends.
    pub fn stop_watch(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// All parts are there.
    pub fn started(&self) {
        self.state.send_if_modified(|state| {
            let starting = *state == State::Starting;
            if starting {
                *state = State::Ready;
            }
            starting
        });
    }

    /// Readiness fails from now on; everything else goes on. Says whether that is new.
    pub fn drain(&self) -> bool {
        self.state.send_if_modified(|state| {
            let serving = matches!(*state, State::Starting | State::Ready);
            if serving {
                *state = State::Draining;
            }
            serving
        })
    }

    /// Takes [`Lifecycle::drain`] back; says whether there was anything to take back. A node that ends cannot.
    pub fn undo_drain(&self) -> bool {
        self.want_hand_over(false);
        self.state.send_if_modified(|state| {
            let draining = *state == State::Draining;
            if draining {
                *state = State::Ready;
            }
            draining
        })
    }

    /// Tells of every change of the hand-over; who runs it listens here.
    pub fn watch_hand_over(&self) -> watch::Receiver<HandOver> {
        self.hand_over.subscribe()
    }

    /// From now on somebody listens who hands entries over.
    pub fn hands_over(&self) {
        self.hand_over.send_replace(HandOver::Idle);
    }

    /// The hand-over is done, unless nobody wants it any longer.
    pub fn hand_over_done(&self) {
        self.hand_over.send_if_modified(|hand_over| {
            let wanted = *hand_over == HandOver::Wanted;
            if wanted {
                *hand_over = HandOver::Done;
            }
            wanted
        });
    }

    /// Asks for the hand-over of wanted entries, or ends it.
    pub fn want_hand_over(&self, wanted: bool) {
        self.hand_over.send_if_modified(|hand_over| {
            let changes = *hand_over != HandOver::Impossible && (*hand_over == HandOver::Idle) == wanted;
            if changes {
                *hand_over = if wanted { HandOver::Wanted } else { HandOver::Idle };
            }
            changes
        });
    }

    /// Returns when no hand-over is under way.
    pub async fn handed_over(&self) {
        // The sender is ours: waiting ends with the condition and not otherwise.
        let _ = self.hand_over.subscribe().wait_for(|hand_over| *hand_over != HandOver::Wanted).await;
    }

    /// Listeners close, connections end after the request they carry.
    pub fn stop(&self) {
        self.state.send_replace(State::Stopping);
        self.stop.send_replace(true);
    }

    /// Counts a connection until the guard is dropped.
    pub fn open_connection(self: &Arc<Self>) -> OpenConnection {
        self.open.send_modify(|open| *open += 1);
        OpenConnection(self.clone())
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        *self.open.borrow()
    }

    /// Returns when no connection is open.
    pub async fn all_closed(&self) {
        // The sender is ours: waiting ends with the condition and not otherwise.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }
}

/// One open connection.
#[derive(Debug)]
pub struct OpenConnection(Arc<Lifecycle>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open = open.saturating_sub(1));
    }
}

/// What ends the node or makes it look at its configuration again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// Whoever started this node and was not to be outlived is gone. As SIGINT, but never a sign of impatience: with
    /// Ctrl-C both come at once.
    Orphaned,
    /// SIGHUP, or the file changed.
    Reload,
}

/// The times of a shutdown, as configured at the moment when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownTimes {
    /// How long listeners stay open after SIGTERM.
    pub delay: Duration,
    /// How long requests may take after that.
    pub timeout: Duration,
}

/// Takes the node through the table above. Returns when the process may end; `true` when nothing was cut off.
pub async fn end(lifecycle: &Lifecycle, times: ShutdownTimes, first: Told, told: &mut mpsc::Receiver<Told>) -> bool {
    lifecycle.drain();
    let begun = Instant::now();
    let accepting_until = begun + if first == Told::Terminate { times.delay } else { Duration::ZERO };
    if first == Told::Terminate {
        lifecycle.want_hand_over(true);
    }
    // Others take what this node has while it still answers; half of the time that requests have is enough for it.
    let handed_over = async {
        tokio::time::sleep_until(accepting_until).await;
        if first == Told::Terminate {
            let _ = tokio::time::timeout(times.timeout / 2, lifecycle.handed_over()).await;
        }
    };
    tokio::select! {
        () = handed_over => {}
        () = second(told) => return cut_off(lifecycle),
    }
    lifecycle.stop();
    tokio::select! {
        () = lifecycle.all_closed() => {
            tracing::info!("nothing is in flight any longer");
            true
        }
        () = tokio::time::sleep_until(accepting_until + times.timeout) => cut_off(lifecycle),
        () = second(told) => cut_off(lifecycle),
    }
}

/// Waits for a second signal that means impatience; a reload has no meaning any more.
async fn second(told: &mut mpsc::Receiver<Told>) {
    loop {
        match told.recv().await {
            Some(Told::Reload | Told::Orphaned) => {}
            Some(Told::Terminate | Told::Interrupt) => return,
            None => std::future::pending().await,
        }
    }
}

fn cut_off(lifecycle: &Lifecycle) -> bool {
    lifecycle.stop();
    let open = lifecycle.open_connections();
    if open > 0 {
        tracing::warn!(connections = open, "ending with connections open");
    }
    open == 0
}

/// Passes the signals of this process on; to be called inside a runtime with signals enabled.
///
/// # Errors
/// When the system does not let.
fn forward_signals(told: mpsc::Sender<Told>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            let received = tokio::select! {
                _ = terminate.recv() => Told::Terminate,
                _ = interrupt.recv() => Told::Interrupt,
                _ = hangup.recv() => Told::Reload,
            };
            if told.send(received).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// What pingora's server waits for: everything that happens between start and end.
#[async_trait]
pub trait Supervise: Send + Sync {
    /// Reads the configuration again.
    async fn reload(&self);

    /// Tells whoever has to know early that the end begins, and gives its times.
    fn begin_shutdown(&self) -> ShutdownTimes;
}

/// Hands the signals to the node. pingora's server runs until [`ShutdownSignalWatch::recv`] returns.
pub struct Supervisor {
    /// The node's life.
    pub lifecycle: Arc<Lifecycle>,
    /// The node.
    pub node: Arc<dyn Supervise>,
    /// Where signals and others tell what is to be done. Taken by the first call; pingora makes only one.
    pub told: Mutex<Option<(mpsc::Sender<Told>, mpsc::Receiver<Told>)>>,
}

#[async_trait]
impl ShutdownSignalWatch for Supervisor {
    async fn recv(&self) -> ShutdownSignal {
        let Some((sender, mut told)) = self.told.lock().take() else { return ShutdownSignal::FastShutdown };
        if let Err(error) = forward_signals(sender) {
            tracing::error!(%error, "signals cannot be received");
            return ShutdownSignal::FastShutdown;
        }
        let first = loop {
            match told.recv().await {
                Some(Told::Reload) => self.node.reload().await,
                Some(ending) => break ending,
                None => break Told::Interrupt,
            }
        };
        tracing::info!(connections = self.lifecycle.open_connections(), "shutting down");
        end(&self.lifecycle, self.node.begin_shutdown(), first, &mut told).await;
        ShutdownSignal::FastShutdown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: ShutdownTimes = ShutdownTimes { delay: Duration::from_secs(5), timeout: Duration::from_secs(20) };

    /// Runs a shutdown with a request that ends `request_seconds` after its start and a second signal after
    /// `second_seconds`; says when the listeners closed, when all was over, and whether nothing was cut.
    async fn shut_down(first: Told, request_seconds: Option<u64>, second: Option<(u64, Told)>) -> (u64, u64, bool) {
        let lifecycle = Lifecycle::new();
        lifecycle.started();
        assert_eq!(lifecycle.state(), State::Ready);
        let begun = Instant::now();
        if let Some(seconds) = request_seconds {
            let connection = lifecycle.open_connection();
            tokio::spawn(async move {
                tokio::time::sleep_until(begun + Duration::from_secs(seconds)).await;
                drop(connection);
            });
        }
        let mut stop = lifecycle.stop_watch();
        let closed_after = tokio::spawn(async move {
            let _ = stop.wait_for(|stop| *stop).await;
            begun.elapsed().as_secs()
        });
        let (sender, mut told) = mpsc::channel(1);
        if let Some((seconds, signal)) = second {
            tokio::spawn(async move {
                tokio::time::sleep_until(begun + Duration::from_secs(seconds)).await;
                let _ = sender.send(signal).await;
            });
        }
        let whole = end(&lifecycle, TIMES, first, &mut told).await;
        (closed_after.await.unwrap(), begun.elapsed().as_secs(), whole)
    }

    #[tokio::test(start_paused = true)]
    async fn listeners_close_after_the_delay_and_the_process_ends_with_the_last_connection() {
        for (case, first, request, second, expected) in [
            ("nothing in flight", Told::Terminate, None, None, (5, 5, true)),
            ("a request that ends during the delay", Told::Terminate, Some(3), None, (5, 5, true)),
            ("a request that ends in time", Told::Terminate, Some(12), None, (5, 12, true)),
            ("a request that never ends", Told::Terminate, Some(1000), None, (5, 25, false)),
            ("interrupted: no delay", Told::Interrupt, Some(2), None, (0, 2, true)),
            ("a second signal during the delay", Told::Terminate, Some(9), Some((1, Told::Terminate)), (1, 1, false)),
            ("a second signal while finishing", Told::Terminate, Some(9), Some((6, Told::Interrupt)), (5, 6, false)),
            ("a reload is no second signal", Told::Terminate, Some(9), Some((1, Told::Reload)), (5, 9, true)),
            ("Ctrl-C of a parent that goes, too", Told::Interrupt, Some(2), Some((1, Told::Orphaned)), (0, 2, true)),
        ] {
            assert_eq!(shut_down(first, request, second).await, expected, "{case}");
        }
    }

    #[test]
    fn a_state_goes_back_only_from_draining_and_only_when_told() {
        let lifecycle = Lifecycle::new();
        assert!(lifecycle.drain() && !lifecycle.drain());
        lifecycle.started();
        assert_eq!(lifecycle.state(), State::Draining);
        assert!(lifecycle.undo_drain() && !lifecycle.undo_drain());
        assert_eq!(lifecycle.state(), State::Ready);
        lifecycle.stop();
        assert!(!lifecycle.drain() && !lifecycle.undo_drain());
        assert_eq!(lifecycle.state(), State::Stopping);
    }

    /// Ends a node whose hand-over takes `seconds`; says when the listeners closed.
    async fn closed_after_handing_over(first: Told, seconds: u64) -> u64 {
        let lifecycle = Lifecycle::new();
        lifecycle.started();
        lifecycle.hands_over();
        let handing = lifecycle.clone();
        tokio::spawn(async move {
            let mut hand_over = handing.watch_hand_over();
            let _ = hand_over.wait_for(|hand_over| *hand_over == HandOver::Wanted).await;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            handing.hand_over_done();
        });
        let begun = Instant::now();
        let (_sender, mut told) = mpsc::channel(1);
        end(&lifecycle, TIMES, first, &mut told).await;
        begun.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_leaves_hands_over_first_but_not_for_ever() {
        for (case, first, seconds, expected) in [
            ("within the delay", Told::Terminate, 2, 5),
            ("after the delay", Told::Terminate, 8, 8),
            ("never", Told::Terminate, 1000, 15),
            ("interrupted", Told::Interrupt, 1000, 0),
        ] {
            assert_eq!(closed_after_handing_over(first, seconds).await, expected, "{case}");
        }
    }
}
