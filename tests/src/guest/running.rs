// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that runs, and what is left of it afterwards.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, test_kill_process_group};

use super::{Scratch, Terminal};

/// The least that a pipe can be made to hold; it is rounded up to the host's page.
const ONE_PAGE: usize = 4096;

/// A guest that runs. When a test fails while it has one, the guest is ended.
#[derive(Debug)]
pub struct Running {
    child: Child,
    input: Option<File>,
    output: Stream,
    errors: Stream,
    /// How much of the output [`wait_for`](Self::wait_for) has passed.
    seen: usize,
    /// Output that is deliberately not read.
    unread: Option<File>,
    limit: Duration,
    _scratch: Scratch,
}

impl Running {
    pub(super) fn new(
        mut child: Child,
        terminal: Option<&Terminal>,
        limit: Duration,
        scratch: Scratch,
    ) -> Self {
        let (input, output) = match terminal {
            Some(terminal) => (Some(terminal.person_side()), terminal.person_side()),
            None => (
                child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe))),
                File::from(OwnedFd::from(child.stdout.take().unwrap())),
            ),
        };
        let errors = File::from(OwnedFd::from(child.stderr.take().unwrap()));
        Self {
            child,
            input,
            output: Stream::new(output),
            errors: Stream::new(errors),
            seen: 0,
            unread: None,
            limit,
            _scratch: scratch,
        }
    }

    /// The program's process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What `/proc` says about the program.
    #[must_use]
    pub fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid()))
    }

    /// Waits until the guest has written `text`, after what was waited for before. Returns what came before it.
    ///
    /// # Panics
    /// If the program ends first, or takes far too long.
    pub fn wait_for(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            let ended = self.child.try_wait().unwrap().is_some();
            if ended {
                self.output.finish();
            }
            let had = {
                let all = self.output.shared.bytes.lock().unwrap();
                let rest = &all[self.seen..];
                if let Some(at) = rest.windows(text.len()).position(|window| window == text.as_bytes()) {
                    let before = String::from_utf8_lossy(&rest[..at]).into_owned();
                    self.seen += at + text.len();
                    return before;
                }
                all.len()
            };
            if ended || start.elapsed() > self.limit {
                let why = if ended { "the program ended" } else { "the guest hangs" };
                panic!("{why} before it wrote {text:?}{}", self.so_far());
            }
            self.output.wait_for_more(had);
        }
    }

    /// Types.
    ///
    /// # Panics
    /// If nobody takes it.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.input.as_mut().unwrap().write_all(bytes.as_ref()).unwrap();
    }

    /// The other end of standard input, for a thread that writes while the test reads.
    #[must_use]
    pub fn input(&self) -> File {
        self.input.as_ref().unwrap().try_clone().unwrap()
    }

    /// Ends standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Reads no more of the output: the program can write a page, and then has to wait for ever.
    pub fn stop_reading(&mut self) {
        let pipe = self.output.stop().unwrap();
        rustix::pipe::fcntl_setpipe_size(&pipe, ONE_PAGE).unwrap();
        self.unread = Some(pipe);
    }

    /// Waits until no more comes into the pipe that is not read, since the next piece does not fit.
    ///
    /// # Panics
    /// If that does not happen.
    pub fn wait_until_full(&self) {
        /// How often nothing may have changed before that is because nothing can.
        const LOOKS: u32 = 50;
        let pipe = self.unread.as_ref().unwrap();
        let start = Instant::now();
        let (mut last, mut unchanged) = (0, 0);
        while last == 0 || unchanged < LOOKS {
            assert!(start.elapsed() < self.limit, "the pipe does not fill{}", self.so_far());
            thread::sleep(Duration::from_millis(5));
            let now = rustix::io::ioctl_fionread(pipe).unwrap();
            unchanged = if now == last { unchanged + 1 } else { 0 };
            last = now;
        }
    }

    /// Closes the reading end of the output.
    pub fn close_output(&mut self) {
        drop(self.output.stop());
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.group(), signal).unwrap();
    }

    fn group(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn so_far(&self) -> String {
        format!(
            "\n--- output ---\n{}\n--- errors ---\n{}",
            String::from_utf8_lossy(&self.output.bytes()),
            String::from_utf8_lossy(&self.errors.bytes())
        )
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If there is none, or the program leaves something behind.
    #[must_use]
    pub fn wait(mut self) -> Finished {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > self.limit {
                panic!("the guest hangs{}", self.so_far());
            }
            thread::sleep(Duration::from_millis(5));
        };
        self.output.finish();
        self.errors.finish();
        let finished = Finished { status, output: self.output.bytes(), errors: self.errors.bytes() };
        if test_kill_process_group(self.group()).is_ok() {
            panic!("processes were left behind{finished}");
        }
        // Each VM has a directory there, named by the process and the VM's descriptor.
        let ours = format!("{}-", self.pid());
        if let Ok(vms) = fs::read_dir("/sys/kernel/debug/kvm") {
            for vm in vms.flatten() {
                assert!(
                    !vm.file_name().to_string_lossy().starts_with(&ours),
                    "the VM {:?} was left behind",
                    vm.path()
                );
            }
        }
        finished
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A test failed; its message is what counts.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How a run ended, and all it said.
#[derive(Debug, Clone)]
pub struct Finished {
    status: ExitStatus,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Finished {
    /// Checks the exit status.
    ///
    /// # Panics
    /// If it is another; with everything that was said.
    pub fn assert_status(&self, code: i32) -> &Self {
        assert!(self.status.code() == Some(code), "status {code} was expected{self}");
        self
    }

    /// The guest's output, byte by byte.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The guest's output as lines end here.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).replace('\r', "")
    }

    /// What the program itself said.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.errors).into_owned()
    }

    /// The one line that the program said.
    ///
    /// # Panics
    /// If it said nothing, or more.
    #[must_use]
    pub fn error_line(&self) -> String {
        let errors = self.errors();
        let lines: Vec<&str> = errors.lines().collect();
        assert!(lines.len() == 1 && lines[0].starts_with("doorbell: "), "one line was expected{self}");
        lines[0].to_owned()
    }

    /// What the guest wrote as `NAME=...` on a line.
    ///
    /// # Panics
    /// If there is no such line.
    #[must_use]
    pub fn value(&self, name: &str) -> String {
        let text = self.text();
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no line {name}={self}")).trim().to_owned()
    }

    /// The guest's lines that have `word` in them.
    #[must_use]
    pub fn lines_with(&self, word: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }

    /// The numbers in a line of the program's report, which begins with `name`.
    ///
    /// # Panics
    /// If there is no such line.
    #[must_use]
    pub fn report(&self, name: &str) -> Vec<u64> {
        let errors = self.errors();
        let line = errors
            .lines()
            .find(|line| line.trim_start().starts_with(name))
            .unwrap_or_else(|| panic!("the report has no line {name}{self}"));
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ended = match self.status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("status {:?}", self.status.code()),
        };
        write!(
            f,
            "\nit ended with {ended}\n--- output ---\n{}\n--- errors ---\n{}",
            self.text(),
            self.errors()
        )
    }
}

