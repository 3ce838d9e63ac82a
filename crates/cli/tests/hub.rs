//! Hub ids: found in the Hugging Face cache, or fetched from a hub, here a small server on loopback.

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Folder, Output, fixtures};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const ID: &str = "some-org/tiny.gpt_2";

/// Revisions that the hub knows, as they stand in an address.
const REVISIONS: [&str; 4] = ["main", "v1.0", "refs%2Fpr%2F1", COMMIT];

/// What the server does with one file, beside serving it.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    Status(u16),
    /// Sends the headers and half of the file, then hangs up; the first time only.
    HangUp,
    /// Sends nothing more after the headers.
    Silence,
    /// Waits before the body.
    Slow(Duration),
}

#[derive(Default)]
struct Seen {
    /// Path and `Authorization` of every request.
    requests: Vec<(String, Option<String>)>,
    hung_up: bool,
}

/// A hub with one model; it serves until the test's process ends.
struct Hub {
    endpoint: String,
    seen: Arc<Mutex<Seen>>,
}

impl Hub {
    fn new(fixture: &str, troubles: &[(&str, Trouble)]) -> Self {
        let mut files = HashMap::new();
        for entry in std::fs::read_dir(fixtures().join(fixture)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name != "reference.json" {
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let server = Arc::new(Server {
            endpoint: endpoint.clone(),
            files,
            troubles: troubles.iter().map(|(name, trouble)| ((*name).to_owned(), *trouble)).collect(),
            seen: seen.clone(),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // A client may hang up at any time.
                std::thread::spawn(move || drop(server.answer(stream)));
            }
        });
        Self { endpoint, seen }
    }

    fn requests(&self) -> Vec<(String, Option<String>)> {
        self.seen.lock().unwrap().requests.clone()
    }
}

struct Server {
    endpoint: String,
    files: HashMap<String, Vec<u8>>,
    troubles: HashMap<String, Trouble>,
    seen: Arc<Mutex<Seen>>,
}

impl Server {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let authorization = headers.get("authorization").cloned();
        self.seen.lock().unwrap().requests.push((path.clone(), authorization));
        let status = |stream: &mut TcpStream, status: &str| {
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        };
        // Large files lie elsewhere, as on the real hub.
        let known = REVISIONS.map(|revision| format!("/{ID}/resolve/{revision}/"));
        let resolved = known.iter().find_map(|prefix| path.strip_prefix(prefix.as_str()));
        let (name, elsewhere) = match (resolved, path.strip_prefix("/elsewhere/")) {
            (Some(name), _) => (name, false),
            (None, Some(name)) => (name, true),
            (None, None) => return status(&mut stream, "404 Not Found"),
        };
        let trouble = self.troubles.get(name).copied();
        if let Some(Trouble::Status(code)) = trouble {
            return status(&mut stream, &format!("{code} Refused"));
        }
        let Some(bytes) = self.files.get(name) else {
            return status(&mut stream, "404 Not Found");
        };
        let about = format!("x-repo-commit: {COMMIT}\r\nconnection: close\r\n");
        if name.ends_with(".safetensors") && !elsewhere {
            return write!(
                stream,
                "HTTP/1.1 302 Found\r\nlocation: {}/elsewhere/{name}\r\nx-linked-etag: \"etag-{name}\"\r\n\
                 etag: \"other\"\r\ncontent-length: 0\r\n{about}\r\n",
                self.endpoint
            );
        }
        let range = headers.get("range").map_or("bytes=0-", String::as_str);
        let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
        let start: usize = start.parse().unwrap_or(0);
        let end = end.parse().map_or(bytes.len(), |last: usize| last + 1).min(bytes.len());
        let part = &bytes[start.min(end)..end];
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {start}-{}/{}\r\n\
             accept-ranges: bytes\r\netag: \"etag-{name}\"\r\n{about}\r\n",
            part.len(),
            end.saturating_sub(1),
            bytes.len()
        )?;
        if part.len() > 1 {
            match trouble {
                Some(Trouble::HangUp) if !std::mem::replace(&mut self.seen.lock().unwrap().hung_up, true) => {
                    return stream.write_all(&part[..part.len() / 2]);
                }
                Some(Trouble::Silence) => std::thread::sleep(Duration::from_secs(600)),
                Some(Trouble::Slow(time)) => std::thread::sleep(time),
                _ => {}
            }
        }
        stream.write_all(part)
    }
}

