// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the virtio structures are: identity, capabilities and BARs of a virtio device on PCI. VIRTIO 1.3, sections 4.1.2 and 4.1.4.

use pci::{BarIndex, BarKind, Capability, ClassCode, ConfigSpace, Identity, IntxPin, MsixLayout};

use super::function::PciError;
use super::registers;

/// Virtio's vendor ID, also of the subsystem.
const VENDOR: u16 = 0x1af4;
/// The PCI device ID is this plus the virtio device ID.
const FIRST_DEVICE: u16 = 0x1040;
/// Tells drivers of a modern-only device from transitional ones: at least 0x40 (section 4.1.2.1).
const SUBSYSTEM: u16 = 0x1100;

/// Bytes of the BAR with the virtio structures.
pub(super) const REGISTERS_SIZE: u64 = 0x4000;
/// In it, each structure on a page of its own.
pub(super) const COMMON: u32 = 0x0000;
pub(super) const ISR: u32 = 0x1000;
pub(super) const DEVICE: u32 = 0x2000;
pub(super) const NOTIFY: u32 = 0x3000;
/// Each structure's room.
pub(super) const ROOM: u32 = 0x1000;
/// Bytes between the notification addresses of two queues: each has its own, and so its own ioeventfd.
pub(super) const NOTIFY_STEP: u32 = 4;
/// As many as there is room for.
pub(super) const MAX_QUEUES: usize = (ROOM / NOTIFY_STEP) as usize;

/// `cfg_type` of the capabilities.
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Offsets in a capability, from its start.
pub(super) const CAP_BAR: u8 = 4;
pub(super) const CAP_OFFSET: u8 = 8;
pub(super) const CAP_LENGTH: u8 = 12;
/// In the PCI configuration access capability: the window.
pub(super) const CAP_DATA: u8 = 16;

/// The BAR with the virtio structures: 64 bits wide, so it is BAR 0 and 1.
pub(super) fn registers_bar() -> Result<BarIndex, PciError> {
    bar(0)
}

/// The BAR with the MSI-X table and pending bits.
pub(super) fn msix_bar() -> Result<BarIndex, PciError> {
    bar(2)
}

fn bar(n: u8) -> Result<BarIndex, PciError> {
    BarIndex::new(n).map_err(PciError::layout)
}

/// A function as a driver finds it.
pub(super) struct Layout {
    pub(super) config: ConfigSpace,
    /// Where the PCI configuration access capability is.
    pub(super) access: u16,
}

/// Builds the configuration space of a device of virtio type `kind`, without MSI-X.
pub(super) fn build(kind: u32, pin: Option<IntxPin>) -> Result<Layout, PciError> {
    let device = u16::try_from(kind)
        .ok()
        .and_then(|kind| FIRST_DEVICE.checked_add(kind))
        .ok_or(PciError::DeviceType(kind))?;
    let mut config = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device,
        revision: 1,
        class: class(kind),
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    });
    config
        .add_bar(registers_bar()?, BarKind::Memory64 { prefetchable: true }, REGISTERS_SIZE)
        .map_err(PciError::layout)?;
    if let Some(pin) = pin {
        config.set_interrupt_pin(pin);
    }
    let mut add = |capability: &Capability| config.add_capability(capability).map_err(PciError::layout);
    add(&Capability::vendor_specific(&structure(CFG_COMMON, COMMON, registers::LENGTH, &[])))?;
    add(&Capability::vendor_specific(&structure(CFG_ISR, ISR, 1, &[])))?;
    add(&Capability::vendor_specific(&structure(CFG_DEVICE, DEVICE, ROOM, &[])))?;
    add(&Capability::vendor_specific(&structure(CFG_NOTIFY, NOTIFY, ROOM, &NOTIFY_STEP.to_le_bytes())))?;
    // The driver chooses BAR, offset and length; the data is a window, not a register: section 4.1.4.9.
    let window = Capability::vendor_specific(&structure(CFG_PCI, 0, 0, &[0; 4]))
        .writable(CAP_BAR..CAP_BAR + 1, 0xff)
        .writable(CAP_OFFSET..CAP_DATA, 0xff);
    let access = add(&window)?;
    Ok(Layout { config, access })
}

/// A `virtio_pci_cap` after its first three bytes, which are the capability's ID, link and length.
fn structure(kind: u8, offset: u32, length: u32, more: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 0];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(more);
    bytes
}

/// MSI-X with `vectors` vectors, in a BAR that is theirs, which is added.
pub(super) fn msix(config: &mut ConfigSpace, vectors: u16) -> Result<MsixLayout, PciError> {
    let bar = msix_bar()?;
    let table = u32::from(vectors) * 16;
    // The pending bits on a page of their own, of the usual size: a bitmap of 2048 bits at most.
    let pba = table.next_multiple_of(0x1000);
    let size = u64::from(pba + 0x1000).next_power_of_two();
    config.add_bar(bar, BarKind::Memory32 { prefetchable: false }, size).map_err(PciError::layout)?;
    MsixLayout::new(vectors, (bar, 0), (bar, pba.into())).map_err(PciError::layout)
}

/// The class a virtio device of a type has, as operating systems' installers and `lspci` know them.
fn class(kind: u32) -> ClassCode {
    let (base, sub) = match kind {
        1 => (0x02, 0x00),  // network controller, Ethernet
        2 => (0x01, 0x80),  // mass storage controller, other
        3 => (0x07, 0x80),  // communication controller, other
        19 => (0x02, 0x80), // network controller, other
        _ => (0x00, 0xff),  // unclassified: entropy, balloon
    };
    ClassCode { base, sub, interface: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interface, sub-class and base class, as `lspci` and installers look for them.
    #[test]
    fn devices_have_the_classes_by_which_they_are_looked_for() {
        for (kind, class) in [
            (1, [0x00, 0x00, 0x02]),
            (2, [0x00, 0x80, 0x01]),
            (3, [0x00, 0x80, 0x07]),
            (4, [0x00, 0xff, 0x00]),
            (5, [0x00, 0xff, 0x00]),
            (19, [0x00, 0x80, 0x02]),
        ] {
            let layout = build(kind, None).unwrap();
            assert_eq!(layout.config.bytes(9..12), class, "type {kind}");
            assert_eq!(layout.config.bytes(0x3d..0x3e), [0], "without a line");
        }
        assert!(build(0x1_0000, None).is_err() && build(0xefc0, None).is_err());
    }

    #[test]
    fn table_and_pending_bits_are_in_pages_of_their_own_within_the_bar() {
        for vectors in [1, 2, 256, 257, 1025] {
            let mut layout = build(2, Some(IntxPin::A)).unwrap();
            let msix = msix(&mut layout.config, vectors).unwrap();
            let (table, pending) = (msix.table().1, msix.pending().1);
            layout.config.write(0x18, &[0xff; 4]);
            let ones = layout.config.bytes(0x18..0x1c);
            let size = u64::from(!u32::from_le_bytes([ones[0], ones[1], ones[2], ones[3]])) + 1;
            assert!(table.end <= pending.start && pending.start.is_multiple_of(0x1000));
            assert_eq!(size, pending.end.next_multiple_of(0x1000).next_power_of_two());
            assert_eq!((msix.vectors(), layout.config.bytes(0x3d..0x3e)), (vectors, vec![1]));
        }
    }
}
