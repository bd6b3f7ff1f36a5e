//! Records of the past that a fleet decided on, from its topics or from a file that they were saved to.
//!
//! A file has one JSON object per line: `topic`, `timestamp_ms` (the broker's), `key`, `headers` by name, `value` (the
//! data; null withdraws a control record). Topics are named with or without the fleet's prefix.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use protocol::{
    Batch, CloudEvent, Record, TimestampKind, Topics, cloudevent,
    message::{self, Decision, VerdictRecord},
};
use remediation::backtest::{Past, Recorded};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::control::Fleet;
use crate::{error::Refused, topic_reader};

/// One record as a line.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    topic: String,
    timestamp_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    value: Option<Value>,
}

/// What was recorded.
#[derive(Default)]
pub struct Recording {
    lines: Vec<Line>,
    /// What reaches a fleet, in the order of the broker's time.
    pub past: Vec<Recorded>,
    pub decisions: Vec<Decision>,
    pub verdicts: Vec<VerdictRecord>,
    /// Records that say nothing to a fleet, or cannot be read.
    pub unusable: usize,
}

impl Recording {
    /// Reads a file, or without one the fleet's topics.
    pub fn open(fleet: &Fleet, input: Option<&Path>) -> anyhow::Result<Self> {
        match input {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
                Self::parse(&text).map_err(|error| Refused::new(format!("{}: {error}", path.display())).into())
            }
            None => {
                let (broker, topics, _) = fleet.open()?;
                let mut lines = Vec::new();
                for topic in relevant(&topics) {
                    topic_reader::read(&*broker, &topic, |record| {
                        lines.push(Line::of(topics.prefix(), &record))
                    })?;
                }
                Ok(Self::of(lines))
            }
        }
    }

    /// Reads lines; the first that is no record is named.
    fn parse(text: &str) -> Result<Self, String> {
        let line =
            |(at, text): (usize, &str)| serde_json::from_str(text).map_err(|error| format!("line {}: {error}", at + 1));
        let lines = text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty());
        Ok(Self::of(lines.map(line).collect::<Result<_, String>>()?))
    }

    fn of(mut lines: Vec<Line>) -> Self {
        // Topics are read one after another; a fleet heard them side by side.
        lines.sort_by_key(|line| line.timestamp_ms);
        let mut recording = Self::default();
        for line in &lines {
            if recording.note(line).is_none() {
                recording.unusable += 1;
            }
        }
        recording.lines = lines;
        recording
    }

    /// The file that holds this recording.
    pub fn text(&self) -> String {
        let line = |line: &Line| serde_json::to_string(line).expect("a line has string keys") + "\n";
        self.lines.iter().map(line).collect()
    }

    /// Actions with a clear verdict, and whether they healed.
    pub fn healed(&self) -> Vec<(String, bool)> {
        use message::Verdict;
        let kinds: BTreeMap<_, _> = self
            .decisions
            .iter()
            .filter_map(|decision| Some((decision.action_id?, &decision.action.as_ref()?.kind)))
            .collect();
        let judge = |record: &VerdictRecord| {
            let healed = match record.verdict {
                Verdict::Recovered => true,
                Verdict::Unchanged | Verdict::Worse => false,
                _ => return None,
            };
            Some(((*kinds.get(&record.action_id)?).clone(), healed))
        };
        self.verdicts.iter().filter_map(judge).collect()
    }

    fn note(&mut self, line: &Line) -> Option<()> {
        let broker_ms = line.timestamp_ms;
        let mut past = |message: Past| self.past.push(Recorded { broker_ms, message });
        let bytes = line.value.as_ref().map(Value::to_string);
        if line.topic.ends_with("control") {
            let data = bytes
                .map(|bytes| message::read("control", bytes.as_bytes()))
                .transpose()
                .ok()?;
            let scope = line.key.clone()?;
            past(Past::Control { scope, data });
            return Some(());
        }
        let bytes = bytes?;
        let bytes = bytes.as_bytes();
        match line.headers.get("ce_type")?.as_str() {
            cloudevent::ANOMALY => {
                let data = message::read("anomaly", bytes).ok()?;
                let event = line.event()?;
                past(Past::Anomaly { event, data });
            }
            cloudevent::PROGRESS => past(Past::Progress(message::read("progress", bytes).ok()?)),
            cloudevent::APPROVAL_GRANTED | cloudevent::APPROVAL_DENIED => {
                let data = message::read("approval", bytes).ok()?;
                let event = line.event()?;
                past(Past::Approval { event, data });
            }
            cloudevent::VERDICT => self.verdicts.push(message::read("verdict", bytes).ok()?),
            cloudevent::DECISION => self.decisions.push(message::read("decision", bytes).ok()?),
            kind if kind.starts_with(cloudevent::OUTCOME_PREFIX) => {
                let data = message::read("outcome", bytes).ok()?;
                let event = line.event()?;
                past(Past::Outcome { event, data });
            }
            _ => return None,
        }
        Some(())
    }
}

fn relevant(topics: &Topics) -> [String; 5] {
    [
        topics.anomalies(),
        topics.control(),
        topics.outcomes(),
        topics.approvals(),
        topics.decisions(),
    ]
}

impl Line {
    fn of(prefix: &str, record: &Record<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let topic = &*record.partition.topic;
        Self {
            topic: topic.strip_prefix(prefix).unwrap_or(topic).to_owned(),
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(text),
            headers: record
                .headers()
                .map(|(name, value)| (name.to_owned(), text(value)))
                .collect(),
            value: record.value.and_then(|value| serde_json::from_slice(value).ok()),
        }
    }

    fn event(&self) -> Option<CloudEvent> {
        let mut batch = Batch::default();
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        let partition = batch.partition(&self.topic, 0);
        batch.push(
            partition,
            0,
            (self.timestamp_ms, TimestampKind::default()),
            None,
            None,
            headers,
        );
        let event = batch.iter().next().map(|record| CloudEvent::read(&record));
        event?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"topic":"anomalies","timestamp_ms":2000,"headers":{"ce_type":"dev.homeostat.progress.v1"},"value":{"watermark_ms":1000,"clock":"1970-01-01T00:00:02Z","partition":0}}
{"topic":"control","timestamp_ms":1000,"key":"kill_switch","value":{"control":"kill_switch","engaged":true,"by":"someone"}}

{"topic":"anomalies","timestamp_ms":3000,"headers":{"ce_type":"dev.homeostat.unheard.v1"},"value":{}}
"#;

    #[test]
    fn records_are_heard_in_the_order_of_the_brokers_time() {
        let recording = Recording::parse(LINES).unwrap();
        assert_eq!(recording.unusable, 1);
        assert!(matches!(&recording.past[0].message, Past::Control { scope, .. } if scope == "kill_switch"));
        assert!(matches!(&recording.past[1].message, Past::Progress(progress) if progress.clock == 2_000));
        let again = Recording::parse(&recording.text()).unwrap();
        assert_eq!(again.past, recording.past);
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let error = Recording::parse("{\"topic\":\"anomalies\"}\n").err().unwrap();
        assert!(error.starts_with("line 1: missing field `timestamp_ms`"), "{error}");
    }
}
