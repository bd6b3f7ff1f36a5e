//! From columns of any kind to numbers: what a tree can split on, and how each number is called in an explanation.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Categories a text column may have to be taken as one.
const CATEGORIES_MAX: usize = 24;
/// Words, and pairs of neighbouring words, kept of one text column.
const WORDS_MAX: usize = 256;
/// Words read of one text.
const WORDS_READ_MAX: usize = 16_384;
/// Words of a phrase that is short: an event, not a sentence.
const PHRASE_MAX: usize = 5;

/// How tables write that there is no value.
const MISSING: [&str; 5] = ["nan", "na", "n/a", "null", "<na>"];
const NUMBER_MAX: f64 = 1e150;

/// A value of a feature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Number(f64),
    Text(String),
}

impl Value {
    /// As written in a table: a number where it reads as one; nothing where it is empty.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() || MISSING.iter().any(|missing| text.eq_ignore_ascii_case(missing)) {
            return None;
        }
        Some(match text.parse::<f64>() {
            // Beyond this, the middle between two numbers may be none.
            Ok(number) if number.is_finite() => Self::Number(number.clamp(-NUMBER_MAX, NUMBER_MAX)),
            Ok(_) => return None,
            Err(_) => Self::Text(text.to_owned()),
        })
    }

    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// How one column becomes numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// The number; the median where there is none, and whether there was none.
    Number { median: f64 },
    /// One flag per category.
    Category { values: Vec<String> },
    /// How often each word, or pair of words, occurs.
    Words { words: Vec<String> },
}

/// Reads features as the training table had them. Columns it never saw are passed over, missing ones are missing values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Encoder {
    columns: Vec<(String, Kind)>,
}

impl Encoder {
    /// Learns the columns of a table. `classes` are the rows' labels, by which telling words are found.
    pub fn fit(rows: &[&BTreeMap<String, Value>], classes: &[usize]) -> Self {
        let names: BTreeSet<&String> = rows.iter().flat_map(|row| row.keys()).collect();
        let columns = names
            .into_iter()
            .filter_map(|name| Some((name.clone(), Kind::fit(name, rows, classes)?)))
            .collect();
        Self { columns }
    }

    /// Numbers per row.
    pub fn width(&self) -> usize {
        self.columns.iter().map(|(_, kind)| kind.width()).sum()
    }

    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    pub fn encode(&self, row: &BTreeMap<String, Value>) -> Vec<f64> {
        let mut out = Vec::with_capacity(self.width());
        let names = names(row);
        for (name, kind) in &self.columns {
            kind.encode(row.get(name), &names, &mut out);
        }
        out
    }

    /// A condition on one of the numbers, in words.
    pub fn condition(&self, feature: usize, at_most: bool, threshold: f64) -> String {
        let mut first = 0;
        for (name, kind) in &self.columns {
            if feature < first + kind.width() {
                return kind.condition(name, feature - first, at_most, threshold);
            }
            first += kind.width();
        }
        format!("feature {feature}")
    }
}

impl Kind {
    fn fit(name: &str, rows: &[&BTreeMap<String, Value>], classes: &[usize]) -> Option<Self> {
        let values: Vec<&Value> = rows.iter().filter_map(|row| row.get(name)).collect();
        let numbers: Vec<f64> = values
            .iter()
            .filter_map(|value| match value {
                Value::Number(number) => Some(*number),
                Value::Text(_) => None,
            })
            .collect();
        // A stray text among numbers is a missing number.
        if numbers.len() * 10 >= values.len() * 9 {
            return median(numbers).map(|median| Self::Number { median });
        }
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for value in &values {
            *counts.entry(value.text()).or_default() += 1;
        }
        if counts.len() <= CATEGORIES_MAX && counts.keys().all(|text| text.split_whitespace().count() <= 3) {
            let values = counts.into_keys().collect();
            return Some(Self::Category { values });
        }
        let words = telling_words(name, rows, classes);
        (!words.is_empty()).then_some(Self::Words { words })
    }

    fn width(&self) -> usize {
        match self {
            Self::Number { .. } => 2,
            Self::Category { values } => values.len(),
            Self::Words { words } => words.len(),
        }
    }

    fn encode(&self, value: Option<&Value>, names: &Names, out: &mut Vec<f64>) {
        match self {
            Self::Number { median } => {
                let number = match value {
                    Some(Value::Number(number)) => Some(*number),
                    _ => None,
                };
                out.push(number.unwrap_or(*median));
                out.push(f64::from(number.is_none()));
            }
            Self::Category { values } => {
                let text = value.map(Value::text);
                out.extend(values.iter().map(|value| f64::from(Some(value) == text.as_ref())));
            }
            Self::Words { words: known } => {
                let mut counts: BTreeMap<String, u32> = BTreeMap::new();
                for word in value.map(|value| words(&value.text(), names)).unwrap_or_default() {
                    *counts.entry(word).or_default() += 1;
                }
                out.extend(
                    known
                        .iter()
                        .map(|word| f64::from(counts.get(word).copied().unwrap_or(0))),
                );
            }
        }
    }

