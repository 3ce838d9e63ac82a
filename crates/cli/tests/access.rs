//! The door: who has no token, no certificate, another model or nothing to say is refused or dropped in words, and the run
//! ends in the bytes of an undisturbed one. Real processes, real sockets.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::{Child, Folder, Output, check, words};
use numalign_protocol as proto;
use numalign_protocol::coordinator_client::CoordinatorClient;
use numalign_protocol::coordinator_message::Message as FromCoordinator;
use numalign_protocol::worker_message::Message;
use tonic::Code;
use tonic::codegen::tokio_stream;
use tonic::transport::Channel;

const FAILED: i32 = 1;
const USAGE: i32 = 2;

const TINY: &[&str] = &["--workers", "1", "--num-epochs", "1", "--num-batches", "2"];
const SECRET: &str = "open-sesame/4711";
const ANY_PORT: &str = "127.0.0.1:0";

fn succeed(what: &str, output: &Output) {
    assert!(output.status.success() && !output.stderr.contains("panicked"), "{what}: {output}");
}

/// The checkpoint of the undisturbed run of [`TINY`].
fn reference() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = Folder::new();
        succeed("the reference", &folder.run(&words(&[&["launch", "nn", "--no-eval"], TINY])));
        folder.read("chk/nn.safetensors")
    })
}

/// A coordinator of the run [`TINY`] that listens somewhere on loopback, and its port.
struct Listening {
    child: Child,
    port: u16,
}

impl Listening {
    fn start(folder: &Folder, args: &[&str], envs: &[(&str, &str)]) -> Self {
        Self::of(folder.spawn_env(&words(&[&["coordinator", "nn", "--listen", ANY_PORT], TINY, args]), envs))
    }

    fn of(mut child: Child) -> Self {
        child.wait_for_stderr("start workers with");
        let stderr = child.stderr();
        let after = stderr.split("listening on ").nth(1).expect("the address");
        let address = after.split(';').next().expect("the address");
        let port = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        Self { child, port }
    }

    fn url(&self, scheme: &str, host: &str) -> String {
        format!("{scheme}://{host}:{}", self.port)
    }

    fn plain(&self) -> String {
        self.url("http", "127.0.0.1")
    }

    /// The run ends well, in the bytes of the undisturbed one.
    fn ends_unharmed(&mut self, folder: &Folder) -> Output {
        let output = self.child.wait();
        succeed("the coordinator", &output);
        assert!(folder.read("chk/nn.safetensors") == reference(), "the same bytes as the undisturbed run");
        output
    }
}

