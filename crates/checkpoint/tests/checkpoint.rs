//! Checkpoint files: the same bytes, nothing lost, nothing damaged accepted; and the folder they lie in.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use common::{checkpoint, names, recipe};
use numalign_checkpoint::{BareProjectors, Checkpoint, CheckpointError, RunFolder, SplitDigests, write_atomically};
use numalign_config::{Arithmetic, Config};
use numalign_projector::{Layout, NormTensor, State};
use safetensors::{Dtype, SafeTensors};

/// The same after an evaluation whose mean absolute error is this share of the range.
fn evaluated(mut checkpoint: Checkpoint, error: f32) -> Checkpoint {
    let mut sums = vec![0.0; checkpoint.state.layout().row_len()];
    (sums[0], sums[1]) = (error * error, error);
    checkpoint.state = checkpoint.state.evaluated(&checkpoint.identity.recipe, &sums, 1).unwrap();
    checkpoint
}

fn parse(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_bytes(Path::new("run/step-00000007.safetensors"), bytes)
}

fn header(bytes: &[u8]) -> &str {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    std::str::from_utf8(&bytes[8..8 + length]).unwrap()
}

// --- the file ---------------------------------------------------------------------------------------------------

#[test]
fn what_is_written_is_read() {
    let mut files = vec![checkpoint(2, 7), checkpoint(64, 3), checkpoint(1, 0)];
    files.push(evaluated(checkpoint(3, 4), 0.512_481_8));
    let mut text_stage = checkpoint(4, 2);
    text_stage.identity.recipe.train_input_projection = false;
    text_stage.identity.dataset_digest = Some("d1".to_owned());
    text_stage.identity.loaded_digest = None;
    text_stage.identity.split = Some(SplitDigests {
        train_rows: 90,
        train_digest: "a1".to_owned(),
        held_out_rows: 10,
        held_out_digest: "b2".to_owned(),
        held_out_file: false,
    });
    // What does not train has no moments.
    let layout = text_stage.state.layout();
    text_stage.state = State::restored(layout, 2, text_stage.state.parameters().to_vec(), vec![0.0; 13], vec![0.0; 13]);
    files.push(text_stage);
    for written in files {
        let read = parse(&written.to_bytes()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.state.digest(), written.state.digest());
        assert_eq!(read.to_bytes(), written.to_bytes());
    }
}

#[test]
fn rounded_products_are_stored_and_exact_ones_are_not() {
    let mut checkpoint = checkpoint(3, 2);
    assert!(!checkpoint.metadata().contains_key("arithmetic"));
    checkpoint.identity.arithmetic = Arithmetic::Tf32;
    assert_eq!(checkpoint.metadata()["arithmetic"], "tf32");
    assert_eq!(parse(&checkpoint.to_bytes()).unwrap(), checkpoint);
}

