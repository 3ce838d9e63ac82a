//! How messages travel: protobuf, followed by a digest of its bytes. Every message with data is sealed and checked here,
//! whatever it says and whichever way it goes, so a bit that changes on the way never reaches a decoder.
//!
//! The digest is the field `message_digest` of the proto, the last one on the wire. It covers the bytes before it, which
//! every implementation of protobuf can make: encode the message without the field, hash, append.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::damage;

/// Bytes of the digest: the first of the message's BLAKE3.
const DIGEST_LEN: usize = 16;

/// Field 15, length-delimited, of 16 bytes.
const TAG: [u8; 2] = [15 << 3 | 2, DIGEST_LEN as u8];

/// Bytes behind a message.
const TAIL_LEN: usize = TAG.len() + DIGEST_LEN;

/// Messages that this process found damaged.
static DAMAGED: AtomicU64 = AtomicU64::new(0);

/// How many messages this process has found damaged since the count was taken last; it starts anew from 0.
pub fn take_damaged() -> u64 {
    DAMAGED.swap(0, Ordering::Relaxed)
}

/// A message of the protocol, and whether it travels with a digest.
pub trait Checked: Message {
    /// Its name in the proto.
    const NAME: &'static str;
    /// Without data nothing can come of a changed bit.
    const HAS_DIGEST: bool = true;

    /// The message's bytes as they travel.
    fn sealed(&self) -> Bytes
    where
        Self: Sized,
    {
        sealed(self).into()
    }
}

macro_rules! checked {
    ($($message:ident),*) => {
        $(impl Checked for crate::$message {
            const NAME: &'static str = stringify!($message);
        })*
    };
}

checked!(WorkerMessage, CoordinatorMessage, RankMessage);

impl Checked for crate::WorkMessage {
    const NAME: &'static str = "WorkMessage";

    /// Every rank gets the same sum: it is encoded and hashed once.
    fn sealed(&self) -> Bytes {
        match self.sum {
            Some(_) => SHARED.sealed(self),
            None => sealed(self).into(),
        }
    }
}

impl Checked for crate::StatusRequest {
    const NAME: &'static str = "StatusRequest";
    const HAS_DIGEST: bool = false;
}

impl Checked for crate::StatusReply {
    const NAME: &'static str = "StatusReply";
    const HAS_DIGEST: bool = false;
}

/// The codec of every call.
pub struct CheckedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for CheckedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Checked + Send + 'static, U: Checked + Default + Send + 'static> Codec for CheckedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Sealer<T>;
    type Decoder = Checker<U>;

    fn encoder(&mut self) -> Sealer<T> {
        Sealer(PhantomData)
    }

    fn decoder(&mut self) -> Checker<U> {
        Checker(PhantomData)
    }
}

/// The sending side of a [`CheckedCodec`].
pub struct Sealer<T>(PhantomData<T>);

impl<T: Checked> Encoder for Sealer<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message.sealed());
        Ok(())
    }
}

/// The latest sum for all ranks.
static SHARED: Shared = Shared(Mutex::new(None));

/// A message, and how it travels.
struct Shared(Mutex<Option<(crate::WorkMessage, Bytes)>>);

impl Shared {
    /// As [`sealed`], and made only if the last one was another.
    fn sealed(&self, message: &crate::WorkMessage) -> Bytes {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, bytes)) = latest.as_ref()
            && before == message
        {
            return bytes.clone();
        }
        let bytes = Bytes::from(sealed(message));
        *latest = Some((message.clone(), bytes.clone()));
        bytes
    }
}

/// The receiving side of a [`CheckedCodec`].
pub struct Checker<U>(PhantomData<U>);

impl<U: Checked + Default> Decoder for Checker<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        opened(damage::inject(U::NAME, bytes)).map(Some)
    }
}

/// A message's bytes as they travel.
fn sealed<T: Checked>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.encoded_len() + TAIL_LEN);
    // A vector grows as it has to.
    let _ = message.encode(&mut bytes);
    if T::HAS_DIGEST {
        let digest = digest(&bytes);
        bytes.extend_from_slice(&TAG);
        bytes.extend_from_slice(&digest);
    }
    bytes
}

