//! Authenticated encryption of gossip, and who may be believed: no packet of strangers, none twice, none of yesterday.
//!
//! ```text
//! packet = version (1) | life of the sender (8) | counter (8) | sealed: kind (1), payload | tag (16)
//! ```
//!
//! Every life of a node has a key of its own, derived from the fleet's secret and the random number of that life
//! (HKDF-SHA-256, RFC 5869); the counter is the nonce (ChaCha20-Poly1305, RFC 8439), so that none is ever used twice with one
//! key. A counter that was seen is dropped. That alone would let somebody who recorded a whole life replay it to a node that
//! does not remember it: hence a life is believed only after it has answered a fresh random number of ours. No clock is in it.

use std::time::Duration;

use hashbrown::HashMap;
use rand::Rng;
use rand::rngs::SmallRng;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

/// What is in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Words of the membership protocol.
    Words = 0,
    /// A number that the receiver has to send back before it is believed.
    Challenge = 1,
    /// That number.
    Answer = 2,
}

/// Why a packet is dropped; the words are for statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Too long, too short, or of another version.
    Malformed,
    /// It was not sealed with a secret of ours, or was changed on its way.
    Foreign,
    /// It was seen before.
    Replayed,
    /// It came back to its sender.
    Own,
}

impl Dropped {
    /// The word for statistics.
    pub fn as_str(self) -> &'static str {
        match self {
            Dropped::Malformed => "gossip_malformed",
            Dropped::Foreign => "gossip_foreign",
            Dropped::Replayed => "gossip_replayed",
            Dropped::Own => "gossip_own",
        }
    }
}

/// An opened packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// Whose packet it is.
    pub life: u64,
    /// What is in it.
    pub kind: Kind,
    /// The payload.
    pub payload: Vec<u8>,
}

/// What to do after a packet was opened.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// These are to be believed, in this order.
    Believe(Vec<Vec<u8>>),
    /// This is to be sent back.
    Send(Vec<u8>),
    /// Nothing yet.
    Wait,
}

/// The secrets of the fleet, and the lives that were heard of.
pub struct Seal {
    secrets: Vec<Prk>,
    life: u64,
    key: Option<LessSafeKey>,
    counter: u64,
    lives: HashMap<u64, Life>,
    buffer: Vec<u8>,
    random: SmallRng,
}

struct Life {
    key: LessSafeKey,
    seen: Window,
    heard_at: Duration,
    standing: Standing,
}

enum Standing {
    Believed,
    /// It was sent this number, then; what it said meanwhile waits.
    Challenged {
        number: [u8; NUMBER_BYTES],
        at: Duration,
        waiting: Vec<Vec<u8>>,
    },
}

impl Seal {
    /// The first secret seals, all open. `life` is the random number of this life, `random` gives numbers that nobody can
    /// guess.
    pub fn new(secrets: &[Vec<u8>], life: u64, random: SmallRng) -> Self {
        let salt = Salt::new(HKDF_SHA256, DOMAIN);
        let secrets: Vec<Prk> = secrets.iter().map(|secret| salt.extract(secret)).collect();
        let key = secrets.first().and_then(|secret| key_of(secret, life));
        Seal { secrets, life, key, counter: 0, lives: HashMap::new(), buffer: Vec::new(), random }
    }

    /// Begins another life: what was sent in the one before means nothing any longer.
    pub fn renew(&mut self, life: u64) {
        self.life = life;
        self.counter = 0;
        self.key = self.secrets.first().and_then(|secret| key_of(secret, life));
    }

