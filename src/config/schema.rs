//! The JSON Schema of the configuration file: what editors show and complete.
//!
//! The types here are never filled; their fields are the keys of the file, and their comments, which users read, its
//! descriptions. A test compares keys and defaults with what is really read.

// The derive reads the fields, nothing else does.
#![allow(dead_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};

/// The schema as text, with a line break at its end.
pub(super) fn schema() -> String {
    let generator = SchemaSettings::draft07().into_generator();
    let schema = generator.into_root_schema_for::<File>();
    format!("{schema:#}\n", schema = schema.as_value())
}

macro_rules! text_type {
    ($(#[doc = $description:literal])+ $name:ident, $($schema:tt)+) => {
        $(#[doc = $description])+
        struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($($schema)+)
            }
        }
    };
}

text_type! {
    /// Bytes.
    Size,
    { "type": ["string", "integer"], "minimum": 0, "pattern": r"^([0-9]+(\.[0-9]+)?([KMGT]i?B|B)?|.*\$\{.*)$" }
}
text_type! {
    /// A length of time.
    Time,
    { "type": ["string", "integer"], "minimum": 0, "maximum": 0, "pattern": r"^(0|([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+|.*\$\{.*)$" }
}
text_type! {
    /// A part of something.
    Percentage,
    { "type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?%|.*\$\{.*)$" }
}
text_type! {
    /// A whole number.
    Count,
    { "type": ["integer", "string"], "minimum": 0, "pattern": r"^([0-9]+|.*\$\{.*)$" }
}
text_type! {
    /// Memory in bytes or as a part.
    MemoryAmount,
    { "type": ["string", "integer"], "minimum": 1, "pattern": r"^([0-9]+(\.[0-9]+)?([KMGT]i?B|B|%)?|.*\$\{.*)$" }
}
text_type! {
    /// Memory, or `auto`.
    MemoryOrAuto,
    { "type": ["string", "integer"], "minimum": 1, "pattern": r"^(auto|[0-9]+(\.[0-9]+)?([KMGT]i?B|B|%)?|.*\$\{.*)$" }
}
text_type! {
    /// A whole number, or `auto`.
    CountOrAuto,
    { "type": ["integer", "string"], "minimum": 1, "maximum": 1024, "pattern": r"^(auto|[0-9]+|.*\$\{.*)$" }
}
text_type! {
    /// Which requests are logged.
    Access,
    { "type": "string", "pattern": r"^(none|errors|all|[0-9]+(\.[0-9]+)?%|.*\$\{.*)$" }
}
text_type! {
    /// An IP address with a port.
    Address,
    { "type": "string", "pattern": r"^(.+:[0-9]+|.*\$\{.*)$" }
}
text_type! {
    /// Lifetimes by status.
    Negative,
    {
        "type": "object",
        "additionalProperties": false,
        "patternProperties": { "^(403|404|410|451)$": { "type": ["string", "integer"] } }
    }
}

/// The configuration of groupcache-proxy. `${NAME}` must be set in the environment, `${NAME:-text}` need not;
/// `${file:PATH}` is the content of a file. Paths are relative to this file.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "groupcache-proxy")]
struct File {
    /// Where clients are answered.
    #[schemars(length(min = 1), extend("default" = [{ "address": "127.0.0.1:8080" }]))]
    listen: Option<Vec<Listen>>,
    /// What everything that is kept may take: entries, index, in flight, buffers. `auto` is 1GiB, or 70% of what the
    /// machine or the container has, if that is less. Also `4GiB`, or `60%` of the machine or the container.
    #[schemars(extend("default" = "auto"))]
    memory: Option<MemoryOrAuto>,
    /// Threads that serve; `auto` is the cores, or the container's CPU limit.
    #[schemars(extend("default" = "auto"))]
    threads: Option<CountOrAuto>,
    /// Which entry makes room: `s3fifo` lets go soon of what was asked for once, `lru` of what was used longest ago.
    #[schemars(extend("default" = "s3fifo", "enum" = ["s3fifo", "lru"]))]
    eviction: Option<String>,
    /// What SIGTERM does: not ready but serving, then finish, then exit. A second signal ends at once.
    shutdown: Option<ShutdownKeys>,
    /// What is written to standard error.
    log: Option<LogKeys>,
    /// What clients may use; 0 is no limit.
    limits: Option<LimitsKeys>,
    /// Who may see statistics and explain, and who may purge. Health and ready answer everybody on every listener.
    admin: Option<AdminKeys>,
    /// The proxies that share one cache. Without it, this one is alone.
    fleet: Option<FleetKeys>,
    /// Keys of a group for all groups; a group overrides them key by key, in maps within maps too.
    defaults: Option<GroupKeys>,
    /// Which requests are answered from where, and by which rules.
    #[schemars(length(min = 1))]
    groups: Vec<GroupKeys>,
}

