use super::*;
use crate::parse::{boolean, choice, device, duration, whole};

fn float(raw: &Raw) -> Result<f64, ParseError> {
    number_or_auto().parse(raw)
}

fn positive_float(raw: &Raw) -> Result<f64, ParseError> {
    positive().parse(raw)
}

fn text(raw: &Raw) -> Result<String, ParseError> {
    super::text().parse(raw)
}

fn run_id(raw: &Raw) -> Result<String, ParseError> {
    super::run_id().parse(raw)
}

fn resume(raw: &Raw) -> Result<Resume, ParseError> {
    super::resume().parse(raw)
}

fn tasks(raw: &Raw) -> Result<Vec<Task>, ParseError> {
    super::tasks().parse(raw)
}

fn positive_duration(raw: &Raw) -> Result<Duration, ParseError> {
    positive_time().parse(raw)
}
use crate::choice::{CollectiveChoice, Loss, Stage};

fn written(text: &str) -> Raw {
    Raw::Text(text.to_string())
}

fn yaml(text: &str) -> Raw {
    serde_yaml::from_str(text).unwrap()
}

/// The message of a refusal, with its hint after a bar.
fn refusal<T: std::fmt::Debug>(parsed: Result<T, ParseError>) -> String {
    let error = parsed.unwrap_err();
    match error.hint {
        Some(hint) => format!("{} | {hint}", error.message),
        None => error.message,
    }
}

#[test]
fn booleans_are_true_or_false_only() {
    assert_eq!(boolean(&yaml("true")), Ok(true));
    assert_eq!(boolean(&written("false")), Ok(false));
    assert_eq!(refusal(boolean(&yaml("1"))), "must be true or false, not a number");
    assert_eq!(refusal(boolean(&written("1"))), "must be true or false | write true");
    assert_eq!(refusal(boolean(&yaml("no"))), "must be true or false | write false");
    assert_eq!(refusal(boolean(&written("True"))), "must be true or false | write true");
    assert_eq!(refusal(boolean(&written(""))), "must be true or false");
    assert_eq!(refusal(boolean(&yaml("[true]"))), "must be true or false, not a list");
}

#[test]
fn whole_numbers_are_not_rounded() {
    let read = |raw: &Raw| whole(raw, 1, 1000);
    assert_eq!(read(&yaml("12")), Ok(12));
    assert_eq!(read(&written("12")), Ok(12));
    let allowed = "must be a whole number from 1 to 1000";
    for wrong in ["1.5", "-1", "0", "1001", "'12 '", "1_000", ".inf", ".nan", "1e400", "''"] {
        assert_eq!(refusal(read(&yaml(wrong))), allowed, "{wrong}");
    }
    assert_eq!(
        refusal(read(&yaml("1e2"))),
        format!("{allowed} | write it with digits only, without a fraction or an exponent")
    );
    assert_eq!(refusal(read(&yaml("true"))), format!("{allowed}, not true or false"));
    assert_eq!(refusal(read(&yaml("{a: 1}"))), format!("{allowed}, not a mapping"));
}

#[test]
fn whole_numbers_do_not_overflow() {
    let read = |raw: &Raw| whole(raw, 0, u64::MAX);
    assert_eq!(read(&yaml("18446744073709551615")), Ok(u64::MAX));
    let too_large = "must be a whole number, at least 0; the largest possible is 18446744073709551615";
    assert_eq!(refusal(read(&yaml("18446744073709551616"))), too_large);
    assert_eq!(refusal(read(&written("18446744073709551616"))), too_large);
    assert!(read(&written(&"9".repeat(60))).is_err());
    assert!(read(&yaml(&"9".repeat(60))).is_err());
    assert!(read(&yaml("340282366920938463463374607431768211455")).is_err());
}