/// The message in bytes that arrived.
///
/// # Errors
/// `DATA_LOSS` if the bytes are not those that were sent, which is counted; `INTERNAL` if they are and are no such message.
fn opened<U: Checked + Default>(mut bytes: Bytes) -> Result<U, Status> {
    if U::HAS_DIGEST {
        let Some(len) = checked_len(&bytes) else {
            DAMAGED.fetch_add(1, Ordering::Relaxed);
            return Err(Status::data_loss(format!(
                "a message ({}) was damaged on its way, or its sender is of another build",
                U::NAME
            )));
        };
        bytes.truncate(len);
    }
    U::decode(bytes).map_err(|error| Status::internal(error.to_string()))
}

/// How many of these bytes are the message; none if the digest behind it is not that of the bytes before it.
fn checked_len(bytes: &[u8]) -> Option<usize> {
    let len = bytes.len().checked_sub(TAIL_LEN)?;
    let (message, tail) = bytes.split_at(len);
    let (tag, found) = tail.split_at(TAG.len());
    (tag == TAG && found == digest(message)).then_some(len)
}

fn digest(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    let mut digest = [0; DIGEST_LEN];
    digest.copy_from_slice(&blake3::hash(bytes).as_bytes()[..DIGEST_LEN]);
    digest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Heartbeat, MicroBatch, RankMessage, Sample, StatusRequest, Sum, WorkMessage, WorkerMessage};
    use crate::{sample, worker_message};

    fn work() -> WorkMessage {
        let sample = |index| Sample { index, target: 0.5, input: Some(sample::Input::Number(1.5)) };
        let samples = (0..4).map(sample).collect();
        WorkMessage { sum: None, work: vec![MicroBatch { unit: 7, micro_batch: 3, samples, audit: false }] }
    }

    fn open<U: Checked + Default>(bytes: &[u8]) -> Result<U, tonic::Code> {
        opened(Bytes::copy_from_slice(bytes)).map_err(|status| status.code())
    }

    #[test]
    fn messages_come_back() {
        assert_eq!(open(&sealed(&work())), Ok(work()));
        let heartbeat = worker_message::Message::Heartbeat(Heartbeat { generation: 3, ..Heartbeat::default() });
        let message = WorkerMessage { message: Some(heartbeat) };
        assert_eq!(open(&sealed(&message)), Ok(message));
        assert_eq!(open(&sealed(&RankMessage::default())), Ok(RankMessage::default()));
        assert_eq!(sealed(&StatusRequest {}), Vec::<u8>::new(), "it carries nothing");
    }

    #[test]
    fn a_sealed_message_is_protobuf_whose_last_field_is_the_digest() {
        let bytes = sealed(&work());
        assert_eq!(WorkMessage::decode(bytes.as_slice()), Ok(work()), "others pass over the digest");
        let tail = &bytes[bytes.len() - TAIL_LEN..];
        assert_eq!(tail[..2], [0x7a, 16]);
        assert_eq!(tail[2..], blake3::hash(&work().encode_to_vec()).as_bytes()[..16]);
    }

    #[test]
    fn a_message_for_all_is_sealed_as_any_other() {
        let of = |sum: &'static [u8]| WorkMessage {
            sum: Some(Sum { unit: 7, sum: sum.into(), ..Sum::default() }),
            work: Vec::new(),
        };
        for message in [of(b"0000"), of(b"0000"), of(b"0001"), of(b""), of(b"0000")] {
            assert_eq!(SHARED.sealed(&message), sealed(&message));
        }
    }

    #[test]
    fn every_changed_bit_is_found_and_counted() {
        let bytes = sealed(&work());
        take_damaged();
        for bit in 0..8 * bytes.len() {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open::<WorkMessage>(&changed), Err(tonic::Code::DataLoss), "bit {bit}");
        }
        assert!(take_damaged() >= 8 * bytes.len() as u64);
    }

    proptest! {
        #[test]
        fn what_was_not_sealed_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(open::<WorkMessage>(&bytes), Err(tonic::Code::DataLoss));
        }

        #[test]
        fn a_message_that_was_cut_off_is_refused(cut in 0usize..60) {
            let bytes = sealed(&work());
            let len = cut.min(bytes.len() - 1);
            prop_assert_eq!(open::<WorkMessage>(&bytes[..len]), Err(tonic::Code::DataLoss));
        }
    }
}
