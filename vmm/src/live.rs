// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A running machine as the control socket sees it.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::balloon::{self, BalloonState};
use crate::control::{DeviceState, Machine, RunState, VmState};
use crate::devices::{Addition, Pluggable};
use crate::error::{Error, Result};
use crate::hotplug::HotPlug;
use crate::irq::Line;
use crate::irq::explain::Explanation;
use crate::machine::{Parts, Running};
use crate::metrics::Family;
use crate::outcome::{Outcome, Verdict};
use crate::pci_host::{PciHost, Place, Virtio};

/// A running machine.
pub(crate) struct Live {
    pub(crate) parts: Arc<Parts>,
    pub(crate) running: Arc<Running>,
    pub(crate) hotplug: Arc<HotPlug>,
    pub(crate) verdict: Verdict,
    /// Signalled for the guest to be asked to power itself off.
    pub(crate) power: Arc<EventFd>,
}

impl Machine for Live {
    fn state(&self) -> VmState {
        let config = &self.parts.config;
        VmState {
            pid: std::process::id(),
            state: if self.running.pause.is_asked() { RunState::Paused } else { RunState::Running },
            vcpus: config.cpus,
            memory: config.memory.0,
            gic: self.parts.gic.config().to_string(),
            kernel: config.kernel.display().to_string(),
            uptime: self.parts.started.elapsed().as_secs(),
        }
    }

    fn pause(&self) -> Result<()> {
        self.running.pause()
    }

    fn resume(&self) {
        self.running.pause.resume();
    }

    fn shutdown(&self) -> Result<()> {
        if self.running.pause.is_asked() {
            return Err(Error::host("the guest is paused, so it cannot power itself off")
                .hint("resume it first, or kill it"));
        }
        if !self.parts.gpio.guest_listens() {
            return Err(Error::host("nobody in the guest listens to its power button")
                .hint("wait until it has booted, or kill it; its kernel needs gpio-keys"));
        }
        self.power.write(1).map_err(|e| Error::failure("cannot press the power button").because(e))
    }

    fn kill(&self) {
        self.verdict.set(Outcome::UserQuit);
    }

    fn devices(&self) -> Vec<DeviceState> {
        let pci = self.parts.pci.as_ref();
        let virtio = |pci: &PciHost| -> Vec<DeviceState> {
            let state = |virtio: &Virtio| DeviceState {
                name: virtio.name.clone(),
                kind: "virtio".into(),
                address: virtio.place.of(&virtio.function, Some(pci.bridge())),
                host: virtio.wanted.as_ref().map(Pluggable::host),
                removable: matches!(virtio.place, Place::Slot(_)),
            };
            pci.virtio().iter().map(state).collect()
        };
        let virtio = pci.map_or_else(Vec::new, virtio);
        let devices = self.parts.vfio.lock();
        let vfio = devices.iter().map(|assigned| DeviceState {
            name: assigned.wanted.name().to_owned(),
            kind: "vfio".into(),
            address: assigned.at(pci.map(PciHost::bridge)),
            host: Some(assigned.wanted.device.clone()),
            removable: matches!(assigned.place, Place::Slot(_)),
        });
        virtio.into_iter().chain(vfio).collect()
    }

    fn add(&self, device: Addition) -> Result<String> {
        self.hotplug.add(device)
    }

    fn remove(&self, name: &str) -> Result<String> {
        self.hotplug.remove(name)
    }

    fn balloon(&self) -> Result<BalloonState> {
        let balloon = self.parts.balloon.as_ref().ok_or_else(balloon::absent)?;
        let runs = !self.running.pause.is_asked();
        Ok(balloon::state(balloon, self.parts.config.memory.0, runs))
    }

    fn set_balloon(&self, size: u64) -> Result<()> {
        let balloon = self.parts.balloon.as_ref().ok_or_else(balloon::absent)?;
        balloon::check(size, self.parts.config.memory.0)?;
        balloon.set_target(size);
        Ok(())
    }

    fn irqs(&self) -> Vec<Line> {
        self.parts.irqs()
    }

    fn explain(&self, line: &str) -> Option<Explanation> {
        self.parts.explain(&self.running, line)
    }

    fn metrics(&self) -> Vec<Family> {
        self.parts.metrics()
    }
}
