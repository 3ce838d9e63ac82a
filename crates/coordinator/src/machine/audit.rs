//! What the rows of an audited micro-batch say: whether a rank computes wrong numbers, and which one.
//! Pure. Who computes what is decided by [`numalign_data::audit`].

use numalign_data::Audit;

/// BLAKE3 of one gradient row.
pub type RowDigest = [u8; 32];

/// One rank's row digests of one step: micro-batch and digest.
pub type RowDigests = Vec<(usize, RowDigest)>;

/// What the comparison says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All rows have the same bits.
    Agreed,
    /// A majority has the same bits, and this rank has others.
    Odd {
        /// The odd one.
        rank: usize,
        /// Its digest.
        its: Option<RowDigest>,
        /// The majority's digest.
        others: Option<RowDigest>,
    },
    /// No majority: these two differ, and nobody can say which is right.
    Split {
        /// A rank.
        first: usize,
        /// A rank that differs from it.
        second: usize,
        /// Their digests.
        digests: [Option<RowDigest>; 2],
    },
}

/// Compares the rows of `audit`; `of_rank` gives what a rank reported.
pub fn verdict<'a>(audit: &Audit, of_rank: impl Fn(usize) -> &'a [(usize, RowDigest)]) -> Verdict {
    let reported = |rank: usize| {
        let found = of_rank(rank).iter().find(|(micro_batch, _)| *micro_batch == audit.micro_batch);
        found.map(|(_, digest)| *digest)
    };
    let rows: Vec<(usize, Option<RowDigest>)> = audit.ranks().map(|rank| (rank, reported(rank))).collect();
    let Some(different) = rows.iter().find(|(_, digest)| *digest != rows[0].1) else {
        return Verdict::Agreed;
    };
    let (first, second) = (rows[0], *different);
    let votes = |digest: Option<RowDigest>| rows.iter().filter(|(_, other)| *other == digest).count();
    // A row that was not reported is nobody's evidence.
    let (for_first, for_second) = (votes(first.1), votes(second.1));
    let odd = |odd: (usize, Option<RowDigest>), others| Verdict::Odd { rank: odd.0, its: odd.1, others };
    if for_first > for_second && first.1.is_some() {
        return odd(second, first.1);
    }
    if for_second > for_first && second.1.is_some() {
        return odd(first, second.1);
    }
    Verdict::Split { first: first.0, second: second.0, digests: [first.1, second.1] }
}

/// The beginning of a digest in hex, for messages.
pub fn short_hex(digest: Option<RowDigest>) -> String {
    match digest {
        Some(bytes) => blake3::Hash::from_bytes(bytes).to_hex()[..16].to_owned(),
        None => "no digest".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: RowDigest = [1; 32];
    const WRONG: RowDigest = [2; 32];

    fn judge(digests: &[Option<RowDigest>]) -> Verdict {
        let audit = Audit { micro_batch: 5, owner: 0, auditors: (1..digests.len()).collect() };
        let reports: Vec<RowDigests> = digests
            .iter()
            .map(|digest| digest.map(|digest| (5, digest)).into_iter().chain([(6, WRONG)]).collect())
            .collect();
        verdict(&audit, |rank| &reports[rank])
    }

    #[test]
    fn equal_rows_agree() {
        assert_eq!(judge(&[Some(RIGHT), Some(RIGHT)]), Verdict::Agreed);
        assert_eq!(judge(&[Some(RIGHT); 3]), Verdict::Agreed);
    }

    #[test]
    fn a_majority_names_the_odd_one() {
        let mut row = [Some(RIGHT); 3];
        for rank in 0..3 {
            row[rank] = Some(WRONG);
            assert_eq!(judge(&row), Verdict::Odd { rank, its: Some(WRONG), others: Some(RIGHT) });
            row[rank] = None;
            assert_eq!(judge(&row), Verdict::Odd { rank, its: None, others: Some(RIGHT) });
            row[rank] = Some(RIGHT);
        }
    }

    #[test]
    fn two_that_differ_and_three_that_all_differ_are_a_split() {
        let split = Verdict::Split { first: 0, second: 1, digests: [Some(RIGHT), Some(WRONG)] };
        assert_eq!(judge(&[Some(RIGHT), Some(WRONG)]), split);
        assert_eq!(judge(&[Some(RIGHT), Some(WRONG), Some([3; 32])]), split);
        assert!(matches!(judge(&[Some(RIGHT), None, None]), Verdict::Split { .. }));
    }
}
