// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Root ports: bridges on the root bus, each with a slot for one device.

mod aer;
mod config;
mod slot;

use std::sync::{Arc, Mutex};

use irq_types::Bdf;

pub use self::aer::ErrorSeverity;
pub(crate) use self::config::Forwarding;
use self::config::{BRIDGE_RESET, LINK_DISABLE, LINK_UP, Places};
use self::slot::{BUTTON, COMMAND_COMPLETED, CONTROL_OCCUPIED, LINK_CHANGED, PRESENCE_CHANGED, PRESENT};
use crate::config::express::{LINK_CONTROL, SLOT_CAPABILITIES, SLOT_CONTROL};
use crate::config::header::BRIDGE_CONTROL;
use crate::lock::lock;
use crate::registers::Registers;
use crate::{BarIndex, ConfigError, DecodedBar, Endpoint, IntxPin, MsiLayout, PciFunction, VectorSink};

/// What a root port is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortConfig {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// The number of its slot, unique within the machine, 0 to 8191. Without one, what is behind the port stays there.
    pub slot: Option<u16>,
    /// Whether it forwards I/O ports. Each bridge that does takes 4096 of them, and few devices need any.
    pub io: bool,
}

impl Default for PortConfig {
    /// The IDs are those of the generic root port that QEMU has made known (`docs/specs/pci-ids.rst`). Drivers go by the class.
    fn default() -> Self {
        Self { vendor: 0x1b36, device: 0x000c, slot: None, io: false }
    }
}

/// How a port interrupts, for hot-plug and errors: by MSI if the guest has enabled that, by its line otherwise.
pub struct PortInterrupts {
    /// What its MSI capability, of one vector, drives.
    pub sink: Arc<dyn VectorSink>,
    /// Raises that vector.
    pub message: Box<dyn Fn() + Send + Sync>,
    /// Sets the level of its pin, which is [`RootPort::PIN`].
    pub line: Box<dyn Fn(bool) + Send + Sync>,
}

impl std::fmt::Debug for PortInterrupts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortInterrupts").finish_non_exhaustive()
    }
}

/// A PCI Express root port: a bridge to a bus of its own, on which there is one device or none. With a slot, the device can come and go while the guest runs
/// (native hot-plug: the guest needs no firmware for it).
///
/// It is put on a bus with [`HostBridge::add_port`](crate::HostBridge::add_port), which also plugs in and takes out devices.
#[derive(Debug)]
pub struct RootPort {
    endpoint: Endpoint,
    places: Places,
    has_slot: bool,
    interrupts: PortInterrupts,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    present: bool,
    /// The user wants the device back.
    removing: bool,
    /// Whether there was a reason to interrupt, when it was last looked at: what MSI sends is the change.
    message_due: bool,
    line: bool,
    due: Due,
}

/// What a write to the port's configuration space has brought about, for the bus to do.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// The devices behind are to be reset.
    pub(crate) reset: bool,
    /// The guest has turned the slot's power on or off.
    pub(crate) power: Option<bool>,
    /// The device leaves.
    pub(crate) leaves: bool,
}

/// Why a device cannot be taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ButtonError {
    NoSlot,
    Empty,
    Busy,
}

impl RootPort {
    /// The pin that a port interrupts through where there are no messages.
    ///
    /// Not INTA, as other devices of one function: that would be the same line as INTA of the device behind the port. Linux's hot-plug driver runs in a threaded
    /// interrupt handler, from where it unbinds the device's driver; and that may wait for all handlers of the device's interrupt to finish, the thread's
    /// own included. Linux 6.12 hangs so with virtio devices (`vp_synchronize_vectors` in `drivers/virtio/virtio_pci_common.c`).
    pub const PIN: IntxPin = IntxPin::D;

