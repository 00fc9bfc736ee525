// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver that does to a virtio device what no driver may do. It runs inside a guest, in the place of the kernel's own: the program `inside`.
//!
//! Registers are reached through sysfs, rings are in pages of this process whose addresses the kernel tells (`/proc/self/pagemap`), so it takes root and
//! nothing else.

mod function;
mod pages;
mod ring;

use std::thread;
use std::time::{Duration, Instant};

pub use function::Function;
use pages::Pages;
pub use ring::{BREAKAGES, Breakage, Ring};

/// The status register's bits: VIRTIO 1.3, section 2.1.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 0x40;

/// The ISR register's bit for changes of the configuration: section 4.1.4.5.
const CONFIG_CHANGED: u8 = 2;

/// An address that no guest of the tests has memory at, and none but the largest can have.
const NOWHERE: u64 = 0xff_0000_0000;

/// Long enough for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// What comes of a hostile act: `Ok` if the device asked for a reset, and could be reset.
pub type Outcome = Result<(), String>;

/// Does everything hostile to queue `queue` of a device, one after the other, with a reset in between. Calls `told` with the name of each act and
/// what came of it.
///
/// # Panics
/// If the device is not there, or is no virtio device.
pub fn attack(function: &Function, queue: u16, mut told: impl FnMut(&str, Outcome)) {
    function.enable();
    for breakage in &BREAKAGES {
        told(breakage.name, broken(function, queue, |ring| (breakage.act)(ring)));
    }
    for (name, place) in PLACES {
        told(name, misplaced(function, queue, place));
    }
    function.set_status(0);
}

/// Makes a ring of the given parts something that cannot be: descriptor table, available ring, used ring.
type Place = fn(&mut [u64; 3]);

/// Rings in places where none can be. Their names.
pub const PLACES: [(&str, Place); 3] = [
    ("a descriptor table out of memory", |parts| parts[0] = NOWHERE),
    ("an available ring out of memory", |parts| parts[1] = NOWHERE),
    ("a used ring that wraps around the address space", |parts| parts[2] = !0xfff),
];

/// The names of all that [`attack`] does.
pub fn acts() -> impl Iterator<Item = &'static str> {
    BREAKAGES.iter().map(|breakage| breakage.name).chain(PLACES.iter().map(|(name, _)| *name))
}

/// A well-behaved start, then `act`.
fn broken(function: &Function, queue: u16, act: impl FnOnce(&mut Ring<'_>)) -> Outcome {
    let pages = start(function, |_, _| {})?;
    function.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    if function.status() & NEEDS_RESET != 0 {
        return Err("it wanted a reset before anything was done to it".to_owned());
    }
    act(&mut Ring::new(&pages, usize::from(queue)));
    function.notify(queue);
    asks_for_a_reset(function)
}

/// A start with a queue in a place where none can be.
fn misplaced(function: &Function, queue: u16, place: Place) -> Outcome {
    let _pages = start(function, |index, parts| {
        if index == queue {
            place(parts);
        }
    })?;
    function.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    asks_for_a_reset(function)
}

/// Brings the device to FEATURES_OK, with all its features and all its queues, each in a page of its own.
fn start(function: &Function, mut place: impl FnMut(u16, &mut [u64; 3])) -> Result<Pages, String> {
    function.set_status(0);
    if function.status() != 0 {
        return Err(format!("the status is {:#x} after a reset", function.status()));
    }
    function.set_status(ACKNOWLEDGE);
    function.set_status(ACKNOWLEDGE | DRIVER);
    function.accept_all_features();
    function.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if function.status() & FEATURES_OK == 0 {
        return Err("it does not accept its own features".to_owned());
    }
    let queues = function.queues();
    let pages = Pages::new(usize::from(queues));
    for index in 0..queues {
        let mut parts = Ring::parts(&pages, usize::from(index));
        place(index, &mut parts);
        function.set_queue(index, Ring::SIZE, parts)?;
    }
    Ok(pages)
}

/// Waits until the device asks for a reset, and resets it.
fn asks_for_a_reset(function: &Function) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while function.status() & NEEDS_RESET == 0 {
        if Instant::now() > deadline {
            return Err(format!("it does not ask for a reset; its status is {:#x}", function.status()));
        }
        thread::sleep(Duration::from_millis(1));
    }
    // It says so, with an interrupt of its configuration (section 2.1.2).
    while function.isr() & CONFIG_CHANGED == 0 {
        if Instant::now() > deadline {
            return Err("no interrupt says that it asks for a reset".to_owned());
        }
        thread::sleep(Duration::from_millis(1));
    }
    function.set_status(0);
    match function.status() {
        0 => Ok(()),
        status => Err(format!("the status is {status:#x} after the reset it asked for")),
    }
}
