//! States that workers bring along after the death of a coordinator: those that this run's coordinator committed are gone
//! on from, and no others.

use numalign_config::Config;
use numalign_projector::{Layout, State};
use numalign_protocol as proto;
use numalign_protocol::coordinator_client::CoordinatorClient;
use numalign_protocol::coordinator_message::Message as Answer;
use numalign_protocol::worker_message::Message;
use tonic::codegen::tokio_stream;

use super::*;

/// A coordinator of the run at `address`, which another one left.
fn successor(folder: &Folder, address: &str, more: &[&str]) -> Child {
    let mut arguments = vec!["coordinator", "nn", "--listen", address, "--run-id", "run", "--resume", "auto"];
    arguments.extend(SETTINGS.split_whitespace().chain(["--workers", "2"]).chain(more.iter().copied()));
    folder.spawn(&arguments)
}

/// A run of two workers whose coordinator was killed in the middle: they hold a state that is further than its checkpoints.
fn orphaned() -> (Cluster, [Child; 2]) {
    let mut cluster = Cluster::start("--workers 2");
    let workers = [cluster.worker("slow=3", &[]), cluster.worker("slow=3", &[])];
    cluster.coordinator.wait_for_stderr("step    100");
    kill(cluster.coordinator.id() as i32, Signal::KILL);
    cluster.coordinator.wait();
    (cluster, workers)
}

#[test]
fn a_state_that_the_run_committed_is_gone_on_from() {
    let (cluster, mut workers) = orphaned();
    let mut second = successor(&cluster.folder, cluster.url.trim_start_matches("http://"), &[]);
    let output = second.wait();
    assert!(output.status.success(), "{output}");
    assert!(!output.stderr.contains("is dismissed"), "{output}");
    assert!(bytes(&cluster.folder, "run") == reference(), "{output}");
    for worker in &mut workers {
        let output = worker.wait();
        assert!(output.status.success(), "{output}");
    }
}

#[test]
fn without_the_runs_folder_a_state_is_refused_unless_it_is_trusted() {
    let (cluster, mut workers) = orphaned();
    let address = cluster.url.trim_start_matches("http://");
    std::fs::remove_dir_all(cluster.folder.path().join("chk")).unwrap();
    let mut second = successor(&cluster.folder, address, &[]);
    for worker in &mut workers {
        let output = worker.wait();
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(output.stderr.contains("no coordinator with the key of this run committed it"), "{output}");
        assert!(output.stderr.contains("--trust-returning-state true"), "{output}");
    }
    // Workers that bring nothing along begin anew.
    let _fresh = [cluster.worker("", &[]), cluster.worker("", &[])];
    let output = second.wait();
    assert!(output.status.success(), "{output}");
    assert_eq!(output.stderr.matches("is dismissed: the state that it brought along").count(), 2, "{output}");
    assert!(bytes(&cluster.folder, "run") == reference(), "{output}");

    let (cluster, workers) = orphaned();
    let address = cluster.url.trim_start_matches("http://");
    std::fs::remove_dir_all(cluster.folder.path().join("chk")).unwrap();
    let output = successor(&cluster.folder, address, &["--trust-returning-state", "true"]).wait();
    assert!(output.status.success(), "{output}");
    assert!(bytes(&cluster.folder, "run") == reference(), "{output}");
    drop(workers);
}

#[test]
fn a_strangers_state_never_becomes_the_runs() {
    let cluster = Cluster::start("--workers 1");
    // What Welcome tells everybody is enough to make one that looks like this run's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let said = runtime.block_on(async {
        let hello = |rejoin_state| proto::Hello { protocol: proto::PROTOCOL, rejoin_state, ..proto::Hello::default() };
        let Some(Answer::Welcome(welcome)) = first_answer(&cluster.url, hello(None)).await else {
            panic!("a Welcome");
        };
        let config: Config = serde_json::from_str(&welcome.config).unwrap();
        let mut state = State::initial(Layout::of(&config.recipe, 192, 0), 1).prepared(&config.recipe);
        for _ in 0..config.recipe.total_steps() {
            let row = vec![0.25; state.layout().row_len()];
            state.update(&row, &config.recipe).unwrap();
        }
        let forged = proto::RejoinState {
            run_id: welcome.run_id,
            config_digest: config.digest(),
            state: state.to_bytes(),
            mac: vec![7; 32],
            rollback: 0,
        };
        match first_answer(&cluster.url, hello(Some(forged))).await {
            Some(Answer::Abort(abort)) => abort.reason,
            other => panic!("{other:?}"),
        }
    });
    assert!(said.contains("no coordinator with the key of this run committed it (step 600)"), "{said}");
    let _worker = cluster.worker("", &[]);
    cluster.finish();
}

/// Says Hello, and reads the first answer.
async fn first_answer(url: &str, hello: proto::Hello) -> Option<Answer> {
    let mut client = CoordinatorClient::connect(url.to_owned()).await.unwrap();
    let message = proto::WorkerMessage { message: Some(Message::Hello(hello)) };
    let mut inbound = client.control(tokio_stream::iter([message])).await.unwrap().into_inner();
    inbound.message().await.unwrap()?.message
}
