//! Whether the ranks of a unit came to the same state, and who is wrong if not. Pure.

use numalign_projector::StateDigest;

/// What the ranks' state digests say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreement {
    /// All are the same.
    Unanimous,
    /// More than half are the same, and these ranks have others.
    Majority {
        /// The odd ranks, in order.
        odd: Vec<usize>,
        /// What the others have.
        digest: StateDigest,
    },
    /// No digest has more than half of the ranks: these two differ, and nobody can say which is right.
    Split {
        /// A rank.
        first: usize,
        /// A rank that differs from it.
        second: usize,
    },
}

/// Compares the digests of all ranks, in rank order.
pub fn agreement(digests: &[StateDigest]) -> Agreement {
    let Some(second) = digests.iter().position(|digest| *digest != digests[0]) else {
        return Agreement::Unanimous;
    };
    for digest in digests {
        let odd: Vec<usize> = (0..digests.len()).filter(|rank| digests[*rank] != *digest).collect();
        if 2 * odd.len() < digests.len() {
            return Agreement::Majority { odd, digest: *digest };
        }
    }
    Agreement::Split { first: 0, second }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(digests: &[u8]) -> Agreement {
        let digests: Vec<StateDigest> = digests.iter().map(|digest| StateDigest([*digest; 32])).collect();
        agreement(&digests)
    }

    #[test]
    fn a_majority_names_the_odd_ones_wherever_they_are() {
        assert_eq!(judge(&[]), Agreement::Unanimous);
        assert_eq!(judge(&[4]), Agreement::Unanimous);
        assert_eq!(judge(&[4, 4, 4]), Agreement::Unanimous);
        let digest = StateDigest([4; 32]);
        for (digests, odd) in [
            (&[4, 4, 5][..], vec![2]),
            (&[5, 4, 4], vec![0]),
            (&[4, 5, 4, 6, 4], vec![1, 3]),
            (&[5, 5, 4, 4, 4], vec![0, 1]),
        ] {
            assert_eq!(judge(digests), Agreement::Majority { odd, digest }, "{digests:?}");
        }
    }

    #[test]
    fn half_is_no_majority() {
        assert_eq!(judge(&[4, 5]), Agreement::Split { first: 0, second: 1 });
        assert_eq!(judge(&[4, 4, 5, 5]), Agreement::Split { first: 0, second: 2 });
        assert_eq!(judge(&[4, 5, 6]), Agreement::Split { first: 0, second: 1 });
        assert_eq!(judge(&[4, 4, 5, 6]), Agreement::Split { first: 0, second: 2 });
    }
}
