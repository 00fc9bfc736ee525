// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `strace -f -o FILE` writes: `PID NAME(ARGUMENTS) = RESULT` a line. A call that another thread's comes in between of is
//! in two lines, `... <unfinished ...>` and `<... NAME resumed> ...`. Signals and ends are lines of their own.

use std::collections::{BTreeMap, BTreeSet};

use crate::Result;

/// What a log says.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// Calls begun before the first `KVM_RUN`, by name; the `execve` that starts the VMM is one.
    pub(super) by_name: BTreeMap<String, u64>,
    /// How often `KVM_RUN` has returned in the whole log, also with an error such as EINTR.
    pub(super) returns: u64,
}

impl Counts {
    pub(super) fn before(&self) -> u64 {
        self.by_name.values().sum()
    }

    pub(super) fn named(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or_default()
    }
}

/// Counts the calls in a log.
///
/// # Errors
/// If there is no `KVM_RUN` in it: then whatever ran was no VMM, or did not get that far.
pub(super) fn count(log: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    for line in before_first_run(log) {
        if let Some((_, name, _)) = call(line) {
            *counts.by_name.entry(name.to_owned()).or_default() += 1;
        }
    }
    let mut running = BTreeSet::new();
    let mut runs = 0_u64;
    for line in log.lines() {
        if is_run(line) {
            runs += 1;
            if let Some((pid, _, rest)) = call(line) {
                if rest.ends_with("<unfinished ...>") {
                    running.insert(pid);
                } else {
                    counts.returns += 1;
                }
            }
        } else if let Some((pid, _)) = line.split_once(' ')
            && line.contains("<... ioctl resumed>")
            && running.remove(pid)
            && !line.ends_with("= ?")
        {
            counts.returns += 1;
        }
    }
    if runs == 0 { Err("strace saw no KVM_RUN".into()) } else { Ok(counts) }
}

/// The lines before that of the first `KVM_RUN`.
pub(super) fn before_first_run(log: &str) -> impl Iterator<Item = &str> {
    log.lines().take_while(|line| !is_run(line))
}

fn is_run(line: &str) -> bool {
    call(line).is_some_and(|(_, name, rest)| name == "ioctl" && rest.contains(", KVM_RUN"))
}

/// The process number, the name and the rest of a line that begins a call.
fn call(line: &str) -> Option<(&str, &str, &str)> {
    let (pid, rest) = line.trim_start().split_once(' ')?;
    let (name, rest) = rest.trim_start().split_once('(')?;
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name.then_some((pid, name, rest.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"81    execve("./doorbell", ["./doorbell", "run"], 0xffffc9320c50 /* 15 vars */) = 0
81    brk(NULL)                         = 0x2be9000
81    ioctl(5, KVM_GET_API_VERSION, 0)  = 12
81    --- SIGCHLD {si_signo=SIGCHLD} ---
81    write(2, "about to ioctl(10, KVM_RUN, 0)", 30) = 30
81    rt_sigprocmask(SIG_SETMASK, [HUP INT QUIT TERM],  <unfinished ...>
82    rseq(0xffff85dc4b40, 0x20, 0, 0xd428bc00 <unfinished ...>
81    <... rt_sigprocmask resumed>NULL, 8) = 0
82    <... rseq resumed>)               = 0
81    epoll_pwait(4,  <unfinished ...>
82    ioctl(10, KVM_RUN, 0)             = 0
82    ioctl(10, KVM_RUN, 0)             = -1 EINTR (Interrupted system call)
82    ioctl(10, KVM_RUN, 0 <unfinished ...>
83    ioctl(11, KVM_RUN, 0 <unfinished ...>
81    <... epoll_pwait resumed>[], 8, -1, NULL, 8) = 0
81    ioctl(7, KVM_IRQFD, 0xfffff01fb6e0 <unfinished ...>
82    <... ioctl resumed>)              = 0
81    <... ioctl resumed>)              = 0
81    exit_group(0)                     = ?
83    <... ioctl resumed>)              = ?
83    +++ exited with 0 +++
"#;

    #[test]
    fn calls_are_counted_once_and_up_to_the_first_run() {
        let counts = count(LOG).unwrap();
        let expected = [
            ("brk", 1),
            ("epoll_pwait", 1),
            ("execve", 1),
            ("ioctl", 1),
            ("rseq", 1),
            ("rt_sigprocmask", 1),
            ("write", 1),
        ];
        assert_eq!(counts.by_name, expected.map(|(name, n)| (name.to_owned(), n)).into());
        assert_eq!((counts.before(), counts.named("ioctl")), (7, 1));
    }

    #[test]
    fn returns_are_those_of_run_alone_and_not_of_a_vcpu_that_died_in_it() {
        assert_eq!(count(LOG).unwrap().returns, 3);
    }

    #[test]
    fn a_log_without_run_is_refused() {
        assert!(count("81    brk(NULL) = 0x2be9000\n").is_err());
        assert!(count("").is_err());
    }
}
