// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `doorbell` command.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use doorbell::cli::{Cli, Command};
use doorbell::status::Status;
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
            say(&one_line(&e.to_string()));
            return ExitCode::from(Status::Usage.code());
        }
    };
    let Command::Run(args) = cli.command;
    match args.config().and_then(|config| run(&config)) {
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

/// A usage error as one line: what is wrong and any suggestion, without the usage summary.
fn one_line(error: &str) -> String {
    let sentences: Vec<&str> = error
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(|line| line.trim().trim_start_matches("error: ").trim_start_matches("tip: "))
        .filter(|line| !line.is_empty())
        .collect();
    format!("{}; see `doorbell run --help`", sentences.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_errors_are_one_line_with_a_suggestion() {
        for (words, part) in [
            (vec!["doorbell", "run", "--kernle", "x"], "--kernel"),
            (vec!["doorbell", "rnu"], "run"),
            (vec!["doorbell", "run", "--gic", "v4"], "v4"),
        ] {
            let line = one_line(&Cli::try_parse_from(&words).unwrap_err().to_string());
            assert!(line.contains(part) && !line.contains('\n'), "{words:?}: {line}");
        }
    }
}
