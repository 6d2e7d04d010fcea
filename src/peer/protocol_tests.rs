use proptest::prelude::*;

use super::*;
use crate::purge::{Position, Vector};

fn frames(bytes: &[u8]) -> Result<Vec<Envelope>, ProtocolError> {
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    reader.extend(bytes);
    let mut envelopes = Vec::new();
    while let Some(envelope) = reader.next_frame()? {
        envelopes.push(envelope);
    }
    Ok(envelopes)
}

fn encoded(request: u64, message: &Message) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(request, message, &mut out);
    out.to_vec()
}

fn question() -> Question {
    Question {
        kind: QuestionKind::Load,
        ask: Ask {
            group: "thumbnails".into(),
            key: Bytes::from_static(b"a%20b.png?w=1"),
            target: Bytes::from_static(b"/a%20b.png?w=1"),
            host: Some(Bytes::from_static(b"example.org")),
            method: Method::Get,
            fields: Fields::from_pairs([("Accept", "image/*")]).unwrap(),
        },
        have: EntryId { incarnation: 5, fill: 6 },
        ring_id: 7,
        window: 262_144,
        purges: Bytes::new(),
    }
}

fn head() -> Head {
    Head {
        status: 200,
        fields: Fields::from_pairs([("Content-Type", "image/png")]).unwrap(),
        content_length: Some(3),
        hop: Some(Hop {
            freshness: HopFreshness {
                age_milliseconds: 1,
                remaining_milliseconds: -2,
                stale_while_revalidate: None,
                stale_if_error: Some(3),
                source: LifetimeSource::MaxAge,
                stale: StalePermission::OnlyByResponse,
                no_cache: true,
                immutable: false,
            },
            shareable: true,
            storable: true,
            sent: Fields::from_pairs([("Accept-Encoding", "br")]).unwrap(),
            entry: EntryId { incarnation: 9, fill: 10 },
            hit: true,
            stamp: Some(Vector::default()),
            ..Hop::default()
        }),
    }
}

/// What purges need to know of an answer.
fn purgeable_head() -> Head {
    let hop = Hop {
        tags: Tags::new([&b"t"[..], b"u"]),
        stamp: Some(Vector::new([Position { incarnation: u64::MAX, sequence: 2 }])),
        ..head().hop.unwrap()
    };
    Head { hop: Some(hop), ..head() }
}

fn every_message() -> Vec<Message> {
    let hello = Hello { versions: Versions { min: 1, max: 2 }, nonce: [7; NONCE_BYTES] };
    let identity =
        Identity { software: "0.1.0".into(), ring_id: 1, incarnation: 2, draining: true, sign_milliseconds: 250 };
    vec![
        Message::Hello(hello),
        Message::Challenge(hello),
        Message::Proof(Bytes::from_static(&[9; 32])),
        Message::Identity(identity),
        Message::Ping(3),
        Message::Pong(4),
        Message::Status { draining: true, ring_id: 0 },
        Message::Goodbye { reason: GoodbyeReason::Shutdown, text: "bye".into() },
        Message::Ask(Box::new(question())),
        Message::Accepted,
        Message::Loading,
        Message::Head(Box::new(head())),
        Message::Data(Bytes::from_static(b"abc")),
        Message::End { length: 3, checksum: 0x78af_5f94_892f_3950 },
        Message::Abort { reason: "reset".into() },
        Message::Failure(Failure::Refused(504, "the origin is silent".into())),
        Message::Failure(Failure::Unreachable("leaving".into())),
        Message::Failure(Failure::NotFound),
        Message::Failure(Failure::Draining),
        Message::Credit(131_072),
        Message::Cancel,
        Message::Ask(Box::new(Question { kind: QuestionKind::Peek, ..question() })),
        Message::Ask(Box::new(Question { kind: QuestionKind::Offer, ..question() })),
        Message::Ask(Box::new(Question { kind: QuestionKind::Permit, ..question() })),
        Message::Ask(Box::new(Question { kind: QuestionKind::HoldPermit, ..question() })),
        Message::Ask(Box::new(Question { kind: QuestionKind::Purge, purges: Bytes::from_static(b"x"), ..question() })),
        Message::Head(Box::new(purgeable_head())),
    ]
}

#[test]
fn every_message_comes_back_as_it_went() {
    let mut wire = BytesMut::new();
    for (request, message) in every_message().iter().enumerate() {
        encode(request as u64, message, &mut wire);
    }
    let expected: Vec<Envelope> = every_message()
        .into_iter()
        .enumerate()
        .map(|(request, message)| Envelope { request: request as u64, message })
        .collect();
    assert_eq!(frames(&wire).unwrap(), expected);
}

