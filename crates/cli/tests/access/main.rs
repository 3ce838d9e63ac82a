//! Who may take part: without a token, a certificate, the right model or anything to say, a client is refused with the reason
//! or dropped, and the run ends in the bytes of an undisturbed one. Real processes, real sockets.

#[path = "../common/mod.rs"]
mod common;

mod door;
mod limits;
mod tls;
mod token;

use std::sync::OnceLock;

use common::{Child, Folder, Output, check, without_foreign_variables, words};
use numalign_protocol as proto;
use numalign_protocol::coordinator_client::CoordinatorClient;
use numalign_protocol::worker_message::Message;
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
        let address = common::run::listening_address(&mut child);
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