/// Collects what comes over a descriptor.
#[derive(Debug)]
struct Stream {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<File>>,
}

#[derive(Debug, Default)]
struct Shared {
    bytes: Mutex<Vec<u8>>,
    more: Condvar,
    /// Nothing comes any more but what is there already.
    last: AtomicBool,
    /// Nothing more is wanted.
    stop: AtomicBool,
}

impl Stream {
    fn new(file: File) -> Self {
        let shared = Arc::new(Shared::default());
        let reader = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.read(file))
        };
        Self { shared, reader: Some(reader) }
    }

    fn bytes(&self) -> Vec<u8> {
        self.shared.bytes.lock().unwrap().clone()
    }

    /// Waits a moment for more than `had` bytes.
    fn wait_for_more(&self, had: usize) {
        let bytes = self.shared.bytes.lock().unwrap();
        let moment = Duration::from_millis(50);
        drop(self.shared.more.wait_timeout_while(bytes, moment, |bytes| bytes.len() == had).unwrap());
    }

    /// Takes what is still there, when the writer has gone.
    fn finish(&mut self) {
        self.shared.last.store(true, Ordering::Release);
        if let Some(reader) = self.reader.take() {
            drop(reader.join().unwrap());
        }
    }

    /// Ends the reading and returns what was read from, if it was still read.
    fn stop(&mut self) -> Option<File> {
        self.shared.stop.store(true, Ordering::Release);
        self.reader.take().map(|reader| reader.join().unwrap())
    }
}

impl Shared {
    fn read(&self, mut file: File) -> File {
        let mut block = vec![0; 64 << 10];
        loop {
            // Looked at first: what is not there afterwards never comes.
            let last = self.last.load(Ordering::Acquire);
            let moment = Timespec { tv_sec: 0, tv_nsec: if last { 0 } else { 20_000_000 } };
            let ready = poll(&mut [PollFd::new(&file.as_fd(), PollFlags::IN)], Some(&moment)).unwrap();
            if self.stop.load(Ordering::Acquire) || ready == 0 && last {
                return file;
            }
            if ready == 0 {
                continue;
            }
            // A terminal whose program has gone is an error, and as good an end as any.
            match file.read(&mut block) {
                Ok(0) | Err(_) => return file,
                Ok(n) => {
                    self.bytes.lock().unwrap().extend_from_slice(&block[..n]);
                    self.more.notify_all();
                    // A serial port writes byte by byte; being woken for each would take the host's time from the guest.
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
}
