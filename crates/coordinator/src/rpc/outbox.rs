//! The send queue of one worker: control messages in order, and the newest committed unit, which replaces an older one
//! that was not sent yet. However slowly a worker reads, its memory is bounded.

use std::pin::Pin;
use std::task::{Context, Poll};

use numalign_protocol as proto;
use numalign_protocol::coordinator_message::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;

/// Control messages that may wait for a worker that does not read; with more, it counts as dead.
pub const MAX_UNREAD: usize = 64;

/// The sending side. Dropping it ends the worker's stream once everything in it is sent.
pub struct Outbox {
    messages: mpsc::Sender<proto::CoordinatorMessage>,
    committed: watch::Sender<proto::Committed>,
}

/// The worker left too many messages unread, or its stream is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("send queue full ({MAX_UNREAD} messages) or stream closed")]
pub struct SendFailed;

/// The receiving side: what tonic sends.
pub struct OutboxStream {
    messages: mpsc::Receiver<proto::CoordinatorMessage>,
    committed: WatchStream<proto::Committed>,
}

/// Both sides for one worker.
pub fn outbox() -> (Outbox, OutboxStream) {
    let (messages, inbox) = mpsc::channel(MAX_UNREAD);
    let (committed, newest) = watch::channel(proto::Committed::default());
    (Outbox { messages, committed }, OutboxStream { messages: inbox, committed: WatchStream::from_changes(newest) })
}

impl Outbox {
    /// Queues a message.
    ///
    /// # Errors
    /// The queue is full, or nobody reads it.
    pub fn send(&self, message: Message) -> Result<(), SendFailed> {
        let message = proto::CoordinatorMessage { message: Some(message) };
        self.messages.try_send(message).map_err(|_| SendFailed)
    }

    /// Every state up to a unit is committed; an earlier number that was not sent yet is dropped.
    pub fn committed(&self, committed: proto::Committed) {
        self.committed.send_replace(committed);
    }
}

impl Stream for OutboxStream {
    type Item = Result<proto::CoordinatorMessage, Status>;

    /// Messages go first: the committed unit always belongs to the newest generation that was begun.
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.messages.poll_recv(context) {
            Poll::Ready(message) => return Poll::Ready(message.map(Ok)),
            Poll::Pending => {}
        }
        match Pin::new(&mut self.committed).poll_next(context) {
            Poll::Ready(Some(committed)) => {
                let message = Message::Committed(committed);
                Poll::Ready(Some(Ok(proto::CoordinatorMessage { message: Some(message) })))
            }
            // The sender of both is one thing: the queue above says when it is gone.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    fn pause(number: usize) -> Message {
        Message::Pause(proto::Pause { reason: number.to_string() })
    }

    fn committed(unit: u64) -> proto::Committed {
        proto::Committed { unit, mac: unit.to_le_bytes().to_vec() }
    }

    async fn next(stream: &mut OutboxStream) -> Option<Message> {
        stream.next().await?.expect("no status is ever sent").message
    }

    #[tokio::test]
    async fn messages_keep_their_order_and_only_the_newest_commit_is_sent() {
        let (outbox, mut stream) = outbox();
        for unit in 1..=1_000_000 {
            outbox.committed(committed(unit));
        }
        outbox.send(pause(0)).unwrap();
        outbox.send(pause(1)).unwrap();
        assert_eq!(next(&mut stream).await, Some(pause(0)));
        assert_eq!(next(&mut stream).await, Some(pause(1)));
        assert_eq!(next(&mut stream).await, Some(Message::Committed(committed(1_000_000))));
        outbox.committed(committed(1_000_001));
        assert_eq!(next(&mut stream).await, Some(Message::Committed(committed(1_000_001))));
        outbox.send(pause(2)).unwrap();
        drop(outbox);
        assert_eq!(next(&mut stream).await, Some(pause(2)), "what was sent before the end arrives");
        assert_eq!(next(&mut stream).await, None);
    }

    #[test]
    fn who_does_not_read_is_found_out() {
        let (outbox, stream) = outbox();
        for number in 0..MAX_UNREAD {
            outbox.send(pause(number)).unwrap();
        }
        assert_eq!(outbox.send(pause(0)), Err(SendFailed));
        drop(stream);
        assert_eq!(outbox.send(pause(0)), Err(SendFailed));
    }
}
