//! Reading the configuration again: groups and peers are replaced as a whole, connections stay.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::config::{Config, Fleet, FleetPeer, Loaded, PeerSource, SystemEnvironment};
use crate::edge::Edge;
use crate::edge::connection::Limits;
use crate::peer::handshake::Secrets;
use crate::server::groups::{self, Groups, Registry};
use crate::server::members::{Members, Surroundings};
use crate::server::node::{Current, Node};
use crate::server::shutdown::{ShutdownTimes, Supervise, Told};
use crate::server::{edge_limits, origin_patience, peer_listeners};

/// Replaces the configuration of a running node.
pub struct Reloader {
    /// The node.
    pub node: Arc<Node>,
    /// What its connections share.
    pub edge: Arc<Edge>,
    /// The file, when there is one.
    pub path: Option<PathBuf>,
    /// Numbers of groups.
    pub registry: Mutex<Registry>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The runtime in which the node serves, as soon as it does: what a reload starts has to run there.
    pub runtime: OnceLock<Handle>,
    /// Held while members or a configuration are built and applied: what is built rests on what is in effect.
    pub applying: tokio::sync::Mutex<()>,
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Keys whose change needs a restart; the old values stay in effect.
    pub needs_restart: Vec<&'static str>,
    /// Groups whose entries were dropped, since they were answers of something else.
    pub cleared: Vec<String>,
}

#[async_trait]
impl Supervise for Reloader {
    async fn reload(&self) {
        // What went wrong was logged.
        let _ = self.read_again().await;
    }

    fn begin_shutdown(&self) -> ShutdownTimes {
        // Peers hear first: they ask the next on the ring while this node still answers.
        self.node.local.set_draining(true);
        self.node.cache.permits.set_leaving(true);
        let membership = self.node.membership.clone();
        let mut stop = self.node.lifecycle.stop_watch();
        tokio::spawn(async move {
            let _ = stop.wait_for(|stop| *stop).await;
            membership.leave();
        });
        let shutdown = self.node.current.load().config.shutdown;
        ShutdownTimes { delay: shutdown.delay, timeout: shutdown.timeout }
    }
}

impl Reloader {
    /// Reads the file again and applies it, and logs what came of it.
    ///
    /// # Errors
    /// The lines of `check`; the old configuration stays in effect.
    pub async fn read_again(&self) -> Result<Applied, String> {
        let Some(path) = &self.path else {
            let lines = "nothing to read again: this node was started without a configuration file";
            tracing::warn!("{lines}");
            return Err(lines.to_owned());
        };
        let _applying = self.applying.lock().await;
        match self.try_reload(path).await {
            Ok(applied) => {
                *self.node.last_error.lock() = None;
                let needs_restart = applied.needs_restart.join(", ");
                if !needs_restart.is_empty() {
                    tracing::warn!(keys = %needs_restart, "these keys changed and need a restart");
                }
                for group in &applied.cleared {
                    tracing::info!(%group, "entries dropped: the group answers from something else now");
                }
                tracing::info!(file = %path.display(), "configuration read again");
                Ok(applied)
            }
            Err(lines) => {
                for line in lines.lines() {
                    tracing::error!("{line}");
                }
                tracing::error!(file = %path.display(), "the old configuration stays in effect");
                *self.node.last_error.lock() = Some(lines.clone());
                Err(lines)
            }
        }
    }

    /// Everything is built before anything is replaced.
    async fn try_reload(&self, path: &Path) -> Result<Applied, String> {
        let Some(runtime) = self.runtime.get() else { return Err("the node is still starting".to_owned()) };
        let file = path.to_owned();
        // Files, names and the ring: all of it blocks or computes for a while.
        let loaded = runtime.spawn_blocking(move || Config::load(&file, &SystemEnvironment::default()));
        let loaded = loaded.await.map_err(|error| error.to_string())?.map_err(|problems| problems.to_string())?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let members = self.build_members(&loaded, runtime).await?;
        // A copy, which is thrown away when a group cannot be built.
        let mut registry = self.registry.lock().clone();
        let groups = {
            let _inside = runtime.enter();
            groups::build(&loaded.config, &mut registry).map_err(|error| error.to_string())?
        };
        *self.registry.lock() = registry;
        Ok(self.apply(loaded, groups, members, runtime))
    }

    /// Makes these peers the members of the fleet, if its configuration still looks for members.
    ///
    /// # Errors
    /// They cannot be; those of before stay.
    pub async fn set_peers(&self, peers: Vec<FleetPeer>) -> Result<(), String> {
        let Some(runtime) = self.runtime.get() else { return Err("the node is still starting".to_owned()) };
        let _applying = self.applying.lock().await;
        let current = self.node.current.load_full();
        let Some(fleet) = current.config.fleet.clone().filter(|fleet| fleet.source != PeerSource::List) else {
            return Ok(());
        };
        let urls: Vec<&str> = peers.iter().map(|peer| peer.url.as_str()).collect();
        let listed = urls.join(" ");
        let members = self.build(Fleet { peers, ..fleet }, origin_patience(&current.config), runtime).await?;
        let _inside = runtime.enter();
        let ring_id = format!("{:016x}", members.ring_id());
        self.replace_members(members);
        // Who of them makes purges wait.
        let former = self.node.cache.former_members().join(" ");
        tracing::info!(members = listed, former, ring_id, "the members of the fleet changed");
        Ok(())
    }

