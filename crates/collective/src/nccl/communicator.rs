//! One communicator on one thread: formed and used by polling, so that no sum is ever waited for inside NCCL or CUDA. Two
//! calls cannot be polled, `cuInit` and `ncclCommAbort`: they take as long as they take.
//!
//! NCCL's rules for communicators that do not block: after a call that answers "in progress" the state is asked until it
//! says success, and before that neither NCCL nor the stream is given anything else; on an error, and when a rank is gone,
//! every rank aborts.

use std::rc::Rc;
use std::time::{Duration, Instant};

use numalign_gpu::memory::{Context, DeviceBuffer, PinnedBuffer, Stream};
use numalign_gpu::{Driver, GpuError};

use super::library::{Comm, IN_PROGRESS, Nccl, SUCCESS, UniqueId};

/// Polls between two looks at the communicator's state while the stream works.
const LOOKS: u32 = 32;
/// Polls without a pause: a sum of a few kilobytes takes microseconds.
const EAGER: u32 = 2_000;
const PAUSE: Duration = Duration::from_micros(50);
/// Time that the device gets to let go of an aborted communicator's work.
const DRAIN: Duration = Duration::from_secs(5);

/// Why there is no communicator, or no sum.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum NcclError {
    /// No GPU, driver or library.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// A call of NCCL failed.
    #[error("NCCL's {call} failed: {words}")]
    Call {
        /// Name of the function.
        call: &'static str,
        /// NCCL's description of the error.
        words: String,
    },
    /// The ranks did not find each other in time.
    #[error("NCCL formed no communicator of {world} ranks within {seconds:.0} s; rank {rank} is still waiting")]
    NotFormed {
        /// This rank.
        rank: usize,
        /// Number of ranks.
        world: usize,
        /// Timeout, in seconds.
        seconds: f64,
    },
    /// A micro-batch came from no rank, from several ranks, or from another unit.
    #[error("the rows that NCCL brought together are not whole: micro-batch {micro_batch} {how}")]
    NotWhole {
        /// Index of the micro-batch in the unit.
        micro_batch: usize,
        /// What is wrong with it.
        how: &'static str,
    },
    /// Only the end of the process frees the GPU.
    #[error("an aborted communicator did not let go of the GPU within {seconds:.0} s")]
    Stuck {
        /// Timeout, in seconds.
        seconds: f64,
    },
    /// The communicator's thread panicked.
    #[error("the thread that holds the communicator ended; its message is above")]
    Ended,
    /// The generation ended; no answer is expected.
    #[error("the communicator was told to end")]
    Cancelled,
}

/// A formed communicator with its stream and buffers. Lives and dies on one thread.
pub(super) struct Communicator {
    nccl: &'static Nccl,
    /// Boxed: NCCL writes to where it was first told.
    comm: Box<Comm>,
    begun: bool,
    stream: Stream,
    context: Rc<Context>,
    buffers: Option<Buffers>,
}

struct Buffers {
    device: DeviceBuffer,
    host: PinnedBuffer,
    words: usize,
}

/// Asked between polls; true ends whatever is under way.
pub(super) type Cancelled<'a> = &'a dyn Fn() -> bool;

/// Polls, first without a pause.
struct Backoff {
    polls: u32,
}

impl Backoff {
    fn new() -> Self {
        Self { polls: 0 }
    }

    fn wait(&mut self) {
        self.polls = self.polls.saturating_add(1);
        if self.polls < EAGER {
            std::thread::yield_now();
        } else {
            std::thread::sleep(PAUSE);
        }
    }
}

impl Communicator {
    /// Prepares GPU `gpu` for a communicator.
    pub(super) fn prepare(gpu: usize) -> Result<Self, NcclError> {
        let nccl = Nccl::get()?;
        let context = Context::enter(Driver::get()?, gpu)?;
        let stream = Stream::new(&context)?;
        Ok(Self { nccl, comm: Box::new(std::ptr::null_mut()), begun: false, stream, context, buffers: None })
    }

    /// A new communicator's id, for rank 0 to hand out.
    pub(super) fn make_id(&self) -> Result<UniqueId, NcclError> {
        self.nccl.make_id().map_err(|result| self.failed("ncclGetUniqueId", result))
    }

