//! MD5 (RFC 1321) of several short messages side by side.
//!
//! The points of the mailgun and v3 rings are digests of some ten thousand names, each a single block. One MD5 is a
//! chain in which every operation waits for the one before; several in lockstep keep the processor busy. That makes
//! a ring of a thousand peers twice as fast to build (`benches/ring.rs`) as with the `md-5` crate alone, which does the
//! longer names and checks this in the tests. A place on a ring is no secret and proves nothing: that MD5 is broken is
//! no matter here.

/// How many messages are digested at once. With more the words no longer fit the registers: slower, as measured.
pub(super) const LANES: usize = 4;

/// The longest message, in bytes, that fits one block with its padding.
pub(super) const MESSAGE_BYTES_MAX: usize = 55;

/// The digest of each of `messages`, none longer than [`MESSAGE_BYTES_MAX`] (bytes beyond are ignored).
pub(super) fn short_md5(messages: &[impl AsRef<[u8]>; LANES]) -> [[u8; 16]; LANES] {
    let mut words = [[0; LANES]; 16];
    for (lane, message) in messages.iter().enumerate() {
        let block = block(message.as_ref());
        for (number, bytes) in block.chunks_exact(4).enumerate() {
            words[number][lane] = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
    }
    let state = digest(&words);
    std::array::from_fn(|lane| std::array::from_fn(|byte| state[byte / 4][lane].to_le_bytes()[byte % 4]))
}

/// RFC 1321 sections 3.1 and 3.2: a one bit, zeros, and the length in bits.
fn block(message: &[u8]) -> [u8; 64] {
    let message = &message[..message.len().min(MESSAGE_BYTES_MAX)];
    let mut block = [0; 64];
    block[..message.len()].copy_from_slice(message);
    block[message.len()] = 0x80;
    block[56..].copy_from_slice(&(message.len() as u64 * 8).to_le_bytes());
    block
}

/// RFC 1321 sections 3.3 and 3.4: four rounds of sixteen operations, which differ in how they mix, in the order in
/// which they take the words, and in their shifts.
fn digest(words: &[Lanes; 16]) -> [Lanes; 4] {
    let mut state = INITIAL_STATE.map(|word| [word; LANES]);
    round::<0, 7, 12, 17, 22>(&mut state, words, |step| step, |b, c, d| d ^ (b & (c ^ d)));
    round::<16, 5, 9, 14, 20>(&mut state, words, |step| 5 * step + 1, |b, c, d| c ^ (d & (b ^ c)));
    round::<32, 4, 11, 16, 23>(&mut state, words, |step| 3 * step + 5, |b, c, d| b ^ c ^ d);
    round::<48, 6, 10, 15, 21>(&mut state, words, |step| 7 * step, |b, c, d| c ^ (b | !d));
    for (lanes, initial) in state.iter_mut().zip(INITIAL_STATE) {
        *lanes = lanes.map(|word| word.wrapping_add(initial));
    }
    state
}

/// The shifts are constants, so that each operation compiles to a few instructions a lane.
#[inline(always)]
fn round<const START: usize, const SHIFT_1: u32, const SHIFT_2: u32, const SHIFT_3: u32, const SHIFT_4: u32>(
    state: &mut [Lanes; 4],
    words: &[Lanes; 16],
    word_at: impl Fn(usize) -> usize,
    mix: impl Fn(u32, u32, u32) -> u32,
) {
    let [mut a, mut b, mut c, mut d] = *state;
    for step in (START..START + 16).step_by(4) {
        let word = |offset: usize| (&words[word_at(step + offset) % 16], SINES[step + offset]);
        a = operation::<SHIFT_1>(&a, &b, &c, &d, word(0), &mix);
        d = operation::<SHIFT_2>(&d, &a, &b, &c, word(1), &mix);
        c = operation::<SHIFT_3>(&c, &d, &a, &b, word(2), &mix);
        b = operation::<SHIFT_4>(&b, &c, &d, &a, word(3), &mix);
    }
    *state = [a, b, c, d];
}

#[inline(always)]
fn operation<const SHIFT: u32>(
    a: &Lanes,
    b: &Lanes,
    c: &Lanes,
    d: &Lanes,
    (word, sine): (&Lanes, u32),
    mix: &impl Fn(u32, u32, u32) -> u32,
) -> Lanes {
    std::array::from_fn(|lane| {
        let mixed = mix(b[lane], c[lane], d[lane]);
        let sum = a[lane].wrapping_add(mixed).wrapping_add(word[lane]).wrapping_add(sine);
        sum.rotate_left(SHIFT).wrapping_add(b[lane])
    })
}

type Lanes = [u32; LANES];

const INITIAL_STATE: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// The integer part of 2^32 times |sin(i)|, for i from 1 to 64 (section 3.4).
#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a, 0xa830_4613, 0xfd46_9501,
    0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be, 0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821,
    0xf61e_2562, 0xc040_b340, 0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453, 0xd8a1_e681, 0xe7d3_fbc8,
    0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed, 0xa9e3_e905, 0xfcef_a3f8, 0x676f_02d9, 0x8d2a_4c8a,
    0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c, 0xa4be_ea44, 0x4bde_cfa9, 0xf6bb_4b60, 0xbebf_bc70,
    0x289b_7ec6, 0xeaa1_27fa, 0xd4ef_3085, 0x0488_1d05, 0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
    0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92, 0xffef_f47d, 0x8584_5dd1,
    0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1, 0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
];

#[cfg(test)]
mod tests {
    use md5::{Digest, Md5};

    use super::*;

    #[test]
    fn digests_are_those_of_the_md5_crate_at_every_length_and_in_every_lane() {
        for length in 0..=MESSAGE_BYTES_MAX {
            let messages: [Vec<u8>; LANES] = std::array::from_fn(|lane| {
                (0..(length + 7 * lane) % 56).map(|at| (at * 37 + lane * 11) as u8).collect()
            });
            let expected: [[u8; 16]; LANES] = std::array::from_fn(|lane| Md5::digest(&messages[lane]).into());
            assert_eq!(short_md5(&messages), expected, "length {length}");
        }
    }
}
