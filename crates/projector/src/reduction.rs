//! The canonical reduction: gradient rows added in micro-batch order, starting from +0.0.
//! The sum never depends on how many ranks there are or which of them computed a row.

/// Why a set of rows cannot be reduced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what each is")]
pub enum RowError {
    #[error("micro-batch {micro_batch} is not one of {count}")]
    NoSuchMicroBatch { micro_batch: usize, count: usize },
    #[error("the row of micro-batch {micro_batch} came twice with different bits")]
    Conflict { micro_batch: usize },
    #[error("the row of micro-batch {micro_batch} has {got} floats instead of {want}")]
    WrongLength { micro_batch: usize, got: usize, want: usize },
    #[error("the row of micro-batch {micro_batch} is missing")]
    Missing { micro_batch: usize },
}

/// The gradient rows of one step, one per micro-batch, in whatever order they arrive.
#[derive(Debug, Clone)]
pub struct Rows {
    rows: Vec<Option<Vec<f32>>>,
    row_len: usize,
    present: usize,
}

impl Rows {
    /// An empty set for `micro_batches` rows of `row_len` floats.
    pub fn new(micro_batches: usize, row_len: usize) -> Self {
        Self { rows: vec![None; micro_batches], row_len, present: 0 }
    }

    /// Adds a row. The same row twice is fine (a repeated message); another row for the same micro-batch is not.
    ///
    /// # Errors
    /// No such micro-batch, another length, or another row than the one that is there.
    pub fn insert(&mut self, micro_batch: usize, row: Vec<f32>) -> Result<(), RowError> {
        let count = self.rows.len();
        let Some(place) = self.rows.get_mut(micro_batch) else {
            return Err(RowError::NoSuchMicroBatch { micro_batch, count });
        };
        if row.len() != self.row_len {
            return Err(RowError::WrongLength { micro_batch, got: row.len(), want: self.row_len });
        }
        if let Some(known) = place {
            let same = known.iter().zip(&row).all(|(a, b)| a.to_bits() == b.to_bits());
            return if same { Ok(()) } else { Err(RowError::Conflict { micro_batch }) };
        }
        *place = Some(row);
        self.present += 1;
        Ok(())
    }

    /// True when every micro-batch has its row.
    pub fn complete(&self) -> bool {
        self.present == self.rows.len()
    }

    /// Micro-batches whose row has not come.
    pub fn missing(&self) -> Vec<usize> {
        let absent = self.rows.iter().enumerate().filter(|(_, row)| row.is_none());
        absent.map(|(micro_batch, _)| micro_batch).collect()
    }

    /// Micro-batches whose row holds a float that is not finite.
    pub fn not_finite(&self) -> Vec<usize> {
        let is_bad = |row: &Option<Vec<f32>>| row.iter().flatten().any(|value| !value.is_finite());
        self.rows.iter().enumerate().filter(|(_, row)| is_bad(row)).map(|(micro_batch, _)| micro_batch).collect()
    }

    /// The sum, `[row_len]`: for each float, `((+0.0 + row₀) + row₁) + …`.
    ///
    /// # Errors
    /// A row is missing.
    pub fn sum(&self) -> Result<Vec<f32>, RowError> {
        let mut total = vec![0.0f32; self.row_len];
        for (micro_batch, row) in self.rows.iter().enumerate() {
            let Some(row) = row else {
                return Err(RowError::Missing { micro_batch });
            };
            for (t, r) in total.iter_mut().zip(row) {
                *t += r;
            }
        }
        Ok(total)
    }

    /// All rows, one after the other in micro-batch order.
    ///
    /// # Errors
    /// A row is missing.
    pub fn concatenated(&self) -> Result<Vec<f32>, RowError> {
        let mut all = Vec::with_capacity(self.rows.len() * self.row_len);
        for (micro_batch, row) in self.rows.iter().enumerate() {
            let Some(row) = row else {
                return Err(RowError::Missing { micro_batch });
            };
            all.extend_from_slice(row);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn sum_does_not_depend_on_arrival_order(
            rows in prop::collection::vec(prop::collection::vec(-1e6f32..1e6, 5), 1..9),
            order in prop::collection::vec(any::<u32>(), 9),
        ) {
            let mut in_order = Rows::new(rows.len(), 5);
            for (i, row) in rows.iter().enumerate() {
                in_order.insert(i, row.clone()).unwrap();
            }
            let mut arrivals: Vec<usize> = (0..rows.len()).collect();
            arrivals.sort_by_key(|i| order[*i]);
            let mut shuffled = Rows::new(rows.len(), 5);
            for i in arrivals {
                prop_assert!(!shuffled.complete());
                shuffled.insert(i, rows[i].clone()).unwrap();
            }
            prop_assert!(shuffled.complete());
            let bits = |sum: Vec<f32>| sum.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(in_order.sum().unwrap()), bits(shuffled.sum().unwrap()));
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut rows = Rows::new(2, 1);
        assert_eq!(rows.sum(), Err(RowError::Missing { micro_batch: 0 }));
        rows.insert(0, vec![1.0]).unwrap();
        rows.insert(0, vec![1.0]).unwrap();
        assert_eq!(rows.insert(0, vec![2.0]), Err(RowError::Conflict { micro_batch: 0 }));
        assert_eq!(rows.insert(2, vec![2.0]), Err(RowError::NoSuchMicroBatch { micro_batch: 2, count: 2 }));
        assert_eq!(rows.insert(1, vec![]), Err(RowError::WrongLength { micro_batch: 1, got: 0, want: 1 }));
        assert_eq!(rows.missing(), vec![1]);
    }

    #[test]
    fn rows_are_put_together_in_micro_batch_order() {
        let mut rows = Rows::new(2, 2);
        rows.insert(1, vec![3.0, -0.0]).unwrap();
        assert_eq!(rows.concatenated(), Err(RowError::Missing { micro_batch: 0 }));
        rows.insert(0, vec![1.0, 2.0]).unwrap();
        let bits: Vec<u32> = rows.concatenated().unwrap().iter().map(|value| value.to_bits()).collect();
        assert_eq!(bits, [1.0f32, 2.0, 3.0, -0.0].map(f32::to_bits));
    }

    #[test]
    fn starts_from_positive_zero() {
        let mut rows = Rows::new(1, 1);
        rows.insert(0, vec![-0.0]).unwrap();
        assert_eq!(rows.sum().unwrap()[0].to_bits(), 0.0f32.to_bits());
    }
}
