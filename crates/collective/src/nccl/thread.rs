//! The thread that holds a communicator: of one generation, started with it, gone before the next one's begins.
//! The async side talks to it by channels and never waits for NCCL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::communicator::{Communicator, NcclError};
use super::library::UniqueId;

/// A communicator that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Number of the GPU among the visible ones.
    pub gpu: usize,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// How long the ranks may take to hear of the id, and then to find each other.
    pub deadline: Duration,
}

/// What the thread is asked to do.
pub(super) enum Order {
    Form(UniqueId),
    Sum(Vec<u32>, oneshot::Sender<Result<Vec<u32>, NcclError>>),
}

/// The async side's end: dropping the last one ends the communicator.
#[derive(Clone)]
pub(super) struct Orders {
    pub orders: mpsc::Sender<Order>,
    pub cancelled: Arc<Cancel>,
}

/// Ends whatever the thread is doing.
pub(super) struct Cancel(AtomicBool);

impl Cancel {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Resolves when the thread has left NCCL for good; an error means that the GPU is still held.
pub(super) type Gone = oneshot::Receiver<Result<(), NcclError>>;

/// A started thread: the way to it, its end, and rank 0's id or why there is none.
pub(super) struct Started {
    pub orders: Orders,
    pub gone: Gone,
    pub id: oneshot::Receiver<Result<UniqueId, NcclError>>,
}

/// Starts the thread once `before` has left NCCL.
pub(super) fn start(wanted: Wanted, before: Option<Gone>) -> std::io::Result<Started> {
    let (orders, inbox) = mpsc::channel();
    let (left, gone) = oneshot::channel();
    let (made, id) = oneshot::channel();
    let cancelled = Arc::new(Cancel(AtomicBool::new(false)));
    let cancel = cancelled.clone();
    let body = move || {
        // The sender is dropped only when the thread ended, or panicked and took its communicator with it.
        let before = before.map_or(Ok(()), |gone| gone.blocking_recv().unwrap_or(Ok(())));
        let end = match before {
            Ok(()) => serve(wanted, &inbox, made, &cancel),
            Err(stuck) => {
                let _ = made.send(Err(stuck.clone()));
                refuse_all(&inbox, &stuck);
                Err(stuck)
            }
        };
        // The process may be ending.
        let _ = left.send(end);
    };
    std::thread::Builder::new().name("nccl".to_owned()).spawn(body)?;
    Ok(Started { orders: Orders { orders, cancelled }, gone, id })
}

/// From the preparation to the abort. Only a communicator that does not let go of the GPU is an error here; all others are
/// answers to orders.
fn serve(
    wanted: Wanted,
    inbox: &mpsc::Receiver<Order>,
    made: oneshot::Sender<Result<UniqueId, NcclError>>,
    cancel: &Cancel,
) -> Result<(), NcclError> {
    let mut communicator = match Communicator::prepare(wanted.gpu) {
        Ok(communicator) => communicator,
        Err(error) => {
            let _ = made.send(Err(error.clone()));
            refuse_all(inbox, &error);
            return Ok(());
        }
    };
    if wanted.rank == 0 {
        let _ = made.send(communicator.make_id());
    }
    let is_cancelled = || cancel.is_set();
    let mut phase = Phase::Alone;
    // A rank may have its rows before the id has come.
    let mut early: Option<Question> = None;
    let since = Instant::now();
    loop {
        let order = match phase {
            Phase::Alone => match inbox.recv_timeout(wanted.deadline.saturating_sub(since.elapsed())) {
                Ok(order) => order,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let Wanted { rank, world, deadline, .. } = wanted;
                    let error = NcclError::NotFormed { rank, world, seconds: deadline.as_secs_f64() };
                    if let Some((_, reply)) = early.take() {
                        let _ = reply.send(Err(error.clone()));
                    }
                    phase = Phase::Broken(error);
                    continue;
                }
            },
            Phase::Formed | Phase::Broken(_) => match inbox.recv() {
                Ok(order) => order,
                Err(_) => break,
            },
        };
        if cancel.is_set() {
            break;
        }
        let question = match order {
            Order::Form(id) if phase == Phase::Alone => {
                let Wanted { rank, world, deadline, .. } = wanted;
                phase = match communicator.form(id, rank, world, deadline, &is_cancelled) {
                    Ok(()) => Phase::Formed,
                    Err(error) => Phase::Broken(error),
                };
                early.take()
            }
            // Once is enough.
            Order::Form(_) => None,
            Order::Sum(words, reply) if phase == Phase::Alone => {
                early = Some((words, reply));
                None
            }
            Order::Sum(words, reply) => Some((words, reply)),
        };
        let Some((mut words, reply)) = question else {
            continue;
        };
        let result = match &phase {
            Phase::Broken(error) => Err(error.clone()),
            Phase::Alone | Phase::Formed => communicator.sum(&mut words, &is_cancelled).map(|()| words),
        };
        if let Err(error) = &result {
            // Nothing may be assumed of a communicator after an error.
            phase = Phase::Broken(error.clone());
        }
        // A generation that ended wants no answer.
        let _ = reply.send(result);
    }
    communicator.end()
}

/// Words to be summed, and where the sums go.
type Question = (Vec<u32>, oneshot::Sender<Result<Vec<u32>, NcclError>>);

/// What has become of the communicator.
#[derive(Debug, PartialEq)]
enum Phase {
    /// Its id has not come.
    Alone,
    Formed,
    Broken(NcclError),
}

/// Answers every order with the same error, until the sender is dropped.
fn refuse_all(inbox: &mpsc::Receiver<Order>, error: &NcclError) {
    while let Ok(order) = inbox.recv() {
        if let Order::Sum(_, reply) = order {
            let _ = reply.send(Err(error.clone()));
        }
    }
}
