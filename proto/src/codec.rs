//! The codec of every call: protobuf, with our own words for bytes that are no message.
//!
//! The library's own codec says INTERNAL with no details, as if the fault were this side's.

use crate::v1::{AppendStreamRequest, Failure, Reason};
use prost::Message;
use std::any::Any;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Encodes `E` and decodes `D`.
#[derive(Clone, Copy, Debug)]
pub struct Codec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for Codec<E, D> {
    fn default() -> Self {
        Codec(PhantomData)
    }
}

impl<E, D> tonic::codec::Codec for Codec<E, D>
where
    E: Message + Send + 'static,
    D: Message + Default + Send + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = Writer<E>;
    type Decoder = Reader<D>;

    fn encoder(&mut self) -> Writer<E> {
        Writer(PhantomData)
    }

    fn decoder(&mut self) -> Reader<D> {
        Reader(PhantomData)
    }
}

/// Bytes that are set aside for a message before it is known, and of how many messages go together.
const BUFFER: (usize, usize) = (512, 32 << 10);

/// Writes one message after the other, in as much memory as they take.
#[derive(Clone, Copy, Debug)]
pub struct Writer<E>(PhantomData<E>);

impl<E: Message + 'static> Encoder for Writer<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, message: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.encoded_len());
        message
            .encode(buffer)
            .map_err(|error| Status::internal(format!("a message cannot be written: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER.0, BUFFER.1)
    }
}

/// Reads one message after the other.
#[derive(Clone, Copy, Debug)]
pub struct Reader<D>(PhantomData<D>);

impl<D: Message + Default + 'static> Decoder for Reader<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let mut message = D::default();
        match message.merge(&mut *buffer) {
            Ok(()) => Ok(Some(message)),
            Err(error) => {
                // The frame is over: what is left of it is not the next message.
                bytes::Buf::advance(buffer, bytes::Buf::remaining(buffer));
                if salvage(&mut message) {
                    return Ok(Some(message));
                }
                let why = format!("the message cannot be read: {error}");
                Err(Failure::new(Reason::Malformed, why).to_status())
            }
        }
    }
}

/// Of a request on the append stream whose tag was read only the append is given up: the other calls on the stream go on.
fn salvage(message: &mut dyn Any) -> bool {
    match message.downcast_mut::<AppendStreamRequest>() {
        Some(request) if request.tag != 0 => {
            request.append = None;
            true
        }
        _ => false,
    }
}