    /// Packs a payload; `None` when it is too long.
    pub fn seal(&mut self, kind: Kind, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return None;
        }
        let key = self.key.as_ref()?;
        self.counter += 1;
        let mut packet = Vec::with_capacity(HEAD_BYTES + 1 + payload.len() + TAG_BYTES);
        packet.push(VERSION);
        packet.extend_from_slice(&self.life.to_be_bytes());
        packet.extend_from_slice(&self.counter.to_be_bytes());
        let mut sealed = Vec::with_capacity(1 + payload.len() + TAG_BYTES);
        sealed.push(kind as u8);
        sealed.extend_from_slice(payload);
        key.seal_in_place_append_tag(nonce(self.counter), Aad::from(&packet[..]), &mut sealed).ok()?;
        packet.extend_from_slice(&sealed);
        Some(packet)
    }

    /// Opens a packet. Nothing is kept of one that is dropped.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn open(&mut self, packet: &[u8], now: Duration) -> Result<Opened, Dropped> {
        if packet.len() > PACKET_BYTES_MAX || packet.len() < HEAD_BYTES + 1 + TAG_BYTES || packet[0] != VERSION {
            return Err(Dropped::Malformed);
        }
        let number = |at: usize| u64::from_be_bytes(packet[at..at + 8].try_into().unwrap_or_default());
        let (life, counter) = (number(1), number(9));
        if life == self.life {
            return Err(Dropped::Own);
        }
        if self.lives.get(&life).is_some_and(|known| !known.seen.is_new(counter)) {
            return Err(Dropped::Replayed);
        }
        let known = self.lives.get(&life).map(|known| &known.key);
        let opened = match known {
            Some(key) => open_with(key, packet, counter, &mut self.buffer).then_some(None),
            None => self.secrets.iter().find_map(|secret| {
                let key = key_of(secret, life)?;
                open_with(&key, packet, counter, &mut self.buffer).then_some(Some(key))
            }),
        };
        let Some(new_key) = opened else { return Err(Dropped::Foreign) };
        let kind = match self.buffer.first() {
            Some(0) => Kind::Words,
            Some(1) => Kind::Challenge,
            Some(2) => Kind::Answer,
            _ => return Err(Dropped::Malformed),
        };
        if let Some(key) = new_key {
            self.make_room();
            let standing = Standing::Challenged { number: [0; NUMBER_BYTES], at: Duration::MAX, waiting: Vec::new() };
            self.lives.insert(life, Life { key, seen: Window::default(), heard_at: now, standing });
        }
        if let Some(known) = self.lives.get_mut(&life) {
            known.seen.note(counter);
            known.heard_at = now;
        }
        Ok(Opened { life, kind, payload: self.buffer[1..].to_vec() })
    }

    /// What follows from a packet that was opened.
    pub fn follow(&mut self, opened: Opened, now: Duration) -> Then {
        let Opened { life, kind, payload } = opened;
        if kind == Kind::Challenge {
            let answer = (payload.len() == NUMBER_BYTES).then(|| self.seal(Kind::Answer, &payload)).flatten();
            return answer.map_or(Then::Wait, Then::Send);
        }
        let Some(known) = self.lives.get_mut(&life) else { return Then::Wait };
        match (&mut known.standing, kind) {
            (Standing::Believed, Kind::Words) => Then::Believe(vec![payload]),
            (Standing::Challenged { number, at, waiting }, Kind::Words) => {
                if waiting.len() < WAITING_MAX {
                    waiting.push(payload);
                }
                if *at != Duration::MAX && now < at.saturating_add(CHALLENGE_PAUSE) {
                    return Then::Wait;
                }
                *at = now;
                self.random.fill_bytes(number);
                let number = *number;
                self.seal(Kind::Challenge, &number).map_or(Then::Wait, Then::Send)
            }
            (Standing::Challenged { number, at, waiting }, Kind::Answer) if *at != Duration::MAX => {
                let difference = number.iter().zip(&payload).fold(0, |sum, (a, b)| sum | (a ^ b));
                if payload.len() != NUMBER_BYTES || std::hint::black_box(difference) != 0 {
                    return Then::Wait;
                }
                let waiting = std::mem::take(waiting);
                known.standing = Standing::Believed;
                Then::Believe(waiting)
            }
            _ => Then::Wait,
        }
    }

    /// Lives that are remembered.
    pub fn lives(&self) -> usize {
        self.lives.len()
    }

    /// Forgets the life that was heard of longest ago, of those that are not believed first.
    fn make_room(&mut self) {
        if self.lives.len() < LIVES_MAX {
            return;
        }
        let believed = |life: &Life| matches!(life.standing, Standing::Believed);
        let oldest = self.lives.iter().min_by_key(|(_, life)| (believed(life), life.heard_at)).map(|(life, _)| *life);
        if let Some(oldest) = oldest {
            self.lives.remove(&oldest);
        }
    }
}

