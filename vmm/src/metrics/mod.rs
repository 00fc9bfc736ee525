// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Counters and histograms of a machine, as Prometheus text and as JSON.
//!
//! No library counts for the sake of this: each crate has its states and counters to look at, and here they get names when somebody asks.

mod histogram;

use std::fmt::Write;

use serde::{Serialize, Serializer};

pub use histogram::{Histogram, Snapshot};

use crate::irq::{CountedBy, Line};

/// What a number means over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// One number, or one histogram, and what it is of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Names and values that tell it from the others of its family.
    #[serde(serialize_with = "as_map")]
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    #[serde(flatten)]
    pub value: Value,
}

fn as_map<S: Serializer>(labels: &[(&'static str, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter().map(|(name, value)| (name, value)))
}

/// A number or a histogram.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// A number.
    Value(u64),
    /// How many values were at most so large, and their sum.
    Histogram(Snapshot),
}

/// Numbers that mean the same of different things.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Family {
    /// `doorbell_…`
    pub name: &'static str,
    /// In words.
    pub help: &'static str,
    /// What the numbers mean over time.
    pub kind: Kind,
    /// One for each thing.
    pub samples: Vec<Sample>,
}

impl Family {
    /// A family with these numbers.
    #[must_use]
    pub fn new(name: &'static str, help: &'static str, kind: Kind, samples: Vec<Sample>) -> Self {
        Self { name, help, kind, samples }
    }

    /// A family with one number that needs no labels.
    #[must_use]
    pub fn single(name: &'static str, help: &'static str, kind: Kind, value: u64) -> Self {
        Self::new(name, help, kind, vec![Sample { labels: Vec::new(), value: Value::Value(value) }])
    }
}

/// A number with its labels.
#[must_use]
pub fn sample(labels: &[(&'static str, &str)], value: u64) -> Sample {
    let labels = labels.iter().map(|&(name, value)| (name, value.to_owned())).collect();
    Sample { labels, value: Value::Value(value) }
}

/// The families about interrupts. A count that nobody keeps is left out: it is not zero.
#[must_use]
pub fn interrupts(lines: &[Line]) -> Vec<Family> {
    let of = |value: &dyn Fn(&Line) -> Option<u64>| -> Vec<Sample> {
        lines
            .iter()
            .filter_map(|line| {
                let kind = line.kind_and_index();
                Some(sample(&[("line", &line.line), ("device", &line.device), ("kind", &kind)], value(line)?))
            })
            .collect()
    };
    let counter = |name, help, samples| Family::new(name, help, Kind::Counter, samples);
    let gauge = |name, help, samples| Family::new(name, help, Kind::Gauge, samples);
    vec![
        counter(
            "doorbell_irq_fired_total",
            "Signals of devices in this process.",
            of(&|line| line.fired.filter(|_| line.counted_by == CountedBy::Doorbell)),
        ),
        counter(
            "doorbell_irq_host_fired_total",
            "Signals of devices of the host's, from its /proc/interrupts.",
            of(&|line| line.fired.filter(|_| line.counted_by == CountedBy::Host)),
        ),
        counter(
            "doorbell_irq_delivered_total",
            "Signals that went on to the guest's interrupt controller.",
            of(&|line| line.delivered),
        ),
        counter(
            "doorbell_irq_resampled_total",
            "Interrupts that the guest ended and whose device was looked at again.",
            of(&|line| line.resampled),
        ),
        gauge(
            "doorbell_irq_armed",
            "Whether signals go on to the guest now.",
            of(&|line| Some(u64::from(line.armed && !line.parked))),
        ),
        gauge("doorbell_irq_pending", "Whether a signal waits.", of(&|line| Some(u64::from(line.pending)))),
    ]
}

/// Prometheus's text format, version 0.0.4.
#[must_use]
pub fn text(families: &[Family]) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_text(families, &mut text);
    text
}

fn write_text(families: &[Family], text: &mut String) -> std::fmt::Result {
    for Family { name, help, kind, samples } in families.iter().filter(|family| !family.samples.is_empty()) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        writeln!(text, "# HELP {name} {help}")?;
        writeln!(text, "# TYPE {name} {kind}")?;
        for Sample { labels, value } in samples {
            match value {
                Value::Value(value) => writeln!(text, "{name}{} {value}", braces(labels, None))?,
                Value::Histogram(snapshot) => {
                    for (bound, count) in &snapshot.buckets {
                        writeln!(text, "{name}_bucket{} {count}", braces(labels, Some(bound.to_string())))?;
                    }
                    let all = Some("+Inf".to_owned());
                    writeln!(text, "{name}_bucket{} {}", braces(labels, all), snapshot.count)?;
                    writeln!(text, "{name}_sum{} {}", braces(labels, None), snapshot.sum)?;
                    writeln!(text, "{name}_count{} {}", braces(labels, None), snapshot.count)?;
                }
            }
        }
    }
    Ok(())
}

