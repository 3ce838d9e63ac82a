//! Messages as plain values, and back.

use std::time::Duration;

use crate::codec::{CodecError, Digest, digest_from_bytes, floats_from_bytes, floats_to_bytes};
use crate::{LayerNorm, NcclAbility, Row, RowDigest, UnitDone};

impl Row {
    /// The row of one micro-batch, and the digest of its bytes that was made where it was computed.
    pub fn new(micro_batch: usize, values: &[f32], digest: Digest) -> Self {
        Self { micro_batch: micro_batch as u32, values: floats_to_bytes(values).into(), digest: digest.to_vec() }
    }

    /// Micro-batch, floats and digest.
    ///
    /// # Errors
    /// The values are not whole floats, or not those of the digest.
    pub fn decode(&self) -> Result<(usize, Vec<f32>, Digest), CodecError> {
        let (values, digest) = (floats_from_bytes(&self.values)?, digest_from_bytes(&self.digest)?);
        match blake3::hash(&self.values) == digest {
            true => Ok((self.micro_batch as usize, values, digest)),
            false => Err(CodecError::Changed),
        }
    }
}

impl RowDigest {
    /// The digest of one micro-batch's row.
    pub fn new(micro_batch: usize, digest: Digest) -> Self {
        Self { micro_batch: micro_batch as u32, digest: digest.to_vec() }
    }

    /// Micro-batch and digest.
    ///
    /// # Errors
    /// The digest does not have 32 bytes.
    pub fn decode(&self) -> Result<(usize, Digest), CodecError> {
        Ok((self.micro_batch as usize, digest_from_bytes(&self.digest)?))
    }
}

impl LayerNorm {
    /// One tensor of a layer norm.
    pub fn new(name: String, values: &[f32]) -> Self {
        Self { name, values: floats_to_bytes(values) }
    }

    /// Its floats.
    ///
    /// # Errors
    /// The values are not whole floats.
    pub fn floats(&self) -> Result<Vec<f32>, CodecError> {
        floats_from_bytes(&self.values)
    }
}

impl NcclAbility {
    /// The fields `nccl` and `no_nccl` of [`Ready`](crate::Ready).
    pub fn to_fields(ability: Result<Self, String>) -> (Option<Self>, String) {
        match ability {
            Ok(ability) => (Some(ability), String::new()),
            Err(reason) => (None, reason),
        }
    }

    /// What the fields `nccl` and `no_nccl` of [`Ready`](crate::Ready) say.
    ///
    /// # Errors
    /// Why the worker cannot use NCCL.
    pub fn from_fields(ability: Option<Self>, reason: String) -> Result<Self, String> {
        match ability {
            Some(ability) => Ok(ability),
            None if reason.is_empty() => Err("it did not say whether it has NCCL".to_owned()),
            None => Err(reason),
        }
    }
}

/// Where a rank's time went in one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// Computing rows.
    pub compute: Duration,
    /// Waiting for samples.
    pub data_wait: Duration,
    /// Waiting for the reduction.
    pub reduce: Duration,
    /// Peak resident memory of the process, in MiB.
    pub peak_rss_mib: u64,
}

/// Longer times are an error of the sender's clock, and their sum would overflow.
const MAX_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// No machine has more memory: 64 TiB.
const MAX_RSS_MIB: u64 = 1 << 26;

impl UnitDone {
    /// The timing fields, in whole microseconds on the wire, at most a day each; memory is at most 64 TiB.
    pub fn timing(&self) -> Timing {
        let time = |microseconds| Duration::from_micros(microseconds).min(MAX_TIME);
        Timing {
            compute: time(self.compute_us),
            data_wait: time(self.data_wait_us),
            reduce: time(self.reduce_us),
            peak_rss_mib: self.peak_rss_mib.min(MAX_RSS_MIB),
        }
    }

    /// The same report with the timing fields set.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.compute_us = timing.compute.as_micros() as u64;
        self.data_wait_us = timing.data_wait.as_micros() as u64;
        self.reduce_us = timing.reduce.as_micros() as u64;
        self.peak_rss_mib = timing.peak_rss_mib;
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{EvaluationStatus, FailureStatus, StatusReply, WorkerStatus};

