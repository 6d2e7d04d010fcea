//! How often peers ask this node for the keys that it owns, and which of them are too much for one node.
//!
//! Every question of a peer is counted in the sketch of [`crate::store::promote`], which says how often any key was asked for,
//! roughly and up to a hundred. Only keys that it finds asked for more than `TRACKED_FROM` times have a place in the table
//! here, where their rate is exact to a second: of bounded size, and no lock for all the others.
//!
//! A key is *hot* when its questions are more than a node's fair share: more than [`RATE_MIN`] a second, and more than one in
//! [`SHARE`] of all that this node answers in the key's group. Then as many further nodes are wanted as bring what is left for
//! each below that. Growing happens at once, shrinking by halves.

use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::clock::Now;
use crate::key::{GroupId, HashedKey, KeyHash};
use crate::source::EntryId;

/// The hottest keys of this node.
#[derive(Debug, Default)]
pub struct Heat {
    tracked: Mutex<HashMap<KeyHash, Tracked>>,
}

#[derive(Debug)]
struct Tracked {
    group: GroupId,
    key: Box<[u8]>,
    /// Second of the monotonic clock that `asked` counts.
    second: u64,
    asked: u32,
    /// Questions a second at this node and at those that have the key, between which askers choose: of the seconds before,
    /// the last of which counts half.
    rate: u32,
    /// All that the group was asked for when `second` began.
    gets: u64,
    /// How many further nodes are to have it.
    wanted: usize,
    /// How many are known to have it.
    replicas: usize,
    /// What they were given last.
    pushed: EntryId,
    pushing: bool,
}

/// One question of a peer, as it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The key, which this node owns.
    pub key: HashedKey<'a>,
    /// What the sketch says of it, this question included.
    pub estimate: u32,
    /// All questions that the key's group was ever asked here.
    pub gets: u64,
    /// What it was answered with.
    pub entry: EntryId,
    /// How many further nodes there are.
    pub peers: usize,
}

/// What follows from a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Questions for the key in a minute, by the rate of now.
    pub minute_rate: u32,
    /// How many further nodes have it.
    pub replicas: usize,
    /// So many further nodes are to be given it now; whoever does it says so by [`Heat::pushed`].
    pub push: Option<usize>,
}

/// A key that further nodes are to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicated {
    /// Its group.
    pub group: GroupId,
    /// The key.
    pub key: Bytes,
    /// What they were given last.
    pub pushed: EntryId,
}

/// A key and how hot it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hottest {
    /// Its group.
    pub group: GroupId,
    /// The key.
    pub key: Box<[u8]>,
    /// Questions of peers in a second, those that replicas answer included.
    pub rate: u32,
    /// How many further nodes have it.
    pub replicas: usize,
}

impl Heat {
    /// Counts a question of a peer for a key that this node owns.
    pub fn asked(&self, question: &Question<'_>, now: Now) -> Verdict {
        let roughly = question.estimate.saturating_mul(ESTIMATES_PER_MINUTE);
        if question.estimate < TRACKED_FROM {
            return Verdict { minute_rate: roughly, ..Verdict::default() };
        }
        let second = now.monotonic.as_secs();
        let mut table = self.tracked.lock();
        if !table.contains_key(&question.key.hash()) && !make_room(&mut table, question, second) {
            return Verdict { minute_rate: roughly, ..Verdict::default() };
        }
        let tracked = table.entry(question.key.hash()).or_insert_with(|| Tracked::new(question, second));
        let rolled = tracked.roll(second, question.gets, question.peers);
        tracked.asked = tracked.asked.saturating_add(1);
        let due = tracked.wanted > 0 && !tracked.pushing && (rolled || tracked.pushed != question.entry);
        if due {
            tracked.pushing = true;
            tracked.pushed = question.entry;
        }
        Verdict {
            minute_rate: tracked.rate_at(second).saturating_mul(60).max(roughly),
            replicas: tracked.replicas,
            push: due.then_some(tracked.wanted),
        }
    }

    /// So many further nodes have the key now.
    pub fn pushed(&self, key: KeyHash, replicas: usize) {
        if let Some(tracked) = self.tracked.lock().get_mut(&key) {
            tracked.pushing = false;
            tracked.replicas = replicas.min(tracked.wanted);
        }
    }

