// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A terminal for the program under test, with the test as the person in front of it.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

/// A pseudo terminal.
#[derive(Debug)]
pub struct Terminal {
    /// Where the person types and reads.
    person: File,
    /// Where a program reads and writes. Kept open, so that its settings outlive the program.
    program: OwnedFd,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// Opens one.
    #[must_use]
    pub fn new() -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let program =
            rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        Self { person: File::from(person), program }
    }

    /// The program's side.
    #[must_use]
    pub fn program_side(&self) -> OwnedFd {
        self.program.try_clone().unwrap()
    }

    /// The person's side.
    #[must_use]
    pub fn person_side(&self) -> File {
        self.person.try_clone().unwrap()
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings(tcgetattr(&self.program).unwrap())
    }
}

/// What a terminal does with what is typed. Two are equal if nothing differs that a program can set.
#[derive(Debug, Clone)]
pub struct Settings(Termios);

impl Settings {
    /// Whether keys go through as they are: unedited, unechoed, and without signals.
    #[must_use]
    pub fn are_raw(&self) -> bool {
        !self.0.local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        let of = |t: &Termios| (t.input_modes, t.output_modes, t.control_modes, t.local_modes);
        of(&self.0) == of(&other.0)
            && format!("{:?}", self.0.special_codes) == format!("{:?}", other.0.special_codes)
    }
}
