// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a guest is described and started.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Finished, Host, Running, Scratch, Terminal, Tiny, archive};

/// What the program gets as its standard input.
#[derive(Debug)]
enum Kind {
    Null,
    Closed,
    Pipe,
    File(PathBuf),
}

/// What the program gets as its standard input. Output always comes back to the test.
#[derive(Debug)]
pub struct Input(Kind);

impl Input {
    /// `/dev/null`, as under a service manager. The default.
    pub const NULL: Self = Self(Kind::Null);
    /// No descriptor 0 at all.
    pub const CLOSED: Self = Self(Kind::Closed);
    /// A pipe that [`Running::send`] writes to.
    pub const PIPE: Self = Self(Kind::Pipe);

    /// A regular file.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self(Kind::File(path.to_owned()))
    }
}

/// A guest that is to be started.
#[derive(Debug)]
pub struct Guest<'a> {
    host: &'a Host,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    memory: String,
    /// The kernel command line, but for what `actions` adds.
    cmdline: String,
    /// What the guest's first process does; nothing if it is not ours.
    actions: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    args: Vec<OsString>,
    input: Input,
    terminal: Option<&'a Terminal>,
    wrapper: Vec<OsString>,
    user: Option<u32>,
    limit: Duration,
    scratch: Scratch,
}

/// After this long a guest counts as hung. An emulated host under load is slow; no test depends on how slow.
const LIMIT: Duration = Duration::from_secs(240);

impl<'a> Guest<'a> {
    fn new(host: &'a Host, kernel: &Path, initrd: Option<&Path>) -> Self {
        Self {
            host,
            kernel: kernel.to_owned(),
            initrd: initrd.map(Path::to_owned),
            memory: "128M".to_owned(),
            // What puts numbers for names into the formats of trace events takes most of the small kernel's boot, and nobody reads them there.
            cmdline: "console=ttyS0 quiet initcall_blacklist=trace_eval_init".to_owned(),
            actions: Vec::new(),
            files: Vec::new(),
            args: Vec::new(),
            input: Input::NULL,
            terminal: None,
            wrapper: Vec::new(),
            user: None,
            limit: LIMIT,
            scratch: Scratch::new(),
        }
    }

    /// The tests' kernel and a shell: give it a [`script`](Self::script) or [`actions`](Self::actions). It then powers off.
    ///
    /// Unless changed it has one vCPU and 128 MiB.
    #[must_use]
    pub fn linux(host: &'a Host) -> Self {
        Self::new(host, &host.kernel, Some(&host.initrd)).actions(&["poweroff"])
    }

    /// The same with Debian's kernel, which is larger and takes longer.
    #[must_use]
    pub fn debian(host: &'a Host) -> Self {
        Self { memory: "512M".to_owned(), ..Self::linux(host) }.kernel(&host.debian_kernel)
    }

    /// Debian's kernel, with an initial RAM disk that leads to a root file system on a disk.
    #[must_use]
    pub fn disk(host: &'a Host, initrd: &Path) -> Self {
        // A kernel at a random address takes itself out of its programs' page tables where the CPU has no E0PD, as those of our hosts. There each
        // system call then empties the emulated TLB, which is a third of all that Debian does.
        Self { memory: "512M".to_owned(), ..Self::new(host, &host.debian_kernel, Some(initrd)) }
            .cmdline("kpti=off")
    }

    /// The tests' kernel and a first process that powers off at once.
    #[must_use]
    pub fn bench(host: &'a Host) -> Self {
        Self::new(host, &host.kernel, Some(&host.bench_initrd))
    }

    /// A few instructions of machine code.
    #[must_use]
    pub fn tiny(host: &'a Host, program: &Tiny) -> Self {
        let mut this = Self::new(host, Path::new(""), None);
        this.memory = "16M".to_owned();
        this.kernel = this.scratch.file("tiny.Image", program.image());
        this
    }

    /// Another kernel.
    #[must_use]
    pub fn kernel(mut self, path: &Path) -> Self {
        self.kernel = path.to_owned();
        self
    }

    /// So many vCPUs.
    #[must_use]
    pub fn cpus(self, count: u32) -> Self {
        self.option("--cpus", count.to_string())
    }

