// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines as text for a terminal of 80 columns.

use super::{CountedBy, Line, Mask, Route};

/// Two rows a line: first what it is and where it leads, then how it is doing.
#[must_use]
pub fn list(lines: &[Line]) -> String {
    let mut text = row(["LINE", "DEVICE", "KIND", "EVENTFD", "GSI", "ROUTE"]);
    text.push_str(&second_row(["STATE", "PEND", "FIRED", "DELIVERED", "RESAMPLED", "LAST"]));
    for line in lines {
        text.push_str(&row([
            &line.line,
            &cut(&line.device, 15),
            &line.kind_and_index(),
            &number(line.eventfd),
            &number(line.gsi),
            &route(line.route.as_ref()),
        ]));
        text.push_str(&second_row([
            &line.state(),
            if line.pending { "yes" } else { "-" },
            &count(line.fired, line.counted_by, 11),
            &number(line.delivered.map(|n| compact(n, 11))),
            &number(line.resampled.map(|n| compact(n, 10))),
            &last(line),
        ]));
    }
    if lines.iter().any(|line| line.counted_by == CountedBy::Host) {
        text.push_str("* counted by the host's kernel; these signals do not pass through userspace\n");
    }
    text
}

fn row(cells: [&str; 6]) -> String {
    let [line, device, kind, eventfd, gsi, route] = cells;
    trimmed(format!("{line:<20} {device:<15} {kind:<10} {eventfd:>7} {gsi:>4}  {route}"))
}

fn second_row(cells: [&str; 6]) -> String {
    let [state, pending, fired, delivered, resampled, last] = cells;
    trimmed(format!("    {state:<20} {pending:<4} {fired:>12} {delivered:>11} {resampled:>10}  {last}"))
}

fn trimmed(line: String) -> String {
    format!("{}\n", line.trim_end())
}

fn number<T: ToString>(number: Option<T>) -> String {
    number.map_or_else(|| "-".to_owned(), |n| n.to_string())
}

fn count(count: Option<u64>, by: CountedBy, columns: usize) -> String {
    let star = if by == CountedBy::Host { "*" } else { "" };
    count.map_or_else(|| "-".to_owned(), |n| format!("{}{star}", compact(n, columns)))
}

/// A number in at most so many columns: the last digits give way to a unit.
fn compact(n: u64, columns: usize) -> String {
    let whole = n.to_string();
    if whole.len() <= columns {
        return whole;
    }
    let units = [(1_000, 'k'), (1_000_000, 'M'), (1_000_000_000, 'G'), (1_000_000_000_000, 'T')];
    let shorter = units.iter().map(|&(unit, letter)| format!("{}{letter}", n / unit));
    shorter
        .clone()
        .find(|text| text.len() <= columns)
        .or_else(|| shorter.into_iter().next_back())
        .unwrap_or(whole)
}

/// In a few columns: messages go to one place each, so what tells them apart is device and event.
fn route(route: Option<&Route>) -> String {
    match route {
        None => "none".to_owned(),
        Some(Route::Pin { pin }) => format!("pin {pin}"),
        Some(Route::Message { data, device_id, with_device_id: true, .. }) => {
            format!("dev {device_id:#x} ev {data}")
        }
        Some(Route::Message { data, .. }) => format!("data {data:#x}"),
    }
}

/// Between which two looks it was last active, in 13 columns.
fn last(line: &Line) -> String {
    let Some(active) = line.active else { return "never".to_owned() };
    let (least, most) = (active.at_least_ms_ago, active.at_most_ms_ago);
    let (unit, name) = match most {
        0..=99_000 => (1000, "s"),
        99_001..=5_940_000 => (60_000, "min"),
        _ => (3_600_000, "h"),
    };
    match (least / unit, most.div_ceil(unit)) {
        (0, most) => format!("<{most} {name} ago"),
        (least, most) => format!("{least}-{most} {name} ago"),
    }
}

/// All there is to know of one line, a fact a row.
#[must_use]
pub fn show(line: &Line) -> String {
    let mut text = String::new();
    let mut say = |name: &str, value: String| text.push_str(&trimmed(format!("{name:<12} {value}")));
    say("line", line.line.clone());
    let place = line.bdf.as_ref().map(|bdf| format!(" at {bdf} on the guest's PCI bus")).unwrap_or_default();
    say("device", format!("{}{place}", line.device));
    say("kind", line.kind_and_index());
    say("eventfd", number(line.eventfd));
    if line.resamplefd.is_some() {
        let who = if line.handed_over {
            ", which the host's kernel has: EOI and unmask go without userspace"
        } else {
            ""
        };
        say("resamplefd", format!("{}{who}", number(line.resamplefd)));
    }
    if let Some((address, data)) = line.message {
        say("message", format!("{address:#x} <- {data:#x}, as the guest has written it"));
    }
    say("GSI", number(line.gsi));
    say(
        "route",
        match line.route {
            None => "none".to_owned(),
            Some(Route::Pin { pin }) => format!("pin {pin} of the GIC: INTID {}", u64::from(pin) + 32),
            Some(Route::Message { address, data, device_id, with_device_id }) => format!(
                "{address:#x} <- {data:#x} of device {device_id:#x}{}",
                if with_device_id { "" } else { " (which the kernel is not told)" }
            ),
        },
    );
    say("state", line.state());
    if let Some(mask) = line.masked {
        say(
            "masked by",
            match mask {
                Mask::Entry => "the mask bit of the vector's entry",
                Mask::Function => "the function mask of the MSI-X capability",
                Mask::Disabled => "the capability, which is disabled",
                Mask::NotAllowed => "the capability, which allows fewer vectors",
                Mask::Command => "the interrupt disable bit of the command register",
                Mask::Messages => "its function, which interrupts by messages",
            }
            .to_owned(),
        );
    }
    if let Some(trouble) = &line.trouble {
        say("trouble", trouble.clone());
    }
    say("pending", if line.pending { "yes" } else { "no" }.to_owned());
    if let Some(high) = line.high {
        say("level", if high { "high" } else { "low" }.to_owned());
    }
    say(
        "fired",
        match line.counted_by {
            CountedBy::Doorbell => number(line.fired),
            CountedBy::Host => format!("{}, by the host's /proc/interrupts", number(line.fired)),
            CountedBy::Nobody => "not counted: it is signalled from the host's kernel".to_owned(),
        },
    );
    say("delivered", number(line.delivered));
    say("resampled", number(line.resampled));
    say("last seen", last(line));
    text
}

