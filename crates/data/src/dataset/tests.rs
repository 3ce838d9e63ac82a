//! Datasets: what each stage reads, what is refused, and the split.

use std::io::Write;

use numalign_config::{Span, Stage};
use proptest::prelude::*;

use super::survey::{numbers_of, outside, survey};
use super::*;
use crate::generate::Generator;
use crate::jsonl::write_line;
use crate::random::Domain;
use crate::sample::Input;
use crate::stream::{SampleStream, Streams, test_recipe};
use crate::table::{AddedColumns, MOST_LINE_BYTES, ParquetWriter};
use crate::{MicroBatchId, Unit};

fn file(content: impl AsRef<[u8]>, ending: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().prefix("data").suffix(ending).tempfile().unwrap();
    file.write_all(content.as_ref()).unwrap();
    file
}

fn read_as(content: impl AsRef<[u8]>, ending: &str, recipe: &Recipe) -> Result<Dataset, DataError> {
    Dataset::open(file(content, ending).path(), recipe, &TableOptions::default())
}

fn read(content: impl AsRef<[u8]>, stage: Stage) -> Result<Dataset, DataError> {
    read_as(content, ".jsonl", &test_recipe(stage))
}

fn line(input: &str, output: &str) -> String {
    format!("{{\"input\": {input}, \"output\": {output}}}")
}

fn refusal(content: impl AsRef<[u8]>, stage: Stage) -> String {
    let said = read(content, stage).unwrap_err().to_string();
    // The file's name is another one each time.
    said.split_once(", ").map_or(said.clone(), |(_, said)| said.to_string())
}

#[test]
fn reads_what_each_stage_takes() {
    let cases = [
        (Stage::Nn, "1.5", "2", Input::Number(1.5), 2.0),
        (Stage::Nn, "\"1.5\"", "\"$$-2e1&&\"", Input::Number(1.5), -20.0),
        (Stage::Nn, "\"$$3&&\"", "18446744073709551616", Input::Number(3.0), 18446744073709551616.0),
        (Stage::Text, "\"$$ any &\"", "\"7\"", Input::Text("$$ any &".into()), 7.0),
        (Stage::Text, "0.10", "0.1", Input::Text("0.1".into()), 0.1),
        (Stage::Mixed, "\"a $$1&&\\n\"", "1", Input::Text("a $$1&&\n".into()), 1.0),
        (Stage::Mixed, "\"none\"", "1", Input::Text("none".into()), 1.0),
        (Stage::Nn, "\"1,234.5 €\"", "\"12.5 %\"", Input::Number(1234.5), 12.5),
        (Stage::Text, "\"<num>1,5</num> kg\"", "\"$$3&& kg\"", Input::Text("$$1,5&& kg".into()), 3.0),
        (Stage::Mixed, "\"<num>1,234</num> kg\"", "1", Input::Text("$$1234&& kg".into()), 1.0),
    ];
    for (stage, input, output, expected, target) in cases {
        let dataset = read(line(input, output), stage).unwrap();
        assert_eq!(dataset.sample(Side::Train, 0, 5), Sample { index: 5, input: expected, target });
    }
    let comma = Recipe { dataset_decimal_comma: true, ..test_recipe(Stage::Nn) };
    let read_comma = read_as("input;output\n1.234,5;0,25\n", ".csv", &comma).unwrap();
    let expected = Sample { index: 0, input: Input::Number(1234.5), target: 0.25 };
    assert_eq!(read_comma.sample(Side::Train, 0, 0), expected);
    let turned = read("{\"id\": [1], \"output\":1,\"input\":2}\n\n", Stage::Nn).unwrap();
    assert_eq!(
        turned.sample(Side::Train, 0, 0).input,
        Input::Number(2.0),
        "extra keys and blank last lines are no fault"
    );
}

