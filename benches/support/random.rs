//! Randomness that is the same in every run.

/// Xorshift: the same sequence in every run. The seed must not be zero.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    /// A number from zero to below one.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Ranks from zero, the popularity of the n-th proportional to n^-exponent.
pub struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    /// A distribution over `ranks` ranks.
    pub fn new(ranks: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let step = |rank: usize| {
            sum += (rank as f64).powf(-exponent);
            sum
        };
        Zipf { cumulative: (1..=ranks).map(step).collect() }
    }

    /// One rank.
    pub fn rank(&self, random: &mut Random) -> u32 {
        let chosen = random.fraction() * self.cumulative.last().copied().unwrap_or(0.0);
        self.cumulative.partition_point(|&sum| sum < chosen).min(self.cumulative.len() - 1) as u32
    }
}
