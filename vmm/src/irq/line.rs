// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One interrupt of a machine: what there is to know of it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How an interrupt signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A line that is pulsed.
    Edge,
    /// A line that is held until the guest has dealt with it.
    Level,
    /// A message that a capability in configuration space describes.
    Msi,
    /// A message that a table in a BAR describes.
    Msix,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Edge => "edge",
            Self::Level => "level",
            Self::Msi => "MSI",
            Self::Msix => "MSI-X",
        })
    }
}

/// Where the VM's routing table leads an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// To an input of the GIC.
    Pin {
        /// The input's number, which is the SPI's.
        pin: u32,
    },
    /// As a message.
    Message {
        /// Where to.
        address: u64,
        /// What: for an ITS, the event.
        data: u32,
        /// Who sends it: what the ITS knows the function by.
        device_id: u32,
        /// Whether the kernel is told who sends it.
        with_device_id: bool,
    },
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin { pin } => write!(f, "pin {pin}"),
            Self::Message { address, data, device_id, .. } => {
                write!(f, "{address:#x} <- {data:#x} of {device_id:#x}")
            }
        }
    }
}

/// Who keeps an interrupt from the guest, because the guest asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mask {
    /// The mask bit of the vector's own entry.
    Entry,
    /// The function mask of the MSI-X capability.
    Function,
    /// The capability is disabled.
    Disabled,
    /// The guest allows the function fewer vectors (MSI).
    NotAllowed,
    /// The interrupt disable bit of the command register (INTx).
    Command,
    /// The function interrupts by messages, so that its line is out of use (INTx).
    Messages,
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Entry => "entry",
            Self::Function => "function",
            Self::Disabled => "disabled",
            Self::NotAllowed => "not allowed",
            Self::Command => "INTx off",
            Self::Messages => "has messages",
        })
    }
}

/// Whose count [`Line::fired`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountedBy {
    /// This process's: its device signals.
    Doorbell,
    /// The host kernel's, from its `/proc/interrupts`: the device signals from kernel to kernel.
    Host,
    /// Nobody's: somebody in the kernel signals, vhost for instance, and does not count.
    Nobody,
}

/// When an interrupt was last active. Its counts are looked at when somebody asks, so it is known to have been between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Active {
    /// The look that saw the change was so many milliseconds ago, 0 if it is this one.
    pub at_least_ms_ago: u64,
    /// The one before was so many milliseconds ago.
    pub at_most_ms_ago: u64,
}

/// One interrupt of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Line {
    /// What it is called on the command line. Stays the same as long as the device does.
    pub line: String,
    /// The device.
    pub device: String,
    /// Where the device is on the guest's bus, if it is on PCI.
    pub bdf: Option<String>,
    /// How it signals.
    pub kind: Kind,
    /// Which of the device's messages.
    pub index: Option<u32>,
    /// The trigger's eventfd in the machine's process, once somebody has needed it.
    pub eventfd: Option<i32>,
    /// The eventfd that says that the guest has ended the interrupt.
    pub resamplefd: Option<i32>,
    /// What the eventfd fires.
    pub gsi: Option<u32>,
    /// Where that leads, by the routing table.
    pub route: Option<Route>,
    /// What the guest has written into the table, where it has: the route follows it when the vector is unmasked.
    pub message: Option<(u64, u32)>,
    /// Whether an irqfd listens to the eventfd.
    pub armed: bool,
    /// Whether signals are held back: masked, or not wired. They arrive when they no longer are.
    pub parked: bool,
    /// Who holds them back on the guest's behalf.
    pub masked: Option<Mask>,
    /// Whether a signal waits.
    pub pending: bool,
    /// Whether the line is up at the device's end (level).
    pub high: Option<bool>,
    /// Whether the kernel drives the line and its way back, with nobody in this process (level).
    pub handed_over: bool,
    /// How often the device has signalled.
    pub fired: Option<u64>,
    /// How often that went on to the interrupt controller.
    pub delivered: Option<u64>,
    /// How often the guest has ended it and this process has looked again (level).
    pub resampled: Option<u64>,
    /// Whose count it is.
    pub counted_by: CountedBy,
    /// When its counts last changed; `None` if they never have.
    pub active: Option<Active>,
    /// What failed, if it should deliver and cannot.
    pub trouble: Option<String>,
}

impl Line {
    /// One word for where it is.
    #[must_use]
    pub fn state(&self) -> String {
        match (&self.trouble, self.masked, self.parked) {
            (Some(_), ..) => "broken".to_owned(),
            (None, Some(Mask::Disabled), _) => "disabled".to_owned(),
            (None, Some(Mask::Messages), _) => "not in use".to_owned(),
            (None, Some(mask), _) => format!("masked ({mask})"),
            (None, None, true) => "parked".to_owned(),
            (None, None, false) if self.armed => "armed".to_owned(),
            (None, None, false) => "not armed".to_owned(),
        }
    }

    /// The same, for a narrow column.
    #[must_use]
    pub const fn state_in_a_word(&self) -> &'static str {
        match (&self.trouble, self.masked) {
            (Some(_), _) => "broken",
            (None, Some(Mask::Disabled | Mask::Command)) => "disabled",
            (None, Some(Mask::Messages)) => "unused",
            (None, Some(Mask::Function)) => "function",
            (None, Some(Mask::Entry)) => "masked",
            (None, Some(Mask::NotAllowed)) => "refused",
            (None, None) if self.parked => "parked",
            (None, None) if self.armed => "armed",
            (None, None) => "off",
        }
    }

    /// Whether the guest, or anybody, has made use of it yet. A function may have 2048 vectors of which a driver uses three.
    #[must_use]
    pub fn in_use(&self) -> bool {
        self.kind == Kind::Edge
            || self.kind == Kind::Level && self.masked != Some(Mask::Messages)
            || self.message.is_some()
            || self.pending
            || self.total() > 0
    }

    /// All counts together: it changes when anything happens.
    #[must_use]
    pub fn total(&self) -> u64 {
        [self.fired, self.delivered, self.resampled].into_iter().flatten().fold(0, u64::wrapping_add)
    }

    /// "level", "MSI-X 3".
    #[must_use]
    pub fn kind_and_index(&self) -> String {
        match self.index.filter(|_| matches!(self.kind, Kind::Msi | Kind::Msix)) {
            Some(index) => format!("{} {index}", self.kind),
            None => self.kind.to_string(),
        }
    }
}

/// A line with this count, for tests.
#[cfg(test)]
pub(crate) fn test_line(name: &str, fired: u64) -> Line {
    Line {
        line: name.to_owned(),
        device: name.to_owned(),
        bdf: None,
        kind: Kind::Level,
        index: None,
        eventfd: Some(5),
        resamplefd: Some(6),
        gsi: Some(0),
        route: Some(Route::Pin { pin: 0 }),
        message: None,
        armed: true,
        parked: false,
        masked: None,
        pending: false,
        high: Some(false),
        handed_over: false,
        fired: Some(fired),
        delivered: Some(0),
        resampled: Some(0),
        counted_by: CountedBy::Doorbell,
        active: None,
        trouble: None,
    }
}