fn braces(labels: &[(&'static str, String)], bound: Option<String>) -> String {
    let all: Vec<String> = labels
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain(bound.as_deref().map(|bound| ("le", bound)))
        .map(|(name, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        })
        .collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

/// One JSON object: `{"metrics": [...]}`.
#[must_use]
pub fn json(families: &[Family]) -> String {
    #[derive(Serialize)]
    struct All<'a> {
        metrics: &'a [Family],
    }
    // What is ours to write can be written.
    serde_json::to_string(&All { metrics: families }).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::line::test_line;
    use std::time::Duration;

    #[test]
    fn prometheus_reads_it() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(3));
        let labels = vec![("device", "a \"b\"\\".to_owned())];
        let families = [
            Family::single("doorbell_vcpus", "How many vCPUs.", Kind::Gauge, 2),
            Family::new("doorbell_empty", "Nothing.", Kind::Counter, Vec::new()),
            Family::new(
                "doorbell_mmio_seconds",
                "Time.",
                Kind::Histogram,
                vec![Sample { labels, value: Value::Histogram(histogram.snapshot()) }],
            ),
        ];
        let text = text(&families);
        assert!(text.starts_with(
            "# HELP doorbell_vcpus How many vCPUs.\n# TYPE doorbell_vcpus gauge\ndoorbell_vcpus 2\n"
        ));
        assert!(!text.contains("doorbell_empty"), "a family without numbers is left out");
        for line in [
            "doorbell_mmio_seconds_bucket{device=\"a \\\"b\\\"\\\\\",le=\"0.000002\"} 0",
            "doorbell_mmio_seconds_bucket{device=\"a \\\"b\\\"\\\\\",le=\"0.000004\"} 1",
            "doorbell_mmio_seconds_bucket{device=\"a \\\"b\\\"\\\\\",le=\"+Inf\"} 1",
            "doorbell_mmio_seconds_count{device=\"a \\\"b\\\"\\\\\"} 1",
            "doorbell_mmio_seconds_sum{device=\"a \\\"b\\\"\\\\\"} 0.000003",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_count_that_nobody_keeps_is_left_out() {
        let (ours, mut hosts, mut nobodys) = (test_line("serial", 3), test_line("a", 4), test_line("b", 0));
        hosts.counted_by = CountedBy::Host;
        nobodys.fired = None;
        nobodys.counted_by = CountedBy::Nobody;
        let text = text(&interrupts(&[ours, hosts, nobodys]));
        assert!(
            text.contains("doorbell_irq_fired_total{line=\"serial\",device=\"serial\",kind=\"level\"} 3\n")
        );
        assert!(text.contains("doorbell_irq_host_fired_total{line=\"a\",device=\"a\",kind=\"level\"} 4\n"));
        assert!(!text.contains("fired_total{line=\"b\""), "{text}");
    }

    #[test]
    fn the_json_has_the_same_numbers() {
        let families = [Family::new(
            "doorbell_irq_fired_total",
            "Signals.",
            Kind::Counter,
            vec![sample(&[("line", "serial")], 3)],
        )];
        let value: serde_json::Value = serde_json::from_str(&json(&families)).unwrap();
        let family = &value["metrics"][0];
        assert_eq!(family["kind"], "counter");
        assert_eq!(
            (&family["samples"][0]["value"], &family["samples"][0]["labels"]["line"]),
            (&3.into(), &"serial".into())
        );
    }
}
