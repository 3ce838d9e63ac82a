//! The contract of a collective, shown by the smallest one: a world of one, where a rank has every row.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use numalign_collective::{Collective, CollectiveError, DigestedRows, Gathered, Summed, digested, plain};
use numalign_projector::digest_of;
use numalign_projector::{Rows, canonical_sum};

struct Local {
    micro_batches: usize,
    /// Of a gradient.
    row_len: usize,
}

impl Collective for Local {
    async fn all_reduce(&mut self, _unit: u64, rows: DigestedRows) -> Result<Summed, CollectiveError> {
        Ok(Summed { sum: canonical_sum(plain(rows), self.micro_batches, self.row_len)?, received: None })
    }

    async fn gather(&mut self, _unit: u64, rows: DigestedRows) -> Result<Gathered, CollectiveError> {
        let mut all = Rows::new(self.micro_batches, self.row_len);
        for (micro_batch, row, _) in rows {
            all.insert(micro_batch, row)?;
        }
        let rows = all.concatenated()?;
        Ok(Gathered { digest: digest_of(&rows), rows: Some(rows), received: None })
    }
}

/// A world of one never waits, so one poll is enough.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("a world of one waited"),
    }
}

#[test]
fn local_adds_in_micro_batch_order() {
    let mut local = Local { micro_batches: 3, row_len: 2 };
    // In another order 1e8 would swallow the ones.
    let rows = vec![(2, vec![-1e8, 0.5]), (0, vec![1.0, -0.0]), (1, vec![1e8, -0.0])];
    let Summed { sum, .. } = at_once(local.all_reduce(0, digested(rows.clone()))).unwrap();
    assert_eq!(sum, vec![(1.0f32 + 1e8) - 1e8, 0.5]);
    let mut canonical = Rows::new(3, 2);
    for (micro_batch, row) in rows {
        canonical.insert(micro_batch, row).unwrap();
    }
    assert_eq!(sum, canonical.sum().unwrap());
    assert_ne!(sum[0], (-1e8f32 + 1e8) + 1.0, "the order shows");
}

#[test]
fn local_gathers_in_micro_batch_order() {
    let mut local = Local { micro_batches: 2, row_len: 2 };
    let gathered = at_once(local.gather(0, digested(vec![(1, vec![3.0, 4.0]), (0, vec![1.0, -0.0])]))).unwrap();
    let expected = vec![1.0, -0.0, 3.0, 4.0];
    assert_eq!(gathered, Gathered { digest: digest_of(&expected), rows: Some(expected), received: None });
}

#[test]
fn local_refuses_what_is_not_one_row_per_micro_batch() {
    let mut local = Local { micro_batches: 2, row_len: 1 };
    let mut refusal = |rows| at_once(local.all_reduce(0, digested(rows))).unwrap_err().to_string();
    assert_eq!(refusal(vec![(1, vec![1.0])]), "the row of micro-batch 0 is missing");
    assert_eq!(refusal(vec![(2, vec![1.0])]), "micro-batch 2 is not one of 2");
    assert_eq!(refusal(vec![(0, vec![])]), "the row of micro-batch 0 has 0 floats instead of 1");
    let twice = vec![(0, vec![1.0]), (0, vec![2.0]), (1, vec![1.0])];
    assert_eq!(refusal(twice), "the row of micro-batch 0 came twice with different bits");
}