fn worker(folder: &Folder, url: &str, args: &[&str], envs: &[(&str, &str)]) -> Output {
    folder.run_env(&words(&[&["worker", "--coordinator", url], args]), envs)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn connect(url: &str) -> CoordinatorClient<Channel> {
    CoordinatorClient::connect(url.to_owned()).await.unwrap()
}

fn hello(host: &str) -> proto::WorkerMessage {
    let hello = proto::Hello { protocol: proto::PROTOCOL, host: host.to_owned(), pid: 1, ..Default::default() };
    proto::WorkerMessage { message: Some(Message::Hello(hello)) }
}

#[test]
fn a_worker_without_the_token_is_refused_and_the_run_goes_on() {
    let folder = Folder::new();
    folder.write("token", format!("{SECRET}\n"));
    folder.write("other", "close-sesame");
    let mut coordinator = Listening::start(&folder, &["--token-file", "token"], &[]);
    let url = coordinator.plain();
    let none = worker(&folder, &url, &[], &[]);
    check("no token", &none, FAILED, &["error:", "no join token", "hint:", "NUMALIGN_TOKEN", "--token-file"]);
    let wrong = worker(&folder, &url, &["--token-file", "other"], &[]);
    check("a wrong token", &wrong, FAILED, &["error:", "join token is not this run's", "hint:", "--token-file"]);
    // The file counts more than the environment.
    let wrong = worker(&folder, &url, &["--token-file", "other"], &[("NUMALIGN_TOKEN", SECRET)]);
    check("a wrong token beside a right one", &wrong, FAILED, &["not this run's"]);
    let right = worker(&folder, &url, &[], &[("NUMALIGN_TOKEN", SECRET)]);
    succeed("the right token", &right);
    let output = coordinator.ends_unharmed(&folder);
    for said in ["no join token came", "join token is not this run's", "refused 127.0.0.1"] {
        assert!(output.stderr.contains(said), "{said}: {output}");
    }
    for text in [none.stderr, wrong.stderr, right.stderr, output.stderr] {
        assert!(!text.contains("sesame"), "a token is in the log: {text}");
    }
    for (path, bytes) in folder.contents() {
        let holds = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        assert!(!holds || path.ends_with("token"), "the token is in {}", path.display());
    }
}

#[test]
fn what_is_no_token_is_refused_before_anything_starts() {
    let folder = Folder::new();
    folder.write("empty", "\n");
    folder.write("two-words", "open sesame");
    folder.write("long", "x".repeat(5000));
    let listen = ["coordinator", "nn", "--listen", ANY_PORT];
    for command in [&listen[..], &["worker", "--coordinator", "http://127.0.0.1:9"], &["launch", "nn"]] {
        for (file, said) in [
            ("empty", "empty"),
            ("two-words", "visible ASCII"),
            ("long", "more than 1024"),
            ("none", "none"),
            ("/dev/zero", "visible ASCII"),
        ] {
            let output = folder.run(&words(&[command, &["--token-file", file]]));
            let said = if file == "/dev/zero" { "/dev/zero" } else { said };
            check(file, &output, USAGE, &["error:", said, "hint:"]);
            assert!(!output.stderr.contains("open sesame"), "{output}");
        }
        let output = folder.run_env(command, &[("NUMALIGN_TOKEN", "open sesame")]);
        check("the environment", &output, USAGE, &["error:", "NUMALIGN_TOKEN", "hint:"]);
    }
    assert!(!folder.path().join("chk").exists(), "nothing started");
}

#[test]
fn beyond_loopback_a_token_or_the_users_word_is_needed() {
    let folder = Folder::new();
    let listen = |address| words(&[&["coordinator", "nn", "--listen", address], TINY]);
    for address in ["0.0.0.0:0", "[::]:0"] {
        let output = folder.run(&listen(address));
        if output.stderr.contains("cannot listen on [::]") {
            // A machine without IPv6.
            continue;
        }
        let said = ["error:", "without a join token", "hint:", "NUMALIGN_TOKEN", "--token-file", "--insecure"];
        check(address, &output, USAGE, &said);
    }
    assert!(!folder.path().join("chk").exists(), "nothing started");
    drop(Listening::of(folder.spawn(&words(&[&listen("0.0.0.0:0"), &["--insecure"]]))));
    let mut coordinator = Listening::of(folder.spawn_env(&listen("0.0.0.0:0"), &[("NUMALIGN_TOKEN", SECRET)]));
    succeed("the worker", &worker(&folder, &coordinator.plain(), &[], &[("NUMALIGN_TOKEN", SECRET)]));
    coordinator.ends_unharmed(&folder);
}

#[test]
fn every_call_but_the_health_services_needs_the_token() {
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[("NUMALIGN_TOKEN", SECRET)]);
    let url = coordinator.plain();
    runtime().block_on(async {
        let mut client = connect(&url).await;
        let generation = Some(proto::Generation { incarnation: 1, number: 1 });
        let refused = client.status(proto::StatusRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        let rows = vec![proto::Row { micro_batch: 0, values: vec![0; 8] }];
        let request = proto::ReduceRequest { generation, member: 1, unit: 0, rows, more: false };
        assert_eq!(client.reduce(request).await.unwrap_err().code(), Code::Unauthenticated);
        let credit = tokio_stream::iter([proto::WorkCredit { generation, member: 1, units: 1 }]);
        assert_eq!(client.work(credit).await.unwrap_err().code(), Code::Unauthenticated);
        let greeting = tokio_stream::iter([hello("elsewhere")]);
        assert_eq!(client.control(greeting).await.unwrap_err().code(), Code::Unauthenticated);

        use tonic_health::pb::health_client::HealthClient;
        use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
        let mut health = HealthClient::new(Channel::from_shared(url.clone()).unwrap().connect().await.unwrap());
        let service = "numalign.v1.Coordinator".to_owned();
        let reply = health.check(HealthCheckRequest { service }).await.unwrap().into_inner();
        assert_eq!(reply.status(), ServingStatus::Serving);
    });
    let status = ["status", "--json", "--coordinator", &url];
    check("status without", &folder.run(&status), FAILED, &["error:", "no join token", "hint:", "--token-file"]);
    let told = folder.run_env(&status, &[("NUMALIGN_TOKEN", SECRET)]);
    succeed("status", &told);
    assert!(told.stdout.contains("\"phase\":\"waiting\""), "{told}");
    succeed("the worker", &worker(&folder, &url, &[], &[("NUMALIGN_TOKEN", SECRET)]));
    coordinator.ends_unharmed(&folder);
}

#[test]
fn nobody_speaks_for_a_member_of_another_connection() {
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[]);
    let url = coordinator.plain();
    runtime().block_on(async {
        let mut member = connect(&url).await;
        let greeting = tokio_stream::StreamExt::chain(tokio_stream::iter([hello("here")]), tokio_stream::pending());
        let mut inbound = member.control(greeting).await.unwrap().into_inner();
        let Some(FromCoordinator::Welcome(welcome)) = inbound.message().await.unwrap().unwrap().message else {
            panic!("not welcome");
        };
        // Another connection knows everything that there is to know, and guesses the rest.
        let mut stranger = connect(&url).await;
        let generation = Some(proto::Generation { incarnation: welcome.incarnation, number: 1 });
        let request =
            proto::ReduceRequest { generation, member: welcome.member, unit: 0, rows: Vec::new(), more: false };
        let refused = stranger.reduce(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("did not join on this connection"), "{refused}");
        let credit = tokio_stream::iter([proto::WorkCredit { generation, member: welcome.member, units: 1 }]);
        let refused = stranger.work(credit).await.unwrap_err();
        assert!(refused.message().contains("did not join on this connection"), "{refused}");
        // The member itself is heard: its generation has not begun, that is all.
        assert!(!member.reduce(request).await.unwrap().into_inner().complete);
    });
    succeed("the worker", &worker(&folder, &url, &[], &[]));
    coordinator.ends_unharmed(&folder);
}

