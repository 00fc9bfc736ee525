// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio console of a guest that has a serial port as well, used both ways.

use super::{Finished, Running};

/// In the guest's script: the console is its descriptor 3 from here on.
pub const OPEN: &str = "
    exec 3<>/dev/hvc0
    stty -F /dev/hvc0 -echo
    ";

/// In the guest's script: says a line and hears one when the host [`talk`]s.
pub const TALK: &str = "
    # The console does not wait for the serial port, whose line above would end after its own.
    echo serial=quiet
    read -r line <&3
    echo hvc0=speaks >&3
    read -r line <&3
    echo \"heard=$line\"
    ";

/// The host's part of [`TALK`].
///
/// # Panics
/// If the guest does not do its own.
pub fn talk(guest: &mut Running) {
    guest.wait_for("serial=quiet");
    guest.send("speak\n");
    guest.wait_for("hvc0=speaks");
    guest.send("hears\n");
}

/// The guest has heard what was said to it.
///
/// # Panics
/// If it has not.
pub fn assert_heard(end: &Finished) {
    assert_eq!(end.value("heard"), "hears", "{end}");
}
