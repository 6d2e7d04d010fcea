//! Our own ring: even shares for any names, weights, and keys that move only from or to the peer that left or joined.
//!
//! **Rule.** The hash space is cut into [`SLOTS`] equal slots. Each peer reaches every slot at some time that depends
//! on its URL, its weight and the slot alone; whoever reaches a slot first owns it, who reaches it second takes over.
//! As no peer's times depend on the other peers, a newcomer can only take slots, for itself, and a leaver's slots fall
//! to whoever was next: strictly minimal movement. (It is rendezvous hashing of slots. The converse holds too: a rule
//! that never moves a key between two peers that stay is an order of preference per key. So evenness cannot be had by
//! correcting the outcome, as Maglev's turns do; it must come from many slots and good times.)
//!
//! **Times.** A peer visits the slots in its own pseudorandom order, a permutation keyed by the hash of its URL. The
//! slot at rank r is reached at `-ln(1 - (r + 1/2) / SLOTS) / weight`: the quantiles of an exponential distribution
//! whose rate is the weight, and the first of several exponential times is each one's in proportion to its rate. Equal
//! times, which need the same rank for the same slot, fall to the URL that sorts first.
//!
//! **Why the busiest stays below 1.05 times the mean.** In a fleet of n equal peers a peer's slots are a sum of
//! SLOTS/n weakly dependent coin tosses; visiting in an order instead of drawing times independently halves the
//! variance, so the standard deviation of a share is about `sqrt(n / (2 * SLOTS))` of the mean: 0.7 % for n = 100 and
//! less for fewer. 5 % are 7.2 of them: the chance that any of a hundred peers exceeds it is about 2e-11, and that it
//! happens for any n from 2 to 100 about 1e-10, whatever the names, as they enter only through their hash. Half as many
//! slots would leave 1e-4. A thousand peers stay within some 10 %.
//!
//! **Cost.** A lookup is one table access. Building does not ask every peer about every slot: peers visit in the order
//! of time up to a horizon by which all but one in e * n slots are reached, about `SLOTS * (1 + ln n)` visits; only the
//! slots left then ask all. The table takes 2 MiB, and 8 MiB more while it is built.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use twox_hash::{XxHash3_64, XxHash3_128};

use super::RingPeer;

/// The owner of each slot, and what it takes to ask who comes next. Clones share the table.
#[derive(Clone)]
pub(super) struct BalancedRing {
    /// By slot, the owner's index in the list of peers; empty when there are no peers.
    owners: Arc<[u16]>,
    /// Sorted by URL, so that positions here do not depend on the order of the list.
    visitors: Arc<[Visitor]>,
}

impl BalancedRing {
    /// `peers` are at most [`super::PEERS_MAX`].
    pub(super) fn new(peers: &[RingPeer]) -> Self {
        let mut indices: Vec<usize> = (0..peers.len()).collect();
        indices.sort_by_key(|&index| &peers[index].url);
        let visitors: Vec<Visitor> = indices.into_iter().map(|index| Visitor::new(index, &peers[index])).collect();
        let owners = match visitors.len() {
            0 => Arc::default(),
            1 => vec![visitors[0].index; SLOTS].into(),
            _ => first_visits(&visitors).iter().map(|visit| visit.by(&visitors).index).collect(),
        };
        BalancedRing { owners, visitors: visitors.into() }
    }

    pub(super) fn owner(&self, key_hash: u64) -> Option<usize> {
        self.owners.get(slot_of(key_hash)).map(|&index| usize::from(index))
    }

    pub(super) fn preference(&self, key_hash: u64) -> Preference<'_> {
        Preference { ring: self, slot: slot_of(key_hash), progress: Progress::AtOwner }
    }

    /// By index, the part of the slots owned.
    pub(super) fn shares(&self) -> Vec<f64> {
        let mut counts = vec![0u32; self.visitors.len()];
        for &owner in &*self.owners {
            counts[usize::from(owner)] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / SLOTS as f64).collect()
    }
}

