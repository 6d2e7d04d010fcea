use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value as Json;

use super::testing::TestEnvironment;
use super::*;

const SHORTEST: &str = "\
groups:
  - name: thumbnails
    match: { path: / }
    origin: http://127.0.0.1:9000
    freshness: { default: 60s }
";

/// Every key that there is, each with another value than its default.
const EVERYTHING: &str = r#"
listen:
  - address: "[::]:8443"
    tls: { cert: tls/cert.pem, key: tls/key.pem }
  - address: 127.0.0.1:9443
    tls:
      - { cert: tls/cert.pem, key: tls/key.pem }
      - { cert: tls/cert.pem, key: tls/key.pem }
memory: 60%
threads: 2
eviction: lru
shutdown: { delay: 1s, timeout: 2m }
log: { level: debug, format: json, access: 1.5% }
limits: { connections: 100, connections_per_address: 7, header_bytes: 16KiB, header_timeout: 0, idle_timeout: 1m, body_min_rate: 0, body_bytes: 2GiB }
admin:
  address: 127.0.0.1:8081
  allow: [10.0.0.0/8]
  read_token: read-token-of-16-bytes
  token: [admin-token-of-16-bytes, older-token-of-16-bytes]
  purge_allow: [10.2.0.0/16]
fleet:
  address: 10.0.0.4:8082
  self: https://10.0.0.4:8082
  peers: [https://10.0.0.4:8082, { url: "https://10.0.0.5:8082", weight: 1 }]
  ring: mailgun
  secret: [sixteen bytes or more, another of the same]
  tls: { ca: tls/ca.pem, cert: tls/cert.pem, key: tls/key.pem }
  timeouts: { connect: 100ms, silence: 2s }
  go: { allow: [10.1.0.0/16], replicas: 100, base_path: /_peers/, accept_set: true }
  partition: serve
  resharding: cold
defaults:
  name: inherited
  match: { path: /inherited/, host: inherited.example }
  cache: false
  directory: pictures
  origin: { urls: ["http://inherited/"], balance: round_robin, retries: 3, health: { path: /inherited, every: 7s }, resolve: 7s, ca: tls/ca.pem }
  origin_host: inherited.example
  key: "inherited:{rest}"
  query: drop
  request_headers: all
  request_directives: honour
  cookies: bypass
  set_cookie: strip
  headers: { to_origin: { X-Inherited: "1" }, to_client: { X-Inherited: null } }
  variants: { max: 7, accept: [image/jxl], accept_encoding: [zstd] }
  pass: none
  memory: 70%
  max_object: 7MiB
  max_concurrency: 7
  queue: { length: 7, timeout: 7s }
  timeouts: { connect: 7s, first_byte: 7s, between_bytes: 7s, total: 7s }
  freshness: { ignore: [vary], default: 7s, heuristic_max: 7s, max: 7d, negative: { 404: 7s }, errors: 7s, jitter: 7%, stale_while_revalidate: 7s, stale_if_error: 7s, stale_if_slow: 7s }
groups:
  - name: one
    match: { path: /one, host: [example.com, "*.Example.com", "[::1]"] }
    cache: true
    origin: { urls: ["https://a.internal:9000/base", "https://[fd00::1]/base"], balance: round_robin, retries: 2, health: { path: "/health?x=1", every: 1s }, resolve: 5s, ca: tls/ca.pem }
    origin_host: images.example:8080
    key: "one:{rest}"
    query: { only: [w, h, "utm_*"] }
    request_headers: [Accept-Language, X-Device]
    request_directives: honour
    cookies: bypass
    set_cookie: share
    headers: { to_origin: { X-Key: "$${not replaced} \" # : ", "yes": "no" }, to_client: { Server: null, X-Served-By: groupcache } }
    variants: { max: 8, accept: [], accept_encoding: [gzip] }
    pass: [POST, PURGE-X]
    memory: 100MiB
    max_object: 1MiB
    max_concurrency: 64
    queue: { length: 0, timeout: 2s }
    timeouts: { connect: 2s, first_byte: 3s, between_bytes: 4s, total: 5s }
    freshness: { ignore: [cache-control, expires, vary], default: 1m, heuristic_max: 0s, max: 1d, negative: {}, errors: 0, jitter: 0%, stale_while_revalidate: 10s, stale_if_error: 2d, stale_if_slow: 500ms }
  - name: two
    match: { path: /two/ }
    directory: pictures
    query: { except: [page] }
"#;

/// Surroundings in which everything that `EVERYTHING` names is there.
fn surroundings() -> TestEnvironment {
    let (cert, key) = certificate();
    TestEnvironment::default()
        .with_folder("pictures")
        .with_folder("/conf/pictures")
        .with_file("tls/cert.pem", cert.clone())
        .with_file("tls/key.pem", key)
        .with_file("tls/ca.pem", cert)
}

/// A certificate and its key in PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn parse(text: &str) -> Result<Loaded, Problems> {
    Config::parse(text, "proxy.yaml", Path::new(""), &surroundings())
}

fn config(text: &str) -> Config {
    match parse(text) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{problems}\nin\n{text}"),
    }
}

fn mistakes(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(loaded) => loaded.warnings.iter().map(ToString::to_string).collect(),
        Err(problems) => panic!("{problems}\nin\n{text}"),
    }
}

/// A file with one group and `lines` at its top.
fn with_group(lines: &str) -> String {
    format!("{lines}\ngroups: [{{ name: all, origin: \"http://127.0.0.1:9000\" }}]\n")
}

/// A file whose only group has `lines` as its keys.
fn group_of(lines: &str) -> String {
    format!("groups:\n  - name: all\n    origin: http://127.0.0.1:9000\n{}", indented(lines))
}

fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("    {line}\n")).collect()
}

