// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why an interrupt does not arrive: its way is walked, from the device to the vCPU, and the first thing that is wrong is said, with what to do.
//!
//! The walk is a function of a [`Situation`], which is plain data; [`look`](super::look) and the machine fill it in. docs/interrupts.md has a test with a real guest for
//! each [`Verdict`].

use serde::Serialize;

use super::gic::Interrupt;
use super::its::Translation;
use super::situation::{Situation, Unmask, WayBack};
use super::{CountedBy, Kind, Mask, Route};
use crate::wrap::wrap;

/// The first INTID that is an SPI's.
const FIRST_SPI: u32 = 32;

/// What is wrong, or that nothing is.
///
/// Four are for who takes the crates for another VMM; this one cannot come there, since triggers are wired with their routes, and the router refuses the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The machine is paused.
    Paused,
    /// No driver has started the device.
    NoDriver,
    /// The device has stopped itself.
    DeviceInTrouble,
    /// The guest has not enabled the capability.
    MessagesDisabled,
    /// The function may not send messages.
    BusMasterOff,
    /// MSI-X: all vectors of the function are masked.
    FunctionMasked,
    /// The vector's entry is masked.
    EntryMasked,
    /// MSI: the guest allows fewer vectors.
    NotAllowed,
    /// The guest has written no message.
    NoMessage,
    /// The kernel or the routing table has refused.
    Refused,
    /// The guest keeps the function from its line.
    LineDisabled,
    /// The function interrupts by messages, and so not by its line.
    LineUnused,
    /// There is no route: another VMM has withdrawn it under an armed irqfd.
    NoRoute,
    /// The route has no device ID and the VM wants one: another VMM writes its routing table without the router.
    NoDeviceId,
    /// Nothing receives messages, or not where the guest sends them.
    NoReceiver,
    /// The route's pin is beyond the GIC's: another VMM writes its routing table without the router.
    PinOutside,
    /// No irqfd listens: another VMM has not wired the trigger. Where it was VFIO that refused, here that is [`Refused`](Self::Refused).
    NotArmed,
    /// VFIO does not take an EOI, and so does not unmask the device's interrupt.
    UnmaskNotArmed,
    /// The event loop does not take an EOI.
    EoiUnseen,
    /// The guest has not switched the GIC on.
    GicOff,
    /// The ITS does not know the device.
    NoDeviceMapping,
    /// The ITS knows the device, and not the event.
    NoEventMapping,
    /// A level line that the guest has configured as edge.
    ConfiguredAsEdge,
    /// A message's SPI that the guest has configured as level.
    ConfiguredAsLevel,
    /// The guest has disabled the LPI.
    LpiDisabled,
    /// The guest has disabled the SPI.
    SpiDisabled,
    /// The vCPU that it is for is off.
    VcpuOff,
    /// It is pending at the vCPU, which has not taken it.
    NotTaken,
    /// The guest has taken it and not ended it.
    NotEnded,
    /// Everything is fine, and the device has not fired.
    NotFired,
    /// Everything is fine.
    Fine,
}

/// A part of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Step {
    /// Which.
    pub part: String,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What was found there.
    pub found: String,
}

/// What the walk came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// Which interrupt.
    pub line: String,
    /// Whose.
    pub device: String,
    /// How it signals.
    pub kind: String,
    /// In a word.
    pub verdict: Verdict,
    /// The way, up to where it ends.
    pub steps: Vec<Step>,
    /// What to do.
    pub advice: Option<String>,
}

/// Walks the way of an interrupt.
#[must_use]
pub fn explain(situation: &Situation) -> Explanation {
    let line = &situation.line;
    let mut walk = Walk { situation, steps: Vec::new() };
    let (verdict, advice) = match walk.walk() {
        Ok(()) => walk.fine(),
        Err(stop) => (stop.verdict, Some(stop.advice)),
    };
    Explanation {
        line: line.line.clone(),
        device: line.device.clone(),
        kind: line.kind_and_index(),
        verdict,
        steps: walk.steps,
        advice,
    }
}