/// What was added to version 1 since its first release. These bytes stay, too.
const ADDED: &[&str] = &[
    "0000002308ac02a2011d086712194c696e6b3a203c2f613e3b2072656c3d7072656c6f61640d0a",
    concat!(
        "0000007108ac022a6c08c8011219436f6e74656e742d547970653a20696d6167652f706e670d0a1803224a080110032003280330",
        "013801480150015a154163636570742d456e636f64696e673a2062720d0a610900000000000000680a7001810109000000000000",
        "00880108900101980101a00101",
    ),
];

fn added_messages() -> Vec<Message> {
    let fields = Fields::from_pairs([("Link", "</a>; rel=preload")]).unwrap();
    let hop = Hop {
        body: EntryId { incarnation: 9, fill: 8 },
        weak_date: true,
        stale: true,
        revalidated: true,
        ..head().hop.unwrap()
    };
    vec![Message::Interim(Interim { status: 103, fields }), Message::Head(Box::new(Head { hop: Some(hop), ..head() }))]
}

#[test]
fn what_was_added_is_spoken_and_understood() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let spoken: Vec<String> = added_messages().iter().map(|message| hex(&encoded(300, message))).collect();
    assert_eq!(spoken, ADDED);
    for message in added_messages() {
        assert_eq!(frames(&encoded(300, &message)).unwrap(), [Envelope { request: 300, message }]);
    }
    for status in [0, 99, 100, 101, 200, 70_000] {
        let interim = wire::Interim { status, fields: Bytes::new() };
        let frame = wire::Frame { request: 1, kind: Some(wire::frame::Kind::Interim(interim)) };
        let mut bytes = BytesMut::new();
        bytes.put_u32(frame.encoded_len() as u32);
        frame.encode(&mut bytes).unwrap();
        assert!(frames(&bytes).is_err(), "{status}");
    }
}

/// Version 1 as it was first released. These bytes stay: a fleet is updated node by node.
const VERSION_1: &[&str] = &[
    "0000002c08ac02820126080110021a200707070707070707070707070707070707070707070707070707070707070707",
    "0000002c08ac028a0126080110021a200707070707070707070707070707070707070707070707070707070707070707",
    "0000002808ac029201220a200909090909090909090909090909090909090909090909090909090909090909",
    "0000002408ac029a011e0a05302e312e30110100000000000000190200000000000000200128fa01",
    "0000000708ac0262020803",
    "0000000708ac026a020804",
    "0000000708ac0272020801",
    "0000000c08ac027a0708031203627965",
    concat!(
        "0000006808ac0212631a0a7468756d626e61696c73220d61253230622e706e673f773d312a0e2f61253230622e706e673f773d31",
        "320b6578616d706c652e6f72673a114163636570743a20696d6167652f2a0d0a4105000000000000004806510700000000000000",
        "58808010",
    ),
    "0000000508ac021a00",
    "0000000508ac022200",
    concat!(
        "0000005b08ac022a5608c8011219436f6e74656e742d547970653a20696d6167652f706e670d0a18032234080110032003280330",
        "013801480150015a154163636570742d456e636f64696e673a2062720d0a610900000000000000680a7001",
    ),
    "0000000a08ac0232050a03616263",
    "0000001008ac023a0b08031150392f89945faf78",
    "0000000c08ac0242070a057265736574",
    "0000002008ac024a1b080110f8031a14746865206f726967696e2069732073696c656e74",
    "0000000e08ac024a091a076c656176696e67",
    "0000000708ac024a020802",
    "0000000708ac024a020803",
    "0000000908ac02520408808008",
    "0000000508ac025a00",
    concat!(
        "0000006a08ac02126508011a0a7468756d626e61696c73220d61253230622e706e673f773d312a0e2f61253230622e706e673f77",
        "3d31320b6578616d706c652e6f72673a114163636570743a20696d6167652f2a0d0a410500000000000000480651070000000000000058808010",
    ),
    concat!(
        "0000006a08ac02126508031a0a7468756d626e61696c73220d61253230622e706e673f773d312a0e2f61253230622e706e673f77",
        "3d31320b6578616d706c652e6f72673a114163636570743a20696d6167652f2a0d0a410500000000000000480651070000000000000058808010",
    ),
    concat!(
        "0000006a08ac02126508061a0a7468756d626e61696c73220d61253230622e706e673f773d312a0e2f61253230622e706e673f77",
        "3d31320b6578616d706c652e6f72673a114163636570743a20696d6167652f2a0d0a410500000000000000480651070000000000000058808010",
    ),
    concat!(
        "0000006a08ac02126508071a0a7468756d626e61696c73220d61253230622e706e673f773d312a0e2f61253230622e706e673f77",
        "3d31320b6578616d706c652e6f72673a114163636570743a20696d6167652f2a0d0a410500000000000000480651070000000000000058808010",
    ),
    concat!(
        "0000006d08ac02126808041a0a7468756d626e61696c73220d61253230622e706e673f773d312a0e2f61253230622e706e673f77",
        "3d31320b6578616d706c652e6f72673a114163636570743a20696d6167652f2a0d0a410500000000000000480651070000000000000058808010",
        "620178",
    ),
    concat!(
        "0000007008ac022a6b08c8011219436f6e74656e742d547970653a20696d6167652f706e670d0a18032249080110032003280330",
        "013801480150015a154163636570742d456e636f64696e673a2062720d0a610900000000000000680a7001aa0104740a750aba01",
        "0bffffffffffffffffff0102",
    ),
];

