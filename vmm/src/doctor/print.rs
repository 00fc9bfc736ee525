// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows as text of at most 80 columns, and as JSON.

use super::facts::Facts;
use super::judge::{Row, State, a_guest_can_run};
use crate::wrap::wrap;

/// Where a row's text begins.
const INDENT: usize = 28;

/// For a person.
#[must_use]
pub fn text(facts: &Facts, rows: &[Row]) -> String {
    let mut text = String::new();
    let cpus = if facts.cpus == 1 { "1 CPU".to_owned() } else { format!("{} CPUs", facts.cpus) };
    let title =
        format!("doorbell {} on {}, {cpus}, Linux {}", env!("CARGO_PKG_VERSION"), facts.arch, facts.kernel);
    wrap(&mut text, &title, 0);
    let mut section = "";
    for row in rows {
        if row.section != section {
            section = row.section;
            text.push_str(&format!("{section}\n"));
        }
        text.push_str(&format!("  {:<8} {:<17}", row.state.name(), row.name));
        wrap(&mut text, &row.detail, INDENT);
        if let Some(advice) = &row.advice {
            text.push_str(&" ".repeat(INDENT - 3));
            text.push_str("-> ");
            wrap(&mut text, advice, INDENT);
        }
    }
    let missing: Vec<&str> =
        rows.iter().filter(|row| row.required && row.state == State::Missing).map(|row| row.name).collect();
    if a_guest_can_run(rows) {
        wrap(&mut text, "A guest can run here.", 0);
    } else {
        wrap(&mut text, &format!("No guest can run here: {}.", missing.join(", ")), 0);
    }
    text
}

/// For a program: one object.
#[must_use]
pub fn json(facts: &Facts, rows: &[Row]) -> String {
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            format!(
                "    {{\"section\": {}, \"name\": {}, \"state\": {}, \"required\": {}, \"detail\": {}, \"advice\": {}}}",
                string(row.section),
                string(row.name),
                string(row.state.name()),
                row.required,
                string(&row.detail),
                row.advice.as_deref().map_or_else(|| "null".to_owned(), string),
            )
        })
        .collect();
    format!(
        "{{\n  \"version\": {},\n  \"architecture\": {},\n  \"kernel\": {},\n  \"page_size\": {},\n  \"cpus\": {},\n  \
         \"guest_can_run\": {},\n  \"rows\": [\n{}\n  ]\n}}\n",
        string(env!("CARGO_PKG_VERSION")),
        string(facts.arch),
        string(&facts.kernel),
        facts.page_size,
        facts.cpus,
        a_guest_can_run(rows),
        lines.join(",\n"),
    )
}

/// A string of JSON (RFC 8259, section 7).
fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_calls_itself_stays_a_string() {
        assert_eq!(string("a \"b\" \\ \n é"), r#""a \"b\" \\ \u000a é""#);
    }
}
