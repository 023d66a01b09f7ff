//! The handshake from the client's side, and bytes of any kind.

use std::io::IoSlice;
use std::rc::Rc;

use glidefs::nbd::wire::{self, Cursor, OptionHeader, allocation, hello, info, option, reply};
use world::{Address, Stream, World};

use super::{ClientError, Export, REPLY_BYTES_MAX, broken, length};

/// A connection whose bytes are the test's own business.
#[derive(Debug)]
pub struct RawNbd<W: World> {
    pub stream: Rc<W::Stream>,
    received: Vec<u8>,
}

impl<W: World> RawNbd<W> {
    pub async fn connect(world: &W, to: &Address) -> Result<Self, ClientError> {
        let stream = Rc::new(world.connect(to).await?);
        let received = Vec::new();
        Ok(Self { stream, received })
    }

    pub async fn send(&self, bytes: &[u8]) -> Result<(), ClientError> {
        Ok(self.stream.write_all(&mut [IoSlice::new(bytes)]).await?)
    }

    /// Exactly so many bytes; [`ClientError::Closed`] if the stream ends before.
    pub async fn receive(&mut self, count: usize) -> Result<Vec<u8>, ClientError> {
        while self.received.len() < count {
            let missing = count - self.received.len();
            self.received.reserve(missing.max(4096));
            if self.stream.read(&mut self.received).await? == 0 {
                return Err(ClientError::Closed);
            }
        }
        let rest = self.received.split_off(count);
        Ok(std::mem::replace(&mut self.received, rest))
    }

    pub(super) async fn receive_array<const N: usize>(&mut self) -> Result<[u8; N], ClientError> {
        let bytes = self.receive(N).await?;
        Ok(bytes.try_into().expect("receive gives what was asked"))
    }

    /// Reads the greeting and answers it.
    pub async fn greet(&mut self) -> Result<(), ClientError> {
        let greeting = self.receive(wire::GREETING_BYTES).await?;
        let mut cursor = Cursor::new(&greeting);
        let magic = (cursor.u64(), cursor.u64());
        let flags = cursor.u16().unwrap_or(0);
        let wanted = hello::FIXED_NEWSTYLE | hello::NO_ZEROES;
        if magic != (Some(wire::GREETING_MAGIC), Some(wire::OPTION_MAGIC)) || flags != wanted {
            return Err(broken(format!("greeting {greeting:x?}")));
        }
        self.send(&u32::from(wanted).to_be_bytes()).await
    }

    pub async fn send_option(&self, option: u32, data: &[u8]) -> Result<(), ClientError> {
        let length = u32::try_from(data.len()).expect("options are short");
        let mut bytes = OptionHeader { option, length }.encode().to_vec();
        bytes.extend_from_slice(data);
        self.send(&bytes).await
    }

    /// The kind and data of one reply; an error reply is [`ClientError::Refused`].
    pub async fn receive_reply(&mut self, to: u32) -> Result<(u32, Vec<u8>), ClientError> {
        let magic = u64::from_be_bytes(self.receive_array().await?);
        let option = u32::from_be_bytes(self.receive_array().await?);
        let kind = u32::from_be_bytes(self.receive_array().await?);
        let count = length(u32::from_be_bytes(self.receive_array().await?));
        if magic != wire::OPTION_REPLY_MAGIC || option != to || count > REPLY_BYTES_MAX {
            let what = format!("reply {magic:#x} to option {option}, {count} bytes");
            return Err(broken(what));
        }
        let data = self.receive(count).await?;
        if reply::is_error(kind) {
            let text = String::from_utf8(data).map_err(|_not_text| broken("an error's text"))?;
            return Err(ClientError::Refused { kind, text });
        }
        Ok((kind, data))
    }

    pub(super) async fn structured(&mut self) -> Result<(), ClientError> {
        self.send_option(option::STRUCTURED_REPLY, &[]).await?;
        self.receive_reply(option::STRUCTURED_REPLY).await.map(drop)
    }

    pub(super) async fn set_allocation(
        &mut self,
        export: &str,
    ) -> Result<Option<u32>, ClientError> {
        let mut data = Vec::new();
        wire::push_string(&mut data, export);
        data.extend_from_slice(&1_u32.to_be_bytes());
        wire::push_string(&mut data, allocation::CONTEXT);
        self.send_option(option::SET_META_CONTEXT, &data).await?;
        let mut id = None;
        loop {
            let (kind, data) = self.receive_reply(option::SET_META_CONTEXT).await?;
            if kind == reply::ACK {
                return Ok(id);
            }
            id = Cursor::new(&data).u32();
            if kind != reply::META_CONTEXT || data.get(4..) != Some(allocation::CONTEXT.as_bytes())
            {
                return Err(broken(format!("context {data:x?}")));
            }
        }
    }

    pub(super) async fn describe(
        &mut self,
        option: u32,
        export: &str,
    ) -> Result<Export, ClientError> {
        let mut data = Vec::new();
        wire::push_string(&mut data, export);
        data.extend_from_slice(&0_u16.to_be_bytes());
        self.send_option(option, &data).await?;
        let mut described = None;
        let mut block_sizes = None;
        loop {
            let (kind, data) = self.receive_reply(option).await?;
            let mut cursor = Cursor::new(&data);
            match (kind, cursor.u16()) {
                (reply::ACK, None) => break,
                (reply::INFO, Some(info::EXPORT)) => {
                    described = cursor.u64().zip(cursor.u16());
                }
                (reply::INFO, Some(info::BLOCK_SIZE)) => {
                    let sizes = (cursor.u32(), cursor.u32(), cursor.u32());
                    let (Some(min), Some(preferred), Some(max)) = sizes else {
                        return Err(broken("block sizes"));
                    };
                    block_sizes = Some((min, preferred, max));
                }
                (reply::INFO, Some(_)) => {}
                (kind, _) => return Err(broken(format!("reply {kind:#x} to GO"))),
            }
        }
        let (size_bytes, flags) = described.ok_or_else(|| broken("no size"))?;
        Ok(Export {
            size_bytes,
            flags,
            block_sizes,
            ..Export::default()
        })
    }

    pub(super) async fn export_name(&mut self, export: &str) -> Result<Export, ClientError> {
        self.send_option(option::EXPORT_NAME, export.as_bytes())
            .await?;
        Ok(Export {
            size_bytes: u64::from_be_bytes(self.receive_array().await?),
            flags: u16::from_be_bytes(self.receive_array().await?),
            ..Export::default()
        })
    }
}