#[test]
fn version_1_is_still_spoken() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let spoken: Vec<String> = every_message().iter().map(|message| hex(&encoded(300, message))).collect();
    assert_eq!(spoken, VERSION_1);
}

#[test]
fn what_is_written_by_hand_is_what_protobuf_would_write() {
    let full = head();
    let bare = Head { status: 204, fields: Fields::empty(), content_length: None, hop: None };
    let default = Head { content_length: Some(0), hop: Some(Hop::default()), ..bare.clone() };
    let mut far = head();
    if let Some(hop) = &mut far.hop {
        (hop.freshness.age_milliseconds, hop.freshness.remaining_milliseconds) = (u64::MAX, i64::MIN);
        (hop.freshness.stale_while_revalidate, hop.freshness.immutable) = (Some(u32::MAX), true);
        (hop.freshness.stale, hop.entry.fill, hop.not_modified) = (StalePermission::Never, u64::MAX, true);
        hop.tags = Tags::too_many();
        hop.stamp = Some(Vector::new((1..40).map(|life| Position { incarnation: life << 57, sequence: life })));
    }
    let empty = Question {
        kind: QuestionKind::Load,
        ask: Ask {
            group: "".into(),
            key: Bytes::new(),
            target: Bytes::new(),
            host: Some(Bytes::new()),
            method: Method::Head,
            fields: Fields::empty(),
        },
        have: EntryId::default(),
        ring_id: 0,
        window: 0,
        purges: Bytes::new(),
    };
    let heads = [full, bare, default, far].map(|head| Message::Head(Box::new(head)));
    let ends = [(0, 0), (1, u64::MAX), (u64::MAX, 1)].map(|(length, checksum)| Message::End { length, checksum });
    for message in every_message().into_iter().chain([Message::Ask(Box::new(empty))]).chain(heads).chain(ends) {
        for request in [0, 1, 127, 128, u64::MAX] {
            let mut generated = BytesMut::new();
            encode_generated(request, &message, &mut generated);
            assert_eq!(encoded(request, &message), generated, "{message:?}");
        }
    }
}

#[test]
fn a_data_prefix_is_what_protobuf_would_write() {
    for bytes in [1, 2, 127, 128, 16_383, 16_384, DATA_BYTES_MAX] {
        for request in [1, 127, 128, u64::MAX] {
            let payload = Bytes::from(vec![5; bytes]);
            let mut prefix = BytesMut::new();
            encode_data_prefix(request, bytes, &mut prefix);
            prefix.extend_from_slice(&payload);
            assert_eq!(prefix, encoded(request, &Message::Data(payload)));
        }
    }
}

#[test]
fn bodies_and_blocks_are_slices_of_what_was_read() {
    let payload = Bytes::from(vec![3; 60_000]);
    let mut reader = FrameReader::new(FRAME_BYTES_MAX);
    reader.extend(&encoded(1, &Message::Head(Box::new(head()))));
    reader.extend(&encoded(1, &Message::Data(payload.clone())));
    let buffer = reader.buffer.as_ptr_range();
    let Message::Head(head) = reader.next_frame().unwrap().unwrap().message else { panic!() };
    let Message::Data(data) = reader.next_frame().unwrap().unwrap().message else { panic!() };
    assert_eq!(data, payload);
    assert!(buffer.contains(&data.as_ptr()));
    assert!(buffer.contains(&head.fields.as_bytes().as_ptr()));
}

