// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network interface of the host's whose other end is a guest.

use std::process::Command;

/// A TAP interface of this test's, with an address on our side. Gone when dropped.
#[derive(Debug)]
pub struct Tap(&'static str);

impl Tap {
    /// Makes one, or `None` where we may not. Tests that share a host need names and addresses of their own.
    #[must_use]
    pub fn new(name: &'static str, address: &str) -> Option<Self> {
        let run = |words: &[&str]| {
            let (program, args) = words.split_first()?;
            Command::new(program).args(args).output().ok().filter(|output| output.status.success())
        };
        let made =
            run(&["ip", "tuntap", "add", name, "mode", "tap"]).or_else(|| run(&["tunctl", "-t", name]));
        made?;
        // From here on it goes when this is dropped.
        let this = Self(name);
        run(&["ip", "addr", "add", address, "dev", name])?;
        run(&["ip", "link", "set", name, "up"])?;
        Some(this)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.0]).output();
    }
}
