use std::collections::BTreeSet;

use super::*;

const fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A list of members that all have.
const LIST: u64 = 1;

/// The leases of one of so many members, which began at zero.
fn leases(members: usize) -> Leases {
    let mut leases = Leases::default();
    leases.follow(true, LIST, (1..members).map(|other| other.to_string()).collect(), true, at(0));
    leases
}

fn yes(life: u64) -> LeaseAnswer {
    LeaseAnswer { list: LIST, previous: Vec::new(), life, settled: true, booked: Vec::new() }
}

fn no(life: u64) -> LeaseAnswer {
    LeaseAnswer { settled: false, ..yes(life) }
}

#[test]
fn a_lease_lasts_from_the_question_to_the_slowest_of_a_majority() {
    for (members, answers, expected) in [
        (2, vec![], 0),
        (2, vec![("1", 5000, yes(11))], 7000),
        (3, vec![("1", 5000, yes(11))], 7000),
        (3, vec![("1", 5000, yes(11)), ("2", 5500, yes(12))], 7500),
        (3, vec![("1", 5000, no(11))], 0),
        (5, vec![("1", 5000, yes(11))], 0),
        (5, vec![("1", 5000, yes(11)), ("2", 5500, yes(12))], 7000),
        (5, vec![("1", 5000, yes(11)), ("2", 5500, yes(12)), ("3", 6000, yes(13))], 7500),
        // Late answers take nothing back, and the same member does not count twice.
        (5, vec![("1", 6000, yes(11)), ("1", 5000, yes(11))], 0),
        (3, vec![("1", 6000, yes(11)), ("1", 5000, yes(11))], 8000),
        // Another life has said nothing yet.
        (3, vec![("1", 6000, yes(11)), ("1", 6500, no(14))], 0),
        // Nobody knows it.
        (3, vec![("stranger", 6000, yes(11))], 0),
    ] {
        let mut leases = leases(members);
        leases.settle();
        for (url, asked_at, answer) in &answers {
            leases.heard(url, at(*asked_at), at(*asked_at), answer);
        }
        assert_eq!(leases.until(), Some(at(expected)), "{members} {answers:?}");
        let standing = if expected > 7100 { Standing::Held(at(expected - 7100)) } else { Standing::Lost };
        assert!(leases.standing(at(7100)) == standing, "{members} {answers:?}: {:?}", leases.standing(at(7100)));
    }
}

#[test]
fn who_is_alone_or_serves_needs_no_lease() {
    let mut leases = leases(1);
    assert_eq!((leases.until(), leases.standing(at(0))), (None, Standing::Free));
    leases.follow(false, LIST, vec!["1".to_owned()], true, at(0));
    assert_eq!((leases.until(), leases.answer(9, LeaseQuestion { life: 1, wants_booked: false }, at(0))), (None, None));
    // From the moment on at which leases are kept, this node has no past.
    leases.follow(true, LIST, vec!["1".to_owned()], true, at(100_000));
    assert_eq!(leases.standing(at(100_000)), Standing::Unsettled);
    assert_eq!(leases.settling(at(100_000)), Settling::Wait);
}

/// As a file of members does that is read while it is written.
#[test]
fn who_is_given_a_list_of_itself_alone_has_no_lease_until_the_others_are_back() {
    const ALONE: u64 = 2;
    let mut leases = leases(3);
    leases.settle();
    leases.heard("1", at(9000), at(9001), &yes(11));
    let change = leases.follow(true, ALONE, Vec::new(), true, at(10_000));
    assert_eq!(change, Some(ListChange { keeps_majority: false, needs_old: true }));
    assert_eq!(leases.standing(at(10_000)), Standing::Held(at(1000)), "what was held runs out");
    assert_eq!(leases.standing(at(11_000)), Standing::Lost);
    assert_eq!(Commit::new(10, &[], at(11_000)).verdict(&leases, at(11_000)), Verdict::Lacking);
    assert_eq!((leases.settling(at(60_000)), leases.standing(at(60_000))), (Settling::Wait, Standing::Lost));
    // With the list of before it has the lease of before.
    leases.follow(true, LIST, vec!["1".to_owned(), "2".to_owned()], true, at(70_000));
    assert_eq!(leases.standing(at(70_000)), Standing::Lost);
    assert!(!leases.heard("1", at(70_100), at(70_101), &yes(11)));
    assert_eq!(leases.standing(at(70_200)), Standing::Held(at(1900)));
    assert!(leases.heard("1", at(72_400), at(72_401), &yes(11)), "{leases:?}");
    assert_eq!((leases.previous_lists(), leases.standing(at(72_400))), (0, Standing::Held(at(2000))));
}