    /// The keys that further nodes are to have, with what these were given last; not those that nobody asks for any more.
    pub fn replicated(&self, now: Now) -> Vec<Replicated> {
        let second = now.monotonic.as_secs();
        let is_asked_for = |tracked: &Tracked| second.saturating_sub(tracked.second) <= IDLE_SECONDS_MAX;
        let table = self.tracked.lock();
        let replicated =
            table.values().filter(|tracked| tracked.wanted > 0 && !tracked.pushing && is_asked_for(tracked));
        let replicated = replicated.map(|tracked| Replicated {
            group: tracked.group,
            key: Bytes::copy_from_slice(&tracked.key),
            pushed: tracked.pushed,
        });
        replicated.collect()
    }

    /// Another entry is there than the further nodes were given: says how many are to be given it now.
    pub fn renewed(&self, key: KeyHash, entry: EntryId) -> Option<usize> {
        let mut table = self.tracked.lock();
        let tracked = table.get_mut(&key).filter(|tracked| tracked.wanted > 0 && !tracked.pushing)?;
        (tracked.pushing, tracked.pushed) = (true, entry);
        Some(tracked.wanted)
    }

    /// The hottest keys, hottest first.
    pub fn hottest(&self, count: usize, now: Now) -> Vec<Hottest> {
        let second = now.monotonic.as_secs();
        let mut hottest: Vec<_> = {
            let table = self.tracked.lock();
            let warm = table.values().map(|tracked| (tracked.rate_at(second), tracked)).filter(|(rate, _)| *rate > 0);
            let hottest = warm.map(|(rate, tracked)| Hottest {
                group: tracked.group,
                key: tracked.key.clone(),
                rate,
                replicas: tracked.replicas,
            });
            hottest.collect()
        };
        hottest.sort_by(|one, other| (other.rate, &one.key).cmp(&(one.rate, &other.key)));
        hottest.truncate(count);
        hottest
    }

    /// Forgets everything: another ring has other owners.
    pub fn clear(&self) {
        self.tracked.lock().clear();
    }
}

impl Tracked {
    fn new(question: &Question<'_>, second: u64) -> Self {
        Tracked {
            group: question.key.group(),
            key: question.key.bytes().into(),
            second,
            asked: 0,
            rate: 0,
            gets: question.gets,
            wanted: 0,
            replicas: 0,
            pushed: EntryId::default(),
            pushing: false,
        }
    }

    /// The rate, if nothing more is asked until `second`.
    fn rate_at(&self, second: u64) -> u32 {
        match second.saturating_sub(self.second) {
            0 => self.rate.max(self.asked_everywhere()),
            // The first second counts at once.
            passed if self.rate == 0 => halved(self.asked_everywhere(), passed - 1),
            passed => halved(self.rate.midpoint(self.asked_everywhere()), passed - 1),
        }
    }

    fn asked_everywhere(&self) -> u32 {
        self.asked.saturating_mul(u32::try_from(self.replicas + 1).unwrap_or(u32::MAX))
    }

    /// Closes the seconds that have passed; says whether there were any.
    fn roll(&mut self, second: u64, gets: u64, peers: usize) -> bool {
        let passed = second.saturating_sub(self.second);
        if passed == 0 {
            return false;
        }
        self.rate = self.rate_at(second);
        let answered = u32::try_from(gets.saturating_sub(self.gets) / passed).unwrap_or(u32::MAX);
        (self.second, self.asked, self.gets) = (second, 0, gets);
        let fair = RATE_MIN.max(answered / SHARE);
        let wanted = self.rate.div_ceil(fair).saturating_sub(1) as usize;
        let wanted = wanted.min(peers).min(REPLICAS_MAX);
        let more = u32::try_from(self.wanted.saturating_sub(wanted)).unwrap_or(u32::MAX);
        self.wanted = wanted + halved(more, passed) as usize;
        self.replicas = self.replicas.min(self.wanted);
        true
    }
}

fn halved(rate: u32, times: u64) -> u32 {
    u32::try_from(times).ok().and_then(|times| rate.checked_shr(times)).unwrap_or(0)
}

