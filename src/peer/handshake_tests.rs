use tokio::io::DuplexStream;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn identity(incarnation: u64) -> Identity {
    Identity { software: "0.1.0".into(), incarnation, ..Identity::default() }
}

fn transcript() -> Transcript {
    let hello = |byte| Hello { versions: Versions { min: 1, max: 1 }, nonce: [byte; NONCE_BYTES] };
    Transcript { asker: hello(1), owner: hello(2) }
}

/// The owner's end under test; the test plays the asker by hand.
fn owner(secrets: &[&str]) -> (DuplexStream, tokio::task::JoinHandle<Result<Proven, HandshakeError>>) {
    let (asker, owner) = tokio::io::duplex(64 * 1024);
    let secrets = Secrets::new(secrets);
    let task = tokio::spawn(async move {
        let mut stream: Stream = Box::new(owner);
        answer_upgrade(&mut stream, b"", &secrets, identity(2), Versions::OURS, SECOND).await
    });
    (asker, task)
}

/// The asker's end under test; the test plays the owner by hand.
fn asker(secrets: &[&str]) -> (DuplexStream, tokio::task::JoinHandle<Result<Proven, HandshakeError>>) {
    let (asker, owner) = tokio::io::duplex(64 * 1024);
    let secrets = Secrets::new(secrets);
    let task = tokio::spawn(async move {
        let mut stream: Stream = Box::new(asker);
        ask_for_upgrade(&mut stream, "peer:1", &secrets, identity(1), Versions::OURS, SECOND).await
    });
    (owner, task)
}

async fn skip_head(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
}

async fn say(stream: &mut DuplexStream, message: Message) {
    let mut out = BytesMut::new();
    encode(0, &message, &mut out);
    stream.write_all(&out).await.unwrap();
}

async fn hear(stream: &mut DuplexStream) -> Message {
    let length = stream.read_u32().await.unwrap();
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await.unwrap();
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    reader.extend(&length.to_be_bytes());
    reader.extend(&frame);
    reader.next_frame().unwrap().unwrap().message
}

const REFUSAL: Message = Message::Goodbye { reason: GoodbyeReason::NotProven, text: std::borrow::Cow::Borrowed("") };

#[test]
fn a_proof_holds_for_one_role_one_pair_of_nonces_and_one_pair_of_ranges() {
    let secrets = Secrets::new(["secret"]);
    let proof = secrets.prove(Role::Asker, &transcript());
    assert!(secrets.accept(Role::Asker, &transcript(), &proof));
    assert!(!secrets.accept(Role::Owner, &transcript(), &proof), "reflected");
    let changes: [fn(&mut Transcript); 6] = [
        |transcript| transcript.asker.nonce[0] ^= 1,
        |transcript| transcript.owner.nonce[31] ^= 1,
        |transcript| transcript.asker.versions.max += 1,
        |transcript| transcript.owner.versions.max += 1,
        |transcript| transcript.owner.versions.min -= 1,
        |transcript| std::mem::swap(&mut transcript.asker, &mut transcript.owner),
    ];
    for change in changes {
        let mut changed = transcript();
        change(&mut changed);
        assert!(!secrets.accept(Role::Asker, &changed, &proof), "{changed:?}");
    }
    assert!(!secrets.accept(Role::Asker, &transcript(), &proof[..31]));
    assert!(!secrets.accept(Role::Asker, &transcript(), b""));
}

/// As the first release computed it: HMAC-SHA-256 by any tool over `groupcache/1 proof\0`, 1, and twice (1, 1, nonce).
#[test]
fn the_proof_of_version_1_stays_what_it_was() {
    let proof = Secrets::new(["secret"]).prove(Role::Asker, &transcript());
    let hex: String = proof.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "ead62c74427788999c3b035b0eeea578f024e46221f6800f8bcab8f0bc839622");
}

#[test]
fn secrets_are_not_shown() {
    assert_eq!(format!("{:?}", Secrets::new(["hush", "hush too"])), "Secrets(2)");
}