/// What `hidden` says of three token ids.
fn hidden(folder: &Folder, model: &str, envs: &[(&str, &str)]) -> Output {
    folder.run_env(&["hidden", "--model", model, "--ids", "1,2,3", "--json"], envs)
}

fn expected(fixture: &str) -> String {
    let output = hidden(&Folder::new(), &fixtures().join(fixture).to_string_lossy(), &[]);
    assert!(output.status.success(), "{output}");
    output.stdout
}

fn agree(fixture: &str, output: &Output) {
    assert!(output.status.success(), "{output}");
    assert_eq!(output.stdout, expected(fixture));
}

/// The environment of a session that may use `hub`.
fn online<'a>(hub: &'a Hub, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", hub.endpoint.as_str())], more].concat()
}

fn refuse(output: &Output, said: &[&str]) {
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert_eq!(output.stdout, "", "{output}");
    assert!(!output.stderr.contains("panicked"), "{output}");
    for word in ["error:", "hint:"].iter().chain(said) {
        assert!(output.stderr.contains(word), "`{word}` is missing: {output}");
    }
}

/// Puts a fixture into a cache as `huggingface_hub` does, but for the links.
fn fill_cache(folder: &Folder, cache: &str, fixture: &str) -> String {
    let repository = format!("{cache}/models--{}", ID.replace('/', "--"));
    let snapshot = format!("{repository}/snapshots/{COMMIT}");
    folder.copy_fixture(fixture, &snapshot);
    folder.write(&format!("{repository}/refs/main"), format!("{COMMIT}\n"));
    snapshot
}

#[test]
fn a_cached_model_is_found_without_a_network() {
    let folder = Folder::new();
    fill_cache(&folder, "home/hub", "tokenizer");
    let home = folder.path().join("home").display().to_string();
    agree("tokenizer", &hidden(&folder, ID, &[("HF_HOME", &home)]));
    // The same by a relative path, and for those whose home it is.
    agree("tokenizer", &hidden(&folder, ID, &[("HF_HOME", "home")]));
    // HF_HUB_CACHE wins over HF_HOME.
    fill_cache(&folder, "cache", "sharded-bf16");
    agree("sharded-bf16", &hidden(&folder, ID, &[("HF_HOME", &home), ("HF_HUB_CACHE", "cache")]));
    // Without the network being forbidden, nothing is asked of it either.
    let hub = Hub::new("tokenizer", &[]);
    agree("sharded-bf16", &hidden(&folder, ID, &online(&hub, &[("HF_HUB_CACHE", "cache")])));
    assert_eq!(hub.requests(), []);
    // A run finds it too.
    let run = ["launch", "text", "--no-eval", "--model-name", ID, "--num-epochs", "1", "--num-batches", "2"];
    let output = folder.run_env(&run, &[("HF_HOME", &home)]);
    assert!(output.status.success(), "{output}");
}

#[test]
fn a_revision_is_found_in_the_cache_or_fetched() {
    for revision in ["v1.0", "refs/pr/1", COMMIT] {
        let (folder, hub) = (Folder::new(), Hub::new("tokenizer", &[]));
        let name = format!("{ID}@{revision}");
        agree("tokenizer", &hidden(&folder, &name, &online(&hub, &[])));
        let requests = hub.requests();
        let address = format!("/resolve/{}/config.json", revision.replace('/', "%2F"));
        assert!(requests.iter().any(|(path, _)| path.ends_with(&address)), "{requests:?}");
        // It is there now, and no other revision is.
        agree("tokenizer", &hidden(&folder, &name, &[]));
        refuse(&hidden(&folder, &format!("{ID}@v2"), &[]), &["@v2", "HF_HUB_OFFLINE"]);
        refuse(&hidden(&folder, &format!("{ID}@v2"), &online(&hub, &[])), &["@v2", "404"]);
    }
    // A commit of the cache has a snapshot and no name.
    let folder = Folder::new();
    let snapshot = folder.path().join(fill_cache(&folder, "cache", "tokenizer"));
    let envs = [("HF_HUB_CACHE", "cache")];
    let name = format!("{ID}@{COMMIT}");
    let run = ["launch", "text", "--no-eval", "--model-name", &name, "--num-epochs", "1", "--num-batches", "1"];
    let output = folder.run_env(&run, &envs);
    assert!(output.status.success(), "{output}");
    let inspected = folder.run_env(&["inspect", "chk/text.safetensors", "--json"], &envs);
    let about: serde_json::Value = serde_json::from_str(&inspected.stdout).expect("JSON");
    assert_eq!(about["base_model"], name, "{inspected}");
    // A link to a blob that is gone.
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("../../blobs/gone", snapshot.join("model.safetensors")).unwrap();
    refuse(&hidden(&folder, ID, &envs), &["its copy in cache lacks model.safetensors", "HF_HUB_OFFLINE"]);
}

