//! The one rule for names that people give: of members and of consumers.
//!
//! The rule is for what is asked for. What is stored already is read under the older bounds, which no encoding may
//! narrow: a log may hold names from before the rule.

use crate::limits;
use alloc::string::String;

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No character at all.
    #[error("a name must not be empty: give one of 1 to {} bytes", limits::NAME_BYTES)]
    Empty,
    /// More bytes than any version reads back.
    #[error("a name of {bytes} bytes is too long: give one of 1 to {} bytes", limits::NAME_BYTES)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A line break, a tab, or another control character.
    #[error("the name {name:?} has a control character: give one without line breaks and tabs")]
    Control {
        /// The name.
        name: String,
    },
}

/// Checks a name that is asked for: 1 to [`limits::NAME_BYTES`] bytes of text, no control characters.
///
/// # Errors
/// The part of the rule that it breaks.
pub fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > limits::NAME_BYTES {
        return Err(NameError::TooLong { bytes: name.len() });
    }
    if name.chars().any(char::is_control) {
        return Err(NameError::Control { name: name.into() });
    }
    Ok(())
}
