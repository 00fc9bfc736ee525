// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looking at a machine's interrupts: all of them, and one of them closely. Nothing here runs before somebody asks.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use irqfd::LevelState;
use pci::PciFunction;
use vfio_passthrough::pci::InterruptMode;

use crate::irq::collect::{self, Host, Owner, Routes};
use crate::irq::explain::{self, Explanation};
use crate::irq::gic;
use crate::irq::host::{self, HostCounts};
use crate::irq::look::Look;
use crate::irq::situation::{Function, Gic, Situation, Unmask, WayBack};
use crate::irq::{Kind, Line, Mask};
use crate::machine::{Parts, Running};
use crate::pci_host::{PciHost, Slot};

/// An interrupt, and what more there is to know of it for who asks why it does not arrive.
struct Found {
    line: Line,
    function: Option<Function>,
    way_back: Option<WayBack>,
}

/// Registers of a function's configuration space (PCI Express base specification 6.0, section 7.5.1).
const COMMAND: u16 = 4;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const CAPABILITIES: u16 = 0x34;
const MSI: u8 = 0x05;
const MSIX: u8 = 0x11;

fn word(function: &dyn PciFunction, offset: u16) -> u16 {
    let mut bytes = [0; 2];
    function.read_config(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}

/// What the guest has written into a function's registers.
fn registers(function: &dyn PciFunction, passed_through: bool) -> Function {
    let command = word(function, COMMAND);
    let mut messages_enabled = false;
    let [mut at, _] = word(function, CAPABILITIES).to_le_bytes();
    // As many as fit, should a device's list be a ring.
    for _ in 0..48 {
        at &= 0xfc;
        if at < 0x40 {
            break;
        }
        let [id, next] = word(function, at.into()).to_le_bytes();
        let control = word(function, u16::from(at) + 2);
        messages_enabled |= (id == MSI && control & 1 != 0) || (id == MSIX && control & 1 << 15 != 0);
        at = next;
    }
    Function {
        passed_through,
        bus_master: command & COMMAND_MASTER != 0,
        intx_disabled: command & COMMAND_INTX_DISABLE != 0,
        messages_enabled,
        driver_up: None,
        trouble: None,
    }
}

/// A function's line, with who keeps it from the guest.
fn pin(mut line: Line, state: &LevelState, function: Function) -> Found {
    line.masked = if function.messages_enabled {
        Some(Mask::Messages)
    } else {
        function.intx_disabled.then_some(Mask::Command)
    };
    let by = if state.handed_over { Unmask::Kernel } else { Unmask::Loop };
    Found { line, function: Some(function), way_back: Some(WayBack { by, due: state.resample_due }) }
}

impl Parts {
    /// All interrupts of the machine, in the order of the devices.
    pub(crate) fn irqs(&self) -> Vec<Line> {
        let began = Instant::now();
        let mut lines: Vec<Line> = self.look().into_iter().map(|found| found.line).collect();
        self.history.look(&mut lines, began, Instant::now());
        lines
    }

    fn look(&self) -> Vec<Found> {
        let snapshot = self.lines.wiring().router().snapshot();
        let routes = Routes { table: &snapshot, msi: self.lines.wiring().router().msi_policy() };
        let mut found = Vec::new();
        for level in &self.levels {
            let Ok(state) = level.trigger.state() else { continue };
            let owner = Owner { device: level.name, bdf: None, host: Host::No };
            let mut line = collect::level(&owner, "", &state, routes);
            // Short names for what each machine has.
            line.line = level.name.split_once(" port").map_or(line.line, |(short, _)| short.to_owned());
            let way_back = Some(WayBack { by: Unmask::Loop, due: state.resample_due });
            found.push(Found { line, function: None, way_back });
        }
        if let Some(pci) = &self.pci {
            self.look_at_virtio(pci, routes, &mut found);
            self.look_at_slots(pci, routes, &mut found);
            self.look_at_vfio(pci, routes, &mut found);
        }
        self.look_at_platform(routes, &mut found);
        found
    }

    fn look_at_virtio(&self, pci: &PciHost, routes: Routes<'_>, found: &mut Vec<Found>) {
        for virtio in pci.virtio().iter() {
            let state = virtio.function.state();
            let owner = Owner {
                device: &virtio.name,
                bdf: Some(virtio.place.of(&virtio.function, Some(pci.bridge()))),
                host: Host::No,
            };
            let function = Function {
                driver_up: Some(state.status & 4 != 0),
                trouble: state.trouble.clone().filter(|_| state.needs_reset),
                ..registers(&*virtio.function, false)
            };
            for vector in &state.vectors {
                let line = collect::vector(&owner, Kind::Msix, vector, routes);
                found.push(Found { line, function: Some(function.clone()), way_back: None });
            }
            if let Ok(state) = virtio.trigger.state() {
                found.push(pin(collect::level(&owner, "intx", &state, routes), &state, function));
            }
        }
    }

    /// The ports of slots for devices that come and go: they tell the guest of it by an interrupt of their own.
    fn look_at_slots(&self, pci: &PciHost, routes: Routes<'_>, found: &mut Vec<Found>) {
        let functions = if pci.slots().is_empty() { Vec::new() } else { pci.bridge().functions() };
        for Slot { name, port: bdf, vectors: group, trigger } in pci.slots() {
            let Some((_, port)) = functions.iter().find(|(at, _)| at == bdf) else { continue };
            let function = registers(&**port, false);
            let owner = Owner { device: name, bdf: Some(bdf.to_string()), host: Host::No };
            for state in (0..group.len()).filter_map(|index| group.state(index).ok()) {
                let line = collect::vector(&owner, Kind::Msi, &state, routes);
                found.push(Found { line, function: Some(function.clone()), way_back: None });
            }
            if let Ok(state) = trigger.state() {
                found.push(pin(collect::level(&owner, "intx", &state, routes), &state, function));
            }
        }
    }

    fn look_at_vfio(&self, pci: &PciHost, routes: Routes<'_>, found: &mut Vec<Found>) {
        let devices = self.vfio.lock();
        if devices.is_empty() {
            return;
        }
        let counts = HostCounts::read();
        for assigned in devices.iter() {
            let device = assigned.function.device().name();
            let owner = |host| Owner {
                device: assigned.wanted.name(),
                bdf: Some(assigned.at(Some(pci.bridge()))),
                host,
            };
            let function = registers(&*assigned.function, true);
            let (mode, states) = assigned.function.vectors();
            let msix = mode == InterruptMode::Msix;
            for state in &states {
                let owner = owner(counts.of(&host::vector(device, msix, state.index)));
                let kind = if msix { Kind::Msix } else { Kind::Msi };
                let line = collect::vector(&owner, kind, state, routes);
                found.push(Found { line, function: Some(function.clone()), way_back: None });
            }
            if let Some((state, connected)) = assigned.function.line() {
                let mut line = collect::level(&owner(counts.of(&host::intx(device))), "intx", &state, routes);
                // Out of use while the function sends messages, which is no trouble.
                if !connected && !function.messages_enabled {
                    line.trouble = assigned.trouble();
                }
                found.push(pin(line, &state, function));
            }
        }
    }

    fn look_at_platform(&self, routes: Routes<'_>, found: &mut Vec<Found>) {
        if self.platform.devices().is_empty() {
            return;
        }
        let counts = HostCounts::read();
        for assigned in self.platform.devices() {
            let name = assigned.device.device().name();
            let owner = |index| Owner {
                device: &assigned.name,
                bdf: None,
                host: counts.of(&host::platform(name, index)),
            };
            for (index, state) in assigned.device.level_states() {
                let line = collect::level(&owner(index), &index.to_string(), &state, routes);
                let by = if state.handed_over { Unmask::Kernel } else { Unmask::Loop };
                let way_back = Some(WayBack { by, due: state.resample_due });
                found.push(Found { line, function: None, way_back });
            }
            for (index, state) in assigned.device.edge_states() {
                let line = collect::edge(&owner(index), &index.to_string(), &state, routes);
                found.push(Found { line, function: None, way_back: None });
            }
        }
    }

    /// Why the interrupt called `name` does not arrive; `None` if there is none of this name.
    ///
    /// The guest is held still for a moment: the kernel shows the registers of a GIC only while no vCPU runs.
    pub(crate) fn explain(&self, running: &Running, name: &str) -> Option<Explanation> {
        /// An EOI that the event loop is just about to look at is no trouble.
        const A_MOMENT: Duration = Duration::from_millis(200);
        let find = || self.look().into_iter().find(|found| found.line.line == name);
        let mut found = find()?;
        if found.way_back.is_some_and(|way_back| way_back.due) {
            let before = found.line.resampled;
            std::thread::sleep(A_MOMENT);
            found = find()?;
            // On a busy line there is always one; what counts is whether they are looked at.
            let looked = found.line.resampled != before;
            found.way_back =
                found.way_back.map(|way_back| WayBack { due: way_back.due && !looked, ..way_back });
        }
        let mut situation = Situation {
            line: found.line,
            function: found.function,
            way_back: found.way_back,
            gic: Gic::of(&self.gic, self.lines.wiring().router()),
            translation: None,
            interrupt: None,
            vcpus_on: Vec::new(),
            paused: running.pause.is_asked(),
        };
        if !situation.paused {
            let held = running.pause();
            let look = Look {
                gic: &self.gic,
                memory: self.memory.memory(),
                debugfs: Some(gic::directory(self.vm.as_raw_fd())),
                still: held.is_ok(),
            };
            look.fill_in(&mut situation);
            if held.is_ok() {
                situation.vcpus_on = running.vcpus.iter().map(|vcpu| vcpu.was_on()).collect();
                running.pause.resume();
            }
        }
        Some(explain::explain(&situation))
    }
}
