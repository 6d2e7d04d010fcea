//! Members that find one another and notice who fails: SWIM, as the crate foca has it, behind the [`Seal`].
//!
//! A node tells its URL, its weight and where it gossips. Every life of a node is a member of its own, so that a node which
//! starts again never has to argue with what is still said of its former life; the fleet consists of the URLs of which some
//! life is alive. A node that is declared dead while it only slept takes another life and is back.
//!
//! Pure: packets, the time and the wish to be introduced go in; packets ([`Gossip::take_packets`]), the time of the next call
//! ([`Gossip::next_time`]) and lists of members ([`Gossip::take_members`]) come out.
//!
//! | what | after |
//! |---|---|
//! | a node is asked whether it lives | every [`PROBE_PERIOD`], each by some other |
//! | it is suspected | it and three others were silent for one period |
//! | it is out | it did not object for [`SUSPICION`] |
//! | it is back | at once the first time, later after it was seen well for a while ([`Damping`]) |

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{
    AccumulatingRuntime, Config, Foca, Identity, NoCustomBroadcast, OwnedNotification, PeriodicParams, PostcardCodec,
    Timer,
};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

use super::damping::{Damping, DampingSettings};
use super::seal::{Dropped, Kind, PAYLOAD_BYTES_MAX, Seal, Then};

/// A member as the others hear of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its URL, byte for byte as the ring has it.
    pub url: String,
    /// Its share of the keys, compared with the others.
    pub weight: u32,
}

/// What a node starts to gossip with.
pub struct Settings {
    /// This node.
    pub own: Member,
    /// Where others reach it.
    pub address: SocketAddr,
    /// A random number that no other life of any node has.
    pub life: u64,
    /// The secrets of the fleet; the first seals, all open.
    pub secrets: Vec<Vec<u8>>,
    /// Seed for choices that nobody should guess; of the system's randomness, but in simulations.
    pub seed: [u8; 32],
}

/// What was dropped, and how often members came and went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that were sent.
    pub sent: u64,
    /// Packets that were believed.
    pub believed: u64,
    /// Members that failed or left.
    pub failed: u64,
    /// Members whose words cannot be followed: an unusable URL.
    pub unusable: u64,
}

/// One node's part in the gossip of its fleet.
pub struct Gossip {
    foca: Foca<Life, PostcardCodec, SmallRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Life>,
    seal: Seal,
    own: Member,
    timers: BinaryHeap<Reverse<Due>>,
    timers_begun: u64,
    packets: Vec<(SocketAddr, Vec<u8>)>,
    known: BTreeMap<String, Known>,
    told: Option<Vec<Member>>,
    /// When the list was last looked at: who is watched joins it later.
    told_at: Duration,
    counts: Counts,
}

/// One URL that was heard of.
struct Known {
    weight: u32,
    lives: BTreeSet<u64>,
    /// Where it was met last.
    address: SocketAddr,
    /// Since when it counts; in the future while it is watched.
    from: Duration,
    damping: Damping,
}

impl Gossip {
    /// A node that has heard of nobody yet.
    pub fn new(settings: Settings) -> Self {
        let Settings { own, address, life, secrets, seed } = settings;
        let mut random = SmallRng::from_seed(seed);
        let seal = Seal::new(&secrets, life, SmallRng::from_rng(&mut random));
        let identity = Life { address, life, url: own.url.clone(), weight: own.weight };
        Gossip {
            foca: Foca::new(identity, config(), random, PostcardCodec),
            runtime: AccumulatingRuntime::new(),
            seal,
            own,
            timers: BinaryHeap::new(),
            timers_begun: 0,
            packets: Vec::new(),
            known: BTreeMap::new(),
            told: None,
            told_at: Duration::ZERO,
            counts: Counts::default(),
        }
    }

    /// Says to whoever gossips at `to` that this node is there.
    pub fn introduce(&mut self, to: SocketAddr, now: Duration) {
        if to != self.foca.identity().address {
            let _ = self.foca.announce(Life::whoever(to), &mut self.runtime);
            self.settle(now);
        }
    }

