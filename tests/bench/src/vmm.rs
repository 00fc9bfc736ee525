// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM as a process: started, watched, ended with everything it started.

use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::Result;

/// A started VMM, in a process group of its own. Dropping it ends the group.
pub(crate) struct Vmm {
    child: Child,
    /// The other end of its terminal; closing it would hang up.
    _keyboard: OwnedFd,
    /// Chunks of what it writes, as they come.
    output: Receiver<Vec<u8>>,
    reader: Option<JoinHandle<()>>,
    said: Vec<u8>,
    started: Instant,
    command: String,
    reaped: bool,
}

impl Vmm {
    /// Starts `command`. Its input is a terminal of its own at which nobody types, because some VMMs insist on one; its two
    /// outputs are one pipe that is always drained, so that it never waits for its reader.
    pub(crate) fn start(command: &[String]) -> Result<Self> {
        let (program, arguments) = command.split_first().ok_or("no command to measure")?;
        let (reader, writer) = io::pipe()?;
        let (keyboard, terminal) = terminal().map_err(|e| format!("cannot make a pseudo-terminal: {e}"))?;
        let mut process = Command::new(program);
        process.args(arguments).stdin(terminal).process_group(0);
        process.stdout(writer.try_clone()?).stderr(writer);
        let started = Instant::now();
        let child = process.spawn().map_err(|e| format!("cannot start {program}: {e}"))?;
        // Our own ends of the pipe go, so that its end is seen.
        drop(process);
        let (sender, output) = mpsc::channel();
        let reader = thread::spawn(move || drain(reader, &sender));
        Ok(Self {
            child,
            _keyboard: keyboard,
            output,
            reader: Some(reader),
            said: Vec::new(),
            started,
            command: command.join(" "),
            reaped: false,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended by itself with status 0; returns how long it was there.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<Duration> {
        let pid = self.group()?;
        let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| format!("pidfd_open: {e}"))?;
        let timespec = Timespec::try_from(timeout).map_err(|_| "the timeout is too long")?;
        let ready = loop {
            match poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&timespec)) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(|e| format!("poll: {e}"))?,
            }
        };
        if ready == 0 {
            self.end();
            return Err(self.failure(&format!("did not end within {} s", timeout.as_secs())).into());
        }
        let status = self.child.wait()?;
        let took = self.started.elapsed();
        self.reaped = true;
        if !status.success() {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with status {code}"),
                (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
            };
            return Err(self.failure(&how).into());
        }
        Ok(took)
    }

    /// Waits until it or its guest has said `text`.
    pub(crate) fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !contains(&self.said, text.as_bytes()) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.said.extend(bytes),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let what = format!("did not say {text:?} within {} s", timeout.as_secs());
                    self.end();
                    return Err(self.failure(&what).into());
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(self.failure(&format!("ended without saying {text:?}")).into());
                }
            }
        }
        Ok(())
    }

    /// Ends it and everything in its process group.
    fn end(&mut self) {
        if !self.reaped {
            // Not reaped yet, so the number is still its own.
            if let Ok(group) = self.group() {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.wait();
            self.reaped = true;
        }
    }

    fn group(&self) -> Result<Pid> {
        let raw = i32::try_from(self.child.id())?;
        Pid::from_raw(raw).ok_or_else(|| "process number 0".into())
    }

    /// One line that says what happened, with the end of what the VMM said below it.
    fn failure(&mut self, what: &str) -> String {
        // All writers are gone or about to be; a moment is enough for what is still in the pipe.
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(200)) {
            self.said.extend(bytes);
        }
        let text = String::from_utf8_lossy(&self.said);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n");
        format!("{} {what}; its last words:\n{tail}", self.command)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.end();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A pseudo-terminal: our end, and the one that a program takes for a terminal. It becomes nobody's controlling terminal.
fn terminal() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((ours, theirs))
}

fn drain(mut reader: PipeReader, sender: &mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; 4096];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                // Nobody may be listening any more; draining goes on.
                let _ = sender.send(buffer.get(..n).unwrap_or_default().to_vec());
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len().max(1)).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vmm {
        Vmm::start(&["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]).unwrap()
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn success_is_an_end_by_itself_with_status_0() {
        assert!(shell("exit 0").wait(SOON).is_ok());
        let failed = shell("echo no KVM here; exit 3").wait(SOON).unwrap_err().to_string();
        assert!(failed.contains("status 3") && failed.contains("no KVM here"), "{failed}");
        let killed = shell("kill -9 $$").wait(SOON).unwrap_err().to_string();
        assert!(killed.contains("signal 9"), "{killed}");
    }

    #[test]
    fn what_does_not_end_is_ended_with_its_children() {
        let mut vmm = shell("sleep 1000 & sleep 1000");
        let late = vmm.wait(Duration::from_millis(300)).unwrap_err().to_string();
        assert!(late.contains("did not end"), "{late}");
        // Only if the background sleep is gone as well does the pipe end, and dropping return.
        drop(vmm);
    }

    #[test]
    fn the_input_is_a_terminal_at_which_nobody_types() {
        let mut vmm = shell("test -t 0 && echo a terminal && read line; echo not reached");
        vmm.wait_for("a terminal", SOON).unwrap();
        assert!(vmm.wait_for("not reached", Duration::from_millis(300)).is_err());
    }

    #[test]
    fn a_text_is_waited_for_across_chunks() {
        let mut vmm = shell("printf 'guest: re'; sleep 0.1; echo ady; sleep 1000");
        vmm.wait_for("guest: ready", SOON).unwrap();
        let ended = shell("echo other").wait_for("guest: ready", SOON).unwrap_err().to_string();
        assert!(ended.contains("ended without saying"), "{ended}");
    }
}
