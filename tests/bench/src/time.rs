// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From exec to the VMM's end.
//!
//! Several VMMs take turns (A B A B ...), so that whatever else the machine does falls on all of them. The first round
//! fills caches and does not count.

use clap::Args;

use crate::numbers::Spread;
use crate::vmm::Vmm;
use crate::{Common, Result, figure};

/// Options of `measure time`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// How many boots of each count
    #[arg(long, default_value_t = 10)]
    runs: u32,
    /// The command line, whose guest must power itself off; after `--vs` another one's
    #[arg(last = true, required = true, value_name = "VMM ARGS... [--vs VMM ARGS...]")]
    commands: Vec<String>,
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    let commands = split(&options.commands)?;
    let mut times = vec![Ok(Vec::new()); commands.len()];
    for round in 0..=options.runs {
        for (command, times) in commands.iter().zip(&mut times) {
            // One that has failed is out; the others go on without it.
            let Ok(taken) = times else { continue };
            match Vmm::start(command).and_then(|mut vmm| vmm.wait(options.common.timeout())) {
                Ok(took) if round != 0 => taken.push(took.as_micros()),
                Ok(_) => {}
                Err(e) => *times = Err(e.to_string()),
            }
        }
    }
    let mut failures = Vec::new();
    for (index, (command, times)) in commands.iter().zip(times).enumerate() {
        match times {
            Ok(times) => report(&options.common.name(index, command), &times)?,
            Err(e) => failures.push(e),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\nmeasure: ").into()) }
}

fn report(name: &str, times: &[u128]) -> Result<()> {
    let spread = Spread::of(times).ok_or("--runs 0 measures nothing")?;
    println!("{name}: {} ms to the end, {} boots in turn", spread.map(Milliseconds), times.len());
    for (key, value) in [("min", spread.min), ("median", spread.median), ("max", spread.max)] {
        figure(name, &format!("time-{key}-us"), value);
    }
    Ok(())
}

struct Milliseconds(u128);

impl std::fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 100)
    }
}

fn split(words: &[String]) -> Result<Vec<&[String]>> {
    let commands: Vec<_> = words.split(|word| word == "--vs").collect();
    if commands.iter().any(|command| command.is_empty()) {
        return Err("there is a command line missing beside --vs".into());
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_are_split_at_vs() {
        let all = words("doorbell run --kernel k --vs qemu -M virt --vs lkvm run");
        let commands = split(&all).unwrap();
        assert_eq!(commands, [words("doorbell run --kernel k"), words("qemu -M virt"), words("lkvm run")]);
        assert!(split(&words("a --vs")).is_err());
        assert!(split(&words("--vs b")).is_err());
    }
}
