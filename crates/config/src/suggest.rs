//! The known key that is nearest to a misspelt one. Called by `layer` for its hints.

use crate::keys::{Key, keys};

/// The known key that `written` most likely means, if any is near.
pub(crate) fn nearest(written: &str) -> Option<&'static Key> {
    const LONGEST: usize = 64;
    let written = normal(written);
    if written.len() > LONGEST {
        return None;
    }
    let mut best: Option<(usize, &'static Key)> = None;
    for key in keys() {
        let distance = distance(&written, key.name);
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, key));
        }
    }
    if let Some((distance, key)) = best
        && distance <= tolerance(&written)
    {
        return Some(key);
    }
    // Half of a name, such as `epochs` or `file`.
    keys().iter().find(|key| written.len() >= 3 && key.name.contains(&written))
}

/// Whether the two names differ by one slip at most.
pub(crate) fn close(known: &str, written: &str) -> bool {
    distance(&normal(known), &normal(written)) <= 1
}

/// The hint beside an unknown name, given the nearest known one.
pub(crate) fn unknown_hint(near: Option<String>) -> String {
    match near {
        Some(near) => format!("did you mean {near}?"),
        None => "`numalign config show` lists every key".to_string(),
    }
}

fn normal(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace('-', "_")
}

/// How many slips are forgiven: a third of the letters.
fn tolerance(written: &str) -> usize {
    (written.chars().count() / 3).max(1)
}

/// How many letters must be inserted, removed, replaced or swapped with the next one.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            let swapped = i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
            if swapped {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest_name(written: &str) -> Option<&'static str> {
        nearest(written).map(|key| key.name)
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", ""), 0);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("bacth", "batch"), 1);
    }

    #[test]
    fn slips_find_their_key() {
        assert_eq!(nearest_name("bacth_size"), Some("batch_size"));
        assert_eq!(nearest_name("batch-size"), Some("batch_size"));
        assert_eq!(nearest_name("LR"), Some("lr"));
        assert_eq!(nearest_name("epochs"), Some("num_epochs"));
        assert_eq!(nearest_name("dataset.fil"), Some("dataset.file"));
        assert_eq!(nearest_name("file"), Some("dataset.file"));
    }

    #[test]
    fn strangers_find_none() {
        assert_eq!(nearest_name("optimizer_betas"), None);
        assert_eq!(nearest_name(""), None);
    }
}
