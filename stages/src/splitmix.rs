//! SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
//!
//! Orders of samples and drawn images are functions of a seed for as long as data made with them exist, so their
//! generator is written here and no dependency can change it. Draws of tensors are `method::random`'s business.

/// A stream of random 64-bit numbers: output k is a function of the seed and k alone.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Output number `k`, from 0, of the stream of `seed`.
    pub fn output(seed: u64, k: u64) -> u64 {
        mix(seed.wrapping_add(k.wrapping_add(1).wrapping_mul(STEP)))
    }

    /// The next output.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// Uniform in `0..n`, without bias, for n >= 1 (Lemire, "Fast random integer generation in an interval", 2019).
    pub fn below(&mut self, n: u64) -> u64 {
        let mut product = u128::from(self.bits()) * u128::from(n);
        if (product as u64) < n {
            let rejected = n.wrapping_neg() % n;
            while (product as u64) < rejected {
                product = u128::from(self.bits()) * u128::from(n);
            }
        }
        (product >> 64) as u64
    }

    /// Shuffles in place (Fisher and Yates), from the front: thing `i` is final after draw `i`.
    pub fn permute<T>(&mut self, things: &mut [T]) {
        for i in 0..things.len() {
            self.place(i, things);
        }
    }

    /// Draw `i` of [`Self::permute`]: puts thing `i` in place, when those before it are.
    pub fn place<T>(&mut self, i: usize, things: &mut [T]) {
        let left = things.len() - i;
        things.swap(i, i + self.below(left as u64) as usize);
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser: a bijection of 64 bits under which near numbers become unrelated.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector that implementations of SplitMix64 publish for this seed.
    #[test]
    fn outputs_are_the_published_ones() {
        let published = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        let mut stream = SplitMix64::new(1_234_567);
        for (k, expected) in (0..).zip(published) {
            assert_eq!(stream.bits(), expected);
            assert_eq!(SplitMix64::output(1_234_567, k), expected);
        }
    }

    #[test]
    fn bounded_draws_reach_every_value_and_none_beyond() {
        let mut stream = SplitMix64::new(0);
        let seen: std::collections::BTreeSet<_> = (0..200).map(|_| stream.below(7)).collect();
        assert_eq!(seen, (0..7).collect());
    }
}
