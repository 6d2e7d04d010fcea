//! Builds each part of a node once and hands the services to pingora; the only place that knows all parts.
//!
//! ```text
//! bind the listeners ── ledger, store, cache ── groups ── fleet ── edge ── endpoints ── pingora's Server ── signals ── end
//! ```
//!
//! **Runtimes.** pingora gives every service a runtime of its own. There is one service here, `Serving`, for all listeners;
//! connections, fills, conversations with peers, probes and samples therefore share one runtime with `threads` threads, and
//! a connection to an origin never outlives or changes the runtime that it belongs to. Threads steal work from one another:
//! a fill that arrives in bursts must not wait behind the thread whose connection asked for it (`make compare CASES=threads`
//! has a runtime for each thread beside it). Signals are taken on
//! pingora's own runtime of one thread, so that they are heard whatever the others do.

pub mod groups;
pub mod listeners;
pub mod members;
pub mod membership;
pub mod node;
pub mod pass;
pub mod reload;
pub mod shutdown;
pub mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::listeners::Listeners;
use pingora::protocols::Stream;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{Fds, ListenFds, RunArgs, Server, ShutdownWatch};
use pingora::services::Service as ServiceTrait;
use pingora::services::listening::Service;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::admin::Admin;
use crate::cache::Cache;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config};
use crate::edge::Edge;
use crate::edge::access_log::{self, AccessLog};
use crate::edge::admission::Admission;
use crate::edge::connection::Drain;
use crate::edge::endpoints::RoleTable;
use crate::edge::lane::Lane;
use crate::edge::pass::Pass;
use crate::memory::Ledger;
use crate::peer::LocalNode;
use crate::peer::handshake::Secrets;
use crate::peer::server::{PeerServer, ServerSettings};
use crate::replicas::TEND_EVERY;
use crate::server::groups::{GroupError, Registry};
use crate::server::listeners::{Bound, ListenError};
use crate::server::members::{FleetError, Members, Surroundings};
use crate::server::node::{Current, Listening, Node};
use crate::server::owner::CacheOwner;
use crate::server::reload::Reloader;
use crate::server::shutdown::{HandOver, Lifecycle, Supervisor, Told};
use crate::server::tls::{CERTIFICATES_POLL, Certificates};
use crate::stats::NodeStats;
use crate::store::Store;

pub mod owner;

/// What a node is started with.
pub struct Options {
    /// The checked configuration.
    pub config: Config,
    /// Of the file's bytes; empty without a file.
    pub sha256: String,
    /// Where it came from, for reloads.
    pub file: Option<ConfigFile>,
    /// Whether the node ends when its standard input does.
    pub until_input_ends: bool,
}

/// The file of a configuration.
pub struct ConfigFile {
    /// Its path.
    pub path: PathBuf,
    /// Whether it is read again whenever it changes.
    pub watch: bool,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It cannot listen.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A group cannot be served.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The fleet is not as it should be.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The system does not let.
    #[error("{0}")]
    System(String),
}

/// Runs a node until it is told to end.
///
/// # Errors
/// It does not start; nothing was served then.
pub fn run(options: Options) -> Result<(), StartError> {
    let Options { config, sha256, file, until_input_ends } = options;
    let bound: Vec<Bound> = listeners::plan(&config).into_iter().map(listeners::bind).collect::<Result<_, _>>()?;
    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    let threads = config.threads;
    let (path, watched) = file.map(|file| (file.path, file.watch)).unzip();
    let parts = Parts::build(config, sha256, path.clone(), &bound, &server.configuration)?;
    let lifecycle = parts.reloader.node.lifecycle.clone();

    let (told, receiver) = mpsc::channel(4);
    if until_input_ends {
        end_with_input(told.clone());
    }
    let supervisor =
        Supervisor { lifecycle, node: parts.reloader.clone(), told: Mutex::new(Some((told.clone(), receiver))) };
    let watched = path.filter(|_| watched == Some(true));
    server.add_service(Serving::new(parts, bound, threads, watched, told));
    server.run(RunArgs { shutdown_signal: Box::new(supervisor) });
    Ok(())
}

