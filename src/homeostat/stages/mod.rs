//! The three stages as the loop runs them: each composes the crates that know, and adds only what joins them.

pub mod aggregate;
pub mod decide;
pub mod detect;
pub mod rows;

use engine::spec::OptionValue;

/// Bytes of a bad record that its dead letter keeps.
pub const DEAD_LETTER_BYTES: usize = 64 * 1024;

/// Options of WITH (…) as the `detector` crate takes them.
pub fn values(options: &[(String, OptionValue)]) -> Vec<(String, detector::Value)> {
    let value = |value: &OptionValue| match value {
        OptionValue::Number(number) => detector::Value::Number(*number),
        OptionValue::Text(text) => detector::Value::Text(text.clone()),
        OptionValue::Bool(flag) => detector::Value::Bool(*flag),
    };
    options
        .iter()
        .map(|(name, given)| (name.clone(), value(given)))
        .collect()
}