/// The peers in the order in which they reach one slot.
pub(super) struct Preference<'ring> {
    ring: &'ring BalancedRing,
    slot: usize,
    progress: Progress,
}

enum Progress {
    AtOwner,
    BehindOwner,
    /// The visits not yet handed out. Made only when somebody asks beyond the owner.
    Among(BinaryHeap<Reverse<Visit>>),
}

impl Iterator for Preference<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let visitors = &self.ring.visitors;
        let slot = self.slot;
        if let Progress::AtOwner = self.progress {
            self.progress = Progress::BehindOwner;
            return self.ring.owners.get(slot).map(|&index| usize::from(index));
        }
        if let Progress::BehindOwner = self.progress {
            let mut visits: BinaryHeap<Reverse<Visit>> =
                visitors.iter().enumerate().map(|(position, visitor)| Reverse(visitor.visit(slot, position))).collect();
            visits.pop();
            self.progress = Progress::Among(visits);
        }
        match &mut self.progress {
            Progress::Among(visits) => visits.pop().map(|Reverse(visit)| usize::from(visit.by(visitors).index)),
            _ => None,
        }
    }
}

/// One peer's way through the slots.
#[derive(Clone)]
struct Visitor {
    /// In the list of peers.
    index: u16,
    order: Permutation,
    weight: f64,
    /// Time per unit of [`unit_time`].
    pace: f64,
}

impl Visitor {
    fn new(index: usize, peer: &RingPeer) -> Self {
        let weight = f64::from(peer.weight.max(1));
        let order = Permutation::keyed(XxHash3_128::oneshot(peer.url.as_bytes()));
        Visitor { index: index as u16, order, weight, pace: 1.0 / weight }
    }

    fn visit(&self, slot: usize, position: usize) -> Visit {
        Visit::new(unit_time(self.order.rank(slot)) * self.pace, position)
    }
}

/// The first visit of each slot; `visitors` are at least one.
fn first_visits(visitors: &[Visitor]) -> Vec<Visit> {
    let count = visitors.len() as f64;
    let horizon = (1.0 + count.ln()) / visitors.iter().map(|visitor| visitor.weight).sum::<f64>();
    let pace_min = visitors.iter().map(|visitor| visitor.pace).fold(f64::INFINITY, f64::min);
    let unit_times: Vec<f64> =
        (0..SLOTS).map(unit_time).take_while(|unit_time| unit_time * pace_min <= horizon).collect();

    let mut visits = vec![Visit::NEVER; SLOTS];
    for (position, visitor) in visitors.iter().enumerate() {
        for (rank, unit_time) in unit_times.iter().enumerate() {
            let time = unit_time * visitor.pace;
            if time > horizon {
                break;
            }
            let first = &mut visits[visitor.order.slot(rank)];
            let visit = Visit::new(time, position);
            if visit < *first {
                *first = visit;
            }
        }
    }
    // Whatever was reached by the horizon was reached there first. The rest is few, and asks everybody.
    for (slot, first) in visits.iter_mut().enumerate() {
        if *first == Visit::NEVER {
            for (position, visitor) in visitors.iter().enumerate() {
                *first = visitor.visit(slot, position).min(*first);
            }
        }
    }
    visits
}

/// When a slot is reached and by whom, ordered by time and then by position among the visitors.
///
/// The bits of a positive float are in the order of its value; the lowest 16 give way to the position, which leaves
/// more than enough to tell neighbouring ranks apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Visit(u64);

impl Visit {
    /// Later than every visit: no time has these bits.
    const NEVER: Visit = Visit(u64::MAX);

    fn new(time: f64, position: usize) -> Self {
        Visit(time.to_bits() & !POSITION_MASK | position as u64 & POSITION_MASK)
    }

    fn by(self, visitors: &[Visitor]) -> &Visitor {
        &visitors[(self.0 & POSITION_MASK) as usize]
    }
}