#[test]
fn floats_are_finite_and_read_in_every_spelling() {
    assert_eq!(float(&yaml("1e-3")), Ok(0.001));
    assert_eq!(float(&yaml("'1e-3'")), Ok(0.001));
    assert_eq!(float(&written("-2.5")), Ok(-2.5));
    assert_eq!(float(&yaml("3")), Ok(3.0));
    assert_eq!(float(&yaml("-0.0")).unwrap().to_bits(), 0.0_f64.to_bits());
    for wrong in [".inf", "-.inf", ".nan"] {
        assert_eq!(refusal(float(&yaml(wrong))), "must be a finite number", "{wrong}");
    }
    for wrong in ["inf", "nan", "-infinity", "1e400"] {
        assert_eq!(refusal(float(&written(wrong))), "must be a finite number", "{wrong}");
    }
    assert_eq!(refusal(float(&written("abc"))), "must be a number");
    assert_eq!(refusal(float(&written(""))), "must be a number");
    assert_eq!(refusal(float(&written("0,5"))), "must be a number | write the decimals after a point");
    assert_eq!(refusal(float(&yaml("true"))), "must be a number, not true or false");
    assert_eq!(refusal(float(&yaml("[1]"))), "must be a number, not a list");
}

#[test]
fn rates_stay_positive_in_single_precision() {
    assert_eq!(positive_float(&written("0.003")), Ok(0.003));
    assert_eq!(refusal(positive_float(&written("0"))), "must be above 0");
    assert_eq!(refusal(positive_float(&written("-1"))), "must be above 0");
    assert!(refusal(positive_float(&written("1e-50"))).contains("single precision"));
    assert!(refusal(positive_float(&written("1e39"))).contains("single precision"));
    assert_eq!(float(&written("-5")), Ok(-5.0));
    assert!(refusal(float(&written("-1e39"))).contains("single precision"));
}

#[test]
fn text_keeps_its_spelling_or_is_refused() {
    assert_eq!(text(&yaml("'1e3'")), Ok("1e3".to_string()));
    assert_eq!(text(&yaml("2024")), Ok("2024".to_string()));
    let quote = "put it in quotes if it is meant as text";
    assert_eq!(refusal(text(&yaml("1e3"))), format!("must be text, not a number | {quote}"));
    assert_eq!(refusal(text(&yaml("true"))), format!("must be text, not true or false | {quote}"));
    assert_eq!(refusal(text(&yaml("[a]"))), "must be text, not a list");
    assert_eq!(refusal(text(&yaml("''"))), "must not be empty | leave it out to use the default");
    assert_eq!(refusal(input_file().parse(&written("a\0b"))), "must not contain the character NUL");
}

#[test]
fn a_file_to_write_is_not_a_folder() {
    assert_eq!(output_file().parse(&written("out/a.safetensors")), Ok("out/a.safetensors".into()));
    let folder = std::env::temp_dir().display().to_string();
    for wrong in ["chk/", ".", "..", "chk/.", "/", folder.as_str()] {
        let message = refusal(output_file().parse(&written(wrong)));
        assert!(message.starts_with("must name a file, not a folder | write "), "{wrong}: {message}");
    }
    assert_eq!(
        refusal(output_file().parse(&written("chk/"))),
        "must name a file, not a folder | write chk/projectors.safetensors"
    );
    assert!(refusal(output_file().parse(&written(""))).starts_with("must not be empty"));
}

#[test]
fn choices_list_what_is_allowed() {
    assert_eq!(choice::<Stage>(&written("mixed")), Ok(Stage::Mixed));
    assert_eq!(choice::<CollectiveChoice>(&yaml("nccl")), Ok(CollectiveChoice::Nccl));
    assert_eq!(refusal(choice::<Stage>(&written("nm"))), "must be one of nn, text, mixed");
    assert_eq!(refusal(choice::<Stage>(&written("NN"))), "must be one of nn, text, mixed | write nn");
    assert_eq!(refusal(choice::<Stage>(&yaml("3"))), "must be one of nn, text, mixed");
    assert_eq!(refusal(choice::<Loss>(&written("mae"))), "must be one of mse, huber, relative");
}

#[test]
fn tasks_are_a_list_without_repeats() {
    let both = Ok(vec![Task::Min, Task::Max]);
    assert_eq!(tasks(&yaml("[min, max]")), both);
    assert_eq!(tasks(&written("min,max")), both);
    assert_eq!(tasks(&written("[min, max]")), both);
    assert_eq!(tasks(&yaml("count")), Ok(vec![Task::Count]));
    let none = "must name at least one of min, max, mean, count";
    assert_eq!(refusal(tasks(&yaml("[]"))), none);
    assert_eq!(refusal(tasks(&written("[]"))), none);
    assert_eq!(refusal(tasks(&written(""))), none);
    assert_eq!(
        refusal(tasks(&written("min,max,min"))),
        "must not repeat a task, and min is there twice | name each task once; they are drawn with equal chance"
    );
    let list = "must be a list of min, max, mean, count";
    assert_eq!(refusal(tasks(&yaml("[min, sum]"))), format!("{list}, not of sum"));
    assert_eq!(refusal(tasks(&yaml("[min, 3]"))), format!("{list}, not of 3"));
    assert_eq!(refusal(tasks(&yaml("3"))), format!("{list}, not a number"));
    assert!(tasks(&written("min,")).is_err());
}

