//! Frames of peers: one reading, whatever the pieces in which they come, within every limit, and written anew the same.

use bytes::BytesMut;
use groupcache_proxy::peer::protocol::{
    DATA_BYTES_MAX, Envelope, FRAME_BYTES_MAX, FRAME_BYTES_MAX_UNPROVEN, Failure, FrameReader, Message, ProtocolError,
    TEXT_BYTES_MAX, WINDOW_BYTES_MAX, encode, encode_data_prefix, head_fits, question_fits,
};

pub(super) fn hold(data: &[u8]) {
    for limit in [FRAME_BYTES_MAX_UNPROVEN, FRAME_BYTES_MAX] {
        let whole = read(data, limit, data.len().max(1));
        for piece in [1, 5] {
            assert_eq!(read(data, limit, piece), whole, "in pieces of {piece}");
        }
        for envelope in &whole.0 {
            within_limits(&envelope.message);
            written_anew_it_is_the_same(envelope);
        }
    }
}

/// The frames up to the end or the first error.
fn read(data: &[u8], limit: usize, piece: usize) -> (Vec<Envelope>, Option<ProtocolError>) {
    let mut reader = FrameReader::new(limit);
    let mut envelopes = Vec::new();
    for piece in data.chunks(piece) {
        assert!(reader.buffer(16).capacity() <= 4 * FRAME_BYTES_MAX + 2 * data.len());
        reader.extend(piece);
        loop {
            match reader.next_frame() {
                Ok(Some(envelope)) => envelopes.push(envelope),
                Ok(None) => break,
                Err(error) => return (envelopes, Some(error)),
            }
        }
    }
    (envelopes, None)
}

fn within_limits(message: &Message) {
    let is_text = |text: &str| text.len() <= TEXT_BYTES_MAX && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    match message {
        Message::Ask(question) => {
            assert!(question_fits(&question.ask) && question.window <= WINDOW_BYTES_MAX);
            assert!(question.ask.target.starts_with(b"/") && question.ask.target.iter().all(u8::is_ascii_graphic));
            assert!(!question.ask.group.is_empty());
            assert!(question.ask.host.as_ref().is_none_or(|host| !host.is_empty()));
        }
        Message::Head(head) => assert!(head_fits(head)),
        Message::Data(payload) => assert!(!payload.is_empty() && payload.len() <= FRAME_BYTES_MAX),
        Message::Identity(identity) => assert!(is_text(&identity.software)),
        Message::Goodbye { text, .. } => assert!(is_text(text)),
        Message::Abort { reason } | Message::Failure(Failure::Unreachable(reason)) => assert!(is_text(reason)),
        Message::Failure(Failure::Refused(status, reason)) => {
            assert!((500..=599).contains(status) && is_text(reason));
        }
        Message::Hello(hello) | Message::Challenge(hello) => {
            assert!(hello.versions.min >= 1 && hello.versions.min <= hello.versions.max);
        }
        _ => {}
    }
}

fn written_anew_it_is_the_same(envelope: &Envelope) {
    let mut out = BytesMut::new();
    encode(envelope.request, &envelope.message, &mut out);
    let (again, error) = read(&out, 2 * FRAME_BYTES_MAX, out.len());
    assert_eq!((&again[..], error), (std::slice::from_ref(envelope), None));
    if let Message::Data(payload) = &envelope.message
        && payload.len() <= DATA_BYTES_MAX
    {
        let mut prefix = BytesMut::new();
        encode_data_prefix(envelope.request, payload.len(), &mut prefix);
        prefix.extend_from_slice(payload);
        let (again, error) = read(&prefix, FRAME_BYTES_MAX, prefix.len());
        assert_eq!((&again[..], error), (std::slice::from_ref(envelope), None));
    }
}
