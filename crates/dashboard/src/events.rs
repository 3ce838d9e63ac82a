//! `/api/events`: what changes, as server-sent events. A stream holds one event that is on its way and makes the next when
//! that is gone, so a slow reader gets fewer events, never a queue of them.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::board::Board;
use crate::history::Cursor;

/// Streams that may be open at once.
const MAX_STREAMS: usize = 32;
/// Time between two looks where nothing is told, and the least between two that are.
const LOOK: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(250);
/// A stream without news says that it is alive.
const ALIVE: Duration = Duration::from_secs(10);

/// What a stream has told already.
#[derive(Default)]
struct Told {
    rows: String,
    /// Of each run, in the board's order: its name, its status, and how far its records were told.
    runs: Vec<(String, Value, Cursor)>,
}

/// The stream; none where too many are open.
pub fn stream(board: Arc<Board>) -> Option<Response> {
    if board.streams.fetch_add(1, Ordering::Relaxed) >= MAX_STREAMS {
        board.streams.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let (sender, events) = mpsc::channel(1);
    tokio::spawn(async move {
        // An error says that the reader is gone.
        let _ = tell(&board, &sender).await;
        drop(sender);
        // What was sent last is on its way to the socket.
        tokio::task::yield_now().await;
        board.streams.fetch_sub(1, Ordering::Relaxed);
    });
    let stream = Sse::new(ReceiverStream::new(events)).keep_alive(KeepAlive::new().interval(ALIVE));
    Some(stream.into_response())
}

type Sender = mpsc::Sender<Result<Event, Infallible>>;

async fn tell(board: &Arc<Board>, sender: &Sender) -> Result<(), mpsc::error::SendError<Result<Event, Infallible>>> {
    let (mut changes, mut ending) = (board.changes(), board.ending());
    let mut told = Told::default();
    loop {
        let board = board.clone();
        // Files are read on a thread made for that.
        let looked = tokio::task::spawn_blocking(move || {
            let events = news(&board, &mut told);
            (told, events)
        });
        let Ok((seen, events)) = looked.await else {
            return Ok(());
        };
        told = seen;
        for (name, data) in events {
            sender.send(Ok(Event::default().event(name).data(data))).await?;
        }
        let last_words = ending.borrow_and_update().clone();
        if let Some(words) = last_words {
            return sender.send(Ok(Event::default().event("end").data(json!({ "text": words }).to_string()))).await;
        }
        tokio::select! {
            _ = ending.changed() => continue,
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
        tokio::select! {
            _ = ending.changed() => {}
            _ = changes.changed() => {}
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep(LOOK - PAUSE) => {}
        }
    }
}

/// The events since the last look: name and data of each.
fn news(board: &Board, told: &mut Told) -> Vec<(&'static str, String)> {
    let mut events = Vec::new();
    let rows = board.rows_text();
    if rows != told.rows {
        events.push(("runs", rows.clone()));
        told.rows = rows;
    }
    let runs = board.runs();
    told.runs.resize_with(runs.len(), Default::default);
    for (run, (name, status, cursor)) in runs.iter().zip(&mut told.runs) {
        let run_id = &run.facts().run_id;
        if name != run_id {
            (*name, *status, *cursor) = (run_id.clone(), Value::Null, Cursor::default());
        }
        let now = run.status();
        if now != *status {
            events.push(("status", now.to_string()));
            *status = now;
        }
        let news = run.news(*cursor);
        *cursor = news.cursor;
        if news.reset || !news.lines.is_empty() {
            let name = json!(run_id);
            let records = news.lines.join(",");
            events.push(("history", format!("{{\"run_id\":{name},\"reset\":{},\"records\":[{records}]}}", news.reset)));
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::tests::told as source;

    #[test]
    fn only_what_is_new_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let metrics = folder.path().join("metrics.jsonl");
        std::fs::write(&metrics, "{\"kind\":\"epoch\",\"step\":1}\n").unwrap();
        let board = Board::new();
        board.show_files(vec![source("one", folder.path())]);
        let mut told = Told::default();
        let names = |events: &[(&'static str, String)]| events.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        let first = news(&board, &mut told);
        assert_eq!(names(&first), ["runs", "status", "history"]);
        assert!(first[2].1.contains("\"reset\":true,\"records\":[{\"kind\""), "{}", first[2].1);
        assert!(news(&board, &mut told).is_empty());
        board.show_files(vec![source("two", folder.path())]);
        assert_eq!(names(&news(&board, &mut told)), ["runs", "status", "history"], "another run begins anew");
    }
}
