//! A thread that looks through the data file, held-out rows included, for samples that the model may not be able to take. A
//! worker tokenises these; all others are known to fit from their length and their numbers.

use numalign_config::{Config, Pooling, Recipe, Stage};
use numalign_data::{Input, Sample, SampleStream, Segment, Side, Streams, grammar};
use numalign_projector::{Encoding, InputEncoder};
use tokio::sync::mpsc;

use crate::machine::MemberId;

/// Samples, and bytes of text, that go to the worker at once.
const MOST_SAMPLES: usize = 512;
const MOST_BYTES: usize = 256 << 10;

/// The check that one worker has.
pub struct SampleCheck {
    /// The worker.
    pub member: MemberId,
    /// It has samples that it has not answered for.
    pub is_waiting: bool,
    batches: mpsc::Receiver<Vec<Sample>>,
}

/// Every row that a run reads, by one index: the training rows, then those that are held out.
pub struct FileRows {
    train: SampleStream,
    held_out: Option<SampleStream>,
}

impl FileRows {
    /// The rows of the files behind `streams`, in file order: the check goes through all of them, and a large file is not
    /// in memory.
    pub fn of(streams: &Streams) -> Self {
        let in_file_order = |stream: &SampleStream, side| match stream.dataset() {
            Some(dataset) => SampleStream::in_file_order(dataset.clone(), side),
            None => stream.clone(),
        };
        let held_out = streams.held_out.as_ref().map(|stream| in_file_order(stream, Side::HeldOut));
        Self { train: in_file_order(&streams.train, Side::Train), held_out }
    }

    fn train_rows(&self) -> u64 {
        self.train.file_len().unwrap_or(0)
    }

    fn len(&self) -> u64 {
        self.train_rows() + self.held_out.as_ref().and_then(SampleStream::file_len).unwrap_or(0)
    }

    /// The stream of row `index`, and the row's index in it.
    fn place(&self, index: u64) -> Option<(&SampleStream, u64)> {
        match index.checked_sub(self.train_rows()) {
            None => Some((&self.train, index)),
            Some(held_out) => self.held_out.as_ref().filter(|_| index < self.len()).map(|stream| (stream, held_out)),
        }
    }

    fn sample(&self, index: u64) -> Option<Sample> {
        self.place(index).map(|(stream, row)| Sample { index, ..stream.sample(row) })
    }

    /// Row `index` as a person finds it.
    pub fn named(&self, index: u64, config: &Config) -> Option<String> {
        let (stream, row) = self.place(index)?;
        let is_held_out = index >= self.train_rows();
        let file =
            config.run.dataset_eval_file.as_ref().filter(|_| is_held_out).or(config.run.dataset_file.as_ref())?;
        Some(format!("row {} of {}", stream.row_number(row)?, file.display()))
    }
}

impl SampleCheck {
    /// Starts the thread. Texts of up to `longest_text` bytes fit the worker's model.
    ///
    /// # Errors
    /// The thread does not start.
    pub fn start(member: MemberId, rows: FileRows, recipe: &Recipe, longest_text: u64) -> std::io::Result<Self> {
        let (sender, batches) = mpsc::channel(1);
        let doubts = Doubts::of(recipe, longest_text);
        let body = move || {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            for index in 0..rows.len() {
                let Some(sample) = rows.sample(index).filter(|sample| doubts.apply(sample)) else { continue };
                bytes += text_of(&sample).map_or(0, str::len);
                batch.push(sample);
                // A receiver that is gone wants no more: its worker left.
                if (batch.len() == MOST_SAMPLES || bytes >= MOST_BYTES)
                    && sender.blocking_send(std::mem::take(&mut batch)).is_err()
                {
                    return;
                }
                if batch.is_empty() {
                    bytes = 0;
                }
            }
            if !batch.is_empty() {
                let _ = sender.blocking_send(batch);
            }
        };
        std::thread::Builder::new().name("samples".to_owned()).spawn(body)?;
        Ok(Self { member, is_waiting: false, batches })
    }

    /// The worker's next samples, once it has answered for the last ones; none at the end. Pending without a check.
    pub async fn next(check: &mut Option<Self>) -> Option<Vec<Sample>> {
        match check {
            Some(check) if !check.is_waiting => check.batches.recv().await,
            _ => std::future::pending().await,
        }
    }
}

