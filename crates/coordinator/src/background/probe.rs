//! A probe's pass on the coordinator: gathered rows lie in a file without a name in the run's folder, which goes with the
//! process, and at the end each place is solved from there. What is found is written as `probe.json`.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use numalign_checkpoint::write_atomically;
use numalign_config::{Recipe, Tap};
use numalign_data::Schedule;
use numalign_projector::bytes::{floats_from_le, le_bytes};
use numalign_projector::probe::{Found, Gathered, find};
use numalign_projector::{Encoding, Features, Fit};
use serde_json::{Value, json};

use super::probe_needs::enough_disk;

/// Name of the report in the run's folder.
pub const REPORT: &str = "probe.json";

/// Gathers and solves the places of a probe's recipe.
pub struct Probe {
    recipe: Recipe,
    folder: PathBuf,
    /// `None` before the first chunk.
    rows: Option<RowFile>,
}

impl Probe {
    /// The probe that `recipe` asks for, if it does; `folder` is the run's.
    pub fn of(recipe: &Recipe, folder: &Path) -> Option<Self> {
        recipe.probe.map(|_| Self { recipe: recipe.clone(), folder: folder.to_owned(), rows: None })
    }

    /// Adds chunk `chunk` of the round; the first one begins it.
    ///
    /// # Errors
    /// No room for the rows, or a chunk of another shape.
    pub fn add(&mut self, chunk: u64, features: &Features) -> Result<(), String> {
        if chunk == 0 {
            let places = self.recipe.places().len();
            let chunks = Schedule::of(&self.recipe).chunks();
            let (hidden, samples) = (features.hidden() / places, self.recipe.batch_size as u64);
            self.rows = Some(RowFile::create(&self.folder, places, hidden, samples, chunks)?);
        }
        self.rows.as_mut().ok_or("no round is in progress")?.add(chunk, features)
    }

    /// Solves every place, chooses, writes the report, and answers with the output projector of the chosen places: zero
    /// at all others.
    ///
    /// # Errors
    /// Rows that cannot be read back or have no solution, or a report that cannot be written.
    pub fn solve(&mut self) -> Result<Fit, String> {
        let rows = self.rows.take().ok_or("its rows are missing")?;
        let most = self.recipe.probe.unwrap_or(1);
        let started = Instant::now();
        let found = find(&rows, most, |what| {
            tracing::info!("probe: {what} after {:.1} s", started.elapsed().as_secs_f64());
        })?;
        let samples = rows.chunks * rows.chunk_samples;
        let report = report(&self.recipe, samples, &found);
        let text = format!("{report:#}\n");
        write_atomically(&self.folder.join(REPORT), text.as_bytes()).map_err(|error| error.to_string())?;
        let mut weight = vec![0.0; rows.places * rows.hidden];
        for (place, of_place) in found.chosen.iter().zip(found.together.weight.chunks_exact(rows.hidden)) {
            weight[place * rows.hidden..(place + 1) * rows.hidden].copy_from_slice(of_place);
        }
        Ok(Fit { weight, ..found.together })
    }
}

/// What was found, for programs; nothing in it depends on how the pass was carried out.
fn report(recipe: &Recipe, samples: u64, found: &Found) -> Value {
    let percent = |error: f64| 100.0 * error * Encoding::of(recipe).scale / recipe.range();
    let places = recipe.places();
    let about =
        |tap: &Tap| json!({ "tap": tap, "layer": tap.layer.map_or(-1, |layer| layer as i64), "pooling": tap.pooling });
    let mut alone = Vec::with_capacity(places.len());
    for (tap, fit) in places.iter().zip(&found.alone) {
        let mut entry = about(tap);
        match fit {
            Ok(fit) => {
                entry["held_out_error"] = json!(fit.held_out_error);
                entry["held_out_percent_of_range"] = json!(percent(fit.held_out_error));
                entry["ridge"] = json!(fit.ridge);
            }
            Err(reason) => entry["failed"] = json!(reason),
        }
        alone.push(entry);
    }
    let steps = found
        .steps
        .iter()
        .map(|step| json!({ "tap": places[step.place], "held_out_percent_of_range": percent(step.held_out_error) }));
    let chosen: Vec<&Tap> = found.chosen.iter().map(|place| &places[*place]).collect();
    json!({
        "stage": recipe.stage,
        "model": recipe.model_name,
        "samples": samples,
        "constant_percent_of_range": percent(found.constant),
        "places": alone,
        "choice": steps.collect::<Vec<_>>(),
        "together": {
            "taps": chosen,
            "held_out_error": found.together.held_out_error,
            "held_out_percent_of_range": percent(found.together.held_out_error),
            "ridge": found.together.ridge,
        },
    })
}

