//! The effective configuration as YAML: every key, defaults marked, secrets hidden.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use super::Config;
use super::units::{Amount, show_amount, show_duration, show_percent, show_size};
use super::values::{
    AccessLog, Balance, Cookies, Eviction, Fleet, Group, GroupSource, HEADER_BYTES_MAX, HeaderEdit, HostPattern,
    LogFormat, LogLevel, Lookup, NamePattern, Origin, OriginHost, Partition, Pass, PeerSource, Query,
    RequestDirectives, RequestHeaders, Resharding, Ring, Secret, SelfPeer, SetCookie, TlsPair,
};
use super::yaml::join;

/// What the values themselves do not tell: which of them were written, and settings that were resolved.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    /// The paths of all values in the file.
    pub(super) given: BTreeSet<String>,
    /// `None` is `auto`.
    pub(super) memory: Option<Amount>,
    pub(super) threads_auto: bool,
}

/// Two configurations are equal when they mean the same, however they were written.
impl PartialEq for Marks {
    fn eq(&self, _other: &Marks) -> bool {
        true
    }
}

/// Writes `config` so that reading it again gives the same configuration, but for secrets.
pub(super) fn effective(config: &Config) -> String {
    let mut printer = Printer { out: String::new(), marks: &config.marks, path: String::new(), depth: 0 };
    printer.config(config);
    printer.out
}

struct Printer<'c> {
    out: String,
    marks: &'c Marks,
    /// The keys around the line that comes next.
    path: String,
    depth: usize,
}

