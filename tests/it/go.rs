//! One ring of two nodes of golang/groupcache and two of ours, each asking the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use groupcache_proxy::peer::go::{go_can_carry, go_key, key_from_go};
use groupcache_proxy::ring::{REPLICAS_DEFAULT, Ring, RingKind, RingPeer};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use crate::kit::client::{self, Client};
use crate::kit::echo::{Echo, body_of};
use crate::kit::go::GoNode;
use crate::kit::node::{Node, Setup, free_addresses};
use crate::kit::poll;

/// Two Go nodes and two of ours, in the order of the ring: Go, ours, Go, ours.
struct Ring4 {
    go: [GoNode; 2],
    ours: [Node; 2],
    urls: Vec<String>,
    ring: Ring,
}

impl Ring4 {
    /// `None` where there is no Go.
    async fn start(origin: &str) -> Option<Ring4> {
        let addresses = free_addresses(4);
        let urls: Vec<String> = addresses.iter().map(|address| format!("http://{address}")).collect();
        let go = |index: usize| GoNode::start(addresses[index], &urls, "thumbnails", origin);
        let go = [go(0)?, go(2)?];
        let peers: Vec<String> = urls.iter().map(|url| format!("'{url}'")).collect();
        let group = format!(
            "[{{ name: thumbnails, match: {{ path: / }}, origin: '{origin}', freshness: {{ default: 600s }} }}]"
        );
        let starting = [1, 3].map(|index: usize| {
            let setup = Setup::groups(&group);
            let fleet =
                format!("fleet: {{ self: '{}', peers: [{}], ring: groupcache }}\n", urls[index], peers.join(", "));
            let setup = Setup { address: addresses[index], more: format!("{}{fleet}", setup.more), ..setup };
            std::thread::spawn(move || setup.start())
        });
        let ours = starting.map(|node| node.join().expect("a node"));
        for node in &ours {
            poll::until("each peer's protocol is known", async || {
                let stats = node.stats().await;
                let protocols: Vec<_> = stats["fleet"]["peers"].as_array().expect("peers").iter().collect();
                let speak = |protocol: &str| protocols.iter().filter(|peer| peer["protocol"] == protocol).count();
                (speak("go"), speak("native")) == (2, 1)
            })
            .await;
        }
        let ring_peers: Vec<RingPeer> = urls.iter().map(RingPeer::new).collect();
        let ring = Ring::new(RingKind::Groupcache, REPLICAS_DEFAULT, &ring_peers);
        Some(Ring4 { go, ours, urls, ring })
    }

    /// Whether a key's owner is one of ours.
    fn is_ours(&self, key: &[u8]) -> bool {
        self.ring.owner(key).expect("an owner") % 2 == 1
    }
}

fn encoded(bytes: &[u8]) -> String {
    percent_encode(bytes, NON_ALPHANUMERIC).to_string()
}

/// The target by which our clients ask for what Go calls `key`.
fn target_of(key: &[u8]) -> String {
    format!("/{}", String::from_utf8(key_from_go(key).to_vec()).expect("only ASCII"))
}

/// Keys as Go knows them: of each kind the same number.
fn keys(count: usize) -> Vec<Vec<u8>> {
    let kinds: [fn(usize) -> String; 10] = [
        |n| format!("{n}.jpg"),
        |n| format!("pictures/{n}/large.jpg"),
        |n| format!("with space/{n} .jpg"),
        |n| format!("empty//segment/{n}"),
        |n| format!("literal%2Fslash/{n}%20"),
        |n| format!("a+b/{n}+.jpg"),
        |n| format!("Bäume/Ü{n}/日本.jpg"),
        |n| format!("q/{n}?w=100&h={n}"),
        |n| format!("marks/!$&'()*,;=:@-._~/{n}"),
        |n| format!("strange/\"<>[]{{}}|\\^`#/{n}"),
    ];
    (0..count).map(|number| kinds[number % kinds.len()](number).into_bytes()).collect()
}

