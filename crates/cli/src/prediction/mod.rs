//! Predictions for the rows of a file, or of standard input: the same rows, in their order, with a `prediction` each. A row
//! that has none says why in `error`, and the others are answered.

use std::path::Path;
use std::time::{Duration, Instant};

use numalign_config::{Recipe, TableFormat};
use numalign_data::doubts::{Doubt, DoubtTally, doubts};
use numalign_data::{Input, Sample};
use numalign_engine::Engine;
use numalign_engine::evaluation::AT_ONCE;
use numalign_projector::State;

use crate::console::note;
use crate::error::CliError;

use answers::Answers;
use rows::{AskedRow, Rows};

mod answers;
mod rows;

/// Where rows come from and where they go.
pub struct Files<'a> {
    /// `-` is standard input.
    pub input: &'a Path,
    /// The input's ending decides where there is none; what has no known ending is JSONL if it begins with `{`, else plain
    /// lines.
    pub format: Option<RowFormat>,
    /// Standard output where there is none.
    pub output: Option<&'a Path>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    Table(TableFormat),
    /// A line is an input.
    Lines,
}

/// What became of the rows.
#[derive(Default)]
struct Summary {
    rows: u64,
    failed: u64,
    tally: DoubtTally,
    /// Time that the model took.
    computing: Duration,
}

impl Summary {
    /// What there is to say of rows that took `all`; nothing of a few.
    fn speed(&self, all: Duration) -> Option<String> {
        let seconds = all.as_secs_f64();
        (all >= WORTH_A_LINE).then(|| {
            format!(
                "{} rows in {seconds:.1} s, {:.0} a second; the model took {:.1} % of the time",
                self.rows,
                self.rows as f64 / seconds,
                100.0 * self.computing.as_secs_f64() / seconds
            )
        })
    }
}

/// From here on it is said how long the rows took.
const WORTH_A_LINE: Duration = Duration::from_secs(10);

/// Answers every row.
///
/// # Errors
/// The rows cannot be read at all or the answers not be written; or, once all others are answered, some row has no answer.
pub fn predict_rows(engine: &mut Engine, state: &State, files: &Files<'_>) -> Result<(), CliError> {
    let recipe = engine.recipe().clone();
    let mut rows = Rows::open(files, &recipe)?;
    let mut answers = Answers::create(files, &rows)?;
    let mut summary = Summary::default();
    let started = Instant::now();
    loop {
        let mut batch = Vec::new();
        while (batch.len() as u64) < AT_ONCE
            && let Some(mut row) = rows.next_row()?
        {
            let number = summary.rows + batch.len() as u64 + 1;
            check(&mut row, number, &recipe, &mut summary.tally);
            batch.push(row);
        }
        if batch.is_empty() {
            break;
        }
        let asked = Instant::now();
        let predictions = predictions(engine, state, &batch)?;
        summary.computing += asked.elapsed();
        summary.rows += batch.len() as u64;
        summary.failed += predictions.iter().filter(|prediction| prediction.is_err()).count() as u64;
        answers.write(&batch, &predictions)?;
    }
    answers.finish()?;
    for line in summary.tally.lines() {
        note!("warning: {line}");
    }
    if let Some(line) = summary.speed(started.elapsed()) {
        note!("{line}");
    }
    match summary.failed {
        0 => Ok(()),
        failed => Err(CliError::new(format!("{failed} of {} rows have no prediction", summary.rows))
            .with_hint("`error` in the output says why; the other rows are answered")),
    }
}

/// A question without a number is not answered; what else looks wrong in row `number` is counted.
fn check(row: &mut AskedRow, number: u64, recipe: &Recipe, tally: &mut DoubtTally) {
    let Ok(input) = &row.input else { return };
    let found = doubts(input, recipe);
    if found.contains(&Doubt::NoNumber) {
        row.input = Err(Doubt::NoNumber.to_string());
        return;
    }
    tally.add(number, &found);
}

/// One for each row, in order; or why there is none.
fn predictions(engine: &mut Engine, state: &State, rows: &[AskedRow]) -> Result<Vec<Result<f64, String>>, CliError> {
    let inputs = rows.iter().filter_map(|row| row.input.as_ref().ok());
    let sample = |input: &Input| Sample { index: 0, input: input.clone(), target: 0.0 };
    let samples: Vec<Sample> = inputs.map(sample).collect();
    let mut predicted = engine.predict_each(state, &samples)?.into_iter();
    let mut all = Vec::with_capacity(rows.len());
    for row in rows {
        all.push(match &row.input {
            Err(problem) => Err(problem.clone()),
            Ok(_) => match predicted.next() {
                Some(Ok(value)) if value.is_finite() => Ok(value),
                Some(Ok(value)) => Err(format!("its prediction is not finite ({value})")),
                Some(Err(error)) => Err(error.reason()),
                None => Err("it was not computed".to_owned()),
            },
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_told_with_its_speed() {
        let summary = Summary { rows: 3000, computing: Duration::from_secs(18), ..Summary::default() };
        assert_eq!(summary.speed(Duration::from_secs(9)), None);
        let line = summary.speed(Duration::from_secs(20));
        assert_eq!(line.as_deref(), Some("3000 rows in 20.0 s, 150 a second; the model took 90.0 % of the time"));
    }
}
