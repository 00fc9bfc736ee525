// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The slot of a root port: what software commands and what it is told (PCI Express base specification 6.0, sections 6.7 and 7.5.3.9 to 7.5.3.11).
//!
//! # What happens
//!
//! | | the port | Linux 6.12 (`drivers/pci/hotplug/pciehp_ctrl.c`) |
//! |---|---|---|
//! | a device is plugged in | presence detect and attention button events | sees a card in a slot that is off: powers it on, at once |
//! | power on | the link comes up: link state event | waits for it, enumerates, indicator on |
//! | removal is asked for | attention button event | indicator blinks, for 5 seconds in which a second press would take it back |
//! | | | unbinds the driver, power off, a second later indicator off |
//! | power off | the link goes down, the device is reset | ignores link and presence for that second |
//! | indicator off | the device leaves: presence detect event | nothing left to do |
//! | a device is torn out | link down, presence detect and link state events | surprise removal |
//!
//! The attention button comes with a device that is plugged in, since Linux does not enable presence detect events where there is a button
//! (`pcie_enable_notification`), but looks at all event bits once it is interrupted.
//!
//! The device leaves when the power indicator goes off, not with the power, so that a device that is plugged in right after it is seen.

/// Slot status: attention button pressed.
pub(crate) const BUTTON: u16 = 1;
/// Slot status: presence detect changed.
pub(crate) const PRESENCE_CHANGED: u16 = 1 << 3;
/// Slot status: command completed.
pub(crate) const COMMAND_COMPLETED: u16 = 1 << 4;
/// Slot status: there is a device.
pub(crate) const PRESENT: u16 = 1 << 6;
/// Slot status: data link layer state changed.
pub(crate) const LINK_CHANGED: u16 = 1 << 8;
/// Slot status: the bits that software clears by writing ones: the events, and two that never happen (power fault, latch).
pub(crate) const EVENTS: u16 = BUTTON | 1 << 1 | 1 << 2 | PRESENCE_CHANGED | COMMAND_COMPLETED | LINK_CHANGED;

/// Slot control: the enables that are at their events' places.
const ENABLES: u16 = 0x1f;
/// Slot control: hot-plug interrupt.
const INTERRUPT_ENABLE: u16 = 1 << 5;
/// Slot control: attention indicator off.
const ATTENTION_OFF: u16 = 3 << 6;
const POWER_INDICATOR: u16 = 3 << 8;
const POWER_INDICATOR_ON: u16 = 1 << 8;
const POWER_INDICATOR_BLINK: u16 = 2 << 8;
const POWER_INDICATOR_OFF: u16 = 3 << 8;
/// Slot control: the slot is without power.
const POWER_OFF: u16 = 1 << 10;
/// Slot control: data link layer state changed enable.
const LINK_CHANGED_ENABLE: u16 = 1 << 12;

/// After a reset, with nothing in the slot: no power, indicators off.
pub(crate) const CONTROL_DEFAULT: u16 = ATTENTION_OFF | POWER_INDICATOR_OFF | POWER_OFF;
/// What of it a device in the slot changes: power and its indicator.
pub(crate) const CONTROL_OCCUPIED: u16 = ATTENTION_OFF | POWER_INDICATOR_ON;

/// Whether the slot has power.
pub(crate) const fn has_power(control: u16) -> bool {
    control & POWER_OFF == 0
}

/// Whether the power indicator says that the device may be taken out.
pub(crate) const fn may_leave(control: u16) -> bool {
    !has_power(control) && control & POWER_INDICATOR == POWER_INDICATOR_OFF
}

/// Whether software is about to change the power: pressing the button now would take that back.
pub(crate) const fn is_blinking(control: u16) -> bool {
    control & POWER_INDICATOR == POWER_INDICATOR_BLINK
}

/// Whether software is to be interrupted (section 6.7.3.4).
pub(crate) const fn interrupts(control: u16, status: u16) -> bool {
    let link = if control & LINK_CHANGED_ENABLE != 0 { LINK_CHANGED } else { 0 };
    control & INTERRUPT_ENABLE != 0 && status & (control & ENABLES | link) != 0
}
