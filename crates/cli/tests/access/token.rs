//! The join token, and whose member a connection may speak for.

use numalign_protocol::coordinator_message::Message as FromCoordinator;
use tonic::Code;
use tonic::codegen::tokio_stream;

use super::*;

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
        let generation = Some(proto::Generation { incarnation: 1, number: 1, rollback: 0 });
        let refused = client.status(proto::StatusRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        let rows = vec![proto::Row { micro_batch: 0, values: vec![0; 8].into(), digest: Vec::new() }];
        let message = proto::RankMessage { generation, member: 1, unit: Some(0), rows, ..Default::default() };
        assert_eq!(client.work(tokio_stream::iter([message])).await.unwrap_err().code(), Code::Unauthenticated);
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
        let generation = Some(proto::Generation { incarnation: welcome.incarnation, number: 1, rollback: 0 });
        let message = proto::RankMessage { generation, member: welcome.member, unit: Some(0), ..Default::default() };
        let refused = stranger.work(tokio_stream::iter([message.clone()])).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("did not join on this connection"), "{refused}");
        // The member itself is heard: its generation has not begun, that is all.
        let early = member.work(tokio_stream::iter([message])).await.unwrap_err();
        assert!(early.message().contains("that generation is over"), "{early}");
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

#[test]
fn a_launch_without_a_token_makes_one_that_its_user_alone_can_read() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let settings = ["--workers", "2", "--num-epochs", "150", "--micro-batch-size", "4"];
    let plain = words(&[&["launch", "nn", "--no-eval"], &settings]);
    // Slow, so that it is still there when it is asked.
    let mut launch = folder.spawn(&words(&[&plain, &["--chaos", "slow=10"]]));
    launch.wait_for_stderr("rank 1");
    let url = launch.stderr().split("--coordinator ").nth(1).and_then(|rest| rest.split(')').next().map(str::to_owned));
    let url = url.expect("the address");
    let (token, path) = (folder.read("chk/nn/token"), folder.path().join("chk/nn/token"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Its own user's status finds it, with and without the address; a stranger without it is refused.
    for status in [&["status", "--json"][..], &["status", "--json", "--coordinator", &url]] {
        let told = folder.run(status);
        succeed("status", &told);
        assert!(told.stdout.contains("\"run_id\":\"nn\""), "{told}");
    }
    let said = ["error:", "no join token", "hint:", "--token-file"];
    check("a stranger's status", &elsewhere.run(&["status", "--coordinator", &url]), FAILED, &said);
    check("a stranger's worker", &worker(&elsewhere, &url, &[], &[]), FAILED, &said);
    let path = path.display().to_string();
    succeed("status", &elsewhere.run(&["status", "--coordinator", &url, "--token-file", &path]));
    let output = launch.wait();
    succeed("launch", &output);
    let token = String::from_utf8(token).unwrap();
    assert!(token.trim().len() == 64 && !output.stderr.contains(token.trim()), "{output}");
    assert!(!folder.path().join("chk/nn/token").exists(), "it goes with the run");
    let given = words(&[&plain, &["--run-id", "given"]]);
    succeed("launch with a token", &folder.run_env(&given, &[("NUMALIGN_TOKEN", SECRET)]));
    assert!(folder.read("chk/nn.safetensors") == folder.read("chk/given.safetensors"));
}

#[test]
fn guesses_on_a_connection_are_slowed() {
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[("NUMALIGN_TOKEN", SECRET)]);
    let url = coordinator.plain();
    let asked = |token: &str| {
        let mut request = tonic::Request::new(proto::StatusRequest {});
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request
    };
    runtime().block_on(async {
        let mut client = connect(&url).await;
        let start = std::time::Instant::now();
        for _ in 0..7 {
            assert_eq!(client.status(asked("guess")).await.unwrap_err().code(), Code::Unauthenticated);
        }
        // 50, 100, 200 and 400 ms before the last four.
        assert!(start.elapsed().as_millis() >= 750, "{:?}", start.elapsed());
        // At once, they wait one after the other.
        let start = std::time::Instant::now();
        let (mut one, mut two) = (client.clone(), client.clone());
        let (one, two) = tokio::join!(one.status(asked("guess")), two.status(asked("guess")));
        assert!(one.is_err() && two.is_err());
        assert!(start.elapsed().as_millis() >= 1600, "{:?}", start.elapsed());
        // Another connection is not slowed.
        let start = std::time::Instant::now();
        connect(&url).await.status(asked(SECRET)).await.unwrap();
        assert!(start.elapsed().as_millis() < 750, "{:?}", start.elapsed());
    });
    succeed("the worker", &worker(&folder, &url, &[], &[("NUMALIGN_TOKEN", SECRET)]));
    coordinator.ends_unharmed(&folder);
}