    /// Takes a packet that came from `from`.
    ///
    /// # Errors
    /// It is dropped; nothing of it is kept.
    pub fn take_packet(&mut self, packet: &[u8], from: SocketAddr, now: Duration) -> Result<(), Dropped> {
        let opened = self.seal.open(packet, now)?;
        match self.seal.follow(opened, now) {
            Then::Wait => {}
            Then::Send(packet) => self.packets.push((from, packet)),
            Then::Believe(words) => {
                for words in words {
                    self.counts.believed += 1;
                    // What a member of ours says and foca does not like is of no consequence: a former life of ours, or a
                    // packet for one.
                    if let Err(error) = self.foca.handle_data(&words, &mut self.runtime) {
                        tracing::trace!(%error, "words of a member were not followed");
                    }
                }
                self.settle(now);
            }
        }
        Ok(())
    }

    /// Does what is due; to be called at [`Gossip::next_time`].
    pub fn take_time(&mut self, now: Duration) {
        let mut due = Vec::new();
        while self.timers.peek().is_some_and(|Reverse(next)| next.at <= now) {
            if let Some(Reverse(next)) = self.timers.pop() {
                due.push(next.timer);
            }
        }
        // After a pause of this process much is due at once; foca's own order keeps answers before new questions.
        due.sort();
        for timer in due {
            if let Err(error) = self.foca.handle_timer(timer, &mut self.runtime) {
                tracing::trace!(%error, "a timer of the gossip had nothing to do");
            }
        }
        self.settle(now);
    }

    /// When [`Gossip::take_time`] is to be called next.
    pub fn next_time(&self) -> Option<Duration> {
        let watched = self.known.values().filter(|known| !known.lives.is_empty() && known.from > self.told_at);
        let returns = watched.map(|known| known.from).min();
        self.timers.peek().map(|Reverse(next)| next.at).into_iter().chain(returns).min()
    }

    /// Tells the others that this node leaves. It says nothing afterwards.
    pub fn leave(&mut self, now: Duration) {
        let _ = self.foca.leave_cluster(&mut self.runtime);
        self.settle(now);
        self.timers.clear();
    }