#[test]
fn launch_hands_the_token_to_its_processes_out_of_sight() {
    let folder = Folder::new();
    folder.write("token", SECRET);
    let settings = ["--workers", "2", "--num-epochs", "150", "--micro-batch-size", "4"];
    let plain = words(&[&["launch", "nn", "--no-eval"], &settings]);
    let mut launch = folder.spawn(&words(&[&plain, &["--token-file", "token"]]));
    launch.wait_for_stderr("rank 1");
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if parent == Some(launch.id()) {
            seen += 1;
            assert!(!String::from_utf8_lossy(&read("cmdline")).contains(SECRET), "a command line holds the token");
            assert!(String::from_utf8_lossy(&read("environ")).contains(SECRET), "a child has no token");
        }
    }
    assert_eq!(seen, 3, "a coordinator and two workers");
    let output = launch.wait();
    succeed("launch", &output);
    assert!(!output.stderr.contains(SECRET), "{output}");
    // A token changes no byte.
    succeed("launch without", &folder.run(&words(&[&plain, &["--run-id", "without"]])));
    assert!(folder.read("chk/nn.safetensors") == folder.read("chk/without.safetensors"));
}

/// `numalign cert` for `hosts`, in a folder of its own.
fn certificates(hosts: &[&str]) -> Folder {
    let folder = Folder::new();
    succeed("cert", &folder.run(&words(&[&["cert", "--out", "."], hosts])));
    folder
}