/// A pseudorandom order of the slots that answers both ways: which rank a slot has, and which slot is at a rank.
///
/// Each step can be undone on [`SLOT_BITS`] bits: a multiplication by an odd number with that number's inverse, a shift
/// by half the bits by repeating it.
#[derive(Clone)]
struct Permutation {
    masks: [u32; 2],
    multipliers: [u32; 3],
    inverses: [u32; 3],
}

impl Permutation {
    /// Takes five keys of [`SLOT_BITS`] bits from `key`.
    fn keyed(key: u128) -> Self {
        let part = |number: u32| (key >> (number * SLOT_BITS)) as u32 & SLOT_MASK;
        let multipliers = [part(0) | 1, part(1) | 1, part(2) | 1];
        Permutation { masks: [part(3), part(4)], multipliers, inverses: multipliers.map(inverse) }
    }

    fn rank(&self, slot: usize) -> usize {
        let [first, second, third] = self.multipliers;
        let word = slot as u32 ^ self.masks[0];
        let word = fold(word.wrapping_mul(first) & SLOT_MASK);
        let word = fold(word.wrapping_mul(second) & SLOT_MASK);
        let word = fold(word.wrapping_mul(third) & SLOT_MASK);
        (word ^ self.masks[1]) as usize
    }

    fn slot(&self, rank: usize) -> usize {
        let [first, second, third] = self.inverses;
        let word = rank as u32 ^ self.masks[1];
        let word = fold(word).wrapping_mul(third) & SLOT_MASK;
        let word = fold(word).wrapping_mul(second) & SLOT_MASK;
        let word = fold(word).wrapping_mul(first) & SLOT_MASK;
        (word ^ self.masks[0]) as usize
    }
}

/// Brings the high half of the bits into the low half; done twice it is undone.
fn fold(word: u32) -> u32 {
    word ^ word >> (SLOT_BITS / 2)
}

/// The number whose product with the odd `number` is 1 modulo 2^32, by Newton's iteration: each step doubles the number
/// of correct bits, starting from the three that an odd number shares with its inverse.
fn inverse(number: u32) -> u32 {
    let mut inverse = number;
    for _ in 0..4 {
        inverse = inverse.wrapping_mul(2u32.wrapping_sub(number.wrapping_mul(inverse)));
    }
    inverse
}

/// `-ln(1 - (rank + 1/2) / SLOTS)`, when a visitor of weight 1 reaches the slot at `rank` (below [`SLOTS`]).
///
/// Not the platform's logarithm: the results of libraries differ in the last bits, and nodes must not. The basic
/// operations used here are exact to the last bit on every machine (IEEE 754).
fn unit_time(rank: usize) -> f64 {
    let remaining = (2 * (SLOTS - rank) - 1) as f64;
    // remaining = mantissa * 2^exponent, the mantissa from 1 to 2; one above the root of 2 is halved, which keeps the
    // series short.
    let bits = remaining.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln(m) = 2 artanh((m - 1) / (m + 1)); the first term left out is below 1e-12.
    let ratio = (mantissa - 1.0) / (mantissa + 1.0);
    let square = ratio * ratio;
    let series = 1.0
        + square
            * (1.0 / 3.0
                + square
                    * (1.0 / 5.0
                        + square * (1.0 / 7.0 + square * (1.0 / 9.0 + square * (1.0 / 11.0 + square / 13.0)))));
    f64::from(SLOT_BITS as i32 + 1 - exponent) * std::f64::consts::LN_2 - 2.0 * ratio * series
}

pub(super) fn key_hash(key: &[u8]) -> u64 {
    XxHash3_64::oneshot(key)
}

/// The highest bits of the hash.
fn slot_of(key_hash: u64) -> usize {
    (key_hash >> (u64::BITS - SLOT_BITS)) as usize
}

const SLOT_BITS: u32 = 20;

/// Into how many parts the hash space is cut; the module's documentation says why so many.
const SLOTS: usize = 1 << SLOT_BITS;

const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