#[tokio::test(start_paused = true)]
async fn an_asker_that_reflects_what_it_hears_is_refused() {
    // Without the role in the proof an asker could open a second connection and let the owner prove for it.
    let (mut stream, task) = owner(&["secret"]);
    skip_head(&mut stream).await;
    let nonce = [3; NONCE_BYTES];
    say(&mut stream, Message::Hello(Hello { versions: Versions::OURS, nonce })).await;
    let Message::Challenge(theirs) = hear(&mut stream).await else { panic!() };
    let transcript = Transcript { asker: Hello { versions: Versions::OURS, nonce }, owner: theirs };
    let reflected = Secrets::new(["secret"]).prove(Role::Owner, &transcript);
    say(&mut stream, Message::Proof(reflected)).await;
    assert_eq!(hear(&mut stream).await, REFUSAL);
    assert_eq!(task.await.unwrap().err(), Some(HandshakeError::Secret));
}

#[tokio::test(start_paused = true)]
async fn an_owner_without_the_secret_is_refused_and_learns_nothing_about_us() {
    let (mut stream, task) = asker(&["secret"]);
    skip_head(&mut stream).await;
    stream.write_all(UPGRADE_ANSWER.as_bytes()).await.unwrap();
    let Message::Hello(hello) = hear(&mut stream).await else { panic!() };
    say(&mut stream, Message::Challenge(hello)).await;
    let Message::Proof(proof) = hear(&mut stream).await else { panic!() };
    // The only proof that it has is ours.
    say(&mut stream, Message::Proof(proof)).await;
    say(&mut stream, Message::Identity(identity(2))).await;
    assert_eq!(task.await.unwrap().err(), Some(HandshakeError::Secret));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "no identity for strangers");
}

