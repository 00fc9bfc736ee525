// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the program says of itself, on standard error.

use crate::config::LogLevel;
use tracing::level_filters::LevelFilter;

/// Installs the subscriber. A second call changes nothing.
pub(crate) fn init(level: LogLevel) {
    let filter = match level {
        LogLevel::Off => return,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .without_time()
        // Standard error that cannot be written is complained about on standard error, by a macro that panics when it cannot.
        .log_internal_errors(false)
        .finish();
    // Somebody who embeds the library may have one of their own.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
