// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looking at a machine's interrupts: all of them, and one of them closely. Nothing here runs before somebody asks.

use std::time::{Duration, Instant};

use irqfd::LevelState;
use pci::PciFunction;
use vfio_passthrough::pci::InterruptMode;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::irq::collect::{self, Host, Owner, Routes};
use crate::irq::explain::{self, Explanation, Function, Gic, Situation, Unmask, WayBack};
use crate::irq::gic::{self, GicState, Interrupt};
use crate::irq::host::{self, HostCounts};
use crate::irq::its::{self, Translation};
use crate::irq::{Kind, Line, Mask, Route};
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
                let line = collect::level(&owner(counts.of(&host::intx(device))), "intx", &state, routes);
                let mut line = pin(line, &state, function);
                if line.line.armed && !connected {
                    line.way_back = Some(WayBack { by: Unmask::NotArmed, due: false });
                }
                found.push(line);
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
            std::thread::sleep(A_MOMENT);
            found = find()?;
        }
        let router = self.lines.wiring().router();
        let mut situation = Situation {
            line: found.line,
            function: found.function,
            way_back: found.way_back,
            gic: Gic {
                spis: router.ready().lines(),
                messages: !self.gic.layout().its_frames().is_empty() || self.gic.v2m_frame().is_some(),
                needs_device_id: router.msi_policy().needs_device_id(),
                enabled: None,
            },
            translation: None,
            interrupt: None,
            vcpus_on: Vec::new(),
            paused: running.pause.is_asked(),
        };
        if !situation.paused {
            let held = running.pause();
            self.look_at_the_gic(&mut situation, held.is_ok());
            if held.is_ok() {
                situation.vcpus_on = running.vcpus.iter().map(|vcpu| vcpu.was_on()).collect();
                running.pause.resume();
            }
        }
        Some(explain::explain(&situation))
    }

    /// Fills in what the kernel knows. `still` is whether no vCPU runs.
    fn look_at_the_gic(&self, situation: &mut Situation, still: bool) {
        let shown = GicState::read(self.vm_fd);
        let distributor = |offset| self.gic.read_distributor(offset).ok().filter(|_| still);
        situation.gic.enabled = shown
            .as_ref()
            .and_then(|state| state.enabled)
            .or_else(|| distributor(0).map(|ctlr| ctlr & 3 != 0));
        let intid = match situation.line.route {
            None => return,
            Some(Route::Pin { pin }) => pin + 32,
            Some(Route::Message { data, device_id, .. }) => {
                let translation = self.translate(device_id, data, still);
                let intid = match translation {
                    Translation::Mapped { intid, .. } => Some(intid),
                    _ => None,
                };
                situation.translation = Some(translation);
                let Some(intid) = intid else { return };
                intid
            }
        };
        situation.interrupt = shown
            .and_then(|state| state.interrupt(intid))
            .or_else(|| if intid >= 8192 { self.lpi(intid, still) } else { self.spi(intid, distributor) });
        if let (Some(interrupt), Some(Translation::Mapped { target, .. })) =
            (&mut situation.interrupt, &situation.translation)
        {
            interrupt.target = interrupt.target.or(*target);
        }
    }

    fn translate(&self, device: u32, event: u32, still: bool) -> Translation {
        if let Some(translation) = its::from_debugfs(&gic::directory(self.vm_fd), device, event) {
            return translation;
        }
        if !still {
            return Translation::Unknown { why: "the guest could not be held still".to_owned() };
        }
        // GITS_BASER0 and 1 are the device and the collection table in KVM's ITS.
        let register = |offset| self.gic.read_its(0, offset).and_then(Result::ok);
        let (Some(devices), Some(collections)) = (register(0x100), register(0x108)) else {
            return Translation::Unknown { why: "the kernel does not show the ITS's registers".to_owned() };
        };
        let save = || match self.gic.save_its_tables(0) {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(e.to_string()),
            None => Err("there is no ITS".to_owned()),
        };
        its::translate(&Words(self.memory.memory()), (devices, collections), (device, event), save)
    }

    /// An SPI by the distributor's registers (Arm IHI 0069, section 12.9).
    fn spi(&self, intid: u32, register: impl Fn(u32) -> Option<u32>) -> Option<Interrupt> {
        let bit = |base: u32| Some(register(base + intid / 32 * 4)? >> (intid % 32) & 1 != 0);
        let edge = register(0xc00 + intid / 16 * 4)? >> (intid % 16 * 2) & 2 != 0;
        let target = match self.gic.device_kind() {
            irqchip::DeviceKind::GicV2 => {
                let mask = register(0x800 + intid / 4 * 4)? >> (intid % 4 * 8) & 0xff;
                (mask != 0).then(|| mask.trailing_zeros())
            }
            _ => {
                // KVM numbers 16 vCPUs in the lowest affinity, and 256 in each other.
                let affinity = register(0x6000 + intid * 8)?;
                Some((affinity & 0xf) | (affinity >> 8 & 0xff) << 4 | (affinity >> 16 & 0xff) << 12)
            }
        };
        Some(Interrupt {
            intid,
            enabled: bit(0x100)?,
            pending: bit(0x200)?,
            active: bit(0x300)?,
            level: Some(!edge),
            target,
        })
    }

    /// An LPI by the guest's table, whose lowest bit in each byte enables one (Arm IHI 0069, section 5.1.1).
    fn lpi(&self, intid: u32, still: bool) -> Option<Interrupt> {
        /// `GICR_PROPBASER`, of the first vCPU: all have the same table.
        const PROPBASER: u32 = 0x70;
        let half = |offset| self.gic.read_redistributor(0, offset).ok().filter(|_| still).map(u64::from);
        let register = half(PROPBASER)? | half(PROPBASER + 4)? << 32;
        let table = register & 0xf_ffff_ffff_f000;
        let at = GuestAddress(table + u64::from(intid.checked_sub(8192)?));
        let entry: u8 = self.memory.memory().read_obj(at).ok()?;
        Some(Interrupt {
            intid,
            enabled: entry & 1 != 0,
            pending: false,
            active: false,
            level: Some(false),
            target: None,
        })
    }
}

/// Guest memory in words of eight bytes.
struct Words<'a>(&'a GuestMemoryMmap);

impl its::Memory for Words<'_> {
    fn read(&self, address: u64) -> Option<u64> {
        self.0.read_obj::<u64>(GuestAddress(address)).ok().map(u64::from_le)
    }

    fn write(&self, address: u64, value: u64) -> bool {
        self.0.write_obj(value.to_le(), GuestAddress(address)).is_ok()
    }
}
