// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Feature bits of the network device (VIRTIO 1.3, section 5.1.3), and what they are called on the tap's side.

use virtio_bindings::virtio_net as bits;

/// A feature bit of the network device.
const fn bit(number: u32) -> u64 {
    1 << number
}

pub(crate) const CSUM: u64 = bit(bits::VIRTIO_NET_F_CSUM);
pub(crate) const GUEST_CSUM: u64 = bit(bits::VIRTIO_NET_F_GUEST_CSUM);
pub(crate) const CTRL_GUEST_OFFLOADS: u64 = bit(bits::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
pub(crate) const MTU: u64 = bit(bits::VIRTIO_NET_F_MTU);
pub(crate) const MAC: u64 = bit(bits::VIRTIO_NET_F_MAC);
pub(crate) const GUEST_TSO4: u64 = bit(bits::VIRTIO_NET_F_GUEST_TSO4);
pub(crate) const GUEST_TSO6: u64 = bit(bits::VIRTIO_NET_F_GUEST_TSO6);
pub(crate) const GUEST_ECN: u64 = bit(bits::VIRTIO_NET_F_GUEST_ECN);
pub(crate) const GUEST_UFO: u64 = bit(bits::VIRTIO_NET_F_GUEST_UFO);
pub(crate) const GUEST_USO4: u64 = bit(bits::VIRTIO_NET_F_GUEST_USO4);
pub(crate) const GUEST_USO6: u64 = bit(bits::VIRTIO_NET_F_GUEST_USO6);
pub(crate) const HOST_TSO4: u64 = bit(bits::VIRTIO_NET_F_HOST_TSO4);
pub(crate) const HOST_TSO6: u64 = bit(bits::VIRTIO_NET_F_HOST_TSO6);
pub(crate) const HOST_ECN: u64 = bit(bits::VIRTIO_NET_F_HOST_ECN);
pub(crate) const HOST_UFO: u64 = bit(bits::VIRTIO_NET_F_HOST_UFO);
pub(crate) const HOST_USO: u64 = bit(bits::VIRTIO_NET_F_HOST_USO);
pub(crate) const MRG_RXBUF: u64 = bit(bits::VIRTIO_NET_F_MRG_RXBUF);
pub(crate) const STATUS: u64 = bit(bits::VIRTIO_NET_F_STATUS);
pub(crate) const CTRL_VQ: u64 = bit(bits::VIRTIO_NET_F_CTRL_VQ);
pub(crate) const CTRL_RX: u64 = bit(bits::VIRTIO_NET_F_CTRL_RX);
pub(crate) const CTRL_RX_EXTRA: u64 = bit(bits::VIRTIO_NET_F_CTRL_RX_EXTRA);
pub(crate) const MQ: u64 = bit(bits::VIRTIO_NET_F_MQ);
pub(crate) const CTRL_MAC_ADDR: u64 = bit(bits::VIRTIO_NET_F_CTRL_MAC_ADDR);

/// Everything that the driver may switch off and on again while the device runs (section 5.1.6.5.6.1).
pub(crate) const GUEST_OFFLOADS: u64 =
    GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6;

/// What a tap takes and gives in place of finished packets: a set of the kernel's `TUN_F_` flags (Linux 6.12,
/// `include/uapi/linux/if_tun.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TapOffloads(u32);

impl TapOffloads {
    const CSUM: u32 = 0x01;
    const TSO4: u32 = 0x02;
    const TSO6: u32 = 0x04;
    const TSO_ECN: u32 = 0x08;
    const UFO: u32 = 0x10;
    const USO: u32 = 0x20 | 0x40;

    /// Nothing: only finished packets.
    pub(crate) const NONE: Self = Self(0);

    /// What to ask a tap for, the most first: kernels before 6.2 know nothing of segmented UDP. A kernel refuses a set with a flag that it
    /// does not know.
    pub(crate) const PROBES: [Self; 4] = [
        Self(Self::CSUM | Self::TSO4 | Self::TSO6 | Self::TSO_ECN | Self::UFO | Self::USO),
        Self(Self::CSUM | Self::TSO4 | Self::TSO6 | Self::TSO_ECN | Self::UFO),
        Self(Self::CSUM | Self::TSO4 | Self::TSO6 | Self::TSO_ECN),
        Self(Self::CSUM),
    ];

    /// What the guest is willing to receive.
    ///
    /// The kernel refuses a flag whose prerequisite is missing, and knows UDP segmentation for both versions of IP or for none (`set_offload`,
    /// Linux 6.12, `drivers/net/tun.c`). So what a driver asks for without the prerequisites, against section 5.1.3.1, is left out here.
    pub(crate) fn from_guest(features: u64) -> Self {
        let has = |feature| features & feature == feature;
        if !has(GUEST_CSUM) {
            return Self::NONE;
        }
        let mut flags = Self::CSUM;
        let mut put = |condition, flag| flags |= if condition { flag } else { 0 };
        put(has(GUEST_TSO4), Self::TSO4);
        put(has(GUEST_TSO6), Self::TSO6);
        put(has(GUEST_ECN) && (has(GUEST_TSO4) || has(GUEST_TSO6)), Self::TSO_ECN);
        put(has(GUEST_UFO), Self::UFO);
        put(has(GUEST_USO4 | GUEST_USO6), Self::USO);
        Self(flags)
    }

    /// The feature bits that a tap which can do this stands behind, both ways.
    pub(crate) fn features(self) -> u64 {
        let mut features = 0;
        for (flags, both_ways) in [
            (Self::CSUM, CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS),
            (Self::TSO4, HOST_TSO4 | GUEST_TSO4),
            (Self::TSO6, HOST_TSO6 | GUEST_TSO6),
            (Self::TSO_ECN, HOST_ECN | GUEST_ECN),
            (Self::UFO, HOST_UFO | GUEST_UFO),
            (Self::USO, HOST_USO | GUEST_USO4 | GUEST_USO6),
        ] {
            if self.0 & flags == flags {
                features |= both_ways;
            }
        }
        features
    }

    /// The flags as the kernel takes them.
    pub(crate) fn flags(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `set_offload` of Linux 6.12, `drivers/net/tun.c`: whether it takes `flags`.
    fn kernel_takes(mut flags: u32) -> bool {
        if flags & 1 != 0 {
            flags &= !1;
            if flags & 6 != 0 {
                flags &= !(8 | 6);
            }
            flags &= !0x10;
            if flags & 0x60 == 0x60 {
                flags &= !0x60;
            }
        }
        flags == 0
    }

    #[test]
    fn whatever_a_driver_asks_for_the_kernel_takes() {
        let offloads = [GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO, GUEST_USO4, GUEST_USO6];
        for set in 0..1_u32 << offloads.len() {
            let features = offloads
                .iter()
                .enumerate()
                .filter(|(i, _)| set & 1 << i != 0)
                .fold(0, |all, (_, bit)| all | bit);
            let flags = TapOffloads::from_guest(features).flags();
            assert!(kernel_takes(flags), "features {features:#x} became {flags:#x}");
        }
        for probe in TapOffloads::PROBES {
            assert!(kernel_takes(probe.flags()));
        }
    }

    #[test]
    fn each_flag_stands_behind_its_own_bits() {
        let all = TapOffloads::PROBES[0].features();
        assert_eq!(all & GUEST_OFFLOADS, GUEST_OFFLOADS);
        assert_eq!(TapOffloads::from_guest(all), TapOffloads::PROBES[0]);
        assert_eq!(TapOffloads::NONE.features(), 0);
        assert_eq!(TapOffloads::PROBES[3].features(), CSUM | GUEST_CSUM | CTRL_GUEST_OFFLOADS);
        assert_eq!(TapOffloads::PROBES[1].features() & (HOST_USO | GUEST_USO4 | GUEST_USO6), 0);
    }

    #[test]
    fn segmentation_wants_checksums_first() {
        assert_eq!(TapOffloads::from_guest(GUEST_OFFLOADS & !GUEST_CSUM), TapOffloads::NONE);
        assert_eq!(TapOffloads::from_guest(GUEST_CSUM | GUEST_USO4).flags(), 1);
        assert_eq!(TapOffloads::from_guest(GUEST_CSUM | GUEST_ECN).flags(), 1);
        assert_eq!(TapOffloads::from_guest(GUEST_CSUM | GUEST_TSO4 | GUEST_ECN).flags(), 1 | 2 | 8);
        assert_eq!(TapOffloads::from_guest(GUEST_CSUM | GUEST_TSO6 | GUEST_ECN).flags(), 1 | 4 | 8);
    }
}
