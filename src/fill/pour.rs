//! The body of a fill: to the readers while it arrives, and into the store at its end.

use std::sync::Arc;

use bytes::Bytes;

use super::{ABANDONED_GRACE, Extent, Filling, Received, Shelf};
use crate::cache::{FlightKey, Head, Landed};
use crate::flight::{Fill, Keep};
use crate::memory::Charge;
use crate::source::{BodyStream, FetchError, Method};
use crate::store::Role;

/// What is held of a body while it arrives, and the charge for it.
enum Held {
    /// All of it, to be stored.
    Whole(Charge, Vec<Bytes>),
    /// A window of it, by the readers' flight, which is charged with so many bytes at least.
    Window(Charge, usize),
}

impl Filling {
    /// Hands the body out and stores it at its end. What readers have not taken by then stays charged until they have.
    pub(super) async fn stream(&self, fill: Fill<FlightKey, Landed>, received: Received) {
        let Received { fetched, head, extent, role, reservation } = received;
        let head = Arc::new(head);
        let (mut held, keep) = match reservation {
            Some(charge) => (Held::Whole(charge, Vec::new()), Keep::Whole),
            // Shared by those who wait already; a window suffices for it.
            None => {
                fill.close();
                let (window_bytes, charge) = self.window(&fill, head.content_length);
                let least = charge.bytes();
                (Held::Window(charge, least), Keep::Window(window_bytes))
            }
        };
        if !head.shareable {
            fill.close();
        }
        fill.begin(Landed::Streaming(head.clone()), keep);
        let poured = self.pour(&fill, &head, fetched.body, &mut held).await;
        match (poured, held) {
            (Err(error), Held::Whole(charge, _) | Held::Window(charge, _)) => {
                fill.charge(charge);
                fill.fail(error);
            }
            (Ok(()), Held::Whole(charge, kept)) => {
                self.settle(&fill, &head, &kept, extent, role.map(|role| (role, charge)));
                fill.finish();
            }
            (Ok(()), Held::Window(charge, _)) => {
                fill.charge(charge);
                self.settle(&fill, &head, &[], extent, None);
                fill.finish();
            }
        }
    }

    /// Hands the body out, to its end.
    async fn pour(
        &self,
        fill: &Fill<FlightKey, Landed>,
        head: &Head,
        mut body: Box<dyn BodyStream>,
        held: &mut Held,
    ) -> Result<(), FetchError> {
        let deadline = tokio::time::Instant::now() + self.group.fill_timeout;
        let mut received_bytes: u64 = 0;
        loop {
            let half_done = head.content_length.is_some_and(|length| received_bytes * 2 >= length);
            let next = async {
                match held {
                    // The deadline is for what is to be stored; a long download through a window has the readers' pace.
                    Held::Whole(..) => tokio::time::timeout_at(deadline, body.chunk())
                        .await
                        .unwrap_or(Err(FetchError::broken("the fill took too long"))),
                    Held::Window(..) => body.chunk().await,
                }
            };
            let chunk = tokio::select! {
                // First, because a source that always has a chunk ready would never let it have its turn.
                biased;
                () = fill.abandoned(ABANDONED_GRACE), if matches!(held, Held::Window(..)) || !half_done => {
                    return Err(FetchError::broken("nobody read any longer"));
                }
                chunk = next => chunk,
            };
            let chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(group = %self.group.name, %error, "a body broke off");
                    return Err(error);
                }
            };
            received_bytes += chunk.len() as u64;
            if head.content_length.is_some_and(|length| received_bytes > length) {
                return Err(FetchError::broken("more bytes than declared"));
            }
            // Chunks are often slices of a large read buffer; what is kept must not keep that alive.
            let chunk = match matches!(held, Held::Whole(..)) || chunk.len() < COPIED_BELOW_BYTES {
                true => Bytes::copy_from_slice(&chunk),
                false => chunk,
            };
            if let Held::Whole(charge, kept) = held {
                let unexpected = (received_bytes as usize).saturating_sub(charge.bytes());
                if received_bytes > self.group.object_bytes_max || !charge.try_grow(unexpected) {
                    self.group.stats.not_stored.increment("too_large");
                    fill.close();
                    let (window_bytes, mut window) = self.window(fill, None);
                    let least = window.bytes();
                    // Readers may still hold all of it.
                    window.merge(charge.split(usize::MAX));
                    *held = Held::Window(window, least);
                    fill.narrow(window_bytes);
                } else {
                    kept.push(chunk.clone());
                }
            }
            tokio::select! {
                biased;
                () = fill.push(chunk) => {}
                () = fill.abandoned(ABANDONED_GRACE), if matches!(held, Held::Window(..)) => {
                    return Err(FetchError::broken("nobody read any longer"));
                }
            }
            if let Held::Window(charge, least) = held {
                charge.resize(fill.held_bytes().max(*least));
            }
        }
        match head.content_length {
            Some(length) if self.request.method == Method::Get && received_bytes != length => {
                Err(FetchError::broken("fewer bytes than declared"))
            }
            _ => Ok(()),
        }
    }

    /// The body is whole: stores it where it has a place.
    pub(super) fn settle(
        &self,
        fill: &Fill<FlightKey, Landed>,
        head: &Head,
        kept: &[Bytes],
        extent: Extent,
        place: Option<(Role, Charge)>,
    ) {
        match place {
            Some((role, reservation)) => match self.parts_of(head, kept, extent) {
                Some(parts) => {
                    if !parts.body.is_made_of(kept) {
                        let bytes = kept.iter().map(Bytes::len).sum();
                        fill.charge(self.cache.ledger.charge(bytes));
                    }
                    let shelf = Shelf { role, rule: head.rule.clone(), variant: head.variant.clone() };
                    self.cache.insert(&self.group, fill.key(), shelf, (parts, reservation), &head.dating.stamp);
                }
                None => self.group.stats.not_stored.increment("partial"),
            },
            // The origin has a newer answer, which may not be stored: the old one is superseded (RFC 9111 section 4.3.3).
            None if head.status < 500 => self.supersede(head),
            None => {}
        }
    }

    /// How far a body that is not stored may run ahead, with its charge: about twice the window is held. When memory is short
    /// it is the least that keeps a transfer going. Nobody can join any more.
    fn window(&self, fill: &Fill<FlightKey, Landed>, content_length: Option<u64>) -> (usize, Charge) {
        let whole = content_length.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX)).max(1);
        let bytes = if fill.readers() > 1 { WINDOW_BYTES } else { SOLE_WINDOW_BYTES }.min(whole);
        let ledger = &self.cache.ledger;
        match ledger.reserve(bytes.saturating_mul(2)) {
            Some(charge) => (bytes, charge),
            None => {
                let least = LEAST_WINDOW_BYTES.min(whole);
                (least, ledger.charge(least.saturating_mul(2)))
            }
        }
    }
}

/// How far a body that is not stored may run ahead of its fastest reader. Guess: a few round trips of a fast client.
const WINDOW_BYTES: usize = 1024 * 1024;

/// The same for a single reader, whom nothing makes fall out of it: what keeps both sides of it busy, since each slow reader
/// of a large body takes as much. Guess.
const SOLE_WINDOW_BYTES: usize = 128 * 1024;

/// Of a body that is not stored, longer chunks than this are handed out as they were read: the read buffer that they keep
/// alive is at most four times as large.
const COPIED_BELOW_BYTES: usize = 16 * 1024;

/// The same when memory is short. Guess: one read of a fast origin.
const LEAST_WINDOW_BYTES: usize = 64 * 1024;
