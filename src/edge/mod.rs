//! Everything between a client's connection and the cache.
//!
//! In the order in which a request meets it:
//! - [`admission`]: whether there may be one more connection;
//! - [`lane`]: owns connections of HTTP/1, over [`connection`]; [`h2`] has those of HTTP/2;
//! - [`request_head`]: the gate, which lets nothing in that has two readings;
//! - [`decide`]: hit, load, pass, endpoint or refusal, by the groups of [`sites`];
//! - [`response`]: the one writer of answers; [`interim`]: what comes before them;
//! - [`pass`]: what goes to the origin as it is, over [`body`];
//! - [`reset`]: how an answer breaks off that has no end of its own;
//! - [`endpoints`]: the seam to what lies under `/_groupcache/`;
//! - [`access_log`].

pub mod access_log;
pub mod admission;
pub mod body;
pub mod connection;
pub mod decide;
pub mod endpoints;
pub mod h2;
pub mod head_writer;
pub mod interim;
pub mod lane;
pub mod pass;
pub mod request_head;
pub mod reset;
pub mod response;
pub mod sites;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use self::access_log::{AccessLog, Record};
use self::admission::Admission;
use self::connection::{Drain, Limits};
use self::decide::{ClientFacts, Exit};
use self::endpoints::{Endpoints, RoleTable};
use self::request_head::{Refusal, RequestHead};
use self::response::Response;
use self::sites::{Site, Sites};
use crate::cache::Cache;
use crate::clock::Now;
use crate::fields::Fields;
use crate::stats::{NodeStats, Outcome};

/// What all connections of this process share.
pub struct Edge {
    /// Where answers come from.
    pub cache: Arc<Cache>,
    /// The groups; replaced by a reload.
    pub sites: ArcSwap<Sites>,
    /// What lies under `/_groupcache/`.
    pub endpoints: Arc<dyn Endpoints>,
    /// The access log.
    pub log: Arc<AccessLog>,
    /// Counters that belong to no group.
    pub stats: Arc<NodeStats>,
    /// How long clients may take; a connection keeps those it began with.
    pub limits: ArcSwap<Limits>,
    /// What each listener is for.
    pub roles: RoleTable,
    /// Load balancers whose word about the client is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// How many connections there may be.
    pub admission: Arc<Admission>,
    /// Whether the process is about to end.
    pub drain: Arc<Drain>,
}

impl Edge {
    /// The limits of now.
    pub fn limits(&self) -> Limits {
        **self.limits.load()
    }

    /// Counts a refusal and makes its answer.
    fn refusal(&self, refusal: Refusal, mut fields: Fields, head_only: bool) -> Response {
        self.stats.rejects.increment(refusal.word);
        if refusal.status == 405 && !fields.contains("allow") {
            fields =
                Fields::from_pairs([("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")]).unwrap_or_default();
        }
        Response::own(refusal.status, refusal.reason, fields, head_only, self.cache.now())
    }

    /// Logs a request that has ended, if such requests are logged.
    fn log(&self, facts: &LogFacts, finished: Finished<'_>) {
        if self.log.wants(finished.is_error()) {
            self.record(facts, finished);
        }
    }

    /// Logs a request that is known to be wanted in the log.
    fn record(&self, facts: &LogFacts, finished: Finished<'_>) {
        let now = self.cache.now();
        self.log.write(Record {
            wall_seconds: now.wall_seconds,
            client: finished.client,
            method: facts.method.clone(),
            target: facts.target.clone(),
            host: facts.host.clone(),
            version: facts.version,
            status: finished.status,
            body_bytes: finished.body_bytes,
            outcome: finished.outcome.as_str(),
            detail: finished.detail,
            group: finished.site.map(|site| site.group.name.clone()),
            microseconds: now.monotonic.saturating_sub(finished.started.monotonic).as_micros() as u64,
            broken: finished.broken,
        });
    }
}

/// What the log wants to know of a request that is not there any more.
#[derive(Clone, Debug, Default)]
struct LogFacts {
    method: String,
    target: String,
    host: String,
    version: &'static str,
}

impl LogFacts {
    fn of(head: &RequestHead<'_>) -> Self {
        LogFacts {
            method: head.method.as_str().to_owned(),
            target: String::from_utf8_lossy(head.target).into_owned(),
            host: String::from_utf8_lossy(head.host).into_owned(),
            version: match (head.http_2, head.http_11) {
                (true, _) => "HTTP/2",
                (false, true) => "HTTP/1.1",
                (false, false) => "HTTP/1.0",
            },
        }
    }

    /// What can be seen of a request that is refused because it cannot be read: the words of its first line, as far as it
    /// has come, and the first `Host`.
    fn guessed(unread: &[u8]) -> Self {
        let mut lines = unread.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or_default();
        let mut words = first.split(|&byte| byte == b' ');
        let word = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(GUESSED_BYTES_MAX)]).into_owned();
        let method = words.next().map(word).unwrap_or_default();
        let target = words.next().map(word).unwrap_or_default();
        let host = lines.find_map(|line| {
            let (name, value) = line.split_at_checked(5)?;
            name.eq_ignore_ascii_case(b"host:").then(|| word(value.trim_ascii()))
        });
        let version = match words.next() {
            Some(b"HTTP/1.1") => "HTTP/1.1",
            Some(b"HTTP/1.0") => "HTTP/1.0",
            _ => "",
        };
        LogFacts { method, target, host: host.unwrap_or_default(), version }
    }
}

/// How much of each word of a request that cannot be read goes into the log.
const GUESSED_BYTES_MAX: usize = 512;

/// How a request ended.
struct Finished<'a> {
    client: Option<SocketAddr>,
    started: Now,
    site: Option<&'a Site>,
    status: u16,
    outcome: Outcome,
    body_bytes: u64,
    detail: Cow<'static, str>,
    broken: bool,
}

impl Finished<'_> {
    /// Whether the log of errors has it.
    #[inline]
    fn is_error(&self) -> bool {
        self.broken || self.outcome == Outcome::Error
    }

    /// Without an answer so far.
    fn of(client: &ClientFacts, exit: Exit) -> Self {
        Finished {
            client: client.peer,
            started: exit.started,
            site: None,
            status: 0,
            outcome: Outcome::Error,
            body_bytes: 0,
            detail: Cow::Borrowed(""),
            broken: false,
        }
    }
}