#[test]
fn says_what_is_wrong_with_a_value() {
    let number = "expected a number or a string that is a number";
    let cases = [
        (Stage::Nn, line("null", "1"), "column \"input\" is empty".to_string()),
        (Stage::Nn, line("[1, [2]]", "1"), format!("column \"input\" is a list, {number}")),
        (Stage::Text, line("[true]", "1"), "column \"input\" is a list, expected a text or a number".to_string()),
        (Stage::Text, line("\"\"", "1"), "the input is empty".to_string()),
        (Stage::Mixed, line("5", "1"), "column \"input\" is a number, expected a string".to_string()),
        (Stage::Mixed, line("\"$$5\"", "1"), "the input: the `$$` at byte 0 has no closing `&&`: \"$$5\"".to_string()),
        (Stage::Nn, line("1", "{\"a\": 1}"), format!("column \"output\" is an object, {number}")),
        (Stage::Nn, line("1", "\"1e999\""), "column \"output\" is \"1e999\", not finite as a 64-bit float".to_string()),
        (
            Stage::Nn,
            line("1", "\"nan\""),
            "column \"output\" is \"nan\", expected a decimal number, bare or as $$number&&".to_string(),
        ),
        (Stage::Nn, line("1", "1e999"), "bad JSON: number out of range at column 28".to_string()),
        (Stage::Nn, "{\"input\": 1}".to_string(), "missing column \"output\"; it has input".to_string()),
    ];
    for (stage, content, expected) in cases {
        let said = refusal(&content, stage);
        assert!(said.starts_with(&format!("line 1: {expected};")), "{content}: {said}");
    }
}

#[test]
fn accepts_either_line_ending_and_a_byte_order_mark() {
    let (first, second) = (line("1", "2"), line("3", "4"));
    let plain = read(format!("{first}\n{second}\n"), Stage::Nn).unwrap();
    let variants = [
        format!("{first}\n{second}"),
        format!("{first}\r\n{second}\r\n"),
        format!("\u{feff}{first}\n{second}\r"),
        format!("{{ \"output\" : \"2\", \"input\": 1.0 }}\n{second}\n"),
    ];
    for variant in variants {
        let other = read(&variant, Stage::Nn).unwrap();
        assert_eq!((other.len(Side::Train), other.digest()), (2, plain.digest()), "{variant}");
    }
    let swapped = read(format!("{second}\n{first}\n"), Stage::Nn).unwrap();
    assert_ne!(swapped.digest(), plain.digest());
    let csv = read_as("input,output\n1,2\n3,4\n", ".csv", &test_recipe(Stage::Nn)).unwrap();
    assert_eq!(csv.digest(), plain.digest());
}

#[test]
fn refuses_blank_lines_and_files_without_samples() {
    let sample = line("1", "2");
    let cases = [(format!("{sample}\n \t\r\n{sample}\n"), 2), (format!("\n{sample}"), 1)];
    for (content, number) in cases {
        assert!(refusal(content, Stage::Nn).starts_with(&format!("line {number}: blank line")));
    }
    for content in ["", "\u{feff}", "\n"] {
        assert!(matches!(read(content, Stage::Nn), Err(DataError::EmptyFile { .. })));
    }
    let recipe = test_recipe(Stage::Nn);
    let folder = tempfile::tempdir().unwrap();
    for path in [Path::new("/no/such/file"), folder.path()] {
        let error = Dataset::open(path, &recipe, &TableOptions::default()).unwrap_err();
        assert!(error.to_string().starts_with("cannot read"), "{error}");
    }
}

#[test]
fn the_line_limit_is_exact_and_an_endless_line_is_not_read() {
    let overhead = line("\"\"", "1").len();
    let longest = line(&format!("\"{}\"", "x".repeat(MOST_LINE_BYTES - overhead)), "1");
    let dataset = read(format!("\u{feff}{longest}\r\n{longest}\n"), Stage::Text).unwrap();
    assert_eq!(dataset.len(Side::Train), 2);
    let said = refusal("x".repeat(3 * MOST_LINE_BYTES), Stage::Text);
    assert!(said.starts_with(&format!("line 1: longer than {MOST_LINE_BYTES} bytes")), "{said}");
    assert!(said.len() < 200);
}

#[test]
fn generated_samples_survive_a_file() {
    for stage in [Stage::Nn, Stage::Text, Stage::Mixed] {
        let generator = Generator::new(&test_recipe(stage), Domain::Train).unwrap();
        let written: Vec<Sample> = (0..200).map(|index| generator.sample(index)).collect();
        let content: String = written.iter().map(|sample| write_line(sample) + "\n").collect();
        let dataset = read(content, stage).unwrap();
        for (place, sample) in written.into_iter().enumerate() {
            assert_eq!(dataset.sample(Side::Train, place as u64, sample.index), sample);
        }
    }
}

