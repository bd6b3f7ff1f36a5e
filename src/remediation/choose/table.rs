//! Past incidents and new ones as tables: CSV with a header, one incident per row.
//!
//! `incident` names the row, `label` the action that was right for it, `action` and `outcome` what was tried and what came
//! of it. Every other column is a feature. A cell that is empty, or says `nan`, `na`, `n/a`, `null` or an infinity, is a missing
//! value. A table that cannot be read is refused whole, with the line at fault.

use std::collections::{BTreeMap, BTreeSet};

use super::{Example, Model, Value};

const INCIDENT: &str = "incident";
const LABEL: &str = "label";
const ACTION: &str = "action";
const OUTCOME: &str = "outcome";
const ABSTAINED: &str = "abstained";
/// Outcomes of an action that make it the right one.
const HEALED: [&str; 7] = ["recovered", "healed", "succeeded", "success", "true", "yes", "1"];

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the table is empty: a header with the column {INCIDENT:?} is needed")]
    Empty,
    #[error("the header has no column {column:?}; it has {}", .found.join(", "))]
    Missing { column: &'static str, found: Vec<String> },
    #[error("the header has the column {0:?} twice")]
    Twice(String),
    #[error("column {0} of the header has no name")]
    Unnamed(usize),
    #[error("line {line}: {reason}")]
    Row { line: u64, reason: String },
    #[error("line {line}: an incident cannot have the label {label:?}, which is a column of the answers")]
    Label { line: u64, label: String },
}

/// What a table of past incidents holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    pub examples: Vec<Example>,
    /// Rows that teach nothing: without a label, and with no action that healed.
    pub unlabelled: usize,
}

/// One row of a table of new incidents.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub incident: String,
    pub features: BTreeMap<String, Value>,
}

/// Reads past incidents. A row without a label is worth its `action` where the `outcome` is that it healed.
pub fn past(bytes: &[u8]) -> Result<Past, TableError> {
    let table = Table::read(bytes)?;
    table.needs(LABEL)?;
    let mut past = Past {
        examples: Vec::new(),
        unlabelled: 0,
    };
    for row in &table.rows {
        let healed = || {
            let outcome = row.get(OUTCOME)?.to_lowercase();
            HEALED.contains(&outcome.as_str()).then(|| row.get(ACTION)).flatten()
        };
        let Some(label) = row.get(LABEL).or_else(healed) else {
            past.unlabelled += 1;
            continue;
        };
        if [INCIDENT, ACTION, ABSTAINED].contains(&label) {
            let (line, label) = (row.line, label.to_owned());
            return Err(TableError::Label { line, label });
        }
        past.examples.push(Example {
            incident: row.incident.clone(),
            label: label.to_owned(),
            features: row.features(),
        });
    }
    Ok(past)
}

/// Reads new incidents; `label`, `action` and `outcome` are passed over where they stand.
pub fn asked(bytes: &[u8]) -> Result<Vec<Asked>, TableError> {
    let table = Table::read(bytes)?;
    let asked = table.rows.iter().map(|row| Asked {
        incident: row.incident.clone(),
        features: row.features(),
    });
    Ok(asked.collect())
}

/// The answers, in the order of the questions: `incident`, `action`, the probability of every action the model knows under
/// its name, `abstained`.
pub fn answers(model: &Model, asked: &[Asked]) -> Vec<u8> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let actions = model.actions().iter().map(String::as_str);
    let header = [INCIDENT, ACTION].into_iter().chain(actions).chain([ABSTAINED]);
    let mut written = out.write_record(header);
    for row in asked {
        let ranking = model.choose(&row.features);
        let mut cells = vec![row.incident.clone(), ranking.best().unwrap_or_default().to_owned()];
        let probability = |action: &String| format!("{:.6}", ranking.probability(action).unwrap_or(0.0));
        cells.extend(model.actions().iter().map(probability));
        cells.push(ranking.abstained.to_string());
        written = written.and_then(|()| out.write_record(cells));
    }
    written.expect("rows of one width are written to memory");
    out.into_inner().expect("memory can be written to")
}

struct Table {
    header: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    line: u64,
    incident: String,
    cells: BTreeMap<String, String>,
}