#[test]
fn the_best_projectors_stay_in_the_file() {
    let mut written = evaluated(checkpoint(3, 1), 0.25);
    let best = written.state.parameters().to_vec();
    let row = vec![0.5; written.state.layout().row_len()];
    written.state.update(&row, &recipe()).unwrap();
    let written = evaluated(written, 0.5);
    let bytes = written.to_bytes();
    assert_eq!(parse(&bytes).unwrap(), written);
    assert_eq!(written.state.at_best().unwrap().parameters(), best);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = file.tensor("best.output_projection.weight").unwrap().data().to_vec();
    assert_eq!(stored, best[6..9].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    let metadata = written.metadata();
    assert_eq!(metadata["best"], r#"{"step":1,"samples":1,"mse":625.0,"mae":25.0}"#);
    assert_eq!(metadata["history"].matches("step").count(), 2);
    assert!(!checkpoint(3, 1).metadata().contains_key("best"));
}

/// The tenth block comes after the second in the model, and before it in the alphabet.
#[test]
fn layer_norms_and_wide_projectors_keep_their_order() {
    let flags = [("train_layer_norms", "true"), ("value_encoding", "fourier"), ("fourier_periods", "1")];
    let recipe = Config::with(&flags).unwrap().recipe;
    let mut written = checkpoint(2, 0);
    written.state = State::initial(Layout::of(&recipe, 2, 0), 5);
    written.state.set_layer_norms(&[1.0, 2.0, 3.0, 4.0, 5.0]);
    let row: Vec<f32> = (0..written.state.layout().row_len()).map(|i| i as f32 - 3.5).collect();
    written.state.update(&row, &recipe).unwrap();
    written.identity.recipe = recipe;
    written.identity.layer_norms = vec![
        NormTensor { name: "h.2.ln_1.weight".to_owned(), len: 2 },
        NormTensor { name: "h.10.ln_1.weight".to_owned(), len: 3 },
    ];
    let bytes = written.to_bytes();
    let read = parse(&bytes).unwrap();
    assert_eq!(read, written);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("input_projection.weight").unwrap().shape(), [2, 3]);
    assert_eq!(tensors.tensor("layer_norms.h.10.ln_1.weight").unwrap().shape(), [3]);
    assert_eq!(tensors.tensor("optimizer.exp_avg_sq.layer_norms.h.2.ln_1.weight").unwrap().shape(), [2]);
    let encoder = written.metadata()["encoder"].clone();
    assert!(encoder.contains(r#""periods":[100.0]"#), "{encoder}");
}

#[test]
fn signed_zeros_and_tiny_numbers_keep_their_bits() {
    let mut written = checkpoint(2, 0);
    let values = [-0.0, f32::MIN_POSITIVE / 4.0, f32::MAX, -f32::MIN_POSITIVE, 0.0, 1.0 + f32::EPSILON, -1e-45];
    written.state = State::restored(written.state.layout(), 9, values.to_vec(), vec![-0.0; 7], vec![0.0; 7]);
    let read = parse(&written.to_bytes()).unwrap();
    assert_eq!(read.state.to_bytes(), written.state.to_bytes());
}

#[test]
fn the_same_checkpoint_gives_the_same_bytes() {
    assert_eq!(checkpoint(8, 3).to_bytes(), checkpoint(8, 3).to_bytes());
    assert_ne!(checkpoint(8, 3).to_bytes(), checkpoint(8, 4).to_bytes());
}

#[test]
fn the_header_is_aligned_and_sorted() {
    for hidden in 1..20 {
        let bytes = checkpoint(hidden, 1).to_bytes();
        let header = header(&bytes);
        assert!(header.len().is_multiple_of(8), "the tensors begin at a multiple of 8");
        assert!(header.starts_with('{'));
        // A map without order of its own would come out sorted; the text itself has to be.
        let keys = |text: &str, names: &[&str]| {
            let places: Vec<usize> = names.iter().map(|name| text.find(&format!("\"{name}\":")).unwrap()).collect();
            assert!(places.is_sorted(), "{names:?} lie at {places:?}");
        };
        keys(
            header,
            &[
                "__metadata__",
                "input_projection.bias",
                "input_projection.weight",
                "optimizer.exp_avg.input_projection.bias",
                "optimizer.exp_avg.input_projection.weight",
                "optimizer.exp_avg.output_projection.bias",
                "optimizer.exp_avg.output_projection.weight",
                "optimizer.exp_avg_sq.input_projection.bias",
                "optimizer.exp_avg_sq.input_projection.weight",
                "optimizer.exp_avg_sq.output_projection.bias",
                "optimizer.exp_avg_sq.output_projection.weight",
                "output_projection.bias",
                "output_projection.weight",
            ],
        );
        keys(header, &["base_fingerprint", "base_model", "config", "file_digest", "format", "format_version"]);
        keys(header, &["history", "loaded_digest", "sample_digest", "samples", "schedule", "seed", "state_digest"]);
    }
}

#[test]
fn safetensors_reads_the_projectors_in_linear_layout() {
    let written = checkpoint(5, 2);
    let bytes = written.to_bytes();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let p = written.state.parameters();
    let expected: [(&str, &[usize], &[f32]); 4] = [
        ("input_projection.weight", &[5, 1], &p[..5]),
        ("input_projection.bias", &[5], &p[5..10]),
        ("output_projection.weight", &[1, 5], &p[10..15]),
        ("output_projection.bias", &[1], &p[15..]),
    ];
    for (name, shape, values) in expected {
        let tensor = file.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, shape), "{name}");
        let stored: Vec<f32> = tensor.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(stored, values, "{name}");
    }
    assert_eq!(file.len(), 12);
}

#[test]
fn no_flipped_byte_is_accepted() {
    let good = checkpoint(2, 7).to_bytes();
    for place in 0..good.len() {
        // Every bit alone, and all of them.
        for flip in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[place] ^= flip;
            assert!(parse(&bytes).is_err(), "byte {place} of {} ^ {flip:#x} is accepted", good.len());
        }
    }
}

