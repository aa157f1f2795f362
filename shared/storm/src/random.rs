//! Random numbers that are the same for a seed for ever, whichever library comes: SplitMix64.

pub(crate) struct Random(u64);

impl Random {
    /// One of many sequences of the same seed.
    pub(crate) fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed);
        Random(random.next() ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// Both included.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    /// Each as often as its weight says. `all` must have one that is not zero.
    pub(crate) fn choice<'a, T>(&mut self, all: &'a [(T, u64)]) -> &'a T {
        let mut at = self.below(all.iter().map(|(_, weight)| weight).sum());
        for (one, weight) in all {
            if at < *weight {
                return one;
            }
            at -= weight;
        }
        unreachable!("the number lies below the sum of the weights")
    }
}
