// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Advanced error reporting of a root port (PCI Express base specification 6.0, section 7.8.4).

use irq_types::Bdf;

use crate::Capability;
use crate::registers::Registers;

// Offsets from the start of the capability.
const UNCORRECTABLE_MASK: usize = 0x08;
const UNCORRECTABLE_SEVERITY: usize = 0x0c;
const CORRECTABLE_MASK: usize = 0x14;
const ROOT_COMMAND: u16 = 0x2c;
const ROOT_STATUS: u16 = 0x30;
const ERROR_SOURCE: u16 = 0x34;
const LENGTH: usize = 0x38;

/// The uncorrectable errors that a port may have: data link protocol, surprise down, poisoned, flow control, completion timeout, completer abort, unexpected completion,
/// receiver overflow, malformed, ECRC, unsupported request, ACS violation, internal.
const UNCORRECTABLE: u32 = 0x007f_f030;
/// Those that are fatal after a reset: data link protocol, surprise down, flow control, receiver overflow, malformed, internal.
const FATAL_DEFAULT: u32 = 0x0046_2030;
/// Internal errors are masked after a reset.
const UNCORRECTABLE_MASK_DEFAULT: u32 = 0x0040_0000;
/// The correctable ones: receiver, bad packets, replays, advisory, internal, log overflow.
const CORRECTABLE: u32 = 0x0000_f1c1;
/// Advisory, internal and log overflow are masked after a reset.
const CORRECTABLE_MASK_DEFAULT: u32 = 0x0000_e000;
/// Root error command: interrupts for correctable, non-fatal and fatal errors.
const ROOT_COMMAND_WRITABLE: u32 = 7;
/// Root error status: what software clears.
const ROOT_STATUS_EVENTS: u32 = 0x7f;

// Root error status.
const CORRECTABLE_RECEIVED: u32 = 1;
const CORRECTABLE_REPEATED: u32 = 1 << 1;
const UNCORRECTABLE_RECEIVED: u32 = 1 << 2;
const UNCORRECTABLE_REPEATED: u32 = 1 << 3;
const FIRST_WAS_FATAL: u32 = 1 << 4;
const NON_FATAL_RECEIVED: u32 = 1 << 5;
const FATAL_RECEIVED: u32 = 1 << 6;

/// How bad an error is that a function reports (section 6.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorSeverity {
    /// The hardware has dealt with it.
    Correctable,
    /// A transaction is lost, and the link is not.
    NonFatal,
    /// The link cannot be relied on.
    Fatal,
}

pub(crate) fn capability() -> Capability {
    let mut capability = Capability::extended(0x0001, 2, &[0; LENGTH - 4]);
    let put = |to: &mut Vec<u8>, offset: usize, value: u32| {
        to.resize(LENGTH, 0);
        to[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    };
    put(&mut capability.bytes, UNCORRECTABLE_MASK, UNCORRECTABLE_MASK_DEFAULT);
    put(&mut capability.bytes, UNCORRECTABLE_SEVERITY, FATAL_DEFAULT);
    put(&mut capability.bytes, CORRECTABLE_MASK, CORRECTABLE_MASK_DEFAULT);
    put(&mut capability.writable, UNCORRECTABLE_MASK, UNCORRECTABLE);
    put(&mut capability.writable, UNCORRECTABLE_SEVERITY, UNCORRECTABLE);
    put(&mut capability.writable, CORRECTABLE_MASK, CORRECTABLE);
    put(&mut capability.writable, ROOT_COMMAND.into(), ROOT_COMMAND_WRITABLE);
    // The port's own errors never happen, so there are none to clear.
    put(&mut capability.clear, ROOT_STATUS.into(), ROOT_STATUS_EVENTS);
    capability
}

/// Takes an error message from the function at `source`.
pub(crate) fn record(registers: &mut Registers, at: u16, source: Bdf, severity: ErrorSeverity) {
    let status = registers.dword(at + ROOT_STATUS);
    let (received, repeated, more, shift) = match severity {
        ErrorSeverity::Correctable => (CORRECTABLE_RECEIVED, CORRECTABLE_REPEATED, 0, 0),
        ErrorSeverity::NonFatal => (UNCORRECTABLE_RECEIVED, UNCORRECTABLE_REPEATED, NON_FATAL_RECEIVED, 16),
        ErrorSeverity::Fatal => (UNCORRECTABLE_RECEIVED, UNCORRECTABLE_REPEATED, FATAL_RECEIVED, 16),
    };
    let mut bits = received | more;
    if status & received != 0 {
        // The source stays the first one's until software has cleared the status.
        bits |= repeated;
    } else {
        if severity == ErrorSeverity::Fatal {
            bits |= FIRST_WAS_FATAL;
        }
        let id = u32::from(source.requester_id());
        registers.set_bits(at + ERROR_SOURCE, 0xffff << shift, id << shift);
    }
    registers.set_bits(at + ROOT_STATUS, bits, bits);
}

/// Whether software is to be interrupted (section 6.2.4.1.2).
pub(crate) fn interrupts(registers: &Registers, at: u16) -> bool {
    let (status, command) = (registers.dword(at + ROOT_STATUS), registers.dword(at + ROOT_COMMAND));
    (status & CORRECTABLE_RECEIVED != 0 && command & 1 != 0)
        || (status & NON_FATAL_RECEIVED != 0 && command & 2 != 0)
        || (status & FATAL_RECEIVED != 0 && command & 4 != 0)
}
