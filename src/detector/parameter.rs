//! Parameters as written in `WITH (…)`: declared beside each detector, checked once, then read without failing.

use crate::{Error, Value};

/// One parameter of a detector.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: Kind,
    /// What holds when it is left out, as an operator would write it.
    pub default: &'static str,
    /// What a value must be, as an error says it.
    pub expected: &'static str,
    pub help: &'static str,
}

/// What values a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Number {
        min: f64,
        max: f64,
    },
    Integer {
        min: i64,
        max: i64,
    },
    /// Milliseconds inside, `'30 s'` outside.
    Duration {
        min_ms: i64,
        max_ms: i64,
    },
    Choice(&'static [&'static str]),
    /// A number, or the word in `word`.
    NumberOr {
        min: f64,
        max: f64,
        word: &'static str,
    },
    DurationOr {
        min_ms: i64,
        max_ms: i64,
        word: &'static str,
    },
}

/// A parameter's checked value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Checked {
    Number(f64),
    Word(&'static str),
    Absent,
}

/// The options of one detector, all known and in range.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    values: Vec<(&'static str, Checked)>,
    given: Vec<&'static str>,
}

impl Options {
    pub(crate) fn check(
        detector: &'static str,
        parameters: &[&'static [Parameter]],
        options: &[(String, Value)],
    ) -> Result<Self, Error> {
        let known: Vec<&Parameter> = parameters.iter().copied().flatten().collect();
        for (index, (name, _)) in options.iter().enumerate() {
            if !known.iter().any(|parameter| parameter.name == name) {
                return Err(Error::UnknownParameter {
                    detector,
                    name: name.clone(),
                    nearest: nearest(name, known.iter().map(|parameter| parameter.name)),
                });
            }
            if options[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(Error::Twice { name: name.clone() });
            }
        }
        let mut values = Vec::with_capacity(known.len());
        let mut names = Vec::new();
        for parameter in known {
            let given = options.iter().find(|(name, _)| name == parameter.name);
            let checked = match given {
                Some((_, value)) => parameter.check(value)?,
                None if parameter.default.is_empty() => Checked::Absent,
                None => parameter.check(&Value::Text(parameter.default.into()))?,
            };
            if given.is_some() {
                names.push(parameter.name);
            }
            values.push((parameter.name, checked));
        }
        Ok(Self { values, given: names })
    }

    /// Whether the operator wrote it.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.given.contains(&name)
    }

    /// None when it was left out and has no default, or is a word.
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        match self.value(name) {
            Checked::Number(value) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn required(&self, name: &str) -> f64 {
        self.number(name).unwrap_or_default()
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.required(name) as usize
    }

    pub(crate) fn word(&self, name: &str) -> Option<&'static str> {
        match self.value(name) {
            Checked::Word(word) => Some(word),
            _ => None,
        }
    }

    fn value(&self, name: &str) -> Checked {
        self.values
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(Checked::Absent, |(_, value)| *value)
    }
}

impl Parameter {
    fn check(&self, value: &Value) -> Result<Checked, Error> {
        self.parse(value).ok_or_else(|| Error::OutOfRange {
            name: self.name.into(),
            value: match value {
                Value::Number(number) => number.to_string(),
                Value::Text(text) => format!("'{text}'"),
                Value::Bool(flag) => flag.to_string(),
            },
            expected: self.expected,
        })
    }

    fn parse(&self, value: &Value) -> Option<Checked> {
        let within = |number: Option<f64>, min: f64, max: f64| {
            number
                .filter(|number| *number >= min && *number <= max)
                .map(Checked::Number)
        };
        let is_word = |word: &str| matches!(value, Value::Text(text) if text.eq_ignore_ascii_case(word));
        match self.kind {
            Kind::Number { min, max } => within(as_number(value), min, max),
            Kind::Integer { min, max } => within(
                as_number(value).filter(|number| number.fract() == 0.0),
                min as f64,
                max as f64,
            ),
            Kind::Duration { min_ms, max_ms } => within(as_duration_ms(value), min_ms as f64, max_ms as f64),
            Kind::Choice(words) => words
                .iter()
                .find(|word| is_word(word) || matches!(value, Value::Bool(flag) if flag.to_string() == **word))
                .map(|word| Checked::Word(word)),
            Kind::NumberOr { word, .. } | Kind::DurationOr { word, .. } if is_word(word) => Some(Checked::Word(word)),
            Kind::NumberOr { min, max, .. } => within(as_number(value), min, max),
            Kind::DurationOr { min_ms, max_ms, .. } => within(as_duration_ms(value), min_ms as f64, max_ms as f64),
        }
    }
}

fn as_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => Some(*number),
        Value::Text(text) => text.trim().parse().ok(),
        Value::Bool(_) => None,
    }
}

/// `'30 s'`, `'1.5 min'`, `'250ms'`; a bare number counts seconds.
fn as_duration_ms(value: &Value) -> Option<f64> {
    let text = match value {
        Value::Number(seconds) => return Some(seconds * 1e3),
        Value::Text(text) => text.trim(),
        Value::Bool(_) => return None,
    };
    let split = text
        .find(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E')
        .unwrap_or(text.len());
    let number: f64 = text[..split].trim().parse().ok()?;
    let unit_ms = match text[split..].trim().to_ascii_lowercase().as_str() {
        "ms" | "millis" | "millisecond" | "milliseconds" => 1.0,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1e3,
        "m" | "min" | "mins" | "minute" | "minutes" => 60e3,
        "h" | "hour" | "hours" => 3_600e3,
        "d" | "day" | "days" => 86_400e3,
        _ => return None,
    };
    Some((number * unit_ms).round())
}

/// The known name closest to a mistyped one, if any is close.
pub(crate) fn nearest(name: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
