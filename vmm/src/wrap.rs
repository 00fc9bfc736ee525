// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Text for a terminal of 80 columns.

/// What a terminal has.
pub const COLUMNS: usize = 80;

/// Appends words and a line feed, with a line break before each word that would not fit. The first line has `indent` columns already; those that follow
/// begin there.
pub fn wrap(text: &mut String, words: &str, indent: usize) {
    let mut column = indent;
    for (index, word) in words.split(' ').filter(|word| !word.is_empty()).enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > COLUMNS {
            text.push('\n');
            // What is too long even so begins further left.
            column = indent.min(COLUMNS.saturating_sub(length));
            text.push_str(&" ".repeat(column));
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_only_and_a_long_word_begins_further_left() {
        let mut text = " ".repeat(28);
        let (long, longer) = ("x".repeat(COLUMNS), "z".repeat(60));
        wrap(&mut text, &format!("one  {} two three {long} {longer}", "y".repeat(45)), 28);
        let lines: Vec<&str> = text.lines().collect();
        let expected = [
            format!("{}one {}", " ".repeat(28), "y".repeat(45)),
            format!("{}two three", " ".repeat(28)),
            long,
            format!("{}{longer}", " ".repeat(20)),
        ];
        assert_eq!(lines, expected);
    }
}
