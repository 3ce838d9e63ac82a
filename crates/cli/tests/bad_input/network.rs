//! Addresses, and what is not the other side of the protocol.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::Pin;
use std::time::{Duration, Instant};

use numalign_protocol as proto;
use numalign_protocol::coordinator_client::CoordinatorClient;
use numalign_protocol::coordinator_server::{Coordinator, CoordinatorServer};
use numalign_protocol::worker_message::Message;
use tonic::codegen::tokio_stream::{self, Stream};
use tonic::{Request, Response, Status, Streaming};

use super::*;

#[test]
fn wrong_addresses_are_refused() {
    let folder = Folder::new();
    for (url, said) in [
        ("nonsense", "http://"),
        ("https://127.0.0.1:7400", "http://"),
        ("http://127.0.0.1", "no port"),
        ("127.0.0.1:7400", "http://"),
        ("http://", "http://"),
        ("", "http://"),
        ("http://127.0.0.1:99999", "http://"),
        ("ftp://127.0.0.1:21", "http://"),
        ("http://a b:1", "http://"),
    ] {
        refuse(&folder, &["worker", "--coordinator", url], USAGE, &["error:", "coordinator's address", said, "hint:"]);
    }
    refuse(&folder, &["worker"], USAGE, &["no coordinator", "MASTER_ADDR", "hint:"]);
    let envs = [("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "many")];
    refuse_env(&folder, &["worker"], &envs, USAGE, &["127.0.0.1:many", "hint:"]);
    for (address, code) in [
        ("nonsense", USAGE),
        ("127.0.0.1", USAGE),
        (":", USAGE),
        ("127.0.0.1:99999", USAGE),
        ("", USAGE),
        ("fd:99", USAGE),
        ("fd:0", USAGE),
        ("fd:x", USAGE),
        ("192.0.2.1:7400", FAILED),
    ] {
        refuse(&folder, &["coordinator", "nn", "--listen", address], code, &["error:", address]);
    }
    // Somebody else has the port.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refuse(
        &folder,
        &["coordinator", "nn", "--listen", &address],
        FAILED,
        &["error:", &address, "in use", "hint:", "port"],
    );
    // Nobody has it.
    drop(taken);
    let url = format!("http://{address}");
    let wait = [("NUMALIGN_COORDINATOR_WAIT", "300ms")];
    refuse_env(
        &folder,
        &["worker", "--coordinator", &url],
        &wait,
        FAILED,
        &["no coordinator at", &url, "refused", "hint:"],
    );
}

/// Answers every connection with `answer` and then closes it, or keeps it open and silent where there is no answer.
fn pretender(answer: Option<&'static [u8]>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            match answer {
                // The worker may have gone.
                Some(bytes) => drop(stream.write_all(bytes)),
                None => kept.push(stream),
            }
        }
    });
    format!("http://{address}")
}

