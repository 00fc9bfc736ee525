// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `doorbell` command.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use doorbell::cli::{Cli, Command};
use doorbell::control::client::{device_command, ps_command, vm_command};
use doorbell::control::irqs::irq_command;
use doorbell::doctor::doctor_command;
use doorbell::status::Status;
use doorbell::vfio_command::vfio_command;
use doorbell::{run, terminal};

fn main() -> ExitCode {
    doorbell::prepare_process();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Help that was asked for goes to standard output and is a success. A closed pipe is the reader's choice.
            let _ = e.print();
            return ExitCode::from(Status::PowerOff.code());
        }
        Err(e) => {
            say(&one_line(&e, &std::env::args_os().collect::<Vec<_>>()));
            return ExitCode::from(Status::Usage.code());
        }
    };
    let result = match cli.command {
        Command::Run(args) => args.config().and_then(|config| run(&config)),
        Command::Vfio(command) => vfio_command(&command),
        Command::Doctor { json } => doctor_command(json),
        Command::Ps { json } => ps_command(json),
        Command::Vm(command) => vm_command(&command),
        Command::Device(command) => device_command(&command),
        Command::Irq(command) => irq_command(&command),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            terminal::restore();
            say(&e.one_line());
            ExitCode::from(e.status().code())
        }
    }
}

/// The last word. A reader who has gone must not turn it into a panic (`eprintln!` would), and with it into another exit status.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "doorbell: {line}");
}

/// A usage error as one line: what is wrong and any suggestion, without the usage summary, and where to read on.
fn one_line(error: &clap::Error, words: &[OsString]) -> String {
    let command = command_of(words);
    let text = error.to_string();
    let mut sentences: Vec<String> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(|line| line.trim().trim_start_matches("error: ").trim_start_matches("tip: ").to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    let names = || command.get_subcommands().map(|command| command.get_name().to_owned());
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            let names: Vec<String> = names().collect();
            sentences = vec![format!("a command is missing: {}", names.join(", "))];
        }
        // clap finds nothing for words as short as "rnu".
        ErrorKind::InvalidSubcommand if error.get(ContextKind::SuggestedSubcommand).is_none() => {
            if let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand)
                && let Some(near) = nearest(word, names())
            {
                sentences.push(format!("a similar subcommand exists: '{near}'"));
            }
        }
        _ => {}
    }
    let path = command.get_bin_name().unwrap_or("doorbell");
    // What introduces a list goes on with it.
    format!("{}; see `{path} --help`", sentences.join("; ").replace(":; ", ": "))
}

/// The command that a command line is for, as far as its words are commands.
fn command_of(words: &[OsString]) -> clap::Command {
    let mut command = Cli::command();
    command.build();
    for word in words.iter().skip(1) {
        let Some(next) = command.find_subcommand(word).cloned() else { break };
        command = next;
    }
    command
}

/// The name that `word` is one or two slips away from.
fn nearest(word: &str, names: impl Iterator<Item = String>) -> Option<String> {
    names
        .map(|name| (distance(word, &name), name))
        .filter(|(slips, name)| *slips <= 2 && *slips < name.len().min(word.len()))
        .min()
        .map(|(_, name)| name)
}

/// How many letters have to be changed, left out, put in or swapped with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let least = change.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { least.min(table[i - 2][j - 2] + 1) } else { least }
            };
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_errors_are_one_line_with_a_suggestion() {
        for (words, part, see) in [
            (vec!["doorbell", "run", "--kernle", "x"], "--kernel", "`doorbell run --help`"),
            (vec!["doorbell", "rnu"], "'run'", "`doorbell --help`"),
            (vec!["doorbell", "docter"], "'doctor'", "`doorbell --help`"),
            (vec!["doorbell"], "a command is missing: run, ", "`doorbell --help`"),
            (vec!["doorbell", "vfio"], "a command is missing: list, ", "`doorbell vfio --help`"),
            (vec!["doorbell", "run", "--gic", "v4"], "v4", "`doorbell run --help`"),
            (vec!["doorbell", "vfio", "lsit"], "'list'", "`doorbell vfio --help`"),
            (vec!["doorbell", "vfio", "bind"], "DEVICE", "`doorbell vfio bind --help`"),
        ] {
            let given: Vec<OsString> = words.iter().map(OsString::from).collect();
            let line = one_line(&Cli::try_parse_from(&words).unwrap_err(), &given);
            assert!(line.contains(part) && line.contains(see) && !line.contains('\n'), "{words:?}: {line}");
        }
    }

    /// Calls `look` with each command's words, the program's own included.
    fn each(command: &clap::Command, words: &[String], look: &mut impl FnMut(&[String])) {
        for subcommand in command.get_subcommands() {
            let words = [words, &[subcommand.get_name().to_owned()]].concat();
            look(&words);
            each(subcommand, &words, look);
        }
    }

    #[test]
    fn a_slip_in_any_command_is_answered_with_that_command() {
        each(&Cli::command(), &["doorbell".to_owned()], &mut |right| {
            let (last, before) = right.split_last().unwrap();
            let letters: Vec<char> = last.chars().collect();
            let mut slips: Vec<String> = vec![last.chars().skip(1).collect(), format!("{last}x")];
            for at in 1..letters.len() {
                let mut swapped = letters.clone();
                swapped.swap(at - 1, at);
                slips.push(swapped.into_iter().collect());
            }
            for slip in slips.iter().filter(|slip| slip.len() > 1 && *slip != last) {
                let words: Vec<String> = [before, std::slice::from_ref(slip)].concat();
                // Another command may be what was meant.
                let Err(error) = Cli::try_parse_from(&words) else { continue };
                let given: Vec<OsString> = words.iter().map(OsString::from).collect();
                let line = one_line(&error, &given);
                assert!(line.contains(&format!("'{last}'")), "{words:?}: {line}");
            }
        });
    }
}