#[test]
fn the_shortest_file_has_the_documented_defaults() {
    let expected = r#"listen:
  - address: 127.0.0.1:8080  # default
    # tls: none  # default
memory: auto  # default, here 1GiB
threads: auto  # default, here 4
eviction: s3fifo  # default
shutdown:
  delay: 5s  # default
  timeout: 20s  # default
log:
  level: info  # default
  format: text  # default
  access: errors  # default
limits:
  connections: 10000  # default
  connections_per_address: 0  # default
  header_bytes: 32KiB  # default
  header_timeout: 10s  # default
  idle_timeout: 75s  # default
  body_min_rate: 1KiB  # default
  body_bytes: 1GiB  # default
admin:
  # address: on the client listeners, for direct requests from loopback alone  # default
  allow: [127.0.0.0/8, "::1/128"]  # default
  read_token: []  # default
  token: []  # default
  purge_allow: []  # default
# fleet: a fleet of one  # default
groups:
  - name: thumbnails
    match:
      path: /
      # host: every host  # default
    cache: true  # default
    origin:
      urls: [http://127.0.0.1:9000/]
      balance: round_robin  # default
      retries: 1  # default
      health:
        # path: a connection is enough  # default
        every: 5s  # default
      resolve: 30s  # default
      # ca: the system's authorities  # default
    origin_host: origin  # default
    key: "{rest}"  # default
    query: keep  # default
    request_headers: safe  # default
    request_directives: ignore  # default
    cookies: strip  # default
    set_cookie: private  # default
    headers:
      to_origin: {}  # default
      to_client: {}  # default
    variants:
      max: 32  # default
      accept: [image/avif, image/webp]  # default
      accept_encoding: [br, gzip]  # default
    pass: all  # default
    memory: 100%  # default
    max_object: 32MiB  # default
    max_concurrency: 0  # default
    queue:
      length: 1000  # default
      timeout: 10s  # default
    timeouts:
      connect: 1s  # default
      first_byte: 15s  # default
      between_bytes: 10s  # default
      total: 5m  # default
    freshness:
      ignore: []  # default
      default: 1m
      heuristic_max: 24h  # default
      max: 365d  # default
      negative: { 404: 5s, 410: 5s }  # default
      errors: 1s  # default
      jitter: 5%  # default
      stale_while_revalidate: 0s  # default
      stale_if_error: 1h  # default
      stale_if_slow: 0s  # default
"#;
    let loaded = parse(SHORTEST).unwrap();
    assert_eq!(loaded.config.effective(), expected);
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.sha256, "02598851f88afdc0b2250cf40a1afc2371cf3a9dea24e3757ceb7d2aa0068180");
}

#[test]
fn every_mistake_is_reported_with_its_place() {
    let text = "\
listen:
  - address: localhost:8080
memroy: 1GiB
threads: many
limits: { connections: -1, header_timeout: 10 }
threads: 2
groups:
  - name: stats
    origin: ftp://host
    freshness: { max: [1d], stale_if_eror: 1h }
  - match: { path: thumbnails }
    cache: yes
";
    let expected = [
        "proxy.yaml:2:14: listen[0].address: found \"localhost:8080\", expected an IP address with a port, such as \
         127.0.0.1:8080, or [::]:8080 for every address",
        "proxy.yaml:3:1: memroy: unknown key, did you mean memory?",
        "proxy.yaml:4:10: threads: found \"many\", expected auto, or a whole number from 1 to 1024",
        "proxy.yaml:5:24: limits.connections: found \"-1\", expected a whole number, 0 or more",
        "proxy.yaml:5:44: limits.header_timeout: found \"10\", expected a duration such as 250ms, 10s, 5m, 24h or 7d",
        "proxy.yaml:6:1: threads: appears twice, first in line 4",
        "proxy.yaml:8:11: groups[0].name: found \"stats\", expected a name that is no endpoint of /_groupcache/ \
         (stats, metrics, top, explain, health, ready, purge, reload, drain)",
        "proxy.yaml:9:13: groups[0].origin: found \"ftp://host\", expected an http:// or https:// URL with a host, \
         perhaps a port and a path, without user, query and fragment",
        "proxy.yaml:10:23: groups[0].freshness.max: found a list, expected a duration such as 250ms, 10s, 5m, 24h or 7d",
        "proxy.yaml:10:29: groups[0].freshness.stale_if_eror: unknown key, did you mean stale_if_error?",
        "proxy.yaml:11:5: groups[1].name: missing, expected a name of letters, digits, - and _",
        "proxy.yaml:11:5: groups[1].origin: missing, expected the URL of an origin, or directory with the path of a \
         folder",
        "proxy.yaml:11:20: groups[1].match.path: found \"thumbnails\", expected a path that begins with /, \
         percent-encoded as in a request, without ?, #, // and dot segments",
        "proxy.yaml:12:12: groups[1].cache: found \"yes\", expected true or false",
    ];
    assert_eq!(mistakes(text), expected);
}

