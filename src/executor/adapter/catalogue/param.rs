//! Parameters of catalogue commands, and the arguments that they fill. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::Command;

/// Always there: the target's name, and the action's id.
const SERVICE: &str = "service";
const ACTION_ID: &str = "action_id";
/// A person's words on why; never an argument.
const REASON: &str = "reason";
const WORD_BYTES_MAX: usize = 253;

/// What one parameter may be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Param {
    Integer {
        min: i64,
        max: i64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        default: Option<i64>,
    },
    Number {
        min: f64,
        max: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        default: Option<f64>,
    },
    /// Letters, digits, `.`, `_` and `-`, the first a letter or digit; so it is never an option or a path.
    Word {
        length_max: usize,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        default: Option<String>,
    },
    /// One of the texts that are listed.
    Choice {
        one_of: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        default: Option<String>,
    },
}

impl Param {
    pub fn check(&self) -> Result<(), String> {
        let bounds = match self {
            Self::Integer { min, max, .. } => min <= max,
            Self::Number { min, max, .. } => min <= max && min.is_finite() && max.is_finite(),
            Self::Word { length_max, .. } => (1..=WORD_BYTES_MAX).contains(length_max),
            Self::Choice { one_of, .. } => {
                !one_of.is_empty() && one_of.iter().all(|text| !text.is_empty() && !text.contains('\0'))
            }
        };
        if !bounds {
            return Err(format!(
                "its bounds admit nothing; min is at most max, length_max 1 to {WORD_BYTES_MAX}, one_of lists texts"
            ));
        }
        match self.default() {
            Some(default) => self
                .text(&default)
                .map(|_| ())
                .map_err(|reason| format!("default: {reason}")),
            None => Ok(()),
        }
    }

    fn default(&self) -> Option<Value> {
        match self {
            Self::Integer { default, .. } => default.map(Value::from),
            Self::Number { default, .. } => default.map(Value::from),
            Self::Word { default, .. } | Self::Choice { default, .. } => default.clone().map(Value::from),
        }
    }

    /// The value as an argument has it.
    fn text(&self, value: &Value) -> Result<String, String> {
        let admitted = match self {
            Self::Integer { min, max, .. } => {
                let number = value.as_i64().filter(|number| (min..=max).contains(&number));
                number.map(|number| number.to_string())
            }
            Self::Number { min, max, .. } => {
                let number = value.as_f64().filter(|number| (min..=max).contains(&number));
                number.map(|number| number.to_string())
            }
            Self::Word { length_max, .. } => {
                let word = value.as_str().filter(|text| text.len() <= *length_max && is_word(text));
                word.map(str::to_owned)
            }
            Self::Choice { one_of, .. } => value
                .as_str()
                .filter(|text| one_of.iter().any(|one| one == text))
                .map(str::to_owned),
        };
        admitted.ok_or_else(|| format!("{value} is not {self}"))
    }
}

impl std::fmt::Display for Param {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer { min, max, .. } => write!(f, "a whole number from {min} to {max}"),
            Self::Number { min, max, .. } => write!(f, "a number from {min} to {max}"),
            Self::Word { length_max, .. } => write!(
                f,
                "a word of at most {length_max} letters, digits, `.`, `_` and `-` that begins with a letter or digit"
            ),
            Self::Choice { one_of, .. } => write!(f, "one of {one_of:?}"),
        }
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// The arguments with their holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Vec<Part>>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Hole(String),
}

impl Template {
    /// Every hole is a parameter's, and every parameter has a hole.
    pub fn read(args: &[String], params: &BTreeMap<String, Param>) -> Result<Self, String> {
        let arguments: Vec<Vec<Part>> = args.iter().map(|text| parts(text)).collect::<Result<_, _>>()?;
        let holes = || {
            arguments.iter().flatten().filter_map(|part| match part {
                Part::Hole(name) => Some(name),
                Part::Text(_) => None,
            })
        };
        let given = [SERVICE, ACTION_ID, REASON];
        if let Some(name) = params.keys().find(|name| given.contains(&name.as_str())) {
            return Err(format!("params.{name}: the name is taken"));
        }
        if let Some(name) =
            holes().find(|name| ![SERVICE, ACTION_ID].contains(&name.as_str()) && !params.contains_key(*name))
        {
            return Err(format!("args: {{{name}}} is no parameter; declare params.{name}"));
        }
        if let Some(name) = params.keys().find(|name| !holes().any(|hole| hole == *name)) {
            return Err(format!("params.{name}: no argument has {{{name}}}"));
        }
        Ok(Self(arguments))
    }

    /// The arguments for a command, or what is wrong with its parameters.
    pub fn fill(&self, params: &BTreeMap<String, Param>, command: &Command) -> Result<Vec<String>, String> {
        let given = &command.action.action.params;
        if let Some(name) = given.keys().find(|name| *name != REASON && !params.contains_key(*name)) {
            return Err(format!("parameter {name:?} is none of its own"));
        }
        let value = |name: &str| match (name, params.get(name)) {
            (SERVICE, _) if !is_word(command.service()) || command.service().len() > WORD_BYTES_MAX => Err(format!(
                "target {:?} is no word that may be an argument",
                command.service()
            )),
            (SERVICE, _) => Ok(command.service().to_owned()),
            (ACTION_ID, _) => Ok(command.id().to_string()),
            (_, Some(param)) => match given.get(name).cloned().or_else(|| param.default()) {
                Some(value) => param
                    .text(&value)
                    .map_err(|reason| format!("parameter {name:?}: {reason}")),
                None => Err(format!("parameter {name:?} is missing; it is {param}")),
            },
            (_, None) => Err(format!("{{{name}}} is no parameter")),
        };
        let argument = |parts: &Vec<Part>| {
            let texts = parts.iter().map(|part| match part {
                Part::Text(text) => Ok(text.clone()),
                Part::Hole(name) => value(name),
            });
            texts.collect::<Result<String, String>>()
        };
        self.0.iter().map(argument).collect()
    }
}

fn parts(argument: &str) -> Result<Vec<Part>, String> {
    let stray = || format!("args: {argument:?} has a brace that is no {{PARAMETER}}");
    if argument.contains('\0') {
        return Err("args: an argument has no zero byte".into());
    }
    let mut parts = Vec::new();
    let mut rest = argument;
    while let Some((text, behind)) = rest.split_once('{') {
        let (name, after) = behind.split_once('}').ok_or_else(stray)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if text.contains('}') || name.is_empty() || !name.chars().all(plain) {
            return Err(stray());
        }
        parts.extend([Part::Text(text.to_owned()), Part::Hole(name.to_owned())]);
        rest = after;
    }
    if rest.contains('}') {
        return Err(stray());
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
}

#[cfg(test)]
mod tests;
