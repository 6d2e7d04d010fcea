//! Purges of every kind, and the promise that each of them makes when it is acknowledged.
//!
//! The promise is kept in versions: what was fetched before a purge was received has no later version than the key had then.
//! Every purge here follows a change of what it is about, so that what it overtakes is always an older version.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use groupcache_proxy::purge::{Target, is_on_path};
use groupcache_proxy::purging::{NodeState, PurgeRequest, Receipt};
use tokio::time::Instant;

use crate::network::Place;
use crate::node::{GROUP, Node, place_of};
use crate::origin::text;
use crate::random::Random;
use crate::trace::event;
use crate::world::{FaultKind, World};

/// The oldest versions of a key that an answer may have; of even and of odd ones, because a tag may name either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    hard: [u64; 2],
    /// What is older may still stand in for an origin that fails.
    soft: [u64; 2],
}

impl Floor {
    /// Whether an answer may have this version.
    pub fn allows(&self, version: u64, origin_failed: bool) -> bool {
        let parity = version as usize % 2;
        version >= self.hard[parity] && (origin_failed || version >= self.soft[parity])
    }

    /// The higher one of each.
    pub fn with(self, other: Floor) -> Floor {
        let higher = |one: [u64; 2], other: [u64; 2]| [one[0].max(other[0]), one[1].max(other[1])];
        Floor { hard: higher(self.hard, other.hard), soft: higher(self.soft, other.soft) }
    }
}

/// What somebody wants to purge.
#[derive(Clone, Debug)]
pub struct Aim {
    targets: Vec<Target>,
    soft: bool,
    /// Only even or only odd versions go.
    parity: Option<usize>,
    /// The keys that it is about.
    pub keys: Vec<Bytes>,
}

impl Aim {
    /// A purge of one of the kinds, about `key` and whatever else of `keys` it happens to name.
    pub fn some(random: &Random, key: &Bytes, keys: &[Bytes]) -> Aim {
        let letter = Bytes::copy_from_slice(&key[..1]);
        let target = match random.number(0..100) {
            0..45 => Target::Key(GROUP.into(), key.clone()),
            45..58 => Target::Path(GROUP.into(), key.clone()),
            58..70 => Target::Prefix(GROUP.into(), random.pick(&[&key[..1], &key[..], &key[..]]).to_vec().into()),
            70..76 => Target::Tag(Some(GROUP.into()), [b"kind-", &letter[..]].concat().into()),
            76..92 => Target::Tag(None, [b"key-", &key[..]].concat().into()),
            92..96 => Target::Tag(None, random.pick(&[&b"even"[..], b"odd"]).into()),
            96..98 => Target::Group(GROUP.into()),
            _ => Target::Everything,
        };
        let parity = match target.value() {
            b"even" => Some(0),
            b"odd" => Some(1),
            _ => None,
        };
        let mut targets = vec![target];
        if random.percent(10) {
            targets.push(Target::Key(GROUP.into(), keys[random.index(keys.len())].clone()));
        }
        let names = |target: &Target, key: &Bytes| match target {
            Target::Path(_, path) => is_on_path(key, path),
            Target::Tag(_, tag) if parity.is_none() => {
                **tag == [b"kind-", &key[..1]].concat() || **tag == [b"key-", &key[..]].concat()
            }
            // Of another key that a second target names all versions go, which is left out of the promise.
            Target::Tag(..) => true,
            target => target.matches_key(GROUP, key),
        };
        let keys = keys.iter().filter(|key| targets.iter().any(|target| names(target, key))).cloned().collect();
        Aim { targets, soft: random.percent(25), parity, keys }
    }

    /// What it names.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// What no answer may be older than once this is acknowledged, if it is received now.
    fn floors(&self, world: &World) -> Vec<(Bytes, Floor)> {
        let floor = |key: &Bytes| {
            let mut versions = [world.origin.version(key); 2];
            if let Some(parity) = self.parity {
                versions[1 - parity] = 0;
            }
            match self.soft {
                true => Floor { soft: versions, ..Floor::default() },
                false => Floor { hard: versions, ..Floor::default() },
            }
        };
        self.keys.iter().map(|key| (key.clone(), floor(key))).collect()
    }
}

