//! Injected faults, for tests: messages in which a bit changes after they arrived. They come from one environment
//! variable.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use prost::bytes::Bytes;

/// Where a process finds its faults: `EVERY,COUNT,FILE`. Of each kind of message every EVERY-th one is damaged, COUNT of
/// them altogether; the kind of each is appended to FILE as a line.
const VARIABLE: &str = "NUMALIGN_INTERNAL_DAMAGE";

struct Damage {
    every: u64,
    count: u64,
    file: PathBuf,
    /// How many came of each kind.
    seen: Mutex<BTreeMap<String, u64>>,
}

static DAMAGE: OnceLock<Option<Damage>> = OnceLock::new();

/// The bytes of a message called `name`; with a changed bit if the faults say so.
pub(crate) fn inject(name: &str, bytes: Bytes) -> Bytes {
    let damage = DAMAGE.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?));
    match damage {
        Some(damage) => damage.apply(name, bytes),
        None => bytes,
    }
}

fn parse(text: &str) -> Option<Damage> {
    let mut parts = text.splitn(3, ',');
    let mut number = || parts.next()?.parse().ok().filter(|number| *number > 0);
    let (every, count) = (number()?, number()?);
    Some(Damage { every, count, file: parts.next()?.into(), seen: Mutex::default() })
}

impl Damage {
    fn apply(&self, name: &str, bytes: Bytes) -> Bytes {
        let kind = kind(name, &bytes);
        let number = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let number = seen.entry(kind.clone()).or_insert(0);
            *number += 1;
            *number
        };
        let is_due = number.is_multiple_of(self.every) && number / self.every <= self.count;
        if !is_due || bytes.is_empty() {
            return bytes;
        }
        // The test that reads the file misses what is not in it.
        let _ = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.file)
            .and_then(|mut file| file.write_all(format!("{kind}\n").as_bytes()));
        let hash = blake3::hash(format!("{kind} {number}").as_bytes());
        let mut place = [0; 8];
        place.copy_from_slice(&hash.as_bytes()[..8]);
        let bit = (u64::from_le_bytes(place) % (8 * bytes.len() as u64)) as usize;
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed.into()
    }
}

/// A message's name; of those that are one of several, with the number of the field that is set.
fn kind(name: &str, bytes: &[u8]) -> String {
    match (name, bytes.first()) {
        ("WorkerMessage" | "CoordinatorMessage" | "WorkMessage", Some(tag)) => format!("{name}.{}", tag >> 3),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_messages_of_each_kind_are_damaged_by_one_bit() {
        let file = std::env::temp_dir().join(format!("numalign-damage-{}", std::process::id()));
        let damage = parse(&format!("3,2,{}", file.display())).unwrap();
        let bytes = Bytes::from_static(&[0x1a, 7, 7, 7]);
        let mut changed = Vec::new();
        for number in 1..=20 {
            for name in ["RankMessage", "WorkerMessage"] {
                let found = damage.apply(name, bytes.clone());
                let bits: u32 = bytes.iter().zip(&found).map(|(a, b)| (a ^ b).count_ones()).sum();
                assert!(bits <= 1);
                if bits == 1 {
                    changed.push((name, number));
                }
            }
        }
        assert_eq!(changed, [("RankMessage", 3), ("WorkerMessage", 3), ("RankMessage", 6), ("WorkerMessage", 6)]);
        let said = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(said, "RankMessage\nWorkerMessage.3\nRankMessage\nWorkerMessage.3\n");
    }

    #[test]
    fn anything_else_is_no_fault() {
        for text in ["", "3", "3,4", "0,4,x", "a,4,x"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