#[test]
fn what_is_too_long_or_not_allowed_is_refused() {
    let ask = |change: &dyn Fn(&mut wire::Ask)| {
        let mut ask = ask_to_wire(&question());
        change(&mut ask);
        wire::frame::Kind::Ask(ask)
    };
    let sent_head = |change: &dyn Fn(&mut wire::Head)| {
        let Some(wire::frame::Kind::Head(mut head)) = to_wire(&Message::Head(Box::new(head()))) else { panic!() };
        change(&mut head);
        wire::frame::Kind::Head(head)
    };
    let long = |bytes: usize| Bytes::from(vec![b'a'; bytes]);
    let malformed = [
        ask(&|ask| ask.group = Bytes::new()),
        ask(&|ask| ask.group = Bytes::from_static(b"a/b")),
        ask(&|ask| ask.group = long(GROUP_BYTES_MAX + 1)),
        ask(&|ask| ask.key = long(KEY_BYTES_MAX + 1)),
        ask(&|ask| ask.target = Bytes::from_static(b"a")),
        ask(&|ask| ask.target = Bytes::from_static(b"/a HTTP/1.1\r\nX: y")),
        ask(&|ask| ask.target = [b"/", &long(KEY_BYTES_MAX)[..]].concat().into()),
        ask(&|ask| ask.host = Some(Bytes::new())),
        ask(&|ask| ask.host = Some(Bytes::from_static(b"a\r\nb"))),
        ask(&|ask| ask.host = Some(long(HOST_BYTES_MAX + 1))),
        ask(&|ask| ask.fields = Bytes::from_static(b"a: b\r\n\r\n")),
        ask(&|ask| ask.fields = Bytes::from_static(b"a: b\nc: d\r\n")),
        ask(&|ask| ask.fields = [b"a: ", &long(FIELDS_BYTES_MAX)[..], b"\r\n"].concat().into()),
        ask(&|ask| ask.kind = 99),
        ask(&|ask| ask.method = 7),
        sent_head(&|head| head.status = 100),
        sent_head(&|head| head.status = 600),
        sent_head(&|head| head.status = 65_536 + 200),
        sent_head(&|head| head.fields = Bytes::from_static(b"no colon\r\n")),
        sent_head(&|head| head.hop.as_mut().unwrap().sent = Bytes::from_static(b": x\r\n")),
        wire::frame::Kind::Data(wire::Data { payload: Bytes::new() }),
        wire::frame::Kind::Hello(wire::Hello { version_min: 1, version_max: 1, nonce: long(31) }),
        wire::frame::Kind::Hello(wire::Hello { version_min: 2, version_max: 1, nonce: long(32) }),
        wire::frame::Kind::Hello(wire::Hello { version_min: 0, version_max: 1, nonce: long(32) }),
        wire::frame::Kind::Failure(wire::Failure { kind: 1, status: 200, reason: String::new() }),
    ];
    for kind in malformed {
        let what = format!("{kind:?}").chars().take(200).collect::<String>();
        let frame = wire::Frame { request: 1, kind: Some(kind) }.encode_to_vec();
        let bytes = [&(frame.len() as u32).to_be_bytes()[..], &frame].concat();
        assert!(matches!(frames(&bytes), Err(ProtocolError::Malformed(_))), "{what}");
    }
    assert!(frames(&encoded(1, &Message::Ask(Box::new(question())))).is_ok(), "the unchanged question is fine");
}

#[test]
fn a_frame_beyond_the_limit_is_refused_at_its_length() {
    let mut reader = FrameReader::new(FRAME_BYTES_MAX_UNPROVEN);
    reader.extend(&(FRAME_BYTES_MAX_UNPROVEN as u32 + 1).to_be_bytes());
    assert_eq!(reader.next_frame(), Err(ProtocolError::Oversize));
    // Nor does its claim make room.
    assert!(reader.buffer(1024).capacity() <= 4096);
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    // A frame with an unknown kind (number 90), and a ping with an unknown field.
    let unknown = [0, 0, 0, 6, 0x08, 1, 0xd2, 0x05, 1, 0x55];
    let ping = [0, 0, 0, 6, 0x62, 4, 0x08, 3, 0x50, 1];
    let said = frames(&[&unknown[..], &ping].concat()).unwrap();
    assert_eq!(said[0], Envelope { request: 1, message: Message::Unknown });
    assert_eq!(said[1], Envelope { request: 0, message: Message::Ping(3) });
}

