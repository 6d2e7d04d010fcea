//! One end real, the other played by hand frame by frame: what a broken or hostile peer may do.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use pingora::protocols::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{Answer, Script, ask, hop, read};
use crate::fields::Fields;
use crate::fleet::{Begun, Health};
use crate::peer::LocalNode;
use crate::peer::checksum::Checksum;
use crate::peer::client::{ClientSettings, NativePeer};
use crate::peer::dial::Dial;
use crate::peer::handshake::{Secrets, answer_upgrade, ask_for_upgrade};
use crate::peer::protocol::{
    DATA_BYTES_MAX, FRAME_BYTES_MAX, FrameReader, GoodbyeReason, Head, Identity, Message, Question, QuestionKind,
    Versions, encode,
};
use crate::peer::server::{PeerServer, ServerSettings};
use crate::source::{EntryId, FetchError, Source};

/// Hands the other end of each new stream to the test.
struct HandedOver(mpsc::UnboundedSender<Stream>);

#[async_trait]
impl Dial for HandedOver {
    async fn dial(&self) -> Result<Stream, String> {
        let (ours, theirs) = tokio::io::duplex(1024 * 1024);
        self.0.send(Box::new(theirs)).map_err(|_| "gone")?;
        Ok(Box::new(ours))
    }

    fn authority(&self) -> &str {
        "played"
    }
}

/// One end of a proven connection, played by hand.
struct Played {
    stream: Stream,
    reader: FrameReader,
}

impl Played {
    async fn say(&mut self, request: u64, message: Message) {
        let mut out = BytesMut::new();
        encode(request, &message, &mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    /// The next frame that is not a ping, or `None` at the end of the stream.
    async fn hear(&mut self) -> Option<(u64, Message)> {
        loop {
            match self.reader.next_frame().unwrap() {
                Some(envelope) if !matches!(envelope.message, Message::Ping(_)) => {
                    return Some((envelope.request, envelope.message));
                }
                Some(_) => {}
                None => {
                    if self.stream.read_buf(self.reader.buffer(1024)).await.unwrap() == 0 {
                        return None;
                    }
                }
            }
        }
    }
}

fn secrets() -> Secrets {
    Secrets::new(["secret"])
}

/// A real asker, and the streams on which the test plays the owner.
fn asker() -> (Arc<NativePeer>, mpsc::UnboundedReceiver<Stream>) {
    asker_with(ClientSettings::default())
}

fn asker_with(settings: ClientSettings) -> (Arc<NativePeer>, mpsc::UnboundedReceiver<Stream>) {
    let (sender, streams) = mpsc::unbounded_channel();
    let node = LocalNode::new("0.1.0", 1, secrets());
    (Arc::new(NativePeer::new(node, Box::new(HandedOver(sender)), settings)), streams)
}

/// A real asker with two connections, and both owners that it is connected to.
async fn asker_of_two() -> (Arc<NativePeer>, mpsc::UnboundedReceiver<Stream>, [Played; 2]) {
    let (peer, mut streams) = asker_with(ClientSettings { connections: 2, ..ClientSettings::default() });
    peer.connect();
    let owners = [play_owner(&mut streams).await, play_owner(&mut streams).await];
    settle().await;
    (peer, streams, owners)
}

/// Lets everything happen that waits for no time.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn play_owner(streams: &mut mpsc::UnboundedReceiver<Stream>) -> Played {
    let mut stream = streams.recv().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let identity = Identity { incarnation: 2, ..Identity::default() };
    let timeout = Duration::from_secs(1);
    let proven = answer_upgrade(&mut stream, b"", &secrets(), identity, Versions::OURS, timeout).await.unwrap();
    Played { stream, reader: proven.reader }
}

/// A real owner, and a connection to it on which the test plays the asker.
async fn play_asker(server: &Arc<PeerServer>) -> Played {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let server = server.clone();
    tokio::spawn(async move { server.accept(Box::new(theirs), watch::Sender::new(false).subscribe()).await });
    let mut stream: Stream = Box::new(ours);
    let identity = Identity { incarnation: 1, ..Identity::default() };
    let timeout = Duration::from_secs(1);
    let proven = ask_for_upgrade(&mut stream, "played", &secrets(), identity, Versions::OURS, timeout).await.unwrap();
    Played { stream, reader: proven.reader }
}

fn owner(settings: ServerSettings) -> (Arc<Script>, Arc<PeerServer>) {
    let script = Arc::new(Script::default());
    (script.clone(), PeerServer::new(LocalNode::new("0.1.0", 2, secrets()), script, settings))
}

fn head() -> Message {
    Message::Head(Box::new(Head { status: 200, fields: Fields::empty(), content_length: None, hop: Some(hop()) }))
}

fn question(key: &'static str, window: u32) -> Message {
    let kind = QuestionKind::Load;
    let (ask, have, purges) = (ask(key), EntryId::default(), Bytes::new());
    Message::Ask(Box::new(Question { kind, ask, have, ring_id: 0, window, purges }))
}

#[tokio::test(start_paused = true)]
async fn a_frozen_owner_is_given_up_within_the_silence() {
    let (peer, mut streams) = asker();
    // Frozen before it answers the upgrade.
    let asked = Instant::now();
    assert!(matches!(peer.fetch(&ask("a")).await, Err(FetchError::Unreachable(_))));
    assert!(asked.elapsed() <= Duration::from_millis(1001));
    drop(streams.recv().await);

    // Frozen with a question open; nobody waits longer than the silence, and those who come later wait for nothing.
    let (first, mut played) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let asked = Instant::now();
            (peer.fetch(&ask("a")).await.err(), asked.elapsed())
        },
        play_owner(&mut streams)
    );
    assert_eq!(first.0, Some(FetchError::unreachable("silent")));
    assert!(first.1 >= Duration::from_millis(700) && first.1 <= Duration::from_millis(1001), "{:?}", first.1);
    assert!(matches!(played.hear().await, Some((1, Message::Ask(_)))));
    tokio::time::sleep(Duration::from_millis(10)).await;
    let asked = Instant::now();
    assert!(matches!(peer.fetch(&ask("a")).await, Err(FetchError::Unreachable(_))));
    assert!(asked.elapsed() <= Duration::from_millis(1));
}

