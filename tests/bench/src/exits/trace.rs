// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The text of a trace with the events of [`EVENTS`] (`include/trace/events/kvm.h`, `arch/arm64/kvm/trace_arm.h` and
//! `include/trace/events/sched.h` of Linux 6.12).

use std::collections::BTreeMap;
use std::fmt;

use crate::Result;

/// What is traced: accesses to devices, returns from `KVM_RUN`; and for the phases of a run the VMM's exec and end, and faults of the
/// guest. The first fault is its first instruction, which no page is mapped for yet. (Entries into the guest would tell the same,
/// but there are so many that tracing them slows the guest down.)
pub(super) const EVENTS: [&str; 5] = [
    "kvm/kvm_mmio",
    "kvm/kvm_userspace_exit",
    "kvm/kvm_guest_fault",
    "sched/sched_process_exec",
    "sched/sched_process_exit",
];

/// `KVM_EXIT_MMIO` and `KVM_EXIT_SYSTEM_EVENT` of `include/uapi/linux/kvm.h`, as they end a reason. The kernel prints names for
/// those it has names for.
const MMIO: &str = "(6)";
const SYSTEM_EVENT: &str = "(24)";

/// What a trace says of one boot.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Boot {
    /// Returns from `KVM_RUN`, the one that brings the power-off included.
    pub(super) exits: Vec<Exit>,
    pub(super) phases: Phases,
}

/// How long a boot's phases took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Phases {
    /// From the VMM's exec to the guest's first instruction.
    pub(super) start: u64,
    /// From there to the guest's power-off.
    pub(super) guest: u64,
    /// From there to the end of the VMM's last thread.
    pub(super) end: u64,
}

/// A return from `KVM_RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exit {
    /// As the kernel prints it: name and number, or `restart (4)` for EINTR.
    reason: String,
    /// For a device access, what and where.
    access: Option<Access>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Access {
    write: bool,
    address: String,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        match &self.access {
            Some(Access { write: true, address }) => write!(f, " write {address}"),
            Some(Access { write: false, address }) => write!(f, " read {address}"),
            None => Ok(()),
        }
    }
}

/// Reads a trace.
///
/// # Errors
/// If there is no power-off: then the VMM ended for another reason, and its count means something else.
pub(super) fn boot(trace: &str) -> Result<Boot> {
    let mut exits = Vec::new();
    // Of each thread, the device access that it has begun. Accesses to devices in the kernel are traced as well; no return
    // follows those, and the next access takes their place.
    let mut begun = BTreeMap::new();
    let (mut exec, mut first, mut power_off, mut end) = (None, None, None, None);
    for event in trace.lines().filter_map(Event::parse) {
        match event.name {
            "sched_process_exec" => exec = exec.or(Some(event.time)),
            "sched_process_exit" => end = Some(event.time),
            "kvm_guest_fault" => first = first.or(Some(event.time)),
            "kvm_mmio" => {
                if let Some(access) = access(event.text) {
                    begun.insert(event.thread, access);
                }
            }
            "kvm_userspace_exit" if power_off.is_none() => {
                let reason = event.text.trim_start_matches("reason ");
                let access = if reason.ends_with(MMIO) { begun.remove(event.thread) } else { None };
                exits.push(Exit { reason: reason.to_owned(), access });
                if reason.ends_with(SYSTEM_EVENT) {
                    power_off = Some(event.time);
                }
            }
            _ => {}
        }
    }
    let Some(power_off) = power_off else {
        let returns = exits.len();
        return Err(format!(
            "the guest did not power off: {returns} returns from KVM_RUN, none a system event"
        )
        .into());
    };
    let (Some(exec), Some(first), Some(end)) = (exec, first, end) else {
        return Err("the trace lacks the VMM's start, its end, or the guest's first instruction".into());
    };
    let phases = Phases {
        start: first.saturating_sub(exec),
        guest: power_off.saturating_sub(first),
        end: end.saturating_sub(power_off),
    };
    Ok(Boot { exits, phases })
}