#[test]
fn bad_cells_are_skipped_where_that_is_asked_for() {
    let content = "input,output\n1,2\n,3\n4,none\n5,6\n";
    let recipe = test_recipe(Stage::Nn);
    let said = read_as(content, ".csv", &recipe).unwrap_err().to_string();
    assert!(said.contains("line 3: column \"input\" is empty"), "{said}");
    let skipping = Recipe { dataset_missing: MissingCells::Skip, ..recipe };
    let dataset = read_as(content, ".csv", &skipping).unwrap();
    let skipped = dataset.skipped().unwrap();
    assert_eq!(skipped.rows, 2);
    assert!(skipped.first.contains("line 3"), "{}", skipped.first);
    let numbers: Vec<u64> = (0..2).map(|row| dataset.number(Side::Train, row)).collect();
    assert_eq!(numbers, [1, 4], "numbers are the file's");
    let all_bad = read_as("input,output\n,1\n", ".csv", &skipping).unwrap_err();
    assert!(matches!(all_bad, DataError::AllSkipped { rows: 1, .. }));
    let bad_row = read_as("input,output\n1\n", ".csv", &skipping).unwrap_err();
    assert!(matches!(bad_row, DataError::Table(_)), "a broken row is no missing cell");
}

/// Rows whose input is their number.
fn numbered(rows: usize) -> String {
    (0..rows).map(|row| line(&row.to_string(), &(row * 10).to_string()) + "\n").collect()
}

fn held_out_inputs(dataset: &Dataset) -> Vec<f64> {
    let input = |row| match dataset.sample(Side::HeldOut, row, 0).input {
        Input::Number(value) => value,
        Input::Text(_) => panic!(),
    };
    (0..dataset.len(Side::HeldOut)).map(input).collect()
}

fn sharing(seed: u64, share: f64) -> Recipe {
    Recipe { seed, dataset_eval_share: Some(share), ..test_recipe(Stage::Nn) }
}

#[test]
fn the_split_is_pinned_and_follows_the_content_alone() {
    let dataset = read_as(numbered(40), ".jsonl", &sharing(0, 0.2)).unwrap();
    let held_out = held_out_inputs(&dataset);
    assert_eq!(held_out.len() as u64 + dataset.len(Side::Train), 40);
    let reversed: String = numbered(40).lines().rev().map(|line| format!("{line}\n")).collect();
    let other = read_as(reversed, ".jsonl", &sharing(0, 0.2)).unwrap();
    let mut back: Vec<f64> = held_out_inputs(&other);
    back.reverse();
    assert_eq!(back, held_out, "the order of the rows does not matter");
    let longer = read_as(numbered(80), ".jsonl", &sharing(0, 0.2)).unwrap();
    let first: Vec<f64> = held_out_inputs(&longer).into_iter().filter(|input| *input < 40.0).collect();
    assert_eq!(first, held_out, "nor do the rows beside it");
    assert_ne!(held_out_inputs(&read_as(numbered(40), ".jsonl", &sharing(1, 0.2)).unwrap()), held_out);
    let mark = Split::new(7, 0.5).mark(b"row");
    let mut hasher = blake3::Hasher::new_derive_key("numalign 2026-11 held-out rows");
    hasher.update(&7u64.to_le_bytes());
    hasher.update(b"row");
    assert_eq!(mark.to_le_bytes(), hasher.finalize().as_bytes()[..8]);
}

#[test]
fn equal_rows_fall_on_one_side_and_each_side_has_one() {
    let doubled = numbered(30).repeat(2);
    let dataset = read_as(&doubled, ".jsonl", &sharing(3, 0.3)).unwrap();
    assert_eq!(dataset.shared_with_training(Side::HeldOut, &dataset), 0);
    assert_eq!(dataset.len(Side::HeldOut) % 2, 0);
    for (share, rows) in [(1e-9, 2), (0.999_999, 2), (0.1, 3)] {
        let small = read_as(numbered(rows), ".jsonl", &sharing(0, share)).unwrap();
        assert!(!small.is_empty(Side::Train) && !small.is_empty(Side::HeldOut), "{share}");
    }
    for content in [numbered(1), numbered(1).repeat(5)] {
        let error = read_as(content, ".jsonl", &sharing(0, 0.1)).unwrap_err();
        assert!(matches!(error, DataError::NothingToHoldOut { .. }), "{error}");
    }
}