    proptest! {
        #[test]
        fn rows_come_back(micro_batch in 0usize..1 << 20, values in prop::collection::vec(-1e9f32..1e9, 0..50)) {
            let digest = *blake3::hash(&floats_to_bytes(&values)).as_bytes();
            prop_assert_eq!(Row::new(micro_batch, &values, digest).decode(), Ok((micro_batch, values.clone(), digest)));
            let mut changed = digest;
            changed[micro_batch % 32] ^= 1;
            prop_assert_eq!(Row::new(micro_batch, &values, changed).decode(), Err(CodecError::Changed));
        }

        #[test]
        fn row_digests_come_back(micro_batch in 0usize..1 << 20, digest in any::<Digest>()) {
            prop_assert_eq!(RowDigest::new(micro_batch, digest).decode(), Ok((micro_batch, digest)));
        }

        #[test]
        fn layer_norms_come_back(name in "[a-z.]{0,20}", values in prop::collection::vec(-1e9f32..1e9, 0..50)) {
            let norm = LayerNorm::new(name.clone(), &values);
            prop_assert_eq!((norm.floats(), norm.name), (Ok(values), name));
        }

        #[test]
        fn nccl_abilities_come_back(version in any::<u32>(), gpu in ".{0,40}", replica in any::<bool>(), why in ".{1,40}") {
            let able = Ok(NcclAbility { version, gpu, replica, shares_gpu: !replica });
            for ability in [able, Err(why)] {
                let (field, reason) = NcclAbility::to_fields(ability.clone());
                prop_assert_eq!(NcclAbility::from_fields(field, reason), ability);
            }
        }

        #[test]
        fn timings_come_back_in_microseconds(times in prop::array::uniform3(0u64..24 * 60 * 60 * 1_000_000), rss in 0..=MAX_RSS_MIB) {
            let [compute, data_wait, reduce] = times.map(Duration::from_micros);
            let timing = Timing { compute, data_wait, reduce, peak_rss_mib: rss };
            prop_assert_eq!(UnitDone::default().with_timing(timing).timing(), timing);
        }
    }

    #[test]
    fn absurd_times_are_bounded() {
        let done =
            UnitDone { compute_us: u64::MAX, data_wait_us: u64::MAX, reduce_us: u64::MAX, ..UnitDone::default() };
        let timing = done.timing();
        assert_eq!(timing.compute + timing.data_wait + timing.reduce, 3 * MAX_TIME);
    }

    #[test]
    fn malformed_rows_and_digests_are_refused() {
        let row = Row { micro_batch: 1, values: vec![0; 5].into(), digest: vec![0; 32] };
        assert_eq!(row.decode(), Err(CodecError::NotWholeFloats(5)));
        let row = Row { micro_batch: 1, values: vec![0; 4].into(), digest: Vec::new() };
        assert_eq!(row.decode(), Err(CodecError::NotADigest(0)));
        let digest = RowDigest { micro_batch: 1, digest: vec![0; 5] };
        assert_eq!(digest.decode(), Err(CodecError::NotADigest(5)));
        let silent = NcclAbility::from_fields(None, String::new());
        assert_eq!(silent, Err("it did not say whether it has NCCL".to_owned()));
    }

    #[test]
    fn the_json_of_a_status_has_these_fields() {
        let status = StatusReply {
            loss: f32::NAN,
            workers: vec![WorkerStatus::default()],
            failures: vec![FailureStatus { recovery_ms: Some(2.5), ..FailureStatus::default() }],
            latest_evaluation: Some(EvaluationStatus::default()),
            ..StatusReply::default()
        };
        let json = serde_json::to_value(&status).unwrap();
        let names = |value: &serde_json::Value| {
            let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(
            names(&json),
            "best_evaluation collective collective_reason damaged_messages failed_checkpoints failures failures_total generation \
             latest_evaluation loss median_recovery_ms phase reason recoveries_total run_id step steps_per_s total_steps \
             workers worst_recovery_ms"
        );
        assert_eq!(
            names(&json["workers"][0]),
            "compute_ms data_wait_ms device host last_heartbeat_s member micro_batches ms_per_step peak_rss_mib pid rank \
             reduce_ms restarts state"
        );
        assert_eq!(names(&json["failures"][0]), "recovered recovery_ms step text");
        assert_eq!(names(&json["latest_evaluation"]), "mae mae_percent_of_range right_percent samples step");
        for null in [&json["loss"], &json["best_evaluation"], &json["workers"][0]["rank"]] {
            assert!(null.is_null(), "{json}");
        }
        assert_eq!(json["failures"][0]["recovery_ms"], 2.5);
    }
}
