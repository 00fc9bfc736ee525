// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The book and the READMEs: every page is in the table of contents, every link leads somewhere, every path that is named exists.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All pages: the book's and the READMEs.
fn pages() -> Vec<PathBuf> {
    let root = root();
    let in_directory = |directory: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(root.join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut pages: Vec<PathBuf> = in_directory("docs");
    for directory in ["crates", "examples"] {
        pages.extend(in_directory(directory).iter().map(|path| path.join("README.md")));
    }
    pages.extend([root.join("README.md"), root.join("vmm/README.md")]);
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md") && page.exists());
    assert!(pages.len() > 20, "{pages:?}");
    pages
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    let mut code = false;
    let mut prose = String::new();
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        if !code && !fence {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    assert!(!code, "a block of code has no end");
    prose
}

/// What stands between `](` and `)`.
fn links(text: &str) -> Vec<String> {
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// What mdBook and GitHub make of a heading.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() })
        .collect()
}

#[test]
fn the_table_of_contents_has_every_page_once() {
    let docs = root().join("docs");
    let listed: Vec<String> = links(&fs::read_to_string(docs.join("SUMMARY.md")).unwrap());
    let once: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), once.len(), "a page is listed twice");
    let there: BTreeSet<String> = fs::read_dir(&docs)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md") && name != "SUMMARY.md")
        .collect();
    assert_eq!(once, there);
}

#[test]
fn every_link_leads_somewhere() {
    for page in pages() {
        for link in links(&prose(&fs::read_to_string(&page).unwrap())) {
            if link.contains("://") {
                continue;
            }
            let (file, part) =
                link.split_once('#').map_or((link.as_str(), None), |(file, part)| (file, Some(part)));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} is not there", page.display());
            if let Some(part) = part {
                let text = prose(&fs::read_to_string(&target).unwrap());
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                assert!(
                    headings.any(|heading| anchor(heading.trim_start_matches('#')) == part),
                    "{}: {link} names no heading",
                    page.display()
                );
            }
        }
    }
}

#[test]
fn every_path_that_is_named_exists() {
    const PLACES: [&str; 8] =
        ["crates/", "vmm/", "tests/", "resources/", "examples/", "docs/", "fuzz/", "packaging/"];
    let root = root();
    let mut count = 0;
    for page in pages() {
        let text = prose(&fs::read_to_string(&page).unwrap());
        // Every other piece between backticks is code.
        for code in text.split('`').skip(1).step_by(2) {
            let path = code.split(' ').next().unwrap_or_default();
            if PLACES.iter().any(|place| path.starts_with(place))
                && !path.contains(['*', '<', '{'])
                && !path.contains("NAME")
            {
                assert!(
                    root.join(path).exists() || page.parent().unwrap().join(path).exists(),
                    "{}: there is no {path}",
                    page.display()
                );
                count += 1;
            }
        }
    }
    assert!(count > 50, "only {count} paths were looked at");
}

#[test]
fn every_drawing_is_used_and_well_formed_enough() {
    let docs = root().join("docs");
    let all: String = pages().iter().map(|page| fs::read_to_string(page).unwrap()).collect();
    for entry in fs::read_dir(docs).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "svg") {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(all.contains(&format!("{name})")), "no page shows {name}");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("<svg ") && text.trim_end().ends_with("</svg>"), "{name}");
            assert!(
                text.contains("<title>") && text.contains("viewBox"),
                "{name} says nothing to who cannot see it"
            );
        }
    }
}