#[test]
fn an_incomplete_cache_is_no_model() {
    let absent = |folder: &Folder| {
        let output = hidden(folder, ID, &[("HF_HUB_CACHE", "cache")]);
        refuse(&output, &[ID, "cache", "HF_HUB_OFFLINE", "HF_HOME"]);
    };
    let folder = Folder::new();
    absent(&folder);
    let snapshot = folder.path().join(fill_cache(&folder, "cache", "sharded-bf16"));
    std::fs::remove_file(snapshot.join("model-00003-of-00004.safetensors")).unwrap();
    absent(&folder);
    let folder = Folder::new();
    let snapshot = folder.path().join(fill_cache(&folder, "cache", "tokenizer"));
    std::fs::remove_file(snapshot.join("config.json")).unwrap();
    absent(&folder);
    let folder = Folder::new();
    fill_cache(&folder, "cache", "tokenizer");
    let main = folder.path().join("cache/models--some-org--tiny.gpt_2/refs/main");
    std::fs::write(main, "another").unwrap();
    absent(&folder);
}

#[test]
fn an_absent_model_is_fetched_once() {
    for fixture in ["tokenizer", "sharded-f32-prefixed"] {
        let folder = Folder::new();
        let hub = Hub::new(fixture, &[]);
        agree(fixture, &hidden(&folder, ID, &online(&hub, &[("HF_TOKEN", " hf_secret\n")])));
        let requests = hub.requests();
        let asked = |file: &str| requests.iter().any(|(path, _)| path.ends_with(file));
        assert!(asked("/resolve/main/config.json") && asked("/resolve/main/tokenizer.json"), "{requests:?}");
        for (path, authorization) in &requests {
            assert_eq!(authorization.as_deref(), Some("Bearer hf_secret"), "{path}");
        }
        // Now it is there, with and without the network.
        agree(fixture, &hidden(&folder, ID, &[]));
        agree(fixture, &hidden(&folder, ID, &online(&hub, &[])));
        assert_eq!(hub.requests().len(), requests.len(), "nothing is fetched twice");
        let main = folder.read("hf-home/hub/models--some-org--tiny.gpt_2/refs/main");
        assert_eq!(String::from_utf8_lossy(&main).trim(), COMMIT);
    }
}

#[test]
fn a_fetched_model_brings_its_tokenizer() {
    let folder = Folder::new();
    let hub = Hub::new("tokenizer", &[]);
    let text = |folder: &Folder, model: &str, envs: &[(&str, &str)]| {
        folder.run_env(&["hidden", "--model", model, "--text", "$$12.5&&", "--json"], envs)
    };
    // A slash at the end of the endpoint changes nothing, nor does a relative cache.
    let endpoint = format!("{}/", hub.endpoint);
    let envs = [("HF_HUB_OFFLINE", ""), ("HF_ENDPOINT", endpoint.as_str()), ("HF_HUB_CACHE", "here/cache")];
    let fetched = text(&folder, ID, &envs);
    assert!(fetched.status.success(), "{fetched}");
    let local = text(&folder, &fixtures().join("tokenizer").to_string_lossy(), &[]);
    assert_eq!(fetched.stdout, local.stdout);
    for (_, authorization) in hub.requests() {
        assert_eq!(authorization, None, "no token is made up");
    }
}

#[test]
fn a_broken_connection_is_taken_up_again() {
    let folder = Folder::new();
    let hub = Hub::new("tokenizer", &[("model.safetensors", Trouble::HangUp)]);
    agree("tokenizer", &hidden(&folder, ID, &online(&hub, &[])));
}