/// What makes a sample doubtful.
struct Doubts {
    stage: Stage,
    pooling: Pooling,
    inputs: InputEncoder,
    targets: Encoding,
    longest_text: u64,
}

impl Doubts {
    fn of(recipe: &Recipe, longest_text: u64) -> Self {
        Self {
            stage: recipe.stage,
            pooling: recipe.pooling,
            inputs: InputEncoder::of(recipe),
            targets: Encoding::of(recipe),
            longest_text,
        }
    }

    /// Whether it takes the model to know that the sample fits.
    fn apply(&self, sample: &Sample) -> bool {
        let overflows = |value: f64| self.inputs.encode(value).iter().any(|float| !float.is_finite());
        if !self.targets.encode(sample.target).is_finite() {
            return true;
        }
        match &sample.input {
            Input::Number(value) => overflows(*value),
            Input::Text(text) if text.len() as u64 > self.longest_text => true,
            Input::Text(_) if self.stage != Stage::Mixed => false,
            Input::Text(text) => {
                let Ok(segments) = grammar::parse(text) else { return true };
                let mut numbers = segments.iter().filter_map(|segment| match segment {
                    Segment::Number(value) => Some(*value),
                    Segment::Text(_) => None,
                });
                let lacks_number = self.pooling == Pooling::Numbers && numbers.clone().next().is_none();
                lacks_number || numbers.any(overflows)
            }
        }
    }
}

fn text_of(sample: &Sample) -> Option<&str> {
    match &sample.input {
        Input::Text(text) => Some(text),
        Input::Number(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use numalign_config::Config;

    use super::*;

    fn doubts(flags: &[(&str, &str)], longest_text: u64) -> Doubts {
        Doubts::of(&Config::with(flags).unwrap().recipe, longest_text)
    }

    fn text(text: &str, target: f64) -> Sample {
        Sample { index: 0, input: Input::Text(text.to_owned()), target }
    }

    #[test]
    fn only_what_length_and_numbers_leave_open_is_doubtful() {
        let texts = doubts(&[("stage", "text")], 10);
        assert!(!texts.apply(&text("0123456789", 1.0)) && texts.apply(&text("0123456789a", 1.0)));
        assert!(texts.apply(&text("1", 1e300)), "its target overflows");
        let mixed = doubts(&[("stage", "mixed")], 100);
        assert!(!mixed.apply(&text("Is $$12.5&& more?", 1.0)) && mixed.apply(&text("Is $$1e300&& more?", 1.0)));
        let numbers = doubts(&[("stage", "mixed"), ("pooling", "numbers")], 100);
        assert!(numbers.apply(&text("no number", 1.0)) && !numbers.apply(&text("$$1&&", 1.0)));
        let plain = doubts(&[], u64::MAX);
        let number = |value| Sample { index: 0, input: Input::Number(value), target: 1.0 };
        assert!(!plain.apply(&number(-3e30)) && plain.apply(&number(1e300)));
    }

    #[tokio::test]
    async fn batches_hold_every_doubtful_sample_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        let line = |i: usize| format!("{{\"input\": \"{}\", \"output\": {i}}}\n", "x".repeat(1 + i % 3));
        std::fs::write(&path, (0..3000).map(line).collect::<String>()).unwrap();
        let mut config = Config::with(&[("stage", "text"), ("dataset.eval_share", "0.3")]).unwrap();
        config.run.dataset_file = Some("data.jsonl".into());
        let recipe = config.recipe.clone();
        let streams = Streams::new(SampleStream::from_file(&path, &recipe).unwrap(), &recipe).unwrap();
        let rows = FileRows::of(&streams);
        assert!(rows.train_rows() < 3000 && rows.len() == 3000, "held-out rows are checked too");
        for index in [0, 2999] {
            let row = rows.sample(index).unwrap().target as usize + 1;
            assert_eq!(rows.named(index, &config), Some(format!("row {row} of data.jsonl")));
        }
        assert_eq!(rows.named(3000, &config), None);
        let mut check = Some(SampleCheck::start(MemberId(1), rows, &recipe, 2).unwrap());
        let (mut seen, mut largest) = (Vec::new(), 0);
        while let Some(batch) = SampleCheck::next(&mut check).await {
            largest = largest.max(batch.len());
            seen.extend(batch.iter().map(|sample| sample.target as usize));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..3000).filter(|i| i % 3 == 2).collect::<Vec<_>>());
        assert_eq!(largest, MOST_SAMPLES);
    }
}
