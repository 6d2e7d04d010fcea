//! Purges to bytes and back (`proto/purge.proto`). What arrives is checked here, whole, as [`super::protocol`] does it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::peer::protocol::{GROUP_BYTES_MAX, KEY_BYTES_MAX, ProtocolError};
use crate::purge::lease::{Booked, LeaseAnswer, LeaseQuestion, PREVIOUS_MAX};
use crate::purge::{Claim, Notice, Position, Record, Reply, Target, Vector};

/// The generated messages of `proto/purge.proto`.
mod wire {
    #![allow(missing_docs, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/groupcache_proxy.purge.v1.rs"));
}

/// The notice in pieces that fit into a frame each, to be sent in this order: only the last one claims that anything is complete.
pub(super) fn encode_notice(notice: &Notice) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut records = Vec::new();
    let mut bytes = 0;
    for record in &notice.records {
        let record = record_to_wire(record);
        let record_bytes = record.encoded_len() + RECORD_BYTES_EXTRA;
        if bytes + record_bytes > PIECE_BYTES_MAX && !records.is_empty() {
            let piece = wire::Notice {
                base: positions_to_wire(&notice.base),
                records: std::mem::take(&mut records),
                dry_run: notice.dry_run,
                ..wire::Notice::default()
            };
            pieces.push(piece.encode_to_vec().into());
            bytes = 0;
        }
        bytes += record_bytes;
        records.push(record);
    }
    pieces.push(wire::Notice { records, ..notice_to_wire(notice) }.encode_to_vec().into());
    pieces
}

/// # Errors
/// The bytes are no notice.
pub(super) fn decode_notice(bytes: Bytes) -> Result<Notice, ProtocolError> {
    check_notice(wire::Notice::decode(bytes).map_err(|_| ProtocolError::Malformed("notice of purges"))?)
}

pub(super) fn encode_reply(reply: &Reply) -> Bytes {
    let entries = reply
        .entries
        .iter()
        .map(|(position, entries)| wire::Entries { position: Some(position_to_wire(*position)), entries: *entries });
    let missing = reply.missing.as_ref().map(|missing| {
        let records = missing.records.iter().map(record_to_wire).collect();
        wire::Notice { records, ..notice_to_wire(missing) }
    });
    let reply = wire::Reply {
        understood: reply.understood,
        applied: positions_to_wire(&reply.applied),
        entries: entries.collect(),
        missing,
        lease: reply.lease.as_ref().map(lease_to_wire),
    };
    reply.encode_to_vec().into()
}

/// # Errors
/// The bytes are no reply.
pub(super) fn decode_reply(bytes: Bytes) -> Result<Reply, ProtocolError> {
    let reply = wire::Reply::decode(bytes).map_err(|_| ProtocolError::Malformed("reply to purges"))?;
    let entries = reply.entries.into_iter().map(|counted| Ok((check_position(counted.position)?, counted.entries)));
    Ok(Reply {
        understood: reply.understood,
        applied: check_vector(reply.applied)?,
        entries: entries.collect::<Result<_, _>>()?,
        missing: reply.missing.map(check_notice).transpose()?.map(Box::new),
        lease: reply.lease.map(check_lease).transpose()?,
    })
}

/// All but the records.
fn notice_to_wire(notice: &Notice) -> wire::Notice {
    let claims = notice
        .claims
        .iter()
        .map(|claim| wire::Position { age_seconds: claim.age_seconds, ..position_to_wire(claim.position) });
    wire::Notice {
        dry_run: notice.dry_run,
        wants_missing: notice.known.is_some(),
        known: notice.known.as_ref().map(positions_to_wire).unwrap_or_default(),
        base: positions_to_wire(&notice.base),
        records: Vec::new(),
        claims: claims.collect(),
        lease_life: notice.lease.map_or(0, |question| question.life),
        wants_booked: notice.lease.is_some_and(|question| question.wants_booked),
    }
}

