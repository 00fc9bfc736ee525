// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The user's terminal: raw while a guest has it, and as it was on every way out.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// What the terminal was before, while it is raw. Global, since a panic hook has nothing else to hold on to.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw while this lives. Where standard input is no terminal, this is nothing.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes the terminal raw: no echo, no line editing, no signals from keys, no translation.
    ///
    /// # Errors
    /// If there is a terminal and it cannot be set.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if stdin.is_terminal() {
            let before = tcgetattr(&stdin)?;
            let mut raw = before.clone();
            raw.make_raw();
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        }
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was. Does nothing if it is not raw. For ways out that drop nothing: panics, `exit`.
pub fn restore() {
    // `try_lock`: a panic within the lock must not hang.
    let before = match BEFORE.try_lock() {
        Ok(mut before) => before.take(),
        Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner().take(),
        Err(std::sync::TryLockError::WouldBlock) => None,
    };
    if let Some(before) = before {
        // There is nobody left to tell.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Restores the terminal before a panic's message is printed, which is then readable.
pub fn restore_on_panic() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        previous(info);
    }));
}

/// `Ctrl-a`.
const ESCAPE: u8 = 0x01;

/// What the user types, with the escape sequences taken out.
#[derive(Debug, Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// Moves what is for the guest from `typed` to `guest`. Returns whether the user wants to leave.
    ///
    /// `Ctrl-a x` leaves, `Ctrl-a Ctrl-a` is one `Ctrl-a`; anything else after `Ctrl-a` is passed on with it.
    pub fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> bool {
        for &key in typed {
            match (std::mem::take(&mut self.escaped), key) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x' | b'X') => return true,
                (true, ESCAPE) => guest.push(ESCAPE),
                (true, other) => guest.extend([ESCAPE, other]),
                (false, other) => guest.push(other),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_taken_out_even_when_they_come_in_two_reads() {
        let mut keys = Keys::default();
        let mut guest = Vec::new();
        assert!(!keys.filter(b"ab\x01", &mut guest));
        assert!(!keys.filter(b"\x01c\x01d", &mut guest));
        assert_eq!(guest, b"ab\x01c\x01d");
        assert!(!keys.filter(b"\x01", &mut guest));
        assert!(keys.filter(b"x", &mut guest));
    }

    #[test]
    fn all_other_bytes_pass() {
        let all: Vec<u8> = (0..=255).filter(|&b| b != ESCAPE).collect();
        let mut guest = Vec::new();
        assert!(!Keys::default().filter(&all, &mut guest));
        assert_eq!(guest, all);
    }
}