#[test]
fn what_was_said_yes_to_is_booked_for_longer_than_it_is_held() {
    let mut leases = leases(3);
    let question = |life| LeaseQuestion { life, wants_booked: true };
    assert_eq!(leases.answer(9, question(1), at(100)), Some(no(9)), "who is not settled books nothing");
    let earlier = Booked { life: ANYBODY, remaining: SETTLE_AFTER - at(100) };
    assert_eq!(leases.booked(at(100)), [earlier], "but does not know what its earlier life did");
    leases.settle();
    assert_eq!(leases.answer(9, question(1), at(5000)), Some(yes(9)));
    assert_eq!(leases.answer(9, question(2), at(6000)), Some(yes(9)));
    let booked = |life, milliseconds| Booked { life, remaining: at(milliseconds) };
    assert_eq!(leases.booked(at(6000)), [booked(1, 1200), booked(2, 2200)]);
    assert_eq!(leases.booked(at(7200)), [booked(2, 1000)]);
    assert!(at(5000) + LEASE < at(7200));
}

#[test]
fn a_node_that_starts_settles_by_those_who_remember() {
    for (members, answers, now, expected) in [
        (3, vec![("1", 2500, yes(11)), ("2", 2500, yes(12))], 2600, Settling::Settled),
        // Asked too early: what an earlier life confirmed may count elsewhere without having got there.
        (3, vec![("1", 2100, yes(11)), ("2", 2500, yes(12))], 2600, Settling::Wait),
        (3, vec![("1", 2500, yes(11))], 2600, Settling::Wait),
        (3, vec![("1", 9500, yes(11))], 10_100, Settling::Empty),
        (3, vec![("1", 2500, yes(11))], 10_100, Settling::Wait),
        (3, vec![("1", 2500, no(11)), ("2", 2500, no(12))], 2600, Settling::Empty),
        (3, vec![("1", 2500, no(11)), ("2", 2500, no(12))], 2100, Settling::Wait),
        (2, vec![("1", 2500, yes(11))], 2600, Settling::Settled),
        (4, vec![("1", 2500, yes(11)), ("2", 2500, yes(12))], 2600, Settling::Settled),
        (5, vec![("1", 2500, yes(11)), ("2", 2500, yes(12))], 2600, Settling::Wait),
        (5, vec![("1", 2500, yes(11)), ("2", 2500, yes(12)), ("3", 2500, yes(13))], 2600, Settling::Settled),
    ] {
        let mut leases = leases(members);
        for (url, asked_at, answer) in &answers {
            leases.heard(url, at(*asked_at), at(*asked_at), answer);
        }
        assert_eq!(leases.settling(at(now)), expected, "{members} {answers:?} {now}");
        assert_eq!(leases.until(), Some(at(0)), "not before it is settled");
    }
}

