// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What README, book and package say to type and to write is understood by the program as it is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use doorbell::cli::{Cli, Command};
use doorbell::config::Settings;
use vmm_sys_util::tempdir::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The README and the pages of the book.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = vec![root().join("README.md"), root().join("vmm/README.md")];
    pages.extend(fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.into_iter().map(|page| (page.clone(), fs::read_to_string(page).unwrap())).collect()
}

/// The blocks of code in that language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("```{language}\n");
    text.split(&start).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// The words of a line's first command as a shell would take them: quotes, comments, and what it would substitute as one word.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let (mut quote, mut depth) = (None, 0);
    for c in line.chars() {
        match c {
            '\'' | '"' if quote == Some(c) => quote = None,
            '\'' | '"' if quote.is_none() => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            '#' if quote.is_none() && word.is_none() => break,
            c if c.is_whitespace() && quote.is_none() && depth == 0 => words.extend(word.take()),
            c => {
                depth += i32::from(c == '(') - i32::from(c == ')');
                word.get_or_insert_default().push(c);
            }
        }
    }
    words.extend(word);
    // What comes after is another command, or none.
    let end = words.iter().position(|word| matches!(word.as_str(), "&" | "&&" | "|"));
    words.truncate(end.unwrap_or(words.len()));
    words
}

#[test]
fn every_command_line_is_understood() {
    let mut count = 0;
    for (page, text) in pages() {
        for block in blocks(&text, "sh") {
            for line in block.replace("\\\n", " ").lines() {
                let words = words(line);
                let Some(start) = words.iter().position(|word| word.ends_with("doorbell")) else { continue };
                // Only the program itself, first or after a runner's "--".
                if start != 0 && words.get(start - 1).is_none_or(|word| word != "--") {
                    continue;
                }
                let cli = Cli::try_parse_from(&words[start..]);
                let cli = cli.unwrap_or_else(|e| panic!("{}: {line}: {e}", page.display()));
                if let Command::Run(args) = cli.command
                    && args.config.is_none()
                {
                    args.config().unwrap_or_else(|e| panic!("{}: {line}: {}", page.display(), e.one_line()));
                }
                count += 1;
            }
        }
    }
    assert!(count > 10, "only {count} command lines were found");
}

#[test]
fn every_configuration_is_understood() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("guest.toml");
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    for (page, text) in pages() {
        texts.extend(blocks(&text, "toml").into_iter().map(|block| (page.clone(), block.to_owned())));
    }
    let example = root().join("resources/package/guest.toml");
    texts.push((example.clone(), fs::read_to_string(example).unwrap()));
    assert!(texts.len() > 2);
    for (page, text) in texts {
        fs::write(&path, text).unwrap();
        let settings = Settings::from_file(&path);
        let config = settings.and_then(Settings::into_config);
        config.unwrap_or_else(|e| panic!("{}: {}", page.display(), e.one_line()));
    }
}