    fn replace_members(&self, members: Members) {
        let node = &self.node;
        members.connect();
        node.local.set_ring_id(members.ring_id());
        node.cache.set_fleet(members.fleet());
        node.members.store(Arc::new(members));
    }

    async fn build_members(&self, loaded: &Loaded, runtime: &Handle) -> Result<Members, String> {
        let Some(mut fleet) = loaded.config.fleet.clone() else { return Ok(Members::default()) };
        // Members that are found while the node runs stay until others are found.
        if fleet.peers.is_empty()
            && let Some(before) = &self.node.members.load().config
        {
            fleet.peers = before.peers.iter().filter(|peer| fleet.can_have(peer).is_ok()).cloned().collect();
        }
        self.build(fleet, origin_patience(&loaded.config), runtime).await
    }

    async fn build(&self, fleet: Fleet, patience: Duration, runtime: &Handle) -> Result<Members, String> {
        let (node, clock) = (self.node.clone(), self.clock.clone());
        let built = runtime.spawn_blocking(move || {
            let listeners = peer_listeners(&node.listening);
            let surroundings = Surroundings {
                local: &node.local,
                clock: &clock,
                listeners: &listeners,
                origin_patience: patience,
                threads: node.current.load().config.threads,
            };
            Members::build(&fleet, &surroundings, &node.members.load())
        });
        built.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    fn apply(&self, loaded: Loaded, groups: Groups, members: Members, runtime: &Handle) -> Applied {
        let node = &self.node;
        let before = node.current.load_full();
        let now = self.clock.now();
        let before_groups = node.groups.load_full();
        let needs_restart = needs_restart(&before.config, &loaded.config);

        let _inside = runtime.enter();
        groups.watch_origins();
        let memory_bytes = usize::try_from(loaded.config.memory_bytes).unwrap_or(usize::MAX);
        node.cache.store.configure(memory_bytes, &groups.store);
        if let Some(fleet) = &loaded.config.fleet {
            node.local.set_secrets(Secrets::new(fleet.secrets.iter().map(|secret| secret.expose())));
        }
        self.replace_members(members);
        self.edge.sites.store(groups.sites.clone());
        node.groups.store(Arc::new(groups));
        self.edge.limits.store(Arc::new(edge_limits(&loaded.config)));
        node.current.store(Arc::new(Current {
            config: loaded.config,
            sha256: loaded.sha256,
            loaded_wall_seconds: now.wall_seconds,
        }));
        if let Some(reloader) = node.reloader.get().and_then(Weak::upgrade) {
            node.membership.follow(node.current.load().config.fleet.as_ref(), &reloader);
        }
        // Groups that are gone, or that have another number because they answer from something else.
        let after_groups = node.groups.load();
        let is_gone = |id| !after_groups.list.iter().any(|served| served.group.id == id);
        let gone = before_groups.list.iter().map(|served| &served.group).filter(|group| is_gone(group.id));
        let cleared = gone.map(|group| {
            node.cache.store.clear(group.id);
            group.name.to_string()
        });
        Applied { needs_restart, cleared: cleared.collect() }
    }
}

/// What a running node cannot change.
fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let fleet = |config: &Config| config.fleet.as_ref().map(|fleet| fleet.address);
    let limits = |config: &Config| (config.limits.connections, config.limits.connections_per_address);
    let changed = [
        ("listen", before.listen != after.listen),
        ("threads", before.threads != after.threads),
        ("log", before.log != after.log),
        ("limits.connections", limits(before) != limits(after)),
        ("admin.address", before.admin.address != after.admin.address),
        // With or without a fleet, listeners have other roles.
        ("fleet.address", fleet(before) != fleet(after)),
    ];
    changed.iter().filter(|(_, changed)| *changed).map(|(key, _)| *key).collect()
}

/// Tells the node to reload whenever the file changes (`run --watch`), or the folder that it lies in: a Kubernetes volume
/// replaces a link beside the file. Ends with the receiver.
pub async fn watch(path: PathBuf, reload: mpsc::Sender<Told>) {
    let mut seen = stamp(&path);
    loop {
        tokio::time::sleep(WATCH_PAUSE).await;
        let found = stamp(&path);
        if found == seen {
            continue;
        }
        seen = found;
        if reload.send(Told::Reload).await.is_err() {
            return;
        }
    }
}

/// What tells a changed file from an unchanged one: the file itself wherever its links lead.
pub(super) fn stamp(path: &Path) -> Option<(PathBuf, SystemTime, u64)> {
    let target = std::fs::canonicalize(path).ok()?;
    let metadata = std::fs::metadata(&target).ok()?;
    Some((target, metadata.modified().ok()?, metadata.len()))
}

const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// The limits of connections as the edge knows them; 0 is none.
pub(super) fn limits_of(config: &Config) -> Limits {
    let limits = &config.limits;
    // A wait without an end is no option; a day is for ever.
    const FOR_EVER: Duration = Duration::from_secs(86_400);
    Limits {
        header_bytes: limits.header_bytes,
        header_timeout: limits.header_timeout.unwrap_or(FOR_EVER),
        idle_timeout: limits.idle_timeout.unwrap_or(FOR_EVER),
        body_min_rate: limits.body_min_rate.unwrap_or_default(),
        body_bytes: limits.body_bytes.unwrap_or_default(),
        ..Limits::default()
    }
}
