//! The words of the `mixed` questions: openings, separators, and ways to ask.
//!
//! A question is `opening ‖ numbers joined by a separator ‖ ": " ‖ ask`. Every opening leads straight into the list
//! and every ask is a whole sentence, so any two go together. They are short and keep to the words of the demo model's corpus where they can: its small vocabulary spells other words letter
//! by letter. The order of an entry matters: a sample names it by position.

use numalign_config::Task;

/// Openings that suit a list of any length.
pub const OPENINGS: &[&str] = &[
    "The sensor logged ",
    "The list holds ",
    "We measured ",
    "The ledger shows ",
    "Given ",
    "The sensor measured ",
    "The sensor shows ",
    "The list shows ",
    "The list has ",
    "The ledger holds ",
    "The ledger has ",
    "We logged ",
    "They measured ",
    "They logged ",
    "I measured ",
    "I logged ",
    "Take ",
    "The patient logged ",
    "The patient measured ",
    "The patient has logged ",
    "The sensor has logged ",
    "The sensor has measured ",
    "The first sensor logged ",
    "The last sensor logged ",
    "The first list holds ",
    "The last list holds ",
    "The first ledger shows ",
    "The last ledger shows ",
    "The tank sensor logged ",
    "The tank sensor shows ",
    "The heart sensor logged ",
    "The heart sensor shows ",
    "The temperature sensor logged ",
    "The temperature sensor shows ",
    "The share list shows ",
    "The order list holds ",
    "The list of readings holds ",
    "The list of amounts shows ",
    "The row holds ",
    "The set holds ",
    "The file holds ",
];

/// Openings that announce several numbers; used for lists of two or more.
pub const PLURAL_OPENINGS: &[&str] =
    &["Take the readings ", "Here are the amounts ", "Here are the readings ", "Take the amounts "];

/// What stands between two numbers.
pub const SEPARATORS: &[&str] = &[" and ", ", "];

/// What stands between the list and the ask.
pub const BEFORE_ASK: &str = ": ";

const ASK_MIN: &[&str] = &[
    "which is the smallest?",
    "find the minimum.",
    "what is the lowest value?",
    "which is the lowest?",
    "which is the minimum?",
    "which is the smallest value?",
    "which is the lowest value?",
    "which is the minimum value?",
    "which value is the smallest?",
    "which value is the lowest?",
    "which value is the minimum?",
    "what is the smallest?",
    "what is the lowest?",
    "what is the minimum?",
    "what is the smallest value?",
    "what is the minimum value?",
    "find the smallest.",
    "find the lowest.",
    "find the smallest value.",
    "find the lowest value.",
    "find the minimum value.",
    "give the minimum.",
    "give the smallest value.",
    "name the smallest.",
];

const ASK_MAX: &[&str] = &[
    "which is the largest?",
    "find the maximum.",
    "what is the highest value?",
    "which is the highest?",
    "which is the maximum?",
    "which value is the largest?",
    "which value is the highest?",
    "what is the largest?",
    "what is the highest?",
    "what is the maximum?",
    "what is the largest value?",
    "find the largest.",
    "find the highest value.",
    "give the maximum.",
    "name the largest.",
];

const ASK_MEAN: &[&str] = &[
    "what is the mean?",
    "what is the average?",
    "what is the mean value?",
    "what is the average value?",
    "find the mean.",
    "find the average.",
    "find the mean value.",
    "find the average value.",
    "give the mean.",
    "give the average.",
    "compute the mean.",
    "compute the average.",
];

const ASK_COUNT: &[&str] = &[
    "how many are there?",
    "count them.",
    "how many are listed?",
    "how many values are there?",
    "how many values are listed?",
    "how many numbers are there?",
    "how many numbers are listed?",
    "what is the count?",
    "find the count.",
    "give the count.",
    "count the values.",
    "count the numbers.",
];

/// The ways to ask for a task.
pub fn asks(task: Task) -> &'static [&'static str] {
    match task {
        Task::Min => ASK_MIN,
        Task::Max => ASK_MAX,
        Task::Mean => ASK_MEAN,
        Task::Count => ASK_COUNT,
    }
}

/// Openings that suit a list of `numbers` numbers.
pub fn openings_for(numbers: u64) -> u64 {
    let plural = if numbers > 1 { PLURAL_OPENINGS.len() } else { 0 };
    (OPENINGS.len() + plural) as u64
}

/// Opening `choice`, below [`openings_for`]; the plural ones follow the others.
pub fn opening(choice: usize) -> &'static str {
    match choice.checked_sub(OPENINGS.len()) {
        None => OPENINGS[choice],
        Some(plural) => PLURAL_OPENINGS[plural],
    }
}

/// Puts a question together from its parts; `numbers` are marked already.
pub fn question(opening: &str, numbers: &[String], separator: &str, ask: &str) -> String {
    format!("{opening}{}{BEFORE_ASK}{ask}", numbers.join(separator))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::{Segment, marked, parse};

    const TASKS: [Task; 4] = [Task::Min, Task::Max, Task::Mean, Task::Count];

    #[test]
    fn there_are_enough_wordings_and_none_twice() {
        assert!(OPENINGS.len() >= 30);
        assert!(asks(Task::Min).len() >= 20);
        let mut all: Vec<&str> = [OPENINGS, PLURAL_OPENINGS].concat();
        for task in TASKS {
            assert!(asks(task).len() >= 10);
            all.extend(asks(task));
        }
        let listed = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), listed);
    }

    #[test]
    fn the_corpus_of_the_demo_model_is_among_them() {
        let corpus = [
            "Take the readings ",
            "Here are the amounts ",
            "The sensor logged ",
            "The list holds ",
            "We measured ",
            "The ledger shows ",
            "Given ",
        ];
        for lead in corpus {
            assert!(OPENINGS.contains(&lead) || PLURAL_OPENINGS.contains(&lead), "{lead}");
        }
        for ask in ["which is the smallest?", "find the minimum.", "what is the lowest value?"] {
            assert!(asks(Task::Min).contains(&ask), "{ask}");
        }
    }

    #[test]
    fn every_combination_is_well_formed() {
        let lists: [&[f64]; 3] = [&[5.0], &[1.5, 2.25], &[0.01, 99.99, 50.0, 7.1]];
        for list in lists {
            let numbers: Vec<String> = list.iter().map(|value| marked(*value, 2)).collect();
            for choice in 0..openings_for(list.len() as u64) {
                let lead = opening(choice as usize);
                for separator in SEPARATORS {
                    for ask in TASKS.iter().flat_map(|task| asks(*task)) {
                        let text = question(lead, &numbers, separator, ask);
                        check(&text, lead, ask, list);
                    }
                }
            }
        }
    }

    fn check(text: &str, lead: &str, ask: &str, list: &[f64]) {
        assert!(!text.contains("  "), "{text}");
        assert!(text.is_ascii() && text.starts_with(|c: char| c.is_ascii_uppercase()), "{text}");
        assert!(text.starts_with(lead) && text.ends_with(ask), "{text}");
        assert!(text.ends_with(['?', '.']) && ask.starts_with(|c: char| c.is_ascii_lowercase()), "{text}");
        let segments = parse(text).unwrap();
        let mut numbers = Vec::new();
        for segment in &segments {
            if let Segment::Number(value) = segment {
                numbers.push(*value);
            }
        }
        assert_eq!(numbers, list, "{text}");
        assert_eq!(segments[0], Segment::Text(lead));
        assert_eq!(segments.last(), Some(&Segment::Text(&format!("{BEFORE_ASK}{ask}"))));
    }
}
