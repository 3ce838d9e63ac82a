//! Dismissals before training begins: they are told a little later, since the same reason often ends the run and is told
//! with its end.

use std::time::{Duration, Instant};

/// After this long a dismissal is told in any case.
const PATIENCE: Duration = Duration::from_secs(5);

/// Dismissals that nobody has been told of.
#[derive(Debug, Default)]
pub struct Untold {
    /// Since when, the line, and the reason in it.
    dismissals: Vec<(Instant, String, String)>,
}

impl Untold {
    /// One more.
    pub fn add(&mut self, now: Instant, line: String, reason: String) {
        self.dismissals.push((now, line, reason));
    }

    /// The lines that have waited long enough.
    pub fn due(&mut self, now: Instant) -> Vec<String> {
        self.take(|since, _| now.saturating_duration_since(since) >= PATIENCE)
    }

    /// All lines: the run begins, or was stopped.
    pub fn all(&mut self) -> Vec<String> {
        self.take(|_, _| true)
    }

    /// The lines with another reason than those in `end`, the words with which the run ends.
    pub fn besides(&mut self, end: &str) -> Vec<String> {
        self.take(|_, reason| !end.contains(reason))
    }

    fn take(&mut self, is_wanted: impl Fn(Instant, &str) -> bool) -> Vec<String> {
        let wanted = self.dismissals.extract_if(.., |(since, _, reason)| is_wanted(*since, reason));
        wanted.map(|(_, line, _)| line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dismissal_is_told_once() {
        let start = Instant::now();
        let mut untold = Untold::default();
        untold.add(start, "worker 1 is dismissed: no model".to_owned(), "no model".to_owned());
        untold.add(start + PATIENCE, "worker 2 is dismissed: no memory".to_owned(), "no memory".to_owned());
        assert!(untold.due(start).is_empty());
        assert_eq!(untold.due(start + PATIENCE), ["worker 1 is dismissed: no model"]);
        assert!(untold.besides("two workers: no memory").is_empty(), "the end says it");
        assert_eq!(untold.besides("two workers: no GPU"), ["worker 2 is dismissed: no memory"]);
        untold.add(start, "worker 3 is dismissed".to_owned(), String::new());
        assert_eq!((untold.all().len(), untold.all().len()), (1, 0));
    }
}