fn file(folder: &Folder, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

#[test]
fn certificates_are_made_for_their_owner_alone_and_never_replaced() {
    let folder = Folder::new();
    let output = folder.run(&["cert", "--out", "tls/dev", "localhost", "10.0.0.1", "::1"]);
    succeed("cert", &output);
    for (name, mode) in [
        ("ca.pem", 0o644),
        ("ca-key.pem", 0o600),
        ("coordinator.pem", 0o644),
        ("coordinator-key.pem", 0o600),
        ("worker.pem", 0o644),
        ("worker-key.pem", 0o600),
    ] {
        let path = folder.path().join("tls/dev").join(name);
        let found = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        // The user's mask may take rights away, not add any.
        assert_eq!(found | mode, mode, "{name}");
        assert!(mode != 0o600 || found == 0o600, "{name}");
        assert!(output.stderr.contains(name), "{name}: {output}");
    }
    let before = folder.contents();
    let again = folder.run(&["cert", "--out", "tls/dev", "localhost"]);
    check("again", &again, FAILED, &["error:", "tls/dev/ca.pem", "there already", "hint:", "--out"]);
    assert!(folder.contents() == before, "not a byte changed");
    // One file that is in the way is enough, and nothing is left beside it.
    folder.write("some/worker-key.pem", "mine");
    check("one", &folder.run(&["cert", "--out", "some", "localhost"]), FAILED, &["worker-key.pem", "there already"]);
    assert_eq!(std::fs::read_dir(folder.path().join("some")).unwrap().count(), 1);
    for host in ["http://localhost", "localhost:7400", "a b", ""] {
        check(host, &folder.run(&["cert", "--out", "x", host]), USAGE, &["error:", "host name", "hint:"]);
    }
    check("no host", &folder.run(&["cert", "--out", "x"]), USAGE, &["HOST"]);
    folder.write("file", "");
    check("a file", &folder.run(&["cert", "--out", "file", "localhost"]), FAILED, &["error:", "file"]);
    check("a file above", &folder.run(&["cert", "--out", "file/x", "localhost"]), FAILED, &["error:", "file/x"]);
    assert!(!folder.path().join("x").exists());
}

#[test]
fn tls_keeps_out_whoever_cannot_be_sure_of_the_coordinator() {
    let (certs, others) = (certificates(&["localhost", "127.0.0.1"]), certificates(&["localhost", "127.0.0.1"]));
    let folder = Folder::new();
    let (cert, key) = (file(&certs, "coordinator.pem"), file(&certs, "coordinator-key.pem"));
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    let mut coordinator = Listening::start(&folder, &tls, &[("NUMALIGN_TOKEN", SECRET)]);
    assert!(coordinator.child.stderr().contains("https://HOST"), "{}", coordinator.child.stderr());
    let token = [("NUMALIGN_TOKEN", SECRET)];
    let secure = coordinator.url("https", "127.0.0.1");

    let plain = worker(&folder, &coordinator.plain(), &[], &token);
    check("a plain client", &plain, FAILED, &["error:", "takes TLS connections only", "hint:", "https://"]);
    let ca = file(&others, "ca.pem");
    let wrong = worker(&folder, &secure, &["--tls-ca", &ca], &token);
    check("another CA", &wrong, FAILED, &["error:", "not signed by that CA", &ca, "hint:", "--tls-ca"]);
    let ca = file(&certs, "ca.pem");
    let none = worker(&folder, &secure, &["--tls-ca", &ca], &[]);
    check("TLS but no token", &none, FAILED, &["error:", "no join token"]);
    let scheme = worker(&folder, &coordinator.plain(), &["--tls-ca", &ca], &token);
    check("http:// with a CA", &scheme, USAGE, &["error:", "https://"]);
    check("https:// without a CA", &worker(&folder, &secure, &[], &token), USAGE, &["error:", "--tls-ca", "hint:"]);

    let by_name = coordinator.url("https", "localhost");
    let status = folder.run_env(&["status", "--coordinator", &by_name, "--tls-ca", &ca], &token);
    succeed("status", &status);
    assert!(status.stdout.contains("waiting"), "{status}");
    succeed("the right CA", &worker(&folder, &by_name, &["--tls-ca", &ca], &token));
    let output = coordinator.ends_unharmed(&folder);
    for said in ["takes TLS connections only", "TLS handshake failed", "UnknownCA", "no join token"] {
        assert!(output.stderr.contains(said), "{said}: {output}");
    }
}

/// A coordinator's certificate for 127.0.0.1 that expired in 2001, its key, and its CA.
fn expired(folder: &Folder) -> [String; 3] {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    leaf.not_before = rcgen::date_time_ymd(2000, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let leaf_pem = leaf.signed_by(&key, &issuer).unwrap().pem();
    [("cert.pem", leaf_pem), ("key.pem", key.serialize_pem()), ("ca.pem", ca_pem)]
        .map(|(name, text)| folder.write(name, text).display().to_string())
}

#[test]
fn an_expired_certificate_and_one_for_another_host_are_told_apart() {
    let elsewhere = certificates(&["elsewhere.test"]);
    let old = Folder::new();
    let [cert, key, ca] = expired(&old);
    let named = ["coordinator.pem", "coordinator-key.pem", "ca.pem"].map(|name| file(&elsewhere, name));
    for ([cert, key, ca], said) in
        [([cert, key, ca], "it has expired"), (named, "it is not for 127.0.0.1 but for elsewhere.test")]
    {
        let folder = Folder::new();
        let coordinator = Listening::start(&folder, &["--tls-cert", &cert, "--tls-key", &key], &[]);
        let output = worker(&folder, &coordinator.url("https", "127.0.0.1"), &["--tls-ca", &ca], &[]);
        check(said, &output, FAILED, &["error:", "coordinator's certificate", said, "hint:"]);
    }
}

#[test]
fn tls_on_a_plain_port_is_told_on_both_sides() {
    let certs = certificates(&["127.0.0.1"]);
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[]);
    let ca = file(&certs, "ca.pem");
    let wait = [("NUMALIGN_COORDINATOR_WAIT", "700ms")];
    let output = worker(&folder, &coordinator.url("https", "127.0.0.1"), &["--tls-ca", &ca], &wait);
    check("TLS to a plain port", &output, FAILED, &["error:", "does not speak TLS", "http://", "hint:"]);
    succeed("the worker", &worker(&folder, &coordinator.plain(), &[], &[]));
    let output = coordinator.ends_unharmed(&folder);
    assert!(output.stderr.contains("it speaks TLS, this coordinator does not"), "{output}");
}

#[test]
fn mutual_tls_keeps_out_whoever_has_no_certificate_of_the_ca() {
    let (certs, others) = (certificates(&["127.0.0.1"]), certificates(&["127.0.0.1"]));
    let folder = Folder::new();
    let [cert, key, ca] = ["coordinator.pem", "coordinator-key.pem", "ca.pem"].map(|name| file(&certs, name));
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
    let mut coordinator = Listening::start(&folder, &tls, &[]);
    let url = coordinator.url("https", "127.0.0.1");
    // The verdict on a client's certificate comes late; a lost one is asked for again, not for long.
    let none = worker(&folder, &url, &["--tls-ca", &ca], &[]);
    check("no certificate", &none, FAILED, &["error:", "demands a client certificate", "hint:", "--tls-cert"]);
    let [cert, key] = ["worker.pem", "worker-key.pem"].map(|name| file(&others, name));
    let other = worker(&folder, &url, &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key], &[]);
    check("another CA's", &other, FAILED, &["error:", "does not accept this side's certificate", "hint:"]);
    let [cert, key] = ["worker.pem", "worker-key.pem"].map(|name| file(&certs, name));
    succeed("the CA's", &worker(&folder, &url, &["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key], &[]));
    let output = coordinator.ends_unharmed(&folder);
    assert!(output.stderr.contains("TLS handshake failed"), "{output}");
}

#[test]
fn files_that_do_not_fit_together_are_refused_before_anything_starts() {
    let (certs, others) = (certificates(&["127.0.0.1"]), certificates(&["127.0.0.1"]));
    let folder = Folder::new();
    let [cert, key, ca] = ["coordinator.pem", "coordinator-key.pem", "ca.pem"].map(|name| file(&certs, name));
    let foreign = file(&others, "coordinator-key.pem");
    let listen = ["coordinator", "nn", "--listen", ANY_PORT];
    let join = ["worker", "--coordinator", "https://127.0.0.1:9"];
    let cases: &[(&[&str], &[&str], &str)] = &[
        (&listen, &["--tls-cert", &cert], "--tls-key"),
        (&listen, &["--tls-key", &key], "--tls-cert"),
        (&listen, &["--tls-ca", &ca], "--tls-cert"),
        (&listen, &["--tls-cert", &cert, "--tls-key", &foreign], "not the key of the certificate"),
        (&listen, &["--tls-cert", &key, "--tls-key", &key], "no certificate"),
        (&listen, &["--tls-cert", "none.pem", "--tls-key", &key], "none.pem"),
        (&join, &["--tls-cert", &cert, "--tls-key", &key], "--tls-ca"),
        (&join, &["--tls-ca", &key], "no certificate"),
        (&join, &["--tls-ca", "none.pem"], "none.pem"),
        (&join, &["--tls-ca", &ca, "--tls-cert", &cert], "--tls-key"),
    ];
    for (command, args, said) in cases {
        check(said, &folder.run(&words(&[command, args])), USAGE, &["error:", said]);
    }
    assert!(!folder.path().join("chk").exists(), "nothing started");
}

#[test]
fn a_worker_with_another_base_model_is_refused_and_the_run_goes_on() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    folder.copy_fixture("small-f32", "model");
    elsewhere.copy_fixture("one-layer", "model");
    let model = ["--model-name", "model"];
    succeed("alone", &folder.run(&words(&[&["launch", "nn", "--no-eval", "--run-id", "alone"], TINY, &model])));
    // Two are waited for, so that the run cannot be over before the second came.
    let two =
        ["--workers", "2", "--num-epochs", "1", "--num-batches", "2", "--batch-size", "8", "--micro-batch-size", "8"];
    let args = words(&[&["coordinator", "nn", "--listen", ANY_PORT], &two, &model]);
    let mut coordinator = Listening::of(folder.spawn(&args));
    let url = coordinator.plain();
    let mut first = folder.spawn(&["worker", "--coordinator", &url]);
    coordinator.child.wait_for_stderr("fingerprint");
    let other = worker(&elsewhere, &url, &[], &[]);
    check("another model", &other, FAILED, &["error:", "frozen model has fingerprint", "this run's has", "hint:"]);
    let mut second = folder.spawn(&["worker", "--coordinator", &url]);
    succeed("the coordinator", &coordinator.child.wait());
    succeed("the first", &first.wait());
    succeed("the second", &second.wait());
    assert!(coordinator.child.stderr().contains("frozen model has fingerprint"), "{}", coordinator.child.stderr());
    assert!(folder.read("chk/nn.safetensors") == folder.read("chk/alone.safetensors"), "the same bytes");
}

/// A figure of `/proc/<pid>/status`, in KiB.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {status}"));
    line.split_whitespace().nth(1).and_then(|figure| figure.parse().ok()).expect("a figure")
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn messages_larger_than_any_honest_one_are_refused_unread() {
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[]);
    let (url, pid) = (coordinator.plain(), coordinator.child.id());
    let before = memory(pid, "VmHWM");
    runtime().block_on(async {
        let mut client = connect(&url).await.max_encoding_message_size(usize::MAX);
        for _ in 0..5 {
            let greeting = tokio_stream::iter([hello(&"x".repeat(20 << 20))]);
            let refused = client.control(greeting).await.unwrap_err();
            assert!(refused.message().contains("too large"), "{refused}");
            let rows = vec![proto::Row { micro_batch: 0, values: vec![0; 20 << 20] }];
            let request = proto::ReduceRequest { rows, ..Default::default() };
            let refused = client.reduce(request).await.unwrap_err();
            assert!(refused.message().contains("too large"), "{refused}");
        }
        // What it takes for a name it does not keep whole.
        let greeting = tokio_stream::StreamExt::chain(
            tokio_stream::iter([hello(&format!("evil\x1b[2J{}", "x".repeat(8 << 20)))]),
            tokio_stream::pending(),
        );
        let mut inbound = client.control(greeting).await.unwrap().into_inner();
        assert!(inbound.message().await.unwrap().is_some(), "welcome");
        let status = client.status(proto::StatusRequest {}).await.unwrap().into_inner();
        let host = &status.workers[0].host;
        assert!(host.len() < 200 && host.starts_with("evil") && !host.contains('\x1b'), "{host:?}");
    });
    let grown = memory(pid, "VmHWM") - before;
    assert!(grown < 64 << 10, "it grew by {grown} KiB");
    succeed("the worker", &worker(&folder, &url, &[], &[]));
    coordinator.ends_unharmed(&folder);
}

/// True once the other side closed it.
fn closed(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 256];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            // A greeting of the server.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

/// Connections held at once: as many of `wanted` as this process may open.
fn may_hold(wanted: usize) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    limit.maximum.map_or(wanted, |most| wanted.min(most as usize - 200))
}

