// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{Gsi, IrqchipPin, Pin};

/// What a kind of irqchip means for the routing table, as data.
///
/// The tables in [`models`](crate::models) are the kinds that KVM has. Nothing else in this crate knows an architecture: a new kind is
/// a new table. Everything that differs from VM to VM of the same kind is either asked of the VM (the table's limit, whether MSIs carry
/// device IDs) or comes with the token of the initialised irqchip (`lines`, see
/// [`IrqchipReady::lines`](irqchip::IrqchipReady::lines)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IrqchipModel {
    /// What it is called in messages.
    pub name: &'static str,
    /// Where the kernel says what the table says.
    pub citation: &'static str,
    /// Whether GSIs are routed by a table or are the inputs themselves.
    pub table: TableKind,
    /// Whether the pins of irqchip 0 are the SPIs of a GIC.
    pub spis: bool,
    /// The irqchips of the VM. A GSI may fire one input of each.
    pub chips: &'static [Chip],
    /// Which GSIs stand for which inputs. These GSIs are never given to an MSI.
    pub lines: &'static [LineRun],
    /// Whether the kernel installs the routes of `lines` when the irqchip is initialised.
    pub default_routes: bool,
    /// GSIs that the kernel itself fires: their default routes are never dropped.
    pub kernel_users: &'static [KernelUser],
    /// What becomes of an MSI.
    pub msi: MsiPath,
}

/// How a GSI finds its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// Through a table that `KVM_SET_GSI_ROUTING` replaces.
    Routed,
    /// There is no table: GSI `n` *is* input `n` of irqchip 0, and `KVM_CAP_IRQ_ROUTING` is absent. Nothing is ever sent to the kernel.
    Identity,
}

/// One irqchip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// What it is called in messages.
    pub name: &'static str,
    /// The kernel's index.
    pub irqchip: u32,
    /// The lowest input that something can be connected to.
    pub first_pin: u32,
    /// How many pins the kernel accepts in a route, counted from pin 0, whether or not there is anything behind them.
    pub pins: u32,
    /// Which of them exist in a VM.
    pub wired: Wired,
}

/// Which pins of a chip exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wired {
    /// All.
    All,
    /// As many as the irqchip was configured with, starting with the first. The kernel accepts a route to a higher pin, and its
    /// interrupts vanish.
    Lines,
}

/// `count` GSIs from `first_gsi` stand for as many pins from `first_pin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineRun {
    /// The kernel's index of the irqchip.
    pub irqchip: u32,
    /// The first GSI.
    pub first_gsi: u32,
    /// The first pin.
    pub first_pin: u32,
    /// How many.
    pub count: Count,
}

/// A number that may depend on the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// The same in each VM.
    Fixed(u32),
    /// The lines that the irqchip was configured with, plus this many.
    LinesPlus(u32),
}

/// A GSI that the kernel fires by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelUser {
    /// Which GSI.
    pub gsi: u32,
    /// Who fires it.
    pub who: &'static str,
}

/// What becomes of an MSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsiPath {
    /// An entry of the table holds the message.
    Table,
    /// An entry of the table holds the message and its sender's device ID, for an ITS. Without an ITS (no `KVM_CAP_MSI_DEVID`) nothing
    /// receives MSIs, and the kernel would only say so at injection, where nobody hears it.
    TableWithIts {
        /// How many bits of device ID the ITS knows.
        device_id_bits: u32,
    },
    /// The data of the message is the number of the source, which is the GSI. No table is involved.
    SourceNumber,
}

impl Count {
    const fn of(self, lines: u32) -> u32 {
        match self {
            Self::Fixed(n) => n,
            Self::LinesPlus(n) => lines.saturating_add(n),
        }
    }
}

impl LineRun {
    /// The pin that `gsi` stands for in this run.
    fn pin_of(&self, gsi: Gsi, lines: u32) -> Option<IrqchipPin> {
        let n = gsi.get().checked_sub(self.first_gsi).filter(|&n| n < self.count.of(lines))?;
        Some(IrqchipPin { irqchip: self.irqchip, pin: Pin::new(self.first_pin.checked_add(n)?) })
    }
}

impl Chip {
    /// The pins that exist in a VM whose irqchip was configured with `lines`.
    #[must_use]
    pub fn wired_pins(&self, lines: u32) -> std::ops::Range<u32> {
        match self.wired {
            Wired::All => self.first_pin..self.pins,
            Wired::Lines => self.first_pin..self.first_pin.saturating_add(lines).min(self.pins),
        }
    }
}

impl IrqchipModel {
    /// The chip with the kernel's index `irqchip`.
    #[must_use]
    pub fn chip(&self, irqchip: u32) -> Option<&'static Chip> {
        self.chips.iter().find(|chip| chip.irqchip == irqchip)
    }

    /// The pins that `gsi` stands for in a VM with `lines` lines, by ascending irqchip. Empty if it stands for none.
    pub fn line_pins(&self, gsi: Gsi, lines: u32) -> impl Iterator<Item = IrqchipPin> {
        self.lines.iter().filter_map(move |run| run.pin_of(gsi, lines))
    }

    /// The GSIs that stand for lines, as a range from 0 that holds them all, in a VM with `lines` lines.
    #[must_use]
    pub fn line_gsis(&self, lines: u32) -> std::ops::Range<u32> {
        let end = |run: &LineRun| run.first_gsi.saturating_add(run.count.of(lines));
        0..self.lines.iter().map(end).max().unwrap_or(0)
    }

    /// Whether the kernel itself fires `gsi`.
    #[must_use]
    pub fn kernel_fires(&self, gsi: Gsi) -> bool {
        self.kernel_users.iter().any(|user| user.gsi == gsi.get())
    }
}