#[test]
fn a_majority_commits_when_no_lease_is_left_that_it_gave_to_others() {
    let booked = |life, milliseconds| Booked { life, remaining: at(milliseconds) };
    for (confirmed, heard, expected) in [
        // Of three: itself and one more.
        (vec![], vec![("1", 9000, yes(11))], Verdict::Lacking),
        (vec![(11, vec![])], vec![("1", 9000, yes(11))], Verdict::Committed),
        (vec![(11, vec![booked(12, 700)])], vec![("1", 9000, yes(11))], Verdict::Then(at(10_700))),
        (vec![(11, vec![booked(ANYBODY, 700)])], vec![("1", 9000, yes(11))], Verdict::Then(at(10_700))),
        // Whose lease is booked has confirmed.
        (vec![(11, vec![booked(12, 700)]), (12, vec![])], vec![("1", 9000, yes(11))], Verdict::Committed),
        // Who confirmed was not heard of for too long, or is dead.
        (vec![(11, vec![])], vec![("1", 7900, yes(11))], Verdict::Lacking),
        (vec![(11, vec![])], vec![("1", 9000, no(13))], Verdict::Lacking),
    ] {
        let mut leases = leases(3);
        for (url, asked_at, answer) in &heard {
            leases.heard(url, at(*asked_at), at(*asked_at), answer);
        }
        let mut commit = Commit::new(10, &[], at(10_000));
        confirmed.iter().for_each(|(life, booked)| commit.confirm(*life, booked, at(10_000)));
        assert_eq!(commit.verdict(&leases, at(10_000)), expected, "{confirmed:?} {heard:?}");
    }
}

#[test]
fn who_takes_another_list_needs_a_majority_of_both_until_the_old_one_is_left() {
    const NEW: u64 = 2;
    let others = |places: std::ops::Range<usize>| places.map(|place| place.to_string()).collect::<Vec<_>>();
    let on_new = |life, previous: &[u64]| LeaseAnswer { list: NEW, previous: previous.to_vec(), ..yes(life) };
    let mut leases = leases(5);
    leases.settle();
    for (url, life) in [("1", 11), ("3", 13)] {
        leases.heard(url, at(9000), at(9001), &yes(life));
    }
    assert_eq!(leases.until(), Some(at(11_000)));
    // Three of five stay.
    let change = leases.follow(true, NEW, others(1..3), true, at(10_000));
    assert_eq!(change, Some(ListChange { keeps_majority: true, needs_old: true }));
    assert_eq!((leases.until(), leases.previous_lists()), (Some(at(11_000)), 1), "what was held runs out");
    let verdict = |leases: &Leases, lives: &[u64], now| {
        let mut commit = Commit::new(10, &[], now);
        lives.iter().for_each(|life| commit.confirm(*life, &[], now));
        commit.verdict(leases, now)
    };
    // A majority of the new list is none of the old one: the others may go on by that.
    leases.heard("1", at(10_500), at(10_501), &on_new(11, &[LIST]));
    assert_eq!(leases.until(), Some(at(11_000)));
    assert_eq!(verdict(&leases, &[11], at(10_600)), Verdict::Lacking);
    // Who has still the old list, or needs one that this node does not, does not count.
    leases.heard("2", at(10_500), at(10_501), &yes(12));
    assert_eq!(leases.until(), Some(at(11_000)));
    leases.heard("2", at(10_600), at(10_601), &on_new(12, &[LIST, 7]));
    assert_eq!(leases.until(), Some(at(11_000)));
    leases.heard("2", at(10_700), at(10_701), &on_new(12, &[LIST]));
    assert_eq!(leases.until(), Some(at(12_500)));
    assert_eq!(verdict(&leases, &[11], at(10_800)), Verdict::Lacking);
    assert_eq!(verdict(&leases, &[11, 12], at(10_800)), Verdict::Committed);
    // The old list is left when no lease by it can last any longer, counted from when the answers came.
    assert!(!leases.heard("1", at(12_600), at(12_600), &on_new(11, &[LIST])));
    assert!(!leases.heard("2", at(12_800), at(12_800), &on_new(12, &[LIST])));
    assert!(leases.heard("2", at(12_900), at(12_901), &on_new(12, &[LIST])), "{leases:?}");
    assert_eq!((leases.until(), leases.previous_lists()), (Some(at(14_600)), 0), "what was held runs out");
    assert_eq!(verdict(&leases, &[11, 12], at(13_000)), Verdict::Lacking, "they still need the old list");
    leases.heard("1", at(13_100), at(13_101), &on_new(11, &[]));
    assert_eq!((leases.until(), verdict(&leases, &[11], at(13_200))), (Some(at(15_100)), Verdict::Committed));
    // A list with none of the majority, or with more new ones than old: said, because nothing else can be done about it.
    let change = leases.follow(true, 3, others(7..9), true, at(20_000));
    assert_eq!(change, Some(ListChange { keeps_majority: false, needs_old: false }));
}