#[test]
fn ten_thousand_connections_that_say_nothing_harm_no_run() {
    let folder = Folder::new();
    let held = may_hold(10_000);
    let mut coordinator = Listening::start(&folder, &[], &[("NUMALIGN_TOKEN", SECRET)]);
    let (url, pid) = (coordinator.plain(), coordinator.child.id());
    let before = memory(pid, "VmHWM");
    let beginnings: [&[u8]; 8] = [
        b"",
        b"",
        b"P",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"",
    ];
    let mut silent: Vec<TcpStream> = Vec::new();
    let mut most = 0;
    for index in 0..10_000usize {
        if silent.len() == held {
            silent.drain(..held / 2);
        }
        let mut stream = TcpStream::connect(("127.0.0.1", coordinator.port)).unwrap();
        // It may have been dropped already.
        let _ = stream.write_all(beginnings[index % beginnings.len()]);
        stream.set_nonblocking(true).unwrap();
        silent.push(stream);
        if index % 100 == 0 {
            most = most.max(descriptors(pid));
        }
        if index == 5_000 {
            // In the midst of it, whoever speaks is heard.
            let wait = [("NUMALIGN_COORDINATOR_WAIT", "20s")];
            check("no token", &worker(&folder, &url, &[], &wait), FAILED, &["no join token"]);
        }
    }
    // 256 and one per worker of max_workers unknown, a few on their way out, and the process's own.
    assert!(most < 256 + 64 + 80, "{most} descriptors");
    // All but the few that are within their time are closed from the other side; soon those are, too.
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let open = silent.iter_mut().filter_map(|stream| (!closed(stream)).then_some(())).count();
        if open == 0 {
            break;
        }
        assert!(Instant::now() < until, "{open} silent connections are still open");
        std::thread::sleep(Duration::from_millis(50));
    }
    let grown = memory(pid, "VmHWM") - before;
    eprintln!("{held} held at once: at most {most} descriptors, {grown} KiB more at the peak");
    assert!(grown < 64 << 10, "it grew by {grown} KiB");
    succeed("the worker", &worker(&folder, &url, &[], &[("NUMALIGN_TOKEN", SECRET)]));
    let output = coordinator.ends_unharmed(&folder);
    assert!(output.stderr.contains("made no call within") || output.stderr.contains("not gRPC"), "{output}");
    assert!(output.stderr.lines().count() < 200, "the log is bounded: {output}");
}

#[test]
fn a_coordinator_with_few_descriptors_survives_too_many_connections() {
    let folder = Folder::new();
    let args = words(&[&["coordinator", "nn", "--listen", ANY_PORT], TINY]);
    let mut coordinator = Listening::of(folder.spawn_with_few_descriptors(64, &args));
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(("127.0.0.1", coordinator.port)).unwrap());
    }
    assert!(descriptors(coordinator.child.id()) <= 64);
    succeed("the worker", &worker(&folder, &coordinator.plain(), &[], &[]));
    let output = coordinator.ends_unharmed(&folder);
    assert!(output.stderr.contains("limit on open files is 64"), "{output}");
}

#[test]
fn several_hosts_end_in_the_same_bytes_though_links_are_cut() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/netns-test.sh");
    let folder = Folder::new();
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_numalign"));
    let output = Command::new("bash").arg(&script).arg(&binary).current_dir(folder.path()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // `cargo test -- --nocapture` shows the figures, or the reason for skipping.
    eprintln!("{stdout}");
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("the same bytes") || stdout.contains("skipped:"), "{stdout}\n{stderr}");
}