/// All parts of a node, before anything runs.
struct Parts {
    reloader: Arc<Reloader>,
    lane: Arc<Lane>,
    certificates: Vec<Arc<Certificates>>,
}

impl Parts {
    fn build(
        config: Config,
        sha256: String,
        path: Option<PathBuf>,
        bound: &[Bound],
        conf: &Arc<ServerConf>,
    ) -> Result<Parts, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let started = clock.now();
        let ledger = Ledger::new(usize::try_from(config.memory_bytes).unwrap_or(usize::MAX));
        let mut registry = Registry::default();
        let groups = groups::build(&config, &mut registry)?;
        let store = Store::new(ledger, &groups.store, None);
        let incarnation = random_number()?;
        let cache = Cache::new(store, clock.clone(), incarnation);
        let sites = groups.sites.clone();
        let groups = Arc::new(ArcSwap::from_pointee(groups));

        let secrets = config.fleet.iter().flat_map(|fleet| &fleet.secrets).map(|secret| secret.expose());
        let local = LocalNode::new(env!("CARGO_PKG_VERSION"), incarnation, Secrets::new(secrets));
        let owner = Arc::new(CacheOwner { cache: cache.clone(), groups: groups.clone(), local: local.clone() });
        local.set_purges(owner.clone());
        let settings = ServerSettings { drain_timeout: config.shutdown.timeout, ..ServerSettings::default() };
        let peers = PeerServer::new(local.clone(), owner, settings);
        let listening: Vec<Listening> = bound
            .iter()
            .map(|bound| Listening { address: bound.address, roles: bound.plan.roles, url: bound.url() })
            .collect();
        let members = match &config.fleet {
            None => Members::default(),
            Some(fleet) => {
                let surroundings = Surroundings {
                    local: &local,
                    clock: &clock,
                    listeners: &peer_listeners(&listening),
                    origin_patience: origin_patience(&config),
                    threads: config.threads,
                };
                Members::build(fleet, &surroundings, &Members::default())?
            }
        };
        local.set_ring_id(members.ring_id());
        cache.set_fleet(members.fleet());
        if config.fleet.is_some() {
            cache.warm_up();
        }

        let stats = Arc::new(NodeStats::default());
        let limit = |limit: Option<u64>| limit.map_or(0, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let admission = Arc::new(Admission::new(
            stats.clone(),
            limit(config.limits.connections),
            limit(config.limits.connections_per_address),
        ));
        let log = Arc::new(access_log(&config.log));
        let limits = edge_limits(&config);
        let node = Arc::new(Node {
            lifecycle: Lifecycle::new(),
            cache: cache.clone(),
            stats: stats.clone(),
            groups,
            members: ArcSwap::from_pointee(members),
            current: ArcSwap::from_pointee(Current { config, sha256, loaded_wall_seconds: started.wall_seconds }),
            last_error: Mutex::new(None),
            local,
            peers,
            listening,
            started,
            reloader: OnceLock::new(),
            membership: Arc::default(),
        });
        let edge = Arc::new(Edge {
            cache,
            sites: ArcSwap::from(sites),
            endpoints: Arc::new(Admin::new(node.clone())),
            log,
            stats,
            limits: ArcSwap::from_pointee(limits),
            roles: RoleTable::new(bound.iter().map(|bound| (bound.address, bound.plan.roles))),
            trusted_proxies: Vec::new(),
            admission,
            drain: Arc::new(Drain::default()),
        });
        let lane = Arc::new(Lane::new(edge.clone(), Arc::new(http_proxy(conf, Pass::new(edge.clone())))));
        let certificates = bound.iter().filter_map(|bound| bound.certificates.clone()).collect();
        let registry = Mutex::new(registry);
        let reloader = Arc::new(Reloader {
            node: node.clone(),
            edge,
            path,
            registry,
            clock,
            runtime: Default::default(),
            applying: Default::default(),
        });
        let _ = node.reloader.set(Arc::downgrade(&reloader));
        Ok(Parts { reloader, lane, certificates })
    }
}

