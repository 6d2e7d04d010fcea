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
use crate::peer::client::{ClientSettings, NativePeer};
use crate::peer::handshake::Secrets;
use crate::peer::memory::{Link, MemoryDial};
use crate::peer::server::{PeerServer, ServerSettings};
use crate::peer::{AskContext, LocalNode, Owner, Peer, PeerState};
use crate::source::{Ask, BodyStream, EntryId, FetchError, Fetched, Hop, Method, ReadyBody, Source};

/// An owner whose answers are written down by key; what is not written down is a panic.
#[derive(Default)]
struct Script {
    answers: Mutex<HashMap<&'static str, Answer>>,
    asked: Mutex<Vec<(Ask, AskContext)>>,
    dropped: Arc<AtomicU64>,
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
    Fetched { status: 200, fields, content_length: None, hop: Some(hop()), body: Box::new(body) }
}

fn hop() -> Hop {
    Hop {
        age_milliseconds: 1500,
        remaining_milliseconds: Some(-7),
        stale_if_error_milliseconds: 60_000,
        always_revalidate: true,
        never_stale: true,
        shareable: true,
        storable: true,
        sent: Fields::from_pairs([("Accept-Encoding", "gzip")]).unwrap(),
        entry: EntryId { incarnation: u64::MAX, fill: 3 },
        hit: true,
        not_modified: false,
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
    async fn get_as_owner(&self, ask: Ask, context: AskContext) -> Result<Fetched, FetchError> {
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

    async fn peek(&self, ask: Ask, _context: AskContext) -> Result<Option<Fetched>, FetchError> {
        let hit = self.answers.lock().contains_key(std::str::from_utf8(&ask.key).unwrap());
        Ok(hit.then(|| fetched(ReadyBody::new([Bytes::from_static(b"peeked")]))))
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
