//! At most one hop: every question between nodes has a cause, and what it may cause in turn is counted.
//!
//! A client's request carries its number as a field that every node forwards, so each *load* and each *peek* tells whose it is,
//! however many requests are under way for the same key. What follows is exact:
//!
//! - A load is asked by the node that the client asked, and by no other: who was asked by a peer asks nobody to load.
//! - It asks each other node at most once, and once for each rest of a body that it fell behind in; once more after an answer that
//!   a purge had overtaken.
//! - A peek is asked by that node, or by one that was asked to load for this request, at most once for each such question (and once
//!   more at a replica; and, by the node that the client asked, once more after each answer that a purge had overtaken). Whoever was
//!   only peeked at asks nobody anything.
//! - Without a request behind it a peek follows an offer or a replica that was pushed, one each; a load never does. So purges,
//!   offers and replicas cause no load.
//! - What a node answers a peer with, it had in memory, or loaded, or peeked at; it did not come from a third node.
//! - Permits are asked for by those who load, of each node once.

use std::collections::BTreeMap;

use bytes::Bytes;
use groupcache_proxy::fields::Fields;
use groupcache_proxy::fleet::Purpose;
use groupcache_proxy::source::{Ask, Fetched};
use tokio::time::Instant;

use crate::invariants::PURGE_LAG;
use crate::network::Place;
use crate::origin::text;

/// A question that a node got of a peer.
#[derive(Clone, Copy)]
pub struct Heard<'a> {
    /// Where.
    pub place: Place,
    /// The life that got it.
    pub life: u64,
    /// The life that asked.
    pub asker: u64,
    /// What it asked.
    pub what: What<'a>,
}

