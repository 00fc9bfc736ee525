// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel says of a device: its regions and interrupts, decoded from the structures of `include/uapi/linux/vfio.h`.

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_AMBA, VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_PLATFORM, VFIO_DEVICE_FLAGS_RESET,
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_NORESIZE,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};

use irq_types::TriggerMode;

/// `VFIO_DEVICE_GET_INFO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceInfo {
    /// `VFIO_DEVICE_FLAGS_*`.
    pub flags: u32,
    /// How many regions.
    pub regions: u32,
    /// How many interrupt indexes.
    pub irqs: u32,
}

/// What bus a VFIO device is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// `vfio-pci` and its relatives.
    Pci,
    /// `vfio-platform`.
    Platform,
    /// `vfio-amba`.
    Amba,
}

impl DeviceInfo {
    /// What it is, if it is something that this crate knows.
    #[must_use]
    pub const fn kind(&self) -> Option<DeviceKind> {
        if self.flags & VFIO_DEVICE_FLAGS_PCI != 0 {
            Some(DeviceKind::Pci)
        } else if self.flags & VFIO_DEVICE_FLAGS_AMBA != 0 {
            Some(DeviceKind::Amba)
        } else if self.flags & VFIO_DEVICE_FLAGS_PLATFORM != 0 {
            Some(DeviceKind::Platform)
        } else {
            None
        }
    }

    /// Whether `VFIO_DEVICE_RESET` does something.
    #[must_use]
    pub const fn can_reset(&self) -> bool {
        self.flags & VFIO_DEVICE_FLAGS_RESET != 0
    }
}

/// `VFIO_DEVICE_GET_REGION_INFO` with what its capabilities say about mapping.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegionInfo {
    /// Bytes; 0 for one that is not there.
    pub size: u64,
    /// Where it begins in the device's file.
    pub offset: u64,
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub flags: u32,
    /// If the kernel lets only parts of it be mapped: those, as (offset in the region, bytes).
    pub sparse: Option<Vec<(u64, u64)>>,
    /// The page of an MSI-X table in it may be mapped too (`VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`); the guest's accesses to it are
    /// trapped all the same, but the mapping need not leave it out.
    pub msix_mappable: bool,
}

/// Bytes of `struct vfio_region_info`.
pub(crate) const REGION_INFO_SIZE: usize = 32;
/// Bytes of a description that are believed; the kernel's largest are a few hundred.
pub(crate) const MAX_INFO: usize = 64 << 10;

impl RegionInfo {
    /// Whether loads reach it.
    #[must_use]
    pub const fn readable(&self) -> bool {
        self.flags & VFIO_REGION_INFO_FLAG_READ != 0
    }

    /// Whether stores reach it.
    #[must_use]
    pub const fn writable(&self) -> bool {
        self.flags & VFIO_REGION_INFO_FLAG_WRITE != 0
    }

    /// Whether it, or the parts in [`sparse`](Self::sparse), can be mapped.
    #[must_use]
    pub const fn mappable(&self) -> bool {
        self.flags & VFIO_REGION_INFO_FLAG_MMAP != 0
    }

    /// Decodes what the kernel wrote: `struct vfio_region_info` and the chain of capabilities behind it.
    ///
    /// # Errors
    /// What is wrong with it: too short, or a chain that leaves it or does not end.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let short = || format!("a region's description has only {} bytes", bytes.len());
        let flags = word(bytes, 4).ok_or_else(short)?;
        let mut info = Self {
            flags,
            size: quad(bytes, 16).ok_or_else(short)?,
            offset: quad(bytes, 24).ok_or_else(short)?,
            ..Self::default()
        };
        let mut at = match flags & VFIO_REGION_INFO_FLAG_CAPS {
            0 => 0,
            _ => word(bytes, 12).ok_or_else(short)? as usize,
        };
        // Each step goes forward, as the kernel's own chains do, so it ends.
        while at != 0 {
            let outside = || format!("a region's capability lies at {at}, outside of its description");
            let id = u32::from(half(bytes, at).ok_or_else(outside)?);
            let next = word(bytes, at + 4).ok_or_else(outside)? as usize;
            match id {
                VFIO_REGION_INFO_CAP_SPARSE_MMAP => {
                    info.sparse = Some(sparse(bytes, at).ok_or_else(outside)?)
                }
                VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => info.msix_mappable = true,
                _ => {}
            }
            if next != 0 && next <= at {
                return Err(format!("a region's capabilities go back from {at} to {next}"));
            }
            at = next;
        }
        Ok(info)
    }
}

