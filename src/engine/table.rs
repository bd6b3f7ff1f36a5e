//! Tables in compacted topics, beside the rows of a source: `JOIN owners FOR SYSTEM_TIME AS OF ts`.
//!
//! A record is a version of its key's row: it holds from its own time on, until the next one's, and a tombstone ends it. What is joined
//! is the version at the row's event time, so that it does not matter when either is read, once both are: a table is read to its
//! end before the first row. The first version that is known holds before its time, too, for compaction forgets the
//! versions before it. A version that is read after rows of its time were folded changes only rows that are folded later.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Int32Array, Int64Array, RecordBatch, new_empty_array,
        new_null_array,
    },
    compute::{cast, take},
    datatypes::{DataType, Int32Type, Int64Type, TimeUnit},
    error::ArrowError,
    row::{RowConverter, SortField},
};
use datafusion::{
    common::{
        Result as PlanResult, ScalarValue, exec_err, plan_err,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
    physical_expr::{PhysicalExpr, ScalarFunctionExpr},
};
use protocol::Record;

use crate::{
    aggregate::{Decode, Decoders, Rows},
    error::Error,
    spec::{PaneSetSpec, Pipeline, SourceSpec},
};

/// A table with more keys is refused its further ones: it is held in memory by every instance.
const KEYS_MAX: usize = 1_000_000;
/// Of one key, the latest ones are kept.
const VERSIONS_MAX: usize = 64;

/// A declared table.
#[derive(Clone, Debug)]
pub struct TableSpec {
    pub name: String,
    /// Topic and format. The event time is since when a version holds; where that is NULL, the record's timestamp.
    pub source: SourceSpec,
    /// Columns that name a row: indices into the source's schema.
    pub key: Vec<usize>,
}

/// A column of a table, as a function of its key: of a table in a file here, of one in a topic with its time, too. Functions of equal
/// names are equal, for the name has the fingerprint of what they say in it.
#[derive(Debug)]
pub struct Lookup<C> {
    name: String,
    signature: Signature,
    column: C,
}

/// What a [`Lookup`] finds.
pub trait Column: std::fmt::Debug + Send + Sync + 'static {
    fn data_type(&self) -> DataType;
    /// Types of the key's columns.
    fn key_types(&self) -> Vec<DataType>;
    /// The values for these arguments, each of so many rows.
    fn find(&self, args: Vec<ArrayRef>) -> PlanResult<ArrayRef>;
}

impl<C: Column> Lookup<C> {
    pub fn new(name: String, column: C) -> Self {
        Self {
            name,
            signature: Signature::user_defined(Volatility::Immutable),
            column,
        }
    }
}

impl<C> PartialEq for Lookup<C> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl<C> Eq for Lookup<C> {}

impl<C> std::hash::Hash for Lookup<C> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl<C: Column> ScalarUDFImpl for Lookup<C> {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> PlanResult<DataType> {
        Ok(self.column.data_type())
    }

    /// What a table is asked for has the kind of its key.
    fn coerce_types(&self, arg_types: &[DataType]) -> PlanResult<Vec<DataType>> {
        for (given, key) in arg_types.iter().zip(self.column.key_types()) {
            if kind(given) != kind(&key) && !given.is_null() {
                return plan_err!("a {} is compared with a {} of the table", kind(given), kind(&key));
            }
        }
        Ok(arg_types.to_vec())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        let arrays = args.args.iter().map(|arg| arg.to_array(args.number_rows));
        let found = self.column.find(arrays.collect::<PlanResult<Vec<ArrayRef>>>()?)?;
        Ok(ColumnarValue::Array(found))
    }
}

/// A column of a table in a topic; without one, whether there is a row: true or NULL.
#[derive(Debug)]
pub struct TopicColumn {
    spec: Arc<TableSpec>,
    column: Option<usize>,
    /// Where its rows are; only a stage has them.
    versions: Option<Arc<Mutex<Versions>>>,
}

impl TopicColumn {
    pub fn new(spec: Arc<TableSpec>, column: Option<usize>) -> Self {
        Self {
            spec,
            column,
            versions: None,
        }
    }
}

impl Column for TopicColumn {
    fn data_type(&self) -> DataType {
        self.column.map_or(DataType::Boolean, |column| {
            self.spec.source.schema.field(column).data_type().clone()
        })
    }

    fn key_types(&self) -> Vec<DataType> {
        let schema = &self.spec.source.schema;
        self.spec
            .key
            .iter()
            .map(|at| schema.field(*at).data_type().clone())
            .collect()
    }