/// Opens into `buffer`.
fn open_with(key: &LessSafeKey, packet: &[u8], counter: u64, buffer: &mut Vec<u8>) -> bool {
    let (head, sealed) = packet.split_at(HEAD_BYTES);
    buffer.clear();
    buffer.extend_from_slice(sealed);
    match key.open_in_place(nonce(counter), Aad::from(head), buffer) {
        Ok(opened) => {
            let bytes = opened.len();
            buffer.truncate(bytes);
            true
        }
        Err(_) => false,
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn key_of(secret: &Prk, life: u64) -> Option<LessSafeKey> {
    struct KeyBytes;
    impl KeyType for KeyBytes {
        fn len(&self) -> usize {
            32
        }
    }
    let info = [&life.to_be_bytes()[..]];
    let mut bytes = [0; 32];
    secret.expand(&info, KeyBytes).ok()?.fill(&mut bytes).ok()?;
    UnboundKey::new(&CHACHA20_POLY1305, &bytes).ok().map(LessSafeKey::new)
}

/// The counters that were seen: the highest, and those shortly below it, since packets overtake one another.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    highest: u64,
    below: u64,
}

impl Window {
    fn is_new(&self, counter: u64) -> bool {
        match self.highest.checked_sub(counter) {
            None => true,
            Some(0) => false,
            Some(distance) => distance <= 64 && self.below & (1 << (distance - 1)) == 0,
        }
    }

    fn note(&mut self, counter: u64) {
        match self.highest.checked_sub(counter) {
            None => {
                let ahead = counter - self.highest;
                let shifted = self.below.checked_shl(u32::try_from(ahead).unwrap_or(u32::MAX)).unwrap_or(0);
                let highest = if ahead <= 64 && self.highest > 0 { 1 << (ahead - 1) } else { 0 };
                self.below = shifted | highest;
                self.highest = counter;
            }
            Some(distance @ 1..=64) => self.below |= 1 << (distance - 1),
            Some(_) => {}
        }
    }
}

const DOMAIN: &[u8] = b"groupcache-proxy gossip 1";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 17;
const TAG_BYTES: usize = 16;
const NUMBER_BYTES: usize = 16;
/// Words in one packet, so that it fits a frame of any network with what goes around it.
pub const PAYLOAD_BYTES_MAX: usize = 1200;
/// A packet is never longer.
pub const PACKET_BYTES_MAX: usize = HEAD_BYTES + 1 + PAYLOAD_BYTES_MAX + TAG_BYTES;
/// Lives remembered at most; each node of the largest fleet that was simulated, eight times.
const LIVES_MAX: usize = 8192;
/// Packets of a life that is not yet believed: its introduction and little more.
const WAITING_MAX: usize = 4;
/// A life is challenged again after this: its answer may have been lost.
const CHALLENGE_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn seal(secrets: &[&str], life: u64) -> Seal {
        let secrets: Vec<Vec<u8>> = secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect();
        Seal::new(&secrets, life, SmallRng::seed_from_u64(life))
    }

    /// Lets `to` take a packet; what it sends back is taken by `from` in turn, until nothing is sent any more.
    fn talk(from: &mut Seal, to: &mut Seal, packet: &[u8]) -> Result<Vec<Vec<u8>>, Dropped> {
        let opened = to.open(packet, NOW)?;
        match to.follow(opened, NOW) {
            Then::Believe(words) => Ok(words),
            Then::Wait => Ok(Vec::new()),
            Then::Send(back) => {
                let opened = from.open(&back, NOW)?;
                let Then::Send(answer) = from.follow(opened, NOW) else { panic!("an answer") };
                talk(from, to, &answer)
            }
        }
    }

    #[test]
    fn a_life_is_believed_after_it_has_answered_and_no_packet_twice() {
        let (mut a, mut b) = (seal(&["secret"], 1), seal(&["secret"], 2));
        let first = a.seal(Kind::Words, b"hello").unwrap();
        assert_eq!(talk(&mut a, &mut b, &first), Ok(vec![b"hello".to_vec()]), "what was said first was kept");
        let second = a.seal(Kind::Words, b"again").unwrap();
        assert_eq!(talk(&mut a, &mut b, &second), Ok(vec![b"again".to_vec()]), "no challenge any more");
        for packet in [first, second] {
            assert_eq!(b.open(&packet, NOW), Err(Dropped::Replayed));
        }
    }

    #[test]
    fn a_recorded_life_is_not_believed_by_who_does_not_remember_it() {
        let mut a = seal(&["secret"], 1);
        let recorded: Vec<_> = (0..5).map(|_| a.seal(Kind::Words, b"old").unwrap()).collect();
        let mut late = seal(&["secret"], 3);
        for packet in recorded {
            let opened = late.open(&packet, NOW).unwrap();
            assert!(!matches!(late.follow(opened, NOW), Then::Believe(_)));
        }
    }

    #[test]
    fn an_answer_to_another_number_proves_nothing() {
        let (mut a, mut b) = (seal(&["secret"], 1), seal(&["secret"], 2));
        let words = a.seal(Kind::Words, b"hello").unwrap();
        let opened = b.open(&words, NOW).unwrap();
        assert!(matches!(b.follow(opened, NOW), Then::Send(_)));
        for wrong in [&[7; NUMBER_BYTES][..], &[], &[0; NUMBER_BYTES + 1]] {
            let answer = a.seal(Kind::Answer, wrong).unwrap();
            let opened = b.open(&answer, NOW).unwrap();
            assert_eq!(b.follow(opened, NOW), Then::Wait);
        }
        // Without a challenge nothing can be answered, least of all zeros.
        let mut c = seal(&["secret"], 3);
        let answer = a.seal(Kind::Answer, &[0; NUMBER_BYTES]).unwrap();
        let opened = c.open(&answer, NOW).unwrap();
        assert_eq!(c.follow(opened, NOW), Then::Wait);
    }

    #[test]
    fn any_accepted_secret_opens_and_no_other() {
        let (mut old, mut both, mut new) = (seal(&["old"], 1), seal(&["new", "old"], 2), seal(&["new"], 3));
        let packet = old.seal(Kind::Words, b"words").unwrap();
        assert!(both.open(&packet, NOW).is_ok());
        assert_eq!(new.open(&packet, NOW), Err(Dropped::Foreign));
        assert_eq!(new.lives(), 0, "nothing is kept of strangers");
        let packet = both.seal(Kind::Words, b"words").unwrap();
        assert!(new.open(&packet, NOW).is_ok());
    }

    #[test]
    fn changed_packets_and_garbage_are_dropped() {
        let (mut a, mut b) = (seal(&["secret"], 1), seal(&["secret"], 2));
        let packet = a.seal(Kind::Words, b"words").unwrap();
        for bit in 0..packet.len() * 8 {
            let mut changed = packet.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(b.open(&changed, NOW).is_err(), "bit {bit}");
        }
        for length in 0..packet.len() {
            assert!(b.open(&packet[..length], NOW).is_err(), "{length} bytes");
        }
        assert_eq!(b.open(&vec![1; PACKET_BYTES_MAX + 1], NOW), Err(Dropped::Malformed));
        assert_eq!(b.lives(), 0);
        assert_eq!(a.open(&packet, NOW), Err(Dropped::Own));
        assert!(a.seal(Kind::Words, &vec![0; PAYLOAD_BYTES_MAX + 1]).is_none());
        assert!(b.open(&packet, NOW).is_ok());
    }

    #[test]
    fn packets_may_overtake_one_another() {
        let (mut a, mut b) = (seal(&["secret"], 1), seal(&["secret"], 2));
        let packets: Vec<_> = (0..100).map(|_| a.seal(Kind::Words, b"words").unwrap()).collect();
        for index in [50, 20, 99, 98, 36] {
            assert!(b.open(&packets[index], NOW).is_ok(), "{index}");
            assert_eq!(b.open(&packets[index], NOW), Err(Dropped::Replayed), "{index}");
        }
        assert_eq!(b.open(&packets[34], NOW), Err(Dropped::Replayed), "too far behind to be told from a replay");
    }

    #[test]
    fn lives_are_bounded() {
        let mut b = seal(&["secret"], 1);
        for life in 2..LIVES_MAX as u64 + 100 {
            let packet = seal(&["secret"], life).seal(Kind::Words, b"").unwrap();
            b.open(&packet, Duration::from_millis(life)).unwrap();
        }
        assert_eq!(b.lives(), LIVES_MAX);
    }
}
