// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong in a run, and whose turn it is to do something about it.

use std::error::Error as StdError;
use std::fmt;

use crate::status::Status;

/// A run that could not be started or continued. One line says what and what to do; the causes follow on the same line.
#[derive(Debug)]
pub struct Error {
    status: Status,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What most functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), hint: None, source: None }
    }

    /// The user's turn: a wrong option, configuration or file.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Status::Usage, message)
    }

    /// The host lacks something.
    pub fn host(message: impl Into<String>) -> Self {
        Self::new(Status::Host, message)
    }

    /// The guest did something that cannot be handled.
    pub fn guest(message: impl Into<String>) -> Self {
        Self::new(Status::GuestFailed, message)
    }

    /// An operation failed that should not.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Status::Failure, message)
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What it came from.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The exit status that tells this to a script.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Everything on one line: message, causes, hint.
    #[must_use]
    pub fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut source = StdError::source(self);
        while let Some(cause) = source {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            source = cause.source();
        }
        if let Some(hint) = &self.hint {
            line.push_str("; ");
            line.push_str(hint);
        }
        // Causes come from everywhere, file names from the user: no line break gets through.
        line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn one_line_has_message_cause_and_hint_and_no_line_break() {
        let error = Error::usage("cannot read the kernel a\nb")
            .because(io::Error::other("it is gone"))
            .hint("look for it");
        assert_eq!(error.one_line(), "cannot read the kernel a b: it is gone; look for it");
        assert_eq!(error.status(), Status::Usage);
    }
}