/// `struct vfio_region_info_cap_sparse_mmap`: header, number of areas, reserved, areas.
fn sparse(bytes: &[u8], at: usize) -> Option<Vec<(u64, u64)>> {
    let count = word(bytes, at + 8)? as usize;
    (0..count)
        .map(|i| {
            let area = at.checked_add(16)?.checked_add(i.checked_mul(16)?)?;
            Some((quad(bytes, area)?, quad(bytes, area + 8)?))
        })
        .collect()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

fn quad(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_ne_bytes)
}

/// `VFIO_DEVICE_GET_IRQ_INFO`: one index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IrqInfo {
    /// How many vectors; 0 for an index that the device does not have.
    pub count: u32,
    /// `VFIO_IRQ_INFO_*`.
    pub flags: u32,
}

impl IrqInfo {
    /// Whether it can signal eventfds.
    #[must_use]
    pub const fn has_eventfd(&self) -> bool {
        self.flags & VFIO_IRQ_INFO_EVENTFD != 0
    }

    /// How the device signals: an index that the host masks by itself when it fires is a level, since it would fire for ever otherwise;
    /// any other is an edge (Linux 6.12, `drivers/vfio/platform/vfio_platform_irq.c`, `vfio_platform_irq_init`).
    #[must_use]
    pub const fn mode(&self) -> TriggerMode {
        if self.flags & VFIO_IRQ_INFO_AUTOMASKED != 0 { TriggerMode::Level } else { TriggerMode::Edge }
    }

    /// Whether vectors can be added while others are in use (`VFIO_IRQ_INFO_NORESIZE` is clear).
    #[must_use]
    pub const fn can_grow(&self) -> bool {
        self.flags & VFIO_IRQ_INFO_NORESIZE == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_bindings::bindings::vfio::VFIO_IRQ_INFO_MASKABLE;

    fn region(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    const CAPS: u32 = VFIO_REGION_INFO_FLAG_CAPS | VFIO_REGION_INFO_FLAG_MMAP;

    #[cfg(target_endian = "little")]
    #[test]
    fn regions_are_decoded_with_their_capabilities() {
        // argsz, flags, index, cap_offset, size, offset; MSI-X mappable; sparse with two areas.
        let bytes = region(&[
            88,
            CAPS,
            4,
            32,
            0x4000,
            0,
            0,
            0x100, // the region
            0x0001_0003,
            40, // id 3, version 1, next
            0x0001_0001,
            0,
            2,
            0,
            0,
            0,
            0x1000,
            0,
            0x3000,
            0,
            0x1000,
            0, // id 1
        ]);
        let info = RegionInfo::decode(&bytes).unwrap();
        assert_eq!(
            info,
            RegionInfo {
                size: 0x4000,
                offset: 0x100_0000_0000,
                flags: CAPS,
                sparse: Some(vec![(0, 0x1000), (0x3000, 0x1000)]),
                msix_mappable: true,
            }
        );
        assert!(info.mappable() && !info.readable());
    }

    #[test]
    fn descriptions_that_make_no_sense_are_errors() {
        for (what, words) in [
            ("short", vec![32, 0, 0, 0, 1]),
            ("chain outside", vec![32, CAPS, 0, 4000, 0, 0, 0, 0]),
            ("chain to itself", vec![40, CAPS, 0, 32, 0, 0, 0, 0, 3, 32]),
            ("chain backwards", vec![40, CAPS, 0, 32, 0, 0, 0, 0, 3, 8]),
            ("areas outside", vec![48, CAPS, 0, 32, 0, 0, 0, 0, 1, 0, u32::MAX, 0]),
        ] {
            assert!(RegionInfo::decode(&region(&words)).is_err(), "{what}");
        }
    }

    #[test]
    fn automasked_is_level() {
        let irq = |flags| IrqInfo { count: 1, flags };
        assert_eq!(irq(VFIO_IRQ_INFO_EVENTFD).mode(), TriggerMode::Edge);
        assert_eq!(irq(VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED).mode(), TriggerMode::Level);
    }
}
