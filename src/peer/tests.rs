//! Client and server together, over pipes in memory and over loopback.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::fields::Fields;
use crate::freshness::{HopFreshness, LifetimeSource, StalePermission};
use crate::peer::client::{ClientSettings, NativePeer};
use crate::peer::handshake::Secrets;
use crate::peer::memory::{Link, MemoryDial};
use crate::peer::server::{PeerServer, ServerSettings};
use crate::peer::{AskContext, LocalNode, Owner, Peer, PeerState};
use crate::purge::{Notice, Position, Reply, Tags, Vector};
use crate::source::{
    Aside, Ask, BodyStream, EntryId, FetchError, Fetched, Fits, Hop, Interim, InterimSink, Method, ReadyBody, Source,
    Whole,
};

/// An owner whose answers are written down by key; what is not written down is a panic.
#[derive(Default)]
struct Script {
    answers: Mutex<HashMap<&'static str, Answer>>,
    asked: Mutex<Vec<(Ask, AskContext)>>,
    dropped: Arc<AtomicU64>,
    /// What is heard before the next answer.
    interims: Mutex<Vec<Interim>>,
}

enum Answer {
    Body(Vec<Bytes>),
    Stream(mpsc::Receiver<Result<Bytes, FetchError>>),
    Error(FetchError),
    Never,
    After(Duration, Vec<Bytes>),
    Exactly(Box<dyn Fn() -> Fetched + Send>),
}

impl Script {
    fn set(&self, key: &'static str, answer: Answer) {
        self.answers.lock().insert(key, answer);
    }
}

fn fetched(body: impl BodyStream + 'static) -> Fetched {
    let fields = Fields::from_pairs([("Content-Type", "image/png"), ("ETag", "\"1\"")]).unwrap();
    Fetched {
        status: 200,
        fields,
        content_length: None,
        close_delimited: false,
        hop: Some(hop()),
        body: Box::new(body),
    }
}

fn hop() -> Hop {
    Hop {
        freshness: HopFreshness {
            age_milliseconds: 1500,
            remaining_milliseconds: -7,
            stale_while_revalidate: None,
            stale_if_error: Some(3),
            source: LifetimeSource::MaxAge,
            stale: StalePermission::OnlyByResponse,
            no_cache: true,
            immutable: false,
        },
        shareable: true,
        storable: true,
        sent: Fields::from_pairs([("Accept-Encoding", "gzip")]).unwrap(),
        entry: EntryId { incarnation: u64::MAX, fill: 3 },
        body: EntryId { incarnation: 7, fill: 2 },
        weak_date: true,
        hit: true,
        stale: true,
        revalidated: true,
        minute_rate: 90_000,
        replicas: 3,
        not_modified: false,
        tags: Tags::new([&b"t"[..]]),
        stamp: Some(Vector::new([Position { incarnation: 1, sequence: 2 }])),
    }
}