/// An address on which clients are answered.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Listen {
    /// An IP address and a port; `[::]:8080` is every address of the machine.
    address: Address,
    /// Certificate and key for HTTPS with HTTP/1.1 and HTTP/2; of a list, one is chosen by server name.
    tls: Option<OneOrList<Pair>>,
}

/// A certificate and its key.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Pair {
    /// PEM file with the certificate, followed by those of its issuers.
    cert: String,
    /// PEM file with the private key, not encrypted.
    key: String,
}

/// One value or several.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum OneOrList<T> {
    One(T),
    List(Vec<T>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ShutdownKeys {
    /// How long the node still accepts connections while it says that it is not ready.
    #[schemars(extend("default" = "5s"))]
    delay: Option<Time>,
    /// How long requests may then take to finish.
    #[schemars(extend("default" = "20s"))]
    timeout: Option<Time>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct LogKeys {
    /// The least important lines that are written.
    #[schemars(extend("default" = "info", "enum" = ["error", "warn", "info", "debug", "trace"]))]
    level: Option<String>,
    /// `text` for people, `json` for programs.
    #[schemars(extend("default" = "text", "enum" = ["text", "json"]))]
    format: Option<String>,
    /// Which requests get a line: `none`, `errors`, `all`, or a random choice such as `1%`.
    #[schemars(extend("default" = "errors"))]
    access: Option<Access>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct LimitsKeys {
    /// Connections of clients at once; the default is 80% of the process's file limit (`ulimit -n`) when that is lower.
    #[schemars(extend("default" = 10000))]
    connections: Option<Count>,
    /// Connections of one client address at once.
    #[schemars(extend("default" = 0))]
    connections_per_address: Option<Count>,
    /// Size of a request's head, at most 1MiB.
    #[schemars(extend("default" = "32KiB"))]
    header_bytes: Option<Size>,
    /// Time for a whole request head.
    #[schemars(extend("default" = "10s"))]
    header_timeout: Option<Time>,
    /// Time between two requests on a connection.
    #[schemars(extend("default" = "75s"))]
    idle_timeout: Option<Time>,
    /// Bytes per second that a request's body must bring.
    #[schemars(extend("default" = "1KiB"))]
    body_min_rate: Option<Size>,
    /// Size of a request's body.
    #[schemars(extend("default" = "1GiB"))]
    body_bytes: Option<Size>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct AdminKeys {
    /// The only listener that answers, such as 127.0.0.1:8081. Left out: the listeners for clients answer, but only
    /// direct requests from loopback to a listener bound to loopback.
    address: Option<Address>,
    /// Client addresses that may read without a token.
    #[schemars(extend("default" = ["127.0.0.0/8", "::1/128"]))]
    allow: Option<Vec<String>>,
    /// May read; also as Basic password, for browsers and Prometheus. Default: the environment's GROUPCACHE_READ_TOKEN.
    read_token: Option<OneOrList<String>>,
    /// May also purge, reload and drain; a list while rotating. Default: the environment's GROUPCACHE_ADMIN_TOKEN.
    token: Option<OneOrList<String>>,
    /// Client addresses that may purge without a token.
    #[schemars(extend("default" = []))]
    purge_allow: Option<Vec<String>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FleetKeys {
    /// Peers are answered only here. Left out: on the listeners for clients.
    address: Option<Address>,
    /// `auto` is the one peer that is an address of this machine; or the URL of this node, byte for byte as the others
    /// know it.
    #[schemars(rename = "self", extend("default" = "auto"))]
    self_peer: Option<String>,
    /// All members, this node included, the same list on every node; or where to find them.
    peers: Peers,
    /// How keys find their owner. `groupcache` (golang/groupcache), `mailgun` and `v3` (groupcache-go) share a ring with
    /// Go nodes.
    #[schemars(extend("default" = "balanced", "enum" = ["balanced", "groupcache", "mailgun", "v3"]))]
    ring: Option<String>,
    /// 16 bytes or more, the same on every node; of a list, the first proves and all are accepted. Needed unless every
    /// peer is loopback.
    secret: Option<OneOrList<String>>,
    /// Certificates for peers named https://.
    tls: Option<FleetTlsKeys>,
    /// When a peer counts as gone.
    timeouts: Option<FleetTimeoutKeys>,
    /// What only Go peers need.
    go: Option<GoKeys>,
    /// When the network splits the fleet: `serve` keeps answering, and acknowledges purges only when every member confirmed;
    /// `strict` acknowledges them with a majority, and who has no contact with one asks the origin before it answers from
    /// memory. `strict` needs peers that are listed, here or in a file, and the ring `balanced`.
    #[schemars(extend("default" = "serve", "enum" = ["serve", "strict"]))]
    partition: Option<String>,
    /// When members come and go, keys get new owners: `warm` lets those ask the owners before them, and a node that leaves
    /// hands over what it has; with `cold` they ask the origin, as on a plain ring.
    #[schemars(extend("default" = "warm", "enum" = ["warm", "cold"]))]
    resharding: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Peers {
    /// URLs without a path and without a last slash.
    List(#[schemars(length(min = 1))] Vec<Peer>),
    /// One of `file`, `dns`, `srv` and `gossip`.
    Found(FoundPeers),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FoundPeers {
    /// A file with the URL of a member in each line, perhaps followed by weight=N; read again when it changes.
    file: Option<String>,
    /// A URL whose name has the addresses of all members (A and AAAA), such as that of a headless service of Kubernetes.
    dns: Option<String>,
    /// A service whose targets and ports are the members; https:// where fleet.tls is there.
    srv: Option<String>,
    /// Time between two look-ups of dns or srv.
    #[schemars(extend("default" = "5s"))]
    every: Option<Time>,
    /// Whom to ask for dns and srv. Default: as the system is configured.
    nameservers: Option<Vec<String>>,
    /// Hosts and ports of some members: through them a node finds all others, and all notice who fails.
    gossip: Option<OneOrList<String>>,
    /// Where this node gossips, over UDP.
    #[schemars(extend("default" = "0.0.0.0:7946"))]
    address: Option<Address>,
    /// How long a member that is not found any more is told of purges, which are not complete without it unless it has said
    /// goodbye. With dns, srv and gossip.
    #[schemars(extend("default" = "10m"))]
    forget: Option<Time>,
}

/// A member of the fleet.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Peer {
    /// Its URL.
    Url(String),
    /// Its URL and weight.
    Weighted(WeightedPeer),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct WeightedPeer {
    /// Such as http://10.0.0.4:8082.
    url: String,
    /// Its share of the keys compared with the others, 1 to 100; always 1 on a ring of Go nodes.
    #[schemars(extend("default" = 1))]
    weight: Option<Count>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FleetTlsKeys {
    /// PEM file with the authorities that sign members.
    ca: String,
    /// PEM file with this node's certificate.
    cert: String,
    /// PEM file with its private key.
    key: String,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FleetTimeoutKeys {
    /// For a connection to a peer.
    #[schemars(extend("default" = "250ms"))]
    connect: Option<Time>,
    /// Without a single frame, not even "still waiting for the origin".
    #[schemars(extend("default" = "1s"))]
    silence: Option<Time>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct GoKeys {
    /// Addresses besides those of the listed peers that may ask in Go's protocol.
    #[schemars(extend("default" = []))]
    allow: Option<Vec<String>>,
    /// Points of each peer on the ring, as in the Go nodes.
    #[schemars(extend("default" = 50))]
    replicas: Option<Count>,
    /// Where Go peers ask, as in the Go nodes.
    #[schemars(extend("default" = "/_groupcache/"))]
    base_path: Option<String>,
    /// Whether values that Go peers PUT (`Set` of the forks) are taken for keys of this node.
    #[schemars(extend("default" = false))]
    accept_set: Option<bool>,
}

/// A set of requests that are answered by the same rules.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct GroupKeys {
    /// Letters, digits, - and _; not stats, metrics, top, explain, health, ready, purge, reload or drain.
    name: Option<String>,
    /// Which requests belong to the group; without it, all that no other group takes.
    #[schemars(rename = "match")]
    matching: Option<MatchKeys>,
    /// false: only pass through.
    #[schemars(extend("default" = true))]
    cache: Option<bool>,
    /// Answer with the files of this folder: no dot files, no listing, index.html for a folder.
    directory: Option<String>,
    /// Ask this server, or one of these, which give the same answers. The path of the URL replaces the matched prefix.
    origin: Option<OriginForms>,
    /// Host sent: `origin` is the origin's own, `client` the client's (then part of the key), or a name.
    #[schemars(extend("default" = "origin"))]
    origin_host: Option<String>,
    /// What the ring, purge and Go peers see: {rest} is what follows the matched prefix.
    #[schemars(extend("default" = "{rest}"))]
    key: Option<String>,
    /// Which part of the query belongs to the key; the origin sees the same.
    #[schemars(extend("default" = "keep"))]
    query: Option<QueryForms>,
    /// Which headers of a request reach the origin; what is not forwarded cannot vary.
    #[schemars(extend("default" = "safe"))]
    request_headers: Option<RequestHeadersForms>,
    /// Whether a client's Cache-Control: no-cache, max-age=0, only-if-cached ... counts.
    #[schemars(extend("default" = "ignore", "enum" = ["ignore", "honour"]))]
    request_directives: Option<String>,
    /// Cookies of requests: `strip` removes them, `bypass` passes the request to the origin.
    #[schemars(extend("default" = "strip", "enum" = ["strip", "bypass"]))]
    cookies: Option<String>,
    /// Set-Cookie of responses: `private` is never stored, `strip` removes it and stores, `share` as RFC 9111 lets.
    #[schemars(extend("default" = "private", "enum" = ["private", "strip", "share"]))]
    set_cookie: Option<String>,
    /// Headers to set and remove.
    headers: Option<HeadersKeys>,
    /// Which versions of one key are kept apart; the rest is folded.
    variants: Option<VariantsKeys>,
    /// Which other methods than GET and HEAD go to the origin: `all` (never CONNECT, TRACE), `none`, or a list; others
    /// get 405. Always `none` for a directory.
    #[schemars(extend("default" = "all"))]
    pass: Option<PassForms>,
    /// At most this much of the node's memory.
    #[schemars(extend("default" = "100%"))]
    memory: Option<MemoryAmount>,
    /// Larger bodies stream through and are never stored.
    #[schemars(extend("default" = "32MiB"))]
    max_object: Option<Size>,
    /// Requests at the origin at once, from the whole fleet, passed ones included; 0 is no limit.
    #[schemars(extend("default" = 0))]
    max_concurrency: Option<Count>,
    /// Where requests wait beyond max_concurrency; then they get a stale answer, or 503 with Retry-After.
    queue: Option<QueueKeys>,
    /// How long the origin may take.
    timeouts: Option<TimeoutsKeys>,
    /// How long answers stay usable.
    freshness: Option<FreshnessKeys>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct MatchKeys {
    /// Whole segments; the longest wins. Percent-encoded as in a request.
    #[schemars(extend("default" = "/"))]
    path: Option<String>,
    /// A host such as example.com or *.example.com, or a list; without it, every host.
    host: Option<OneOrList<String>>,
}

/// A URL, a list of URLs, or all keys.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum OriginForms {
    Url(String),
    Urls(Vec<String>),
    Keys(Box<OriginKeys>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct OriginKeys {
    /// Such as http://images.internal:9000/, or a list.
    urls: Option<OneOrList<String>>,
    /// How one of several is chosen.
    #[schemars(extend("default" = "round_robin", "enum" = ["round_robin"]))]
    balance: Option<String>,
    /// How often a request that is safe to repeat is tried again.
    #[schemars(extend("default" = 1))]
    retries: Option<Count>,
    /// How servers that are down are found; a single one is never probed.
    health: Option<HealthKeys>,
    /// How often a name is resolved again.
    #[schemars(extend("default" = "30s"))]
    resolve: Option<Time>,
    /// PEM file with the authorities to believe instead of the system's.
    ca: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct HealthKeys {
    /// Must answer 2xx; without it, a connection is enough.
    path: Option<String>,
    /// Time between two probes.
    #[schemars(extend("default" = "5s"))]
    every: Option<Time>,
}

/// A word, or a choice of parameters by name; a name may end with * for all that begin so.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum QueryForms {
    Word(QueryWord),
    Only(OnlyKeys),
    Except(ExceptKeys),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum QueryWord {
    Keep,
    Drop,
    Sort,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct OnlyKeys {
    /// The parameters that count.
    only: Vec<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ExceptKeys {
    /// The parameters that do not count.
    except: Vec<String>,
}

/// `safe`, `all`, or headers besides the safe ones.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum RequestHeadersForms {
    Word(RequestHeadersWord),
    Names(Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum RequestHeadersWord {
    Safe,
    All,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct HeadersKeys {
    /// On requests to the origin. NAME: value sets, NAME: null removes.
    #[schemars(extend("default" = {}))]
    to_origin: Option<BTreeMap<String, Option<HeaderValue>>>,
    /// On responses to clients. NAME: value sets, NAME: null removes.
    #[schemars(extend("default" = {}))]
    to_client: Option<BTreeMap<String, Option<HeaderValue>>>,
}

text_type! {
    /// The value of a header.
    HeaderValue,
    { "type": ["string", "number", "boolean"] }
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct VariantsKeys {
    /// How many are kept of one key; a new one then replaces the least used.
    #[schemars(extend("default" = 32))]
    max: Option<Count>,
    /// Media types that are told apart in Accept.
    #[schemars(extend("default" = ["image/avif", "image/webp"]))]
    accept: Option<Vec<String>>,
    /// Codings that are told apart in Accept-Encoding.
    #[schemars(extend("default" = ["br", "gzip"]))]
    accept_encoding: Option<Vec<String>>,
}

/// `all`, `none`, or a list of methods.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum PassForms {
    Word(PassWord),
    Methods(Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
enum PassWord {
    All,
    None,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct QueueKeys {
    /// How many requests of the whole fleet may wait.
    #[schemars(extend("default" = 1000))]
    length: Option<Count>,
    /// How long one waits.
    #[schemars(extend("default" = "10s"))]
    timeout: Option<Time>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct TimeoutsKeys {
    /// For a connection.
    #[schemars(extend("default" = "1s"))]
    connect: Option<Time>,
    /// From the request to the first byte of the response.
    #[schemars(extend("default" = "15s"))]
    first_byte: Option<Time>,
    /// Between two bytes of the response.
    #[schemars(extend("default" = "10s"))]
    between_bytes: Option<Time>,
    /// For a whole response that can be stored.
    #[schemars(extend("default" = "300s"))]
    total: Option<Time>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct FreshnessKeys {
    /// Headers that are not believed when the origin says them.
    #[schemars(extend("default" = []))]
    ignore: Option<Vec<IgnoreWord>>,
    /// When the origin says nothing and no heuristic applies.
    #[schemars(extend("default" = "0s"))]
    default: Option<Time>,
    /// 10% of the time since Last-Modified, at most this; 0s is off. A directory revalidates instead.
    #[schemars(extend("default" = "24h"))]
    heuristic_max: Option<Time>,
    /// The longest lifetime at all.
    #[schemars(extend("default" = "365d"))]
    max: Option<Time>,
    /// By status (403, 404, 410, 451), when the origin says nothing. A map given here replaces the default whole.
    #[schemars(extend("default" = { "404": "5s", "410": "5s" }))]
    negative: Option<Negative>,
    /// How long our own failure to load (connect, timeout) answers for the whole fleet.
    #[schemars(extend("default" = "1s"))]
    errors: Option<Time>,
    /// Lifetimes are shortened at random by at most this part, so that entries do not expire together.
    #[schemars(extend("default" = "5%"))]
    jitter: Option<Percentage>,
    /// How long a stale entry answers while it is refreshed, where the origin does not forbid it.
    #[schemars(extend("default" = "0s"))]
    stale_while_revalidate: Option<Time>,
    /// How long a stale entry answers when the origin fails, where the origin does not forbid it.
    #[schemars(extend("default" = "1h"))]
    stale_if_error: Option<Time>,
    /// Within stale_if_error: answer stale when the origin is silent this long; 0s is off.
    #[schemars(extend("default" = "0s"))]
    stale_if_slow: Option<Time>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum IgnoreWord {
    CacheControl,
    Expires,
    Vary,
}
