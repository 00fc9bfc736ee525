// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `doorbell doctor`: what the host has for a guest, what it lacks, and what to type.
//!
//! `gather` is the only part that looks at the host, and changes nothing on it. [`judge`] makes rows of what was found, and [`mod@print`] lines of the rows.

pub mod facts;
mod gather;
pub mod judge;
pub mod print;

use std::io::{self, Write};

use crate::error::Result;
use crate::status::Status;

/// Looks at the host and says what it found. Returns the exit status: a guest can run, or the host lacks something for it.
///
/// # Errors
/// None so far: what cannot be looked at is a row.
pub fn doctor_command(json: bool) -> Result<u8> {
    let facts = gather::gather();
    let rows = judge::rows(&facts);
    let text = if json { print::json(&facts, &rows) } else { print::text(&facts, &rows) };
    // Whoever does not read it any more has seen enough.
    let _ = io::stdout().write_all(text.as_bytes());
    let status = if judge::a_guest_can_run(&rows) { Status::PowerOff } else { Status::Host };
    Ok(status.code())
}