struct Counted(Arc<AtomicU64>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct ChannelBody(mpsc::Receiver<Result<Bytes, FetchError>>, #[allow(dead_code)] Counted);

#[async_trait]
impl BodyStream for ChannelBody {
    async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        self.0.recv().await.transpose()
    }
}

#[async_trait]
impl Owner for Script {
    async fn get_as_owner(
        &self,
        ask: Ask,
        context: AskContext,
        interims: &dyn InterimSink,
    ) -> Result<Fetched, FetchError> {
        self.interims.lock().drain(..).for_each(|interim| interims.hear(interim));
        let key = String::from_utf8(ask.key.to_vec()).unwrap();
        self.asked.lock().push((ask, context));
        let counted = Counted(self.dropped.clone());
        let answer = {
            let mut answers = self.answers.lock();
            match answers.get_mut(key.as_str()) {
                Some(Answer::Body(chunks)) => Answer::Body(chunks.clone()),
                Some(Answer::Error(error)) => Answer::Error(error.clone()),
                Some(Answer::Never) => Answer::Never,
                Some(Answer::After(delay, chunks)) => Answer::After(*delay, chunks.clone()),
                Some(Answer::Exactly(make)) => return Ok(make()),
                Some(Answer::Stream(_)) => answers.remove(key.as_str()).unwrap(),
                None => panic!("no answer for {key}"),
            }
        };
        match answer {
            Answer::Body(chunks) => Ok(fetched(ReadyBody::new(chunks))),
            Answer::Stream(receiver) => Ok(fetched(ChannelBody(receiver, counted))),
            Answer::Error(error) => Err(error),
            Answer::Never => std::future::pending().await,
            Answer::After(delay, chunks) => {
                tokio::time::sleep(delay).await;
                Ok(fetched(ReadyBody::new(chunks)))
            }
            Answer::Exactly(_) => unreachable!(),
        }
    }

    fn at_once(&self, ask: &Ask, _: &AskContext, _: Fits<'_>) -> Option<Whole> {
        match self.answers.lock().get("ready") {
            Some(Answer::Body(chunks)) if ask.key == "ready" => {
                Some(Whole { status: 200, fields: Fields::empty(), hop: hop(), body: chunks[0].clone() })
            }
            _ => None,
        }
    }

    async fn peek(&self, ask: Ask, _context: AskContext) -> Result<Option<Fetched>, FetchError> {
        let hit = self.answers.lock().contains_key(std::str::from_utf8(&ask.key).unwrap());
        Ok(hit.then(|| fetched(ReadyBody::new([Bytes::from_static(b"peeked")]))))
    }

    async fn purge(&self, notice: Notice) -> Result<Reply, FetchError> {
        Ok(Reply { understood: true, applied: notice.base, ..Reply::default() })
    }

    async fn offered(&self, ask: Ask, context: AskContext) -> Result<(), FetchError> {
        self.asked.lock().push((ask, context));
        Err(FetchError::unreachable("no place"))
    }
}

struct Pair {
    script: Arc<Script>,
    server: Arc<PeerServer>,
    server_node: Arc<LocalNode>,
    peer: Arc<NativePeer>,
    link: Link,
    shutdown: watch::Sender<bool>,
}

fn pair() -> Pair {
    pair_with(Secrets::new(["secret"]), Secrets::new(["secret"]), ClientSettings::default(), ServerSettings::default())
}

fn pair_with(asker: Secrets, owner: Secrets, client: ClientSettings, server: ServerSettings) -> Pair {
    let script = Arc::new(Script::default());
    let server_node = LocalNode::new("0.1.0", 2, owner);
    server_node.set_ring_id(22);
    let client_node = LocalNode::new("0.1.0", 1, asker);
    client_node.set_ring_id(11);
    let server = PeerServer::new(server_node.clone(), script.clone(), server);
    let shutdown = watch::Sender::new(false);
    let link = Link::default();
    let dial = MemoryDial::new(server.clone(), link.clone(), shutdown.subscribe());
    let peer = Arc::new(NativePeer::new(client_node, Box::new(dial), client));
    Pair { script, server, server_node, peer, link, shutdown }
}

fn ask(key: &'static str) -> Ask {
    Ask {
        group: "thumbnails".into(),
        key: Bytes::from_static(key.as_bytes()),
        target: format!("/{key}").into(),
        host: None,
        method: Method::Get,
        fields: Fields::from_pairs([("Accept", "image/*")]).unwrap(),
    }
}

async fn read(mut fetched: Fetched) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = fetched.body.chunk().await? {
        assert!(!chunk.is_empty());
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[tokio::test(start_paused = true)]
async fn a_question_gets_its_answer() {
    let pair = pair();
    pair.script.set("a.png", Answer::Body(vec![Bytes::from_static(b"pic"), Bytes::from_static(b"ture")]));
    let have = EntryId { incarnation: 2, fill: 9 };
    let answer = pair.peer.load(&ask("a.png"), have).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.fields.get_str("content-type"), Some("image/png"));
    assert_eq!(answer.hop, Some(hop()));
    assert_eq!(read(answer).await.unwrap(), b"picture");
    let (asked, context) = pair.script.asked.lock()[0].clone();
    assert_eq!((&asked.key[..], &asked.target[..], &*asked.group), (&b"a.png"[..], &b"/a.png"[..], "thumbnails"));
    assert_eq!(asked.fields.get_str("accept"), Some("image/*"));
    assert_eq!(context, AskContext { ring_id: 11, asker: 1, have });
    let status = pair.peer.status();
    assert_eq!((status.state, status.protocol, status.ring_id), (PeerState::Up, "native", Some(22)));
    assert_eq!((status.requests, status.errors, status.buffered_bytes), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_body_streams_before_it_ends() {
    let pair = pair();
    let (body, receiver) = mpsc::channel(1);
    pair.script.set("a", Answer::Stream(receiver));
    let mut answer = pair.peer.fetch(&ask("a")).await.unwrap();
    body.send(Ok(Bytes::from_static(b"first"))).await.unwrap();
    assert_eq!(answer.body.chunk().await.unwrap().unwrap(), "first");
    body.send(Ok(Bytes::from_static(b"second"))).await.unwrap();
    assert_eq!(answer.body.chunk().await.unwrap().unwrap(), "second");
    drop(body);
    assert_eq!(answer.body.chunk().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn failures_keep_their_kind_over_the_hop() {
    let pair = pair();
    let (status, reason) = (504, "the origin is silent");
    for (key, sent, seen) in [
        ("a", FetchError::refused(status, reason), FetchError::refused(status, reason)),
        ("b", FetchError::unreachable("leaving"), FetchError::unreachable("leaving")),
        ("c", FetchError::broken("early"), FetchError::refused(502, "early")),
        ("d", FetchError::refused(200, "nonsense"), FetchError::refused(502, "nonsense")),
        ("e", FetchError::refused(503, "two\r\nlines \u{1f600}"), FetchError::refused(503, "two??lines ?")),
    ] {
        pair.script.set(key, Answer::Error(sent));
        assert_eq!(pair.peer.fetch(&ask(key)).await.err(), Some(seen), "{key}");
    }
    let (body, receiver) = mpsc::channel(4);
    pair.script.set("f", Answer::Stream(receiver));
    body.try_send(Ok(Bytes::from_static(b"half"))).unwrap();
    body.try_send(Err(FetchError::broken("reset"))).unwrap();
    let mut answer = pair.peer.fetch(&ask("f")).await.unwrap();
    assert_eq!(answer.body.chunk().await.unwrap().unwrap(), "half");
    assert_eq!(answer.body.chunk().await, Err(FetchError::broken("broken: reset")));
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_lies_about_a_length_breaks_the_body() {
    let pair = pair();
    for (key, declared, body) in [("short", 10, "half"), ("long", 2, "half")] {
        let make = move || Fetched {
            content_length: Some(declared),
            ..fetched(ReadyBody::new([Bytes::from_static(body.as_bytes())]))
        };
        pair.script.set(key, Answer::Exactly(Box::new(make)));
        let answer = pair.peer.fetch(&ask(key)).await.unwrap();
        assert!(matches!(read(answer).await, Err(FetchError::Broken(_))), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_body_ends_at_its_head() {
    let pair = pair();
    let head = || Fetched { content_length: Some(7), ..fetched(ReadyBody::default()) };
    pair.script.set("a", Answer::Exactly(Box::new(head)));
    let answer = pair.peer.fetch(&Ask { method: Method::Head, ..ask("a") }).await.unwrap();
    assert_eq!(answer.content_length, Some(7));
    assert_eq!(read(answer).await.unwrap(), b"");
    let confirmed = move || Fetched { hop: Some(Hop { not_modified: true, ..hop() }), ..head() };
    pair.script.set("b", Answer::Exactly(Box::new(confirmed)));
    let answer = pair.peer.load(&ask("b"), EntryId { incarnation: 2, fill: 1 }).await.unwrap();
    assert!(answer.hop.as_ref().unwrap().not_modified);
    assert_eq!(read(answer).await.unwrap(), b"");
}

#[tokio::test(start_paused = true)]
async fn a_peek_finds_or_does_not() {
    let pair = pair();
    assert!(pair.peer.peek(&ask("a"), EntryId::default()).await.unwrap().is_none());
    pair.script.set("a", Answer::Never);
    let found = pair.peer.peek(&ask("a"), EntryId::default()).await.unwrap().unwrap();
    assert_eq!(read(found).await.unwrap(), b"peeked");
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_told_of_purges_and_offered_an_answer() {
    let pair = pair();
    let base = Vector::new([Position { incarnation: 3, sequence: 4 }]);
    let reply = pair.peer.purge(&Notice { base: base.clone(), ..Notice::default() }).await.unwrap();
    assert_eq!((reply.understood, reply.applied), (true, base));
    assert_eq!(pair.peer.offer(&ask("b")).await, Err(FetchError::unreachable("no place")));
    let asked = pair.script.asked.lock();
    let asked: Vec<_> = asked.iter().map(|(ask, context)| (&ask.key[..], context.asker)).collect();
    assert_eq!(asked, [(&b"b"[..], 1)]);
}

/// Who sends an unsafe request waits for this.
#[tokio::test(start_paused = true)]
async fn a_peer_that_cannot_be_told_of_purges_is_not_waited_for() {
    let pair = pair();
    pair.link.cut();
    let started = tokio::time::Instant::now();
    assert!(matches!(pair.peer.purge(&Notice::default()).await, Err(FetchError::Unreachable(_))));
    assert!(started.elapsed() <= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_questions_share_one_connection() {
    let pair = pair();
    pair.script.set("slow", Answer::After(Duration::from_secs(30), vec![Bytes::from_static(b"late")]));
    pair.script.set("quick", Answer::Body((0..5).map(|_| Bytes::from(vec![7; 20_000])).collect()));
    let mut readers = tokio::task::JoinSet::new();
    for index in 0..1000 {
        let peer = pair.peer.clone();
        readers.spawn(async move {
            let key = ["slow", "quick"][index % 2];
            read(peer.fetch(&ask(key)).await.unwrap()).await.unwrap().len()
        });
    }
    let lengths = readers.join_all().await;
    assert_eq!(lengths.iter().filter(|&&length| length == 100_000).count(), 500);
    assert_eq!(lengths.iter().filter(|&&length| length == 4).count(), 500);
    assert_eq!(pair.server.counters().connections.value(), 1);
    assert_eq!(pair.peer.status().buffered_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_origin_is_not_a_silent_owner() {
    let pair = pair();
    pair.script.set("a", Answer::After(Duration::from_secs(300), vec![Bytes::from_static(b"at last")]));
    let asked = tokio::time::Instant::now();
    assert_eq!(read(pair.peer.fetch(&ask("a")).await.unwrap()).await.unwrap(), b"at last");
    assert!(asked.elapsed() >= Duration::from_secs(300));
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_cancels() {
    let pair = pair();
    pair.script.set("quick", Answer::Body(vec![Bytes::from_static(b"x")]));
    pair.script.set("never", Answer::Never);
    let waited = tokio::time::timeout(Duration::from_secs(5), pair.peer.fetch(&ask("never"))).await;
    assert!(waited.is_err());
    // Frames keep their order, so that an answered question proves that the cancellation arrived.
    pair.peer.fetch(&ask("quick")).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(pair.script.dropped.load(Ordering::SeqCst), 1 + 1, "the endless one and the quick one");
    assert_eq!(pair.server.counters().cancelled.value(), 1);

    let (body, receiver) = mpsc::channel(1);
    pair.script.set("stream", Answer::Stream(receiver));
    let answer = pair.peer.fetch(&ask("stream")).await.unwrap();
    drop(answer);
    body.closed().await;
    assert_eq!(pair.server.counters().cancelled.value(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_slows_only_itself_and_costs_one_window() {
    a_slow_reader_costs(None, ClientSettings::default().window_bytes.into()).await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_less_ahead_gets_no_more() {
    a_slow_reader_costs(Some(40_000), 40_000).await;
}

async fn a_slow_reader_costs(ahead_bytes_max: Option<u32>, window: u64) {
    let pair = pair();
    let (body, receiver) = mpsc::channel(1);
    pair.script.set("slow", Answer::Stream(receiver));
    pair.script.set("quick", Answer::Body(vec![Bytes::from(vec![1; 1_000_000])]));
    let aside = Aside { ahead_bytes_max, ..Aside::default() };
    let mut slow = pair.peer.fetch_with(&ask("slow"), aside).await.unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let sender = tokio::spawn(async move {
        for index in 0..1000u32 {
            body.send(Ok(Bytes::from(vec![index as u8; 10_000]))).await.unwrap();
            counter.fetch_add(10_000, Ordering::SeqCst);
        }
    });
    for _ in 0..10 {
        assert_eq!(read(pair.peer.fetch(&ask("quick")).await.unwrap()).await.unwrap().len(), 1_000_000);
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(pair.peer.status().buffered_bytes, window);
    assert!(sent.load(Ordering::SeqCst) <= window + 3 * 10_000, "the owner stops at the window");
    let mut taken = Vec::new();
    while let Some(chunk) = slow.body.chunk().await.unwrap() {
        taken.extend_from_slice(&chunk);
        assert!(pair.peer.status().buffered_bytes <= window);
    }
    sender.await.unwrap();
    assert_eq!(taken.len(), 10_000_000);
    assert!(taken.chunks(10_000).enumerate().all(|(index, chunk)| chunk.iter().all(|&byte| byte == index as u8)));
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_its_question_alone() {
    let pair = pair();
    pair.script.set("quick", Answer::Body(vec![Bytes::from_static(b"x")]));
    pair.script.set("slow", Answer::After(Duration::from_secs(9), vec![Bytes::from_static(b"y")]));
    struct Panics(u32);
    #[async_trait]
    impl BodyStream for Panics {
        async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
            self.0 += 1;
            tokio::task::yield_now().await;
            if self.0 > 1 {
                panic!("scripted panic in a body");
            }
            Ok(Some(Bytes::from_static(b"half")))
        }
    }
    pair.script.set("late", Answer::Exactly(Box::new(|| fetched(Panics(0)))));
    let slow = tokio::spawn({
        let peer = pair.peer.clone();
        async move { read(peer.fetch(&ask("slow")).await.unwrap()).await }
    });
    assert_eq!(pair.peer.fetch(&ask("unwritten")).await.err(), Some(FetchError::refused(502, "the owner failed")));
    let late = pair.peer.fetch(&ask("late")).await.unwrap();
    assert_eq!(read(late).await, Err(FetchError::broken("the owner failed")));
    assert_eq!(read(pair.peer.fetch(&ask("quick")).await.unwrap()).await.unwrap(), b"x");
    assert_eq!(slow.await.unwrap().unwrap(), b"y");
    assert_eq!(pair.server.counters().panics.value(), 2);
    assert_eq!(pair.server.counters().connections.value(), 1);
}

#[tokio::test(start_paused = true)]
async fn too_many_questions_are_refused_at_once() {
    let server = ServerSettings { questions_max: 2, ..ServerSettings::default() };
    let secrets = || Secrets::new(["secret"]);
    let pair = pair_with(secrets(), secrets(), ClientSettings::default(), server);
    pair.script.set("never", Answer::Never);
    let (never, key) = (pair.peer.clone(), ask("never"));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (peer, key) = (never.clone(), key.clone());
        waiting.spawn(async move { peer.fetch(&key).await.err() });
    }
    while pair.script.asked.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    let refused = FetchError::refused(503, "too many requests between peers");
    assert_eq!(pair.peer.fetch(&key).await.err(), Some(refused));
    assert_eq!(pair.server.counters().rejects.value("too_many_questions"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_draining_owner_finishes_and_takes_nothing_new() {
    let pair = pair();
    pair.script.set("slow", Answer::After(Duration::from_secs(5), vec![Bytes::from_static(b"done")]));
    pair.script.set("quick", Answer::Body(vec![Bytes::from_static(b"x")]));
    pair.peer.fetch(&ask("quick")).await.unwrap();
    let slow = tokio::spawn({
        let peer = pair.peer.clone();
        async move { read(peer.fetch(&ask("slow")).await.unwrap()).await }
    });
    while pair.script.asked.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    pair.server_node.set_draining(true);
    while pair.peer.status().state != PeerState::Draining {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(pair.peer.fetch(&ask("quick")).await.err(), Some(FetchError::unreachable("draining")));
    pair.server_node.set_draining(false);
    while pair.peer.status().state != PeerState::Up {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    pair.peer.fetch(&ask("quick")).await.unwrap();
    // The node stops: what is open is finished, then the connection ends, and no new one is answered.
    pair.shutdown.send_replace(true);
    assert_eq!(slow.await.unwrap().unwrap(), b"done");
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(matches!(pair.peer.fetch(&ask("quick")).await, Err(FetchError::Unreachable(_))));
}

#[tokio::test(start_paused = true)]
async fn only_who_said_goodbye_and_did_not_come_back_has_left() {
    let pair = pair();
    pair.script.set("quick", Answer::Body(vec![Bytes::from_static(b"x")]));
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    };
    pair.peer.fetch(&ask("quick")).await.unwrap();
    pair.server_node.set_draining(true);
    until("it drains", &|| pair.peer.status().state == PeerState::Draining).await;
    assert!(!pair.peer.has_left(), "who drains still serves");
    pair.link.cut();
    until("it is down", &|| matches!(pair.peer.status().state, PeerState::Down(_))).await;
    assert!(!pair.peer.has_left(), "a connection that breaks says nothing, whatever was said before");
    pair.link.mend();
    until("it is back", &|| pair.peer.status().state == PeerState::Draining).await;
    pair.shutdown.send_replace(true);
    until("it has left", &|| pair.peer.has_left()).await;
    pair.shutdown.send_replace(false);
    until("it is back", &|| pair.peer.status().state == PeerState::Draining && !pair.peer.has_left()).await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_link_breaks_bodies_and_frees_those_who_wait() {
    let pair = pair();
    let (body, receiver) = mpsc::channel(1);
    pair.script.set("stream", Answer::Stream(receiver));
    pair.script.set("never", Answer::Never);
    pair.script.set("quick", Answer::Body(vec![Bytes::from_static(b"x")]));
    let mut stream = pair.peer.fetch(&ask("stream")).await.unwrap();
    body.send(Ok(Bytes::from_static(b"half"))).await.unwrap();
    let waiting = tokio::spawn({
        let peer = pair.peer.clone();
        async move { peer.fetch(&ask("never")).await.err() }
    });
    while pair.script.asked.lock().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(stream.body.chunk().await.unwrap().unwrap(), "half");
    pair.link.cut();
    assert!(matches!(waiting.await.unwrap(), Some(FetchError::Unreachable(_))));
    assert!(matches!(stream.body.chunk().await, Err(FetchError::Broken(_))));
    body.closed().await;
    // While it is down nobody waits; when the link is whole again, the peer is back within a second.
    let asked = tokio::time::Instant::now();
    while pair.peer.status().state == PeerState::Up {
        tokio::task::yield_now().await;
    }
    assert!(matches!(pair.peer.fetch(&ask("quick")).await, Err(FetchError::Unreachable(_))));
    assert!(asked.elapsed() < Duration::from_millis(1));
    assert!(matches!(pair.peer.status().state, PeerState::Down(_)));
    tokio::time::sleep(Duration::from_secs(10)).await;
    pair.link.mend();
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert_eq!(read(pair.peer.fetch(&ask("quick")).await.unwrap()).await.unwrap(), b"x");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_starts_late_is_found_within_a_quarter_of_a_second() {
    let pair = pair();
    pair.script.set("quick", Answer::Body(vec![Bytes::from_static(b"x")]));
    pair.link.cut();
    assert!(matches!(pair.peer.fetch(&ask("quick")).await, Err(FetchError::Unreachable(_))));
    assert_eq!(pair.peer.status().state, PeerState::Up, "never reached counts as up");
    tokio::time::sleep(Duration::from_secs(33)).await;
    pair.link.mend();
    tokio::time::sleep(Duration::from_millis(250)).await;
    pair.peer.fetch(&ask("quick")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn secrets_rotate_and_strangers_are_refused() {
    let with = |asker: &[&str], owner: &[&str]| {
        pair_with(Secrets::new(asker), Secrets::new(owner), ClientSettings::default(), ServerSettings::default())
    };
    for (asker, owner, works) in [
        (&["a"][..], &["a"][..], true),
        (&["a", "b"], &["b", "a"], true),
        (&["a"], &["a", "b"], true),
        (&["a", "b"], &["a"], true),
        (&["a"], &["b"], false),
        (&["b", "a"], &["a"], false),
        (&["a"], &["b", "a"], false),
        (&[], &[], true),
        (&[], &["a"], false),
        (&["a"], &[], false),
    ] {
        let pair = with(asker, owner);
        pair.script.set("quick", Answer::Body(vec![Bytes::from_static(b"x")]));
        let answer = pair.peer.fetch(&ask("quick")).await;
        assert_eq!(answer.is_ok(), works, "{asker:?} {owner:?}");
        if !works {
            assert_eq!(answer.err(), Some(FetchError::unreachable("the fleet secret differs")));
            assert!(matches!(pair.peer.status().state, PeerState::Refused(_)));
            assert!(pair.script.asked.lock().is_empty());
            let rejects = &pair.server.counters().rejects;
            assert_eq!(rejects.value("handshake_secret") + rejects.value("handshake_connection"), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn versions_are_negotiated_or_named() {
    use crate::peer::protocol::Versions;
    for (ours, theirs, works) in
        [((1, 1), (1, 3), true), ((1, 4), (1, 1), true), ((2, 3), (1, 1), false), ((1, 1), (2, 2), false)]
    {
        let versions = |(min, max)| Versions { min, max };
        let client = ClientSettings { versions: versions(ours), ..ClientSettings::default() };
        let server = ServerSettings { versions: versions(theirs), ..ServerSettings::default() };
        let pair = pair_with(Secrets::new(["s"]), Secrets::new(["s"]), client, server);
        pair.script.set("quick", Answer::Body(vec![Bytes::from_static(b"x")]));
        match pair.peer.fetch(&ask("quick")).await {
            Ok(_) => assert!(works),
            Err(error) => {
                assert!(!works);
                let (ours, theirs) = (versions(ours), versions(theirs));
                let reason = format!("no common protocol version: this node speaks {ours}, the peer {theirs}");
                assert_eq!(error, FetchError::unreachable(reason));
                assert_eq!(pair.server.counters().rejects.value("handshake_version"), 1);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_removed_finishes_what_is_read() {
    let Pair { script, peer, shutdown: _shutdown, .. } = pair();
    let (body, receiver) = mpsc::channel(1);
    script.set("stream", Answer::Stream(receiver));
    let mut answer = peer.fetch(&ask("stream")).await.unwrap();
    drop(peer);
    tokio::time::sleep(Duration::from_secs(5)).await;
    body.send(Ok(Bytes::from_static(b"still"))).await.unwrap();
    assert_eq!(answer.body.chunk().await.unwrap().unwrap(), "still");
    drop(body);
    assert_eq!(answer.body.chunk().await.unwrap(), None);
}

#[path = "wire_tests.rs"]
mod wire_tests;

#[path = "begin_tests.rs"]
mod begin_tests;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_questions_over_loopback() {
    use crate::peer::dial::{PeerAddress, TcpDial, connector};
    let Pair { script, server, shutdown, .. } = pair();
    let body: Vec<u8> = (0..1_500_000u32).map(|index| (index % 251) as u8).collect();
    script.set("large", Answer::Body(body.chunks(99_999).map(Bytes::copy_from_slice).collect()));
    script.set("small", Answer::Body(vec![Bytes::from(vec![1; 4096])]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    // A name, so that resolving is part of the way.
    let url = format!("http://localhost:{}", listener.local_addr().unwrap().port());
    let accepting = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = Box::new(pingora::protocols::l4::stream::Stream::from(stream));
            let (server, shutdown) = (server.clone(), shutdown.subscribe());
            tokio::spawn(async move { server.accept(stream, shutdown).await });
        }
    });
    for connections in [1, 3] {
        let node = LocalNode::new("0.1.0", 1, Secrets::new(["secret"]));
        let dial = TcpDial::new(PeerAddress::parse(&url).unwrap(), connector(None, None));
        let settings = ClientSettings { connections, ..ClientSettings::default() };
        let peer = Arc::new(NativePeer::new(node, Box::new(dial), settings));
        let mut readers = tokio::task::JoinSet::new();
        for index in 0..1000 {
            let peer = peer.clone();
            readers.spawn(async move {
                let key = if index % 100 == 0 { "large" } else { "small" };
                (key, read(peer.fetch(&ask(key)).await.unwrap()).await.unwrap())
            });
        }
        for (key, read) in readers.join_all().await {
            assert!(if key == "large" { read == body } else { read == [1; 4096] });
        }
        assert_eq!(peer.status().buffered_bytes, 0);
    }
    accepting.abort();
    let nowhere = PeerAddress::parse("http://no-such-name.invalid:1").unwrap();
    let dial = TcpDial::new(nowhere, connector(None, None));
    let node = LocalNode::new("0.1.0", 1, Secrets::new(["secret"]));
    let peer = NativePeer::new(node, Box::new(dial), ClientSettings::default());
    assert!(matches!(peer.fetch(&ask("small")).await, Err(FetchError::Unreachable(_))));
}

/// Keeps what it hears.
#[derive(Default)]
struct Ear(Mutex<Vec<Interim>>);

impl InterimSink for Ear {
    fn hear(&self, interim: Interim) {
        self.0.lock().push(interim);
    }
}

#[tokio::test(start_paused = true)]
async fn interim_answers_come_before_the_answer() {
    let pair = pair();
    let hint = |link| Interim { status: 103, fields: Fields::from_pairs([("Link", link)]).unwrap() };
    let hints = vec![hint("</a>"), hint("</b>")];
    *pair.script.interims.lock() = hints.clone();
    pair.script.set("a", Answer::After(Duration::from_secs(2), vec![Bytes::from_static(b"whole")]));
    let ear = Ear::default();
    let answer = pair.peer.fetch_with(&ask("a"), Aside { interims: &ear, ..Aside::default() }).await.unwrap();
    assert_eq!(*ear.0.lock(), hints);
    assert_eq!(read(answer).await.unwrap(), b"whole");
}