    /// A port with nothing behind it.
    ///
    /// # Errors
    /// None that are known: [`ConfigError::NoRoom`] if its capabilities did not fit.
    pub fn new(config: &PortConfig, interrupts: PortInterrupts) -> Result<Self, ConfigError> {
        let (space, places) = config::config_space(config)?;
        let msi = MsiLayout::new(1)?.with_masking();
        let endpoint = Endpoint::new(space).with_msi(msi, interrupts.sink.clone())?;
        let has_slot = config.slot.is_some();
        Ok(Self { endpoint, places, has_slot, interrupts, state: Mutex::default() })
    }

    /// Whether devices can come and go.
    #[must_use]
    pub const fn has_slot(&self) -> bool {
        self.has_slot
    }

    /// The function at `source`, behind this port, reports an error: the guest's AER driver hears of it, if it wants to.
    pub fn report_error(&self, source: Bdf, severity: ErrorSeverity) {
        let mut state = lock(&self.state);
        self.registers(|registers| aer::record(registers, self.places.aer, source, severity));
        self.interrupt(&mut state);
    }

    fn registers<R>(&self, f: impl FnOnce(&mut Registers) -> R) -> R {
        self.endpoint.with_config(|space| f(space.registers_mut()))
    }

    /// What gets through to the bus behind.
    pub(crate) fn forwarding(&self) -> Forwarding {
        let express = self.places.express;
        self.registers(|registers| {
            if registers.word(express + LINK_CONTROL + 2) & LINK_UP == LINK_UP {
                Forwarding::of(registers, express)
            } else {
                Forwarding::default()
            }
        })
    }

    /// What is to be done, once.
    pub(crate) fn take_due(&self) -> Due {
        std::mem::take(&mut lock(&self.state).due)
    }

    /// A device is there from now on: since before the guest began, or `hot`.
    pub(crate) fn insert(&self, hot: bool) {
        let mut state = lock(&self.state);
        state.present = true;
        self.registers(|registers| {
            let control = self.places.express + SLOT_CONTROL;
            if !hot && self.has_slot {
                set_word(registers, control, u16::MAX, CONTROL_OCCUPIED);
            }
            if self.has_slot {
                set_word(registers, control + 2, PRESENT, PRESENT);
            }
            if hot {
                set_word(registers, control + 2, PRESENCE_CHANGED | BUTTON, u16::MAX);
            }
            self.train(registers, true, hot);
        });
        self.interrupt(&mut state);
    }

    /// The device has been taken out.
    pub(crate) fn extract(&self) {
        let mut state = lock(&self.state);
        state.present = false;
        state.removing = false;
        self.registers(|registers| {
            let status = self.places.express + SLOT_CONTROL + 2;
            set_word(registers, status, PRESENT | PRESENCE_CHANGED, PRESENCE_CHANGED);
            self.train(registers, false, true);
        });
        self.interrupt(&mut state);
    }

    /// Presses the attention button, for the device to be released.
    pub(crate) fn press_button(&self) -> Result<(), ButtonError> {
        let mut state = lock(&self.state);
        if !self.has_slot {
            return Err(ButtonError::NoSlot);
        }
        if !state.present {
            return Err(ButtonError::Empty);
        }
        let pressed = self.registers(|registers| {
            let at = self.places.express + SLOT_CONTROL;
            let (control, status) = (registers.word(at), registers.word(at + 2));
            // Pressed twice is not pressed; and not seen yet is pressed.
            if slot::is_blinking(control) || status & BUTTON != 0 {
                return Err(ButtonError::Busy);
            }
            set_word(registers, at + 2, BUTTON, BUTTON);
            Ok(slot::may_leave(control))
        })?;
        state.removing = true;
        // Off already: there is nobody to wait for.
        state.due.leaves |= pressed;
        self.interrupt(&mut state);
        Ok(())
    }

    /// Brings the link to what presence, power and link disable make of it.
    fn train(&self, registers: &mut Registers, present: bool, told: bool) {
        let express = self.places.express;
        let power = !self.has_slot || slot::has_power(registers.word(express + SLOT_CONTROL));
        let up = present && power && registers.word(express + LINK_CONTROL) & LINK_DISABLE == 0;
        let status = express + LINK_CONTROL + 2;
        let was_up = registers.word(status) & LINK_UP == LINK_UP;
        set_word(registers, status, LINK_UP, if up { LINK_UP } else { 0 });
        if up != was_up && told && self.has_slot {
            set_word(registers, express + SLOT_CONTROL + 2, LINK_CHANGED, LINK_CHANGED);
        }
    }

