//! Tables of every format: the same rows, and what is refused.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::number::DecimalMark;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/tables").join(name)
}

fn open(name: &str) -> Table {
    Table::open(&fixture(name), &TableOptions::default()).unwrap()
}

fn read(bytes: impl AsRef<[u8]>, format: TableFormat) -> Result<Vec<Row>, TableError> {
    let options = TableOptions { format: Some(format), separator: None };
    let bytes = std::io::Cursor::new(bytes.as_ref().to_vec());
    Table::read(bytes, Path::new("data"), &options)?.collect()
}

fn csv(text: &str) -> Vec<Row> {
    read(text, TableFormat::Csv).unwrap()
}

fn refusal(bytes: impl AsRef<[u8]>, format: TableFormat) -> String {
    let error = read(bytes, format).unwrap_err();
    error.to_string()
}

#[test]
fn the_same_rows_in_every_format_give_the_same_samples() {
    let template = RowText::parse("{item}: $${quantity}&& at $${price}&&, {{{input}}}").unwrap();
    let texts = |name: &str| -> Vec<(String, f64)> {
        open(name)
            .map(|row| {
                let row = row.unwrap();
                (
                    template.of(&row, DecimalMark::Point).unwrap(),
                    row.cell("output").unwrap().number(DecimalMark::Point).unwrap(),
                )
            })
            .collect()
    };
    let expected = texts("invoices.jsonl");
    assert_eq!(expected.len(), 60);
    assert!(expected.iter().any(|(text, _)| text.contains("nails\n(box)")));
    for name in
        ["invoices.csv", "invoices.parquet", "invoices.gzip.parquet", "invoices.zstd.parquet", "invoices.none.parquet"]
    {
        assert_eq!(texts(name), expected, "{name}");
    }
}

#[test]
fn parquets_types_become_cells() {
    let rows: Vec<Row> = open("odd.parquet").map(Result::unwrap).collect();
    let cell = |row: usize, column: &str| rows[row].get(column).unwrap().clone();
    assert_eq!((cell(0, "whole"), cell(1, "whole")), (Cell::Whole(1), Cell::Missing));
    assert_eq!(cell(0, "single"), Cell::Number(0.1), "as it was written, not 0.10000000149011612");
    assert_eq!(cell(1, "flag"), Cell::Bool(false));
    assert!(matches!(cell(0, "list"), Cell::Nested { kind: "a list", .. }));
    assert!(matches!(cell(0, "day"), Cell::Text(day) if day.starts_with("1970-01-01")));
    assert_eq!(cell(0, "price").number(DecimalMark::Point), Ok(1.5));
    for row in 0..2 {
        assert!(matches!(cell(row, "broken").number(DecimalMark::Point), Err(CellProblem::NotFinite { .. })));
    }
}

#[test]
fn csv_takes_quotes_separators_marks_and_line_ends() {
    let plain = csv("a,b\n1,\"x, \"\"y\"\"\"\n\n2,\n");
    assert_eq!(plain.len(), 2);
    assert_eq!(plain[0].get("b"), Some(&Cell::Text("x, \"y\"".to_string())));
    assert_eq!((plain[1].get("b"), plain[1].line), (Some(&Cell::Missing), 4));
    for text in ["\u{feff}a,b\r\n1,\"x, \"\"y\"\"\"\r\n2,", "a;b\n1;\"x, \"\"y\"\"\"\n2;\n", "a\tb\n1\tx, \"y\"\n2\t\n"]
    {
        let rows = csv(text);
        assert_eq!(rows.len(), 2, "{text:?}");
        assert_eq!(rows[0].get("a"), plain[0].get("a"), "{text:?}");
        assert!(rows[0].get("b").unwrap().text().unwrap().starts_with("x, "), "{text:?}");
    }
    for end in ["\n", "\r\n"] {
        for last in ["", end] {
            let text = ["a,b", "\"1", "2\",3", "", "4,5"].join(end) + last;
            let lines: Vec<u64> = csv(&text).iter().map(|row| row.line).collect();
            assert_eq!(lines, [2, 5], "line breaks inside quotes and blank lines count: {text:?}");
        }
    }
}

