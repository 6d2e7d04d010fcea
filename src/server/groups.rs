//! From groups of the configuration to groups that answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::{self, Config, GroupSource};
use crate::edge::response::FieldRules;
use crate::edge::sites::{PassRule, Site, Sites};
use crate::fields::FieldsBuilder;
use crate::freshness::{self, Rules};
use crate::group::{Group, KeyRule, Limit};
use crate::key::GroupId;
use crate::origin::{
    Balance, Directory, DirectorySettings, HeaderRules, Health, HostRule, HttpOrigin, OriginSettings, OriginUrl,
    Timeouts,
};
use crate::semantics::forward::{Folding, ForwardPolicy, RequestHeaders};
use crate::semantics::key::KeyTemplate;
use crate::semantics::query::{NamePattern, QueryRule};
use crate::semantics::router::{HostPattern, MatchRule};
use crate::server::pass::OriginPass;
use crate::source::Source;
use crate::stats::GroupStats;
use crate::store;

/// Why the groups of a checked configuration cannot be built after all: a folder that went, certificates that changed.
#[derive(Debug, thiserror::Error)]
#[error("group {group}: {reason}")]
pub struct GroupError {
    /// Name of the group.
    pub group: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// All groups of one configuration.
pub struct Groups {
    /// As clients meet them.
    pub sites: Arc<Sites>,
    /// In the order of the configuration.
    pub list: Vec<Served>,
    /// What of the store each may use.
    pub store: store::Settings,
    /// Ends the probing of origins when these groups are replaced.
    retired: watch::Sender<bool>,
}

/// One group with where its answers come from.
pub struct Served {
    /// The group.
    pub group: Arc<Group>,
    /// Its origin, unless it is a directory.
    pub origin: Option<HttpOrigin>,
}

impl Groups {
    /// The group of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<Group>> {
        self.list.iter().map(|served| &served.group).find(|group| &*group.name == name)
    }

    /// Probes the servers of origins that are lists, until these groups are dropped; to be called inside a runtime.
    pub fn watch_origins(&self) {
        for origin in self.list.iter().filter_map(|served| served.origin.clone()) {
            let retired = self.retired.subscribe();
            tokio::spawn(async move { origin.health_loop(retired).await });
        }
    }
}

/// Numbers and counters of groups. Counters go on under the same name whatever a reload changes. So does the number, and with
/// it the entries, unless the group's answers are others now: then it gets a new one, so that a fill of before which ends
/// later stores nothing among them.
#[derive(Clone, Default)]
pub struct Registry {
    known: HashMap<String, Known>,
    next: u16,
}

#[derive(Clone)]
struct Known {
    id: GroupId,
    stats: Arc<GroupStats>,
    configured: config::Group,
}

impl Registry {
    fn enter(&mut self, configured: &config::Group) -> Option<(GroupId, Arc<GroupStats>)> {
        let known = self.known.get(&configured.name);
        let id = match known {
            Some(known) if answers_alike(&known.configured, configured) => known.id,
            _ => {
                let id = GroupId(self.next);
                self.next = self.next.checked_add(1)?;
                id
            }
        };
        let stats = known.map(|known| known.stats.clone()).unwrap_or_default();
        let entered = Known { id, stats: stats.clone(), configured: configured.clone() };
        self.known.insert(configured.name.clone(), entered);
        Some((id, stats))
    }
}

