//! Work that processes divide among themselves without a word to each other: every one does the pieces that are its own, into one
//! folder.

/// One of several equal shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// From 0.
    pub rank: u64,
    /// At least 1.
    pub world: u64,
}

impl Share {
    /// All there is.
    pub const ALL: Self = Self { rank: 0, world: 1 };

    /// Whether the `n`-th piece of the work is this share's.
    pub fn has(self, n: u64) -> bool {
        n % self.world == self.rank
    }

    /// Whether it is all there is.
    pub fn is_all(self) -> bool {
        self.world == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_in_one_share() {
        for piece in 0..20 {
            let owners = (0..3).filter(|&rank| Share { rank, world: 3 }.has(piece)).count();
            assert_eq!(owners, 1);
            assert!(Share::ALL.has(piece));
        }
    }
}
