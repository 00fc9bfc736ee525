// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use irq_types::{DeviceId, Gsi, Intid, IrqchipPin, MsiMessage, Spi};
use thiserror::Error;

/// What went wrong with a routing table. Each leaves the table, the allocator and the kernel as they were.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The token is of another VM than the sink.
    #[error("the irqchip that is ready belongs to another VM than the routing table")]
    OtherVm,
    /// The VM could not be asked what it can do.
    #[error("cannot find out what the VM's routing table can hold")]
    Probe(#[source] irqchip::Error),
    /// The VM has no routing table, or one too small for the model's default routes.
    #[error(
        "a VM with a {model} needs a routing table of {needed} entries, and this one has {limit} (KVM_CAP_IRQ_ROUTING)"
    )]
    NoTable {
        /// The model's name.
        model: &'static str,
        /// How many entries the table must have at least.
        needed: u32,
        /// What the VM said.
        limit: u32,
    },
    /// There are not that many GSIs or table entries left.
    #[error(
        "{wanted} GSIs are wanted, {available} are free: {limit} is the limit, {promised} are promised to others"
    )]
    Exhausted {
        /// How many were asked for.
        wanted: usize,
        /// How many are neither in use nor promised.
        available: usize,
        /// How many GSIs there can be at all.
        limit: u32,
        /// How many are promised to budgets and not yet taken.
        promised: usize,
    },
    /// The GSI has an owner, or lies in a reserved range.
    #[error("{gsi} is taken")]
    Taken {
        /// Which GSI.
        gsi: Gsi,
    },
    /// The range is empty, beyond the limit, stands for lines, or is in use.
    #[error("GSI {first} to {last} cannot be reserved: not all of them are free")]
    RangeNotFree {
        /// The first GSI of the range.
        first: u32,
        /// The last one.
        last: u32,
    },
    /// The GSI stands for no line of this VM.
    #[error("{gsi} stands for no line of this VM's {model}, which has {lines}")]
    NoSuchLine {
        /// Which GSI.
        gsi: Gsi,
        /// The model's name.
        model: &'static str,
        /// How many lines the irqchip was configured with.
        lines: u32,
    },
    /// The VM has no GIC.
    #[error("{spi} does not exist: this VM has a {model}, not a GIC")]
    NoSpis {
        /// Which SPI was asked for.
        spi: Spi,
        /// The model's name.
        model: &'static str,
    },
    /// The VM has not all SPIs of a GICv2m frame.
    #[error("a GICv2m frame of {count} SPIs from {first} does not fit a VM with {lines} SPIs")]
    FrameBeyondLines {
        /// The frame's first SPI.
        first: Spi,
        /// How many it has.
        count: u32,
        /// How many the VM has.
        lines: u32,
    },
    /// No route reaches this kind of interrupt: SGIs are sent by CPUs only, PPIs belong to one CPU, LPIs are made by the ITS.
    #[error("{0} cannot be routed to: only SPIs are lines of the routing table")]
    NotRoutable(Intid),
    /// The handle is of another router.
    #[error("{gsi} was allocated from another VM's routing table")]
    OtherRouter {
        /// Which GSI.
        gsi: Gsi,
    },
    /// The VM has no such irqchip.
    #[error("{gsi} cannot fire {pin}: a {model} has no such irqchip")]
    NoSuchChip {
        /// Which GSI was to be routed.
        gsi: Gsi,
        /// Where to.
        pin: IrqchipPin,
        /// The model's name.
        model: &'static str,
    },
    /// The irqchip has no such pin in this VM. The kernel may accept the route and then drop each interrupt.
    #[error("{gsi} cannot fire {pin}: the {chip} of this VM has pins {first} to {last}")]
    NoSuchPin {
        /// Which GSI was to be routed.
        gsi: Gsi,
        /// Where to.
        pin: IrqchipPin,
        /// The chip's name.
        chip: &'static str,
        /// The first pin there is.
        first: u32,
        /// The last pin there is.
        last: u32,
    },
    /// A GSI fires at most one pin of each irqchip.
    #[error("{gsi} cannot fire {pin}: it fires a pin of that irqchip already")]
    DuplicateChip {
        /// Which GSI was to be routed.
        gsi: Gsi,
        /// Where to.
        pin: IrqchipPin,
    },
    /// A GSI is one MSI or a set of pins.
    #[error("{gsi} cannot be both an MSI and a line: clear it first")]
    Mixed {
        /// Which GSI was to be routed.
        gsi: Gsi,
    },
    /// Another GSI fires the pin. The kernel would take it, and then tell only one of the two when the guest is done with the interrupt
    /// (Linux 6.12, `virt/kvm/irqchip.c`, `setup_routing_entry`: one GSI for each pin in the table that acknowledgements go by).
    #[error("{gsi} cannot fire {pin}: {other} does")]
    PinTaken {
        /// Which GSI was to be routed.
        gsi: Gsi,
        /// Where to.
        pin: IrqchipPin,
        /// Which GSI fires it.
        other: Gsi,
    },
    /// Nothing in this VM receives MSIs.
    #[error("{gsi} cannot send the MSI {message}: nothing in this VM receives it")]
    NoMsiReceiver {
        /// Which GSI was to be routed.
        gsi: Gsi,
        /// The message.
        message: MsiMessage,
    },
    /// The ITS knows fewer bits of device ID.
    #[error("{gsi} cannot send an MSI from {device_id}: the VM's ITS knows device IDs of {bits} bits")]
    DeviceIdTooWide {
        /// Which GSI was to be routed.
        gsi: Gsi,
        /// The sender.
        device_id: DeviceId,
        /// How many bits there are.
        bits: u32,
    },
    /// Where GSIs are the sources themselves, a route cannot lead anywhere else.
    #[error("{gsi} is a source itself and cannot be routed to source {number}")]
    NotItsOwnSource {
        /// Which GSI was to be routed.
        gsi: Gsi,
        /// The source that the pin or the message names.
        number: u32,
    },
    /// The table would have more entries than the VM takes.
    #[error("the table would have {entries} entries and {promised} promised ones, and this VM takes {limit}")]
    TooManyEntries {
        /// How many entries it would have, GSIs without a route yet counted as one each.
        entries: usize,
        /// How many are promised to budgets and not yet taken.
        promised: usize,
        /// How many the VM takes (`KVM_CAP_IRQ_ROUTING`).
        limit: u32,
    },
    /// The kernel refused the table.
    #[error("cannot commit {changed} changed GSIs to the routing table")]
    Commit {
        /// How many GSIs were to change, withdrawn ones included.
        changed: usize,
        /// What was being done, and the errno.
        #[source]
        source: irqchip::Error,
    },
}
