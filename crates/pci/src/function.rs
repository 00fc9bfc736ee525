// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a bus needs of a function, and the other way round.

use irq_types::{Bdf, OutOfRange};

/// Which BAR of a function: 0 to 5, or 6 for the expansion ROM. A 64-bit BAR has the number of its lower half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BarIndex(u8);

/// One of the two spaces that a function's BARs decode addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Memory: guest-physical addresses.
    Memory,
    /// I/O ports, which a host bridge shows to an arm64 guest through a window of memory.
    Io,
}

/// A BAR that decodes: the function has its space enabled, and the guest has given the BAR an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecodedBar {
    /// Which.
    pub bar: BarIndex,
    /// Which addresses.
    pub space: Space,
    /// The first guest-physical address, or the first port.
    pub base: u64,
    /// How many bytes: a power of two.
    pub size: u64,
}

/// One function of a PCI device, emulated here or passed through.
///
/// All methods take `&self` and come from any vCPU's thread: the function locks for itself.
///
/// The bus holds no lock while it calls [`read_config`](Self::read_config), [`write_config`](Self::write_config),
/// [`read_bar`](Self::read_bar) and [`write_bar`](Self::write_bar). It calls the others one at a time, in the order in which things happened, and
/// therefore under a lock: from within [`decoded`](Self::decoded), [`placed`](Self::placed), [`set_bdf`](Self::set_bdf) and
/// [`reset`](Self::reset) nothing may be called that changes the bus (adding, removing, configuration writes). From within the first four, it may, as long as
/// the function does not hold a lock meanwhile that one of the others takes.
pub trait PciFunction: Send + Sync {
    /// Reads from configuration space: 1, 2 or 4 bytes that do not cross a 4-byte boundary, `offset` below 4096. What is not there reads zero.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes to configuration space, shaped as in [`read_config`](Self::read_config).
    ///
    /// Afterwards the bus asks for [`decoded`](Self::decoded), and answers with [`placed`](Self::placed) if that makes a difference.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// The BARs that decode now, in ascending order of index. Asked after each write to configuration space.
    fn decoded(&self) -> Vec<DecodedBar>;

    /// Where the function's BARs are has changed: accesses inside `bars`, and no others, reach it from now on. Before the first call, none do.
    ///
    /// Whoever has put something at a BAR's addresses that the kernel answers (an ioeventfd, a memory slot) moves it now. BARs that the bus
    /// refused, since they lie outside of its windows or over each other, are not in `bars`; one that is refused now may be placed later, when another one moves away.
    fn placed(&self, bars: &[DecodedBar]) {
        let _ = bars;
    }

    /// A guest's load from a BAR: `offset` and `data` lie inside, 1 to 8 bytes, not necessarily aligned.
    fn read_bar(&self, bar: BarIndex, offset: u64, data: &mut [u8]);

    /// A guest's store to a BAR, shaped as in [`read_bar`](Self::read_bar).
    fn write_bar(&self, bar: BarIndex, offset: u64, data: &[u8]);

    /// Where the function is now. Called when it is put on a bus and whenever the guest renumbers that bus: its messages carry the new
    /// requester ID from then on.
    fn set_bdf(&self, bdf: Bdf) {
        let _ = bdf;
    }

    /// A conventional reset: secondary bus reset, hot-plug slot powered off, or the machine's own.
    fn reset(&self);
}

impl BarIndex {
    /// The expansion ROM.
    pub const ROM: Self = Self(6);

    /// BAR `n`.
    ///
    /// # Errors
    /// If `n` is greater than 6.
    pub const fn new(n: u8) -> Result<Self, OutOfRange> {
        if n > 6 {
            return Err(OutOfRange { what: "BAR", value: n as u64, min: 0, max: 6 });
        }
        Ok(Self(n))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}