#[test]
fn single_mistakes() {
    let other_key = certificate().1;
    let environment = surroundings().with_file("tls/other.pem", other_key).with_file("tls/text.pem", "text");
    let mut wrong = String::new();
    let go_ring = "fleet:\n  peers: [\"http://127.0.0.1:1\"]\n  ring: v3\n";
    for (text, expected) in [
        // The whole file.
        (String::new(), "1:1: groups: missing"),
        ("groups:".into(), "1:1: groups: found nothing"),
        ("groups: []".into(), "1:9: groups: found a list, expected at least one group"),
        ("groups: [x]".into(), "1:10: groups[0]: found \"x\", expected a map"),
        ("[]".into(), "1:1: found a list, expected a map of keys and values"),
        ("a: b: c".into(), "1:5: not YAML"),
        ("a: [".into(), "not YAML"),
        (with_group("a: *b"), "1:4: not YAML"),
        (with_group("%YAML 1.1\n---"), "1:1: not YAML"),
        (format!("{SHORTEST}---\na: b\n"), "7:1: found a second document"),
        (with_group("threads: !!int 2"), "threads: found a tag"),
        (with_group("? [a]\n: b"), "found a list or map, expected a key"),
        (with_group(&format!("threads: {}{}", "[".repeat(40), "]".repeat(40))), "more than 32 levels"),
        // Features that come later.
        (with_group("trusted_proxies: []"), "1:1: trusted_proxies: unknown key"),
        (with_group("listen: [{ address: \"127.0.0.1:1\", proxy_protocol: false }]"), "proxy_protocol: unknown key"),
        (with_group("admin: { purge_allow: [x] }"), "admin.purge_allow[0]: found \"x\", expected an address"),
        (with_group("fleet: { peers: { dns: x } }"), "1:24: fleet.peers.dns: found \"x\", expected a URL"),
        (with_group("fleet: { peers: {} }"), "1:17: fleet.peers: found a map, expected a list of URLs"),
        (with_group("fleet: { peers: x }"), "1:17: fleet.peers: found \"x\", expected a list of URLs"),
        (
            with_group("fleet: { secret: 0123456789abcdef, peers: { dns: \"http://a:1\", srv: _a._tcp.b } }"),
            "fleet.peers: found a map, expected a list of URLs",
        ),
        (with_group("fleet: { peers: { dns: \"http://a:1\" } }"), "1:8: fleet.secret: missing or empty"),
        (
            with_group("fleet: { secret: 0123456789abcdef, peers: { dns: \"https://a:1\" } }"),
            "fleet.tls: missing, expected ca, cert and key: the peer https://a:1/ is https://",
        ),
        (
            with_group("fleet: { secret: 0123456789abcdef, peers: { dns: \"http://a:1\", every: 0s } }"),
            "fleet.peers.every: found \"0s\", expected a duration above 0",
        ),
        (
            with_group("fleet: { secret: 0123456789abcdef, peers: { dns: \"http://a:1\", nameservers: [name] } }"),
            "fleet.peers.nameservers[0]: found \"name\", expected an IP address",
        ),
        (
            with_group("fleet: { secret: 0123456789abcdef, peers: { srv: cache.internal } }"),
            "fleet.peers.srv: found \"cache.internal\", expected the name of a service",
        ),
        (
            with_group("fleet: { secret: 0123456789abcdef, self: \"http://a:1\", peers: { gossip: [a] } }"),
            "fleet.peers.gossip[0]: found \"a\", expected a host and a port",
        ),
        (
            with_group("fleet: { secret: 0123456789abcdef, peers: { gossip: [\"a:1\"] } }"),
            "fleet.self: expected the URL of this node",
        ),
        (
            with_group(
                "fleet: { secret: 0123456789abcdef, self: \"http://a:1\", peers: { gossip: [\"a:1\"], every: 5s } }",
            ),
            "fleet.peers.every: unknown key",
        ),
        (with_group("fleet: { self: \"http://a:1\", peers: { gossip: [\"a:1\"] } }"), "fleet.secret: missing or empty"),
        (
            with_group(
                "fleet: { secret: 0123456789abcdef, self: \"http://a:1\", ring: v3, peers: { gossip: [\"a:1\"] } }",
            ),
            "fleet.peers: found gossip, which Go nodes do not speak",
        ),
        (with_group("fleet: { peers: { file: none.txt } }"), "fleet.peers.file: found \"none.txt\", expected a file"),
        // Listeners.
        (with_group("listen: 127.0.0.1:8080"), "listen: found \"127.0.0.1:8080\", expected a list of listeners"),
        (with_group("listen: []"), "expected at least one listener"),
        (with_group("listen: [{}]"), "1:10: listen[0].address: missing"),
        (with_group("listen: [{ address: \":8080\" }]"), "expected an IP address with a port"),
        (
            with_group("listen: [{ address: \"[::]:80\" }, { address: \"127.0.0.1:80\" }]"),
            "listen[1].address: 127.0.0.1:80 overlaps with [::]:80 of another listener",
        ),
        (
            with_group("listen: [{ address: \"127.0.0.1:80\" }]\nadmin: { address: \"0.0.0.0:80\" }"),
            "2:19: admin.address: 0.0.0.0:80 overlaps with 127.0.0.1:80 of listen",
        ),
        (
            with_group("listen: [{ address: \"127.0.0.1:1\", tls: { key: tls/key.pem } }]"),
            "listen[0].tls.cert: missing",
        ),
        (with_group("listen: [{ address: \"127.0.0.1:1\", tls: x }]"), "tls: found \"x\", expected { cert: PATH"),
        (
            with_group("listen: [{ address: \"127.0.0.1:1\", tls: { cert: none.pem, key: tls/key.pem } }]"),
            "tls.cert: found \"none.pem\", expected a PEM file that can be read",
        ),
        (
            with_group("listen: [{ address: \"127.0.0.1:1\", tls: { cert: tls/text.pem, key: tls/key.pem } }]"),
            "expected a PEM file with at least one certificate",
        ),
        (
            with_group("listen: [{ address: \"127.0.0.1:1\", tls: { cert: tls/cert.pem, key: tls/cert.pem } }]"),
            "expected a PEM file with a private key",
        ),
        (
            with_group("listen: [{ address: \"127.0.0.1:1\", tls: { cert: tls/cert.pem, key: tls/other.pem } }]"),
            "tls.key: found \"tls/other.pem\", expected the private key of the certificate",
        ),
        // The rest of the node.
        (with_group("memory: 0"), "memory: found \"0\", expected auto, or a size"),
        (with_group("memory: 1G"), "expected auto, or a size"),
        (with_group("eviction: fifo"), "expected s3fifo or lru"),
        (with_group("shutdown: 5s"), "shutdown: found \"5s\", expected a map"),
        (with_group("shutdown: { delay: }"), "shutdown.delay: found nothing, expected a duration"),
        (with_group("log: { access: some }"), "expected none, errors, all or a percentage"),
        (with_group("limits: { header_bytes: 2MiB }"), "expected a size from 256 to 1MiB"),
        (with_group("admin: { allow: [localhost] }"), "admin.allow[0]: found \"localhost\", expected an address"),
        (with_group("admin: { allow: 10.0.0.0/8 }"), "expected a list"),
        (with_group("admin: { token: two words }"), "admin.token: found a token that cannot stand in a header"),
        (with_group("admin: { token: { a: b } }"), "admin.token: found a map, expected a text"),
        // Fleets.
        (with_group("fleet: {}"), "fleet.peers: missing"),
        (with_group("fleet: { peers: [] }"), "expected at least one peer"),
        (with_group("fleet: { peers: [\"http://127.0.0.1:1/\"] }"), "without a path and without a last /"),
        (with_group("fleet: { peers: [{ weight: 2 }] }"), "fleet.peers[0].url: missing"),
        (with_group("fleet: { peers: [{ url: \"http://127.0.0.1:1\", weight: 0 }] }"), "from 1 to 100"),
        (
            with_group("fleet: { peers: [\"http://A:80\", \"http://a\"], secret: 0123456789abcdef }"),
            "fleet.peers[1]: http://a appears twice, first as http://A:80",
        ),
        (with_group("fleet: { peers: [\"http://10.0.0.4:1\"] }"), "1:8: fleet.secret: missing or empty"),
        (
            with_group("fleet: { peers: [\"http://10.0.0.4:1\"], secret: [\"\"] }"),
            "fleet.secret: missing or empty, expected a secret of 16 bytes or more: not every peer is loopback",
        ),
        (
            with_group("fleet: { peers: [\"http://10.0.0.4:1\"], secret: short }"),
            "fleet.secret: found 5 bytes, expected 16 bytes or more",
        ),
        (with_group("fleet: { peers: [\"https://127.0.0.1:1\"] }"), "fleet.tls: missing, expected ca, cert and key"),
        (
            with_group("fleet: { peers: [\"https://127.0.0.1:1\"], tls: { cert: tls/cert.pem, key: tls/key.pem } }"),
            "fleet.tls.ca: missing",
        ),
        (
            with_group("fleet: { peers: [\"http://127.0.0.1:1\"], self: me }"),
            "fleet.self: found \"me\", expected auto, or",
        ),
        (
            with_group(&format!("{go_ring}listen: [{{ address: \"0.0.0.0:80\" }}]")),
            "3:9: fleet.address: missing, expected an address only for peers",
        ),
        (
            with_group("fleet: { ring: v3, peers: [{ url: \"http://127.0.0.1:1\", weight: 2 }] }"),
            "expected 1: rings of Go nodes know no weights",
        ),
        (with_group(&format!("{go_ring}  go: {{ base_path: / }}")), "fleet.go.base_path: found \"/\""),
        (with_group(&format!("{go_ring}  go: {{ replicas: 0 }}")), "from 1 to 10000"),
        (with_group(&format!("{go_ring}  address: 127.0.0.1:8080")), "fleet.address: 127.0.0.1:8080 overlaps with"),
        (with_group(&format!("{go_ring}  go: {{ accept_set: 1 }}")), "fleet.go.accept_set: found \"1\""),
        (
            with_group("fleet: { peers: [\"http://127.0.0.1:1\"], partition: split }"),
            "fleet.partition: found \"split\", expected serve or strict",
        ),
        (
            with_group("fleet: { peers: [\"http://127.0.0.1:1\"], resharding: false }"),
            "fleet.resharding: found \"false\", expected warm or cold",
        ),
        (
            with_group(&format!("{go_ring}  address: 127.0.0.1:1\n  partition: strict")),
            "fleet.partition: found \"strict\", expected serve: Go nodes know no leases",
        ),
        (
            with_group(
                "fleet: { secret: sixteen bytes or more, peers: { dns: \"http://a.example:1\" }, partition: strict }",
            ),
            "expected serve: a majority is one of members that are listed",
        ),
        // Groups.
        (group_of("name: again"), "4:5: groups[0].name: appears twice"),
        (group_of("directory: pictures"), "groups[0].directory: found both directory and origin"),
        ("groups: [{ name: a, directory: none }]".into(), "directory: found \"none\", expected a folder"),
        (
            "groups: [{ name: a, directory: pictures, pass: all }]".into(),
            "groups[0].pass: found \"all\", expected none: a directory",
        ),
        (
            "groups: [{ name: a, directory: pictures }, { name: a, match: { path: /b }, directory: pictures }]".into(),
            "1:52: groups[1].name: another group is named \"a\" already",
        ),
        (
            "groups: [{ name: a, directory: pictures }, { name: b, match: { path: / }, directory: pictures }]".into(),
            "1:62: groups[1].match: the group \"a\" matches the same path and host already",
        ),
        (
            "groups: [{ name: a, match: { path: /x, host: [a, b] }, directory: pictures }, \
             { name: b, match: { path: /x/, host: [c, B] }, directory: pictures }]"
                .into(),
            "groups[1].match: the group \"a\" matches the same",
        ),
        (group_of("match: { path: /_groupcache/x }"), "never belongs to a group"),
        (group_of("match: { host: [a, A] }"), "groups[0].match.host[1]: \"A\" appears twice"),
        (group_of("match: { host: [] }"), "expected at least one host"),
        (group_of("match: { host: { a: b } }"), "match.host: found a map, expected a host"),
        (group_of("origin_host: a b"), "expected origin, client, or a host"),
        (group_of("key: x"), "key: found \"x\", expected {rest}"),
        (group_of("query: { only: [a], except: [b] }"), "query: found a map, expected keep, drop"),
        (group_of("query: {}"), "query: found a map, expected keep, drop"),
        (group_of("request_headers: [Cookie]"), "expected another header; see the key cookies"),
        (group_of("request_headers: [Connection]"), "expected a header that is not one of the connection"),
        (group_of("headers: { to_origin: { Host: x } }"), "4:29: groups[0].headers.to_origin.Host: found \"Host\""),
        (group_of("headers: { to_client: { X-A: \"a\\r\\nb: c\" } }"), "without control characters"),
        (group_of("headers: { to_client: { X-A: a, x-a: b } }"), "headers.to_client.x-a: appears twice"),
        (group_of("headers: { to_client: [X-A] }"), "expected a map of headers"),
        (group_of("variants: { max: 0 }"), "from 1 to 1024"),
        (group_of("variants: { accept: [\"image/*\"] }"), "expected a media type"),
        (group_of("pass: [CONNECT]"), "CONNECT and TRACE never reach an origin"),
        (group_of("pass: [post]"), "expected a method in capital letters"),
        (group_of("pass: POST"), "expected all, none, or a list of methods"),
        (group_of("memory: 101%"), "memory: found \"101%\""),
        (group_of("timeouts: { connect: 0s }"), "timeouts.connect: found \"0s\", expected a duration above 0"),
        (group_of("freshness: { ignore: [pragma] }"), "expected cache-control, expires or vary"),
        (group_of("freshness: { negative: { 500: 1s } }"), "negative.500: found the status \"500\", expected 403, 404"),
        (group_of("freshness: { negative: { 404: x } }"), "negative.404: found \"x\", expected a duration"),
        (group_of("freshness: { jitter: 5 }"), "expected a percentage"),
        ("groups: [{ name: a, origin: {} }]".into(), "origin.urls: missing"),
        ("groups: [{ name: a, origin: [] }]".into(), "expected at least one URL"),
        ("groups: [{ name: a, origin: [\"http://a\", \"http://a:80/\"] }]".into(), "http://a/ appears twice"),
        ("groups: [{ name: a, origin: \"http://localhost:8080\" }]".into(), "is a listener of this node"),
        ("groups: [{ name: a, origin: { urls: \"http://a\", retries: 11 } }]".into(), "from 0 to 10"),
        // References.
        (with_group("threads: ${UNSET}"), "1:10: threads: the environment variable UNSET is not set"),
        (with_group("threads: ${UN SET}"), "threads: found \"${UN SET}\", expected ${NAME}"),
        (with_group("threads: ${UNSET:-x}"), "threads: found \"${UNSET:-x}\", expected auto"),
        // What `defaults` says is looked at even where every group overrides it, and reported once.
        (with_group("defaults: { freshness: { max: x } }"), "1:31: defaults.freshness.max: found \"x\""),
        (with_group("defaults: { frehsness: {} }"), "1:13: defaults.frehsness: unknown key, did you mean freshness?"),
        (with_group("defaults: x"), "1:11: defaults: found \"x\", expected a map"),
    ] {
        let found: Vec<String> = match Config::parse(&text, "f", Path::new(""), &environment) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        };
        if found.len() != 1 || !found[0].contains(expected) {
            wrong += &format!("expected only {expected}, found {found:#?} in\n{text}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_works_but_was_hardly_meant_is_a_warning() {
    for (text, expected) in [
        (with_group("memory: 1MiB"), "memory: 1MiB is hardly enough"),
        (with_group("memory: 64GiB"), "memory: is more than this machine or container has (16GiB)"),
        (with_group("admin: { token: short }"), "1:17: admin.token: is short enough to be guessed"),
        (
            with_group("fleet: { peers: [\"http://127.0.0.1:1\"], self: \"http://localhost:1\" }"),
            "fleet.self: is not among the peers",
        ),
        (
            with_group("fleet: { peers: [\"http://127.0.0.1:1\"], go: { replicas: 1 } }"),
            "fleet.go: does nothing: fleet.ring is not one of Go nodes",
        ),
        (
            with_group(
                "fleet: { peers: [\"http://127.0.0.1:1\"], \
                 tls: { ca: tls/ca.pem, cert: tls/cert.pem, key: tls/key.pem } }",
            ),
            "fleet.tls: does nothing",
        ),
        (group_of("max_object: 2GiB"), "max_object: is more than the memory of the group (1GiB)"),
        (group_of("freshness: { default: 2d, max: 1d }"), "freshness.default: is more than freshness.max (24h)"),
        (group_of("freshness: { stale_if_slow: 1s, stale_if_error: 0s }"), "stale_if_slow: does nothing"),
        ("groups: [{ name: a, origin: { urls: \"http://a\", ca: tls/ca.pem } }]".into(), "ca: does nothing"),
    ] {
        let found = warnings(&text);
        assert!(found.len() == 1 && found[0].contains(expected), "expected {expected}, found {found:#?} in\n{text}");
    }
}

#[test]
fn limits_follow_the_machine() {
    let mut environment = surroundings().with_file("/proc/meminfo", "MemTotal: 1000000 kB");
    environment.open_files_max = Some(1000);
    let load = |text: &str| Config::parse(text, "f", Path::new(""), &environment).unwrap();
    let small = load(SHORTEST).config;
    assert_eq!((small.memory_bytes, small.threads, small.limits.connections), (716_800_000, 4, Some(800)));
    assert!(small.effective().contains("\n  connections: 800  # default\n"), "{}", small.effective());
    assert_eq!(load(&with_group("memory: 50%")).config.memory_bytes, 512_000_000);
    let above = load(&with_group("limits: { connections: 801 }"));
    assert_eq!(above.config.limits.connections, Some(801));
    assert!(above.warnings[0].to_string().contains("more than 80% of the 1000 files"), "{:?}", above.warnings);
    let group = load(&group_of("memory: 25%")).config.groups.remove(0);
    assert_eq!((group.memory, group.memory_bytes), (Amount::Percent(25.0), 179_200_000));
    environment.open_files_max = Some(u64::MAX);
    let large = Config::parse(SHORTEST, "f", Path::new(""), &environment).unwrap().config;
    assert_eq!(large.limits.connections, Some(10_000));
    let unlimited = "limits: { connections: 0, header_bytes: 0, header_timeout: 0, idle_timeout: 0s, body_min_rate: 0, \
                     body_bytes: 0 }";
    let limits = Limits {
        connections: None,
        connections_per_address: None,
        header_bytes: HEADER_BYTES_MAX,
        header_timeout: None,
        idle_timeout: None,
        body_min_rate: None,
        body_bytes: None,
    };
    assert_eq!(config(&with_group(unlimited)).limits, limits);
    let unknown = TestEnvironment::bare();
    assert_eq!(Config::parse(SHORTEST, "f", Path::new(""), &unknown).unwrap().config.memory_bytes, 1 << 30);
    let part = Config::parse(&with_group("memory: 50%"), "f", Path::new(""), &unknown).unwrap_err();
    assert!(part.to_string().contains("this machine does not tell its memory"), "{part}");
}

#[test]
fn a_group_overrides_defaults_key_by_key() {
    let config = config(
        "\
defaults:
  freshness: { default: 1m, max: 2h, negative: { 404: 9s, 410: 9s } }
  headers: { to_client: { X-A: a, X-B: b } }
  query: { only: [a] }
  origin: { retries: 4, health: { path: /up } }
  pass: [POST]
groups:
  - name: one
    match: { path: /one }
    origin: http://one
    query: { except: [b] }
    freshness: { max: 1h, negative: { 404: 1s } }
    headers: { to_client: { X-B: null } }
  - name: two
    match: { path: /two }
    origin: [http://two, http://three]
    pass: all
  - name: three
    directory: pictures
",
    );
    let [one, two, three] = config.groups.as_slice() else { panic!("three groups") };
    let seconds = |group: &Group| {
        let negative: Vec<_> =
            group.freshness.negative.iter().map(|(status, time)| (*status, time.as_secs())).collect();
        (group.freshness.default.as_secs(), group.freshness.max.as_secs(), negative)
    };
    assert_eq!(seconds(one), (60, 3600, vec![(404, 1), (410, 9)]));
    assert_eq!(seconds(two), (60, 7200, vec![(404, 9), (410, 9)]));
    assert_eq!(one.query, Query::Except(vec![NamePattern { text: "b".into(), prefix: false }]));
    assert_eq!(two.query, Query::Only(vec![NamePattern { text: "a".into(), prefix: false }]));
    let edits = |group: &Group| group.headers.to_client.clone().into_iter().map(|edit| (edit.name, edit.value));
    let mut of_one: Vec<_> = edits(one).collect();
    of_one.sort();
    assert_eq!(of_one, [("X-A".into(), Some("a".into())), ("X-B".into(), None)]);
    for (group, urls) in [(one, 1), (two, 2)] {
        let GroupSource::Origin(origin) = &group.source else { panic!("an origin") };
        assert_eq!((origin.urls.len(), origin.retries, origin.health.path.as_deref()), (urls, 4, Some("/up")));
    }
    assert_eq!(three.source, GroupSource::Directory("pictures".into()));
    assert_eq!(
        (&one.pass, &two.pass, &three.pass),
        (&Pass::Only(vec!["POST".into()]), &Pass::All, &Pass::Only(vec![]))
    );
    let text = config.effective();
    for line in ["default: 1m  # from defaults", "max: 1h\n", "retries: 4  # from defaults", "urls: [http://one/]\n"] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[test]
fn values_of_everything() {
    let config = config(EVERYTHING);
    assert_eq!(config.listen.iter().map(|listener| listener.tls.len()).collect::<Vec<_>>(), [1, 2]);
    let one = &config.groups[0];
    assert_eq!(one.matching.path, "/one/");
    let hosts = ["example.com", "::1"].map(|name| HostPattern::Exact(name.into()));
    let [exact, address] = hosts;
    assert_eq!(one.matching.hosts, [exact, HostPattern::Suffix(".example.com".into()), address]);
    assert_eq!(one.request_headers, RequestHeaders::SafeAnd(vec!["accept-language".into(), "x-device".into()]));
    assert_eq!(one.headers.to_origin[0].value.as_deref(), Some("${not replaced} \" # :"));
    assert_eq!(one.origin_host, OriginHost::Name("images.example:8080".into()));
    let fleet = config.fleet.as_ref().unwrap();
    assert_eq!(fleet.peers[1].url, "https://10.0.0.5:8082");
    assert_eq!(
        fleet.secrets.iter().map(Secret::expose).collect::<Vec<_>>(),
        ["sixteen bytes or more", "another of the same"]
    );
}

#[test]
fn the_effective_configuration_reads_as_the_same() {
    for text in [SHORTEST, EVERYTHING, &group_of("match: { host: a }\nheaders: { to_client: { \"null\": \"true\" } }")]
    {
        let first = config(text);
        let printed = first.effective();
        // Secrets are hidden; any text of the right length stands for them.
        let again = config(&printed.replace("***", "sixteen-bytes-or-more"));
        let hide = |mut config: Config| {
            config.admin.read_tokens.clear();
            config.admin.tokens.clear();
            config.fleet.iter_mut().for_each(|fleet| fleet.secrets.clear());
            config
        };
        assert_eq!(hide(first), hide(again), "{printed}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let text = "\
admin:
  read_token: ${READ}
  token: [first-secret-token-1, first-secret-token-2]
fleet:
  peers: [http://10.0.0.4:1]
  secret: ${file:secret}
groups: [{ name: all, origin: \"http://a\" }]
";
    let environment = TestEnvironment::default()
        .with_variable("READ", "second-secret-token")
        .with_variable("GROUPCACHE_ADMIN_TOKEN", "third-secret-token")
        .with_file("/conf/secret", "fourth-secret-of-the-fleet\n");
    let load = |text: &str| Config::parse(text, "f", Path::new("/conf"), &environment);
    let config = load(text).unwrap().config;
    assert_eq!(config.fleet.as_ref().unwrap().secrets[0].expose(), "fourth-secret-of-the-fleet");
    let by_default = load(SHORTEST).unwrap().config;
    assert_eq!(by_default.admin.tokens, [Secret::new("third-secret-token")]);
    assert!(by_default.effective().contains("token: \"***\"  # default"));
    for config in [config, by_default] {
        let shown = config.effective() + &format!("{config:?}");
        assert!(!shown.contains("secret-") && shown.contains("***"), "{shown}");
    }
    // Nor in messages, under whatever key they stand.
    for wrong in ["admin: { token: short-secret- }", "fleet: { peers: x, secret: secret-short }"] {
        let shown = match load(&with_group(wrong)) {
            Ok(loaded) => format!("{:?}", loaded.warnings),
            Err(problems) => problems.to_string(),
        };
        assert!(!shown.contains("secret-"), "{shown}");
    }
    let path = load("groups: [{ name: a, directory: \"${file:secret}\" }]").unwrap_err().to_string();
    assert!(path.ends_with("found \"${file:secret}\", expected a folder"), "{path}");
    let misplaced = load(&with_group("threads: ${file:secret}")).unwrap_err().to_string();
    assert!(misplaced.contains("found \"${file:secret}\"") && !misplaced.contains("fourth"), "{misplaced}");
}

#[test]
fn unset_variables_may_be_allowed() {
    let text = "\
threads: ${THREADS}
admin: { address: \"${ADDRESS}\", allow: [\"${NETWORK}\"] }
listen:
  - address: ${LISTEN}
  - address: 127.0.0.1:8080
    tls: { cert: \"${CERT}\", key: \"${KEY}\" }
fleet:
  self: ${SELF}
  peers: [\"${PEER}\", \"http://10.0.0.5:1\"]
  secret: ${SECRET}
groups:
  - { name: \"${NAME}\", directory: \"${FOLDER}\", match: { path: \"${PATH_}\" } }
  - { name: \"${NAME}\", origin: { urls: \"${URL}\", ca: \"${file:ca}\" }, freshness: { default: \"${TTL}\" } }
";
    let mut environment = TestEnvironment::default();
    let strict = Config::parse(text, "f", Path::new(""), &environment).unwrap_err();
    assert_eq!(strict.len(), 16, "{strict}");
    environment.allow_unset = true;
    let loaded = match Config::parse(text, "f", Path::new(""), &environment) {
        Ok(loaded) => loaded,
        Err(problems) => panic!("{problems}"),
    };
    assert_eq!(loaded.warnings.len(), 16, "{:#?}", loaded.warnings);
    let wrong = Config::parse(&with_group("threads: ${A B}"), "f", Path::new(""), &environment);
    assert!(wrong.is_err(), "what is wrong in any environment stays a mistake");
}

#[test]
fn aliases_do_not_grow_without_end() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, of) in ["b", "c", "d", "e", "f", "g", "h", "i"].into_iter().zip(["a", "b", "c", "d", "e", "f", "g", "h"])
    {
        let aliases = vec![format!("*{of}"); 10].join(", ");
        text += &format!("{name}: &{name} [{aliases}]\n");
    }
    let found = mistakes(&text);
    assert!(found[0].contains("more than 100000 values"), "{found:?}");
    let nested: String = (1..200).map(|i| format!("a{i}: &a{i} [[[[[[*a{}]]]]]]\n", i - 1)).collect();
    let found = mistakes(&format!("a0: &a0 x\n{nested}"));
    assert!(found[0].contains("more than 32 levels"), "{found:?}");
    let found = mistakes("a: &a [*a]");
    assert!(found[0].contains("alias"), "{found:?}");
    let shared =
        config("groups:\n  - { name: a, origin: &o http://h }\n  - { name: b, match: { path: /b }, origin: *o }\n");
    assert_eq!(shared.groups[0].source, shared.groups[1].source);
}

#[test]
fn a_configuration_from_the_command_line() {
    let environment = TestEnvironment::default().with_folder("pictures");
    let of = |origin: &str, listen: Option<&str>, ttl: Option<u64>| {
        Config::for_origin_in(origin, listen, ttl.map(Duration::from_secs), &environment)
    };
    let config = of("http://127.0.0.1:9000/base", Some(":8080"), Some(60)).unwrap();
    assert_eq!(config.listen[0].address.to_string(), "[::]:8080");
    assert_eq!(config.groups[0].freshness.default, Duration::from_secs(60));
    assert_eq!(config.groups[0].matching, Matching { path: "/".into(), hosts: vec![] });
    let config = of("pictures", None, None).unwrap();
    assert_eq!(config.listen[0].address.to_string(), "127.0.0.1:8080");
    assert_eq!(config.groups[0].source, GroupSource::Directory("pictures".into()));
    for (origin, listen, expected) in [
        ("ftp://h", None, vec!["command line: --origin: found \"ftp://h\""]),
        ("none", None, vec!["command line: --origin: found \"none\", expected a folder"]),
        ("none", Some("8080"), vec!["command line: --listen: found \"8080\"", "command line: --origin"]),
    ] {
        let found: Vec<String> = of(origin, listen, None).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(&expected).all(|(found, expected)| found.starts_with(expected)), "{found:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read() {
    let environment = TestEnvironment::default().with_file("/latin.yaml", b"a: \xe9".to_vec());
    for (path, expected) in [("/none.yaml", "/none.yaml: cannot be read ("), ("/latin.yaml", "/latin.yaml: cannot be")]
    {
        let found = Config::load(Path::new(path), &environment).unwrap_err().to_string();
        assert!(found.starts_with(expected) && !found.contains('\n'), "{found}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,80}", at in 0usize..EVERYTHING.len(), length in 0usize..40) {
        let environment = TestEnvironment::default();
        let mut edited: String = EVERYTHING.chars().take(at).collect();
        edited.push_str(&text);
        edited.extend(EVERYTHING.chars().skip(at + length));
        for text in [text, edited] {
            match Config::parse(&text, "f", Path::new(""), &environment) {
                Ok(loaded) => prop_assert!(!loaded.config.groups.is_empty()),
                Err(problems) => {
                    prop_assert!(!problems.is_empty());
                    prop_assert!(problems.iter().all(|problem| problem.position.is_some()));
                    prop_assert_eq!(problems.to_string().lines().count(), problems.len());
                }
            }
        }
    }
}

// What ships with the program.

fn conf_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
}

/// The real files, with the variables of a test.
struct Shipped {
    variables: BTreeMap<&'static str, String>,
}

impl Environment for Shipped {
    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    fn read_file(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn is_folder(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn cores(&self) -> usize {
        4
    }

    fn open_files_max(&self) -> Option<u64> {
        None
    }
}

#[test]
fn every_example_works_as_shipped() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("cert.pem"), cert).unwrap();
    std::fs::write(path("key.pem"), key).unwrap();
    let environment = Shipped {
        variables: BTreeMap::from([
            ("GROUPCACHE_FLEET_SECRET", "a secret of the fleet".to_owned()),
            ("POD_IP", "10.0.0.4".to_owned()),
            ("TLS_CERT", path("cert.pem")),
            ("TLS_KEY", path("key.pem")),
        ]),
    };
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(conf_folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        match Config::load(&path, &environment) {
            Ok(loaded) => assert_eq!(loaded.warnings, [], "{}", path.display()),
            Err(problems) => panic!("{problems}"),
        }
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "fleet.yaml",
            "go-ring.yaml",
            "gossip.yaml",
            "kubernetes.yaml",
            "origin.yaml",
            "proxy.yaml",
            "rfc9111.yaml",
            "tls.yaml"
        ]
    );
}

#[test]
fn every_source_of_members() {
    let with = |peers: &str| {
        let secret = "secret: sixteen-bytes-or-more, self: 'http://10.0.0.4:8082'";
        format!("fleet: {{ {secret}, peers: {peers} }}\ngroups: [{{ name: a, origin: 'http://127.0.0.1:9' }}]\n")
    };
    for (peers, printed) in [
        (
            "{ dns: 'http://cache.internal:8082' }",
            "dns: http://cache.internal:8082\n    every: 5s  # default\n    nameservers: []  # default\n    forget: 10m  # default",
        ),
        (
            "{ dns: 'http://c:1', every: 1m, nameservers: [10.0.0.2, '[::1]:5353'] }",
            "every: 1m\n    nameservers: [10.0.0.2:53, \"[::1]:5353\"]",
        ),
        ("{ srv: _peer._tcp.Cache.internal. }", "srv: \"_peer._tcp.cache.internal.\"\n    every: 5s  # default"),
        ("{ gossip: 'a:1' }", "gossip: [a:1]\n    address: 0.0.0.0:7946  # default\n    forget: 10m  # default"),
        ("{ gossip: [], address: '[::]:0', forget: 0s }", "gossip: []\n    address: \"[::]:0\"\n    forget: 0s"),
    ] {
        let config = config(&with(peers));
        let effective = config.effective();
        assert!(effective.contains(printed), "{peers}: {effective}");
        let again = parse(&effective.replace("\"***\"", "sixteen-bytes-or-more")).unwrap().config;
        assert_eq!(again.fleet, config.fleet, "{peers}");
    }
}

#[test]
fn a_list_of_members_in_a_file_is_checked_with_the_rest() {
    let text = |secret: &str| {
        format!(
            "fleet: {{ {secret} peers: {{ file: peers.txt }} }}\ngroups: [{{ name: a, origin: 'http://127.0.0.1:9' }}]\n"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("peers.txt");
    let parse = |text: &str| Config::parse(text, "proxy.yaml", folder.path(), &SystemEnvironment::default());
    std::fs::write(&list, "# two\nhttp://127.0.0.1:1\nhttp://127.0.0.1:2 weight=3\n").unwrap();
    let fleet = parse(&text("")).unwrap().config.fleet.unwrap();
    assert_eq!(fleet.source, PeerSource::File(list.clone()));
    assert_eq!(fleet.peers.iter().map(|peer| peer.weight).collect::<Vec<_>>(), [1, 3]);
    std::fs::write(&list, "http://127.0.0.1:1\n\n  nonsense weight=3\n").unwrap();
    let problems = parse(&text("")).unwrap_err().to_string();
    assert!(problems.contains(&format!("{}:3:3: fleet.peers.file: found \"nonsense\"", list.display())), "{problems}");
    std::fs::write(&list, "http://10.0.0.4:1\n").unwrap();
    let problems = parse(&text("")).unwrap_err().to_string();
    assert!(problems.contains("fleet.secret: missing or empty"), "{problems}");
    assert!(parse(&text("secret: sixteen-bytes-or-more,")).is_ok());
}

/// The comments of `conf/proxy.yaml` show keys; with the comment signs removed they must be correct as well.
#[test]
fn commented_keys_of_the_main_example_are_correct() {
    let text = std::fs::read_to_string(conf_folder().join("proxy.yaml")).unwrap();
    let uncommented: String = text
        .lines()
        .map(|line| {
            let (indent, rest) = line.split_at(line.len() - line.trim_start().len());
            // "#key: value" is a key, "# text" is a remark.
            match rest.strip_prefix('#') {
                Some(key) if !key.starts_with([' ', '#']) && !key.is_empty() => format!("{indent}{key}\n"),
                _ => format!("{line}\n"),
            }
        })
        .collect();
    let environment =
        Shipped { variables: BTreeMap::from([("GROUPCACHE_FLEET_SECRET", "a secret of the fleet".to_owned())]) };
    match Config::parse(&uncommented, "proxy.yaml", &conf_folder(), &environment) {
        Ok(loaded) => assert_eq!(loaded.warnings, [], "{uncommented}"),
        Err(problems) => panic!("{problems}\nin\n{uncommented}"),
    }
    let shown = paths_of(&uncommented);
    let missing: Vec<_> = schema_paths().into_keys().filter(|path| !shown.contains(path)).collect();
    let left_out = [
        "defaults",
        "fleet.go",
        "fleet.peers.",
        "fleet.tls",
        "groups[].match.host",
        "groups[].origin",
        "groups[].query.",
        "listen[].tls",
    ];
    let allowed = |path: &String| left_out.iter().any(|key| path.starts_with(key));
    assert!(missing.iter().all(allowed), "{missing:#?}");
}

#[test]
fn the_shipped_schema_is_the_one_of_the_program() {
    let path = conf_folder().join("schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, Config::schema()).unwrap();
    }
    let shipped = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(shipped == Config::schema(), "conf/schema.json is not up to date: run the tests with UPDATE_SCHEMA=1");
}

/// All keys of the schema, as `groups[].freshness.max`, with their defaults.
fn schema_paths() -> BTreeMap<String, Option<Json>> {
    let root: Json = serde_json::from_str(&Config::schema()).unwrap();
    let mut paths = BTreeMap::new();
    walk_schema(&root, &root, "", &mut paths);
    paths
}

fn walk_schema(root: &Json, schema: &Json, path: &str, paths: &mut BTreeMap<String, Option<Json>>) {
    if let Some(reference) = schema["$ref"].as_str() {
        walk_schema(root, root.pointer(&reference[1..]).unwrap(), path, paths);
    }
    for form in ["anyOf", "oneOf", "allOf"].iter().filter_map(|word| schema[word].as_array()).flatten() {
        walk_schema(root, form, path, paths);
    }
    if schema["items"].is_object() {
        walk_schema(root, &schema["items"], &format!("{path}[]"), paths);
    }
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = yaml::join(path, key);
        assert!(schema["description"].is_string() || path.ends_with("freshness"), "{path} has no description");
        paths.insert(path.clone(), schema.get("default").filter(|default| !default.is_null()).cloned());
        walk_schema(root, schema, &path, paths);
    }
}

/// All keys of a file in the same form, without those that users choose.
fn paths_of(text: &str) -> BTreeSet<String> {
    let (root, malformed) = yaml::parse(text);
    assert!(malformed.is_empty(), "{malformed:?}");
    let mut paths = BTreeSet::new();
    root.unwrap().for_each_mut(&mut |node| {
        let path = without_numbers(&node.path);
        let chosen = [".to_origin.", ".to_client.", ".negative."].iter().any(|key| path.contains(key));
        if !chosen && !path.ends_with(']') && !path.is_empty() {
            paths.insert(path);
        }
    });
    paths
}

fn without_numbers(path: &str) -> String {
    let inside = |part: &str| part.split_once(']').map_or(part.to_owned(), |(_, rest)| format!("]{rest}"));
    path.split('[')
        .enumerate()
        .map(|(at, part)| if at == 0 { part.to_owned() } else { format!("[{}", inside(part)) })
        .collect()
}

#[test]
fn schema_and_reader_know_the_same_keys() {
    // Forms of one key: a list of pairs, a list of URLs.
    let same = |path: &String| path.replace("tls[].", "tls.");
    let described: BTreeSet<String> = schema_paths().keys().map(same).collect();
    let read: BTreeSet<String> = paths_of(EVERYTHING).iter().map(same).collect();
    let read: BTreeSet<String> =
        read.into_iter().chain(["defaults.query.only", "defaults.query.except"].map(str::to_owned)).collect();
    // Each of the other forms of the list of peers stands alone: `every_source_of_members` has them.
    let peers = ["file", "dns", "srv", "every", "nameservers", "gossip", "address", "forget"]
        .map(|key| format!("fleet.peers.{key}"));
    let read: BTreeSet<String> = read.into_iter().chain(peers.clone()).collect();
    let differ: Vec<_> = described.symmetric_difference(&read).collect();
    assert!(differ.is_empty(), "{differ:#?}");

    // Every map says which keys it knows when it meets one that is like none of them.
    let (root, _) = yaml::parse(EVERYTHING);
    let mut root = root.unwrap();
    root.for_each_mut(&mut |node| {
        let chosen = ["to_origin", "to_client", "negative"].iter().any(|key| node.path.ends_with(key));
        if let (Value::Map(entries), false) = (&mut node.value, chosen) {
            let path = yaml::join(&node.path, "zzzzzzzzzzzzzzzzzzzzzzzz");
            let unlike = Entry {
                key: "zzzzzzzzzzzzzzzzzzzzzzzz".into(),
                key_position: Position::START,
                node: super::node(&path, Value::Null),
            };
            entries.push(unlike);
        }
    });
    let environment = surroundings();
    let mut checker = checker("f", Path::new(""), &environment);
    check::config(&mut checker, &root);
    let mut known = BTreeSet::new();
    for problem in &checker.problems {
        let Some(keys) = problem.message.strip_prefix("unknown key, expected one of ") else { continue };
        let section = without_numbers(problem.key.trim_end_matches('z').trim_end_matches('.'));
        known.extend(keys.split(", ").map(|key| same(&yaml::join(&section, key))));
    }
    known.extend(["defaults.query.only", "defaults.query.except"].map(str::to_owned));
    known.extend(peers);
    let differ: Vec<_> = described.symmetric_difference(&known).collect();
    assert!(differ.is_empty(), "{differ:#?}");
}

#[test]
fn schema_and_reader_have_the_same_defaults() {
    let text = "\
fleet:
  peers: [http://127.0.0.1:1]
  ring: groupcache
groups: [{ name: all, origin: \"http://a\" }]
";
    let (root, _) = yaml::parse(&config(text).effective());
    let mut effective = BTreeMap::new();
    root.unwrap().for_each_mut(&mut |node| {
        effective.insert(without_numbers(&node.path), as_json(node));
    });
    let mut compared = 0;
    for (path, default) in schema_paths() {
        let (Some(default), false) = (
            default,
            path.starts_with("defaults")
                || path.starts_with("fleet.peers.")
                || path == "fleet.ring"
                || path == "listen",
        ) else {
            continue;
        };
        let shown = effective.get(&path).unwrap_or_else(|| panic!("{path} is not printed"));
        let canonical = match default {
            Json::String(text) if units::duration(&text).is_ok() => {
                units::show_duration(units::duration(&text).unwrap()).into()
            }
            Json::Number(_) | Json::Bool(_) => default.to_string().into(),
            default => default,
        };
        assert_eq!(*shown, canonical, "{path}");
        compared += 1;
    }
    assert!(compared > 45, "{compared}");
}

fn as_json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Scalar(scalar) => scalar.text.clone().into(),
        Value::List(list) => list.iter().map(as_json).collect(),
        Value::Map(map) => map.iter().map(|entry| (entry.key.clone(), as_json(&entry.node))).collect(),
    }
}
