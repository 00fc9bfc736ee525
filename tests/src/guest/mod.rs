// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole guests: the `doorbell` program started as a user starts it, with a guest in it, and everything that comes out.
//!
//! A test is a few lines. The script is run by the guest's first process, as root, with the console as its input and output:
//!
//! ```no_run
//! use doorbell_tests::{guest::Guest, host_or_skip};
//!
//! fn the_guest_sees_its_cpus() {
//!     let host = host_or_skip!();
//!     let end = Guest::linux(&host).cpus(2).script("echo cpus=$(nproc)").run();
//!     end.assert_status(0);
//!     assert_eq!(end.value("cpus"), "2");
//! }
//! ```
//!
//! What needs no Linux runs [`Tiny`] machine code instead, which is up in milliseconds. Every run ends with a look for what it left behind:
//! processes and VMs are a failed test.

mod archive;
mod borrow;
mod every_device;
mod host;
pub mod hvc;
mod launch;
mod passthrough;
mod running;
mod scratch;
pub mod socket;
mod tap;
mod terminal;
mod tiny;
mod told;

pub use borrow::set_irqs;
pub use every_device::{Carrier, EveryDevice};
pub use host::{Gic, Host};
pub use launch::{Guest, Input, command, done, doorbell, refused};
pub use passthrough::{Bound, driver};
pub use running::{Finished, Running};
pub use scratch::Scratch;
pub use tap::Tap;
pub use terminal::{Settings, Terminal};
pub use tiny::Tiny;
pub use told::{State, Told};

/// The name of the function that this is called in, as the test harness shows it.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        let path = std::any::type_name_of_val(&here).trim_end_matches("::here");
        path.split_once("::").map_or(path, |(_, name)| name)
    }};
}

/// Says that the test cannot run here and returns from it.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        println!("SKIP {}: {}", $crate::test_name!(), format_args!($($reason)*));
        return;
    }};
}

/// The [`Host`](crate::guest::Host) that guests run on; where there is none, the test is skipped.
#[macro_export]
macro_rules! host_or_skip {
    () => {
        match $crate::guest::Host::find() {
            Ok(host) => host,
            Err(reason) => $crate::skip!("{reason}"),
        }
    };
}