/// The one service: all listeners, and the tasks that belong to no connection.
struct Serving {
    parts: Parts,
    listening: Option<(Service<Counted>, ListenFds)>,
    threads: usize,
    watched: Option<PathBuf>,
    told: mpsc::Sender<Told>,
}

impl Serving {
    fn new(
        parts: Parts,
        bound: Vec<Bound>,
        threads: usize,
        watched: Option<PathBuf>,
        told: mpsc::Sender<Told>,
    ) -> Self {
        let mut endpoints = Listeners::new();
        let mut sockets = Fds::new();
        for bound in bound {
            tracing::info!(url = %bound.url(), answers = %listeners::words(bound.plan.roles), "listening");
            endpoints.add_listener(bound.into_endpoint(&mut sockets));
        }
        let app = Counted { lane: parts.lane.clone(), lifecycle: parts.reloader.node.lifecycle.clone() };
        let service = Service::with_listeners("clients".to_owned(), endpoints, app);
        Serving { parts, listening: Some((service, Arc::new(Mutex::new(sockets)))), threads, watched, told }
    }

    /// Starts the tasks that belong to no connection; they end with the runtime.
    fn start_tasks(&self) {
        let reloader = &self.parts.reloader;
        let node = reloader.node.clone();
        node.groups.load().watch_origins();
        node.members.load().connect();
        node.membership.follow(node.current.load().config.fleet.as_ref(), reloader);
        tokio::spawn(hand_over_when_wanted(node.clone()));
        tokio::spawn(members::watch_rings(node.clone()));
        tokio::spawn(node.cache.clone().keep_lease());
        tokio::spawn(async move {
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            loop {
                seconds.tick().await;
                node.groups.load().list.iter().for_each(|served| served.group.stats.sample());
                node.cache.forget_previous_fleet();
            }
        });
        let node = reloader.node.clone();
        tokio::spawn(async move {
            let mut turns = tokio::time::interval(TEND_EVERY);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                turns.tick().await;
                let groups = node.groups.load_full();
                node.cache.tend_replicas(|id| {
                    let served = groups.list.iter().find(|served| served.group.id == id);
                    served.map(|served| served.group.clone())
                });
            }
        });
        if !self.parts.certificates.is_empty() {
            let certificates = self.parts.certificates.clone();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(CERTIFICATES_POLL).await;
                    let certificates = certificates.clone();
                    let _ = tokio::task::spawn_blocking(move || refresh(&certificates)).await;
                }
            });
        }
        if let Some(path) = &self.watched {
            tokio::spawn(reload::watch(path.clone(), self.told.clone()));
        }
    }
}

#[async_trait]
impl ServiceTrait for Serving {
    /// pingora's own table of listeners and its own signal to shut down are not used: ours hold the sockets that are bound
    /// already, and end accepting before pingora's server is told anything.
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, listeners_per_fd: usize) {
        let Some((mut service, sockets)) = self.listening.take() else { return };
        let _ = self.parts.reloader.runtime.set(Handle::current());
        self.start_tasks();
        let lifecycle = &self.parts.reloader.node.lifecycle;
        let node = self.parts.reloader.node.clone();
        tokio::spawn(async move {
            node.membership.settled().await;
            node.cache.leased().await;
            node.lifecycle.started();
        });
        service.start_service(Some(sockets), lifecycle.stop_watch(), listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        "node"
    }

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(Vec::new())
    }
}

