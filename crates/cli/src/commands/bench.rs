//! `numalign bench`: `step` is stage nn's forward, backward and update in this process, without a network;
//! `coordinator` is in `bench_coordinator`.

use std::time::Instant;

use clap::ArgMatches;
use numalign_config::{Config, DeviceChoice};
use numalign_data::{Domain, SampleStream};
use numalign_engine::memory::peak_rss_mib;
use numalign_engine::{Engine, LocalRun};
use numalign_model::LoadOptions;
use numalign_model::measure::MatrixRate;

use crate::args::text;
use crate::error::CliError;
use crate::output::outln;
use crate::settings;

/// Steps before the measured ones, unless one takes longer than this many seconds.
const WARM_UP: u64 = 3;
const LONG_STEP: f64 = 3.0;

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    match matches.subcommand() {
        Some(("step", matches)) => step(matches),
        Some(("coordinator", matches)) => super::bench_coordinator::run(matches),
        _ => Err(CliError::usage("bench measures `step` or `coordinator`: name one")),
    }
}

fn step(matches: &ArgMatches) -> Result<(), CliError> {
    let count = |name: &str| *matches.get_one::<u64>(name).unwrap_or(&1);
    let model = text(matches, "model").unwrap_or("synthetic:small");
    let steps = count("steps");
    let config = Config::with(&[
        ("model_name", model),
        ("batch_size", &count("batch").to_string()),
        ("numeric_positions", &count("positions").to_string()),
        ("dtype", text(matches, "dtype").unwrap_or("f32")),
        ("arithmetic", text(matches, "arithmetic").unwrap_or("f32")),
    ])
    .map_err(CliError::usage)?;
    let recipe = config.recipe;
    let device = settings::device(matches)?.unwrap_or(DeviceChoice::Auto);
    let device = numalign_model::load::choose_device(device, None, count("devices") as usize);
    let options = LoadOptions {
        device,
        devices: count("devices") as usize,
        backward: true,
        dtype: recipe.dtype,
        arithmetic: recipe.arithmetic,
        exact_f32: matches.get_flag("exact-f32"),
        positions: Engine::most_positions(&recipe),
    };
    let free_before = device_memory(device);
    let loaded = numalign_model::load_with(model, options)?;
    let description = loaded.description.clone();
    let engine = Engine::new(loaded.lm, recipe.clone());
    let state = engine.initial_state(recipe.seed)?;
    let stream = SampleStream::generated(&recipe, Domain::Train)?;
    let mut run = LocalRun::new(engine, stream, state)?;

    let mut one_step = || -> Result<f64, CliError> {
        let started = Instant::now();
        run.step()?;
        Ok(started.elapsed().as_secs_f64())
    };
    for _ in 0..WARM_UP {
        if one_step()? > LONG_STEP {
            break;
        }
    }
    let mut seconds = Vec::new();
    for _ in 0..steps {
        seconds.push(one_step()?);
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let samples_per_s = recipe.batch_size as f64 / median;
    let peak = peak_rss_mib();
    // The backend keeps what it once had, so what is gone now was the peak.
    let taken = free_before.zip(device_memory(device)).map(|(before, after)| before.saturating_sub(after) >> 20);
    let matrix_flops = match matches.get_flag("matrix-rate") {
        true => {
            let rows = matches.get_one::<u64>("matrix-rows").map(|rows| *rows as usize);
            let (dtype, arithmetic, exact_f32) = (recipe.dtype, recipe.arithmetic, matches.get_flag("exact-f32"));
            Some(MatrixRate { dtype, arithmetic, exact_f32, rows }.on(device)?)
        }
        false => None,
    };
    if matches.get_flag("json") {
        outln!(
            "{}",
            serde_json::json!({
                "ms_per_step": median * 1e3, "samples_per_s": samples_per_s, "peak_rss_mib": peak,
                "peak_device_mib": taken, "matrix_flops": matrix_flops,
            })
        )?;
        return Ok(());
    }
    outln!(
        "{} on {}: {} samples × {} positions",
        description.name,
        description.device,
        recipe.batch_size,
        recipe.numeric_positions
    )?;
    outln!("  {:.2} ms/step (median of {steps}), {samples_per_s:.1} samples/s, peak {peak} MiB", median * 1e3)?;
    if let Some(taken) = taken {
        outln!("  {taken} MiB of the GPU's memory")?;
    }
    if let Some(rate) = matrix_flops {
        outln!("  matrices of [n, 1024] × [1024, 1024] in {}: {:.1} GFLOP/s", description.arithmetic, rate / 1e9)?;
    }
    Ok(())
}

/// Free bytes of the GPU that is measured; `None` on the CPU.
fn device_memory(device: DeviceChoice) -> Option<u64> {
    match device {
        DeviceChoice::Cuda(index) => numalign_gpu::memory::free_bytes(index.unwrap_or(0)).ok(),
        _ => None,
    }
}
