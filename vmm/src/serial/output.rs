// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the guest's output goes.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The other side of the port.
pub trait Output: Write + Send {
    /// Whether a write of a few hundred bytes would have to wait for whoever reads them.
    fn would_wait(&self) -> bool;
}

/// Standard output, as the other side of a serial port: what comes goes out, and a slow reader slows the guest down.
#[derive(Debug)]
pub struct Stdout(pub io::Stdout);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            // Straight to the descriptor: the standard library's buffer would hold back what has no line end yet.
            match rustix::io::write(self.0.as_fd(), bytes) {
                Ok(n) => return Ok(n),
                Err(rustix::io::Errno::INTR) => {}
                // Somebody who shares the descriptor made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
                    match poll(&mut fds, None) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Stdout {
    // A pipe that can be written to has room for a page (`pipe_poll` of the kernel's `fs/pipe.c`), a terminal for about 200 bytes.
    fn would_wait(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
    }
}

/// Nobody listens.
impl Output for io::Sink {
    fn would_wait(&self) -> bool {
        false
    }
}

/// The output with what is on its way there.
pub(super) struct Sink {
    output: Box<dyn Output>,
    /// What is being written; kept for its memory.
    bytes: Vec<u8>,
}

impl Sink {
    pub(super) fn new(output: Box<dyn Output>) -> Self {
        Self { output, bytes: Vec::new() }
    }

    pub(super) fn would_wait(&self) -> bool {
        self.output.would_wait()
    }

    /// Takes what is in `waiting` and leaves it empty.
    pub(super) fn take(&mut self, waiting: &mut Vec<u8>) {
        std::mem::swap(&mut self.bytes, waiting);
    }

    /// Writes what was taken. Returns how much went out, and how much did not since nobody takes it any more.
    pub(super) fn write(&mut self) -> (usize, usize) {
        let mut sent = 0;
        while let Some(rest) = self.bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.output.write(rest) {
                Ok(n) if n > 0 => sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        let lost = self.bytes.len() - sent;
        self.bytes.clear();
        (sent, lost)
    }
}
