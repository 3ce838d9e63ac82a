//! Mutations that know nothing of a format but its words. Called by the campaign; deterministic from the seed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Inputs longer than this are cut: long ones are slow and reach nothing that shorter ones do not.
pub const MOST_BYTES: usize = 1 << 13;

/// A source of choices.
pub struct Choices(ChaCha8Rng);

impl Choices {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end.max(1) as u64) as usize
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    pub fn byte(&mut self) -> u8 {
        self.0.next_u32() as u8
    }
}

/// Numbers at which readers go wrong.
pub const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "1",
    "-1",
    "7",
    "255",
    "256",
    "65535",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e309",
    "-1e400",
    "1e-320",
    "5e-324",
    "0.1",
    "1.",
    ".5",
    "1e",
    "00",
    "0x10",
    "nan",
    "inf",
    "1_000",
    "٣",
];

/// Bytes that mean something to a reader of text.
const MARKS: &[u8] = b"\0\t\n\r \"#$&',-./0:;<=>@[\\]_`{|}~\x7f\x80\xbf\xc3\xe2\xf0\xff";

/// Changes `input` in one to a few places; `words` are the format's own, `other` another input to borrow from.
pub fn mutate(choices: &mut Choices, input: &mut Vec<u8>, words: &[&str], other: &[u8]) {
    let rounds = 1 + choices.below(4);
    for _ in 0..rounds {
        once(choices, input, words, other);
    }
    input.truncate(MOST_BYTES);
}

fn once(choices: &mut Choices, input: &mut Vec<u8>, words: &[&str], other: &[u8]) {
    let at = choices.below(input.len() + 1);
    match choices.below(12) {
        0 if !input.is_empty() => {
            let at = choices.below(input.len());
            input[at] ^= 1 << choices.below(8);
        }
        1 if !input.is_empty() => {
            let at = choices.below(input.len());
            input[at] = if choices.one_in(2) { choices.byte() } else { *choices.pick(MARKS) };
        }
        2 => {
            let byte = if choices.one_in(2) { choices.byte() } else { *choices.pick(MARKS) };
            let count = if choices.one_in(8) { 1 + choices.below(64) } else { 1 };
            insert(input, at, &vec![byte; count]);
        }
        3 => {
            let end = (at + 1 + choices.below(16)).min(input.len());
            input.drain(at..end);
        }
        4 => input.truncate(at),
        5 => {
            let end = (at + 1 + choices.below(32)).min(input.len());
            let part = input[at..end].to_vec();
            let to = choices.below(input.len() + 1);
            insert(input, to, &part);
        }
        6 if !words.is_empty() => {
            let word = *choices.pick(words);
            insert(input, at, word.as_bytes());
        }
        7 if !words.is_empty() => {
            let word = choices.pick(words).as_bytes();
            let end = (at + word.len()).min(input.len());
            input.splice(at..end, word.iter().copied());
        }
        8 => replace_number(choices, input, at),
        9 if !other.is_empty() => {
            let from = choices.below(other.len());
            let to = (from + 1 + choices.below(64)).min(other.len());
            insert(input, at, &other[from..to]);
        }
        10 if !other.is_empty() => {
            // The head of one, the tail of another.
            let from = choices.below(other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let width = [1, 2, 4, 8][choices.below(4)];
            let value = *choices.pick(&[0u64, 1, 7, 8, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, u64::MAX - 1, u64::MAX]);
            let end = (at + width).min(input.len());
            input.splice(at..end, value.to_le_bytes().into_iter().take(width));
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, part: &[u8]) {
    input.splice(at..at, part.iter().copied());
}

/// The first decimal number at or after `at` becomes another one.
fn replace_number(choices: &mut Choices, input: &mut Vec<u8>, at: usize) {
    let Some(start) = input[at..].iter().position(u8::is_ascii_digit).map(|place| at + place) else {
        return;
    };
    let end = input[start..].iter().position(|byte| !byte.is_ascii_digit()).map_or(input.len(), |place| start + place);
    let number = *choices.pick(NUMBERS);
    input.splice(start..end, number.bytes());
}
