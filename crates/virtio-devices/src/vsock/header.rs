// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The header of a packet (VIRTIO 1.3, section 5.10.6).
//!
//! The packet type of the crate virtio-vsock finds a packet's data in one buffer only. Drivers may cut it up as they like (section 2.7.4.2),
//! and Linux does since it sends pages of its callers' (from 6.7 on with `MSG_ZEROCOPY`); so the header is all that is taken apart here.

/// How many bytes it has.
pub(crate) const SIZE: u32 = 44;

/// `VIRTIO_VSOCK_TYPE_STREAM`: the only type of connection there is here.
pub(crate) const STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_RCV`: the sender is not going to receive any more.
pub(crate) const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_SEND`: the sender is not going to send any more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;

/// What a packet is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Op {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Data = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Op {
    fn new(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|&op| op as u16 == number)
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source_cid: u64,
    pub(crate) destination_cid: u64,
    pub(crate) source_port: u32,
    pub(crate) destination_port: u32,
    pub(crate) length: u32,
    pub(crate) kind: u16,
    /// `None` for an operation that the specification does not know.
    pub(crate) op: Option<Op>,
    pub(crate) flags: u32,
    pub(crate) buffer_size: u32,
    pub(crate) forwarded: u32,
}

impl Header {
    /// Takes it apart.
    pub(crate) fn parse(bytes: &[u8; SIZE as usize]) -> Self {
        let u64_at = |at| u64::from(u32_of(bytes, at)) | u64::from(u32_of(bytes, at + 4)) << 32;
        let u16_at = |at: usize| u16::from_le_bytes([byte_of(bytes, at), byte_of(bytes, at + 1)]);
        Self {
            source_cid: u64_at(0),
            destination_cid: u64_at(8),
            source_port: u32_of(bytes, 16),
            destination_port: u32_of(bytes, 20),
            length: u32_of(bytes, 24),
            kind: u16_at(28),
            op: Op::new(u16_at(30)),
            flags: u32_of(bytes, 32),
            buffer_size: u32_of(bytes, 36),
            forwarded: u32_of(bytes, 40),
        }
    }

    /// Puts it together.
    pub(crate) fn bytes(&self) -> [u8; SIZE as usize] {
        let mut bytes = [0; SIZE as usize];
        let op = self.op.map_or(0, |op| op as u16);
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| {
            if let Some((to, others)) = std::mem::take(&mut rest).split_at_mut_checked(field.len()) {
                to.copy_from_slice(field);
                rest = others;
            }
        };
        put(&self.source_cid.to_le_bytes());
        put(&self.destination_cid.to_le_bytes());
        put(&self.source_port.to_le_bytes());
        put(&self.destination_port.to_le_bytes());
        put(&self.length.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buffer_size.to_le_bytes());
        put(&self.forwarded.to_le_bytes());
        bytes
    }
}

fn byte_of(bytes: &[u8; SIZE as usize], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

fn u32_of(bytes: &[u8; SIZE as usize], at: usize) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|i| byte_of(bytes, at + i)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_that_of_section_5_10_6() {
        let bytes: [u8; 44] = std::array::from_fn(|i| match i {
            30 => 5,
            31 => 0,
            i => u8::try_from(i).unwrap(),
        });
        let header = Header::parse(&bytes);
        assert_eq!(
            header,
            Header {
                source_cid: 0x0706_0504_0302_0100,
                destination_cid: 0x0f0e_0d0c_0b0a_0908,
                source_port: 0x1312_1110,
                destination_port: 0x1716_1514,
                length: 0x1b1a_1918,
                kind: 0x1d1c,
                op: Some(Op::Data),
                flags: 0x2322_2120,
                buffer_size: 0x2726_2524,
                forwarded: 0x2b2a_2928,
            }
        );
        assert_eq!(header.bytes(), bytes);
    }

    proptest! {
        #[test]
        fn what_is_taken_apart_can_be_put_together(bytes: [u8; 32], more: [u8; 12]) {
            let bytes: [u8; 44] = [&bytes[..], &more].concat().try_into().unwrap();
            let header = Header::parse(&bytes);
            prop_assert_eq!(Header::parse(&header.bytes()), header);
            if header.op.is_some() {
                prop_assert_eq!(header.bytes(), bytes);
            }
        }
    }
}