/// Whether there is a place for the key: a full table gives it that of the coolest, if that is cooler.
fn make_room(table: &mut HashMap<KeyHash, Tracked>, question: &Question<'_>, second: u64) -> bool {
    if question.key.bytes().len() > KEY_BYTES_MAX {
        return false;
    }
    if table.len() < TRACKED_MAX {
        return true;
    }
    // The whole table is looked at for one question in so many.
    if !question.estimate.is_multiple_of(TRACKED_FROM) {
        return false;
    }
    let coolest = table.iter().map(|(key, tracked)| (tracked.rate_at(second), *key)).min_by_key(|(rate, _)| *rate);
    let Some((rate, key)) = coolest else { return false };
    let cooler = rate.saturating_mul(60) < question.estimate.saturating_mul(ESTIMATES_PER_MINUTE) / 2;
    cooler && table.remove(&key).is_some()
}

/// A bounded table of what is known for a while.
#[derive(Debug)]
pub struct Lapsing<V>(Mutex<HashMap<KeyHash, (V, Duration)>>);

impl<V> Default for Lapsing<V> {
    fn default() -> Self {
        Lapsing(Mutex::default())
    }
}

impl<V: Clone> Lapsing<V> {
    /// Notes `value` for `lifetime` from `now` on. `false`: the table is full.
    pub fn note(&self, key: KeyHash, value: V, now: Now, lifetime: Duration) -> bool {
        let mut table = self.0.lock();
        let has_place = table.len() < LAPSING_MAX || table.contains_key(&key);
        if has_place {
            table.insert(key, (value, now.monotonic.saturating_add(lifetime)));
        }
        has_place
    }

    /// What is known of a key now.
    pub fn get(&self, key: KeyHash, now: Now) -> Option<V> {
        let table = self.0.lock();
        let (value, until) = table.get(&key)?;
        (now.monotonic < *until).then(|| value.clone())
    }

    /// Takes out what is known no longer.
    pub fn take_lapsed(&self, now: Now) -> Vec<V> {
        let mut table = self.0.lock();
        table.extract_if(|_, (_, until)| *until <= now.monotonic).map(|(_, (value, _))| value).collect()
    }