/// A line `COMM-TID [CPU] FLAGS SECONDS: NAME: TEXT`. COMM may contain anything, blanks and dashes included.
struct Event<'a> {
    thread: &'a str,
    /// In microseconds.
    time: u64,
    name: &'a str,
    text: &'a str,
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, rest) = line.split_once("] ")?;
        let thread = before.rsplit_once('[')?.0.trim_end().rsplit_once('-')?.1;
        let (stamp, rest) = rest.split_once(": ")?;
        let (seconds, fraction) = stamp.rsplit_once(' ')?.1.split_once('.')?;
        let time = seconds.parse::<u64>().ok()? * 1_000_000 + fraction.parse::<u64>().ok()?;
        let (name, text) = rest.split_once(": ")?;
        Some(Self { thread, time, name, text })
    }
}

/// `mmio write len 4 gpa 0x9000000 val 0x0`, the same with `unsatisfied-read`; `read` is the end of one that was begun.
fn access(text: &str) -> Option<Access> {
    let mut words = text.strip_prefix("mmio ")?.split(' ');
    let write = match words.next()? {
        "write" => true,
        "unsatisfied-read" => false,
        _ => return None,
    };
    let address = words.skip_while(|&word| word != "gpa").nth(1)?.to_owned();
    Some(Access { write, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
         measure-80      [000] .....     0.900000: sched_process_exec: filename=/tmp/vmm pid=81 old_pid=81
           vcpu0-82      [001] .....     1.400000: kvm_guest_fault: ipa 0x40000000, hsr 0x82000006, hxfar 0x40000000, pc 0x40000000
           vcpu0-82      [001] .....     1.500000: kvm_mmio: mmio write len 4 gpa 0x3ffd0000 val 0x1
           vcpu0-82      [001] .....     1.500001: kvm_mmio: mmio unsatisfied-read len 1 gpa 0x40001000 val 0x0
       CPU 0/KVM-83      [000] .....     1.500002: kvm_mmio: mmio write len 4 gpa 0x9000000 val 0x41
           vcpu0-82      [001] .....     1.500003: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)
       CPU 0/KVM-83      [000] .....     1.500004: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)
           vcpu0-82      [001] .....     1.500005: kvm_mmio: mmio read len 1 gpa 0x40001000 val 0x60
           vcpu0-82      [001] .....     1.500006: kvm_guest_fault: ipa 0x40001000, hsr 0x93810006, hxfar 0x0, pc 0x40000004
           vcpu0-82      [001] .....     1.500007: kvm_userspace_exit: reason restart (4)
       CPU 0/KVM-83      [000] .....     2.600000: kvm_userspace_exit: reason KVM_EXIT_SYSTEM_EVENT (24)
           vcpu0-82      [001] .....     2.600001: kvm_userspace_exit: reason restart (4)
           vcpu0-82      [001] .....     2.600002: sched_process_exit: comm=vcpu0 pid=82 prio=120
             vmm-81      [001] .....     2.600303: sched_process_exit: comm=vmm pid=81 prio=120
";

    #[test]
    fn each_return_has_the_access_of_its_own_thread_and_power_off_is_the_last() {
        let seen: Vec<_> = boot(TRACE).unwrap().exits.iter().map(ToString::to_string).collect();
        assert_eq!(
            seen,
            [
                "KVM_EXIT_MMIO (6) read 0x40001000",
                "KVM_EXIT_MMIO (6) write 0x9000000",
                "restart (4)",
                "KVM_EXIT_SYSTEM_EVENT (24)",
            ]
        );
    }

    #[test]
    fn phases_are_parted_by_the_first_instruction_and_the_power_off() {
        let phases = boot(TRACE).unwrap().phases;
        assert_eq!(phases, Phases { start: 500_000, guest: 1_200_000, end: 303 });
    }

    #[test]
    fn a_trace_without_power_off_or_start_is_refused() {
        let without = |word: &str| -> String {
            TRACE.lines().filter(|line| !line.contains(word)).flat_map(|line| [line, "\n"]).collect()
        };
        let error = boot(&without("SYSTEM_EVENT")).unwrap_err().to_string();
        assert!(error.contains("did not power off: 4 returns"), "{error}");
        for word in ["process_exec", "process_exit", "kvm_guest_fault"] {
            assert!(boot(&without(word)).is_err(), "{word}");
        }
    }
}