    fn find(&self, mut args: Vec<ArrayRef>) -> PlanResult<ArrayRef> {
        // A plan is tried on no rows before there is a stage.
        if args.iter().all(|arg| arg.is_empty()) {
            return Ok(new_empty_array(&self.data_type()));
        }
        let Some(versions) = &self.versions else {
            return exec_err!("table {} is not read here", self.spec.name);
        };
        let time = args.pop().map(|time| milliseconds(&time)).transpose()?;
        let Some(time) = time else {
            return exec_err!("table {} is joined as of no time", self.spec.name);
        };
        let versions = lock(versions);
        let rows = versions.at(&args, &time)?;
        Ok(match self.column {
            None => Arc::new(rows.iter().map(|row| row.map(|_| true)).collect::<BooleanArray>()),
            Some(column) => gather(&rows, column, self.spec.source.schema.field(column).data_type())?,
        })
    }
}

fn kind(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Dictionary(..) | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string",
        DataType::Timestamp(..) => "timestamp",
        DataType::Boolean => "boolean",
        other if other.is_numeric() => "number",
        _ => "value of another type",
    }
}

/// What is known of every key; keys are bytes, as `types`, and NULL equals nothing.
pub fn each<T: Copy>(
    key: &[ArrayRef],
    types: &[DataType],
    known: &impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<Option<T>>, ArrowError> {
    // Texts repeat: each is looked for once.
    if let [column] = key
        && let Some(dictionary) = column.as_any_dictionary_opt()
    {
        if dictionary.values().is_empty() {
            return Ok(vec![None; column.len()]);
        }
        let found = each(&[Arc::clone(dictionary.values())], types, known)?;
        let codes = dictionary.normalized_keys().into_iter().enumerate();
        return Ok(codes
            .map(|(row, code)| found[code].filter(|_| column.is_valid(row)))
            .collect());
    }
    let keys = keys(key, types)?.into_iter();
    Ok(keys.map(|key| known(&key?)).collect())
}

/// The bytes of every key, as `types`; NULL equals nothing.
pub fn keys(columns: &[ArrayRef], types: &[DataType]) -> Result<Vec<Option<Box<[u8]>>>, ArrowError> {
    let columns = columns.iter().zip(types);
    let columns = columns.map(|(column, data_type)| cast(column, data_type));
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    let fields = types.iter().map(|data_type| SortField::new(data_type.clone()));
    let rows = RowConverter::new(fields.collect())?.convert_columns(&columns)?;
    let known = |row: usize| columns.iter().all(|column| column.is_valid(row));
    let keys = rows.iter().enumerate();
    Ok(keys.map(|(row, key)| known(row).then(|| key.as_ref().into())).collect())
}

/// A row, as its record had it.
type Row = Arc<[ScalarValue]>;
/// A key, of a row or of a record, as bytes.
type Key = Box<[u8]>;

#[derive(Debug)]
struct Version {
    from_ms: i64,
    /// `None`: there is none from then on.
    row: Option<Row>,
}

/// The rows of a table through time.
#[derive(Debug)]
struct Versions {
    /// Of the key's columns; texts are plain.
    types: Vec<DataType>,
    /// By key, ascending in time.
    rows: HashMap<Key, Vec<Version>>,
    /// By partition and key of the record, the key of the row that it last had: a tombstone has no value to tell.
    records: HashMap<(i32, Key), Key>,
}

impl Versions {
    fn new(spec: &TableSpec) -> Self {
        let types = spec.key.iter().map(|at| spec.source.schema.field(*at).data_type());
        Self {
            types: types.map(plain).collect(),
            rows: HashMap::new(),
            records: HashMap::new(),
        }
    }

    /// The row of each key at its time.
    fn at(&self, key: &[ArrayRef], time_ms: &Int64Array) -> Result<Vec<Option<&Row>>, ArrowError> {
        let chains = each(key, &self.types, &|key| self.rows.get(key))?;
        let versions = chains.into_iter().zip(time_ms.iter());
        let rows = versions.map(|(versions, ms)| {
            let (versions, ms) = (versions?, ms?);
            let after = versions.partition_point(|version| version.from_ms <= ms);
            versions.get(after.saturating_sub(1))?.row.as_ref()
        });
        Ok(rows.collect())
    }

    fn put(&mut self, key: &[u8], from_ms: i64, row: Option<Row>) -> Result<(), String> {
        let count = self.rows.len();
        let versions = match self.rows.entry(key.into()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if row.is_none() => return Ok(()),
            Entry::Vacant(_) if count >= KEYS_MAX => return Err(format!("the table has {KEYS_MAX} keys already")),
            Entry::Vacant(free) => free.insert(Vec::new()),
        };
        let at = versions.partition_point(|version| version.from_ms < from_ms);
        let version = Version { from_ms, row };
        match versions.get_mut(at).filter(|version| version.from_ms == from_ms) {
            Some(same) => *same = version,
            None => versions.insert(at, version),
        }
        if versions.len() > VERSIONS_MAX {
            versions.remove(0);
        }
        if versions.iter().all(|version| version.row.is_none()) {
            self.rows.remove(key);
        }
        Ok(())
    }

    /// A record of the table says which row it now is.
    fn take(&mut self, record: &Record<'_>, from_ms: i64, key: Key, row: Row) -> Result<(), String> {
        if let Some(record_key) = record.key {
            let place = (record.partition.partition, record_key.into());
            let before = self.records.insert(place, key.clone());
            if let Some(before) = before.filter(|before| *before != key) {
                self.put(&before, from_ms, None)?;
            }
        }
        self.put(&key, from_ms, Some(row))
    }

    fn end(&mut self, record: &Record<'_>) -> Result<(), String> {
        let record_key = record.key.ok_or("a tombstone without a key")?;
        match self.records.remove(&(record.partition.partition, record_key.into())) {
            Some(key) => self.put(&key, record.timestamp_ms, None),
            // The row was compacted away, or never there.
            None => Ok(()),
        }
    }
}

/// A table that a stage reads.
struct Table {
    spec: Arc<TableSpec>,
    decoder: Box<dyn Decode>,
    versions: Arc<Mutex<Versions>>,
    refused: u64,
    /// The last record that was no row: its offset, and why.
    refusal: Option<(i64, String)>,
}

impl Table {
    fn read(&mut self, record: &Record<'_>) -> Result<(), String> {
        if record.value.is_none_or(<[u8]>::is_empty) {
            return lock(&self.versions).end(record);
        }
        self.decoder.push(record, record.timestamp_ms)?;
        let rows = self.decoder.finish().map_err(|error| error.to_string())?;
        self.rows(record, &rows).map_err(|error| error.to_string())?
    }

    fn rows(&self, record: &Record<'_>, rows: &Rows) -> Result<Result<(), String>, ArrowError> {
        let batch = plain_rows(&rows.batch)?;
        let mut versions = lock(&self.versions);
        let columns: Vec<ArrayRef> = self.spec.key.iter().map(|at| Arc::clone(&batch[*at])).collect();
        let times = milliseconds(&batch[self.spec.source.event_time])?;
        for (row, key) in keys(&columns, &versions.types)?.into_iter().enumerate() {
            let Some(key) = key else {
                return Ok(Err("its key is NULL".to_owned()));
            };
            let from_ms = match times.is_valid(row) {
                true => times.value(row),
                false => record.timestamp_ms,
            };
            let cells = batch.iter().map(|column| ScalarValue::try_from_array(column, row));
            let cells = match cells.collect::<PlanResult<Row>>() {
                Ok(cells) => cells,
                Err(error) => return Ok(Err(error.to_string())),
            };
            if let Err(reason) = versions.take(record, from_ms, key, cells) {
                return Ok(Err(reason));
            }
        }
        Ok(Ok(()))
    }
}

/// The tables of a stage, by the fingerprint of their declarations.
#[derive(Default)]
pub(crate) struct Tables(BTreeMap<u64, Table>);

impl Tables {
    /// Gives the expressions of a pane set the tables that they name.
    pub fn bind(&mut self, set: &mut PaneSetSpec, decoders: &dyn Decoders) -> Result<(), Error> {
        let mut wrong = None;
        for expression in expressions(set) {
            let bound = Arc::clone(expression).transform_up(|expr| {
                let Some(call) = expr.downcast_ref::<ScalarFunctionExpr>() else {
                    return Ok(Transformed::no(expr));
                };
                let Some(lookup) = call.fun().inner().downcast_ref::<Lookup<TopicColumn>>() else {
                    return Ok(Transformed::no(expr));
                };
                let TopicColumn { spec, column, .. } = &lookup.column;
                let versions = match self.versions(spec, decoders) {
                    Ok(versions) => versions,
                    Err(error) => {
                        wrong = Some(error);
                        return Ok(Transformed::no(expr));
                    }
                };
                let bound = TopicColumn {
                    versions: Some(versions),
                    ..TopicColumn::new(Arc::clone(spec), *column)
                };
                let bound = Lookup::new(lookup.name.clone(), bound);
                Ok(Transformed::yes(Arc::new(ScalarFunctionExpr::new(
                    call.name(),
                    Arc::new(ScalarUDF::new_from_impl(bound)),
                    call.args().to_vec(),
                    call.return_field(&arrow::datatypes::Schema::empty())?,
                    Arc::new(call.config_options().clone()),
                )) as Arc<dyn PhysicalExpr>))
            })?;
            *expression = bound.data;
        }
        wrong.map_or(Ok(()), Err)
    }

    fn versions(&mut self, spec: &Arc<TableSpec>, decoders: &dyn Decoders) -> Result<Arc<Mutex<Versions>>, Error> {
        let table = match self.0.entry(spec.source.fingerprint) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(free) => free.insert(Table {
                spec: Arc::clone(spec),
                decoder: decoders.decoder(&spec.source)?,
                versions: Arc::new(Mutex::new(Versions::new(spec))),
                refused: 0,
                refusal: None,
            }),
        };
        Ok(Arc::clone(&table.versions))
    }

    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(|table| table.spec.source.topic.as_str())
    }

    /// They are read from their beginning again.
    pub fn forget(&mut self) {
        for table in self.0.values_mut() {
            *lock(&table.versions) = Versions::new(&table.spec);
        }
    }

    /// A record of a topic, for every table that is in it. What is no row is left where it is, in the topic, and is said.
    pub fn read(&mut self, record: &Record<'_>) {
        let tables = self.0.values_mut();
        for table in tables.filter(|table| *table.spec.source.topic == *record.partition.topic) {
            if let Err(reason) = table.read(record) {
                table.refused += 1;
                let (name, place, offset) = (&table.spec.name, record.partition, record.offset);
                tracing::warn!(table = name, %place, offset, reason, "a record of the table is no row; the one before it holds");
                table.refusal = Some((offset, reason));
            }
        }
    }

    pub fn refusal(&self, table: &str) -> Option<&(i64, String)> {
        self.0.values().find(|known| known.spec.name == table)?.refusal.as_ref()
    }

    /// By table: its name, its keys, and how many records were no rows.
    pub fn observe(&self, mut sink: impl FnMut(&str, usize, u64)) {
        for table in self.0.values() {
            sink(&table.spec.name, lock(&table.versions).rows.len(), table.refused);
        }
    }
}