    /// How many there are, those that lapsed since they were taken out last included.
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

/// Estimates of the sketch that are worth a place in the table: between one and two questions a second.
const TRACKED_FROM: u32 = 16;

/// The sketch counts a window of ten seconds.
const ESTIMATES_PER_MINUTE: u32 = 6;

/// Keys in the table. Guess: a fleet with more hot keys has them spread over its nodes already.
const TRACKED_MAX: usize = 256;

/// Longer keys are not tracked, so that the table stays below half a MiB.
const KEY_BYTES_MAX: usize = 2048;

/// Questions a second below which a key is no load, however little else there is. Guess: a hundredth of a core at most.
pub const RATE_MIN: u32 = 20;

/// The part of a node's answers that one key of its own may be: so much more than its share the owner does at the most.
pub const SHARE: u32 = 16;

/// Further nodes for one key at most: the memory that it takes in the fleet is that often its size.
pub const REPLICAS_MAX: usize = 16;

/// How long a key may go without a question and count as hot: short lifetimes bring all questions at once, when copies expire.
const IDLE_SECONDS_MAX: u64 = 3;

/// Guess: far more keys than are ever hot at once; of full tables nothing comes but questions to the owner.
const LAPSING_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { monotonic: Duration::from_secs(seconds), wall_seconds: 0 }
    }

    struct Asked {
        heat: Heat,
        gets: u64,
        second: u64,
    }

    impl Asked {
        fn new() -> Self {
            Asked { heat: Heat::default(), gets: 0, second: 100 }
        }

        /// A second in which the key is asked for so often, among so much else; what the last question gives, and how many
        /// nodes were to be given the key.
        fn second(&mut self, key: &[u8], questions: u32, others: u64) -> (Verdict, Option<usize>) {
            let (mut last, mut push) = (Verdict::default(), None);
            for _ in 0..questions {
                self.gets += 1;
                let key = HashedKey::new(GroupId(0), key);
                let entry = EntryId { incarnation: 1, fill: 1 };
                let question = Question { key, estimate: 64, gets: self.gets, entry, peers: 99 };
                last = self.heat.asked(&question, at(self.second));
                if let Some(count) = last.push {
                    push = Some(count);
                    self.heat.pushed(key.hash(), count);
                }
            }
            self.gets += others;
            self.second += 1;
            (last, push)
        }
    }

    #[test]
    fn a_key_is_hot_when_it_is_more_than_a_share_of_what_the_node_answers() {
        for (questions, others, wanted) in [
            (20, 0, None),
            (21, 0, Some(1)),
            (60, 0, Some(2)),
            (100, 3_100, None),
            // 500 of 1,600: a fair share is 100.
            (500, 1_100, Some(4)),
            (4_000, 0, Some(15)),
            (100_000, 0, Some(15)),
        ] {
            let mut asked = Asked::new();
            asked.second(b"a", questions, others);
            let (_, push) = asked.second(b"a", 1, others);
            assert_eq!(push, wanted, "{questions} beside {others}");
        }
    }

    #[test]
    fn what_replicas_take_is_not_taken_for_cooling_and_a_cool_key_loses_them_by_halves() {
        let mut asked = Asked::new();
        asked.second(b"a", 100, 0);
        for _ in 0..4 {
            // A fifth of the questions comes here now, and the replicas are renewed every second.
            let (verdict, push) = asked.second(b"a", 20, 0);
            assert_eq!((push, verdict.replicas, verdict.minute_rate), (Some(4), 4, 6_000));
        }
        let replicas: Vec<_> = (0..8).map(|_| asked.second(b"a", 1, 0).0.replicas).collect();
        assert_eq!(replicas.last(), Some(&0), "{replicas:?}");
        assert!(replicas.is_sorted_by(|one, next| one >= next), "{replicas:?}");
    }

    #[test]
    fn another_entry_is_pushed_at_once() {
        let mut asked = Asked::new();
        asked.second(b"a", 100, 0);
        assert_eq!(asked.second(b"a", 5, 0).1, Some(4));
        let key = HashedKey::new(GroupId(0), b"a");
        let entry = EntryId { incarnation: 1, fill: 2 };
        let question = Question { key, estimate: 64, gets: 200, entry, peers: 99 };
        assert!(asked.heat.asked(&question, at(asked.second - 1)).push.is_some());
        assert_eq!(asked.heat.asked(&question, at(asked.second)).push, None, "while one is under way");
    }

    #[test]
    fn what_is_asked_for_no_longer_is_not_renewed() {
        let mut asked = Asked::new();
        asked.second(b"a", 100, 0);
        asked.second(b"a", 20, 0);
        let key = HashedKey::new(GroupId(0), b"a").hash();
        let now = asked.second - 1;
        assert_eq!(asked.heat.replicated(at(now + IDLE_SECONDS_MAX)).len(), 1);
        assert!(asked.heat.replicated(at(now + IDLE_SECONDS_MAX + 1)).is_empty());
        let next = EntryId { incarnation: 1, fill: 2 };
        assert_eq!((asked.heat.renewed(key, next), asked.heat.renewed(key, next)), (Some(4), None));
        assert!(asked.heat.replicated(at(now)).is_empty(), "while it is being given");
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_hot() {
        let mut asked = Asked::new();
        asked.second(b"hot", 100, 0);
        asked.second = 100;
        for number in 0..2 * TRACKED_MAX {
            asked.second = 100;
            asked.second(&number.to_le_bytes(), 1, 0);
        }
        assert_eq!(asked.heat.tracked.lock().len(), TRACKED_MAX);
        let hottest = asked.heat.hottest(2, at(100));
        assert_eq!((&*hottest[0].key, hottest[0].rate, hottest.len()), (&b"hot"[..], 100, 2));
        assert!(asked.heat.hottest(2, at(200)).is_empty(), "all cool down");
        let long = [b'a'; KEY_BYTES_MAX + 1];
        assert_eq!(asked.second(&long, 1000, 0).0.replicas, 0);
    }

    #[test]
    fn what_lapses_is_known_no_longer_and_the_table_is_bounded() {
        let table = Lapsing::default();
        let hash = |number: usize| KeyHash::of(GroupId(0), &number.to_le_bytes());
        for number in 0..LAPSING_MAX {
            assert!(table.note(hash(number), number, at(number as u64 / 1000), Duration::from_secs(5)));
        }
        assert!(!table.note(hash(LAPSING_MAX), 0, at(4), Duration::from_secs(5)));
        assert_eq!((table.get(hash(7), at(4)), table.get(hash(7), at(5))), (Some(7), None));
        assert_eq!((table.take_lapsed(at(5)).len(), table.count()), (1000, LAPSING_MAX - 1000));
    }
}