#[tokio::test(start_paused = true)]
async fn an_owner_frozen_in_a_body_breaks_it() {
    let (peer, mut streams) = asker();
    let (mut answer, played) = tokio::join!(async { peer.fetch(&ask("a")).await.unwrap() }, async {
        let mut played = play_owner(&mut streams).await;
        played.hear().await;
        played.say(1, head()).await;
        played.say(1, Message::Data(Bytes::from_static(b"half"))).await;
        played
    });
    assert_eq!(answer.body.chunk().await.unwrap().unwrap(), "half");
    let started = Instant::now();
    assert_eq!(answer.body.chunk().await, Err(FetchError::broken("silent")));
    assert!(started.elapsed() <= Duration::from_millis(1260));
    drop(played);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_the_owner_forgot_is_given_up_and_the_connection_stays() {
    let (peer, mut streams) = asker();
    let play = tokio::spawn(async move {
        let mut played = play_owner(&mut streams).await;
        let Some((1, Message::Ask(_))) = played.hear().await else { panic!() };
        played.say(1, Message::Accepted).await;
        let alive = Instant::now();
        while alive.elapsed() < Duration::from_secs(3) {
            played.say(0, Message::Pong(1)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(played.hear().await, Some((1, Message::Cancel)));
        let Some((2, Message::Ask(_))) = played.hear().await else { panic!() };
        played.say(2, head()).await;
        played.say(2, Message::End { length: 0, checksum: Checksum::default().finish() }).await;
        played
    });
    assert_eq!(peer.fetch(&ask("a")).await.err(), Some(FetchError::unreachable("silent")));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(read(peer.fetch(&ask("b")).await.unwrap()).await.unwrap(), b"");
    play.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_what_the_end_says_is_broken() {
    let right = twox_hash::XxHash3_64::oneshot(b"whole");
    let data = |text: &'static str| Message::Data(Bytes::from_static(text.as_bytes()));
    for (what, frames, whole) in [
        ("right", vec![data("who"), data("le"), Message::End { length: 5, checksum: right }], true),
        ("checksum", vec![data("whole"), Message::End { length: 5, checksum: right ^ 1 }], false),
        ("flipped", vec![data("whose"), Message::End { length: 5, checksum: right }], false),
        ("short", vec![data("who"), Message::End { length: 5, checksum: right }], false),
        ("long", vec![data("whole!"), Message::End { length: 5, checksum: right }], false),
        ("abort", vec![data("whole"), Message::Abort { reason: "reset".into() }], false),
        ("failure", vec![data("whole"), Message::Failure(crate::peer::protocol::Failure::Draining)], false),
        ("closed", vec![data("whole")], false),
    ] {
        let (peer, mut streams) = asker();
        let (answer, played) = tokio::join!(async { peer.fetch(&ask("a")).await.unwrap() }, async {
            let mut played = play_owner(&mut streams).await;
            played.hear().await;
            played.say(1, head()).await;
            for frame in frames {
                played.say(1, frame).await;
            }
            played
        });
        drop(played);
        let body = read(answer).await;
        assert_eq!(body.is_ok(), whole, "{what}");
        assert!(whole || matches!(body, Err(FetchError::Broken(_))), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_breaks_the_rules_loses_the_connection() {
    let window = ClientSettings::default().window_bytes as usize;
    let data = Message::Data(Bytes::from(vec![0; DATA_BYTES_MAX]));
    for (what, frames) in [
        ("data before the head", vec![data.clone()]),
        ("two heads", vec![head(), head()]),
        ("beyond the credit", [vec![head()], vec![data; window / DATA_BYTES_MAX + 1]].concat()),
        ("end before the head", vec![Message::End { length: 0, checksum: 0 }]),
        ("a question", vec![question("b", 1)]),
        ("a second handshake", vec![Message::Identity(Identity::default())]),
    ] {
        let (peer, mut streams) = asker();
        let play = tokio::spawn(async move {
            let mut played = play_owner(&mut streams).await;
            played.hear().await;
            for frame in frames {
                played.say(1, frame).await;
            }
            loop {
                match played.hear().await {
                    Some((0, Message::Goodbye { reason: GoodbyeReason::ProtocolError, .. })) => break,
                    Some((1, Message::Cancel | Message::Credit(_))) => {}
                    other => panic!("{what}: {other:?}"),
                }
            }
            assert_eq!(played.hear().await, None);
        });
        let answer = peer.fetch(&ask("a")).await;
        play.await.unwrap();
        match answer {
            Ok(answer) => assert!(matches!(read(answer).await, Err(FetchError::Broken(_))), "{what}"),
            Err(error) => assert!(matches!(error, FetchError::Unreachable(_)), "{what}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_written_before_the_close_is_heard() {
    let (peer, mut streams) = asker();
    let play = tokio::spawn(async move {
        let mut played = play_owner(&mut streams).await;
        played.hear().await;
        played.say(0, Message::Goodbye { reason: GoodbyeReason::Shutdown, text: "".into() }).await;
    });
    assert_eq!(peer.fetch(&ask("a")).await.err(), Some(FetchError::unreachable("the peer shut down")));
    play.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_its_own_connection_alone() {
    let (script, server) = owner(ServerSettings::default());
    script.set("slow", Answer::After(Duration::from_secs(5), vec![Bytes::from_static(b"done")]));
    let mut good = play_asker(&server).await;
    good.say(1, question("slow", 1000)).await;
    assert_eq!(good.hear().await, Some((1, Message::Accepted)));
    let oversize = (FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
    for (what, garbage) in [
        ("oversize", &oversize[..]),
        ("protobuf", &[0, 0, 0, 2, 0xff, 0xff]),
        ("http", b"GET / HTTP/1.1\r\n\r\n"),
        ("empty data", &[0, 0, 0, 4, 0x32, 2, 0x0a, 0]),
    ] {
        let mut bad = play_asker(&server).await;
        bad.say(1, question("slow", 1000)).await;
        bad.stream.write_all(garbage).await.unwrap();
        loop {
            match bad.hear().await {
                Some((1, Message::Accepted)) => {}
                Some((0, Message::Goodbye { reason: GoodbyeReason::ProtocolError, .. })) => break,
                other => panic!("{what}: {other:?}"),
            }
        }
        assert_eq!(bad.hear().await, None, "{what}");
    }
    for (what, message) in [
        ("an answer", head()),
        ("no number", question("slow", 1)),
        ("endless credit", Message::Credit(u32::MAX)),
        ("a second handshake", Message::Proof(Bytes::new())),
    ] {
        let mut bad = play_asker(&server).await;
        bad.say(1, question("slow", 1000)).await;
        bad.say(if what == "no number" { 0 } else { 1 }, message).await;
        assert_eq!(bad.hear().await, Some((1, Message::Accepted)), "{what}");
        assert!(matches!(bad.hear().await, Some((0, Message::Goodbye { .. }))), "{what}");
    }
    let mut twice = play_asker(&server).await;
    twice.say(1, question("slow", 1000)).await;
    twice.say(1, question("slow", 1000)).await;
    assert_eq!(twice.hear().await, Some((1, Message::Accepted)));
    assert!(matches!(twice.hear().await, Some((0, Message::Goodbye { .. }))));

    let rejects = &server.counters().rejects;
    assert_eq!(rejects.value("oversize") + rejects.value("malformed"), 9);
    loop {
        match good.hear().await.unwrap() {
            (1, Message::Loading) => {}
            (1, Message::Head(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(good.hear().await, Some((1, Message::Data(Bytes::from_static(b"done")))));
    assert!(matches!(good.hear().await, Some((1, Message::End { length: 4, .. }))));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(
        script.dropped.load(std::sync::atomic::Ordering::SeqCst),
        10,
        "the others were cancelled with their connections"
    );
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_come_until_the_head() {
    let (script, server) = owner(ServerSettings::default());
    script.set("slow", Answer::After(Duration::from_millis(1100), vec![]));
    let mut played = play_asker(&server).await;
    let asked = Instant::now();
    played.say(1, question("slow", 1000)).await;
    assert_eq!(played.hear().await, Some((1, Message::Accepted)));
    assert!(asked.elapsed() < Duration::from_millis(1));
    for _ in 0..4 {
        let before = Instant::now();
        assert_eq!(played.hear().await, Some((1, Message::Loading)));
        assert!(before.elapsed() <= Duration::from_millis(251));
    }
    assert!(matches!(played.hear().await, Some((1, Message::Head(_)))));
}

#[tokio::test(start_paused = true)]
async fn an_owner_sends_no_more_than_it_was_granted() {
    let (script, server) = owner(ServerSettings::default());
    script.set("a", Answer::Body(vec![Bytes::from(vec![1; 100_000])]));
    let mut played = play_asker(&server).await;
    played.say(1, question("a", 1000)).await;
    let mut body = 0;
    let mut granted = 1000;
    loop {
        match played.hear().await.unwrap() {
            (1, Message::Accepted | Message::Head(_)) => {}
            (1, Message::Data(data)) => {
                body += data.len();
                assert!(body <= granted);
                if body == granted && body < 100_000 {
                    // Nothing more comes by itself.
                    assert!(tokio::time::timeout(Duration::from_secs(5), played.hear()).await.is_err());
                    let grant = if granted == 1000 { 1 } else { 98_999 };
                    granted += grant;
                    played.say(1, Message::Credit(grant as u32)).await;
                }
            }
            (1, Message::End { length, .. }) => break assert_eq!((length, body), (100_000, 100_000)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_asker_that_takes_nothing_costs_little_and_is_cut_off() {
    let settings = ServerSettings { stall_timeout: Duration::from_secs(10), ..ServerSettings::default() };
    let (script, server) = owner(settings);
    script.set("a", Answer::Body(vec![Bytes::from(vec![1; 60_000])]));
    let mut played = play_asker(&server).await;
    let mut out = BytesMut::new();
    for request in 1..=4000 {
        encode(request, &question("a", 100_000), &mut out);
    }
    // The owner stops reading questions when nobody takes the answers, so not even the questions fit.
    let pushed = tokio::time::timeout(Duration::from_secs(5), played.stream.write_all(&out)).await;
    assert!(pushed.is_err(), "the questions were all taken");
    assert!(script.asked.lock().len() < 3000, "{} questions were taken", script.asked.lock().len());
    let mut taken = Vec::new();
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(server.counters().rejects.value("stalled"), 1);
    played.stream.read_to_end(&mut taken).await.unwrap();
    assert!(taken.len() < 200_000, "what was in the pipe: {}", taken.len());
}

#[tokio::test(start_paused = true)]
async fn an_asker_that_vanished_is_noticed() {
    let (_, server) = owner(ServerSettings::default());
    let mut played = play_asker(&server).await;
    // An idle connection lives as long as its pings are answered.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(14)).await;
        played.say(0, Message::Pong(0)).await;
    }
    assert_eq!(server.counters().rejects.value("silent"), 0);
    tokio::time::sleep(Duration::from_secs(32)).await;
    assert_eq!(server.counters().rejects.value("silent"), 1);
    assert_eq!(played.hear().await, None);
}

/// What is read at once ends somewhere within an answer; that one is whole too when the rest is there to be read.
#[tokio::test(start_paused = true)]
async fn answers_that_come_together_come_whole_wherever_a_read_ends() {
    const QUESTIONS: usize = 100;
    let (peer, mut streams) = asker();
    peer.connect();
    let mut owner = play_owner(&mut streams).await;
    // The connection is the peer's once it carries a question.
    let first = tokio::spawn({
        let peer = peer.clone();
        async move { read(peer.fetch(&ask("k")).await?).await }
    });
    let mut out = BytesMut::new();
    let body = Bytes::from(vec![7; 5000]);
    let mut answer = |request| {
        let head = Head { status: 200, fields: Fields::empty(), content_length: Some(5000), hop: Some(hop()) };
        encode(request, &Message::Head(Box::new(head)), &mut out);
        encode(request, &Message::Data(body.clone()), &mut out);
        encode(request, &Message::End { length: 5000, checksum: Checksum::of(&body) }, &mut out);
        out.split()
    };
    let (request, _) = owner.hear().await.unwrap();
    owner.stream.write_all(&answer(request)).await.unwrap();
    assert_eq!(first.await.unwrap().unwrap(), body);
    let (sender, mut begun) = mpsc::unbounded_channel();
    for _ in 0..QUESTIONS {
        let sender = sender.clone();
        peer.begin(&ask("k"), EntryId::default(), Box::new(move |begun| sender.send(begun).unwrap_or_default()));
    }
    let mut answers = BytesMut::new();
    for _ in 0..QUESTIONS {
        let (request, _) = owner.hear().await.unwrap();
        answers.unsplit(answer(request));
    }
    owner.stream.write_all(&answers).await.unwrap();
    for _ in 0..QUESTIONS {
        assert!(matches!(begun.recv().await, Some(Begun::Whole(_, whole)) if whole == body));
    }
}

/// What one connection of two does not bear any longer, the other does.
#[tokio::test(start_paused = true)]
async fn a_connection_that_broke_leaves_its_questions_to_the_others() {
    for broken in 0..2 {
        let (peer, _streams, owners) = asker_of_two().await;
        let [first, second] = owners;
        let (gone, mut left) = if broken == 0 { (first, second) } else { (second, first) };
        drop(gone);
        settle().await;
        let asking = tokio::spawn(async move { read(peer.fetch(&ask("k")).await?).await });
        let (request, _) = left.hear().await.unwrap();
        let head = Head { status: 200, fields: Fields::empty(), content_length: Some(0), hop: Some(hop()) };
        left.say(request, Message::Head(Box::new(head))).await;
        left.say(request, Message::End { length: 0, checksum: Checksum::default().finish() }).await;
        assert_eq!(asking.await.unwrap().unwrap(), b"");
    }
}

/// A frozen node is found out once, by one question, whatever the number of connections to it.
#[tokio::test(start_paused = true)]
async fn a_peer_that_is_silent_on_one_connection_is_given_up_on_all() {
    let (peer, _streams, _owners) = asker_of_two().await;
    assert_eq!(peer.health(), Health::Up);
    let silence = ClientSettings::default().timeouts.silence;
    let asked_at = Instant::now();
    assert!(matches!(peer.fetch(&ask("k")).await, Err(FetchError::Unreachable(_))));
    settle().await;
    assert_eq!(peer.health(), Health::Down);
    assert!(matches!(peer.fetch(&ask("k")).await, Err(FetchError::Unreachable(_))));
    assert!(asked_at.elapsed() < silence * 2, "{:?}", asked_at.elapsed());
}

/// What holds up one connection need not hold up another.
#[tokio::test(start_paused = true)]
async fn a_connection_on_which_the_peer_has_just_spoken_outlives_a_silent_one() {
    for silent in 0..2 {
        let (peer, _streams, [one, other]) = asker_of_two().await;
        let (mut held_up, mut speaking) = if silent == 0 { (one, other) } else { (other, one) };
        let silence = ClientSettings::default().timeouts.silence;
        // Never at the time of a tick.
        tokio::time::sleep(silence / 16).await;
        for sign in 0..8 * 5 {
            speaking.say(0, Message::Ping(sign)).await;
            tokio::time::sleep(silence / 8).await;
        }
        assert!(held_up.hear().await.is_none(), "it has ended");
        assert_eq!(peer.health(), Health::Up);
        let asking = tokio::spawn(async move { read(peer.fetch(&ask("k")).await?).await });
        let request = loop {
            if let (request, Message::Ask(_)) = speaking.hear().await.expect("it lives") {
                break request;
            }
        };
        let head = Head { status: 200, fields: Fields::empty(), content_length: Some(0), hop: Some(hop()) };
        speaking.say(request, Message::Head(Box::new(head))).await;
        speaking.say(request, Message::End { length: 0, checksum: Checksum::default().finish() }).await;
        assert_eq!(asking.await.unwrap().unwrap(), b"");
    }
}