    fn condition(&self, name: &str, at: usize, at_most: bool, threshold: f64) -> String {
        match self {
            Self::Number { .. } if at == 0 => {
                let sign = if at_most { "<=" } else { ">" };
                format!("{name} {sign} {threshold:.4}")
            }
            Self::Number { .. } => format!("{name} is {}", if at_most { "given" } else { "missing" }),
            Self::Category { values } => {
                let sign = if at_most { "!=" } else { "=" };
                format!("{name} {sign} {:?}", values[at])
            }
            Self::Words { words } => {
                let count = threshold.floor() as i64;
                match (at_most, count) {
                    (true, 0) => format!("{name} does not say {:?}", words[at]),
                    (false, 0) => format!("{name} says {:?}", words[at]),
                    (true, _) => format!("{name} says {:?} at most {count} times", words[at]),
                    (false, _) => format!("{name} says {:?} more than {count} times", words[at]),
                }
            }
        }
    }
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

/// Values that a row gives a name to: `cart-0` in a column `instance` is `@instance` wherever the row's texts speak of it,
/// so that what is learned at one instance holds at all.
type Names = BTreeMap<String, String>;

fn names(row: &BTreeMap<String, Value>) -> Names {
    let named = |(name, value): (&String, &Value)| match value {
        Value::Text(text) if text.len() > 1 && text.split(is_gap).count() == 1 => {
            Some((text.to_lowercase(), format!("@{name}")))
        }
        _ => None,
    };
    row.iter().filter_map(named).collect()
}

fn is_gap(c: char) -> bool {
    !(c.is_alphanumeric() || "_-./".contains(c))
}

/// Words of a text in lower case, pairs of words that stand side by side in one phrase (any two of a short one), and short
/// phrases whole. A phrase ends at a bracket or semicolon; at a comma only in prose, for in a list of lists it parts words.
fn words(text: &str, names: &Names) -> Vec<String> {
    let nested = text.contains(['[', '{']);
    let ends = |c: char| ";|\n[]{}()".contains(c) || !nested && ",\"".contains(c);
    let mut out = Vec::new();
    for phrase in text.split(ends) {
        let parts = phrase
            .split(is_gap)
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase);
        let parts: Vec<String> = parts.map(|word| names.get(&word).cloned().unwrap_or(word)).collect();
        let reach = if parts.len() <= PHRASE_MAX { PHRASE_MAX } else { 1 };
        for (at, first) in parts.iter().enumerate() {
            let seconds = parts[at + 1..].iter().take(reach);
            out.extend(seconds.map(|second| format!("{first} {second}")));
        }
        if (3..=PHRASE_MAX).contains(&parts.len()) {
            out.push(parts.join(" "));
        }
        out.extend(parts);
        if out.len() >= WORDS_READ_MAX {
            break;
        }
    }
    out
}

/// The words of a column that tell its classes apart best, by chi-squared of presence, each in two rows at least.
fn telling_words(name: &str, rows: &[&BTreeMap<String, Value>], classes: &[usize]) -> Vec<String> {
    let class_count = classes.iter().max().map_or(0, |max| max + 1);
    let mut totals = vec![0usize; class_count];
    let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (row, class) in rows.iter().zip(classes) {
        totals[*class] += 1;
        let text = row.get(name).map(Value::text).unwrap_or_default();
        for word in words(&text, &names(row)).into_iter().collect::<BTreeSet<_>>() {
            seen.entry(word).or_insert_with(|| vec![0; class_count])[*class] += 1;
        }
    }
    let rows = rows.len() as f64;
    let mut scored: Vec<(f64, String)> = seen
        .into_iter()
        .filter(|(_, counts)| counts.iter().sum::<usize>() >= 2)
        .map(|(word, counts)| (chi_squared(&counts, &totals, rows), word))
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    scored.truncate(WORDS_MAX);
    scored.into_iter().map(|(_, word)| word).collect()
}

fn chi_squared(counts: &[usize], totals: &[usize], rows: f64) -> f64 {
    let with = counts.iter().sum::<usize>() as f64;
    let cells = counts.iter().zip(totals).map(|(count, total)| {
        let share = *total as f64 / rows;
        let (expected, expected_not) = (with * share, (rows - with) * share);
        let (count, not) = (*count as f64, (*total - *count) as f64);
        let part = |seen: f64, expected: f64| {
            if expected > 0.0 {
                (seen - expected).powi(2) / expected
            } else {
                0.0
            }
        };
        part(count, expected) + part(not, expected_not)
    });
    cells.sum()
}