/// The tables in topics that a pipeline reads, each once, in the order of its pane sets.
pub fn tables(pipeline: &Pipeline) -> Vec<Arc<TableSpec>> {
    let mut found: Vec<Arc<TableSpec>> = Vec::new();
    for table in pipeline.pane_sets.iter().flat_map(tables_of) {
        if !found
            .iter()
            .any(|known| known.source.fingerprint == table.source.fingerprint)
        {
            found.push(table);
        }
    }
    found
}

/// The tables that a pane set names, each once.
pub fn tables_of(set: &PaneSetSpec) -> Vec<Arc<TableSpec>> {
    let mut found: Vec<Arc<TableSpec>> = Vec::new();
    let mut set = set.clone();
    for expression in expressions(&mut set) {
        let visited = expression.apply(|expr| {
            let call = expr.downcast_ref::<ScalarFunctionExpr>();
            if let Some(lookup) = call.and_then(|call| call.fun().inner().downcast_ref::<Lookup<TopicColumn>>()) {
                let spec = &lookup.column.spec;
                let known = |table: &Arc<TableSpec>| table.source.fingerprint == spec.source.fingerprint;
                if !found.iter().any(known) {
                    found.push(Arc::clone(spec));
                }
            }
            Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
        });
        visited.expect("the visitor does not fail");
    }
    found
}

