//! The known key that is nearest to a misspelt one.

use strsim::osa_distance;

use crate::key::{Key, keys};

/// The known key that `written` most likely means, if any is near.
pub(crate) fn nearest(written: &str) -> Option<&'static Key> {
    const LONGEST: usize = 64;
    let written = normal(written);
    if written.len() > LONGEST {
        return None;
    }
    let distances = keys().iter().map(|key| (osa_distance(&written, key.name), key));
    let (distance, key) = distances.min_by_key(|(distance, _)| *distance)?;
    if distance <= tolerance(&written) {
        return Some(key);
    }
    // Half of a name, such as `epochs` or `file`.
    keys().iter().find(|key| written.len() >= 3 && key.name.contains(&written))
}

/// Whether the two names differ by one slip at most.
pub(crate) fn close(known: &str, written: &str) -> bool {
    osa_distance(&normal(known), &normal(written)) <= 1
}

/// The hint beside an unknown name, given the nearest known one.
pub(crate) fn unknown_hint(near: Option<String>) -> String {
    let no_idea = || "`numalign config show` lists every key".to_string();
    near.map_or_else(no_idea, |near| format!("did you mean {near}?"))
}

fn normal(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace('-', "_")
}

/// How many slips are forgiven: a third of the letters.
fn tolerance(written: &str) -> usize {
    (written.chars().count() / 3).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest_name(written: &str) -> Option<&'static str> {
        nearest(written).map(|key| key.name)
    }

    #[test]
    fn a_swap_of_neighbours_is_one_slip() {
        assert_eq!(osa_distance("", "abc"), 3);
        assert_eq!(osa_distance("kitten", "sitting"), 3);
        assert_eq!(osa_distance("bacth", "batch"), 1);
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