    /// Interrupts if there is a reason that was not there before; and sets the line to what it has to be.
    fn interrupt(&self, state: &mut State) {
        let Places { express, aer } = self.places;
        let reason = self.registers(|registers| {
            let control = express + SLOT_CONTROL;
            slot::interrupts(registers.word(control), registers.word(control + 2))
                || aer::interrupts(registers, aer)
        });
        let message = self.endpoint.msi_enabled();
        let due = reason && message;
        if due && !state.message_due {
            (self.interrupts.message)();
        }
        state.message_due = due;
        let level = self.endpoint.with_config(|space| {
            space.set_intx_status(reason && !message);
            space.intx_level()
        });
        if level != state.line {
            state.line = level;
            (self.interrupts.line)(level);
        }
    }

    /// A write to slot control or slot status.
    fn slot_written(&self, state: &mut State, registers: &mut Registers, before: u16, commanded: bool) {
        let at = self.places.express + SLOT_CONTROL;
        let control = registers.word(at);
        let power = slot::has_power(control);
        if power != slot::has_power(before) {
            state.due.power = Some(power);
            state.due.reset |= !power && state.present;
            self.train(registers, state.present, true);
        }
        if state.present && state.removing && slot::may_leave(control) {
            state.due.leaves = true;
        }
        if commanded {
            // Commands take no time here.
            set_word(registers, at + 2, COMMAND_COMPLETED, COMMAND_COMPLETED);
        }
    }
}

/// Sets the bits `mask` of the 16 bits at `offset`, which is even.
fn set_word(registers: &mut Registers, offset: u16, mask: u16, bits: u16) {
    let shift = 8 * (offset & 2);
    registers.set_bits(offset, u32::from(mask) << shift, u32::from(bits) << shift);
}

impl PciFunction for RootPort {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.endpoint.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut state = lock(&self.state);
        let express = self.places.express;
        let (slot_before, bridge_before) = self
            .registers(|registers| (registers.word(express + SLOT_CONTROL), registers.word(BRIDGE_CONTROL)));
        let write = self.endpoint.write(offset, data);
        self.registers(|registers| {
            let slot_control = express + SLOT_CONTROL;
            if self.has_slot && write.touches(slot_control..slot_control + 4) {
                let commanded = write.touches(slot_control..slot_control + 2);
                self.slot_written(&mut state, registers, slot_before, commanded);
            }
            if write.touches(express + LINK_CONTROL..express + LINK_CONTROL + 2) {
                self.train(registers, state.present, true);
            }
            if registers.word(BRIDGE_CONTROL) & !bridge_before & BRIDGE_RESET != 0 {
                state.due.reset = true;
            }
        });
        self.interrupt(&mut state);
    }

    fn decoded(&self) -> Vec<DecodedBar> {
        Vec::new()
    }

    fn read_bar(&self, _bar: BarIndex, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&self, _bar: BarIndex, _offset: u64, _data: &[u8]) {}

    fn reset(&self) {
        let mut state = lock(&self.state);
        self.endpoint.reset();
        let present = state.present;
        self.registers(|registers| {
            let control = self.places.express + SLOT_CONTROL;
            if present && self.has_slot {
                set_word(registers, control, u16::MAX, CONTROL_OCCUPIED);
                set_word(registers, control + 2, PRESENT, PRESENT);
            }
            self.train(registers, present, false);
        });
        state.removing = false;
        state.due = Due { reset: true, ..Due::default() };
        self.interrupt(&mut state);
    }
}

// Slot capabilities are constant, and lie where the table of the capability has them.
const _: () = assert!(SLOT_CAPABILITIES + 4 == SLOT_CONTROL);