#[test]
fn a_worker_gives_up_on_what_is_not_a_coordinator() {
    let folder = Folder::new();
    let answers: [Option<&'static [u8]>; 5] = [
        None,
        Some(b""),
        Some(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"),
        Some(b"SSH-2.0-OpenSSH_9.6\r\n"),
        Some(&[0; 64]),
    ];
    for answer in answers {
        let url = pretender(answer);
        let since = Instant::now();
        let wait = [("NUMALIGN_COORDINATOR_WAIT", "700ms")];
        let args = ["worker", "--coordinator", &url];
        refuse_env(&folder, &args, &wait, FAILED, &["error:", "no coordinator at", &url, "hint:"]);
        assert!(since.elapsed() < Duration::from_secs(10), "{answer:?} took {:?}", since.elapsed());
    }
}

/// A coordinator that refuses everybody, or welcomes everybody with `welcome`.
#[derive(Clone)]
struct Fake {
    welcome: Option<proto::Welcome>,
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Coordinator for Fake {
    type ControlStream = Answer<proto::CoordinatorMessage>;
    type WorkStream = Answer<proto::WorkMessage>;

    async fn control(
        &self,
        _: Request<Streaming<proto::WorkerMessage>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let Some(welcome) = &self.welcome else {
            return Err(Status::failed_precondition(
                "protocol 1 of build 0.1.0 does not match this coordinator's 2 of build 9",
            ));
        };
        let message = Some(proto::coordinator_message::Message::Welcome(welcome.clone()));
        let answer = tokio_stream::iter([Ok(proto::CoordinatorMessage { message })]);
        Ok(Response::new(Box::pin(tokio_stream::StreamExt::chain(answer, tokio_stream::pending()))))
    }

    async fn work(&self, _: Request<Streaming<proto::RankMessage>>) -> Result<Response<Self::WorkStream>, Status> {
        Err(Status::unimplemented("no work"))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusReply>, Status> {
        Err(Status::unimplemented("no status"))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_worker_ends_when_the_coordinator_is_of_another_build() {
    let folder = Folder::new();
    let runtime = runtime();
    let serve = |welcome: Option<proto::Welcome>| {
        let _inside = runtime.enter();
        let incoming = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let service = CoordinatorServer::new(Fake { welcome });
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        format!("http://{address}")
    };
    let url = serve(None);
    let said = ["error:", "does not take this worker", "protocol 1", "hint:", "same build"];
    refuse(&folder, &["worker", "--coordinator", &url], FAILED, &said);
    let mut welcome =
        proto::Welcome { protocol: proto::PROTOCOL, member: 1, config: "{".to_owned(), ..Default::default() };
    let url = serve(Some(welcome.clone()));
    refuse(&folder, &["worker", "--coordinator", &url], FAILED, &["error:", "protocol", "configuration"]);
    // One that has a setting more, as a later build would.
    welcome.config = "{\"recipe\": {}, \"run\": {}, \"later\": {}}".to_owned();
    let url = serve(Some(welcome));
    refuse(&folder, &["worker", "--coordinator", &url], FAILED, &["error:", "protocol", "configuration"]);
}

fn hello(protocol: u32) -> proto::WorkerMessage {
    let hello =
        proto::Hello { protocol, build: "9.9.9".to_owned(), host: "elsewhere".to_owned(), ..proto::Hello::default() };
    proto::WorkerMessage { message: Some(Message::Hello(hello)) }
}

/// Opens a control stream with `messages` and reads the answer to its end, a second at most.
async fn control(
    client: &CoordinatorClient<tonic::transport::Channel>,
    messages: Vec<proto::WorkerMessage>,
) -> Result<(), Status> {
    let outbound = tokio_stream::iter(messages);
    let talk = async {
        let mut inbound = client.clone().control(outbound).await?.into_inner();
        while inbound.message().await?.is_some() {}
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(1), talk).await.unwrap_or(Ok(()))
}

#[test]
fn nonsense_on_the_coordinators_port_harms_no_run() {
    let folder = Folder::new();
    let (mut coordinator, address) = coordinator(&folder, ONE);
    // Bytes that are no HTTP/2, some of them followed by a hard close, some held open.
    let mut held = Vec::new();
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let noise: Vec<u8> = (0..4096u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let http: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let framed = [preface, &noise].concat();
    for bytes in [http, &noise[..], &framed, preface, b"", &preface[..7], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(&address).unwrap();
        // It may hang up in the middle.
        let _ = stream.write_all(bytes);
        held.push(stream);
        drop(TcpStream::connect(&address).unwrap());
    }
    for stream in &mut held[..3] {
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = stream.read(&mut [0; 256]);
    }
    // Messages that are out of place.
    let generation = Some(proto::Generation { incarnation: 1, number: 1, rollback: 0 });
    runtime().block_on(async {
        let client = CoordinatorClient::connect(format!("http://{address}")).await.unwrap();
        let refused = control(&client, vec![hello(proto::PROTOCOL + 1)]).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("9.9.9") && refused.message().contains("does not match"), "{refused}");
        let ready = |size| proto::WorkerMessage {
            message: Some(Message::Ready(proto::Ready { hidden_size: size, ..Default::default() })),
        };
        assert_eq!(control(&client, vec![ready(8)]).await.unwrap_err().code(), tonic::Code::InvalidArgument);
        assert_eq!(control(&client, vec![]).await.unwrap_err().code(), tonic::Code::InvalidArgument);
        let done =
            |digest: usize| proto::UnitDone { generation, unit: 9, digest: vec![0; digest], ..Default::default() };
        for message in
            [Message::UnitDone(done(3)), Message::UnitDone(done(32)), Message::Heartbeat(proto::Heartbeat::default())]
        {
            let message = proto::WorkerMessage { message: Some(message) };
            // Whatever it answers.
            let _ = control(&client, vec![hello(proto::PROTOCOL), message]).await;
        }
        let _ = control(&client, vec![hello(proto::PROTOCOL), hello(proto::PROTOCOL)]).await;
        let mut returning = hello(proto::PROTOCOL);
        if let Some(Message::Hello(hello)) = &mut returning.message {
            hello.rejoin_state = Some(proto::RejoinState {
                rollback: 0,
                run_id: "nn".to_owned(),
                config_digest: String::new(),
                state: vec![1, 2, 3],
                mac: Vec::new(),
            });
        }
        let _ = control(&client, vec![returning]).await;
        for generation in [None, generation] {
            let rows = vec![proto::Row { micro_batch: u32::MAX, values: vec![1, 2, 3].into(), digest: vec![0; 32] }];
            let message = proto::RankMessage {
                generation,
                member: 1,
                credit: u32::MAX,
                from_unit: u64::MAX,
                unit: Some(u64::MAX),
                rows,
                more: false,
                done: Some(done(3)),
            };
            assert!(client.clone().work(tokio_stream::iter([message])).await.is_err());
        }
    });
    // The run goes on as if nothing had been.
    let mut worker = folder.spawn(&["worker", "--coordinator", &format!("http://{address}")]);
    let output = worker.wait();
    assert!(output.status.success(), "{output}");
    let output = coordinator.wait();
    assert!(output.status.success() && !output.stderr.contains("panicked"), "{output}");
    assert!(folder.read("chk/nn.safetensors") == checkpoint(), "the same bytes as without the noise");
}
