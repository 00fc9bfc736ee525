// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `doorbell irq list|show|watch|explain`: what a machine's control socket says of its interrupts, for a person.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::tcgetwinsize;

use super::api::escape;
use super::client::{ask, print, to_json};
use crate::cli::IrqCommand;
use crate::error::{Error, Result};
use crate::irq::explain;
use crate::irq::{Line, table};
use crate::signals::Taken;
use crate::status::Status;

/// Looks. Returns the exit status.
///
/// # Errors
/// If the machine is not there, or has no such interrupt.
pub fn irq_command(command: &IrqCommand) -> Result<u8> {
    match command {
        IrqCommand::List { vm, all, json } => {
            let lines = lines(vm, *all, &[])?;
            print(&if *json { to_json(&lines) } else { table::list(&lines) });
        }
        IrqCommand::Show { vm, line, json } => {
            let line: Line = ask(vm, "GET", &format!("/irqs/{}", escape(line)), &[])?;
            print(&if *json { to_json(&line) } else { table::show(&line) });
        }
        IrqCommand::Explain { vm, line, json } => {
            let path = format!("/irqs/{}/explain", escape(line));
            let explanation: serde_json::Value = ask(vm, "GET", &path, &[])?;
            print(&if *json { to_json(&explanation) } else { explain::text(&explanation) });
        }
        IrqCommand::Watch { vm, lines, all, every, count } => {
            watch(vm, lines, *all, Duration::from_secs((*every).into()), *count)?;
        }
    }
    Ok(Status::PowerOff.code())
}

/// Those in use, or all; those whose names begin with one of `prefixes`, or all.
fn lines(vm: &Path, all: bool, prefixes: &[String]) -> Result<Vec<Line>> {
    let mut lines: Vec<Line> = ask(vm, "GET", "/irqs", &[])?;
    lines.retain(|line| {
        (all || line.in_use())
            && (prefixes.is_empty() || prefixes.iter().any(|prefix| line.line.starts_with(prefix)))
    });
    Ok(lines)
}

/// How often each line fired a second, since it was last looked at.
#[derive(Default)]
struct Rates {
    before: BTreeMap<String, u64>,
    at: Option<Instant>,
}

impl Rates {
    #[allow(clippy::cast_precision_loss, reason = "a rate has a few digits")]
    fn of(&mut self, lines: &[Line], now: Instant) -> Option<Vec<f64>> {
        let count = |line: &Line| line.fired.or(line.delivered).unwrap_or(0);
        let seconds = self.at.replace(now).map(|at| now.saturating_duration_since(at).as_secs_f64());
        let rates = seconds.filter(|&seconds| seconds > 0.0).map(|seconds| {
            let rate = |line: &Line| {
                let before = self.before.get(&line.line).copied().unwrap_or(0);
                // A count that starts again, with the guest or with VFIO's handler, counts from there.
                let since = count(line).checked_sub(before).unwrap_or_else(|| count(line));
                since as f64 / seconds
            };
            lines.iter().map(rate).collect()
        });
        self.before = lines.iter().map(|line| (line.line.clone(), count(line))).collect();
        rates
    }
}

/// The terminal with a screen of its own, whose contents come back when this goes.
struct Screen;

impl Screen {
    fn enter() -> Self {
        // Another screen, no cursor.
        print("\x1b[?1049h\x1b[?25l");
        Self
    }

    fn draw(text: &str) {
        // A terminal that does not know its size says 0.
        let rows = tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        let rows = if rows == 0 { 24 } else { rows.max(4) };
        print(&format!("\x1b[H{}\x1b[J", fit(text, rows)));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print("\x1b[?25h\x1b[?1049l");
    }
}

/// As many rows as the terminal has, each cleared to its end, and a word on those that are left out.
fn fit(text: &str, rows: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let shown = if all.len() < rows { all.len() } else { rows - 2 };
    let mut fitted: String = all.iter().take(shown).map(|line| format!("{line}\x1b[K\r\n")).collect();
    if shown < all.len() {
        fitted
            .push_str(&format!("... {} more: name those that you want to see\x1b[K\r\n", all.len() - shown));
    }
    fitted
}

fn watch(vm: &Path, prefixes: &[String], all: bool, every: Duration, count: Option<u32>) -> Result<()> {
    let mut seen = lines(vm, all, prefixes)?;
    if seen.is_empty() && !prefixes.is_empty() {
        return Err(Error::usage(format!("no interrupt's name begins with {}", prefixes.join(" or ")))
            .hint("`doorbell irq list --all` shows their names"));
    }
    let signals = Taken::new()?;
    let screen = io::stdout().is_terminal().then(Screen::enter);
    let mut rates = Rates::default();
    let mut looks = 0;
    loop {
        let text = table::watch(&seen, rates.of(&seen, Instant::now()).as_deref());
        if screen.is_some() {
            Screen::draw(&format!("{}  (Ctrl-C ends)\n\n{text}", vm.display()));
        } else {
            // The heads once.
            let rows =
                if looks == 0 { text.as_str() } else { text.split_once('\n').map_or("", |(_, rows)| rows) };
            if io::stdout().write_all(rows.as_bytes()).and_then(|()| io::stdout().flush()).is_err() {
                // Whoever read it has seen enough.
                return Ok(());
            }
        }
        looks += 1;
        if count.is_some_and(|count| looks >= count) || waited(&signals, every)? {
            return Ok(());
        }
        match lines(vm, all, prefixes) {
            Ok(lines) => seen = lines,
            // The guest has come to its end, which is no failure of the looking.
            Err(_) => return Ok(()),
        }
    }
}

/// Waits. Whether a signal came, which ends it.
fn waited(signals: &Taken, time: Duration) -> Result<bool> {
    let time = Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    match poll(&mut [PollFd::new(signals.fd(), PollFlags::IN)], Some(&time)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(Error::failure("cannot wait").because(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::line::test_line;

    #[test]
    fn a_rate_is_what_came_since_the_last_look() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        let mut look = |count, seconds| {
            rates.of(&[test_line("a", count)], start + Duration::from_secs(seconds)).map(|rates| rates[0])
        };
        assert_eq!(look(100, 0), None);
        assert_eq!(look(120, 2), Some(10.0));
        assert_eq!(look(120, 3), Some(0.0));
        assert_eq!(look(5, 4), Some(5.0), "the count began again");
    }

    #[test]
    fn a_screen_that_is_too_small_says_so() {
        let text = "head\na\nb\nc\nd\n";
        assert_eq!(fit(text, 6).matches("\r\n").count(), 5);
        let cut = fit(text, 5);
        assert!(cut.ends_with("... 2 more: name those that you want to see\x1b[K\r\n"), "{cut:?}");
        assert_eq!(cut.matches("\r\n").count(), 4, "the last row stays free, or the terminal would scroll");
    }
}