async fn ask_go(client: &mut Client, path: &str, key: &[u8]) -> client::Answer {
    client.get(&format!("/{path}?key={}", encoded(key))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_keys_have_one_owner_one_value_and_one_load() {
    let origin = Echo::start().await;
    let Some(ring) = Ring4::start(&origin.url()).await else { return };
    let ring = Arc::new(ring);
    let keys = Arc::new(keys(10_000));

    // Eight at once: each key is asked of one Go node and one of ours, every tenth of all four.
    let workers: Vec<_> = (0..8)
        .map(|worker| {
            let (ring, keys) = (ring.clone(), keys.clone());
            tokio::spawn(async move {
                let mut go = [ring.go[0].connect().await, ring.go[1].connect().await];
                let mut ours = [ring.ours[0].connect().await, ring.ours[1].connect().await];
                for (number, key) in keys.iter().enumerate().skip(worker).step_by(8) {
                    let shown = String::from_utf8_lossy(key).into_owned();
                    // By the target that belongs to the key; Go's own decoding of it is the key again.
                    let target = target_of(key);
                    assert_eq!(go_key(&target.as_bytes()[1..]).as_deref(), Some(&key[..]), "{shown}");
                    let expected = body_of(&target);

                    let owner = ask_go(&mut go[0], "owner", key).await.text();
                    let owner_index = ring.ring.owner(key).expect("an owner");
                    assert_eq!(owner, ring.urls[owner_index], "the owner of {shown}");

                    let all = number % 10 == 0;
                    let goes_first = number / 10 % 2 == 0;
                    // Between Go nodes a space becomes a plus: only the owner itself has the right value then.
                    let mangled = (key.contains(&b' ') && !ring.is_ours(key)).then_some(owner_index / 2);
                    for turn in 0..2 {
                        if (turn == 0) == goes_first {
                            let first = mangled.unwrap_or(number / 20 % 2);
                            for asked in go.iter_mut().skip(first).take(if all && mangled.is_none() { 2 } else { 1 }) {
                                let answer = ask_go(asked, "get", key).await;
                                assert_eq!(answer.status(), 200, "{shown}: {}", answer.text());
                                assert!(answer.body == expected, "{shown} from Go: {}", answer.text());
                            }
                        } else {
                            for asked in ours.iter_mut().skip(number / 40 % 2).take(if all { 2 } else { 1 }) {
                                let answer = asked.get(&target).await;
                                assert_eq!(answer.status(), 200, "{shown}: {}", answer.text());
                                assert!(answer.body == expected, "{shown} from us: {}", answer.text());
                            }
                        }
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("a worker");
    }

    // What Go's mux cannot carry and Go owns is loaded by each Go node for itself and once by ours; all else once.
    let loads = origin.loads_by_decoded_target();
    let mut wrong = Vec::new();
    let mut listed: BTreeMap<&str, usize> = BTreeMap::new();
    for key in &*keys {
        let canonical = key_from_go(key);
        let once = ring.is_ours(key) || go_can_carry(&canonical);
        let count = loads.get(&[b"/", &key[..]].concat()).copied().unwrap_or_default();
        if (once && count != 1) || !(1..=3).contains(&count) {
            wrong.push(format!("{}: {count} loads", String::from_utf8_lossy(key)));
        }
        if !once {
            let kind = if key.windows(2).any(|pair| pair == b"//") { "an empty segment" } else { "something else" };
            *listed.entry(kind).or_default() += 1;
        }
    }
    assert!(wrong.is_empty(), "{} keys: {:?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    // The list of what Go's mux cannot carry: about half of a tenth of the keys.
    assert_eq!(listed.keys().copied().collect::<Vec<_>>(), ["an empty segment"]);
    assert!((200..=800).contains(&listed["an empty segment"]), "{listed:?}");

    // Our nodes and the library agree with what they tell.
    for key in keys.iter().step_by(97) {
        let question = format!("/_groupcache/explain?path={}", encoded(target_of(key).as_bytes()));
        for node in &ring.ours {
            let explained = client::get(node.admin, &question).await.json();
            assert_eq!(explained["owner"], ring.urls[ring.ring.owner(key).expect("an owner")], "{explained}");
        }
    }
}

/// Several of our targets can be one key of Go's. Only the canonical one is ever asked of a Go node; the others are answered
/// by ours alone, each by the bytes of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_in_another_spelling_are_answered_and_never_asked_of_go() {
    let origin = Echo::start().await;
    let Some(ring) = Ring4::start(&origin.url()).await else { return };
    let kinds: [fn(usize) -> String; 6] = [
        |n| format!("/folder%2Ffile/{n}"),
        |n| format!("/plain%41/{n}"),
        |n| format!("/B%c3%a4ume/{n}"),
        |n| format!("/plus%2B/{n}"),
        |n| format!("/%2Fleading/{n}"),
        |n| format!("/empty//segment%20/{n}"),
    ];
    let mut listed: HashMap<&str, usize> = HashMap::new();
    for number in 0..120 {
        let target = kinds[number % 6](number);
        let key = go_key(&target.as_bytes()[1..]).expect("a key");
        assert!(!go_can_carry(&target.as_bytes()[1..]), "{target}");
        for node in &ring.ours {
            let answer = node.get(&target).await;
            assert!((answer.status(), &answer.body) == (200, &body_of(&target)), "{target}: {}", answer.text());
        }
        assert_eq!(origin.requests(&format!("GET {target}")), 1, "{target}: once by ours, in this very spelling");
        *listed.entry(if ring.is_ours(&key) { "ours" } else { "of Go" }).or_default() += 1;
    }
    assert!(listed.len() == 2, "both kinds of owners: {listed:?}");
    for go in &ring.go {
        assert_eq!(go.connect().await.get("/loads").await.text(), "0", "a Go node was asked");
    }
}

/// What a Go value cannot be is an error for Go, and no wrong value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_value_is_an_error_for_go_and_itself_for_our_clients() {
    use crate::kit::origin::{Origin, Reply};
    let origin = Origin::start().await;
    let Some(ring) = Ring4::start(&origin.url()).await else { return };
    let ours = (0..1000)
        .map(|number| format!("key/{number}"))
        .filter(|key| ring.is_ours(key.as_bytes()))
        .take(5)
        .collect::<Vec<_>>();
    let replies = [
        Reply::status(404, "gone\n"),
        Reply::ok("mine").header("Cache-Control", "private"),
        Reply::status(500, "sorry\n"),
        Reply::ok("coded").header("Content-Encoding", "gzip").header("Cache-Control", "max-age=60"),
        Reply::status(302, "").header("Location", "/elsewhere").header("Cache-Control", "max-age=60"),
    ];
    for (key, reply) in ours.iter().zip(&replies) {
        origin.on(&format!("/{key}"), reply.clone());
    }
    for (key, status) in ours.iter().zip([404, 200, 500, 200, 302]) {
        for node in &ring.ours {
            assert_eq!(node.get(&format!("/{key}")).await.status(), status, "{key}");
        }
        let answer = ask_go(&mut ring.go[0].connect().await, "get", key.as_bytes()).await;
        // golang/groupcache loads for itself when its peer fails; what its own loader makes of the answer is its own.
        let by_itself = if key == &ours[1] { 200 } else { 502 };
        assert_eq!(answer.status(), by_itself, "{key}: {}", answer.text());
    }
}
