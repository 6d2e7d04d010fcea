//! The checksum of a body on its way: XXH3-64.

use std::hash::Hasher as _;

use bytes::Bytes;
use twox_hash::XxHash3_64;

/// Takes a body chunk by chunk. Most bodies are one chunk, and for these nothing is allocated.
#[derive(Default)]
pub(super) enum Checksum {
    #[default]
    Empty,
    One(Bytes),
    Several(Box<XxHash3_64>),
}

impl Checksum {
    /// The checksum of a body that is one chunk.
    pub(super) fn of(body: &[u8]) -> u64 {
        XxHash3_64::oneshot(body)
    }

    pub(super) fn update(&mut self, chunk: &Bytes) {
        *self = match std::mem::take(self) {
            Checksum::Empty => Checksum::One(chunk.clone()),
            Checksum::One(first) => {
                let mut hasher = Box::new(XxHash3_64::default());
                hasher.write(&first);
                hasher.write(chunk);
                Checksum::Several(hasher)
            }
            Checksum::Several(mut hasher) => {
                hasher.write(chunk);
                Checksum::Several(hasher)
            }
        };
    }

    pub(super) fn finish(self) -> u64 {
        match self {
            Checksum::Empty => XxHash3_64::oneshot(b""),
            Checksum::One(chunk) => XxHash3_64::oneshot(&chunk),
            Checksum::Several(hasher) => hasher.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cuts_do_not_matter() {
        let body: Vec<u8> = (0..100_000u32).map(|index| (index * 7) as u8).collect();
        for cuts in [&[][..], &[1], &[65_536], &[10, 20, 99_999]] {
            let mut checksum = Checksum::default();
            let mut from = 0;
            for &to in cuts.iter().chain(&[body.len()]) {
                checksum.update(&Bytes::copy_from_slice(&body[from..to]));
                from = to;
            }
            assert_eq!(checksum.finish(), XxHash3_64::oneshot(&body), "{cuts:?}");
        }
        assert_eq!(Checksum::default().finish(), 0x2d06_8005_38d3_94c2);
    }
}
