// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All that is known of one interrupt, for [`explain`](super::explain::explain) to walk along.

use std::ops::Range;

use gsi_routing::Router;
use vgic::InitializedVgic;

use super::Line;
use super::gic::Interrupt;
use super::its::Translation;

/// Where an interrupt is, as far as could be found out.
#[derive(Debug, Clone)]
pub struct Situation {
    /// What the VMM knows of it.
    pub line: Line,
    /// What the guest has written into its function's registers, if it is a function on PCI.
    pub function: Option<Function>,
    /// The way back of a level interrupt.
    pub way_back: Option<WayBack>,
    /// The guest's interrupt controller.
    pub gic: Gic,
    /// What the ITS makes of the message, if it is one for an ITS.
    pub translation: Option<Translation>,
    /// The interrupt at the GIC: that of the pin, or the LPI that the message is translated to.
    pub interrupt: Option<Interrupt>,
    /// Whether each vCPU is on; empty where that is not known.
    pub vcpus_on: Vec<bool>,
    /// Whether the user has paused the machine.
    pub paused: bool,
}

/// A function's registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Whether the host's device is behind it.
    pub passed_through: bool,
    /// Command register: the function may send messages.
    pub bus_master: bool,
    /// Command register: the function must not use its line.
    pub intx_disabled: bool,
    /// MSI or MSI-X is enabled: the line is out of use.
    pub messages_enabled: bool,
    /// A driver has started it (virtio); not known for devices of the host's.
    pub driver_up: Option<bool>,
    /// What the device complains about.
    pub trouble: Option<String>,
}

/// From the guest's EOI back to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayBack {
    /// Who takes the EOI.
    pub by: Unmask,
    /// An EOI has come, and whoever should has not taken it from the resample eventfd. One that has just come counts for nothing; whoever fills this in waits a moment.
    pub due: bool,
}

/// Who acts on the EOI of a level interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmask {
    /// The event loop of this process.
    Loop,
    /// VFIO, on the resample eventfd.
    Kernel,
}

/// The guest's interrupt controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gic {
    /// How many SPIs it has.
    pub spis: u32,
    /// The ITSes.
    pub its: Vec<Its>,
    /// Whether there is a v2m frame, messages to which are routed as the SPIs that they name.
    pub v2m: bool,
    /// Whether the kernel must be told who sends a message.
    pub needs_device_id: bool,
    /// Whether the guest has switched the distributor on, if known.
    pub enabled: Option<bool>,
}

/// Where an ITS takes messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Its {
    /// `GITS_TRANSLATER`: where devices are to send to.
    pub doorbell: u64,
    /// All of its registers' addresses. KVM takes a message to any of them for one to the doorbell (Linux 6.12, `vgic_msi_to_its`).
    pub frame: Range<u64>,
}

impl Gic {
    /// What the VMM knows of it; whether the guest has switched it on, it does not.
    #[must_use]
    pub fn of(gic: &InitializedVgic, router: &Router) -> Self {
        let layout = gic.layout();
        let frames = layout.its_frames().iter().enumerate();
        let its = frames.filter_map(|(index, frame)| {
            Some(Its { doorbell: layout.its_doorbell(index)?, frame: frame.base..frame.end() })
        });
        Self {
            spis: router.ready().lines(),
            its: its.collect(),
            v2m: gic.v2m_frame().is_some(),
            needs_device_id: router.msi_policy().needs_device_id(),
            enabled: None,
        }
    }

    /// Whether anything takes messages.
    #[must_use]
    pub fn takes_messages(&self) -> bool {
        self.v2m || !self.its.is_empty()
    }
}