fn lease_to_wire(answer: &LeaseAnswer) -> wire::Lease {
    let booked = answer.booked.iter().map(|booked| wire::Booked {
        life: booked.life,
        // Upwards: a lease must not seem to end sooner than it does.
        remaining_milliseconds: u32::try_from(booked.remaining.as_micros().div_ceil(1000)).unwrap_or(u32::MAX),
    });
    let (list, previous) = (answer.list, answer.previous.clone());
    wire::Lease { life: answer.life, settled: answer.settled, booked: booked.collect(), list, previous }
}

fn check_lease(lease: wire::Lease) -> Result<LeaseAnswer, ProtocolError> {
    if lease.life == 0 || lease.booked.len() > BOOKED_MAX || lease.previous.len() > PREVIOUS_MAX {
        return Err(ProtocolError::Malformed("lease"));
    }
    let booked = lease.booked.into_iter().map(|booked| Booked {
        life: booked.life,
        remaining: Duration::from_millis(booked.remaining_milliseconds.into()),
    });
    let (list, previous) = (lease.list, lease.previous);
    Ok(LeaseAnswer { list, previous, life: lease.life, settled: lease.settled, booked: booked.collect() })
}

fn position_to_wire(position: Position) -> wire::Position {
    wire::Position { incarnation: position.incarnation, sequence: position.sequence, age_seconds: 0 }
}

fn positions_to_wire(vector: &Vector) -> Vec<wire::Position> {
    vector.positions().iter().copied().map(position_to_wire).collect()
}

fn record_to_wire(record: &Record) -> wire::Record {
    wire::Record {
        position: Some(position_to_wire(record.position)),
        soft: record.soft,
        targets: record.targets.iter().map(|target| target_to_wire(target)).collect(),
    }
}

fn target_to_wire(target: &Target) -> wire::Target {
    use wire::target::Kind;
    let kind = match target {
        Target::Everything => Kind::Everything,
        Target::Group(_) => Kind::Group,
        Target::Key(..) => Kind::Key,
        Target::Prefix(..) => Kind::Prefix,
        Target::Path(..) => Kind::Path,
        Target::Tag(..) => Kind::Tag,
    };
    let group = target.group().map(|group| Bytes::copy_from_slice(group.as_bytes())).unwrap_or_default();
    wire::Target { kind: kind.into(), group, value: Bytes::copy_from_slice(target.value()) }
}

fn check_notice(notice: wire::Notice) -> Result<Notice, ProtocolError> {
    let records = notice.records.into_iter().map(|record| {
        let targets = record.targets.into_iter().map(|target| check_target(target).map(Arc::new));
        Ok(Record {
            position: check_position(record.position)?,
            soft: record.soft,
            targets: targets.collect::<Result<_, _>>()?,
        })
    });
    let claims = notice.claims.into_iter().map(|claim| {
        let age_seconds = claim.age_seconds;
        Ok(Claim { position: check_position(Some(claim))?, age_seconds })
    });
    let known = check_vector(notice.known)?;
    Ok(Notice {
        dry_run: notice.dry_run,
        known: notice.wants_missing.then_some(known),
        base: check_vector(notice.base)?,
        records: records.collect::<Result<_, _>>()?,
        claims: claims.collect::<Result<_, _>>()?,
        lease: (notice.lease_life > 0)
            .then_some(LeaseQuestion { life: notice.lease_life, wants_booked: notice.wants_booked }),
    })
}