/// One row a line, with rates: what `irq watch` shows. `rates` are per second, in the order of the lines; none yet at the first look.
#[must_use]
pub fn watch(lines: &[Line], rates: Option<&[f64]>) -> String {
    let mut text = watch_row(["LINE", "KIND", "STATE", "P", "FIRED", "RATE/s", "DELIVERED", "EOI"]);
    for (index, line) in lines.iter().enumerate() {
        let rate =
            rates.and_then(|rates| rates.get(index)).map_or_else(|| "-".to_owned(), |&rate| per_second(rate));
        text.push_str(&watch_row([
            &cut(&line.line, 17),
            &line.kind_and_index(),
            line.state_in_a_word(),
            if line.pending { "!" } else { "" },
            &count(line.fired, line.counted_by, 9),
            &rate,
            &number(line.delivered.map(|n| compact(n, 10))),
            &number(line.resampled.map(|n| compact(n, 9))),
        ]));
    }
    text
}

fn watch_row(cells: [&str; 8]) -> String {
    let [line, kind, state, pending, fired, rate, delivered, resampled] = cells;
    trimmed(format!(
        "{line:<17} {kind:<10} {state:<8} {pending:<1} {fired:>10} {rate:>7} {delivered:>10} {resampled:>9}"
    ))
}

fn per_second(rate: f64) -> String {
    if rate == 0.0 {
        "0".to_owned()
    } else if rate < 10.0 {
        format!("{rate:.1}")
    } else if rate < 1e6 {
        format!("{rate:.0}")
    } else {
        format!("{:.1}M", rate / 1e6)
    }
}

/// The beginning and the end of a name that is too long: what tells vectors apart is at the end.
fn cut(text: &str, columns: usize) -> String {
    let letters: Vec<char> = text.chars().collect();
    if letters.len() <= columns {
        return text.to_owned();
    }
    let tail = columns / 2;
    let head: String = letters.iter().take(columns - tail - 1).collect();
    let end: String = letters.iter().skip(letters.len() - tail).collect();
    format!("{head}~{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::Kind;
    use crate::irq::line::{Active, test_line};
    use crate::wrap::COLUMNS;

    fn lines() -> Vec<Line> {
        let mut serial = test_line("serial", 123_456_789_012);
        serial.delivered = Some(123_456_789_013);
        let mut vector = test_line("0000:00:08.0:2047", 4_294_967_295);
        vector.kind = Kind::Msix;
        vector.index = Some(2047);
        vector.masked = Some(Mask::NotAllowed);
        vector.parked = true;
        vector.pending = true;
        vector.counted_by = CountedBy::Host;
        vector.gsi = Some(4095);
        vector.route =
            Some(Route::Message { address: 0x808_0040, data: 2047, device_id: 0x10, with_device_id: true });
        let mut never = test_line("a-name-that-somebody-has-made-up:12", 0);
        never.fired = None;
        never.route = None;
        never.counted_by = CountedBy::Nobody;
        vec![serial, vector, never]
    }

    #[test]
    fn watching_takes_80_columns() {
        let rates = [1_234_567.8, 9.96, 0.0];
        let text = watch(&lines(), Some(&rates));
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        for word in ["1.2M", "10.0", "a-name-t~de-up:12", "!", "MSI-X 2047", "123456789k"] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
    }

    #[test]
    fn a_list_takes_80_columns_for_names_that_machines_have() {
        let mut lines = lines();
        lines.truncate(2);
        let text = list(&lines);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        for word in [
            "serial",
            "pin 0",
            "dev 0x10 ev 2047",
            "masked (not allowed)",
            "4294967295*",
            "* counted by the host",
        ] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
    }

    #[test]
    fn when_it_was_last_active_is_said_as_exactly_as_it_is_known() {
        for (least, most, text) in [
            (0, 1, "<1 s ago"),
            (0, 23_001, "<24 s ago"),
            (500, 1500, "<2 s ago"),
            (5000, 7001, "5-8 s ago"),
            (97_000, 98_500, "97-99 s ago"),
            (99_000, 99_001, "1-2 min ago"),
            (5_880_000, 5_940_000, "98-99 min ago"),
            (0, 5_940_001, "<2 h ago"),
        ] {
            let mut line = test_line("a", 7);
            line.active = Some(Active { at_least_ms_ago: least, at_most_ms_ago: most });
            assert_eq!(last(&line), text);
            assert!(text.len() <= 13, "{text}");
        }
        assert_eq!(last(&test_line("a", 0)), "never");
    }

    #[test]
    fn showing_says_whose_count_it_is() {
        let [serial, vector, never] = &lines()[..] else { panic!() };
        assert!(show(serial).contains("pin 0 of the GIC: INTID 32"));
        assert!(show(vector).contains("by the host's /proc/interrupts"));
        assert!(show(never).contains("not counted"));
    }
}