#[test]
fn no_truncation_is_accepted() {
    let good = checkpoint(2, 7).to_bytes();
    for length in 0..good.len() {
        let error = parse(&good[..length]).unwrap_err();
        assert!(matches!(error, CheckpointError::Damaged { .. }), "{length} bytes: {error}");
    }
    for extra in [1, 4, 8] {
        let mut long = good.clone();
        long.extend(vec![0; extra]);
        assert!(parse(&long).is_err(), "{extra} bytes too many");
    }
}

/// What the safetensors library, and so its Python package, makes of a file: tensors and metadata in its own order.
fn saved_again(bytes: &[u8], change: impl FnOnce(&mut HashMap<String, String>)) -> Vec<u8> {
    let parsed = SafeTensors::deserialize(bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let mut metadata: HashMap<String, String> = header.metadata().clone().unwrap();
    change(&mut metadata);
    safetensors::serialize(parsed.tensors(), Some(metadata)).unwrap()
}

#[test]
fn a_file_that_was_saved_again_is_the_same_checkpoint() {
    let written = checkpoint(5, 2);
    let bytes = written.to_bytes();
    assert_eq!(written.rearranged(&bytes), None);
    // The order of its metadata is another one each time.
    let again = (0..100).map(|_| saved_again(&bytes, |_| {})).find(|again| *again != bytes).expect("another order");
    let read = parse(&again).unwrap();
    assert_eq!(read, written);
    assert_eq!(read.rearranged(&again), Some("its header is written in another way"));
    let spoiled = saved_again(&bytes, |metadata| drop(metadata.insert("note".to_owned(), "mine".to_owned())));
    let error = parse(&spoiled).unwrap_err().to_string();
    assert!(error.contains("is damaged: its content has digest"), "{error}");
    let bare = safetensors::serialize(SafeTensors::deserialize(&bytes).unwrap().tensors(), None).unwrap();
    let error = parse(&bare).unwrap_err();
    assert!(error.to_string().contains("it has no metadata") && error.hint().contains("numalign import"), "{error}");
}

#[test]
fn bare_projectors_are_read_by_name_and_shape() {
    let written = checkpoint(5, 2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bare.safetensors");
    let bytes = written.to_bytes();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let save = |keep: &dyn Fn(&str) -> bool| {
        let tensors = parsed.tensors().into_iter().filter(|(name, _)| keep(name));
        fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    };
    save(&|_| true);
    let bare = BareProjectors::read(&path, Layout::new(5)).unwrap();
    assert_eq!(bare.parameters, written.state.parameters());
    assert_eq!(bare.passed_over.len(), 8, "{:?}", bare.passed_over);
    let refusal = |layout| BareProjectors::read(&path, layout).unwrap_err().to_string();
    let said = refusal(Layout::new(6));
    assert!(said.contains("tensor input_projection.weight is [5, 1], not [6, 1]"), "{said}");
    save(&|name| name != "output_projection.bias" && !name.starts_with("optimizer"));
    let said = refusal(Layout::new(5));
    assert!(said.contains("tensor output_projection.bias is missing"), "{said}");
    fs::write(&path, b"PK\x03\x04 a torch file").unwrap();
    assert!(refusal(Layout::new(5)).contains("not a whole safetensors file"));
}

/// A safetensors file with one tensor and the given metadata.
fn foreign(metadata: &str) -> Vec<u8> {
    let mut header = format!(r#"{{{metadata}"weight":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 4]);
    bytes
}

#[test]
fn foreign_files_are_refused_in_words() {
    let cases = [
        (foreign(""), "is not a numalign checkpoint: it has no metadata"),
        (foreign(r#""__metadata__":{"format":"pt"},"#), "is not a numalign checkpoint: its metadata does not say"),
        (
            foreign(r#""__metadata__":{"format":"numalign-checkpoint","format_version":"2"},"#),
            "has format version 2; this build reads version 1",
        ),
        (
            foreign(r#""__metadata__":{"format":"numalign-checkpoint","format_version":"1"},"#),
            "is damaged: its content has digest",
        ),
        (Vec::new(), "is damaged: the file is empty"),
        (b"step: 7\n".to_vec(), "is damaged: not a whole safetensors file"),
        (
            b"PK\x03\x04 and what else a torch file begins with".to_vec(),
            "is not a numalign checkpoint: it is a PyTorch file (pickle)",
        ),
    ];
    for (bytes, words) in cases {
        let error = parse(&bytes).unwrap_err();
        assert!(error.to_string().starts_with(&format!("run/step-00000007.safetensors {words}")), "{error}");
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Checkpoint::read(Path::new("no/such/file")).unwrap_err();
    assert!(error.to_string().starts_with("cannot read no/such/file: "), "{error}");
}

// --- the folder -------------------------------------------------------------------------------------------------

#[test]
fn the_newest_valid_one_is_found_and_the_others_are_explained() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = RunFolder::open(&temporary.path().join("chk/run")).unwrap();
    let (found, skipped) = folder.newest_valid().unwrap();
    assert!(found.is_none() && skipped.is_empty());

    for step in [2, 10] {
        folder.write(step, &checkpoint(2, step).to_bytes(), 9).unwrap();
    }
    let whole = checkpoint(2, 30).to_bytes();
    fs::write(folder.file_of(30), &whole[..whole.len() - 5]).unwrap();
    fs::write(folder.file_of(20), foreign("")).unwrap();
    fs::write(folder.file_of(25), b"").unwrap();
    fs::create_dir(folder.file_of(40)).unwrap();
    for stranger in ["metrics.jsonl", "step-x.safetensors", "step-00000050.safetensors.tmp", "lock"] {
        fs::write(folder.path().join(stranger), b"?").unwrap();
    }
    let (found, skipped) = folder.newest_valid().unwrap();
    let (path, newest) = found.unwrap();
    assert_eq!((path, newest), (folder.file_of(10), checkpoint(2, 10)));
    let skipped: Vec<String> = skipped.iter().map(ToString::to_string).collect();
    let expected = [
        (40, "is not a numalign checkpoint: it is not a file"),
        (30, "is damaged: not a whole safetensors file"),
        (25, "is damaged: the file is empty"),
        (20, "is not a numalign checkpoint: it has no metadata"),
    ];
    assert_eq!(skipped.len(), expected.len(), "{skipped:?}");
    for ((step, words), line) in expected.into_iter().zip(skipped) {
        assert!(line.contains(&format!("step-{step:08}.safetensors")) && line.contains(words), "{line}");
    }
}

#[test]
fn steps_are_ordered_as_numbers() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = RunFolder::open(temporary.path()).unwrap();
    for step in [100_000_000, 99_999_999, 9] {
        folder.write(step, &checkpoint(1, 0).to_bytes(), 9).unwrap();
    }
    let steps: Vec<u64> = folder.list().unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, vec![100_000_000, 99_999_999, 9]);
}

#[test]
fn the_last_k_are_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = RunFolder::open(temporary.path()).unwrap();
    fs::write(folder.path().join("metrics.jsonl"), b"{}").unwrap();
    for step in 1..=6 {
        let path = folder.write(step, &checkpoint(1, step).to_bytes(), 3).unwrap();
        assert_eq!(path, folder.file_of(step));
    }
    let kept = |steps: &[u64]| {
        let mut names = vec!["metrics.jsonl".to_owned()];
        names.extend(steps.iter().map(|step| format!("step-{step:08}.safetensors")));
        names
    };
    assert_eq!(names(folder.path()), kept(&[4, 5, 6]));
    // A run that went back does not lose what it writes to what it wrote before.
    folder.write(5, &checkpoint(1, 5).to_bytes(), 1).unwrap();
    assert_eq!(names(folder.path()), kept(&[5, 6]));
    folder.write(7, &checkpoint(1, 7).to_bytes(), 0).unwrap();
    assert_eq!(names(folder.path()), kept(&[7]));
    folder.clear().unwrap();
    assert_eq!(names(folder.path()), kept(&[]));
}

/// A disk of its own, where mounting one is allowed.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]).arg(folder.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[test]
fn room_for_as_many_files_as_are_kept_is_enough() {
    let Some(disk) = SmallDisk::mount(256 << 10) else {
        eprintln!("skipped: no right to mount a small disk");
        return;
    };
    let folder = RunFolder::open(disk.0.path()).unwrap();
    let bytes = vec![7; 80 << 10];
    for step in 1..=5 {
        folder.write(step, &bytes, 3).unwrap();
    }
    let steps = || folder.list().unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    assert_eq!(steps(), [5, 4, 3]);
    // One that finds no room in any case costs no more than it would have, and never the newest.
    assert!(folder.write(6, &vec![7; 200 << 10], 3).unwrap_err().is_disk_full());
    assert_eq!(steps(), [5, 4]);
    assert!(folder.write(6, &vec![7; 200 << 10], 1).unwrap_err().is_disk_full());
    assert_eq!(steps(), [5]);
    assert_eq!(names(folder.path()), ["step-00000005.safetensors"], "nothing is left of the others");
}

#[test]
fn writing_leaves_nothing_but_the_file() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("deep/down/file.safetensors");
    write_atomically(&path, b"old").unwrap();
    write_atomically(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names(path.parent().unwrap()), vec!["file.safetensors"]);

    let error = write_atomically(path.parent().unwrap(), b"new").unwrap_err();
    assert!(error.to_string().ends_with("it is a folder"), "{error}");
    assert_eq!(names(&temporary.path().join("deep")), vec!["down"]);
}

#[test]
fn a_failed_write_keeps_the_old_file() {
    use std::os::unix::fs::PermissionsExt;
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("file.safetensors");
    write_atomically(&path, b"old").unwrap();
    let set = |mode| fs::set_permissions(temporary.path(), fs::Permissions::from_mode(mode)).unwrap();
    set(0o555);
    // For root no folder is read-only.
    let root = fs::File::create(temporary.path().join("probe")).is_ok();
    if !root {
        let error = write_atomically(&path, b"new").unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot write {}: ", path.display())), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(temporary.path()), vec!["file.safetensors"]);
    }
    set(0o755);
}

#[test]
fn a_run_that_is_being_replaced_is_marked_until_it_is_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunFolder::open(folder.path()).unwrap();
    run.write(10, b"old", 3).unwrap();
    assert!(!run.is_replaced());
    run.mark_replaced().unwrap();
    run.mark_replaced().unwrap();
    assert!(run.is_replaced() && run.list().unwrap().len() == 1);
    run.clear().unwrap();
    assert!(!run.is_replaced() && run.list().unwrap().is_empty());
    run.clear().unwrap();
}