    /// What is to be sent, and where to.
    pub fn take_packets(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.packets)
    }

    /// All members of now, this node included, sorted by URL; `None` while they are those that were told last.
    pub fn take_members(&mut self, now: Duration) -> Option<Vec<Member>> {
        self.told_at = now;
        let counts = |known: &Known| !known.lives.is_empty() && known.from <= now;
        let mut members: Vec<Member> = (self.known.iter())
            .filter(|(url, known)| counts(known) && **url != self.own.url)
            .map(|(url, known)| Member { url: url.clone(), weight: known.weight })
            .chain([self.own.clone()])
            .collect();
        members.sort_unstable();
        if self.told.as_ref() == Some(&members) {
            return None;
        }
        self.told = Some(members.clone());
        Some(members)
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Members that live, this node not included, those that are watched included.
    pub fn alive(&self) -> usize {
        self.known.values().filter(|known| !known.lives.is_empty()).count()
    }

    /// Puts away what foca wants.
    fn settle(&mut self, now: Duration) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers_begun += 1;
            self.timers.push(Reverse(Due { at: now.saturating_add(after), number: self.timers_begun, timer }));
        }
        let mut rejoined = false;
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(life) => self.up(life, now),
                OwnedNotification::MemberDown(life) => self.down(&life, now),
                OwnedNotification::Rename(before, after) => {
                    self.down(&before, now);
                    self.up(after, now);
                }
                OwnedNotification::Rejoin(life) => {
                    self.seal.renew(life.life);
                    rejoined = true;
                }
                OwnedNotification::Active | OwnedNotification::Idle | OwnedNotification::Defunct => {}
            }
        }
        if rejoined {
            // After a partition all take another life at once, and nobody knows anybody's: words for a former life are not
            // heard, but an introduction to whoever is there is.
            let places: Vec<SocketAddr> =
                self.known.values().map(|known| known.address).take(REINTRODUCED_MAX).collect();
            for address in places {
                let _ = self.foca.announce(Life::whoever(address), &mut self.runtime);
            }
        }
        while let Some((to, words)) = self.runtime.to_send() {
            if let Some(packet) = self.seal.seal(Kind::Words, &words) {
                self.counts.sent += 1;
                self.packets.push((to.address, packet));
            }
        }
    }

    fn up(&mut self, life: Life, now: Duration) {
        if life.url.len() > URL_BYTES_MAX || life.life == 0 {
            self.counts.unusable += 1;
            return;
        }
        if !self.known.contains_key(&life.url) {
            self.make_room(now);
        }
        let known = self.known.entry(life.url).or_insert_with(|| Known {
            weight: life.weight,
            lives: BTreeSet::new(),
            address: life.address,
            from: Duration::ZERO,
            damping: Damping::new(RETURN),
        });
        if known.lives.is_empty() {
            known.from = now.saturating_add(known.damping.hold(now));
        }
        known.weight = life.weight;
        known.address = life.address;
        known.lives.insert(life.life);
    }

    fn down(&mut self, life: &Life, now: Duration) {
        let Some(known) = self.known.get_mut(&life.url) else { return };
        if known.lives.remove(&life.life) && known.lives.is_empty() {
            known.damping.failed(now);
            self.counts.failed += 1;
        }
    }

    /// Forgets who is gone, as soon as it makes no difference or there are too many.
    fn make_room(&mut self, now: Duration) {
        let full = self.known.len() >= MEMBERS_MAX;
        self.known.retain(|_, known| !known.lives.is_empty() || (!full && !known.damping.is_forgiven(now)));
    }
}

/// A timer of foca's, ordered by its time.
struct Due {
    at: Duration,
    number: u64,
    timer: Timer<Life>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// One life of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    address: SocketAddr,
    life: u64,
    url: String,
    weight: u32,
}

impl Life {
    /// Whoever gossips at `address`, where no life is known.
    fn whoever(address: SocketAddr) -> Self {
        Life { address, life: 0, url: String::new(), weight: 0 }
    }
}

/// Where a life is met. A life of zero is whichever life is there.
struct Place {
    address: SocketAddr,
    life: u64,
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address && (self.life == other.life || self.life == 0 || other.life == 0)
    }
}

impl Identity for Life {
    type Addr = Place;

    fn renew(&self) -> Option<Self> {
        // The next life follows from this one, and no other node's does: they began at random.
        let life = self.life.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0xd1b5_4a32_d192_ed03);
        Some(Life { life: life.max(1), ..self.clone() })
    }

    fn addr(&self) -> Place {
        Place { address: self.address, life: self.life }
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.life != adversary.life
    }
}

fn config() -> Config {
    const THREE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);
    const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);
    let every = |frequency, num_members| Some(PeriodicParams { frequency, num_members });
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_PERIOD / 3,
        num_indirect_probes: THREE,
        max_transmissions: NonZeroU8::MIN.saturating_add(9),
        suspect_to_down_after: SUSPICION,
        remove_down_after: Some(REMEMBERED),
        max_packet_size: NonZeroUsize::MIN.saturating_add(PAYLOAD_BYTES_MAX - 1),
        notify_down_members: true,
        periodic_announce: every(Duration::from_secs(5), NonZeroUsize::MIN),
        // Partitions heal by this: both halves take each other for dead.
        periodic_announce_to_down_members: every(Duration::from_secs(2), TWO),
        periodic_gossip: every(Duration::from_millis(200), THREE),
    }
}

/// How often each node asks some other whether it lives.
pub const PROBE_PERIOD: Duration = Duration::from_millis(250);

