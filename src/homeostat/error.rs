//! What a person typed or wrote cannot be used: what, where, how to fix it. Exit code 2, nothing half-applied.

use std::fmt;

/// A refusal of input.
#[derive(Debug)]
pub struct Refused {
    message: String,
    help: Option<String>,
    rendered: bool,
}

impl Refused {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            rendered: false,
        }
    }

    /// Diagnostics with their places and helps, each of which says itself that it is an error.
    pub fn rendered(diagnostics: &str) -> Self {
        Self {
            message: diagnostics.trim_end().to_owned(),
            help: None,
            rendered: true,
        }
    }

    /// As it is printed.
    pub fn text(&self) -> String {
        match self.rendered {
            true => self.message.clone(),
            false => format!("error: {self}"),
        }
    }

    /// How to fix it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refused {}

/// The command ran and has said what is wrong: exit code 2 for input that cannot be used.
#[derive(Debug)]
pub struct Found;

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("found")
    }
}

impl std::error::Error for Found {}

/// The demonstration has said what did not heal, or was touched in error: exit code 1.
#[derive(Debug)]
pub struct NotHealed;

impl fmt::Display for NotHealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not healed")
    }
}

impl std::error::Error for NotHealed {}

/// A case has said how it differs from what is expected: exit code 1.
#[derive(Debug)]
pub struct Differs;

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a case differs")
    }
}

impl std::error::Error for Differs {}