/// Builds all groups.
///
/// # Errors
/// Names the group that cannot be served.
pub fn build(config: &Config, registry: &mut Registry) -> Result<Groups, GroupError> {
    let mut list = Vec::with_capacity(config.groups.len());
    let mut sites = Vec::with_capacity(config.groups.len());
    let mut caps = Vec::new();
    for configured in &config.groups {
        let failed = |reason: String| GroupError { group: configured.name.clone(), reason };
        let (id, stats) = registry
            .enter(configured)
            .ok_or_else(|| failed("too many changes of groups since the start: restart the node".into()))?;
        if configured.memory_bytes < config.memory_bytes {
            caps.push((id, usize::try_from(configured.memory_bytes).unwrap_or(usize::MAX)));
        }
        let (source, origin): (Arc<dyn Source>, _) = match &configured.source {
            GroupSource::Directory(root) => {
                let settings = DirectorySettings { root: root.clone(), cache_control: None };
                (Arc::new(Directory::new(settings).map_err(|error| failed(error.to_string()))?), None)
            }
            GroupSource::Origin(origin) => {
                let settings = origin_settings(configured, origin).map_err(failed)?;
                let origin = HttpOrigin::new(settings).map_err(|error| failed(error.to_string()))?;
                (Arc::new(origin.clone()), Some(origin))
            }
        };
        let group = Arc::new(Group {
            id,
            name: configured.name.as_str().into(),
            rules: rules(configured),
            forward: forward(configured),
            variants_max: configured.variants.max as usize,
            keys: keys(configured).map_err(failed)?,
            cached: configured.cache,
            cookies_pass: configured.cookies == config::Cookies::Bypass,
            object_bytes_max: configured.max_object_bytes,
            fill_timeout: configured.timeouts.total,
            limit: configured.max_concurrency.map(|most| Limit {
                requests_max: most as usize,
                waiting_max: configured.queue.length as usize,
                patience: configured.queue.timeout,
            }),
            source,
            stats,
        });
        let site = Site {
            group: group.clone(),
            to_client: field_rules(&configured.headers.to_client).map_err(failed)?,
            to_origin: field_rules(&configured.headers.to_origin).map_err(failed)?,
            pass: pass(&configured.pass),
            target: origin.clone().map(|origin| OriginPass::shared(origin, configured)),
        };
        sites.push((match_rule(&configured.matching), Arc::new(site)));
        list.push(Served { group, origin });
    }
    let sites = Sites::new(sites).map_err(|error| GroupError { group: "all".into(), reason: error.to_string() })?;
    let sites = match config.fleet.as_ref().filter(|fleet| fleet.ring.is_go()) {
        Some(fleet) => sites.with_go_base_path(&fleet.go.base_path),
        None => sites,
    };
    let eviction = match config.eviction {
        config::Eviction::S3Fifo => store::Eviction::S3Fifo,
        config::Eviction::Lru => store::Eviction::Lru,
    };
    let store = store::Settings { eviction, caps };
    Ok(Groups { sites: Arc::new(sites), list, store, retired: watch::Sender::new(false) })
}

/// Whether entries stored under the one are answers of the other: the same bytes ask the same source for the same thing.
fn answers_alike(one: &config::Group, other: &config::Group) -> bool {
    one.source == other.source
        && one.origin_host == other.origin_host
        && one.key_prefix == other.key_prefix
        && one.query == other.query
        && one.headers.to_origin == other.headers.to_origin
}

fn match_rule(matching: &config::Matching) -> MatchRule {
    let host = |host: &config::HostPattern| match host {
        config::HostPattern::Exact(name) => HostPattern::Exact(name.clone()),
        config::HostPattern::Suffix(suffix) => HostPattern::Suffix(suffix.clone()),
    };
    MatchRule { hosts: matching.hosts.iter().map(host).collect(), path: matching.path.clone() }
}

fn keys(group: &config::Group) -> Result<KeyRule, String> {
    let names = |names: &[config::NamePattern]| {
        names.iter().map(|name| NamePattern { text: name.text.clone(), prefix: name.prefix }).collect()
    };
    let query = match &group.query {
        config::Query::Keep => QueryRule::Keep,
        config::Query::Drop => QueryRule::Drop,
        config::Query::Sort => QueryRule::Sort,
        config::Query::Only(only) => QueryRule::Only(names(only)),
        config::Query::Except(except) => QueryRule::Except(names(except)),
    };
    let template = KeyTemplate::with_prefix(&group.key_prefix).map_err(|error| format!("key: {error}"))?;
    Ok(KeyRule { template, query, with_host: group.origin_host == config::OriginHost::Client })
}