#[test]
fn workers_that_fetch_together_do_not_disturb_each_other() {
    let folder = Folder::new();
    // Slower than the hub client's own timeout for another process.
    let hub = Hub::new("tokenizer", &[("model.safetensors", Trouble::Slow(Duration::from_secs(8)))]);
    let run =
        ["launch", "nn", "--no-eval", "--workers", "2", "--model-name", ID, "--num-epochs", "1", "--num-batches", "2"];
    let output = folder.run_env(&run, &online(&hub, &[]));
    assert!(output.status.success(), "{output}");
}

#[test]
fn a_refusing_hub_is_one_clear_error() {
    let hub = Hub::new("tokenizer", &[]);
    refuse(
        &hidden(&Folder::new(), "some-org/absent", &online(&hub, &[])),
        &["some-org/absent", "404", "no such model"],
    );
    refuse(&hidden(&Folder::new(), "dmeo", &online(&hub, &[])), &["dmeo", "404", "no such model"]);
    let run = ["launch", "nn", "--model-name", "dmeo", "--num-epochs", "1", "--num-batches", "2"];
    refuse(&Folder::new().run_env(&run, &online(&hub, &[])), &["dmeo", "404"]);
    let cases: &[(&str, u16, &[&str])] = &[
        ("config.json", 401, &["config.json", "401", "HF_TOKEN"]),
        ("config.json", 500, &["config.json", "500"]),
        ("model.safetensors", 403, &["model.safetensors", "403", "HF_TOKEN"]),
        ("model.safetensors", 404, &["model.safetensors", "404"]),
        // A passing failure must not leave a model without its tokenizer.
        ("tokenizer.json", 503, &["tokenizer.json", "503"]),
    ];
    for (file, status, said) in cases {
        let folder = Folder::new();
        let hub = Hub::new("tokenizer", &[(file, Trouble::Status(*status))]);
        refuse(&hidden(&folder, ID, &online(&hub, &[])), said);
        // What was fetched before the failure is no model.
        refuse(&hidden(&folder, ID, &[]), &["HF_HUB_OFFLINE"]);
    }
    let hub = Hub::new("sharded-bf16", &[("model-00002-of-00004.safetensors", Trouble::Status(404))]);
    refuse(&hidden(&Folder::new(), ID, &online(&hub, &[])), &["model-00002-of-00004.safetensors", "404"]);
}

#[test]
fn an_absent_tokenizer_is_no_error() {
    let folder = Folder::new();
    let hub = Hub::new("tokenizer", &[("tokenizer.json", Trouble::Status(404))]);
    agree("tokenizer", &hidden(&folder, ID, &online(&hub, &[])));
}

#[test]
fn a_hub_out_of_reach_is_one_clear_error() {
    let folder = Folder::new();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for endpoint in
        [format!("http://{nobody}"), "nonsense".to_owned(), "http://".to_owned(), "ftp://127.0.0.1:1".to_owned()]
    {
        let envs = [("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", endpoint.as_str())];
        refuse(&hidden(&folder, ID, &envs), &[ID, "config.json"]);
    }
    let hub = Hub::new("tokenizer", &[]);
    folder.write("file", "");
    refuse(&hidden(&folder, ID, &online(&hub, &[("HF_HOME", "file")])), &[ID]);
    refuse(
        &hidden(&folder, ID, &online(&hub, &[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")])),
        &["HF_HUB_DOWNLOAD_TIMEOUT", "soon"],
    );
}

#[test]
fn a_silent_hub_is_given_up() {
    let hub = Hub::new("tokenizer", &[("model.safetensors", Trouble::Silence)]);
    let since = Instant::now();
    let output = hidden(&Folder::new(), ID, &online(&hub, &[("HF_HUB_DOWNLOAD_TIMEOUT", "1")]));
    refuse(&output, &[ID, "said nothing for 1 s"]);
    assert!(since.elapsed() < Duration::from_secs(20), "it took {:?}", since.elapsed());
}

#[test]
fn nothing_outside_the_cache_is_written() {
    let folder = Folder::new();
    let hub = Hub::new("tokenizer", &[]);
    agree("tokenizer", &hidden(&folder, ID, &online(&hub, &[("HF_HUB_CACHE", "cache")])));
    for (path, _) in folder.contents() {
        assert!(path.starts_with(folder.path().join("cache")), "{}", path.display());
        assert!(!path.to_string_lossy().ends_with(".part"), "{}", path.display());
    }
}