#[test]
fn streams_keep_the_sides_apart() {
    let file = file(numbered(50), ".jsonl");
    let recipe = Recipe { batch_size: 4, micro_batch_size: 2, ..sharing(5, 0.2) };
    let train = SampleStream::from_file(file.path(), &recipe).unwrap();
    let streams = Streams::new(train.clone(), &recipe).unwrap();
    let held_out = streams.held_out.clone().unwrap();
    let (rows, kept) = (train.file_len().unwrap(), held_out.file_len().unwrap());
    assert_eq!(rows + kept, 50);
    let numbers = |stream: &SampleStream, count: u64| -> Vec<u64> {
        let mut numbers: Vec<u64> = (0..count).map(|index| stream.row_number(index).unwrap()).collect();
        numbers.sort_unstable();
        numbers
    };
    let mut all = [numbers(&train, rows), numbers(&held_out, kept)].concat();
    all.sort_unstable();
    assert_eq!(all, (1..=50).collect::<Vec<_>>(), "each row is on one side, and a pass takes each once");
    let sent: Vec<Sample> =
        (0..2).flat_map(|place| streams.samples(&recipe, Unit::Evaluate, MicroBatchId(place), kept)).collect();
    assert_eq!(sent, (0..kept).map(|index| held_out.sample(index)).collect::<Vec<_>>());
    let generated = SampleStream::generated(&recipe, Domain::Train).unwrap();
    let streams = Streams::new(generated, &recipe).unwrap();
    assert!(streams.samples(&recipe, Unit::Evaluate, MicroBatchId(0), 10).is_empty(), "workers draw those themselves");
}

#[test]
fn a_survey_finds_stage_and_ranges() {
    let options = TableOptions::default();
    let stage = |content: &str, input: Option<&str>| {
        let recipe = Recipe { dataset_input: input.map(str::to_string), ..test_recipe(Stage::Nn) };
        open_finding_stage(file(content, ".csv").path(), &recipe, &options).unwrap().1
    };
    assert_eq!(stage("input,output\n1,2\n-3.5,4\n", None), Stage::Nn);
    assert_eq!(stage("input,output\n1,2\na chair,4\n", None), Stage::Text);
    assert_eq!(stage("input,output\na $$3&& chair,4\n", None), Stage::Mixed);
    assert_eq!(stage("input,output\n1,2\na chair,4\n<num>3</num> chairs,4\n", None), Stage::Mixed);
    // What pandas writes for a missing number is no text.
    let nan = tempfile::Builder::new().suffix(".parquet").tempfile().unwrap();
    let columns = AddedColumns { number: "input", text: "output" };
    let mut writer = ParquetWriter::of_texts(nan.path(), &[], columns).unwrap();
    for value in [1.5, f64::NAN, 2.5] {
        writer.push(Vec::new(), Some(value), Some("7".to_string())).unwrap();
    }
    writer.finish().unwrap();
    let skip = Recipe { dataset_missing: MissingCells::Skip, ..test_recipe(Stage::Text) };
    assert_eq!(open_finding_stage(nan.path(), &skip, &options).unwrap().1, Stage::Nn);
    assert_eq!(stage("a,output\n1,2\n", Some("$${a}&& of")), Stage::Mixed);
    assert_eq!(stage("a,output\n1,2\n", Some("{a} of")), Stage::Text);

    let table = file("age,price,output\n30,2.5,10\n40,900,20\n50,7,35\n", ".csv");
    let template = Some("Aged $${age}&&, paid $${price}&&.".to_string());
    let recipe = Recipe { dataset_input: template, ..test_recipe(Stage::Mixed) };
    let opened = |table: &tempfile::NamedTempFile, recipe| Dataset::open(table.path(), recipe, &options).unwrap();
    let found = survey(&opened(&table, &recipe), &recipe).unwrap();
    assert_eq!((found.train_rows, found.held_out_rows), (3, 0));
    assert_eq!(found.targets, Span { min: 10.0, max: 35.0 });
    assert_eq!(found.inputs, [Span { min: 30.0, max: 50.0 }, Span { min: 2.5, max: 900.0 }]);

    let constant = file("input,output\n1,7\n1,7\n", ".csv");
    let recipe = test_recipe(Stage::Nn);
    let found = survey(&opened(&constant, &recipe), &recipe).unwrap();
    assert_eq!(found.targets, Span { min: 3.5, max: 10.5 });
    assert_eq!(found.inputs, [Span { min: 0.5, max: 1.5 }]);
}

#[test]
fn a_dataset_is_read_for_another_stage_as_it_is_for_a_given_one() {
    let skip = Recipe { dataset_missing: MissingCells::Skip, dataset_eval_share: Some(0.4), ..test_recipe(Stage::Nn) };
    let content = "input,output\n,1\n1,2\n1,none\na chair,4\n2,5\n";
    let table = file(content, ".csv");
    let (found, stage) = open_finding_stage(table.path(), &skip, &TableOptions::default()).unwrap();
    assert_eq!(stage, Stage::Text);
    let given = Dataset::open(table.path(), &Recipe { stage, ..skip }, &TableOptions::default()).unwrap();
    assert_eq!((found.digest(), found.skipped()), (given.digest(), given.skipped()));
    assert_eq!((&found.train, &found.held_out, &found.numbers), (&given.train, &given.held_out, &given.numbers));
}