/// Rows on disk: chunk by chunk, in each the hidden states `[samples, d]` place by place, then the targets.
struct RowFile {
    file: File,
    places: usize,
    hidden: usize,
    chunk_samples: u64,
    /// Chunks there.
    chunks: u64,
}

impl RowFile {
    /// An empty file with room for `chunks` chunks.
    fn create(folder: &Path, places: usize, hidden: usize, chunk_samples: u64, chunks: u64) -> Result<Self, String> {
        let path = folder.join("probe.rows");
        let failed = |error: std::io::Error| format!("the rows cannot be kept in {}: {error}", path.display());
        // Left by a coordinator that was killed between the next two lines.
        let _ = std::fs::remove_file(&path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        let rows = Self { file, places, hidden, chunk_samples, chunks: 0 };
        let disk = rustix::fs::fstatvfs(&rows.file).map_err(|error| failed(error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        enough_disk(chunks.saturating_mul(rows.chunk_bytes()), free, folder)?;
        Ok(rows)
    }

    fn chunk_bytes(&self) -> u64 {
        self.chunk_samples * (4 * Features::width(self.places * self.hidden)) as u64
    }

    fn add(&mut self, chunk: u64, features: &Features) -> Result<(), String> {
        let (wanted, got) = (self.chunk_samples as usize, features.len());
        if got != wanted || features.hidden() != self.places * self.hidden {
            return Err(format!("{got} samples of {} floats are no chunk of {wanted}", features.hidden()));
        }
        let mut values = Vec::with_capacity(features.values().len());
        for place in 0..self.places {
            for (hidden, _) in features.samples() {
                values.extend_from_slice(&hidden[place * self.hidden..(place + 1) * self.hidden]);
            }
        }
        values.extend(features.samples().map(|(_, target)| target));
        let written = self.file.write_all_at(le_bytes(&values), chunk * self.chunk_bytes());
        written.map_err(|error| format!("the rows of chunk {chunk} cannot be written: {error}"))?;
        self.chunks = chunk + 1;
        Ok(())
    }

    /// `count` floats of a chunk from its float `start` on.
    fn floats(&self, chunk: u64, start: usize, count: usize) -> Result<Vec<f32>, String> {
        let mut bytes = vec![0; 4 * count];
        let read = self.file.read_exact_at(&mut bytes, chunk * self.chunk_bytes() + 4 * start as u64);
        read.map_err(|error| format!("the rows of chunk {chunk} cannot be read back: {error}"))?;
        Ok(floats_from_le(&bytes))
    }
}

impl Gathered for RowFile {
    fn places(&self) -> usize {
        self.places
    }

    fn hidden(&self) -> usize {
        self.hidden
    }

    fn chunks(&self) -> u64 {
        self.chunks
    }

    fn chunk_samples(&self) -> u64 {
        self.chunk_samples
    }

    fn read(&self, places: &[usize], chunks: Range<u64>) -> Result<Features, String> {
        let (samples, d) = (self.chunk_samples as usize, self.hidden);
        let mut values = Vec::new();
        for chunk in chunks {
            let mut of_places = Vec::with_capacity(places.len());
            for place in places {
                of_places.push(self.floats(chunk, place * samples * d, samples * d)?);
            }
            let targets = self.floats(chunk, self.places * samples * d, samples)?;
            for (sample, target) in targets.into_iter().enumerate() {
                for of_place in &of_places {
                    values.extend_from_slice(&of_place[sample * d..(sample + 1) * d]);
                }
                values.push(target);
            }
        }
        Features::new(places.len() * d, values).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_by_place_and_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = RowFile::create(folder.path(), 3, 2, 2, 2).unwrap();
        let chunk = |first: f32| {
            let values = (0..14).map(|i| first + i as f32).collect();
            Features::new(6, values).unwrap()
        };
        rows.add(0, &chunk(0.0)).unwrap();
        rows.add(1, &chunk(100.0)).unwrap();
        assert!(rows.add(2, &Features::new(6, vec![0.0; 7]).unwrap()).is_err());
        let read = |places: &[usize], chunks| rows.read(places, chunks).unwrap().values().to_vec();
        assert_eq!(read(&[0], 0..1), [0.0, 1.0, 6.0, 7.0, 8.0, 13.0]);
        assert_eq!(read(&[2, 0], 1..2), [104.0, 105.0, 100.0, 101.0, 106.0, 111.0, 112.0, 107.0, 108.0, 113.0]);
        assert_eq!(read(&[], 0..2), [6.0, 13.0, 106.0, 113.0]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let error = RowFile::create(folder.path(), 200, 1 << 20, 1 << 13, 1 << 20).err().unwrap();
        assert!(error.contains("GiB") && error.contains("fewer samples"), "{error}");
    }
}