impl Printer<'_> {
    fn config(&mut self, config: &Config) {
        self.listen(config);
        let bytes = show_size(config.memory_bytes);
        match self.marks.memory {
            None => self.leaf_with("memory", "auto", &format!("here {bytes}")),
            Some(Amount::Percent(percent)) => {
                self.leaf_with("memory", &show_percent(percent), &format!("here {bytes}"));
            }
            Some(Amount::Bytes(_)) => self.leaf("memory", &bytes),
        }
        match self.marks.threads_auto {
            true => self.leaf_with("threads", "auto", &format!("here {}", config.threads)),
            false => self.leaf("threads", &config.threads.to_string()),
        }
        self.leaf(
            "eviction",
            match config.eviction {
                Eviction::S3Fifo => "s3fifo",
                Eviction::Lru => "lru",
            },
        );
        self.map("shutdown", |printer| {
            printer.leaf("delay", &show_duration(config.shutdown.delay));
            printer.leaf("timeout", &show_duration(config.shutdown.timeout));
        });
        self.map("log", |printer| printer.log(config));
        self.map("limits", |printer| printer.limits(config));
        self.map("admin", |printer| printer.admin(config));
        match &config.fleet {
            None => self.absent("fleet", "a fleet of one"),
            Some(fleet) => self.map("fleet", |printer| printer.fleet(fleet)),
        }
        self.line("groups:");
        for (index, group) in config.groups.iter().enumerate() {
            self.element(&format!("groups[{index}]"), |printer| printer.group(group));
        }
    }

    fn listen(&mut self, config: &Config) {
        self.line("listen:");
        for (index, listener) in config.listen.iter().enumerate() {
            self.element(&format!("listen[{index}]"), |printer| {
                printer.leaf("address", &quoted(&listener.address.to_string()));
                match listener.tls.as_slice() {
                    [] => printer.absent("tls", "none"),
                    [pair] => printer.map("tls", |printer| printer.pair(pair)),
                    pairs => {
                        printer.line("tls:");
                        for (number, pair) in pairs.iter().enumerate() {
                            printer.element(&format!("listen[{index}].tls[{number}]"), |printer| printer.pair(pair));
                        }
                    }
                }
            });
        }
    }

    fn pair(&mut self, pair: &TlsPair) {
        self.leaf("cert", &quoted(&pair.cert.to_string_lossy()));
        self.leaf("key", &quoted(&pair.key.to_string_lossy()));
    }

    fn log(&mut self, config: &Config) {
        self.leaf(
            "level",
            match config.log.level {
                LogLevel::Error => "error",
                LogLevel::Warn => "warn",
                LogLevel::Info => "info",
                LogLevel::Debug => "debug",
                LogLevel::Trace => "trace",
            },
        );
        self.leaf(
            "format",
            match config.log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
        );
        let access = match config.log.access {
            AccessLog::None => "none".to_owned(),
            AccessLog::Errors => "errors".to_owned(),
            AccessLog::All => "all".to_owned(),
            AccessLog::Percent(percent) => show_percent(percent),
        };
        self.leaf("access", &access);
    }

    fn limits(&mut self, config: &Config) {
        let limits = &config.limits;
        let header_bytes = u64::try_from(limits.header_bytes.min(HEADER_BYTES_MAX)).unwrap_or(0);
        let optional_time = |time: Option<Duration>| show_duration(time.unwrap_or_default());
        self.leaf("connections", &limits.connections.unwrap_or(0).to_string());
        self.leaf("connections_per_address", &limits.connections_per_address.unwrap_or(0).to_string());
        self.leaf("header_bytes", &show_size(header_bytes));
        self.leaf("header_timeout", &optional_time(limits.header_timeout));
        self.leaf("idle_timeout", &optional_time(limits.idle_timeout));
        self.leaf("body_min_rate", &show_size(limits.body_min_rate.unwrap_or(0)));
        self.leaf("body_bytes", &show_size(limits.body_bytes.unwrap_or(0)));
    }

    fn admin(&mut self, config: &Config) {
        match config.admin.address {
            Some(address) => self.leaf("address", &quoted(&address.to_string())),
            None => self.absent("address", "on the client listeners, for direct requests from loopback alone"),
        }
        self.list("allow", config.admin.allow.iter().map(ToString::to_string));
        self.secrets("read_token", &config.admin.read_tokens);
        self.secrets("token", &config.admin.tokens);
        self.list("purge_allow", config.admin.purge_allow.iter().map(ToString::to_string));
    }

    fn peers(&mut self, fleet: &Fleet) {
        if fleet.source == PeerSource::List {
            self.line("peers:");
            for (index, peer) in fleet.peers.iter().enumerate() {
                self.element(&format!("fleet.peers[{index}]"), |printer| {
                    printer.leaf_of("url", &quoted(&peer.url), &["url", ""]);
                    printer.leaf("weight", &peer.weight.to_string());
                });
            }
            return;
        }
        self.map("peers", |printer| match &fleet.source {
            PeerSource::List => {}
            PeerSource::File(path) => printer.leaf("file", &quoted(&path.to_string_lossy())),
            PeerSource::Dns { url, lookup } => {
                printer.leaf("dns", &quoted(url.to_string().trim_end_matches('/')));
                printer.lookup(lookup);
            }
            PeerSource::Srv { name, lookup } => {
                printer.leaf("srv", &quoted(name));
                printer.lookup(lookup);
            }
            PeerSource::Gossip { seeds, address, forget } => {
                printer.list("gossip", seeds.iter().cloned());
                printer.leaf("address", &quoted(&address.to_string()));
                printer.leaf("forget", &show_duration(*forget));
            }
        });
    }

    fn lookup(&mut self, lookup: &Lookup) {
        self.leaf("every", &show_duration(lookup.every));
        self.list("nameservers", lookup.nameservers.iter().map(ToString::to_string));
        self.leaf("forget", &show_duration(lookup.forget));
    }

    fn fleet(&mut self, fleet: &Fleet) {
        match fleet.address {
            Some(address) => self.leaf("address", &quoted(&address.to_string())),
            None => self.absent("address", "on the client listeners"),
        }
        match &fleet.self_peer {
            SelfPeer::Auto => self.leaf("self", "auto"),
            SelfPeer::Url(url) => self.leaf("self", &quoted(url)),
        }
        self.peers(fleet);
        self.leaf(
            "ring",
            match fleet.ring {
                Ring::Balanced => "balanced",
                Ring::Groupcache => "groupcache",
                Ring::Mailgun => "mailgun",
                Ring::V3 => "v3",
            },
        );
        self.secrets("secret", &fleet.secrets);
        match &fleet.tls {
            None => self.absent("tls", "none"),
            Some(tls) => self.map("tls", |printer| {
                printer.leaf("ca", &quoted(&tls.ca.to_string_lossy()));
                printer.pair(&tls.pair);
            }),
        }
        self.map("timeouts", |printer| {
            printer.leaf("connect", &show_duration(fleet.timeouts.connect));
            printer.leaf("silence", &show_duration(fleet.timeouts.silence));
        });
        if fleet.ring.is_go() {
            self.map("go", |printer| {
                printer.list("allow", fleet.go.allow.iter().map(ToString::to_string));
                printer.leaf("replicas", &fleet.go.replicas.to_string());
                printer.leaf("base_path", &quoted(&fleet.go.base_path));
                printer.leaf("accept_set", if fleet.go.accept_set { "true" } else { "false" });
            });
        } else {
            self.absent("go", "only for rings of Go nodes");
        }
        self.leaf(
            "partition",
            match fleet.partition {
                Partition::Serve => "serve",
                Partition::Strict => "strict",
            },
        );
        self.leaf(
            "resharding",
            match fleet.resharding {
                Resharding::Warm => "warm",
                Resharding::Cold => "cold",
            },
        );
    }

    fn group(&mut self, group: &Group) {
        self.leaf("name", &quoted(&group.name));
        self.map("match", |printer| {
            printer.leaf("path", &quoted(&group.matching.path));
            match group.matching.hosts.as_slice() {
                [] => printer.absent("host", "every host"),
                hosts => printer.list(
                    "host",
                    hosts.iter().map(|host| match host {
                        HostPattern::Exact(name) if name.contains(':') => format!("[{name}]"),
                        HostPattern::Exact(name) => name.clone(),
                        HostPattern::Suffix(suffix) => format!("*{suffix}"),
                    }),
                ),
            }
        });
        self.leaf("cache", &group.cache.to_string());
        match &group.source {
            GroupSource::Directory(path) => self.leaf("directory", &quoted(&path.to_string_lossy())),
            GroupSource::Origin(origin) => self.map("origin", |printer| printer.origin(origin)),
        }
        match &group.origin_host {
            OriginHost::Origin => self.leaf("origin_host", "origin"),
            OriginHost::Client => self.leaf("origin_host", "client"),
            OriginHost::Name(name) => self.leaf("origin_host", &quoted(name)),
        }
        self.leaf("key", &quoted(&format!("{}{{rest}}", group.key_prefix)));
        self.query(&group.query);
        match &group.request_headers {
            RequestHeaders::Safe => self.leaf("request_headers", "safe"),
            RequestHeaders::All => self.leaf("request_headers", "all"),
            RequestHeaders::SafeAnd(names) => self.list("request_headers", names.iter().cloned()),
        }
        self.leaf(
            "request_directives",
            match group.request_directives {
                RequestDirectives::Ignore => "ignore",
                RequestDirectives::Honour => "honour",
            },
        );
        self.leaf(
            "cookies",
            match group.cookies {
                Cookies::Strip => "strip",
                Cookies::Bypass => "bypass",
            },
        );
        self.leaf(
            "set_cookie",
            match group.set_cookie {
                SetCookie::Private => "private",
                SetCookie::Strip => "strip",
                SetCookie::Share => "share",
            },
        );
        self.map("headers", |printer| {
            printer.header_edits("to_origin", &group.headers.to_origin);
            printer.header_edits("to_client", &group.headers.to_client);
        });
        self.map("variants", |printer| {
            printer.leaf("max", &group.variants.max.to_string());
            printer.list("accept", group.variants.accept.iter().cloned());
            printer.list("accept_encoding", group.variants.accept_encoding.iter().cloned());
        });
        match &group.pass {
            Pass::All => self.leaf("pass", "all"),
            Pass::Only(methods) if methods.is_empty() => self.leaf("pass", "none"),
            Pass::Only(methods) => self.list("pass", methods.iter().cloned()),
        }
        self.leaf("memory", &show_amount(group.memory));
        self.leaf("max_object", &show_size(group.max_object_bytes));
        self.leaf("max_concurrency", &group.max_concurrency.unwrap_or_default().to_string());
        self.map("queue", |printer| {
            printer.leaf("length", &group.queue.length.to_string());
            printer.leaf("timeout", &show_duration(group.queue.timeout));
        });
        self.map("timeouts", |printer| {
            printer.leaf("connect", &show_duration(group.timeouts.connect));
            printer.leaf("first_byte", &show_duration(group.timeouts.first_byte));
            printer.leaf("between_bytes", &show_duration(group.timeouts.between_bytes));
            printer.leaf("total", &show_duration(group.timeouts.total));
        });
        self.map("freshness", |printer| printer.freshness(group));
    }

    fn origin(&mut self, origin: &Origin) {
        let urls = flow_list(origin.urls.iter().map(ToString::to_string));
        self.leaf_of("urls", &urls, &["urls", ""]);
        self.leaf(
            "balance",
            match origin.balance {
                Balance::RoundRobin => "round_robin",
            },
        );
        self.leaf("retries", &origin.retries.to_string());
        self.map("health", |printer| {
            match &origin.health.path {
                Some(path) => printer.leaf("path", &quoted(path)),
                None => printer.absent("path", "a connection is enough"),
            }
            printer.leaf("every", &show_duration(origin.health.every));
        });
        self.leaf("resolve", &show_duration(origin.resolve));
        match &origin.ca {
            Some(path) => self.leaf("ca", &quoted(&path.to_string_lossy())),
            None => self.absent("ca", "the system's authorities"),
        }
    }

    fn query(&mut self, query: &Query) {
        let patterns = |key: &str, patterns: &[NamePattern]| {
            let star = |pattern: &NamePattern| if pattern.prefix { "*" } else { "" };
            let names = patterns.iter().map(|pattern| format!("{}{}", pattern.text, star(pattern)));
            format!("{{ {key}: {} }}", flow_list(names))
        };
        let text = match query {
            Query::Keep => "keep".to_owned(),
            Query::Drop => "drop".to_owned(),
            Query::Sort => "sort".to_owned(),
            Query::Only(names) => patterns("only", names),
            Query::Except(names) => patterns("except", names),
        };
        self.leaf("query", &text);
    }

    fn header_edits(&mut self, key: &str, edits: &[HeaderEdit]) {
        if edits.is_empty() {
            return self.leaf(key, "{}");
        }
        self.map(key, |printer| {
            for edit in edits {
                // Header names may look like other YAML values, and values always may.
                let name = quoted_always(&edit.name);
                let value = edit.value.as_deref().map_or_else(|| "null".to_owned(), quoted_always);
                let mark = printer.mark(&[&edit.name]);
                printer.marked(&name, &value, mark);
            }
        });
    }

    fn freshness(&mut self, group: &Group) {
        let freshness = &group.freshness;
        let ignored = [
            ("cache-control", freshness.ignore.cache_control),
            ("expires", freshness.ignore.expires),
            ("vary", freshness.ignore.vary),
        ];
        self.list("ignore", ignored.into_iter().filter(|(_, ignored)| *ignored).map(|(name, _)| name.to_owned()));
        self.leaf("default", &show_duration(freshness.default));
        self.leaf("heuristic_max", &show_duration(freshness.heuristic_max));
        self.leaf("max", &show_duration(freshness.max));
        let negative: Vec<String> =
            freshness.negative.iter().map(|(status, time)| format!("{status}: {}", show_duration(*time))).collect();
        let negative = if negative.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", negative.join(", ")) };
        self.leaf("negative", &negative);
        self.leaf("errors", &show_duration(freshness.errors));
        self.leaf("jitter", &show_percent(freshness.jitter_percent));
        self.leaf("stale_while_revalidate", &show_duration(freshness.stale_while_revalidate));
        self.leaf("stale_if_error", &show_duration(freshness.stale_if_error));
        self.leaf("stale_if_slow", &show_duration(freshness.stale_if_slow.unwrap_or_default()));
    }

    /// The line `key: value`, marked when nobody wrote it.
    fn leaf(&mut self, key: &str, value: &str) {
        self.leaf_of(key, value, &[key]);
    }

    /// The same for a value that may have been written under any of `keys`.
    fn leaf_of(&mut self, key: &str, value: &str, keys: &[&str]) {
        let mark = self.mark(keys);
        self.marked(key, value, mark);
    }

    /// The same with a remark.
    fn leaf_with(&mut self, key: &str, value: &str, remark: &str) {
        let mark = match self.mark(&[key]) {
            "" => remark.to_owned(),
            mark => format!("{mark}, {remark}"),
        };
        self.marked(key, value, &mark);
    }

    fn marked(&mut self, key: &str, value: &str, mark: &str) {
        match mark {
            "" => self.line(&format!("{key}: {value}")),
            mark => self.line(&format!("{key}: {value}  # {mark}")),
        }
    }

    /// A key that has no value by default, as a comment.
    fn absent(&mut self, key: &str, meaning: &str) {
        self.line(&format!("# {key}: {meaning}  # default"));
    }

    fn list(&mut self, key: &str, texts: impl Iterator<Item = String>) {
        self.leaf(key, &flow_list(texts));
    }

    fn secrets(&mut self, key: &str, secrets: &[Secret]) {
        match secrets {
            [] => self.leaf(key, "[]"),
            [_] => self.leaf(key, "\"***\""),
            many => self.list(key, many.iter().map(|_| "***".to_owned())),
        }
    }

    /// Prints the lines below `key`.
    fn map(&mut self, key: &str, print: impl FnOnce(&mut Self)) {
        self.line(&format!("{key}:"));
        let path = join(&self.path, key);
        let around = std::mem::replace(&mut self.path, path);
        self.depth += 1;
        print(self);
        self.depth -= 1;
        self.path = around;
    }

    /// Prints the lines of one element of a list, the first of them with a dash.
    fn element(&mut self, path: &str, print: impl FnOnce(&mut Self)) {
        let around = std::mem::replace(&mut self.path, path.to_owned());
        let start = self.out.len();
        self.depth += 2;
        print(self);
        self.depth -= 2;
        self.path = around;
        let dash = start + 2 * (self.depth + 1);
        if self.out.is_char_boundary(dash) && self.out.len() > dash {
            self.out.replace_range(dash..dash + 1, "-");
        }
    }

    fn line(&mut self, text: &str) {
        let indent = 2 * self.depth;
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "{:indent$}{text}", "");
    }

    /// How a value came to be: written, inherited or built in.
    fn mark(&self, keys: &[&str]) -> &'static str {
        let path_of = |key: &str, path: &str| if key.is_empty() { path.to_owned() } else { join(path, key) };
        let given = |path: &str| keys.iter().any(|key| self.marks.given.contains(&path_of(key, path)));
        let inherited = || {
            let below = self.path.strip_prefix("groups[")?.split_once(']')?.1;
            Some(given(&format!("defaults{below}")))
        };
        match given(&self.path) {
            true => "",
            false if inherited() == Some(true) => "from defaults",
            false => "default",
        }
    }
}

fn flow_list(texts: impl Iterator<Item = String>) -> String {
    format!("[{}]", texts.map(|text| quoted(&text)).collect::<Vec<_>>().join(", "))
}

/// A text as YAML, in quotes where it could be taken for something else.
fn quoted(text: &str) -> String {
    let plain_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@+".contains(&byte);
    let plain = text.bytes().all(plain_byte)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '.')
        && !text.ends_with(':')
        && !matches!(text.to_ascii_lowercase().as_str(), "null" | "true" | "false");
    if plain { text.to_owned() } else { quoted_always(text) }
}

fn quoted_always(text: &str) -> String {
    // A text in JSON's quotes is one in YAML's double quotes. References were replaced and must not be again.
    serde_json::Value::from(text.replace("${", "$${")).to_string()
}