#[test]
fn a_dataset_that_is_handed_over_is_the_same() {
    let rows: String =
        (0..200).map(|row| format!("text {row},{}\n", if row == 7 { "-".into() } else { row.to_string() })).collect();
    for (missing, content) in [(MissingCells::Skip, rows.clone()), (MissingCells::Refuse, rows.replace(",-", ",7"))] {
        let recipe = Recipe { dataset_missing: missing, dataset_eval_share: Some(0.2), ..test_recipe(Stage::Text) };
        let dataset = read_as(format!("input,output\n{content}"), ".csv", &recipe).unwrap();
        for _ in 0..2 {
            let other = Dataset::from_file(dataset.to_file().unwrap()).unwrap();
            assert_eq!((other.digest(), other.skipped()), (dataset.digest(), dataset.skipped()));
            assert_eq!(
                (&other.train, &other.held_out, &other.numbers),
                (&dataset.train, &dataset.held_out, &dataset.numbers)
            );
            for side in [Side::Train, Side::HeldOut] {
                assert_eq!(other.digest_of(side), dataset.digest_of(side));
            }
        }
        let cut = dataset.to_file().unwrap();
        cut.set_len(cut.metadata().unwrap().len() - 1).unwrap();
        assert!(Dataset::from_file(cut).is_err());
    }
    assert!(Dataset::from_file(tempfile::tempfile().unwrap()).is_err());
}

#[test]
fn recipes_read_alike_where_nothing_about_the_file_differs() {
    let recipe = test_recipe(Stage::Text);
    assert!(reads_alike(&recipe, &Recipe { num_batches: 7, max_val: 9.0, lr: 1.0, ..recipe.clone() }));
    for other in [
        Recipe { stage: Stage::Nn, ..recipe.clone() },
        Recipe { seed: 1, ..recipe.clone() },
        Recipe { dataset_input: Some("a".to_string()), ..recipe.clone() },
        Recipe { dataset_output: Some("a".to_string()), ..recipe.clone() },
        Recipe { dataset_missing: MissingCells::Skip, ..recipe.clone() },
        Recipe { dataset_decimal_comma: true, ..recipe.clone() },
        Recipe { dataset_eval_share: Some(0.1), ..recipe.clone() },
    ] {
        assert!(!reads_alike(&recipe, &other));
    }
}

#[test]
fn values_outside_their_range_are_counted() {
    let content = "input,output\n5,50\n5,250\n700,90\n5,-20\n";
    let recipe = Recipe { min_val: 0.0, max_val: 100.0, ..test_recipe(Stage::Nn) };
    let dataset = read_as(content, ".csv", &recipe).unwrap();
    let found = outside(&dataset, &recipe).unwrap();
    assert_eq!((found.rows, found.furthest), (3, 700.0));
    let own = Recipe { input_ranges: vec![Span { min: 0.0, max: 1000.0 }], ..recipe.clone() };
    let found = outside(&dataset, &own).unwrap();
    assert_eq!((found.rows, found.furthest), (2, 250.0));
    let wide = Recipe { min_val: -20.0, max_val: 250.0, ..own };
    assert_eq!(outside(&dataset, &wide), None);
    let sample = Sample { index: 0, input: Input::Text("$$1&& a $$2&&".to_string()), target: 0.0 };
    assert_eq!(numbers_of(&sample, Stage::Mixed), [1.0, 2.0]);
    assert!(numbers_of(&sample, Stage::Text).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn any_bytes_are_answered(bytes: Vec<u8>, text in "[\\{\\}\\[\\]\":,$&0-9a-z \\n]{0,60}") {
        for stage in [Stage::Nn, Stage::Text, Stage::Mixed] {
            let _ = read(&bytes, stage);
            let _ = read(&text, stage);
        }
    }

    #[test]
    fn any_number_and_text_survives(value: u64, target: u64, text in ".{1,40}", lines in "(\\PC|[\\n\\t\"\\\\]){1,20}") {
        let (value, target) = (f64::from_bits(value), f64::from_bits(target));
        prop_assume!(value.is_finite() && target.is_finite());
        let number = Sample { index: 0, input: Input::Number(value), target };
        let back = read(write_line(&number), Stage::Nn).unwrap().sample(Side::Train, 0, 0);
        prop_assert_eq!(back.content_bytes(), number.content_bytes());
        for text in [text, lines] {
            let sample = Sample { index: 0, input: Input::Text(text), target };
            let back = read(write_line(&sample), Stage::Text).unwrap().sample(Side::Train, 0, 0);
            prop_assert_eq!(back.content_bytes(), sample.content_bytes());
        }
    }
}