fn rules(group: &config::Group) -> Rules {
    let freshness = &group.freshness;
    Rules {
        ignore_cache_control: freshness.ignore.cache_control,
        ignore_expires: freshness.ignore.expires,
        ignore_vary: freshness.ignore.vary,
        default_lifetime: freshness.default,
        // A directory is asked again by a look at the file, which costs less than being wrong.
        heuristic_max: match group.source {
            GroupSource::Directory(_) => Duration::ZERO,
            GroupSource::Origin(_) => freshness.heuristic_max,
        },
        lifetime_max: freshness.max,
        negative: freshness.negative.iter().map(|(status, lifetime)| (*status, *lifetime)).collect(),
        errors: freshness.errors,
        jitter_percent: freshness.jitter_percent,
        stale_while_revalidate: freshness.stale_while_revalidate,
        stale_if_error: freshness.stale_if_error,
        stale_if_slow: freshness.stale_if_slow.unwrap_or_default(),
        set_cookie: match group.set_cookie {
            config::SetCookie::Private => freshness::SetCookie::Private,
            config::SetCookie::Strip => freshness::SetCookie::Strip,
            config::SetCookie::Share => freshness::SetCookie::Share,
        },
        honour_request_directives: group.request_directives == config::RequestDirectives::Honour,
        ..Rules::default()
    }
}

fn forward(group: &config::Group) -> ForwardPolicy {
    ForwardPolicy {
        headers: match &group.request_headers {
            config::RequestHeaders::Safe => RequestHeaders::Safe,
            config::RequestHeaders::All => RequestHeaders::All,
            config::RequestHeaders::SafeAnd(names) => RequestHeaders::Named(names.clone()),
        },
        folding: Folding {
            accept_encoding: group.variants.accept_encoding.clone(),
            accept: group.variants.accept.clone(),
        },
    }
}

fn pass(pass: &config::Pass) -> PassRule {
    match pass {
        config::Pass::All => PassRule::All,
        config::Pass::Only(methods) if methods.is_empty() => PassRule::None,
        config::Pass::Only(methods) => PassRule::Only(methods.clone()),
    }
}

fn field_rules(edits: &[config::HeaderEdit]) -> Result<FieldRules, String> {
    let mut set = FieldsBuilder::default();
    let mut removed = Vec::new();
    for edit in edits {
        match &edit.value {
            Some(value) => set
                .push(edit.name.as_bytes(), value.as_bytes())
                .map_err(|_| format!("headers: {} cannot be set", edit.name))?,
            None => removed.push(edit.name.clone()),
        }
    }
    Ok(FieldRules { set: set.finish(), removed })
}

fn origin_settings(group: &config::Group, origin: &config::Origin) -> Result<OriginSettings, String> {
    let url = |url: &config::Url| OriginUrl::parse(&url.to_string()).map_err(|error| error.to_string());
    let timeouts = &group.timeouts;
    let edits = group.headers.to_origin.iter().map(|edit| (edit.name.clone(), edit.value.clone()));
    Ok(OriginSettings {
        balance: match origin.balance {
            config::Balance::RoundRobin => Balance::RoundRobin,
        },
        retries: origin.retries as usize,
        health: Health { path: origin.health.path.clone(), every: origin.health.every },
        resolve: origin.resolve,
        ca: origin.ca.clone(),
        timeouts: Timeouts {
            connect: timeouts.connect,
            first_byte: timeouts.first_byte,
            between_bytes: timeouts.between_bytes,
            total: timeouts.total,
        },
        host: match &group.origin_host {
            config::OriginHost::Origin => HostRule::Origin,
            config::OriginHost::Client => HostRule::Client,
            config::OriginHost::Name(name) => HostRule::Name(name.clone()),
        },
        headers: HeaderRules::new(edits).map_err(|error| format!("headers.to_origin: {error}"))?,
        ..OriginSettings::new(origin.urls.iter().map(url).collect::<Result<_, _>>()?)
    })
}
