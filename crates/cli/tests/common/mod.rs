//! Runs the real binary in a temporary folder, with a clean environment, and never waits for ever.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub mod fake_cuda;
pub mod proxy;
pub mod run;
pub mod words;

/// How long a process may take.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Variables that would change what the binary does, besides every `NUMALIGN_…` and `HF_…`.
const FOREIGN_VARIABLES: &[&str] = &[
    "MASTER_ADDR",
    "MASTER_PORT",
    "LOCAL_RANK",
    "SLURM_LOCALID",
    "CUDA_VISIBLE_DEVICES",
    "NCCL_MULTI_RANK_GPU_ENABLE",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
];

/// A temporary folder, the current directory of every process that it starts.
pub struct Folder {
    folder: tempfile::TempDir,
    program: PathBuf,
}

/// What a process left behind.
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.stdout, self.stderr)
    }
}

impl Folder {
    /// The binary of this build runs here, or the one that `NUMALIGN_TEST_PROGRAM` names: an older one, to see which tests
    /// it fails.
    pub fn new() -> Self {
        let other = std::env::var_os("NUMALIGN_TEST_PROGRAM").map(PathBuf::from);
        Self::of_program(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_numalign").into()))
    }

    /// A folder in which another build of the binary runs.
    pub fn of_program(program: impl Into<PathBuf>) -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), program: program.into() }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The binary that runs here.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Lets every user write here; the path of a copy of the binary that they can run.
    pub fn open_to_every_user(&self) -> PathBuf {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(self.path(), open).expect("our folder");
        let copy = self.path().join("numalign");
        std::fs::copy(self.program(), &copy).expect("a copy that every user can run");
        copy
    }

    /// Writes `bytes` to `name` in this folder, making folders on the way.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
        }
        std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.path().join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Copies the files of the repository's `testdata/<fixture>` to `<to>` in this folder.
    pub fn copy_fixture(&self, fixture: &str, to: &str) -> PathBuf {
        let target = self.path().join(to);
        std::fs::create_dir_all(&target).unwrap_or_else(|error| panic!("{}: {error}", target.display()));
        for entry in std::fs::read_dir(fixtures().join(fixture)).expect("the fixture's folder") {
            let from = entry.expect("an entry").path();
            let to = target.join(from.file_name().expect("a name"));
            std::fs::copy(&from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        }
        target
    }

    /// Every file below this folder with its bytes, sorted by name.
    pub fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let bytes = std::fs::read(&path).unwrap_or_default();
                    found.push((path, bytes));
                }
            }
        }
        found.sort();
        found
    }

    /// Runs to the end; fails the test when it takes longer than [`TIMEOUT`].
    pub fn run(&self, args: &[&str]) -> Output {
        self.run_env(args, &[])
    }

    pub fn run_env(&self, args: &[&str], envs: &[(&str, &str)]) -> Output {
        self.spawn_env(args, envs).wait()
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        self.spawn_env(args, &[])
    }

    /// Starts it with a clean environment (no network: hub ids come from an empty cache) and `envs` on top.
    pub fn spawn_env(&self, args: &[&str], envs: &[(&str, &str)]) -> Child {
        self.start(Command::new(&self.program), args, envs)
    }

    /// As [`Folder::spawn`], with no more than `descriptors` open files.
    pub fn spawn_with_few_descriptors(&self, descriptors: u32, args: &[&str]) -> Child {
        self.spawn_shell(&format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""), args)
    }

    /// Starts a shell on `script`, in which `"$0" "$@"` is the binary with `args`, as the leader of a process group.
    pub fn spawn_shell(&self, script: &str, args: &[&str]) -> Child {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&self.program).process_group(0);
        self.start(command, args, &[])
    }

    fn start(&self, mut command: Command, args: &[&str], envs: &[(&str, &str)]) -> Child {
        without_foreign_variables(&mut command);
        command.env("HF_HOME", self.path().join("hf-home")).env("HF_HUB_OFFLINE", "1");
        command.args(args).envs(envs.iter().copied()).current_dir(self.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let stdout = Stream::new(child.stdout.take().expect("piped"));
        let stderr = Stream::new(child.stderr.take().expect("piped"));
        Child { name: args.join(" "), child, stdout, stderr, since: Instant::now() }
    }
}

/// Takes away the variables of this process that would change what the binary does, those of the tests themselves among them.
pub fn without_foreign_variables(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("NUMALIGN_") || text.starts_with("HF_") || FOREIGN_VARIABLES.contains(&&*text) {
            command.env_remove(&name);
        }
    }
    command
}

/// Arguments put together from parts.
pub fn words<'a>(parts: &[&[&'a str]]) -> Vec<&'a str> {
    parts.concat()
}

/// The output ends with `code` and says every one of `said` on stderr.
pub fn check(what: &str, output: &Output, code: i32, said: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{what}: {output}");
    assert!(!output.stderr.contains("panicked"), "{what}: {output}");
    for word in said {
        assert!(output.stderr.contains(word), "{what} does not say `{word}`: {output}");
    }
}

/// The repository's `testdata/`.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

/// A running process; killed when dropped.
pub struct Child {
    name: String,
    child: std::process::Child,
    stdout: Stream,
    stderr: Stream,
    since: Instant,
}

impl Child {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end; kills it and fails the test when it takes longer than [`TIMEOUT`] since its start.
    pub fn wait(&mut self) -> Output {
        self.wait_at_most(TIMEOUT)
    }

    /// As [`Child::wait`], with another limit.
    pub fn wait_at_most(&mut self, limit: Duration) -> Output {
        let until = self.since + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a process of ours") {
                break status;
            }
            if Instant::now() >= until {
                self.hung(limit);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        // A grandchild that outlives it would hold the pipes open.
        let until = Instant::now() + Duration::from_secs(10);
        while !(self.stdout.ended() && self.stderr.ended()) {
            assert!(Instant::now() < until, "`{}` ended but something still holds its output", self.name);
            std::thread::sleep(Duration::from_millis(2));
        }
        Output { status, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }

    /// Waits until stderr holds `text`; fails the test when the process ends first.
    pub fn wait_for_stderr(&mut self, text: &str) {
        while !self.stderr.text().contains(text) {
            if self.child.try_wait().expect("a process of ours").is_some() {
                // What it said last may still be on its way.
                let output = self.wait();
                assert!(output.stderr.contains(text), "`{}` ended before it said `{text}`: {output}", self.name);
                return;
            }
            if self.since.elapsed() > TIMEOUT {
                self.hung(TIMEOUT);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().expect("a process of ours").is_some()
    }

    /// What it has said on stderr until now.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// What it has said on stdout until now.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    fn hung(&mut self, limit: Duration) -> ! {
        // It may have ended just now.
        let _ = self.child.kill();
        let _ = self.child.wait();
        panic!(
            "`{}` did not end within {limit:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.name,
            self.stdout.text(),
            self.stderr.text()
        );
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects what a process writes, line by line, while it runs.
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn new(pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                sink.lock().expect("no reader panics").append(&mut line);
            }
        });
        Self { bytes, reader }
    }

    fn ended(&self) -> bool {
        self.reader.is_finished()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no reader panics")).into_owned()
    }
}
