//! What the server offers besides its calls: compressed messages, a description of itself, a health service to watch.

use std::time::Duration;

use tonic::Request;
use tonic::codec::CompressionEncoding;
use tonic::codegen::tokio_stream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::*;

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

#[test]
fn gzip_is_taken_after_the_token_and_a_bomb_is_refused() {
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[("NUMALIGN_TOKEN", SECRET)]);
    let (url, pid) = (coordinator.plain(), coordinator.child.id());
    let before = limits::memory(pid, "VmHWM");
    runtime().block_on(async {
        let plain = connect(&url).await.max_encoding_message_size(usize::MAX);
        let mut client = plain.send_compressed(CompressionEncoding::Gzip);
        // 256 MiB of one letter come as 256 KiB.
        let bomb = || tokio_stream::iter([hello(&"x".repeat(256 << 20))]);
        let refused = client.control(bomb()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");
        let refused = client.control(with_token(bomb(), SECRET)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
        let greeting = tokio_stream::StreamExt::chain(tokio_stream::iter([hello("here")]), tokio_stream::pending());
        let mut inbound = client.control(with_token(greeting, SECRET)).await.unwrap().into_inner();
        assert!(inbound.message().await.unwrap().is_some(), "welcome");
    });
    let grown = limits::memory(pid, "VmHWM") - before;
    assert!(grown < 64 << 10, "it grew by {grown} KiB");
    succeed("the worker", &worker(&folder, &url, &[], &[("NUMALIGN_TOKEN", SECRET)]));
    coordinator.ends_unharmed(&folder);
}

#[test]
fn whoever_has_the_token_can_ask_for_the_proto() {
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[("NUMALIGN_TOKEN", SECRET)]);
    let url = coordinator.plain();
    let answer: ServerReflectionResponse = runtime().block_on(async {
        let channel = Channel::from_shared(url.clone()).unwrap().connect().await.unwrap();
        let mut client = ServerReflectionClient::new(channel);
        let ask = || {
            let wanted = MessageRequest::FileContainingSymbol("numalign.v1.Coordinator".to_owned());
            tokio_stream::iter([ServerReflectionRequest { host: String::new(), message_request: Some(wanted) }])
        };
        let refused = client.server_reflection_info(ask()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");
        let mut answers = client.server_reflection_info(with_token(ask(), SECRET)).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap()
    });
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let whole = files.file_descriptor_proto.concat();
    for name in ["RankMessage", "message_digest"] {
        assert!(whole.windows(name.len()).any(|window| window == name.as_bytes()), "{name}");
    }
    succeed("the worker", &worker(&folder, &url, &[], &[("NUMALIGN_TOKEN", SECRET)]));
    coordinator.ends_unharmed(&folder);
}

#[test]
fn the_health_service_can_be_watched_without_the_token() {
    let folder = Folder::new();
    let mut coordinator = Listening::start(&folder, &[], &[("NUMALIGN_TOKEN", SECRET)]);
    let url = coordinator.plain();
    runtime().block_on(async {
        let channel = Channel::from_shared(url.clone()).unwrap().connect().await.unwrap();
        let service = "numalign.v1.Coordinator".to_owned();
        let watch = HealthClient::new(channel).watch(HealthCheckRequest { service }).await;
        let mut answers = watch.unwrap().into_inner();
        let first = answers.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        // A connection that only holds itself open is cut after ten seconds.
        let next = tokio::time::timeout(Duration::from_secs(12), answers.message()).await;
        assert!(next.is_err(), "the watch ended: {next:?}");
    });
    succeed("the worker", &worker(&folder, &url, &[], &[("NUMALIGN_TOKEN", SECRET)]));
    coordinator.ends_unharmed(&folder);
}