/// Lets the node at `place` carry out a purge, and notes what follows from its receipt. When members did not confirm in time and
/// `waits`, it is waited until they have.
pub async fn carry_out(world: Arc<World>, place: Place, aim: Aim, patience: Duration, waits: bool) {
    let Some(node) = world.node(place) else { return };
    world.network.running(place).await;
    if node.is_dead() {
        return;
    }
    world.meet(place);
    let (begun, view, lives) = (Instant::now(), world.view(place), world.lives());
    let (floors, number) = (aim.floors(&world), world.journal.purge_begins(node.incarnation, &aim));
    event!(world.trace, "node {place} purges {}", in_words(&aim));
    let (targets, soft) = (aim.targets.clone(), aim.soft);
    let request = PurgeRequest { targets, soft, timeout: patience, ..PurgeRequest::default() };
    let receipt = node.cache.purge_everywhere(request).await;
    world.network.running(place).await;
    world.journal.purge_ends(number);
    if node.is_dead() {
        // Nobody has heard the acknowledgement.
        return;
    }
    event!(world.trace, "node {place} has purged {}{}", in_words(&aim), if receipt.complete { "" } else { " in part" });
    let whole = view.len() == world.size();
    if receipt.complete && world.gossips {
        return raise_for_met(&world, &node, receipt.sequence, &floors);
    }
    // Where leases are kept, who is no member, or not yet, has none either that the purge has not waited for.
    if receipt.complete && (whole || world.strict) {
        return world.journal.raise(None, &floors);
    }
    // Who has confirmed keeps the promise to its own clients, whatever the others do.
    let now = world.lives();
    for confirmed in confirmed_places(&receipt, place) {
        if let Some(life) = lives[confirmed].filter(|life| now[confirmed] == Some(*life)) {
            world.journal.raise(Some(life), &floors);
        }
    }
    if waits && whole && confirmed_at_last(&world, &node, receipt.sequence, begun).await {
        event!(world.trace, "all have confirmed that node {place} purged {}", in_words(&aim));
        world.journal.raise(None, &floors);
    }
}

/// A purge is complete: everybody whom the node ever met has heard of it, unless it has left or died. Of others it cannot know.
fn raise_for_met(world: &World, node: &Node, sequence: u64, floors: &[(Bytes, Floor)]) {
    let (met, unmet): (Vec<_>, Vec<_>) = (world.living().into_iter())
        .partition(|other| other.place == node.place || world.has_met(node.incarnation, other.incarnation));
    for other in &met {
        if other.cache.purges_known().vector.of(node.incarnation) < sequence {
            let detail = format!("node {} does not know purge {sequence} of node {}", other.place, node.place);
            world.trace.broken("a complete purge has reached whoever was met", detail);
        }
    }
    match unmet.is_empty() {
        true => world.journal.raise(None, floors),
        false => {
            world.journal.count("purges complete without a node that was never met");
            met.iter().for_each(|node| world.journal.raise(Some(node.incarnation), floors));
        }
    }
}

/// Waits until all members have confirmed; false when that is not to be expected.
async fn confirmed_at_last(world: &World, node: &Node, sequence: u64, begun: Instant) -> bool {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.network.running(node.place).await;
        // Who leaves the fleet in between is not waited for any more.
        let other_views =
            world.journal.faults_between(begun, Instant::now()).iter().any(|fault| fault.what == FaultKind::Views);
        if node.is_dead() || other_views || world.view(node.place).len() < world.size() {
            return false;
        }
        let (accepted, unconfirmed) = node.cache.purges_accepted();
        if accepted - unconfirmed >= sequence {
            return true;
        }
    }
}

fn confirmed_places(receipt: &Receipt, own: Place) -> impl Iterator<Item = Place> + '_ {
    let confirmed = receipt.nodes.iter().filter(|node| node.state == NodeState::Confirmed);
    confirmed.map(move |node| place_of(&node.url).unwrap_or(own))
}

/// The tags of a key's version.
pub fn tags_of(key: &[u8], version: u64) -> String {
    let parity = if version.is_multiple_of(2) { "even" } else { "odd" };
    format!("kind-{} key-{} {parity}", text(&key[..1]), text(key))
}

fn in_words(aim: &Aim) -> String {
    let target = |target: &Target| {
        let kind = match target {
            Target::Everything => "everything",
            Target::Group(_) => "the group",
            Target::Key(..) => "key ",
            Target::Prefix(..) => "prefix ",
            Target::Path(..) => "path ",
            Target::Tag(..) => "tag ",
        };
        let value = if let Target::Group(_) = target { "".into() } else { text(target.value()) };
        format!("{kind}{value}")
    };
    let targets: Vec<String> = aim.targets.iter().map(target).collect();
    format!("{}{}", targets.join(" and "), if aim.soft { ", softly" } else { "" })
}