/// What a peer asked.
#[derive(Clone, Copy)]
pub enum What<'a> {
    /// To answer from memory or from the origin.
    Load(&'a Ask),
    /// To answer from memory.
    Peek(&'a Ask),
    /// To take over what the asker has.
    Offer(&'a Ask),
    /// To answer with what the asker has.
    Replicate(&'a Ask),
    /// To let it be at the origin.
    Permit(Purpose),
}

/// A promise that was broken, and by what.
type Breach = (&'static str, String);

/// Who asked whom for what, and why.
#[derive(Default)]
pub struct Hops {
    /// By number.
    requests: BTreeMap<u64, Request>,
    /// Numbers below belong to requests that were forgotten.
    first: u64,
    next: u64,
    lives: BTreeMap<u64, Life>,
    /// By life and key.
    keys: BTreeMap<(u64, Bytes), OfKey>,
    /// When a purge of the key was under way last.
    purged: BTreeMap<Bytes, Instant>,
    /// There were others, which may have named more than the keys that were forgotten with them.
    forgot_purges: bool,
}

/// A client's request.
struct Request {
    /// The life that the client asked.
    life: u64,
    begun: Instant,
    /// Loads, by the place that was asked and the range that was wanted.
    loads: BTreeMap<(Place, Option<Bytes>), u64>,
    /// Loads, by the life that was asked.
    heard: BTreeMap<u64, u64>,
    /// Peeks, by the life that asked.
    peeks: BTreeMap<u64, u64>,
}

/// What a life has to ask for permits for, and how often it did, by the place that it asked.
#[derive(Default)]
struct Life {
    reasons: u64,
    permits: BTreeMap<Place, u64>,
}

#[derive(Default)]
struct OfKey {
    /// Offers and replicas that this life got of the key.
    given: u64,
    /// Peeks of this life at what it was given.
    fetched: u64,
    /// Peeks of this life for requests.
    peeked: u64,
}

impl Hops {
    /// A client asks a life; returns what its request is to carry.
    pub fn request(&mut self, life: u64) -> Fields {
        let number = self.next;
        self.next += 1;
        let request = Request {
            life,
            begun: Instant::now(),
            loads: BTreeMap::new(),
            heard: BTreeMap::new(),
            peeks: BTreeMap::new(),
        };
        self.requests.insert(number, request);
        self.lives.entry(life).or_default().reasons += 1;
        Fields::from_pairs([(CAUSE, number.to_string())]).expect("a field")
    }

    /// These keys are being purged: what is on its way may be overtaken.
    pub fn purged(&mut self, keys: &[Bytes]) {
        for key in keys {
            self.purged.insert(key.clone(), Instant::now());
        }
    }

    /// Forgets everything about requests that have ended.
    pub fn forget(&mut self) {
        self.first = self.next;
        self.requests.clear();
        self.keys.clear();
        self.forgot_purges |= !self.purged.is_empty();
        self.purged.clear();
    }

    /// A node got a question; says what of it should not be.
    pub fn heard(&mut self, heard: &Heard<'_>) -> Option<Breach> {
        match heard.what {
            What::Load(ask) => self.load(heard, ask),
            What::Peek(ask) => self.peek(heard, ask),
            What::Offer(ask) | What::Replicate(ask) => {
                self.of_key(heard.life, &ask.key).given += 1;
                None
            }
            What::Permit(Purpose::Begin) => self.permit(heard),
            // Whoever counts changes with the fleet.
            What::Permit(Purpose::Continue) => None,
        }
    }

    /// A node answers a peer; says what of that should not be.
    pub fn answered(&mut self, life: u64, key: &Bytes, fetched: &Fetched) -> Option<Breach> {
        let hop = fetched.hop.as_ref()?;
        let from_memory = hop.hit || hop.stale || hop.not_modified;
        if from_memory || hop.entry.incarnation == life || self.of_key(life, key).peeked > 0 {
            return None;
        }
        let whose = hop.entry.incarnation;
        Some((
            ONE_HOP,
            format!("life {life} answers a peer's question for {} with what life {whose} loaded", text(key)),
        ))
    }

    fn load(&mut self, heard: &Heard<'_>, ask: &Ask) -> Option<Breach> {
        let Heard { place, life, asker, .. } = *heard;
        self.lives.entry(life).or_default().reasons += 1;
        let about = || format!("life {asker} asks node {place} to load {}", text(&ask.key));
        let Some(number) = cause(ask) else {
            return Some((ONE_HOP, format!("{}, and no client asked for it", about())));
        };
        let request = match self.requests.get_mut(&number) {
            Some(request) => request,
            None if number < self.first => return None,
            None => return Some((ONE_HOP, format!("{} for a request that nobody made", about()))),
        };
        let range = ask.fields.get("range").map(Bytes::copy_from_slice);
        let times = request.loads.entry((place, range)).or_default();
        *times += 1;
        let times = *times;
        *request.heard.entry(life).or_default() += 1;
        if asker != request.life {
            return Some((ONE_HOP, format!("{} because life {} asked it", about(), request.life)));
        }
        let overtaken = self.purged.get(&ask.key).is_some_and(|&at| at + PURGE_LAG >= request.begun);
        let allowed = if overtaken || self.forgot_purges { ASKED_AGAIN_MAX } else { 1 };
        (times > allowed).then(|| ("each node is asked once", format!("{} for the {times}th time", about())))
    }

    fn peek(&mut self, heard: &Heard<'_>, ask: &Ask) -> Option<Breach> {
        let Heard { place, asker, .. } = *heard;
        let about = || format!("life {asker} peeks at {} of node {place}", text(&ask.key));
        let Some(number) = cause(ask) else {
            let of_key = self.of_key(asker, &ask.key);
            of_key.fetched += 1;
            let OfKey { given, fetched, .. } = *of_key;
            let breach = || format!("{} for the {fetched}th time, and was given it {given} times", about());
            return (fetched > given).then(|| (ONE_PEEK, breach()));
        };
        self.of_key(asker, &ask.key).peeked += 1;
        let request = match self.requests.get_mut(&number) {
            Some(request) => request,
            None if number < self.first => return None,
            None => return Some((ONE_PEEK, format!("{} for a request that nobody made", about()))),
        };
        let peeks = request.peeks.entry(asker).or_default();
        *peeks += 1;
        // Of those that it asked: one for each question.
        let overtaken =
            self.purged.get(&ask.key).is_some_and(|&at| at + PURGE_LAG >= request.begun) || self.forgot_purges;
        let own = match asker == request.life {
            true if overtaken => OWN_PEEKS_MAX + FURTHER_LOADS_MAX,
            true => OWN_PEEKS_MAX,
            false => 0,
        };
        let allowed = own + request.heard.get(&asker).copied().unwrap_or_default();
        (*peeks > allowed).then(|| (ONE_PEEK, format!("{} for the {peeks}th time, allowed {allowed}", about())))
    }

    fn permit(&mut self, heard: &Heard<'_>) -> Option<Breach> {
        let life = self.lives.entry(heard.asker).or_default();
        let permits = life.permits.entry(heard.place).or_default();
        *permits += 1;
        let breach = || format!("life {} asks node {} for the {permits}th permit", heard.asker, heard.place);
        (*permits > life.reasons * PERMITS_PER_REASON).then(|| ("permits are asked for by those who load", breach()))
    }

    fn of_key(&mut self, life: u64, key: &Bytes) -> &mut OfKey {
        self.keys.entry((life, key.clone())).or_default()
    }
}

/// The number of the request that a question is for.
fn cause(ask: &Ask) -> Option<u64> {
    std::str::from_utf8(ask.fields.get(CAUSE)?).ok()?.parse().ok()
}

const ONE_HOP: &str = "at most one hop";
const ONE_PEEK: &str = "one peek for each question";

/// The field by which a request is known.
const CAUSE: &str = "x-request";

/// A node may be asked once more: after one of the nodes answered with what a purge had overtaken.
const ASKED_AGAIN_MAX: u64 = 2;
/// A request opens one flight: the fill of its own begins after it came, so no purge that was over then can overtake that. It
/// peeks at a replica before it asks, and at who had the key before where it loads in the owner's stead.
const OWN_PEEKS_MAX: u64 = 2;
/// Its fill turns to the fleet, once more to the fleet, and to the origin here, each time because a purge had overtaken what came.
/// Where this node has become the owner meanwhile, each time it loads here, and each such load looks at who had the key before.
const FURTHER_LOADS_MAX: u64 = 2;
/// A life asks a node for one permit in each flight, and once more if the first answer was overtaken.
const PERMITS_PER_REASON: u64 = 2;