/// How long a node that is suspected has for its objection. With [`PROBE_PERIOD`], a dead node of a fleet of five is out in less
/// than two seconds: four periods until the last of the others asks it, one for the answer that does not come, and this.
pub const SUSPICION: Duration = Duration::from_millis(700);

/// How long foca remembers a life that ended: packets that speak of it as alive may still be on their way.
const REMEMBERED: Duration = Duration::from_secs(600);

/// A node that failed is back in the ring at once the first time: it was started anew. One that does so again and again moves
/// its keys each time, and waits. Guess.
const RETURN: DampingSettings = DampingSettings {
    free: 1,
    first: Duration::from_secs(4),
    most: Duration::from_secs(120),
    forgiven_after: Duration::from_secs(180),
};

/// A node that has taken another life introduces itself to so many; those tell the rest.
const REINTRODUCED_MAX: usize = 64;

/// Longer URLs do not fit a packet beside others.
const URL_BYTES_MAX: usize = 300;

/// URLs remembered at most: those of the largest fleet that was simulated, eight times.
const MEMBERS_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes on a network without delay, in which links can be cut.
    struct Net {
        nodes: Vec<Option<Gossip>>,
        now: Duration,
        /// Nodes that neither hear nor act.
        frozen: BTreeSet<usize>,
        /// Pairs that do not hear one another.
        cut: BTreeSet<(usize, usize)>,
        recorded: Vec<(usize, Vec<u8>)>,
        lists: Vec<Vec<String>>,
    }

    fn address(node: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, node as u8], 7946))
    }

    fn gossip(node: usize, life: u64, secret: &str) -> Gossip {
        Gossip::new(Settings {
            own: Member { url: format!("http://node-{node}"), weight: 1 },
            address: address(node),
            life,
            secrets: vec![secret.as_bytes().to_vec()],
            seed: [life as u8; 32],
        })
    }

    impl Net {
        fn new(size: usize) -> Self {
            let nodes = (0..size).map(|node| Some(gossip(node, node as u64 + 1, "secret"))).collect();
            let lists = vec![Vec::new(); size];
            let mut net = Net {
                nodes,
                now: Duration::ZERO,
                frozen: BTreeSet::new(),
                cut: BTreeSet::new(),
                recorded: Vec::new(),
                lists,
            };
            for node in 1..size {
                net.introduce(node);
            }
            net
        }

        fn introduce(&mut self, node: usize) {
            let now = self.now;
            self.nodes[node].as_mut().unwrap().introduce(address(0), now);
        }

        fn deliver(&mut self) {
            loop {
                let mut packets = Vec::new();
                for (from, node) in self.nodes.iter_mut().enumerate() {
                    let taken = node.as_mut().map(Gossip::take_packets).unwrap_or_default();
                    packets.extend(taken.into_iter().map(|(to, packet)| (from, to, packet)));
                }
                if packets.is_empty() {
                    return;
                }
                for (from, to, packet) in packets {
                    let to = (0..self.nodes.len()).find(|node| address(*node) == to).unwrap();
                    let cut = self.cut.contains(&(from.min(to), from.max(to)));
                    if cut || self.frozen.contains(&to) || self.frozen.contains(&from) {
                        continue;
                    }
                    self.recorded.push((to, packet.clone()));
                    if let Some(node) = &mut self.nodes[to] {
                        let _ = node.take_packet(&packet, address(from), self.now);
                    }
                }
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            self.deliver();
            while self.now < end {
                self.now += Duration::from_millis(10);
                for (index, node) in self.nodes.iter_mut().enumerate() {
                    let Some(node) = node.as_mut().filter(|_| !self.frozen.contains(&index)) else { continue };
                    if node.next_time().is_some_and(|next| next <= self.now) {
                        node.take_time(self.now);
                    }
                    if let Some(members) = node.take_members(self.now) {
                        self.lists[index] = members.into_iter().map(|member| member.url).collect();
                    }
                }
                self.deliver();
            }
        }

        /// The members that each node sees, as digits.
        fn views(&self) -> Vec<String> {
            let digits = |list: &Vec<String>| list.iter().filter_map(|url| url.rsplit('-').next()).collect();
            self.lists.iter().map(digits).collect()
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nodes_find_one_another_through_one_of_them() {
        let mut net = Net::new(5);
        net.run(SECOND);
        assert_eq!(net.views(), ["01234"; 5]);
    }

    #[test]
    fn a_dead_node_is_out_within_two_seconds_and_a_started_one_in_at_once() {
        let mut net = Net::new(5);
        net.run(SECOND * 3);
        net.nodes[3] = None;
        net.run(SECOND * 2);
        let others = |net: &Net| [0, 1, 2, 4].map(|node| net.views()[node].clone());
        assert_eq!(others(&net), ["0124"; 4]);
        net.nodes[3] = Some(gossip(3, 77, "secret"));
        net.introduce(3);
        net.run(SECOND);
        assert_eq!(net.views(), ["01234"; 5], "everybody may fall once");
        net.nodes[3] = None;
        net.run(SECOND * 2);
        net.nodes[3] = Some(gossip(3, 78, "secret"));
        net.introduce(3);
        net.run(SECOND);
        assert_eq!(others(&net), ["0124"; 4], "who falls again is watched");
        net.run(SECOND * 4);
        assert_eq!(net.views(), ["01234"; 5]);
    }

    #[test]
    fn a_restart_that_nobody_notices_moves_nothing() {
        let mut net = Net::new(3);
        net.run(SECOND);
        net.nodes[1] = Some(gossip(1, 99, "secret"));
        net.introduce(1);
        for _ in 0..50 {
            net.run(SECOND / 10);
            assert_eq!(net.views()[0], "012");
        }
        assert_eq!(net.views(), ["012"; 3]);
        assert_eq!(net.nodes[0].as_ref().unwrap().counts().failed, 0, "its former life has gone unnoticed");
    }

    #[test]
    fn a_node_that_leaves_is_out_at_once() {
        let mut net = Net::new(5);
        net.run(SECOND);
        let now = net.now;
        net.nodes[2].as_mut().unwrap().leave(now);
        net.run(SECOND / 2);
        assert_eq!([0, 1, 3, 4].map(|node| net.views()[node].clone()), ["0134"; 4]);
    }

    #[test]
    fn a_frozen_node_comes_back_with_another_life() {
        let mut net = Net::new(5);
        net.run(SECOND);
        net.frozen.insert(4);
        net.run(SECOND * 2);
        assert_eq!(net.views()[0], "0123");
        net.frozen.clear();
        net.run(SECOND * 5);
        assert_eq!(net.views(), ["01234"; 5]);
    }

    #[test]
    fn a_partition_heals() {
        let mut net = Net::new(5);
        net.run(SECOND);
        for left in [0, 1] {
            for right in [2, 3, 4] {
                net.cut.insert((left, right));
            }
        }
        net.run(SECOND * 4);
        assert_eq!(net.views(), ["01", "01", "234", "234", "234"]);
        net.cut.clear();
        net.run(SECOND * 5);
        assert_eq!(net.views(), ["01234"; 5]);
    }

    #[test]
    fn another_secret_is_another_fleet() {
        let mut net = Net::new(3);
        net.nodes[2] = Some(gossip(2, 50, "another"));
        net.introduce(2);
        net.run(SECOND * 3);
        assert_eq!(net.views(), ["01", "01", "2"]);
    }

    #[test]
    fn what_was_recorded_changes_nothing() {
        let mut net = Net::new(3);
        net.run(SECOND);
        net.nodes[1] = None;
        net.run(SECOND * 3);
        assert_eq!(net.views()[0], "02");
        for (to, packet) in std::mem::take(&mut net.recorded) {
            let now = net.now;
            if let Some(node) = &mut net.nodes[to] {
                assert_eq!(node.take_packet(&packet, address(1), now), Err(Dropped::Replayed));
            }
        }
        net.run(SECOND);
        assert_eq!(net.views()[0], "02");
    }
}
