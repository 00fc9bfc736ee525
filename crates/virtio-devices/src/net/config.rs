// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's configuration space (VIRTIO 1.3, section 5.1.4).

use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use super::mac::MacAddress;

/// What the driver finds in it. Fields that belong to a feature which is not offered may hold anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NetConfig {
    /// `mac`, with `VIRTIO_NET_F_MAC`.
    pub(crate) mac: MacAddress,
    /// Bit 0 of `status`, with `VIRTIO_NET_F_STATUS`.
    pub(crate) link_up: bool,
    /// `max_virtqueue_pairs`, with `VIRTIO_NET_F_MQ`.
    pub(crate) queue_pairs: u16,
    /// `mtu`, with `VIRTIO_NET_F_MTU`.
    pub(crate) mtu: u16,
}

/// How many bytes of the space have a meaning with the features of this device.
const SIZE: usize = 12;

impl NetConfig {
    /// The space's bytes.
    pub(crate) fn bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        #[expect(clippy::cast_possible_truncation, reason = "the bit is 1")]
        let status: u16 = if self.link_up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        bytes[0..6].copy_from_slice(&self.mac.bytes());
        bytes[6..8].copy_from_slice(&status.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.queue_pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_section_5_1_4() {
        let mac = MacAddress::new([2, 3, 4, 5, 6, 7]).unwrap();
        let config = NetConfig { mac, link_up: true, queue_pairs: 0x0201, mtu: 1500 };
        assert_eq!(config.bytes(), [2, 3, 4, 5, 6, 7, 1, 0, 1, 2, 0xdc, 5]);
        assert_eq!(NetConfig { link_up: false, ..config }.bytes()[6..8], [0, 0]);
    }
}