/// Five nodes whose messages take as long as they like or get lost, whose clocks run unevenly, and which die and are frozen: no
/// node with a lease lacks a purge that was committed.
#[test]
fn nobody_with_a_lease_lacks_a_committed_purge() {
    let (mut committed, mut holding) = (0, 0);
    for seed in 1..=60 {
        let mut model = Model::new(seed, 3 + (seed as usize % 3), false);
        for _ in 0..4000 {
            model.step();
            holding += model.check();
        }
        committed += model.purges.iter().filter(|purge| purge.committed).count();
    }
    assert!(committed > 100 && holding > 20_000, "{committed} committed, {holding} times held");
}

/// The same where nobody dies and lists of members change by any number of nodes at once, on each node at another time, and
/// before all have taken the one before.
#[test]
fn nobody_with_a_lease_lacks_a_committed_purge_while_lists_change() {
    let (mut committed, mut holding, mut retired) = (0, 0, 0);
    for seed in 1..=40 {
        let mut model = Model::new(seed, 3 + (seed as usize % 6), true);
        for _ in 0..5000 {
            model.step();
            holding += model.check();
        }
        committed += model.purges.iter().filter(|purge| purge.committed).count();
        retired += model.retired;
    }
    let counts = format!("{committed} committed, {holding} times held, {retired} times retired");
    assert!(committed > 100 && holding > 20_000 && retired > 100, "{counts}");
}

struct Model {
    random: u64,
    /// Microseconds of true time.
    time: u64,
    nodes: Vec<ModelNode>,
    messages: Vec<Message>,
    purges: Vec<ModelPurge>,
    lives: u64,
    /// Who is out of reach of whom for now: those of a side.
    split: u64,
    /// The lists of members, in the order in which every node takes them; never changed when nodes die.
    lists: Vec<Vec<usize>>,
    lists_change: bool,
    /// How often a node dropped the last list before its own.
    retired: usize,
}

struct ModelNode {
    life: u64,
    began: u64,
    /// Parts per thousand.
    rate: u64,
    /// Which list it has.
    list: usize,
    leases: Leases,
    /// Numbers of the purges that it has applied.
    applied: BTreeSet<usize>,
    /// When everything was last removed.
    emptied: u64,
    frozen_until: u64,
}

struct ModelPurge {
    by: usize,
    by_life: u64,
    accepted: u64,
    everything: bool,
    commit: Option<Commit>,
    committed: bool,
}

enum Message {
    Purge {
        to: usize,
        number: usize,
    },
    Question {
        from: usize,
        life: u64,
        to: usize,
        asked_at: Duration,
        purge: Option<usize>,
    },
    Answer {
        from: usize,
        to: usize,
        life: u64,
        asked_at: Duration,
        answer: LeaseAnswer,
        applied: BTreeSet<usize>,
        purge: Option<usize>,
    },
}

impl Model {
    fn new(seed: u64, size: usize, lists_change: bool) -> Self {
        let (nodes, messages, purges) = (Vec::new(), Vec::new(), Vec::new());
        let mut model = Model {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            time: 1_000_000,
            nodes,
            messages,
            purges,
            lives: 0,
            split: 0,
            lists: vec![(0..size).collect()],
            lists_change,
            retired: 0,
        };
        if lists_change {
            // Some who are no members yet, and take every list nevertheless.
            model.lists[0].retain(|place| *place < size.div_ceil(2) + 1);
        }
        for place in 0..size {
            let node = model.born(place);
            model.nodes.push(node);
        }
        model
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }

