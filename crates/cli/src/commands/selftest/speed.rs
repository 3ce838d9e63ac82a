//! A training step's speed beside what the device can do: bytes copied and matrices multiplied in a second, measured here.

use std::time::{Duration, Instant};

use numalign_config::{Config, CpuArithmetic, DeviceChoice, Dtype};
use numalign_data::{Domain, SampleStream};
use numalign_engine::{Engine, LocalRun};
use numalign_gpu::Driver;
use numalign_gpu::memory::{Context, DeviceBuffer, Stream};
use numalign_model::measure::MatrixRate;
use numalign_model::{LoadOptions, load_with};

use super::{Seen, Table};

const COPIED: usize = 256 << 20;
const ROUNDS: usize = 5;

/// Samples of the measured step, a position each, and its steps.
const BATCH: usize = 64;
const STEPS: usize = 5;

/// Multiply-adds of one position through GPT-2 small's blocks where attention is its own value: 12 blocks of value and
/// output projection (2·768²) and feed-forward (8·768²). Forward and back to the embeddings are twice that.
const MULTIPLY_ADDS: f64 = 12.0 * 10.0 * 768.0 * 768.0;

pub fn check(table: &mut Table, device: DeviceChoice) {
    table.run("copy bandwidth", || {
        let rate = match device {
            DeviceChoice::Cuda(index) => on_device(index.unwrap_or(0))?,
            _ => on_host(),
        };
        Ok(format!("{:.1} GB/s read and as much written", rate / 1e9))
    });
    let mut matrices = 0.0;
    table.run("matrix rate, f32", || {
        matrices = MatrixRate { dtype: Dtype::F32, arithmetic: CpuArithmetic::F32, exact_f32: false, rows: None }
            .on(device)
            .map_err(|error| error.to_string())?;
        Ok(format!("{:.1} GFLOP/s", matrices / 1e9))
    });
    table.run("step, GPT-2 small, 64×1", || step(device, matrices));
}

/// Bytes copied per second in host memory, the best of a few rounds.
fn on_host() -> f64 {
    let from = vec![1u8; COPIED];
    let mut to = vec![0u8; COPIED];
    let mut best = 0.0f64;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        to.copy_from_slice(&from);
        std::hint::black_box(&mut to);
        best = best.max(COPIED as f64 / started.elapsed().as_secs_f64());
    }
    best
}

/// Bytes copied per second within the memory of a GPU, the best of a few rounds.
fn on_device(index: usize) -> Result<f64, String> {
    let copy = || -> Result<f64, numalign_gpu::GpuError> {
        let context = Context::enter(Driver::get()?, index)?;
        let stream = Stream::new(&context)?;
        let (from, to) = (DeviceBuffer::new(&context, COPIED)?, DeviceBuffer::new(&context, COPIED)?);
        let mut best = 0.0f64;
        for _ in 0..ROUNDS {
            let started = Instant::now();
            stream.copy(&from, &to)?;
            while !stream.is_idle()? {
                std::thread::sleep(Duration::from_micros(5));
            }
            best = best.max(COPIED as f64 / started.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    copy().map_err(|error| error.to_string())
}

fn step(device: DeviceChoice, matrices: f64) -> Seen {
    let measured = || -> Result<f64, Box<dyn std::error::Error>> {
        let config = Config::with(&[("model_name", "synthetic:small"), ("batch_size", &BATCH.to_string())])?;
        let options = LoadOptions { positions: BATCH, ..LoadOptions::new(device, true) };
        let engine = Engine::new(load_with(&config.recipe.model_name, options)?.lm, config.recipe.clone());
        let state = engine.initial_state(config.recipe.seed)?;
        let stream = SampleStream::generated(&config.recipe, Domain::Train)?;
        let mut run = LocalRun::new(engine, stream, state)?;
        run.step()?;
        let mut seconds = Vec::with_capacity(STEPS);
        for _ in 0..STEPS {
            let started = Instant::now();
            run.step()?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[STEPS / 2])
    };
    let seconds = measured().map_err(|error| error.to_string())?;
    let rate = 4.0 * MULTIPLY_ADDS * BATCH as f64 / seconds;
    let share = if matrices > 0.0 { 100.0 * rate / matrices } else { f64::NAN };
    Ok(format!(
        "{:.1} ms, {:.0} positions/s, {:.1} GFLOP/s: {share:.0} % of the matrix rate",
        seconds * 1e3,
        BATCH as f64 / seconds,
        rate / 1e9
    ))
}