fn check_target(target: wire::Target) -> Result<Target, ProtocolError> {
    use wire::target::Kind;
    const MALFORMED: ProtocolError = ProtocolError::Malformed("target of a purge");
    let kind = Kind::try_from(target.kind).map_err(|_| MALFORMED)?;
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    if target.group.len() > GROUP_BYTES_MAX
        || !target.group.iter().all(is_allowed)
        || target.value.len() > KEY_BYTES_MAX
    {
        return Err(MALFORMED);
    }
    let group: Option<Arc<str>> = match std::str::from_utf8(&target.group) {
        Ok("") => None,
        Ok(group) => Some(group.into()),
        Err(_) => return Err(MALFORMED),
    };
    let value = Bytes::copy_from_slice(&target.value);
    Ok(match (kind, group) {
        (Kind::Everything, _) => Target::Everything,
        (Kind::Tag, group) => Target::Tag(group, value),
        (_, None) => return Err(MALFORMED),
        (Kind::Group, Some(group)) => Target::Group(group),
        (Kind::Key, Some(group)) => Target::Key(group, value),
        (Kind::Prefix, Some(group)) => Target::Prefix(group, value),
        (Kind::Path, Some(group)) => Target::Path(group, value),
    })
}

fn check_position(position: Option<wire::Position>) -> Result<Position, ProtocolError> {
    match position {
        Some(position) if position.incarnation > 0 && position.sequence > 0 => {
            Ok(Position { incarnation: position.incarnation, sequence: position.sequence })
        }
        _ => Err(ProtocolError::Malformed("position of a purge")),
    }
}

fn check_vector(positions: Vec<wire::Position>) -> Result<Vector, ProtocolError> {
    if positions.len() > LIVES_MAX {
        return Err(ProtocolError::Malformed("vector of purges"));
    }
    let positions = positions.into_iter().map(|position| check_position(Some(position)));
    Ok(Vector::new(positions.collect::<Result<Vec<_>, _>>()?))
}

/// A stamp on its way: lives and numbers alternate.
pub(super) fn stamp_to_wire(stamp: &Vector) -> Vec<u64> {
    stamp.positions().iter().flat_map(|position| [position.incarnation, position.sequence]).collect()
}

/// # Errors
/// They do not alternate, or are too many.
pub(super) fn stamp_of_wire(numbers: &[u64]) -> Result<Vector, ProtocolError> {
    let pairs = numbers.chunks_exact(2);
    if !pairs.remainder().is_empty() || numbers.len() > 2 * LIVES_MAX {
        return Err(ProtocolError::Malformed("stamp"));
    }
    Ok(Vector::new(pairs.map(|pair| Position { incarnation: pair[0], sequence: pair[1] })))
}

