//! `numalign generate`: writes a stage's training stream as JSONL, the very samples a run would use.

use std::io::{BufWriter, Write};
use std::path::Path;

use clap::ArgMatches;
use numalign_data::{Domain, SampleStream, jsonl};

use super::names_a_stage;
use crate::args::text;
use crate::console::note;
use crate::error::CliError;
use crate::{output, settings};

pub fn run(matches: &ArgMatches) -> Result<(), CliError> {
    if !names_a_stage(matches, text(matches, "stage-name")) {
        return Err(CliError::usage("no stage is given: neither <STAGE> nor a configuration names one")
            .with_hint("name nn, text or mixed, or give --config FILE"));
    }
    let config = settings::load(matches, text(matches, "config"), text(matches, "stage-name"))?;
    let count = *matches.get_one::<u64>("count").unwrap_or(&0);
    let out = text(matches, "out").unwrap_or("-");
    let stream = SampleStream::generated(&config.recipe, Domain::Train)?;
    if out == "-" {
        return output::checked(write(&stream, count, &mut BufWriter::new(std::io::stdout().lock())));
    }
    let path = Path::new(out);
    let failed = |error: std::io::Error| {
        CliError::new(format!("cannot write {out}: {error}"))
            .with_hint("check the folder, its permissions and free space")
    };
    // The file appears whole or not at all.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(failed(std::io::Error::other("it is a folder")));
    }
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(failed)?;
    write(&stream, count, &mut BufWriter::new(file.as_file_mut())).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    note!("wrote {count} samples of stage {} to {out}", config.recipe.stage);
    Ok(())
}

fn write(stream: &SampleStream, count: u64, out: &mut dyn Write) -> std::io::Result<()> {
    for index in 0..count {
        writeln!(out, "{}", jsonl::write_line(&stream.sample(index)))?;
    }
    out.flush()
}