#[test]
fn durations_have_units() {
    let half = Ok(Duration::from_millis(500));
    for spelling in ["0.5", "0.5s", "0.5 s", "500ms", "500 ms", "5e-1s"] {
        assert_eq!(duration(&written(spelling)), half, "{spelling}");
        assert_eq!(duration(&yaml(spelling)), half, "{spelling}");
    }
    assert_eq!(duration(&written("2min")), Ok(Duration::from_secs(120)));
    assert_eq!(duration(&written("720h")), Ok(Duration::from_secs(30 * 86400)));
    assert_eq!(duration(&yaml("3")), Ok(Duration::from_secs(3)));
    assert_eq!(duration(&yaml("0")), Ok(Duration::ZERO));
    let allowed = "must be a time such as 0.5, 0.5s, 500ms or 2min";
    for wrong in ["abc", "", "s", "5 m", "5d", "nan", "inf", "1 2s", "5sms"] {
        assert_eq!(refusal(duration(&written(wrong))), allowed, "{wrong}");
    }
    assert_eq!(refusal(duration(&yaml("true"))), format!("{allowed}, not true or false"));
    assert_eq!(refusal(duration(&yaml("-1"))), "must not be negative");
    for wrong in ["721h", "1e300", "1e19"] {
        assert_eq!(refusal(duration(&written(wrong))), "must be at most 30 days, which is 720h");
    }
    assert_eq!(refusal(positive_duration(&yaml("0"))), "must be above 0");
    assert_eq!(refusal(positive_duration(&written("1e-12s"))), "must be above 0");
}

#[test]
fn devices_are_strict() {
    assert_eq!(device(&written("auto")), Ok(DeviceChoice::Auto));
    assert_eq!(device(&written("cpu")), Ok(DeviceChoice::Cpu));
    assert_eq!(device(&written("cuda")), Ok(DeviceChoice::Cuda(None)));
    assert_eq!(device(&yaml("cuda:1")), Ok(DeviceChoice::Cuda(Some(1))));
    let allowed = "must be auto, cpu, cuda or cuda:N";
    for wrong in ["cuda:", "cuda:-1", "cuda:+1", "cuda:x", "CPU", "", "cuda:99999999999999999999"] {
        assert_eq!(refusal(device(&written(wrong))), allowed, "{wrong}");
    }
    assert_eq!(refusal(device(&written("gpu"))), format!("{allowed} | write cuda"));
    assert_eq!(refusal(device(&yaml("0"))), format!("{allowed}, not a number"));
}

#[test]
fn resume_is_auto_or_a_path() {
    assert_eq!(resume(&written("auto")), Ok(Resume::Auto));
    assert_eq!(resume(&written("a/b")), Ok(Resume::File("a/b".into())));
    assert!(refusal(resume(&yaml("true"))).ends_with("write auto, or leave it out for a fresh start"));
    assert!(refusal(resume(&written(""))).starts_with("must not be empty"));
}

#[test]
fn run_ids_are_folder_names() {
    for right in ["a", "quick-start_2.1", "2024", &"x".repeat(128)] {
        assert_eq!(run_id(&written(right)), Ok(right.to_string()));
    }
    let letters = "must have letters, digits, '.', '_' and '-' only, not ";
    assert_eq!(refusal(run_id(&written("a/b"))), format!("{letters}'/'"));
    assert_eq!(refusal(run_id(&written("a b"))), format!("{letters}' '"));
    assert_eq!(refusal(run_id(&written("ä"))), format!("{letters}'ä'"));
    for wrong in [".", "..", ".hidden", "-x"] {
        assert_eq!(refusal(run_id(&written(wrong))), "must not start with '.' or '-'");
    }
    assert_eq!(refusal(run_id(&written(&"x".repeat(129)))), "must have at most 128 characters, and it has 129");
}