/// Room in a frame for a piece of a notice beside one large record.
const PIECE_BYTES_MAX: usize = 64 * 1024;
const RECORD_BYTES_EXTRA: usize = 8;
/// Nodes that accept purges, with their earlier lives of the last hours.
const LIVES_MAX: usize = 4096;
/// More leases than any node books.
const BOOKED_MAX: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::protocol::FRAME_BYTES_MAX;
    use crate::purge::in_records;

    fn position(incarnation: u64, sequence: u64) -> Position {
        Position { incarnation, sequence }
    }

    fn notice(records: u64) -> Notice {
        let group: Arc<str> = "g".into();
        let targets = [
            Target::Everything,
            Target::Group(group.clone()),
            Target::Key(group.clone(), "a".into()),
            Target::Prefix(group.clone(), "".into()),
            Target::Path(group.clone(), "b".into()),
            Target::Tag(None, "t".into()),
            Target::Tag(Some(group), vec![0xff; 1000].into()),
        ];
        let record = |sequence| Record {
            position: position(7, sequence),
            soft: sequence % 2 == 0,
            targets: targets.iter().cloned().map(Arc::new).collect(),
        };
        Notice {
            dry_run: false,
            known: Some(Vector::new([position(3, 4)])),
            base: Vector::new([position(7, 1)]),
            records: (2..records + 2).map(record).collect(),
            claims: vec![Claim { position: position(7, records + 1), age_seconds: 9 }],
            lease: Some(LeaseQuestion { life: 11, wants_booked: true }),
        }
    }

    #[test]
    fn whatever_is_purged_is_understood_and_fits_into_frames() {
        let group: Arc<str> = "g".repeat(GROUP_BYTES_MAX).into();
        let text = |bytes: usize| Bytes::from(vec![b'a'; bytes]);
        let long = [
            Target::Key(group.clone(), text(20_000)),
            Target::Prefix(group.clone(), text(20_000)),
            Target::Path(group.clone(), text(20_000)),
        ];
        let prefix = Target::Prefix(group.clone(), text(KEY_BYTES_MAX));
        for target in long.clone() {
            assert_eq!(target.tellable().as_ref(), Some(&prefix));
        }
        for target in [
            Target::Tag(None, text(20_000)),
            Target::Group("user.profiles".into()),
            Target::Key("a b".into(), text(1)),
            Target::Tag(Some("".into()), text(1)),
            Target::Group("g".repeat(GROUP_BYTES_MAX + 1).into()),
        ] {
            assert_eq!(target.tellable(), None);
        }
        let many = (0..1000).map(|number| Target::Path(group.clone(), text(number)));
        let records = in_records(many.clone().chain(long).chain([Target::Everything]));
        assert_eq!(records.iter().map(Vec::len).sum::<usize>(), 1004);
        assert!(records.iter().flatten().map(|target| (**target).clone()).take(1000).eq(many));
        let records = records.into_iter().zip(1..).map(|(targets, sequence)| Record {
            position: position(1, sequence),
            soft: false,
            targets,
        });
        let notice = Notice { records: records.collect(), ..Notice::default() };
        let pieces = encode_notice(&notice);
        assert!(pieces.len() > 3 && pieces.iter().all(|piece| piece.len() < FRAME_BYTES_MAX * 3 / 4));
        let heard = pieces.into_iter().flat_map(|piece| decode_notice(piece).unwrap().records);
        assert_eq!(heard.collect::<Vec<_>>(), notice.records);
    }

    #[test]
    fn what_is_said_is_what_is_heard() {
        let said = notice(1);
        let [piece] = &encode_notice(&said)[..] else { panic!("one piece") };
        assert_eq!(decode_notice(piece.clone()), Ok(said.clone()));
        let reply = Reply {
            understood: true,
            applied: Vector::new([position(1, 2), position(3, 4)]),
            entries: vec![(position(1, 2), 5)],
            missing: Some(Box::new(said)),
            lease: Some(LeaseAnswer {
                list: u64::MAX,
                previous: vec![1, 2],
                life: 12,
                settled: true,
                booked: vec![Booked { life: 11, remaining: Duration::from_millis(1500) }],
            }),
        };
        assert_eq!(decode_reply(encode_reply(&reply)), Ok(reply));
    }

    #[test]
    fn only_the_last_piece_claims_anything() {
        let said = notice(1000);
        let pieces: Vec<Notice> = encode_notice(&said).into_iter().map(|piece| decode_notice(piece).unwrap()).collect();
        assert!(pieces.len() > 5);
        let (last, others) = pieces.split_last().unwrap();
        assert!(others.iter().all(|piece| piece.claims.is_empty() && piece.known.is_none() && piece.base == said.base));
        assert_eq!((&last.claims, &last.known), (&said.claims, &said.known));
        let records: Vec<Record> = pieces.iter().flat_map(|piece| piece.records.clone()).collect();
        assert_eq!(records, said.records);
    }

    #[test]
    fn garbage_is_refused() {
        assert!(decode_notice(Bytes::from_static(b"\xff\xff")).is_err());
        assert!(decode_reply(Bytes::from_static(b"\xff\xff")).is_err());
        assert!(stamp_of_wire(&[1]).is_err());
        assert_eq!(stamp_of_wire(&[]), Ok(Vector::default()));
        for target in [
            wire::Target { kind: 9, ..wire::Target::default() },
            wire::Target { kind: 2, ..wire::Target::default() },
            wire::Target { kind: 2, group: "a/b".into(), ..wire::Target::default() },
            wire::Target { kind: 2, group: "a".into(), value: vec![0; KEY_BYTES_MAX + 1].into() },
        ] {
            assert!(check_target(target.clone()).is_err(), "{target:?}");
        }
        assert!(check_position(None).is_err());
        assert!(check_position(Some(wire::Position::default())).is_err());
    }
}
