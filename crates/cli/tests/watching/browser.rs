//! The page in a real browser, through a run with a kill to its end.

use std::time::Duration;

use numalign_dashboard::guard::from_base64;
use numalign_protocol as proto;
use numalign_protocol::coordinator_client::CoordinatorClient;
use numalign_protocol::worker_message::Message;
use rustix::process::Signal;
use serde_json::Value;
use tonic::Request;

use super::launch;
use super::webdriver::Browser;
use crate::common::Folder;
use crate::common::run::{children, kill, wait_for};

/// Where screenshots go, if anywhere.
const SCREENSHOTS: &str = "WATCH_SCREENSHOTS";

/// A worker that says `Hello` under this name and nothing else, while the answer is kept.
fn say_hello(folder: &Folder, host: &str) -> impl Drop {
    let read = |name: &str| String::from_utf8(folder.read(name)).expect("text").trim().to_owned();
    let (url, token) = (read("chk/seen/address"), read("chk/seen/token"));
    let hello = proto::Hello {
        protocol: proto::PROTOCOL,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        host: host.to_owned(),
        pid: 1,
        ..Default::default()
    };
    let message = proto::WorkerMessage { message: Some(Message::Hello(hello)) };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    struct Kept(Option<tokio::runtime::Runtime>);
    impl Drop for Kept {
        fn drop(&mut self) {
            if let Some(runtime) = self.0.take() {
                runtime.shutdown_background();
            }
        }
    }
    runtime.spawn(async move {
        let mut client = CoordinatorClient::connect(url).await.expect("a connection");
        let (sender, messages) = tokio::sync::mpsc::channel(1);
        sender.send(message).await.expect("room");
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(messages));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        let answers = client.control(request).await.expect("it is taken");
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop((sender, answers));
    });
    Kept(Some(runtime))
}

fn shoot(browser: &Browser, name: &str) {
    if let Some(folder) = std::env::var_os(SCREENSHOTS) {
        let bytes = from_base64(browser.screenshot().as_bytes()).expect("base64");
        std::fs::write(std::path::Path::new(&folder).join(name), bytes).expect("a picture");
    }
}

#[test]
fn the_page_follows_a_run_with_a_kill_to_its_end() {
    let Some(browser) = Browser::start() else {
        return;
    };
    let folder = Folder::new();
    let settings = "--run-id seen --workers 2 --num-epochs 1000000 --num-batches 20 --eval-every 10 --eval-samples 20 \
                    --checkpoint-every 50 --lr 0.001 --lr-step-epochs 100000 --chaos slow=4 --batch-size 8 \
                    --micro-batch-size 4";
    let (mut run, address) = launch(&folder, settings);
    let page = format!("http://{address}/");
    browser.resize(1280, 900);
    browser.open(&page);
    let text = |selector: &str| {
        let found = browser.value(&format!("document.querySelector('{selector}')?.textContent ?? ''"));
        found.as_str().unwrap_or_default().to_owned()
    };
    let curve =
        || browser.value("document.querySelector('#loss .curve')?.getAttribute('d').length ?? 0").as_u64().unwrap_or(0);
    wait_for("training", || text("#phase") == "training");
    wait_for("a loss curve", || curve() > 20);
    let early = curve();
    wait_for("a longer curve", || curve() > early);
    let rates = browser.value("[...document.querySelectorAll('#rate text')].map((text) => text.textContent).join(' ')");
    let rates = rates.as_str().unwrap_or_default();
    // The rate is 0.001 all the time.
    assert!(rates.contains("0.001") || rates.contains("1.00e-3"), "{rates}");
    assert!(!rates.contains('-') || rates.contains("e-"), "a constant rate is drawn on an axis from 0: {rates}");
    wait_for("the held-out error", || text("#tiles").contains("a constant:"));

    let victim = children(run.id(), "numalign worker")[0];
    wait_for("the victim's row", || text("#workers").contains(&victim.to_string()));
    kill(victim, Signal::KILL);
    wait_for("the victim to be gone", || {
        let rows =
            browser.value("[...document.querySelectorAll('#workers tr.gone')].map((row) => row.textContent).join()");
        rows.as_str().is_some_and(|rows| rows.contains(&victim.to_string()))
    });
    wait_for("the fault", || !text("#strip .fault title").is_empty() && text("#events").contains(" s"));
    wait_for("the worker in its place", || {
        browser.value("document.querySelectorAll('#workers tr:not(.gone)').length").as_u64() == Some(3)
    });
    let hostile = "<img src=x onerror=alert(1)><b id=evil>";
    let kept = say_hello(&folder, hostile);
    wait_for("the odd host name", || text("#workers").contains(hostile));
    assert_eq!(browser.value("document.getElementById('evil')"), Value::Null, "it is text, not HTML");
    drop(kept);

    wait_for("a checkpoint", || text("#checkpoints").contains("step-"));
    std::thread::sleep(Duration::from_millis(500));
    shoot(&browser, "watch-1280.png");
    browser.resize(400, 900);
    std::thread::sleep(Duration::from_millis(500));
    let overflow = browser.value("document.documentElement.scrollWidth - window.innerWidth").as_i64();
    assert!(overflow.is_some_and(|pixels| pixels <= 0), "the page is wider than a phone by {overflow:?}");
    browser.set_dark(true);
    std::thread::sleep(Duration::from_millis(300));
    shoot(&browser, "watch-400.png");

    kill(run.id() as i32, Signal::INT);
    let output = run.wait();
    assert!(!output.status.success(), "{output}");
    wait_for("the last words", || text("#notice").contains("numalign watch seen"));
    wait_for("the end", || text("#phase") == "ended");
    assert!(curve() >= early, "what was drawn stays");

    let errors = browser.console_errors();
    assert!(errors.is_empty(), "{errors:?}");
    let elsewhere: Vec<String> =
        browser.requested().into_iter().filter(|url| !url.starts_with(&page) && !url.starts_with("data:")).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}