struct Walk<'a> {
    situation: &'a Situation,
    steps: Vec<Step>,
}

struct Stop {
    verdict: Verdict,
    advice: String,
}

type Walked = Result<(), Stop>;

impl Walk<'_> {
    fn ok(&mut self, part: &str, found: impl Into<String>) {
        self.steps.push(Step { part: part.to_owned(), ok: true, found: found.into() });
    }

    fn stop(
        &mut self,
        part: &str,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Walked {
        self.steps.push(Step { part: part.to_owned(), ok: false, found: found.into() });
        Err(Stop { verdict, advice: advice.into() })
    }

    fn walk(&mut self) -> Walked {
        if self.situation.paused {
            return self.stop(
                "machine",
                Verdict::Paused,
                "it is paused: no vCPU takes anything",
                "doorbell resume; interrupts that came meanwhile arrive then",
            );
        }
        match self.situation.line.kind {
            Kind::Msi | Kind::Msix => self.message()?,
            Kind::Level | Kind::Edge => self.line()?,
        }
        self.controller()
    }

    fn device(&mut self) -> Walked {
        let Some(function) = &self.situation.function else { return Ok(()) };
        if let Some(trouble) = &function.trouble {
            return self.stop(
                "device",
                Verdict::DeviceInTrouble,
                format!("it has stopped itself: {trouble}"),
                "the guest's driver has to reset it: unbind and bind the driver, or reboot the guest",
            );
        }
        if function.driver_up == Some(false) {
            return self.stop(
                "device",
                Verdict::NoDriver,
                "no driver of the guest's has started it (DRIVER_OK is not set)",
                "look for the driver in the guest: lspci -k, dmesg | grep virtio; its module may be missing",
            );
        }
        if function.driver_up == Some(true) {
            self.ok("device", "a driver has started it");
        }
        Ok(())
    }

    /// From the device to the irqfd, for a vector.
    fn message(&mut self) -> Walked {
        self.device()?;
        let Situation { line, function, gic, .. } = self.situation;
        let capability = line.kind.to_string();
        let index = line.index.unwrap_or(0);
        if !gic.takes_messages() {
            return self.stop(
                "receiver",
                Verdict::NoReceiver,
                "the guest's interrupt controller has neither an ITS nor a v2m frame",
                "start the guest without --msi none; with --gic v3 --msi its, or --gic v2 --msi v2m",
            );
        }
        if line.masked == Some(Mask::Disabled) {
            return self.stop(
                "capability",
                Verdict::MessagesDisabled,
                format!("{capability} is not enabled by the guest"),
                "its driver has not asked for it, or the guest was booted with pci=nomsi: see the guest's /proc/interrupts for whether \
                 the device uses its line instead",
            );
        }
        if function.as_ref().is_some_and(|function| function.passed_through && !function.bus_master) {
            return self.stop(
                "command",
                Verdict::BusMasterOff,
                "bus mastering is off in the function's command register: it can send no message",
                "the guest's driver has to enable it (pci_set_master); a device without a driver has it off",
            );
        }
        self.ok("capability", format!("{capability} is enabled"));
        match line.masked {
            Some(Mask::Function) => {
                return self.stop(
                    "mask",
                    Verdict::FunctionMasked,
                    format!("the guest has set the function mask of {capability}: all vectors are held back"),
                    "the guest's driver has to clear bit 14 of message control; what came meanwhile is pending and arrives then",
                );
            }
            Some(Mask::NotAllowed) => {
                return self.stop(
                    "mask",
                    Verdict::NotAllowed,
                    format!("the guest allows the function fewer vectors than {}", index + 1),
                    "the driver has asked for fewer (multiple message enable); this vector is not used",
                );
            }
            _ => {}
        }
        if line.message.is_none() {
            return self.stop(
                "message",
                Verdict::NoMessage,
                format!("the guest has written no message for entry {index}"),
                "its driver does not use this vector: see the guest's /proc/interrupts for which it does",
            );
        }
        if line.masked == Some(Mask::Entry) {
            let pending = if line.pending { "; a signal is pending" } else { "" };
            return self.stop(
                "mask",
                Verdict::EntryMasked,
                format!("masked at {capability} entry {index} by the guest{pending}"),
                "the guest's driver has disabled this interrupt (disable_irq), or has not requested it yet; what came meanwhile arrives \
                 when it unmasks the entry",
            );
        }
        self.ok("mask", format!("entry {index} is not masked"));
        if let Some(trouble) = &line.trouble {
            return self.stop(
                "route",
                Verdict::Refused,
                format!("it cannot be connected: {trouble}"),
                "it is tried again at the guest's next write to the table; if it was refused for want of GSIs, give the guest fewer devices",
            );
        }
        self.route()?;
        self.irqfd()
    }

    /// From the device to the irqfd, for a line.
    fn line(&mut self) -> Walked {
        self.device()?;
        let Situation { line, function, way_back, .. } = self.situation;
        if let Some(function) = function {
            if function.messages_enabled {
                return self.stop(
                    "pin",
                    Verdict::LineUnused,
                    "the function interrupts by messages, and so not by its line",
                    "look at its vectors: doorbell irq list shows them",
                );
            }
            if function.intx_disabled {
                return self.stop(
                    "command",
                    Verdict::LineDisabled,
                    "the guest has set the interrupt disable bit in the function's command register",
                    "the guest's driver has to clear it (pci_intx)",
                );
            }
            self.ok("pin", "the function interrupts by its line, and the guest lets it");
        }
        if let Some(trouble) = &line.trouble {
            return self.stop(
                "route",
                Verdict::Refused,
                format!("it cannot be connected: {trouble}"),
                "see the host's log",
            );
        }
        self.route()?;
        self.irqfd()?;
        match way_back {
            Some(WayBack { by: Unmask::Kernel, due: true }) => self.stop(
                "way back",
                Verdict::UnmaskNotArmed,
                format!(
                    "the guest has ended an interrupt, and the EOI is still in eventfd {}: VFIO has no unmask eventfd armed, so \
                     that the device's interrupt stays masked on the host",
                    line.resamplefd.map_or_else(|| "none".to_owned(), |fd| fd.to_string())
                ),
                "see the log for what VFIO refused; resample=loop in the device's option has the event loop unmask instead",
            ),
            Some(WayBack { by: Unmask::Loop, due: true }) => self.stop(
                "way back",
                Verdict::EoiUnseen,
                "the guest has ended an interrupt, and the event loop has not looked at it",
                "the event loop hangs: does somebody read what the guest writes to its console?",
            ),
            Some(WayBack { by: Unmask::Kernel, .. }) => {
                self.ok("way back", "VFIO unmasks at the guest's EOI, without userspace");
                Ok(())
            }
            Some(WayBack { by: Unmask::Loop, .. }) => {
                self.ok("way back", "the event loop looks again at the guest's EOI");
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn route(&mut self) -> Walked {
        let Situation { line, gic, .. } = self.situation;
        let Some(gsi) = line.gsi.map(|gsi| format!("GSI {gsi}")) else {
            let eventfd = line.eventfd.map_or_else(|| "the eventfd".to_owned(), |fd| format!("eventfd {fd}"));
            return self.stop(
                "irqfd",
                Verdict::NotArmed,
                format!("{eventfd} is wired to no GSI: no irqfd listens to it"),
                "the device is not connected; see the log for what was refused",
            );
        };
        match line.route {
            None => self.stop(
                "route",
                Verdict::NoRoute,
                format!("{gsi} leads nowhere: it has no route"),
                "a vector gets its route when the guest unmasks it; a line has one from the start: see the log for what was refused",
            ),
            Some(Route::Message { address, .. }) if !gic.its.iter().any(|its| its.frame.contains(&address)) => {
                let doorbell = gic.its.first().map(|its| format!("; the ITS takes them at {:#x}", its.doorbell));
                self.stop(
                    "receiver",
                    Verdict::NoReceiver,
                    format!("nothing takes messages at {address:#x}{}", doorbell.unwrap_or_default()),
                    "the guest has written a wrong address, or one that its IOMMU would translate: the kernel drops such a message without a word",
                )
            }
            Some(Route::Message { with_device_id: false, .. }) if gic.needs_device_id => self.stop(
                "route",
                Verdict::NoDeviceId,
                format!("the route of {gsi} needs a device ID, for the ITS, and has none"),
                "the kernel drops such a message without a word; it takes KVM_MSI_VALID_DEVID and the function's requester ID",
            ),
            Some(Route::Pin { pin }) if pin >= gic.spis => self.stop(
                "route",
                Verdict::PinOutside,
                format!("{gsi} leads to pin {pin}, and the GIC has pins 0 to {}", gic.spis.saturating_sub(1)),
                "the kernel takes such a route and its interrupts vanish; the GIC needs more interrupts (NR_IRQS)",
            ),
            Some(Route::Pin { pin }) => {
                self.ok("route", format!("{gsi} -> pin {pin}, INTID {}", pin + FIRST_SPI));
                Ok(())
            }
            Some(route @ Route::Message { .. }) => {
                let behind = match (line.message, route) {
                    (Some((a, d)), Route::Message { address, data, .. }) if (a, d) != (address, data) => {
                        "; the guest has written another message since"
                    }
                    _ => "",
                };
                self.ok("route", format!("{gsi} -> {route}{behind}"));
                Ok(())
            }
        }
    }

    fn irqfd(&mut self) -> Walked {
        let line = &self.situation.line;
        let eventfd = line.eventfd.map_or_else(|| "none".to_owned(), |fd| fd.to_string());
        if !line.armed {
            return self.stop(
                "irqfd",
                Verdict::NotArmed,
                format!("no irqfd listens to eventfd {eventfd}"),
                "the device is not connected; see the log for what the kernel refused",
            );
        }
        self.ok("irqfd", format!("armed on eventfd {eventfd}"));
        Ok(())
    }

    /// From the GIC to the vCPU.
    fn controller(&mut self) -> Walked {
        let Situation { gic, translation, line, .. } = self.situation;
        if gic.enabled == Some(false) {
            return self.stop(
                "GIC",
                Verdict::GicOff,
                "the guest has not switched the distributor on",
                "its kernel has not got that far, or has no driver for this GIC: see its console",
            );
        }
        match translation {
            Some(Translation::NoDevice { device }) => {
                return self.stop(
                    "ITS",
                    Verdict::NoDeviceMapping,
                    format!("it has no mapping for device {device:#x}"),
                    "the guest has not sent MAPD for the function, or for another requester ID: compare msi-map in its device tree with the \
                     function's address",
                );
            }
            Some(Translation::NoEvent { device, event }) => {
                return self.stop(
                    "ITS",
                    Verdict::NoEventMapping,
                    format!("it has no mapping for device {device:#x} event {event}"),
                    "the guest has not mapped the event (MAPTI), or discarded it: its driver has freed the interrupt, or wrote another message",
                );
            }
            Some(Translation::Mapped { device, event, intid, .. }) => {
                self.ok("ITS", format!("device {device:#x} event {event} is LPI {intid}"));
            }
            Some(Translation::Unknown { why }) => self.ok("ITS", format!("not looked at: {why}")),
            None => {}
        }
        let Some(interrupt) = self.situation.interrupt else {
            self.ok("GIC", "not looked at: the kernel's view of it is in debugfs (root), or wants a machine that can be paused");
            return Ok(());
        };
        let Interrupt { intid, enabled, level, target, .. } = interrupt;
        let lpi = intid >= 8192;
        if let Some(level) = level.filter(|_| !lpi) {
            match (line.kind, level) {
                (Kind::Level, false) => {
                    return self.stop(
                        "GIC",
                        Verdict::ConfiguredAsEdge,
                        format!("INTID {intid} is a level interrupt, and the guest has configured it as edge (GICD_ICFGR)"),
                        "KVM reports no EOI for it, so it dies after the first: the guest must take the trigger from the device tree",
                    );
                }
                (Kind::Edge | Kind::Msi | Kind::Msix, true) => {
                    return self.stop(
                        "GIC",
                        Verdict::ConfiguredAsLevel,
                        format!("INTID {intid} is an edge interrupt, and the guest has configured it as level (GICD_ICFGR)"),
                        "a pulse may be over before the guest looks: the guest must take the trigger from the device tree",
                    );
                }
                _ => {}
            }
        }
        if !enabled {
            let (what, verdict) =
                if lpi { ("LPI", Verdict::LpiDisabled) } else { ("INTID", Verdict::SpiDisabled) };
            let pending = if interrupt.pending { ", where it is pending" } else { "" };
            return self.stop(
                "GIC",
                verdict,
                format!("{what} {intid} is disabled by the guest{pending}"),
                if lpi {
                    "its driver has masked the interrupt, or the guest changed its LPI table without an INV command"
                } else {
                    "no driver of the guest's has requested the interrupt, or it has disabled it (disable_irq)"
                },
            );
        }
        let target_text = target.map_or_else(String::new, |target| format!(", for vCPU {target}"));
        self.ok("GIC", format!("{} {intid} is enabled{target_text}", if lpi { "LPI" } else { "INTID" }));
        if let Some(target) = target
            && self.situation.vcpus_on.get(target as usize) == Some(&false)
        {
            return self.stop(
                "vCPU",
                Verdict::VcpuOff,
                format!("the interrupt is for vCPU {target}, which is off"),
                "turn the CPU on in the guest, or move the interrupt: /proc/irq/N/smp_affinity",
            );
        }
        if interrupt.active {
            return self.stop(
                "vCPU",
                Verdict::NotEnded,
                "the guest has taken it and not ended it yet",
                "if this stays so, its handler hangs",
            );
        }
        if interrupt.pending {
            return self.stop(
                "vCPU",
                Verdict::NotTaken,
                "it is pending there, and the vCPU has not taken it",
                "if this stays so, the vCPU has its interrupts off, or hangs: see the guest's console",
            );
        }
        Ok(())
    }

    fn fine(&mut self) -> (Verdict, Option<String>) {
        let line = &self.situation.line;
        match (line.fired, line.counted_by) {
            (Some(0), _) => {
                self.ok("device", "everything is fine: the device has not fired");
                (
                    Verdict::NotFired,
                    Some("the reason is in the device, or its driver waits for something else".to_owned()),
                )
            }
            (Some(count), by) => {
                let often = if count == 1 { "once".to_owned() } else { format!("{count} times") };
                let who = if by == CountedBy::Host { ", says the host's /proc/interrupts" } else { "" };
                self.ok("device", format!("everything is fine: the device has fired {often}{who}"));
                (Verdict::Fine, None)
            }
            (None, _) => {
                self.ok("device", "everything is fine; how often the device has fired, nobody counts");
                (Verdict::Fine, None)
            }
        }
    }
}

/// For a person: a row for each part of the way, and what to do. Of the JSON form, as it comes from the control socket.
#[must_use]
pub fn text(explanation: &serde_json::Value) -> String {
    let word = |name: &str| explanation[name].as_str().unwrap_or_default();
    let mut text = String::new();
    wrap(&mut text, &format!("{}: {} interrupt of {}", word("line"), word("kind"), word("device")), 0);
    for step in explanation["steps"].as_array().into_iter().flatten() {
        let ok = if step["ok"] == true { "ok" } else { "WRONG" };
        text.push_str(&format!("  {ok:<6} {:<11}", step["part"].as_str().unwrap_or_default()));
        wrap(&mut text, step["found"].as_str().unwrap_or_default(), 20);
    }
    if !word("advice").is_empty() {
        text.push_str("      -> ");
        wrap(&mut text, word("advice"), 9);
    }
    text
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