#[test]
fn text_from_outside_is_short_and_printable() {
    let reason = format!("two\r\nlines \u{1f600}{}", "x".repeat(1000));
    let said = frames(&encoded(1, &Message::Abort { reason: reason.into() })).unwrap();
    let Message::Abort { reason } = &said[0].message else { panic!() };
    assert!(reason.starts_with("two??lines ?xxx") && reason.len() == TEXT_BYTES_MAX);
}

#[test]
fn the_highest_common_version_is_chosen() {
    let versions = |min, max| Versions { min, max };
    for (ours, theirs, common) in [
        (versions(1, 1), versions(1, 1), Some(1)),
        (versions(1, 3), versions(2, 5), Some(3)),
        (versions(4, 5), versions(1, 3), None),
        (versions(1, 9), versions(4, 4), Some(4)),
    ] {
        assert_eq!(ours.common(theirs), common);
        assert_eq!(theirs.common(ours), common);
    }
}

proptest! {
    #[test]
    fn both_readers_agree(which in 0..23usize, changes in proptest::collection::vec(
        (any::<proptest::sample::Index>(), any::<u8>(), any::<bool>()), 0..4)) {
        let mut bytes = encoded(1, &every_message()[which]).split_off(LENGTH_BYTES);
        for (at, byte, insert) in changes {
            let at = at.index(bytes.len());
            if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
        }
        let mut framed = BytesMut::from(&[&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()[..]);
        let length = framed.len();
        match codec::take(&mut framed, length) {
            Some((request, kind)) => {
                let generated = wire::Frame::decode(&bytes[..]).unwrap();
                prop_assert_eq!(wire::Frame { request, kind: Some(kind) }, generated);
                prop_assert!(framed.is_empty());
            }
            None => prop_assert_eq!(framed.len(), length),
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = frames(&bytes);
        let framed = [&(bytes.len() as u32).to_be_bytes()[..], &bytes].concat();
        let _ = frames(&framed);
    }

    #[test]
    fn changed_frames_never_panic(which in 0..23usize, at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encoded(1, &every_message()[which]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = frames(&bytes);
    }

    #[test]
    fn the_cuts_of_the_stream_do_not_matter(cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8)) {
        let mut wire = BytesMut::new();
        for message in every_message() {
            encode(1, &message, &mut wire);
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
        cuts.extend([0, wire.len()]);
        cuts.sort_unstable();
        let mut reader = FrameReader::new(FRAME_BYTES_MAX);
        let mut said = Vec::new();
        for part in cuts.windows(2) {
            let bytes = &wire[part[0]..part[1]];
            reader.buffer(64).extend_from_slice(bytes);
            while let Some(envelope) = reader.next_frame().unwrap() {
                said.push(envelope.message);
            }
        }
        prop_assert!(!reader.is_mid_frame());
        prop_assert_eq!(said, every_message());
    }

    #[test]
    fn any_question_that_fits_arrives(
        key in proptest::collection::vec(any::<u8>(), 0..300),
        target in "/[!-~]{0,300}",
        value in "[ -~]{0,300}",
        have in any::<(u64, u64)>(),
        window in 0..=WINDOW_BYTES_MAX,
    ) {
        let mut asked = question();
        asked.ask.key = key.into();
        asked.ask.target = target.into();
        asked.ask.fields = Fields::from_pairs([("X", value)]).unwrap();
        asked.have = EntryId { incarnation: have.0, fill: have.1 };
        asked.window = window;
        prop_assert!(question_fits(&asked.ask));
        let message = Message::Ask(Box::new(asked));
        let said = frames(&encoded(u64::MAX, &message)).unwrap();
        prop_assert_eq!(&said, &[Envelope { request: u64::MAX, message }]);
    }
}

/// What an owner says of a hot key, in the form that both readers take.
#[test]
fn the_heat_of_a_key_goes_with_a_head() {
    let entry = EntryId { incarnation: u64::MAX, fill: u64::MAX };
    for (minute_rate, replicas) in [(0, 0), (1, 0), (0, 16), (u32::MAX, u32::MAX)] {
        let hop = Hop { minute_rate, replicas, body: entry, entry, weak_date: true, ..head().hop.unwrap() };
        let message = Message::Head(Box::new(Head { hop: Some(hop), ..head() }));
        let bytes = encoded(300, &message);
        assert_eq!(frames(&bytes).unwrap(), [Envelope { request: 300, message: message.clone() }]);
        let mut generated = BytesMut::new();
        encode_generated(300, &message, &mut generated);
        assert_eq!(bytes, generated);
    }
}
