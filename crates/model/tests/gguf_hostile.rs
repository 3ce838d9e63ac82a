//! Damaged and hostile GGUF files: refused with the reason, without a panic, and without allocating much more than the
//! file's own size.

mod common_gguf;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use common_gguf::{File, Meta, Tensor, text, u32};
use numalign_model::ModelError;
use numalign_model::load::gguf::{self, container::Container, names::GgufArchitecture};
use numalign_model::load::weights::TensorSource;

/// Counts what this thread holds, and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(change: isize) {
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        held.set((now + change, most.max(now + change)));
    });
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes held while `work` runs, beyond those before.
fn most_held(work: impl FnOnce()) -> usize {
    let before = HELD.with(|held| {
        let now = held.get().0;
        held.set((now, now));
        now
    });
    work();
    HELD.with(|held| held.get().1 - before) as usize
}

/// What reading a file amounts to: its refusal, or all its numbers.
fn read(bytes: &[u8]) -> Result<(), ModelError> {
    let model = gguf::from_bytes("hostile.gguf", bytes.to_vec())?;
    for (name, _) in model.architecture.tensors() {
        model.tensors.read(&name)?;
    }
    Ok(())
}

fn refusal(file: &File) -> String {
    read(&file.bytes()).expect_err("refused").to_string()
}

fn llama(change: impl FnOnce(&mut File)) -> File {
    let mut file = File::llama();
    change(&mut file);
    file
}