    /// Lets `leases` follow the list.
    fn follow(lists: &[Vec<usize>], list: usize, place: usize, leases: &mut Leases, now: Duration) {
        let others = lists[list].iter().filter(|other| **other != place).map(usize::to_string).collect();
        leases.follow(true, list as u64 + 1, others, lists[list].contains(&place), now);
    }

    /// A list that keeps a majority of the one before and has no majority of new ones.
    fn change_list(&mut self) {
        let before = self.lists.last().unwrap().clone();
        let size = self.nodes.len() as u64;
        let chosen = self.below(1 << size);
        let after: Vec<usize> = (0..self.nodes.len()).filter(|place| chosen >> place & 1 == 1).collect();
        let kept = after.iter().filter(|place| before.contains(place)).count();
        if after.len() > 1 && kept > before.len() / 2 && after.len() - kept < after.len() / 2 + 1 {
            self.lists.push(after);
        }
    }

    fn born(&mut self, place: usize) -> ModelNode {
        self.lives += 1;
        let mut leases = Leases::default();
        let list = self.lists.len() - 1;
        Model::follow(&self.lists, list, place, &mut leases, Duration::ZERO);
        let rate = 980 + self.below(41);
        let (life, began) = (self.lives, self.time);
        ModelNode { life, began, rate, list, leases, applied: BTreeSet::new(), emptied: began, frozen_until: 0 }
    }

    fn now(&self, place: usize) -> Duration {
        let node = &self.nodes[place];
        Duration::from_micros((self.time - node.began) * node.rate / 1000)
    }

    fn apply(&mut self, place: usize, number: usize) {
        let (time, everything) = (self.time, self.purges[number].everything);
        let node = &mut self.nodes[place];
        if node.applied.insert(number) && everything {
            node.emptied = time;
        }
    }

    fn accept(&mut self, by: usize, everything: bool) {
        let number = self.purges.len();
        let now = self.now(by);
        let node = &self.nodes[by];
        let commit = Some(Commit::new(node.life, &node.leases.booked(now), now));
        let (by_life, accepted) = (node.life, self.time);
        self.purges.push(ModelPurge { by, by_life, accepted, everything, commit, committed: false });
        self.apply(by, number);
        let list = &self.lists[self.nodes[by].list];
        for &to in list.iter().filter(|to| **to != by) {
            self.messages.push(Message::Purge { to, number });
        }
    }

    fn ask(&mut self, from: usize, to: usize, purge: Option<usize>) {
        let life = self.nodes[from].life;
        self.messages.push(Message::Question { from, life, to, asked_at: self.now(from), purge });
    }

    fn step(&mut self) {
        self.time += self.below(20_000);
        let size = self.nodes.len() as u64;
        let place = self.below(size) as usize;
        match self.below(1000) {
            0..3 if !self.lists_change => self.nodes[place] = self.born(place),
            0..1 => self.change_list(),
            3..10 if self.lists_change && self.is_awake(place) => {
                let (now, lists) = (self.now(place), &self.lists);
                let node = &mut self.nodes[place];
                if node.list + 1 < lists.len() {
                    node.list += 1;
                    Model::follow(lists, node.list, place, &mut node.leases, now);
                }
            }
            20..23 if self.lists_change && self.below(3) > 0 => {
                // The worst place for a split: between those who have a list and those who have not.
                let list = self.nodes[place].list;
                let with = self.nodes.iter().enumerate().filter(|(_, node)| node.list >= list);
                self.split = with.map(|(place, _)| 1 << place).sum();
            }
            20..23 => self.split = self.below(1 << size),
            // Long enough for leases to run out.
            23..25 if self.lists_change => self.split = 0,
            23..29 => self.split = 0,
            29..32 => self.nodes[place].frozen_until = self.time + self.below(4_000_000),
            32..47 => self.accept(place, false),
            47..167 => {
                let to = self.below(size) as usize;
                let is_member = self.lists[self.nodes[place].list].contains(&to);
                if to != place && is_member && self.is_awake(place) {
                    self.ask(place, to, None);
                }
            }
            167..267 if self.is_awake(place) => match self.nodes[place].leases.settling(self.now(place)) {
                Settling::Wait => {}
                Settling::Settled => self.nodes[place].leases.settle(),
                Settling::Empty => {
                    self.accept(place, true);
                    self.nodes[place].leases.settle();
                }
            },
            _ if !self.messages.is_empty() => {
                let at = self.below(self.messages.len() as u64) as usize;
                let message = self.messages.swap_remove(at);
                self.deliver(message);
                // What is old is lost.
                let surplus = self.messages.len().saturating_sub(IN_TRANSIT_MAX);
                self.messages.drain(..surplus);
            }
            _ => {}
        }
    }

