// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are in a configuration header (PCI Express base specification 6.0, sections 7.5.1.1 to 7.5.1.3).

pub(crate) const VENDOR_ID: u16 = 0x00;
pub(crate) const COMMAND: u16 = 0x04;
pub(crate) const REVISION_ID: u16 = 0x08;
pub(crate) const CACHE_LINE_SIZE: u16 = 0x0c;
pub(crate) const HEADER_TYPE: u16 = 0x0e;
pub(crate) const BAR_0: u16 = 0x10;
pub(crate) const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
pub(crate) const ROM_BAR: u16 = 0x30;
pub(crate) const CAPABILITIES: u16 = 0x34;
pub(crate) const INTERRUPT_LINE: u16 = 0x3c;
pub(crate) const INTERRUPT_PIN: u16 = 0x3d;

// Type 1: bridges.
pub(crate) const PRIMARY_BUS: u16 = 0x18;
pub(crate) const IO_BASE: u16 = 0x1c;
pub(crate) const MEMORY_BASE: u16 = 0x20;
pub(crate) const PREFETCHABLE_BASE: u16 = 0x24;
pub(crate) const PREFETCHABLE_BASE_HIGH: u16 = 0x28;
pub(crate) const PREFETCHABLE_LIMIT_HIGH: u16 = 0x2c;
pub(crate) const IO_BASE_HIGH: u16 = 0x30;
pub(crate) const BRIDGE_CONTROL: u16 = 0x3e;

/// Command register: I/O space decodes.
pub(crate) const COMMAND_IO: u32 = 1 << 0;
/// Command register: memory space decodes.
pub(crate) const COMMAND_MEMORY: u32 = 1 << 1;
/// Command register: the function may send requests.
pub(crate) const COMMAND_BUS_MASTER: u32 = 1 << 2;
/// Command register: parity error response, SERR# enable, interrupt disable. All that a PCIe function has besides the three above.
pub(crate) const COMMAND_OTHERS: u32 = 1 << 6 | 1 << 8 | COMMAND_INTX_DISABLE;
/// Command register: INTx is not asserted.
pub(crate) const COMMAND_INTX_DISABLE: u32 = 1 << 10;
/// Status register, as seen from the command register's offset: INTx is pending.
pub(crate) const STATUS_INTX: u32 = 1 << (16 + 3);
/// The same: there is a list of capabilities.
pub(crate) const STATUS_CAPABILITIES: u32 = 1 << (16 + 4);
/// The same: the error bits that software clears.
pub(crate) const STATUS_ERRORS: u32 = 0xf900 << 16;

/// Header type: more functions than function 0.
pub(crate) const MULTIFUNCTION: u8 = 0x80;

/// BAR: it decodes I/O ports.
pub(crate) const BAR_IO: u32 = 1;
/// BAR: its address has 64 bits.
pub(crate) const BAR_64: u32 = 2 << 1;
/// BAR: reads have no side effects and writes may be merged.
pub(crate) const BAR_PREFETCHABLE: u32 = 1 << 3;
/// Expansion ROM BAR: it decodes.
pub(crate) const ROM_ENABLE: u32 = 1;

/// How large the standard part is, in which capabilities lie.
pub(crate) const STANDARD: u16 = 0x100;
/// How large configuration space is.
pub(crate) const EXTENDED: u16 = 0x1000;
/// Where capabilities may begin.
pub(crate) const FIRST_CAPABILITY: u16 = 0x40;
