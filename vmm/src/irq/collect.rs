// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the states that the crates keep to [`Line`]s.

use gsi_routing::{MsiPolicy, Snapshot, Target};
use irq_types::Gsi;
use irqfd::{EdgeState, LevelState, Obstacle, VectorState};

use super::{CountedBy, Kind, Line, Mask, Route};

/// What all interrupts of a machine have in common.
#[derive(Debug, Clone, Copy)]
pub struct Routes<'a> {
    /// The routing table.
    pub table: &'a Snapshot,
    /// Whether the kernel is told who sends a message.
    pub msi: MsiPolicy,
}

impl Routes<'_> {
    fn of(&self, gsi: Option<Gsi>) -> Option<Route> {
        let entry = self.table.of(gsi?).first()?;
        Some(match entry.target {
            Target::Line(pin) => Route::Pin { pin: pin.pin.get() },
            Target::Msi { message, device_id } => match self.msi.v2m_spi(message) {
                // The kernel has the SPI that the message names.
                Some(spi) => Route::Pin { pin: spi.pin().get() },
                None => Route::Message {
                    address: message.address,
                    data: message.data,
                    device_id: device_id.get(),
                    with_device_id: self.msi.needs_device_id(),
                },
            },
        })
    }
}

/// Whose interrupt it is.
#[derive(Debug, Clone)]
pub struct Owner<'a> {
    /// The device.
    pub device: &'a str,
    /// Where it is on PCI.
    pub bdf: Option<String>,
    /// The host's count of it, for a device that signals from the host's kernel.
    pub host: Host,
}

/// Who signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// This process.
    No,
    /// The host's kernel, which counts so many.
    Counts(u64),
    /// The host's kernel, which has no count (yet).
    Silent,
}

/// The name of a device's line: blanks would be in the way on a command line, and a slash in a URL.
#[must_use]
pub fn name(device: &str, part: &str) -> String {
    let device: String = device
        .chars()
        .map(|c| if c.is_whitespace() || c == '/' || c.is_control() { '-' } else { c })
        .collect();
    if part.is_empty() { device } else { format!("{device}:{part}") }
}

fn blank(owner: &Owner<'_>, part: &str, kind: Kind) -> Line {
    let counted_by = match owner.host {
        Host::No => CountedBy::Doorbell,
        Host::Counts(_) => CountedBy::Host,
        Host::Silent => CountedBy::Nobody,
    };
    Line {
        line: name(owner.device, part),
        device: owner.device.to_owned(),
        bdf: owner.bdf.clone(),
        kind,
        index: None,
        eventfd: None,
        resamplefd: None,
        gsi: None,
        route: None,
        message: None,
        armed: false,
        parked: false,
        masked: None,
        pending: false,
        high: None,
        handed_over: false,
        fired: None,
        delivered: None,
        resampled: None,
        counted_by,
        active: None,
        trouble: None,
    }
}

/// A level line.
#[must_use]
pub fn level(owner: &Owner<'_>, part: &str, state: &LevelState, routes: Routes<'_>) -> Line {
    let mut line = blank(owner, part, Kind::Level);
    line.eventfd = Some(state.eventfd);
    line.resamplefd = Some(state.resamplefd);
    line.gsi = state.gsi.map(Gsi::get);
    line.route = routes.of(state.gsi);
    line.armed = state.gsi.is_some();
    line.parked = state.gsi.is_none();
    line.handed_over = state.handed_over;
    match owner.host {
        Host::No => {
            line.high = Some(state.high);
            line.pending = state.high;
            line.fired = Some(state.raised);
            line.delivered = Some(state.raised + state.raised_again);
            line.resampled = Some(state.resampled);
        }
        Host::Counts(count) => {
            line.fired = Some(count);
            // The host masks a level interrupt when it fires and passes each on.
            line.delivered = Some(count);
            line.resampled = (!state.handed_over).then_some(state.resampled);
        }
        Host::Silent => line.resampled = (!state.handed_over).then_some(state.resampled),
    }
    line
}

/// An edge line.
#[must_use]
pub fn edge(owner: &Owner<'_>, part: &str, state: &EdgeState, routes: Routes<'_>) -> Line {
    let mut line = blank(owner, part, Kind::Edge);
    line.eventfd = Some(state.eventfd);
    line.gsi = state.gsi.map(Gsi::get);
    line.route = routes.of(state.gsi);
    line.armed = state.gsi.is_some();
    line.parked = state.gsi.is_none();
    line.pending = state.waiting;
    let count = match owner.host {
        Host::No => Some(state.signals),
        Host::Counts(count) => Some(count),
        Host::Silent => None,
    };
    line.fired = count;
    line.delivered = count.filter(|_| line.armed);
    line
}

/// A vector of MSI or MSI-X.
#[must_use]
pub fn vector(owner: &Owner<'_>, kind: Kind, state: &VectorState, routes: Routes<'_>) -> Line {
    let mut line = blank(owner, &state.index.to_string(), kind);
    line.index = u32::try_from(state.index).ok();
    line.eventfd = state.eventfd;
    line.gsi = state.gsi.map(Gsi::get);
    // A GSI without a route of its own says nothing of this vector.
    line.route = routes.of(state.gsi.filter(|_| state.route.is_some()));
    line.message = state.message.map(|message| (message.address, message.data));
    line.armed = state.armed;
    line.parked = state.obstacle.is_some();
    line.pending = state.pending;
    match &state.obstacle {
        Some(Obstacle::Disabled) => line.masked = Some(Mask::Disabled),
        Some(Obstacle::FunctionMasked) => line.masked = Some(Mask::Function),
        Some(Obstacle::NotAllowed) => line.masked = Some(Mask::NotAllowed),
        Some(Obstacle::Masked) => line.masked = Some(Mask::Entry),
        Some(failed @ Obstacle::Failed(_)) => line.trouble = Some(failed.to_string()),
        _ => {}
    }
    let counts = state.counts;
    match owner.host {
        Host::No if state.eventfd_shared && counts.passed + counts.held == 0 => {
            // vhost has it, and signals without us.
            line.counted_by = CountedBy::Nobody;
        }
        Host::No => {
            line.fired = Some(counts.passed + counts.held);
            line.delivered = Some(counts.passed + counts.released);
        }
        Host::Counts(count) => {
            line.fired = Some(count);
            // While it is masked, what comes stays in the eventfd's counter; how many of those were let go as one, nobody counts.
            line.delivered = (!line.parked).then_some(count);
        }
        Host::Silent => {}
    }
    line
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