fn expressions(set: &mut PaneSetSpec) -> impl Iterator<Item = &mut Arc<dyn PhysicalExpr>> {
    let aggregates = set.aggregates.iter_mut();
    let aggregates = aggregates.flat_map(|aggregate| aggregate.args.iter_mut().chain(&mut aggregate.filter));
    set.filter.iter_mut().chain(&mut set.keys).chain(aggregates)
}

/// One column of the rows that were found; each row is written once.
fn gather(rows: &[Option<&Row>], column: usize, data_type: &DataType) -> PlanResult<ArrayRef> {
    let (mut places, mut cells) = (HashMap::new(), Vec::new());
    let codes: Int32Array = rows
        .iter()
        .map(|row| {
            let row = (*row)?;
            Some(*places.entry(Arc::as_ptr(row)).or_insert_with(|| {
                cells.push(row[column].clone());
                cells.len() as i32 - 1
            }))
        })
        .collect();
    if cells.is_empty() {
        return Ok(new_null_array(data_type, rows.len()));
    }
    let values = ScalarValue::iter_to_array(cells)?;
    Ok(match data_type {
        DataType::Dictionary(..) => Arc::new(DictionaryArray::<Int32Type>::try_new(codes, values)?),
        _ => take(&values, &codes, None)?,
    })
}

fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => (**values).clone(),
        other => other.clone(),
    }
}

/// Columns without dictionaries.
fn plain_rows(rows: &RecordBatch) -> Result<Vec<ArrayRef>, ArrowError> {
    let columns = rows.columns().iter();
    columns.map(|column| cast(column, &plain(column.data_type()))).collect()
}

fn milliseconds(time: &ArrayRef) -> Result<Int64Array, ArrowError> {
    let time = cast(time, &DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())))?;
    Ok(cast(&time, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

fn lock(versions: &Mutex<Versions>) -> MutexGuard<'_, Versions> {
    versions.lock().unwrap_or_else(PoisonError::into_inner)
}
