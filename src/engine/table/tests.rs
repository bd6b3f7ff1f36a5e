use arrow::datatypes::{Field, Schema};
use protocol::{Batch, TimestampKind};

use super::*;
use crate::spec::{Format, StartupMode};

/// `host STRING`, `team STRING` by `host`; versions hold from their records' times on.
fn spec() -> Arc<TableSpec> {
    let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let fields = [("host", text.clone()), ("team", text), ("", time)];
    let fields = fields.map(|(name, data_type)| Field::new(name, data_type, true));
    Arc::new(TableSpec {
        name: "owners".into(),
        source: SourceSpec {
            name: "owners".into(),
            fingerprint: 1,
            topic: "owners".into(),
            format: Format::Json,
            start: StartupMode::Earliest,
            schema: Arc::new(Schema::new(fields.to_vec())),
            metadata: Vec::new(),
            paths: vec![None; 3],
            event_time: 2,
            delay_ms: 0,
            idle_timeout_ms: None,
            max_future_skew_ms: i64::MAX,
            max_drift_ms: i64::MAX,
        },
        key: vec![0],
    })
}

/// Values are `host team`; `!` is no row.
#[derive(Default)]
struct Words {
    rows: Vec<(String, String, i64)>,
    offsets: Vec<i64>,
}

impl Decode for Words {
    fn push(&mut self, record: &Record<'_>, _receive_ms: i64) -> Result<usize, String> {
        let text = String::from_utf8_lossy(record.value.unwrap_or_default()).into_owned();
        let (host, team) = text.split_once(' ').ok_or("no two words")?;
        self.rows.push((host.to_owned(), team.to_owned(), record.timestamp_ms));
        self.offsets.push(record.offset);
        Ok(1)
    }

    fn finish(&mut self) -> Result<Rows, Error> {
        let rows = std::mem::take(&mut self.rows);
        let text = |values: Vec<Option<&str>>| -> ArrayRef {
            Arc::new(values.into_iter().collect::<DictionaryArray<Int32Type>>())
        };
        let hosts = text(
            rows.iter()
                .map(|row| (row.0 != "?").then_some(row.0.as_str()))
                .collect(),
        );
        let teams = text(rows.iter().map(|row| Some(row.1.as_str())).collect());
        let times = arrow::array::TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.2));
        let columns: Vec<ArrayRef> = vec![hosts, teams, Arc::new(times.with_timezone("UTC"))];
        Ok(Rows {
            batch: RecordBatch::try_new(Arc::clone(&spec().source.schema), columns)?,
            offsets: std::mem::take(&mut self.offsets),
            record_ms: rows.iter().map(|row| row.2).collect(),
        })
    }
}

struct Owners {
    table: Table,
    refused: Vec<String>,
    offset: i64,
}

impl Owners {
    fn new() -> Self {
        let spec = spec();
        Self {
            table: Table {
                decoder: Box::new(Words::default()),
                versions: Arc::new(Mutex::new(Versions::new(&spec))),
                spec,
                refused: 0,
                refusal: None,
            },
            refused: Vec::new(),
            offset: 0,
        }
    }

    fn record(&mut self, ms: i64, key: &str, value: Option<&str>) {
        let mut batch = Batch::default();
        let handle = batch.partition("owners", 0);
        let time = (ms, TimestampKind::Create);
        batch.push(
            handle,
            self.offset,
            time,
            Some(key.as_bytes()),
            value.map(str::as_bytes),
            [],
        );
        self.offset += 1;
        for record in batch.iter() {
            self.refused.extend(self.table.read(&record).err());
        }
    }

    /// The teams of `host` at these times, through the function that queries call.
    fn teams(&self, host: Option<&str>, at_ms: &[i64]) -> Vec<Option<String>> {
        let hosts: DictionaryArray<Int32Type> = at_ms.iter().map(|_| host).collect();
        let versions = lock(&self.table.versions);
        let times = Int64Array::from(at_ms.to_vec());
        let rows = versions.at(&[Arc::new(hosts)], &times).unwrap();
        let found = gather(&rows, 1, self.table.spec.source.schema.field(1).data_type()).unwrap();
        let found = cast(&found, &DataType::Utf8).unwrap();
        let found = found.as_string::<i32>();
        found.iter().map(|team| team.map(str::to_owned)).collect()
    }
}

fn some(teams: &[&str]) -> Vec<Option<String>> {
    teams
        .iter()
        .map(|team| (!team.is_empty()).then(|| (*team).to_owned()))
        .collect()
}

#[test]
fn a_version_holds_from_its_time_until_the_next_ones_or_a_tombstones() {
    let mut owners = Owners::new();
    owners.record(100, "1", Some("a red"));
    owners.record(200, "1", Some("a blue"));
    owners.record(300, "1", None);
    owners.record(400, "1", Some("a green"));
    let times = [50, 100, 199, 200, 299, 300, 399, 400, 1_000];
    // The first version that is known holds before its time, too.
    let expected = ["red", "red", "red", "blue", "blue", "", "", "green", "green"];
    assert_eq!(owners.teams(Some("a"), &times), some(&expected));
    assert_eq!(owners.teams(Some("b"), &times[..2]), some(&["", ""]));
    assert_eq!(owners.teams(None, &times[..2]), some(&["", ""]), "NULL equals nothing");
}

#[test]
fn it_does_not_matter_in_which_order_versions_of_one_time_axis_are_read() {
    let versions = [(100, "a red"), (200, "a blue"), (300, "a green")];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut owners = Owners::new();
        for at in order {
            owners.record(versions[at].0, "1", Some(versions[at].1));
        }
        assert_eq!(
            owners.teams(Some("a"), &[150, 250, 350]),
            some(&["red", "blue", "green"]),
            "{order:?}"
        );
    }
}

#[test]
fn a_record_whose_key_column_changes_leaves_its_row() {
    let mut owners = Owners::new();
    owners.record(100, "1", Some("a red"));
    owners.record(200, "1", Some("b red"));
    assert_eq!(owners.teams(Some("a"), &[150, 250]), some(&["red", ""]));
    assert_eq!(owners.teams(Some("b"), &[250]), some(&["red"]));
}

#[test]
fn what_is_no_row_is_refused_and_the_version_before_it_holds() {
    let mut owners = Owners::new();
    owners.record(100, "1", Some("a red"));
    owners.record(200, "1", Some("!"));
    owners.record(300, "1", Some("? blue"));
    owners.record(400, "2", None);
    assert_eq!(owners.refused, ["no two words", "its key is NULL"]);
    assert_eq!(owners.teams(Some("a"), &[500]), some(&["red"]));
}

#[test]
fn of_one_key_a_bounded_number_of_versions_is_kept_and_of_what_ended_none() {
    let mut owners = Owners::new();
    for ms in 0..1_000 {
        owners.record(ms, "1", Some(&format!("a team{ms}")));
    }
    assert_eq!(owners.teams(Some("a"), &[999, 0]), some(&["team999", "team936"]));
    assert_eq!(
        lock(&owners.table.versions).rows.values().map(Vec::len).sum::<usize>(),
        VERSIONS_MAX
    );
    for ms in 1_000..1_100 {
        owners.record(ms, "1", Some("a red"));
        owners.record(ms, "1", None);
    }
    assert!(lock(&owners.table.versions).rows.is_empty());
}