#[test]
fn csv_says_what_is_wrong() {
    assert_eq!(csv("\u{feff}sep=;\r\na;b\r\n1;2\r\n")[0].line, 3);
    assert!(refusal("SEP=;\na;b\n1;2\n3\n", TableFormat::Csv).contains("line 4"));
    assert_eq!(csv("sep=,b\n1,2\n")[0].get("sep=").unwrap(), &Cell::Text("1".to_string()), "a name, not a separator");
    let cases: &[(&[u8], &str)] = &[
        (b"", "data: it holds no samples"),
        (b"a,b,a\n1,2,3\n", "data: two columns are called \"a\" (separator ','); rename one"),
        (b"a,b\n1,2\n3\n", "data, line 3: it has 1 fields and the header 2; the line begins \"3\""),
        (
            b"a,b\n1,\xe9\n",
            "data, line 2: not valid UTF-8 from byte 0 on; save the file as UTF-8; the line begins \"1 | \u{fffd}\"",
        ),
        (b"\xff\xfea\0", "data is in UTF-16; save it as UTF-8"),
        (b"a\0,\0b\0\n\0", "data is in UTF-16; save it as UTF-8"),
        (b"\x1f\x8b\x08", "data is compressed with gzip; unpack it first (gunzip)"),
        (b"PAR1....", "data is Parquet; name it .parquet, or set dataset.format to parquet"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(refusal(bytes, TableFormat::Csv), *expected);
    }
    let unclosed = format!("a,b\n1,\"{}", "x\n".repeat(MOST_LINE_BYTES));
    assert!(refusal(unclosed, TableFormat::Csv).contains("line 2: longer than 1048576 bytes"));
}

#[test]
fn a_bad_row_does_not_end_the_table() {
    for (text, format) in
        [("{\"a\": 1}\nnothing\n{\"a\": 2}\n", TableFormat::Jsonl), ("a,b\n1,1\n2\n2,2\n", TableFormat::Csv)]
    {
        let options = TableOptions { format: Some(format), separator: None };
        let table = Table::read(std::io::Cursor::new(text), Path::new("data"), &options).unwrap();
        let rows: Vec<_> = table.collect();
        assert_eq!(rows.len(), 3, "{format}");
        assert!(rows[1].is_err() && rows[2].as_ref().is_ok_and(|row| row.get("a").is_some()), "{format}");
    }
}

#[test]
fn jsonl_keeps_every_key_and_its_type() {
    let rows =
        read("\u{feff}{\"b\": 1, \"a\": \"x\", \"c\": null, \"d\": [1], \"e\": 1.5}\r\n\n \n", TableFormat::Jsonl)
            .unwrap();
    let cells: Vec<(&str, &Cell)> = rows[0].cells().collect();
    assert_eq!(cells[0], ("b", &Cell::Whole(1)));
    assert_eq!(cells[2], ("c", &Cell::Missing));
    assert_eq!(cells[3].1.kind(), "a list");
    assert_eq!(cells[4].1, &Cell::Number(1.5));
    let cases = [
        ("{\"a\": 1, \"\\u0061\": 2}", "duplicate key \"a\""),
        ("{\"a\": 1}\n\n{\"a\": 1}", "line 2: blank line"),
        ("[1, 2]", "found a list"),
        ("a,b\n1,2", "bad JSON"),
        ("{\"a\": 1e400}", "number out of range"),
        ("{\"a\": NaN}", "bad JSON: expected value at column 7"),
    ];
    for (text, expected) in cases {
        let said = refusal(text, TableFormat::Jsonl);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn the_ending_names_the_format() {
    for (name, format) in [
        ("a.csv", Some(TableFormat::Csv)),
        ("a.TSV", Some(TableFormat::Csv)),
        ("a.parquet", Some(TableFormat::Parquet)),
        ("a.jsonl", Some(TableFormat::Jsonl)),
        ("a.txt", None),
        ("a", None),
    ] {
        assert_eq!(format_of(Path::new(name)), format, "{name}");
    }
    for (start, format) in [
        ("PAR1\u{15}", TableFormat::Parquet),
        ("\u{feff} {\"a\": 1}", TableFormat::Jsonl),
        ("a,b\n", TableFormat::Csv),
        ("", TableFormat::Jsonl),
    ] {
        assert_eq!(sniff::format(start.as_bytes()), format, "{start}");
    }
    let cut = std::fs::read(fixture("invoices.parquet")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.parquet");
    for length in [0, 4, 7, 100, cut.len() / 2, cut.len() - 1] {
        std::fs::write(&path, &cut[..length]).unwrap();
        let error = Table::open(&path, &TableOptions::default()).unwrap_err();
        assert!(matches!(error, TableError::Parquet { .. }), "{length}: {error}");
    }
    let folder = Table::open(folder.path(), &TableOptions::default()).unwrap_err();
    assert!(matches!(folder, TableError::Io { .. }));
}

#[test]
fn templates_name_their_columns() {
    let template = Template::parse("Patient aged $${age}&&, {sex}, $${age}&& {{x}}.").unwrap();
    assert_eq!(template.columns(), ["age", "sex"]);
    assert_eq!(template.marked().collect::<Vec<_>>(), ["age", "age"]);
    let row = &csv("sex,age\nf,059.50\n")[0];
    assert_eq!(template.fill(row, DecimalMark::Point).unwrap(), "Patient aged $$59.5&&, f, $$59.5&& {x}.");
    let cases = [
        ("{age", TemplateError::Unclosed { offset: 0 }),
        ("a} {b}", TemplateError::Unopened { offset: 1 }),
        ("{ }", TemplateError::NoName { offset: 0 }),
        ("$${age} years", TemplateError::Unmarked { name: "age".to_string() }),
        ("{{a}}", TemplateError::NoColumn),
    ];
    for (text, expected) in cases {
        assert_eq!(Template::parse(text), Err(expected), "{text}");
    }
    assert_eq!(RowText::parse("input"), Ok(RowText::Column("input".to_string())));
}

#[test]
fn a_row_that_does_not_fit_says_which_column() {
    let template = Template::parse("$${age}&& {sex}").unwrap();
    let said = |text: &str| template.fill(&csv(text)[0], DecimalMark::Point).unwrap_err().to_string();
    assert_eq!(said("age,sex\n,f\n"), "column \"age\" is empty");
    assert_eq!(said("age,sex\nold,f\n"), "column \"age\" is \"old\", expected a decimal number, bare or as $$number&&");
    assert_eq!(said("age,sex\n1e999,f\n"), "column \"age\" is \"1e999\", not finite as a 64-bit float");
    assert_eq!(said("age,sex\n1,$$2&&\n"), "column \"sex\" holds \"$$\", and the template marks its numbers itself");
    assert_eq!(said("Age,sex\n1,f\n"), "missing column \"age\"; it has Age, sex");
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes: Vec<u8>, text in "[\\{\\}\\[\\]\":,;$&0-9a-z \\n]{0,60}") {
        for format in [TableFormat::Jsonl, TableFormat::Csv] {
            let _ = read(&bytes, format);
            let _ = read(&text, format);
        }
    }

    #[test]
    fn any_template_is_answered(text in "[\\{\\}$&a-c ]{0,20}") {
        let _ = RowText::parse(&text);
    }
}