    /// Forms the communicator with the other ranks, within `deadline`.
    pub(super) fn form(
        &mut self,
        id: UniqueId,
        rank: usize,
        world: usize,
        deadline: Duration,
        cancelled: Cancelled<'_>,
    ) -> Result<(), NcclError> {
        let since = Instant::now();
        self.begun = true;
        let mut state = self.nccl.begin_init(&mut self.comm, rank, world, id);
        let mut backoff = Backoff::new();
        while state == IN_PROGRESS {
            if cancelled() {
                return Err(NcclError::Cancelled);
            }
            if since.elapsed() >= deadline {
                return Err(NcclError::NotFormed { rank, world, seconds: deadline.as_secs_f64() });
            }
            backoff.wait();
            // The handle may come later than the answer.
            if !self.comm.is_null() {
                state = self.nccl.state(*self.comm);
            }
        }
        match state {
            SUCCESS => Ok(()),
            failed => Err(self.failed("ncclCommInitRankConfig", failed)),
        }
    }

    /// Replaces `words` by their sums over all ranks, as unsigned integers. Waits as long as it is not cancelled: the other
    /// ranks may still be computing.
    pub(super) fn sum(&mut self, words: &mut [u32], cancelled: Cancelled<'_>) -> Result<(), NcclError> {
        let bytes = size_of_val(words);
        if self.buffers.as_ref().is_none_or(|buffers| buffers.words < words.len()) {
            // The old ones go first: there may not be room for both.
            self.buffers = None;
            self.buffers = Some(Buffers {
                device: DeviceBuffer::new(&self.context, bytes)?,
                host: PinnedBuffer::new(&self.context, bytes)?,
                words: words.len(),
            });
        }
        let Some(buffers) = &mut self.buffers else {
            return Err(NcclError::Cancelled);
        };
        buffers.host.words_mut()[..words.len()].copy_from_slice(words);
        self.stream.upload(&buffers.host, &buffers.device, bytes)?;
        let state = self.nccl.begin_sum(buffers.device.address(), words.len(), *self.comm, self.stream.handle());
        self.settle("ncclAllReduce", state, cancelled)?;
        let Some(buffers) = &mut self.buffers else {
            return Err(NcclError::Cancelled);
        };
        self.stream.download(&buffers.device, &mut buffers.host, bytes)?;
        self.wait_for_stream(cancelled)?;
        if let Some(buffers) = &self.buffers {
            words.copy_from_slice(&buffers.host.words()[..words.len()]);
        }
        Ok(())
    }

    /// Waits until a call that was begun is through.
    fn settle(&self, call: &'static str, mut state: i32, cancelled: Cancelled<'_>) -> Result<(), NcclError> {
        let mut backoff = Backoff::new();
        while state == IN_PROGRESS {
            if cancelled() {
                return Err(NcclError::Cancelled);
            }
            backoff.wait();
            state = self.nccl.state(*self.comm);
        }
        if state == SUCCESS { Ok(()) } else { Err(self.failed(call, state)) }
    }

    /// Waits until the stream is idle, with an eye on the communicator: a kernel that waits for a lost rank never ends by
    /// itself.
    fn wait_for_stream(&self, cancelled: Cancelled<'_>) -> Result<(), NcclError> {
        let mut backoff = Backoff::new();
        while !self.stream.is_idle()? {
            if cancelled() {
                return Err(NcclError::Cancelled);
            }
            if backoff.polls.is_multiple_of(LOOKS) {
                let state = self.nccl.state(*self.comm);
                if state != SUCCESS && state != IN_PROGRESS {
                    return Err(self.failed("ncclAllReduce", state));
                }
            }
            backoff.wait();
        }
        Ok(())
    }

    /// Ends the communicator and gives everything back. An error means that the GPU is still held by it: only the end of the
    /// process helps then, and nothing is freed, since that would wait for the device.
    pub(super) fn end(mut self) -> Result<(), NcclError> {
        if self.begun && !self.comm.is_null() {
            let result = self.nccl.abort(*self.comm);
            if result != SUCCESS && result != IN_PROGRESS {
                // It is unusable either way; what matters is whether the device lets go.
                tracing::debug!("ncclCommAbort: {}", self.nccl.words(result, None));
            }
            self.begun = false;
        }
        let since = Instant::now();
        let mut backoff = Backoff::new();
        loop {
            match self.stream.is_idle() {
                Ok(true) | Err(_) => return Ok(()),
                Ok(false) if since.elapsed() >= DRAIN => break,
                Ok(false) => backoff.wait(),
            }
        }
        std::mem::forget(self);
        Err(NcclError::Stuck { seconds: DRAIN.as_secs_f64() })
    }

    fn failed(&self, call: &'static str, result: i32) -> NcclError {
        let comm = Some(*self.comm).filter(|comm| !comm.is_null());
        NcclError::Call { call, words: self.nccl.words(result, comm) }
    }
}