    /// So much memory, as on the command line.
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        self.memory = size.to_owned();
        self
    }

    /// An option of `doorbell run` with its value.
    #[must_use]
    pub fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.flag(name).flag(value)
    }

    /// One more word on `doorbell run`'s command line.
    #[must_use]
    pub fn flag(mut self, word: impl AsRef<OsStr>) -> Self {
        self.args.push(word.as_ref().to_owned());
        self
    }

    /// More for the guest kernel's command line.
    #[must_use]
    pub fn cmdline(mut self, more: &str) -> Self {
        self.cmdline.push(' ');
        self.cmdline.push_str(more);
        self
    }

    /// What the guest does, in words of `resources/guest/do`, instead of powering off.
    #[must_use]
    pub fn actions(mut self, words: &[&str]) -> Self {
        self.actions = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// What the guest does before it powers off: a shell script.
    #[must_use]
    pub fn script(self, text: &str) -> Self {
        self.file("do/test", text).actions(&["test", "poweroff"])
    }

    /// One more file in the guest's root file system, by its path without the leading slash. Its directory has to exist.
    #[must_use]
    pub fn file(mut self, path: &str, contents: impl AsRef<[u8]>) -> Self {
        self.files.push((path.to_owned(), contents.as_ref().to_vec()));
        self
    }

    /// A program for the guest, which it then has as `/bin/inside`: `env!("CARGO_BIN_EXE_inside")` in a test.
    #[must_use]
    pub fn inside(mut self, program: &str) -> Self {
        self.memory = "256M".to_owned();
        let contents = fs::read(program).unwrap();
        self.file("bin/inside", contents)
    }

    /// Another standard input.
    #[must_use]
    pub fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    /// Standard input and output are a terminal.
    #[must_use]
    pub fn terminal(mut self, terminal: &'a Terminal) -> Self {
        self.terminal = Some(terminal);
        self
    }

    /// The program is started by another one, which gets these words before the program's own.
    #[must_use]
    pub fn through(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(OsString::from).collect();
        self
    }

    /// The program runs as this user and group.
    #[must_use]
    pub fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    /// It may take so many times longer than a guest usually may before it counts as hung.
    #[must_use]
    pub fn patience(mut self, times: u32) -> Self {
        self.limit = LIMIT * times;
        self
    }

    /// Starts it and waits for its end.
    ///
    /// # Panics
    /// If it does not end, or leaves something behind.
    #[must_use]
    pub fn run(self) -> Finished {
        self.start().wait()
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(self) -> Running {
        let mut words: Vec<OsString> = self.wrapper.clone();
        words.push(self.host.doorbell.clone().into());
        words.extend(["run".into(), "--kernel".into(), self.kernel.clone().into()]);
        if let Some(initrd) = &self.initrd {
            words.extend(["--initrd".into(), self.complete(initrd).into()]);
        }
        words.extend(["--memory".into(), self.memory.clone().into()]);
        let mut cmdline = self.cmdline.clone();
        if !self.actions.is_empty() {
            cmdline.push_str(&format!(" doorbell.do={}", self.actions.join(",")));
        }
        words.extend(["--cmdline".into(), cmdline.into()]);
        words.extend(self.args.iter().cloned());
        launch(&words, &self.input, self.terminal, self.user, self.limit, self.scratch)
    }

    /// The initial RAM disk with the test's own files.
    fn complete(&self, initrd: &Path) -> PathBuf {
        if self.files.is_empty() {
            return initrd.to_owned();
        }
        let mut disk = fs::read(initrd).unwrap();
        archive::append(&mut disk, &self.files);
        let path = self.scratch.path().join("initrd");
        File::create(&path).unwrap().write_all(&disk).unwrap();
        path
    }
}

/// Runs `doorbell` with exactly these arguments.
#[must_use]
pub fn doorbell(host: &Host, args: &[&OsStr]) -> Finished {
    let mut words: Vec<OsString> = vec![host.doorbell.clone().into()];
    words.extend(args.iter().map(|&arg| arg.to_owned()));
    launch(&words, &Input::NULL, None, None, LIMIT, Scratch::new()).wait()
}

/// Runs `doorbell` with these words, which is to succeed and to say nothing on standard error. What it prints.
///
/// # Panics
/// If it does not.
pub fn done(host: &Host, words: &[&str]) -> String {
    let end = doorbell(host, &words.iter().map(OsStr::new).collect::<Vec<_>>());
    end.assert_status(0);
    assert_eq!(end.errors(), "", "{words:?}");
    end.text()
}

/// Runs `doorbell` with these words, which is to be refused: with this exit status, and in one line that has all these parts.
///
/// # Panics
/// If it is not.
pub fn refused(host: &Host, words: &[&str], status: i32, parts: &[&str]) {
    let end = doorbell(host, &words.iter().map(OsStr::new).collect::<Vec<_>>());
    end.assert_status(status);
    let line = end.error_line();
    for part in parts {
        assert!(line.contains(part), "{words:?}: '{part}' is missing in: {line}");
    }
}

/// Runs any program that ends by itself, as another user if one is given.
#[must_use]
pub fn command(words: &[&str], user: Option<u32>) -> Finished {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    launch(&words, &Input::NULL, None, user, LIMIT, Scratch::new()).wait()
}

fn launch(
    words: &[OsString],
    input: &Input,
    terminal: Option<&Terminal>,
    user: Option<u32>,
    limit: Duration,
    scratch: Scratch,
) -> Running {
    let mut command = match input {
        // The shell closes the descriptor: between fork and exec nothing else may be done without unsafe code.
        Input(Kind::Closed) => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", r#"exec "$@" <&-"#, "sh"]).args(words);
            shell
        }
        _ => {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            command
        }
    };
    // A group of its own: afterwards nobody may be left in it.
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    match input {
        Input(Kind::Null | Kind::Closed) => command.stdin(Stdio::null()),
        Input(Kind::Pipe) => command.stdin(Stdio::piped()),
        Input(Kind::File(path)) => command.stdin(File::open(path).unwrap()),
    };
    if let Some(terminal) = terminal {
        command.stdin(terminal.program_side()).stdout(terminal.program_side());
    }
    if let Some(id) = user {
        command.uid(id).gid(id);
    }
    let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {words:?}: {e}"));
    Running::new(child, terminal, limit, scratch)
}