/// Gives what this node has in memory to those who own it without this node, whenever that is wanted.
async fn hand_over_when_wanted(node: Arc<Node>) {
    let mut hand_over = node.lifecycle.watch_hand_over();
    node.lifecycle.hands_over();
    while hand_over.wait_for(|hand_over| *hand_over == HandOver::Wanted).await.is_ok() {
        let groups = node.groups.load_full();
        let find = |id| groups.list.iter().map(|served| &served.group).find(|group| group.id == id).cloned();
        tokio::select! {
            taken = node.cache.hand_over(find) => {
                tracing::info!(entries = taken, "handed over to those who own them without this node");
                node.lifecycle.hand_over_done();
            }
            _ = hand_over.wait_for(|hand_over| *hand_over != HandOver::Wanted) => {}
        }
    }
}

/// The lane, and how many connections it has: the end of the process waits for them.
struct Counted {
    lane: Arc<Lane>,
    lifecycle: Arc<Lifecycle>,
}

#[async_trait]
impl ServerApp for Counted {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let open = self.lifecycle.open_connection();
        let (lane, shutdown) = (self.lane.clone(), shutdown.clone());
        // In a task of its own: the one that pingora accepted it in has room for a whole TLS handshake and would keep it as
        // long as the connection lives.
        tokio::spawn(async move {
            let _open = open;
            lane.process_new(stream, &shutdown).await;
        });
        None
    }

    async fn cleanup(&self) {
        self.lane.cleanup().await;
    }
}

fn refresh(certificates: &[Arc<Certificates>]) {
    for certificates in certificates {
        match certificates.refresh() {
            Ok(true) => tracing::info!("certificates read again"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "new certificates cannot be used, the old ones stay"),
        }
    }
}

/// Tells the node to end when nobody holds the other end of its standard input any longer.
fn end_with_input(told: mpsc::Sender<Told>) {
    // A thread of its own: reading standard input cannot be cancelled, and a runtime would wait for it at the end.
    let reading = std::thread::Builder::new().name("input".into()).spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = told.blocking_send(Told::Orphaned);
    });
    if let Err(error) = reading {
        tracing::warn!(%error, "standard input is not watched");
    }
}

/// pingora's settings; those that are left out have no effect here.
fn server_conf(config: &Config) -> ServerConf {
    ServerConf {
        threads: config.threads,
        // Hits of two threads on two cores, which the load shares (`make compare CASES=threads,threads-64k`, 7 rounds, 2026-11-22):
        // 167 k of 4 KiB a second with work stealing and 124 k with a runtime for each thread, of 64 KiB 56 k and 49 k.
        work_stealing: cfg!(not(feature = "runtime-per-thread")),
        // Everything is over when the supervisor returns: there is nothing to wait for.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        // Retries of requests that pass are the group's business.
        max_retries: MAX_RETRIES,
        ..ServerConf::default()
    }
}

/// Upper bound of `origin.retries` for requests that pass.
const MAX_RETRIES: usize = 16;

fn access_log(log: &config::Log) -> AccessLog {
    let mode = match log.access {
        config::AccessLog::None => access_log::Mode::None,
        config::AccessLog::Errors => access_log::Mode::Errors,
        config::AccessLog::All => access_log::Mode::All,
        config::AccessLog::Percent(percent) => access_log::Mode::Share(percent / 100.0),
    };
    let format = match log.format {
        config::LogFormat::Text => access_log::Format::Text,
        config::LogFormat::Json => access_log::Format::Json,
    };
    AccessLog::new(mode, format, std::io::stderr())
}

fn random_number() -> Result<u64, StartError> {
    let mut bytes = [0; 8];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| StartError::System("the system gives no random numbers".into()))?;
    // Zero means "no life of any node".
    Ok(u64::from_ne_bytes(bytes).max(1))
}

/// The listeners on which peers are answered.
fn peer_listeners(listening: &[Listening]) -> Vec<SocketAddr> {
    listening.iter().filter(|listening| listening.roles.peers).map(|listening| listening.address).collect()
}

/// How long the slowest origin may take for a head.
fn origin_patience(config: &Config) -> Duration {
    let patience = |group: &config::Group| group.timeouts.connect + group.timeouts.first_byte;
    config.groups.iter().map(patience).max().unwrap_or_default()
}

use reload::limits_of as edge_limits;
