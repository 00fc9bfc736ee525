// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the program says of itself, on standard error.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{DefaultFields, Format, Full, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, LogLevel};

/// Installs the subscriber. A second call changes nothing.
pub(crate) fn init(level: LogLevel, format: LogFormat) {
    let filter = match level {
        LogLevel::Off => return,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let text = Format::default().with_target(false).with_ansi(false).without_time();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // Standard error that cannot be written is complained about on standard error, by a macro that panics when it cannot.
        .log_internal_errors(false)
        .event_format(Lines { format, text })
        .finish();
    // Somebody who embeds the library may have one of their own.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// An event a line, in one of two forms. The JSON form is written here: the library's own brings a second way to write each kind of field along.
struct Lines {
    format: LogFormat,
    text: Format<Full, ()>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> FormatEvent<S, DefaultFields> for Lines {
    fn format_event(
        &self,
        context: &FmtContext<'_, S, DefaultFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.format == LogFormat::Text {
            return self.text.format_event(context, writer, event);
        }
        writer.write_str("{\"timestamp\":\"")?;
        // Digits and punctuation: nothing that a string of JSON could not have.
        SystemTime.format_time(&mut writer)?;
        write!(writer, "\",\"level\":\"{}\"", event.metadata().level())?;
        let mut fields = JsonFields(String::new());
        event.record(&mut fields);
        writer.write_str(&fields.0)?;
        let mut spans = context.event_scope().into_iter().flat_map(|scope| scope.from_root()).peekable();
        if spans.peek().is_some() {
            let mut list = String::new();
            for span in spans {
                list.push_str(if list.is_empty() { "" } else { "," });
                let extensions = span.extensions();
                let fields = extensions.get::<FormattedFields<DefaultFields>>();
                let fields = fields.map_or("", |fields| fields.fields.as_str());
                let blank = if fields.is_empty() { "" } else { " " };
                list.push_str(&quoted(&format!("{}{blank}{fields}", span.name())));
            }
            write!(writer, ",\"spans\":[{list}]")?;
        }
        writer.write_str("}\n")
    }
}

/// The fields of an event, each with a comma before it.
struct JsonFields(String);

impl JsonFields {
    fn add(&mut self, field: &Field, value: &str) {
        self.0.push_str(&format!(",{}:{value}", quoted(field.name())));
    }
}

impl Visit for JsonFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &quoted(&format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, &quoted(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value.to_string());
    }
}

/// A string of JSON.
fn quoted(text: &str) -> String {
    // Strings can be written.
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(format: LogFormat) -> String {
        let said = Said::default();
        let to = said.clone();
        let text = Format::default().with_target(false).with_ansi(false).without_time();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || to.clone())
            .with_ansi(false)
            .event_format(Lines { format, text })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("vcpu", index = 3).entered();
            tracing::info!(count = 7_u64, what = "a \"b\"\n", "it {}", "happens");
        });
        let bytes = said.0.lock().unwrap();
        String::from_utf8(bytes.clone()).unwrap()
    }

    #[test]
    fn a_line_of_json_has_level_message_fields_and_spans() {
        let line = said(LogFormat::Json);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["level"], &value["message"]), (&"INFO".into(), &"it happens".into()));
        assert_eq!((&value["count"], &value["what"]), (&7.into(), &"a \"b\"\n".into()));
        assert_eq!(value["spans"][0], "vcpu index=3");
        assert!(value["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }

    #[test]
    fn a_line_of_text_is_as_it_always_was() {
        let line = said(LogFormat::Text);
        assert_eq!(line, " INFO vcpu{index=3}: it happens count=7 what=\"a \\\"b\\\"\\n\"\n");
    }
}