#[test]
fn the_sound_file_is_read() {
    read(&File::llama().bytes()).unwrap();
    read(&llama(|file| file.version = 2).bytes()).unwrap();
    let aligned = llama(|file| {
        file.set("general.alignment", u32(256));
        file.alignment = 256;
    });
    read(&aligned.bytes()).unwrap();
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused_before_anything_is_allocated() {
    for count in [1_000_000_000, u64::MAX, u64::MAX / 33, 12] {
        let error = refusal(&llama(|file| file.tensor_count = Some(count)));
        assert!(error.contains("hostile.gguf"), "{error}");
        let error = refusal(&llama(|file| file.entry_count = Some(count)));
        assert!(error.contains("hostile.gguf"), "{error}");
    }
    let bytes = llama(|file| file.tensor_count = Some(1_000_000_000)).bytes();
    let held = most_held(|| {
        let error = Container::parse(&bytes).unwrap_err().to_string();
        assert!(error.contains("1000000000 entries do not fit"), "{error}");
    });
    assert!(held < 10_000, "{held} bytes");
}

#[test]
fn lengths_values_and_nesting_are_checked() {
    let array = |element: u32, count: u64| {
        let mut bytes = element.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes
    };
    let nested = (0..40).flat_map(|_| array(9, 1)).collect::<Vec<u8>>();
    for (value, word) in [
        (Meta(8, u64::MAX.to_le_bytes().to_vec()), "needs 18446744073709551615 bytes"),
        (Meta(8, [2u64.to_le_bytes().as_slice(), &[0xff, 0xfe]].concat()), "not UTF-8"),
        (Meta(13, vec![0]), "value type 13"),
        (Meta(7, vec![2]), "neither true nor false"),
        (Meta(9, array(0, u64::MAX)), "do not fit"),
        (Meta(9, array(8, 1 << 40)), "do not fit"),
        (Meta(9, array(99, 1)), "value type 99"),
        (Meta(9, nested), "nests arrays more than 4 deep"),
    ] {
        let error = refusal(&llama(|file| file.metadata.insert(0, ("general.x".to_owned(), value))));
        assert!(error.contains(word), "{word}: {error}");
    }
    let error = refusal(&llama(|file| file.metadata.push(("general.architecture".to_owned(), text("llama")))));
    assert!(error.contains("general.architecture occurs twice"), "{error}");
    let error = refusal(&llama(|file| file.metadata.push((String::new(), u32(1)))));
    assert!(error.contains("0 bytes; 1 to 65535"), "{error}");
    let error = refusal(&llama(|file| file.metadata.push(("k".repeat(70_000), u32(1)))));
    assert!(error.contains("70000 bytes"), "{error}");
    for alignment in [0, 3, 24, u32::MAX] {
        let error = refusal(&llama(|file| file.metadata.push(("general.alignment".to_owned(), u32(alignment)))));
        assert!(error.contains("power of two"), "{error}");
    }
    let error = refusal(&llama(|file| file.metadata.push(("general.alignment".to_owned(), u32(1 << 31)))));
    assert!(error.contains("not a multiple of 2147483648") || error.contains("bytes of a file"), "{error}");
}

#[test]
fn tensors_lie_one_after_another_within_the_file() {
    let first = |change: fn(&mut Tensor)| refusal(&llama(|file| change(&mut file.tensors[0])));
    for (error, word) in [
        (first(|tensor| tensor.shape = vec![u64::MAX, u64::MAX]), "overflows"),
        (first(|tensor| tensor.shape = vec![1 << 62]), "overflows"),
        (first(|tensor| tensor.shape = vec![1 << 40]), "bytes of a file of"),
        (first(|tensor| tensor.shape = vec![8, 0]), "a dimension of 0"),
        (first(|tensor| tensor.shape = vec![1; 5]), "5 dimensions"),
        (first(|tensor| tensor.shape = vec![]), "0 dimensions"),
        (first(|tensor| tensor.kind = 12), "no whole blocks of 256"),
        (first(|tensor| tensor.kind = 16), "tensor token_embd.weight is IQ2_XXS; F32, F16, BF16"),
        (first(|tensor| tensor.kind = 39), "MXFP4"),
        (first(|tensor| tensor.kind = 4), "Q4_2"),
        (first(|tensor| tensor.kind = 999), "of the unknown type 999"),
        (first(|tensor| tensor.offset = Some(17)), "begins at 17, not a multiple of 32"),
        (first(|tensor| tensor.offset = Some(u64::MAX - 31)), "belong to no tensor"),
        (first(|tensor| tensor.offset = Some(256)), "160 bytes before tensor output_norm.weight belong to no tensor"),
        (first(|tensor| tensor.name = String::new()), "0 bytes; 1 to 64"),
        (first(|tensor| tensor.name = "n".repeat(65)), "65 bytes"),
        (first(|tensor| tensor.name = "output_norm.weight".to_owned()), "tensor output_norm.weight occurs twice"),
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
    let error = refusal(&llama(|file| file.tensors[1].offset = Some(0)));
    assert!(error.contains("begins at 0, within") && error.contains("which ends at"), "{error}");
    let error = refusal(&llama(|file| file.tensors.last_mut().unwrap().data.extend([0; 96])));
    assert!(error.contains("96 bytes before the end belong to no tensor"), "{error}");
}

#[test]
fn other_formats_are_refused_by_name() {
    let read = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert!(read(b"").contains("not a GGUF file"));
    assert!(read(b"GG").contains("not a GGUF file"));
    assert!(read(b"version https://git-lfs.github.com/spec/v1").contains("not a GGUF file"));
    assert!(read(b"GGUF").contains("the version at byte 4 needs 4 bytes of a file of 4"));
    let big = llama(|file| file.version = 3u32.swap_bytes()).bytes();
    assert!(read(&big).contains("big-endian GGUF file (version 3)"));
    for version in [0, 1, 4, 1 << 20] {
        let error = read(&llama(|file| file.version = version).bytes());
        assert!(error.contains("GGUF"), "{error}");
    }
    let path = tempfile::tempdir().unwrap();
    assert!(gguf::open(path.path(), None).err().unwrap().to_string().contains("not a file"));
    let empty = path.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    assert!(gguf::open(&empty, None).err().unwrap().to_string().contains("not a GGUF file"));
}

/// What is held at most while the header is read and turned into a configuration, and while the tokenizer is built.
fn held_by(bytes: &[u8]) -> (usize, usize) {
    let header = most_held(|| {
        let _ = Container::parse(bytes).and_then(|file| gguf::settings::config(&file).map(drop));
    });
    let tokenizer = most_held(|| {
        if let Ok(file) = Container::parse(bytes) {
            let _ = gguf::tokenizer::tokenizer(&file, GgufArchitecture::Llama, Path::new("x.gguf"));
        }
    });
    (header, tokenizer)
}

#[test]
fn truncated_at_every_97th_byte_is_refused() {
    let mut files: Vec<Vec<u8>> = common_gguf::files().iter().map(|path| std::fs::read(path).unwrap()).collect();
    files.push(File::llama().tokenizer().bytes());
    for bytes in files {
        // Padding at the end may be absent.
        for length in (0..bytes.len().saturating_sub(32)).step_by(97) {
            assert!(read(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }
}

/// Bytes, words of four and eight bytes with extreme values, and stretches moved, mostly in the header.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const WORDS: [u64; 12] =
        [0, 1, 2, 8, 9, 255, 0x7fff_ffff, 0x8000_0000, 1_000_000_000, u64::MAX, 1 << 63, u64::MAX - 31];
    for _ in 0..1 + random.below(4) {
        let within = if random.below(4) == 0 { bytes.len() } else { bytes.len().min(1500) };
        let at = random.below(within.max(1)).min(bytes.len().saturating_sub(8));
        match random.below(5) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at..at + 4].copy_from_slice(&(WORDS[random.below(12)] as u32).to_le_bytes()),
            3 => bytes[at..at + 8].copy_from_slice(&WORDS[random.below(12)].to_le_bytes()),
            _ => {
                let part = bytes[at..(at + random.below(64)).min(bytes.len())].to_vec();
                let to = random.below(within);
                bytes.splice(to..to, part);
            }
        }
    }
}

#[test]
fn mutated_files_neither_panic_nor_ask_for_memory() {
    let mut seeds = vec![File::llama().bytes(), File::llama().tokenizer().bytes()];
    for name in ["quantised-gpt2.gguf", "tokenizer-qwen2.gguf", "qwen3-head-norms.gguf"] {
        seeds.push(std::fs::read(common_gguf::testdata().join(name)).unwrap());
    }
    let mut random = Random(7);
    let (mut refused, mut most) = (0, (0.0f64, 0));
    for round in 0..12_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        mutate(&mut bytes, &mut random);
        let (header, tokenizer) = held_by(&bytes);
        assert!(header < 8 * bytes.len() + 20_000, "{header} bytes held for a file of {}", bytes.len());
        // Its patterns take a constant amount, its tables some dozens of bytes for each byte of a short token.
        assert!(tokenizer < 60 * bytes.len() + 4_000_000, "{tokenizer} bytes held for a file of {}", bytes.len());
        most = (most.0.max(header as f64 / bytes.len() as f64), most.1.max(tokenizer));
        refused += usize::from(read(&bytes).is_err());
    }
    println!(
        "{refused} of 12000 refused; held at most {:.1} times the file's size, and {} bytes for a tokenizer",
        most.0, most.1
    );
    assert!(refused > 6000, "{refused}");
}