#[tokio::test(start_paused = true)]
async fn a_recorded_conversation_is_worth_nothing_later() {
    let nonce = [3; NONCE_BYTES];
    let mut recorded = None;
    for attempt in 0..2 {
        let (mut stream, task) = owner(&["secret"]);
        skip_head(&mut stream).await;
        say(&mut stream, Message::Hello(Hello { versions: Versions::OURS, nonce })).await;
        let Message::Challenge(theirs) = hear(&mut stream).await else { panic!() };
        let transcript = Transcript { asker: Hello { versions: Versions::OURS, nonce }, owner: theirs };
        let proof = recorded.get_or_insert_with(|| Secrets::new(["secret"]).prove(Role::Asker, &transcript)).clone();
        say(&mut stream, Message::Proof(proof)).await;
        if attempt == 0 {
            assert!(matches!(hear(&mut stream).await, Message::Proof(_)));
            assert_eq!(hear(&mut stream).await, Message::Identity(identity(2)));
            say(&mut stream, Message::Identity(identity(1))).await;
            assert_eq!(task.await.unwrap().unwrap().remote, identity(1));
        } else {
            assert_eq!(hear(&mut stream).await, REFUSAL);
            assert_eq!(task.await.unwrap().err(), Some(HandshakeError::Secret));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_the_answer_is_the_same() {
    let frame = |message: Message| {
        let mut out = BytesMut::new();
        encode(0, &message, &mut out);
        out.to_vec()
    };
    let hello = Hello { versions: Versions::OURS, nonce: [3; NONCE_BYTES] };
    let oversize = (FRAME_BYTES_MAX_UNPROVEN as u32 + 1).to_be_bytes().to_vec();
    for (bytes, word) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "handshake_oversize"),
        (oversize, "handshake_oversize"),
        (vec![0, 0, 0, 3, 0xff, 0xff, 0xff], "handshake_malformed"),
        (vec![0, 0, 0, 0], "handshake_unexpected"),
        (frame(Message::Ping(1)), "handshake_unexpected"),
        (frame(Message::Identity(identity(1))), "handshake_unexpected"),
        ([frame(Message::Hello(hello)), frame(Message::Identity(identity(1)))].concat(), "handshake_unexpected"),
        (
            [frame(Message::Hello(hello)), frame(Message::Proof(Bytes::from_static(&[0; 32])))].concat(),
            "handshake_secret",
        ),
        ([frame(Message::Hello(hello)), frame(Message::Proof(Bytes::new()))].concat(), "handshake_secret"),
        (vec![0, 0], "handshake_timeout"),
        (frame(Message::Hello(hello)), "handshake_timeout"),
        (vec![], "handshake_timeout"),
    ] {
        let (mut stream, task) = owner(&["secret"]);
        skip_head(&mut stream).await;
        stream.write_all(&bytes).await.unwrap();
        let said = loop {
            match hear(&mut stream).await {
                Message::Challenge(_) => {}
                said => break said,
            }
        };
        assert_eq!(said, REFUSAL, "{word}");
        assert_eq!(task.await.unwrap().err().unwrap().word(), word);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_stranger_is_cut_off_after_a_second() {
    let (mut stream, task) = owner(&["secret"]);
    skip_head(&mut stream).await;
    let started = tokio::time::Instant::now();
    // One byte every 200 ms is progress, and not enough.
    let dribble = tokio::spawn(async move {
        for byte in [0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1] {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if stream.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    });
    assert_eq!(task.await.unwrap().err(), Some(HandshakeError::Timeout));
    assert!(started.elapsed() < Duration::from_millis(1200));
    dribble.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_upgrade_is_named_and_only_go_is_taken_for_go() {
    let go = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n\
              Date: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 12\r\n\r\nbad request\n";
    let unmounted = "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n\
                     Content-Length: 19\r\n\r\n404 page not found\n";
    let refused = |status, like_go| HandshakeError::Upgrade { status, like_go };
    for (answer, error) in [
        (go.to_owned(), refused(400, true)),
        (unmounted.to_owned(), refused(404, true)),
        (go.replace("X-Content-Type-Options: nosniff\r\n", ""), refused(400, false)),
        (go.replace("bad request", "bad_request"), refused(400, false)),
        (go.replace("400 Bad Request", "403 Forbidden"), refused(403, false)),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(), refused(404, false)),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n".to_owned(), refused(101, false)),
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), HandshakeError::NotHttp),
        ("HTTP/1.1 200 OK\r\n".to_owned(), HandshakeError::Connection(std::io::ErrorKind::UnexpectedEof)),
        (format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(9000)), HandshakeError::NotHttp),
    ] {
        let (mut stream, task) = asker(&["secret"]);
        skip_head(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        drop(stream);
        assert_eq!(task.await.unwrap().err(), Some(error), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_its_own_peer() {
    let (asker, owner) = tokio::io::duplex(64 * 1024);
    let secrets = Secrets::new(["secret"]);
    let (mut asker, mut owner): (Stream, Stream) = (Box::new(asker), Box::new(owner));
    let (asked, _) = tokio::join!(
        async {
            let asked = ask_for_upgrade(&mut asker, "me", &secrets, identity(1), Versions::OURS, SECOND).await;
            drop(asker);
            asked
        },
        async {
            skip_head(&mut owner).await;
            answer_upgrade(&mut owner, b"", &secrets, identity(1), Versions::OURS, SECOND).await
        }
    );
    assert_eq!(asked.err(), Some(HandshakeError::Myself));
}

#[test]
fn only_the_exact_upgrade_is_one() {
    let upgrade = [("Host", "a"), ("Connection", "keep-alive, Upgrade"), ("Upgrade", "groupcache/1")];
    let fields = |pairs: &[(&str, &str)]| Fields::from_pairs(pairs.iter().copied()).unwrap();
    assert!(is_upgrade("GET", b"/_groupcache/", &fields(&upgrade)));
    assert!(!is_upgrade("POST", b"/_groupcache/", &fields(&upgrade)));
    assert!(!is_upgrade("GET", b"/_groupcache", &fields(&upgrade)));
    assert!(!is_upgrade("GET", b"/_groupcache/?", &fields(&upgrade)));
    assert!(!is_upgrade("GET", b"/%5fgroupcache/", &fields(&upgrade)));
    assert!(!is_upgrade("GET", b"/_groupcache/", &fields(&upgrade[..2])));
    assert!(!is_upgrade("GET", b"/_groupcache/", &fields(&[upgrade[0], upgrade[2]])));
    assert!(!is_upgrade("GET", b"/_groupcache/", &fields(&[upgrade[1], ("Upgrade", "groupcache/11")])));
    assert!(!is_upgrade("GET", b"/_groupcache/", &fields(&[upgrade[1], upgrade[2], ("Content-Length", "1")])));
}