impl Table {
    fn read(bytes: &[u8]) -> Result<Self, TableError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(bytes);
        let header = reader.byte_headers().map_err(|error| row_error(0, &error))?;
        let header: Vec<String> = header.iter().map(|name| text(name).trim().to_owned()).collect();
        let mut table = Self {
            header,
            rows: Vec::new(),
        };
        table.check()?;
        for record in reader.into_byte_records() {
            let record = record.map_err(|error| row_error(0, &error))?;
            let line = record.position().map_or(0, csv::Position::line);
            table.rows.push(table.row(line, &record)?);
        }
        Ok(table)
    }

    fn check(&self) -> Result<(), TableError> {
        if self.header.iter().all(String::is_empty) {
            return Err(TableError::Empty);
        }
        let mut seen = BTreeSet::new();
        for (at, name) in self.header.iter().enumerate() {
            // Programs that number their rows leave the name of that column, the first, empty.
            if name.is_empty() && at > 0 {
                return Err(TableError::Unnamed(at + 1));
            }
            if !seen.insert(name) {
                return Err(TableError::Twice(name.clone()));
            }
        }
        self.needs(INCIDENT)
    }

    fn needs(&self, column: &'static str) -> Result<(), TableError> {
        if self.header.iter().any(|name| name == column) {
            return Ok(());
        }
        let found = self.header.iter().take(12).map(|name| format!("{name:?}")).collect();
        Err(TableError::Missing { column, found })
    }

    fn row(&self, line: u64, record: &csv::ByteRecord) -> Result<Row, TableError> {
        let (have, want) = (record.len(), self.header.len());
        if have != want {
            let reason = format!("{have} cells, the header has {want} columns");
            return Err(TableError::Row { line, reason });
        }
        let cells = self.header.iter().zip(record).filter(|(name, _)| !name.is_empty());
        let cells: BTreeMap<String, String> = cells.map(|(name, cell)| (name.clone(), text(cell))).collect();
        let incident = cells.get(INCIDENT).map(|cell| cell.trim()).unwrap_or_default();
        if incident.is_empty() {
            let reason = format!("{INCIDENT:?} is empty");
            return Err(TableError::Row { line, reason });
        }
        Ok(Row {
            line,
            incident: incident.to_owned(),
            cells,
        })
    }
}

impl Row {
    fn get(&self, column: &str) -> Option<&str> {
        let cell = self.cells.get(column)?.trim();
        (!cell.is_empty()).then_some(cell)
    }

    fn features(&self) -> BTreeMap<String, Value> {
        let feature = |(name, cell): (&String, &String)| Some((name.clone(), Value::parse(cell)?));
        let is_feature = |(name, _): &(&String, &String)| ![INCIDENT, LABEL, ACTION, OUTCOME].contains(&name.as_str());
        self.cells.iter().filter(is_feature).filter_map(feature).collect()
    }
}

/// Text of any encoding: what is not UTF-8 is replaced, a feature may hold anything.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn row_error(line: u64, error: &csv::Error) -> TableError {
    TableError::Row {
        line: error.position().map_or(line, csv::Position::line),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_other_column_is_a_feature() {
        let past = past(b"\xef\xbb\xbfincident,label,action,outcome, cpu ,zone\r\n1,restart,x,failed,0.5,a\r\n2,,noop,Recovered,nan,\r\n3,,noop,worse,1,a\r\n")
            .unwrap();
        assert_eq!(past.unlabelled, 1);
        let labels: Vec<&str> = past.examples.iter().map(|example| example.label.as_str()).collect();
        assert_eq!(labels, ["restart", "noop"]);
        let columns: Vec<&String> = past.examples[0].features.keys().collect();
        assert_eq!(columns, ["cpu", "zone"]);
        assert!(past.examples[1].features.is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let error = |text: &str| past(text.as_bytes()).unwrap_err().to_string();
        assert!(error("").starts_with("the table is empty"));
        assert_eq!(error("incident,label,a,a\n"), "the header has the column \"a\" twice");
        assert_eq!(
            error("incident,cpu\n"),
            "the header has no column \"label\"; it has \"incident\", \"cpu\""
        );
        assert_eq!(error("incident,label,\n"), "column 3 of the header has no name");
        assert_eq!(error("incident,label\n1,a\n,b\n"), "line 3: \"incident\" is empty");
        assert!(error("incident,label\n1,abstained\n").starts_with("line 2: an incident cannot have the label"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = asked(&bytes);
            let with_header = [b"incident,label,f\n".as_slice(), &bytes].concat();
            let _ = past(&with_header);
        }
    }
}
