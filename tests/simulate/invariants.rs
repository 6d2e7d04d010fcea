//! What is checked when a run is over: loads, bytes, flights, and that a healed fleet answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use groupcache_proxy::purge::lease::Standing;
use groupcache_proxy::source::Method;
use groupcache_proxy::store::Weighed;
use tokio::time::Instant;

use crate::clients;
use crate::node::Node;
use crate::origin::{Ended, Fetch, Kind, SHORT_LIFETIME, text};
use crate::script::{PATIENCE, RECONNECTED};
use crate::trace::event;
use crate::world::{Fault, FaultKind, Purge, World};

/// How many loads of a key the fleet as a whole may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loads {
    /// One per lifetime and purge.
    One,
    /// One more for each death and each birth of a node.
    OnePerLife,
    /// One for each node that owns the key by somebody's view.
    OnePerOwner,
    /// Ways were blocked or nodes frozen: what each node loads is all that can be said.
    OnePerNode,
}

/// Every node answers for every key within [`HEALED_WITHIN`].
pub async fn healed(world: &Arc<World>, keys: &[Bytes]) {
    event!(world.trace, "healed");
    let deadline = Instant::now() + HEALED_WITHIN;
    let mut asking = tokio::task::JoinSet::new();
    for node in world.living() {
        for key in keys {
            let (world, key, place) = (world.clone(), key.clone(), node.place);
            asking.spawn(async move {
                loop {
                    if clients::request(world.clone(), place, key.clone()).await {
                        break Instant::now() <= deadline;
                    }
                    if Instant::now() > deadline {
                        break false;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
    }
    while let Some(answered) = asking.join_next().await {
        if !answered.unwrap_or(false) {
            world.trace.broken("after healing everything is answered within five seconds", "");
        }
    }
}

/// Every node sees the whole fleet again; one that came and went often is watched for a while before.
pub async fn whole(world: &World) {
    let deadline = Instant::now() + WHOLE_WITHIN;
    while !world.is_whole() {
        if Instant::now() > deadline {
            let views: Vec<_> = (0..world.size()).map(|place| world.view(place)).collect();
            return world.trace.broken("a healed fleet is whole again", format!("{views:?}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until nothing is in flight, and checks what is left.
pub async fn quiescent(world: &World) {
    let deadline = Instant::now() + QUIET_WITHIN;
    for node in world.living() {
        while let Some(why) = unquiet(&node) {
            if Instant::now() > deadline {
                world.trace.broken("bytes and flights at rest", format!("node {}: {why}", node.place));
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Connections that begin anew: every purge that some living node knows, all of them know then, whoever accepted it. And what
/// is purged again and again is kept once.
pub async fn purges_known(world: &World) {
    for node in 0..world.size() {
        (0..node).for_each(|other| world.network.cut(node, other));
    }
    let deadline = Instant::now() + RECONNECTED;
    let unknown = || {
        let known: Vec<_> = world.living().iter().map(|node| (node.place, node.cache.purges_known().vector)).collect();
        let lacking = known.iter().find_map(|(place, vector)| {
            let (other, lacks) = known.iter().find(|(_, other)| !vector.contains_all(other))?;
            Some(format!("node {place} knows {vector:?}, and node {other} {lacks:?}"))
        });
        lacking.or_else(|| {
            let waiting = world.living().into_iter().find(|node| node.cache.purges_accepted().1 > 0)?;
            Some(format!("node {} waits for somebody to confirm", waiting.place))
        })
    };
    while let Some(detail) = unknown() {
        if Instant::now() > deadline {
            return world.trace.broken("who is connected again knows all purges", detail);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (targets, bytes) = world.journal.targets();
    for node in world.living() {
        let charged = node.cache.purges_charged_bytes();
        if charged > targets * RECORD_BYTES_MAX + bytes {
            let detail = format!("node {} keeps {charged} bytes of {targets} targets", node.place);
            world.trace.broken("purges do not pile up", detail);
        }
    }
}

/// Every node gets a lease again.
pub async fn leased(world: &World) {
    let deadline = Instant::now() + LEASED_WITHIN;
    let without = || {
        let mut nodes = world.living().into_iter();
        nodes.find(|node| !matches!(node.cache.lease(), Standing::Held(_) | Standing::Free))
    };
    while let Some(node) = without() {
        if Instant::now() > deadline {
            let detail = format!("node {} has none, and {} lists before", node.place, node.cache.previous_lists());
            return world.trace.broken("whoever is connected again has a lease", detail);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn unquiet(node: &Node) -> Option<String> {
    let flights = node.cache.in_flight();
    if flights > 0 {
        return Some(format!("{flights} flights"));
    }
    let ledger = node.store.ledger();
    let (outside, before) = (ledger.outside(), node.outside_at_start + node.cache.purges_charged_bytes());
    if outside != before {
        return Some(format!("{outside} bytes outside of the store, {before} at the start"));
    }
    let mut entries = 0;
    node.store.for_each(None, |listed| entries += listed.value.charged_bytes());
    let totals = node.store.totals();
    let counted = totals.main_bytes + totals.hot_bytes + totals.negative_bytes;
    if entries != counted {
        return Some(format!("entries of {entries} bytes, counted {counted}"));
    }
    let stored = counted + totals.bookkeeping_bytes;
    (stored != ledger.stored()).then(|| format!("{stored} bytes stored, charged {}", ledger.stored()))
}

/// Checks how often the origin was asked.
pub fn loads(world: &World, allowed: Loads) {
    let (purges, faults) = (world.journal.purges(), world.journal.faults());
    let mut by_key: BTreeMap<Bytes, Vec<Fetch>> = BTreeMap::new();
    for fetch in world.origin.fetches() {
        by_key.entry(fetch.key.clone()).or_default().push(fetch);
    }
    for (key, fetches) in by_key {
        if Kind::of(&key) == Kind::Private {
            continue;
        }
        heads(world, &key, &fetches, &purges, allowed == Loads::One);
        by_each_node(world, &key, &fetches, &purges);
        if matches!(Kind::of(&key), Kind::Long | Kind::Big) {
            by_the_fleet(world, &key, &fetches, &purges, &faults, allowed);
        }
    }
}

/// No life of a node asks twice within a lifetime, unless something was purged or went wrong in between.
fn by_each_node(world: &World, key: &Bytes, fetches: &[Fetch], purges: &[Purge]) {
    let mut last: BTreeMap<u64, &Fetch> = BTreeMap::new();
    for fetch in fetches.iter().filter(|fetch| fetch.method == Method::Get) {
        let Some(before) = last.insert(fetch.incarnation, fetch) else { continue };
        let whole = matches!(before.ended, None | Some((_, Ended::Whole)));
        let fresh = Kind::of(key) != Kind::Short || fetch.begun < before.begun + SHORT_LIFETIME * 9 / 10;
        let overtaken = overtaken_by_heads(fetches, before, fetch) > 0;
        if whole && fresh && !overtaken && !purged_between(purges, key, before.begun, fetch.begun, world.limited) {
            let detail = format!("node {} asked twice for {}", fetch.node, text(key));
            world.trace.broken("a node loads once", detail);
        }
    }
}

/// Heads are not stored, so each of them may be asked for again. But many who want one at once want it of one flight, and of what
/// is in memory none is asked for at all. `across`: by any node of the fleet, else by each life alone.
fn heads(world: &World, key: &Bytes, fetches: &[Fetch], purges: &[Purge], across: bool) {
    for (at, head) in fetches.iter().enumerate().filter(|(_, fetch)| fetch.method == Method::Head) {
        let mut before = fetches[..at].iter().filter(|before| across || before.incarnation == head.incarnation);
        let idle = before.find(|before| {
            let ended = before.ended.map(|(at, _)| at);
            let whole = matches!(before.ended, None | Some((_, Ended::Whole)));
            let needless = match before.method {
                Method::Head => ended.is_none_or(|ended| ended > head.begun),
                Method::Get => {
                    let fresh = Kind::of(key) != Kind::Short || head.begun < before.begun + SHORT_LIFETIME * 9 / 10;
                    // Where it waits for its turn at the origin, much may have landed since it looked.
                    fresh && whole && !world.limited && ended.is_some_and(|ended| ended + STORED_WITHIN < head.begun)
                }
            };
            needless
                && !purged_between(purges, key, before.begun, head.begun, world.limited)
                && overtaken_by_heads(fetches, before, head) == 0
        });
        if let Some(before) = idle {
            let detail = format!("node {} asked for that of {}, {before:?} was there", head.node, text(key));
            world.trace.broken("a head is asked for once at a time, and not of what is in memory", detail);
        }
    }
}

/// How many heads made it necessary to load again what was stored. One that was asked for before the body was stored and answered
/// later may tell of another version: then what is stored counts as stale (RFC 9111 section 4.3.5). And one that was asked for before
/// the body dates what is stored back to its own question (section 4.2.3), which counts where freshness is short.
fn overtaken_by_heads(fetches: &[Fetch], body: &Fetch, until: &Fetch) -> usize {
    let stored = body.ended.map_or(until.begun, |(at, _)| at) + STORED_WITHIN;
    let overtakes = |head: &&Fetch| {
        head.method == Method::Head
            && head.begun <= stored
            && (head.version > body.version || (Kind::of(&head.key) == Kind::Short && head.begun < body.begun))
            && head.ended.is_none_or(|(at, _)| at >= body.begun)
            && !std::ptr::eq(*head, until)
    };
    fetches.iter().filter(overtakes).count()
}

fn by_the_fleet(world: &World, key: &Bytes, fetches: &[Fetch], purges: &[Purge], faults: &[Fault], allowed: Loads) {
    let good = |fetch: &&Fetch| {
        fetch.method == Method::Get && !matches!(fetch.ended, Some((_, Ended::Failed | Ended::Abandoned)))
    };
    let loads = fetches.iter().filter(good).count();
    let purged = purges.iter().filter(|purge| purge.is_of(key)).count();
    let lives: usize = faults
        .iter()
        .map(|fault| match fault.what {
            FaultKind::Death(_) => 1 + usize::from(fault.ended.is_some()),
            _ => 0,
        })
        .sum();
    // A purge that its owner received is heard there twice, and so may cost two loads.
    let rounds = 1 + 2 * purged;
    let allowed_loads = match allowed {
        Loads::One => rounds,
        Loads::OnePerLife => rounds + lives,
        Loads::OnePerOwner => rounds * world.journal.owners(key),
        Loads::OnePerNode => return,
    };
    if loads > allowed_loads {
        let detail = format!("{} was loaded {loads} times, allowed {allowed_loads}", text(key));
        world.trace.broken("the fleet loads once", detail);
    }
}

/// With a limit for the origin, a fill from before a purge may wait long for its turn there.
fn purged_between(purges: &[Purge], key: &Bytes, from: Instant, to: Instant, limited: bool) -> bool {
    purges.iter().any(|purge| {
        let lag = PURGE_LAG + if limited { PATIENCE } else { Duration::ZERO };
        purge.is_of(key) && purge.begun <= to && purge.acknowledged.is_none_or(|at| at + lag >= from)
    })
}

/// An invalidation goes on when its client is not made to wait any longer, and a frozen node hears of it when it goes on.
pub const PURGE_LAG: Duration = Duration::from_secs(15);
/// Who fails again and again waits for two minutes at most.
const WHOLE_WITHIN: Duration = Duration::from_secs(125);
/// From the last byte until the entry is in the store.
const STORED_WITHIN: Duration = Duration::from_millis(1);
/// What remembering a target may take beside its value.
const RECORD_BYTES_MAX: usize = 400;
/// A node that starts last of all is settled within ten seconds at most.
const LEASED_WITHIN: Duration = Duration::from_secs(15);
const HEALED_WITHIN: Duration = Duration::from_secs(5);
/// Fills that nobody reads end after a second; a few may follow one another.
const QUIET_WITHIN: Duration = Duration::from_secs(30);