const POSITION_MASK: u64 = (super::PEERS_MAX - 1) as u64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn visitors(weights: &[u32]) -> Vec<Visitor> {
        let peer = |number, weight| RingPeer { url: format!("http://cache-{number}:80"), weight };
        weights.iter().enumerate().map(|(index, &weight)| Visitor::new(index, &peer(index, weight))).collect()
    }

    proptest! {
        #[test]
        fn a_permutation_and_its_way_back_agree(key: u128, slot in 0..SLOTS) {
            let permutation = Permutation::keyed(key);
            prop_assert_eq!(permutation.slot(permutation.rank(slot)), slot);
            prop_assert_eq!(permutation.rank(permutation.slot(slot)), slot);
        }
    }

    #[test]
    fn unit_times_are_the_logarithms_and_grow_with_the_rank() {
        let mut before = 0.0;
        for rank in (0..SLOTS - 200).step_by(61).chain(SLOTS - 200..SLOTS) {
            let expected = -((SLOTS - rank) as f64 - 0.5).ln() + (SLOTS as f64).ln();
            let time = unit_time(rank);
            assert!((time - expected).abs() < 1e-11, "rank {rank}: {time}, expected {expected}");
            assert!(time > before, "rank {rank}");
            before = time;
        }
    }

    /// The position takes the lowest bits of a time, so neighbouring ranks must differ above them.
    #[test]
    fn visits_are_ordered_by_time_before_position() {
        for rank in (0..SLOTS - 1).step_by(1009).chain([SLOTS - 2]) {
            let (earlier, later) = (Visit::new(unit_time(rank), 9), Visit::new(unit_time(rank + 1), 0));
            assert!(earlier < later && later < Visit::NEVER, "rank {rank}");
        }
        assert!(Visit::new(unit_time(5), 1) < Visit::new(unit_time(5), 2));
    }

    /// Every fleet size the promise is made for. The fleet grows by one peer at a time, which takes each newcomer's
    /// visits up to the latest first visit so far: quicker than a new ring for every size, and another way to the ring.
    #[test]
    fn the_busiest_of_2_to_100_peers_has_at_most_1_05_times_the_mean() {
        let visitors = visitors(&[1; 100]);
        let unit_times: Vec<f64> = (0..SLOTS).map(unit_time).collect();
        let mut first: Vec<Visit> = (0..SLOTS).map(|slot| visitors[0].visit(slot, 0)).collect();
        let mut counts = vec![SLOTS];
        for (position, newcomer) in visitors.iter().enumerate().skip(1) {
            let mut latest = Visit(0);
            for &visit in &first {
                if visit > latest {
                    latest = visit;
                }
            }
            counts.push(0);
            for (rank, &time) in unit_times.iter().enumerate() {
                let visit = Visit::new(time, position);
                if visit > latest {
                    break;
                }
                let slot = newcomer.order.slot(rank);
                if visit < first[slot] {
                    counts[(first[slot].0 & POSITION_MASK) as usize] -= 1;
                    counts[position] += 1;
                    first[slot] = visit;
                }
            }
            let busiest = counts.iter().copied().max().unwrap_or(0) as f64 * counts.len() as f64 / SLOTS as f64;
            assert!(busiest <= 1.05, "{} peers: {busiest}", counts.len());
        }
        assert!(first == first_visits(&visitors));
    }

    /// Visiting in order up to a horizon is only a faster way to ask every peer about every slot.
    #[test]
    fn the_first_visits_are_the_earliest_of_all_visits() {
        for weights in [&[1, 1][..], &[1, 1, 1, 1, 1, 1, 1], &[1, 2, 50, 1000], &[u32::MAX, 1, 3]] {
            let visitors = visitors(weights);
            let first = first_visits(&visitors);
            for slot in (0..SLOTS).step_by(997) {
                let earliest =
                    visitors.iter().enumerate().map(|(position, visitor)| visitor.visit(slot, position)).min();
                assert!(Some(first[slot]) == earliest, "{weights:?}, slot {slot}");
            }
        }
    }
}
