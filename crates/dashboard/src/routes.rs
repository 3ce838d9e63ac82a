//! What the port answers: the page, its parts, the API and the health checks. Everything is embedded, and the page may load
//! nothing from anywhere else.

use std::sync::Arc;

use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;

use crate::board::{Board, Run};
use crate::events;
use crate::guard::{Asked, Guard, Refusal};
use crate::metrics;
use crate::server::Caller;

const PAGE: &str = include_str!("../assets/index.html");
const STYLE: &str = include_str!("../assets/page.css");
const SCRIPTS: [(&str, &str); 3] = [
    ("/chart.js", include_str!("../assets/chart.js")),
    ("/view.js", include_str!("../assets/view.js")),
    ("/page.js", include_str!("../assets/page.js")),
];

/// Scripts, styles and data from this port alone, in no other site's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Headers of every answer.
const HEADERS: [(header::HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Paths that health checks ask without a token: they tell nothing of the run.
const HEALTH_PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// All routes, behind `guard`.
pub fn router(board: Arc<Board>, guard: Guard) -> Router {
    let mut router = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/page.css", get(|| async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE) }))
        .route("/api/status", get(status))
        .route("/api/history", get(history))
        .route("/api/runs", get(runs))
        .route("/api/events", get(stream))
        .route("/metrics", get(prometheus))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready));
    for (path, script) in SCRIPTS {
        let typed = [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")];
        router = router.route(path, get(move || async move { (typed, script) }));
    }
    router
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is no such page\n") })
        .with_state(board)
        .layer(middleware::from_fn_with_state(Arc::new(guard), admit))
}

/// Refuses what the guard refuses, and adds the headers that every answer has.
async fn admit(
    State(guard): State<Arc<Guard>>,
    ConnectInfo(Caller(peer)): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    if peer.guesses.are_slowed() {
        peer.guesses.wait().await;
    }
    let is_health_check = HEALTH_PATHS.contains(&request.uri().path());
    let mut response = match judge(&guard, request.headers(), is_health_check) {
        Err(refusal) => {
            if refusal == Refusal::WrongToken {
                peer.guesses.count();
                peer.log_refusal("another token than the page's");
            }
            refused(refusal)
        }
        // A health check's connection stays among those that are not known yet.
        Ok(()) if is_health_check || peer.admit() => next.run(request).await,
        Ok(()) => (StatusCode::SERVICE_UNAVAILABLE, "too many connections are open\n").into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn judge(guard: &Guard, headers: &HeaderMap, is_health_check: bool) -> Result<(), Refusal> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let asked = Asked {
        host: text(header::HOST),
        origin: text(header::ORIGIN),
        authorization: headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes),
    };
    if is_health_check { guard.check_place(asked) } else { guard.admit(asked) }
}

fn refused(refusal: Refusal) -> Response {
    let ask =
        [(header::WWW_AUTHENTICATE, "Basic realm=\"numalign: any name, the token as password\", charset=\"UTF-8\"")];
    match refusal {
        Refusal::Host => (StatusCode::FORBIDDEN, "use an address of this machine, or localhost\n").into_response(),
        Refusal::Origin => (StatusCode::FORBIDDEN, "pages of other sites may not ask\n").into_response(),
        Refusal::NoToken => (StatusCode::UNAUTHORIZED, ask, "the token is wanted\n").into_response(),
        Refusal::WrongToken => (StatusCode::UNAUTHORIZED, ask, "that is another token\n").into_response(),
    }
}

/// Which run is meant; the first one by default.
#[derive(Deserialize)]
struct Which {
    run: Option<String>,
}

/// Answers with what `of` reads of a run, on a thread made for slow files.
async fn of_run<R: IntoResponse + Send + 'static>(
    board: Arc<Board>,
    which: Which,
    of: impl FnOnce(Arc<Run>) -> R + Send + 'static,
) -> Response {
    let Some(run) = board.run(which.run.as_deref()) else {
        return (StatusCode::NOT_FOUND, "there is no such run here\n").into_response();
    };
    read(move || of(run)).await
}

async fn read<R: IntoResponse + Send + 'static>(of: impl FnOnce() -> R + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(of).await {
        Ok(answer) => answer.into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the run's files cannot be read\n").into_response(),
    }
}

fn json_text(text: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text)
}

async fn status(State(board): State<Arc<Board>>, Query(which): Query<Which>) -> Response {
    of_run(board, which, |run| Json(run.status())).await
}

async fn history(State(board): State<Arc<Board>>, Query(which): Query<Which>) -> Response {
    of_run(board, which, |run| json_text(run.history())).await
}

async fn runs(State(board): State<Arc<Board>>) -> Response {
    read(move || json_text(board.rows_text())).await
}

async fn stream(State(board): State<Arc<Board>>) -> Response {
    match events::stream(board) {
        Some(stream) => stream.into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response(),
    }
}

async fn prometheus(State(board): State<Arc<Board>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_open = accept.contains("application/openmetrics-text");
    let answer = move || match board.figures() {
        Some(figures) if is_open => {
            ([(header::CONTENT_TYPE, metrics::OPEN_METRICS)], metrics::open_metrics(&figures)).into_response()
        }
        Some(figures) => ([(header::CONTENT_TYPE, metrics::TEXT)], metrics::text(&figures)).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no run is shown\n").into_response(),
    };
    read(answer).await
}

async fn ready(State(board): State<Arc<Board>>) -> Response {
    match board.is_ready() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the coordinator does not answer\n").into_response(),
    }
}
