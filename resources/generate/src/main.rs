// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `doorbell-generate DIRECTORY`: man pages to DIRECTORY/man1, completions to DIRECTORY/completions.
//!
//! A program of its own, so that nothing of this is in the one that runs guests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};
use doorbell::cli::Cli;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: doorbell-generate DIRECTORY");
        return ExitCode::FAILURE;
    };
    match write(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("doorbell-generate: {}: {e}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    let man = directory.join("man1");
    fs::create_dir_all(&man)?;
    // doorbell.1, doorbell-vfio.1, doorbell-vfio-list.1 ...
    clap_mangen::generate_to(Cli::command(), &man)?;
    for page in fs::read_dir(&man)? {
        let page = page?.path();
        // What stands below the options in the help: examples first.
        fs::write(&page, fs::read_to_string(&page)?.replace("\n.SH EXTRA\n", "\n.SH EXAMPLES AND NOTES\n"))?;
    }
    let completions = directory.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "doorbell", &completions)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;
    use vmm_sys_util::tempdir::TempDir;

    /// Every command below and including this one, by the name of its page.
    fn names(command: &Command, names: &mut Vec<String>) {
        names.push(command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned());
        command.get_subcommands().for_each(|subcommand| self::names(subcommand, names));
    }

    #[test]
    fn each_command_has_a_page_and_each_shell_knows_them() {
        let directory = TempDir::new().unwrap();
        let directory = directory.as_path();
        write(directory).unwrap();
        let mut command = Cli::command();
        command.build();
        let mut all = Vec::new();
        names(&command, &mut all);
        assert!(all.contains(&"doorbell-run".to_owned()) && all.contains(&"doorbell-vfio-list".to_owned()));
        for name in &all {
            let page = fs::read_to_string(directory.join(format!("man1/{name}.1"))).unwrap();
            assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH EXAMPLES"), "{name}: {page}");
        }
        assert_eq!(fs::read_dir(directory.join("man1")).unwrap().count(), all.len());
        for file in ["doorbell.bash", "_doorbell", "doorbell.fish"] {
            let text = fs::read_to_string(directory.join("completions").join(file)).unwrap();
            for word in ["doctor", "kernel", "vfio"] {
                assert!(text.contains(word), "{file} has no {word}");
            }
        }
    }
}