    fn is_awake(&self, place: usize) -> bool {
        self.nodes[place].frozen_until <= self.time
    }

    fn passes(&self, one: usize, other: usize) -> bool {
        (self.split >> one) & 1 == (self.split >> other) & 1 && self.is_awake(one) && self.is_awake(other)
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Purge { to, number } => {
                let by = self.purges[number].by;
                if self.passes(by, to) {
                    self.apply(to, number);
                    // Its confirmation, upon which the acceptor asks for the book.
                    if self.nodes[by].life == self.purges[number].by_life {
                        self.ask(by, to, Some(number));
                    }
                }
            }
            Message::Question { from, life, to, asked_at, purge } => {
                if !self.passes(from, to) {
                    return;
                }
                let now = self.now(to);
                let node = &mut self.nodes[to];
                let question = LeaseQuestion { life, wants_booked: purge.is_some() };
                let Some(mut answer) = node.leases.answer(node.life, question, now) else { return };
                let own = node.applied.clone();
                if purge.is_some() {
                    answer.booked = node.leases.booked(now);
                }
                // What it lacks travels with the answer.
                self.messages.push(Message::Answer { from: to, to: from, life, asked_at, answer, applied: own, purge });
            }
            Message::Answer { from, to, life, asked_at, answer, applied, purge } => {
                if !self.passes(from, to) || self.nodes[to].life != life {
                    return;
                }
                for &number in &applied {
                    self.apply(to, number);
                }
                let now = self.now(to);
                self.retired += usize::from(self.nodes[to].leases.heard(&from.to_string(), asked_at, now, &answer));
                if let Some(number) = purge.filter(|number| applied.contains(number))
                    && let Some(commit) = &mut self.purges[number].commit
                {
                    commit.confirm(answer.life, &answer.booked, now);
                }
            }
        }
    }

    /// Commits what can be, and checks the promise; says how many nodes hold leases.
    fn check(&mut self) -> usize {
        for number in 0..self.purges.len() {
            let purge = &self.purges[number];
            let by = &self.nodes[purge.by];
            if purge.committed || purge.by_life != by.life || !self.is_awake(purge.by) {
                continue;
            }
            let verdict = purge.commit.as_ref().map(|commit| commit.verdict(&by.leases, self.now(purge.by)));
            self.purges[number].committed = verdict == Some(Verdict::Committed);
        }
        let mut holding = 0;
        for (place, node) in self.nodes.iter().enumerate() {
            let until = node.leases.until().unwrap_or_default();
            if until <= self.now(place) {
                continue;
            }
            holding += 1;
            for (number, purge) in self.purges.iter().enumerate().filter(|(_, purge)| purge.committed) {
                // What it fetched later is not older than the purge.
                let clean = node.emptied >= purge.accepted || node.applied.contains(&number);
                assert!(clean, "node {place} answers although it lacks purge {number}");
            }
        }
        holding
    }
}

/// Messages of the model that are on their way.
const IN_TRANSIT_MAX: usize = 100;
