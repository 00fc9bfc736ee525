// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest writes that signal eventfds (Linux 6.12, `virt/kvm/eventfd.c`, second half).

use std::os::fd::BorrowedFd;

use super::state::{Answer, State};
use super::sys::{self, Event};
use crate::{Errno, IoAddress, IoeventSpec};

/// `struct _ioeventfd`.
#[derive(Debug)]
pub(super) struct Ioevent {
    event: Event,
    spec: IoeventSpec,
}

/// `ioeventfd_check_collision`.
fn collide(a: &IoeventSpec, b: &IoeventSpec) -> bool {
    a.address == b.address
        && (a.length == 0
            || b.length == 0
            || (a.length == b.length
                && (a.datamatch.is_none() || b.datamatch.is_none() || a.datamatch == b.datamatch)))
}

/// `ioeventfd_in_range`: `value` has `length` bytes.
fn rings(spec: &IoeventSpec, address: IoAddress, value: u64, length: u32) -> bool {
    if spec.address != address {
        return false;
    }
    if spec.length == 0 {
        return true;
    }
    // The value to match is not cut to the width: one that is too wide never rings.
    spec.length == length && spec.datamatch.is_none_or(|wanted| wanted == truncate(value, length))
}

const fn truncate(value: u64, length: u32) -> u64 {
    match length {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

impl State {
    /// `kvm_assign_ioeventfd`.
    pub(super) fn assign_ioevent(&mut self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Answer {
        if !matches!(spec.length, 0 | 1 | 2 | 4 | 8) {
            return Err(Errno::EINVAL);
        }
        if let IoAddress::Mmio(address) = spec.address
            && address.checked_add(u64::from(spec.length)).is_none()
        {
            return Err(Errno::EINVAL);
        }
        if spec.length == 0 && spec.datamatch.is_some() {
            return Err(Errno::EINVAL);
        }
        let event = Event::hold(event)?;
        if self.ioevents.iter().any(|other| collide(&other.spec, &spec)) {
            return Err(Errno::EEXIST);
        }
        self.ioevents.push(Ioevent { event, spec });
        Ok(())
    }

    /// `kvm_deassign_ioeventfd`.
    pub(super) fn deassign_ioevent(&mut self, event: BorrowedFd<'_>, spec: IoeventSpec) -> Answer {
        let id = sys::identity(event)?;
        let at = self
            .ioevents
            .iter()
            .position(|ioevent| ioevent.event.is(id) && ioevent.spec == spec)
            .ok_or(Errno::ENOENT)?;
        self.ioevents.remove(at);
        Ok(())
    }

    /// A guest's write: whether an ioeventfd took it. The first that fits does; there is no second.
    pub(super) fn guest_write(&self, address: IoAddress, value: u64, length: u32) -> bool {
        match self.ioevents.iter().find(|ioevent| rings(&ioevent.spec, address, value, length)) {
            Some(ioevent) => {
                let _full = sys::add(&ioevent.event, 1);
                true
            }
            None => false,
        }
    }
}
