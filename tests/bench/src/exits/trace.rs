// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The text of the `kvm_userspace_exit` and `kvm_mmio` events (`include/trace/events/kvm.h` of Linux 6.12).

use std::collections::BTreeMap;
use std::fmt;

use crate::Result;

/// `KVM_EXIT_MMIO` and `KVM_EXIT_SYSTEM_EVENT` of `include/uapi/linux/kvm.h`. Names are printed for those that the kernel that was
/// traced has a name for.
const MMIO: &str = "(6)";
const SYSTEM_EVENT: &str = "(24)";

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

/// The returns in a trace, up to and with the guest's power-off.
///
/// # Errors
/// If there is no power-off: then the VMM ended for another reason, and its count means something else.
pub(super) fn exits(trace: &str) -> Result<Vec<Exit>> {
    let mut exits = Vec::new();
    // Of each thread, the device access that it has begun. Accesses to devices in the kernel are traced as well; no return
    // follows those, and the next access takes their place.
    let mut begun = BTreeMap::new();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some(thread) = thread(line) else { continue };
        if let Some((_, access)) = line.split_once(": kvm_mmio: mmio ") {
            if let Some(access) = access_of(access) {
                begun.insert(thread, access);
            }
        } else if let Some((_, reason)) = line.split_once(": kvm_userspace_exit: reason ") {
            let access = if reason.ends_with(MMIO) { begun.remove(thread) } else { None };
            exits.push(Exit { reason: reason.to_owned(), access });
            if reason.ends_with(SYSTEM_EVENT) {
                return Ok(exits);
            }
        }
    }
    Err(format!("the guest did not power off: {} returns from KVM_RUN, none a system event", exits.len())
        .into())
}

/// `COMM-TID [CPU] FLAGS TIME: EVENT`; the name may contain anything, blanks and dashes included.
fn thread(line: &str) -> Option<&str> {
    let (before, _) = line.split_once("] ")?;
    let (task, _) = before.rsplit_once('[')?;
    Some(task.trim_end().rsplit_once('-')?.1)
}

/// `write len 4 gpa 0x9000000 val 0x0`, the same with `unsatisfied-read`; `read` is the end of one that was begun.
fn access_of(text: &str) -> Option<Access> {
    let mut words = text.split(' ');
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
           vcpu0-82      [001] .....     1.500000: kvm_mmio: mmio write len 4 gpa 0x3ffd0000 val 0x1
           vcpu0-82      [001] .....     1.500001: kvm_mmio: mmio unsatisfied-read len 1 gpa 0x40001000 val 0x0
       CPU 0/KVM-83      [000] .....     1.500002: kvm_mmio: mmio write len 4 gpa 0x9000000 val 0x41
           vcpu0-82      [001] .....     1.500003: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)
       CPU 0/KVM-83      [000] .....     1.500004: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)
           vcpu0-82      [001] .....     1.500005: kvm_mmio: mmio read len 1 gpa 0x40001000 val 0x60
           vcpu0-82      [001] .....     1.500006: kvm_userspace_exit: reason restart (4)
       CPU 0/KVM-83      [000] .....     1.500007: kvm_userspace_exit: reason KVM_EXIT_SYSTEM_EVENT (24)
           vcpu0-82      [001] .....     1.500008: kvm_userspace_exit: reason restart (4)
";

    #[test]
    fn each_return_has_the_access_of_its_own_thread_and_power_off_is_the_last() {
        let seen: Vec<_> = exits(TRACE).unwrap().iter().map(ToString::to_string).collect();
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
    fn a_trace_without_power_off_is_refused() {
        let without: String =
            TRACE.lines().filter(|line| !line.contains("SYSTEM_EVENT")).collect::<Vec<_>>().join("\n");
        let error = exits(&without).unwrap_err().to_string();
        assert!(error.contains("did not power off: 4 returns"), "{error}");
    }
}
