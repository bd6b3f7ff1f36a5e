//! JSON with declared columns: one object per record, one row per object.
//!
//! A record is first tried against **layouts**: the bytes between the values of records seen before. Records of one writer
//! have the same keys in the same order, so that most need no key looked up; a layout is a guess, checked byte for byte.
//! What fits no layout goes to the general scanner, which has the last word and from which layouts are learned.
//!
//! Rules: absent and `null` are NULL. A value of another type rejects the record: a number in quotes is a string. Of equal
//! keys the last counts, and of an object that comes twice nothing of the first. Fields that no column reads are skipped,
//! but must be JSON. A number for a timestamp is the Unix epoch in the column's unit, a fraction rounded down; a string is
//! RFC 3339 with an offset.

mod fields;
mod scan;
#[cfg(test)]
mod tests;

pub(crate) use fields::{each_element, each_entry, each_field, string_or_null, time_or_null};
pub(crate) use scan::{Number, RawString, Scanner};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, SchemaRef, TimeUnit},
};

use crate::{
    column::AnyColumn,
    error::{Error, Fault},
    time,
};

/// Layouts kept: writers of different versions and languages on one topic.
const LAYOUTS_MAX: usize = 8;
/// Learning costs about as much as scanning so many records; it is paid for by as many records passing.
const LEARN_COST: u32 = 16;
const CREDIT_MAX: u32 = 64;
/// Trust in layouts: a fit adds 1, a miss of all takes this; at 0 they are tried once in so many records.
const MISS_COST: u32 = 4;
const TRUST_MAX: u32 = 64;
const DISTRUST_RECORDS: u64 = 16;
/// A layout longer than this is not worth its memory.
const LAYOUT_BYTES_MAX: usize = 64 << 10;
/// Nested objects on the way to a column.
const PATH_DEPTH_MAX: usize = 32;

const USABLE: &str = "STRING, DOUBLE, FLOAT, BIGINT, INT, BOOLEAN or TIMESTAMP";

/// Reads objects into declared columns.
pub(crate) struct Json {
    columns: Vec<JsonColumn>,
    /// Columns declared NOT NULL.
    required: Vec<usize>,
    /// Nodes of the paths; the first is the document.
    nodes: Vec<Node>,
    layouts: Vec<Layout>,
    /// The layout that fitted last.
    layout: usize,
    trust: u32,
    learn_credit: u32,
    learned: Learned,
    serial: u64,
    scratch: Vec<u8>,
}

struct JsonColumn {
    name: String,
    column: AnyColumn,
    data_type: DataType,
    output: Option<usize>,
}

/// A column to be read: where its array goes, if anywhere, and by which path.
pub(crate) struct Declared {
    pub name: String,
    pub data_type: DataType,
    /// NOT NULL.
    pub required: bool,
    pub path: Vec<String>,
    pub output: Option<usize>,
}

/// An object on the way to a column.
#[derive(Default)]
struct Node {
    children: Vec<(Box<[u8]>, Target)>,
    /// Number of the record in which it came last.
    seen: u64,
}

#[derive(Clone, Copy)]
enum Target {
    Column(usize),
    Node(usize),
}

/// What to do with the value after a literal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Column(usize),
    Skip,
    /// An object that columns lie in, and which is null.
    Null,
}

/// The bytes between the values of a record, and what the values are for.
struct Layout {
    steps: Vec<(Literal, Action)>,
    /// After the last value.
    tail: Box<[u8]>,
}

/// Bytes to be passed, made ready to be compared without a call: they are short.
struct Literal {
    bytes: Box<[u8]>,
    /// The first sixteen bytes, and which of them there are.
    head: u128,
    mask: u128,
}

/// What the general scanner saw of the record, as a layout in the making.
#[derive(Default)]
struct Learned {
    steps: Vec<(std::ops::Range<usize>, Action)>,
    value_end: usize,
    /// A key came twice: the order of things matters, no layout can say it.
    repeated: bool,
}

impl Json {
    pub fn new(declared: Vec<Declared>) -> Result<Self, Error> {
        let mut json = Self {
            columns: Vec::with_capacity(declared.len()),
            required: Vec::new(),
            nodes: vec![Node::default()],
            layouts: Vec::new(),
            layout: 0,
            trust: TRUST_MAX,
            learn_credit: CREDIT_MAX,
            learned: Learned::default(),
            serial: 0,
            scratch: Vec::new(),
        };
        for declared in declared {
            json.add_path(&declared)?;
            let column = AnyColumn::new(&declared.data_type)
                .filter(|column| !matches!(column, AnyColumn::Map(_) | AnyColumn::Bytes(_)))
                .ok_or_else(|| Error::TypeUnusable {
                    column: declared.name.clone(),
                    declared: declared.data_type.clone(),
                    usable: USABLE,
                })?;
            if declared.required {
                json.required.push(json.columns.len());
            }
            json.columns.push(JsonColumn {
                name: declared.name,
                column,
                data_type: declared.data_type,
                output: declared.output,
            });
        }
        Ok(json)
    }

    /// Columns as a projection declares them; each is read by its path, or by its name.
    pub fn declared(columns: &SchemaRef, paths: &[Option<Vec<String>>]) -> Vec<Declared> {
        let fields = columns.fields().iter().enumerate();
        let read_from_value = fields.filter(|(_, field)| !field.metadata().contains_key(crate::schema::METADATA));
        read_from_value
            .map(|(output, field)| Declared {
                name: field.name().clone(),
                data_type: field.data_type().clone(),
                required: !field.is_nullable(),
                path: paths
                    .get(output)
                    .and_then(Clone::clone)
                    .filter(|path| !path.is_empty())
                    .unwrap_or_else(|| vec![field.name().clone()]),
                output: Some(output),
            })
            .collect()
    }

    fn add_path(&mut self, declared: &Declared) -> Result<(), Error> {
        let index = self.columns.len();
        let conflict = |inner: &str, outer: &str| Error::PathInsidePath {
            column: declared.name.clone(),
            inner: inner.to_owned(),
            outer: outer.to_owned(),
        };
        let path = declared.path.join(".");
        let mut node = 0;
        for (depth, key) in declared.path.iter().enumerate() {
            let last = depth + 1 == declared.path.len() || depth == PATH_DEPTH_MAX;
            let known = self.nodes[node]
                .children
                .iter()
                .find(|(known, _)| **known == *key.as_bytes())
                .map(|(_, target)| *target);
            node = match known {
                Some(Target::Node(next)) if !last => next,
                Some(Target::Column(other)) => return Err(conflict(&path, &self.columns[other].name)),
                Some(Target::Node(_)) => return Err(conflict("an object that other columns read into", &path)),
                None if last => {
                    self.nodes[node]
                        .children
                        .push((key.as_bytes().into(), Target::Column(index)));
                    return Ok(());
                }
                None => {
                    self.nodes.push(Node::default());
                    let next = self.nodes.len() - 1;
                    self.nodes[node]
                        .children
                        .push((key.as_bytes().into(), Target::Node(next)));
                    next
                }
            };
        }
        Ok(())
    }

    /// Reads one object into `row`.
    pub fn decode(&mut self, value: &[u8], row: usize) -> Result<(), Fault> {
        self.learn_credit = (self.learn_credit + 1).min(CREDIT_MAX);
        if !self.try_layouts(value, row) {
            self.scan(value, row)?;
        }
        for index in &self.required {
            let column = &self.columns[*index];
            if column.column.len() <= row {
                return Err(Fault::new("it is missing or null, but declared NOT NULL").in_field(&column.name));
            }
        }
        Ok(())
    }

    pub fn truncate(&mut self, rows: usize) {
        self.columns.iter_mut().for_each(|column| column.column.truncate(rows));
    }

    /// Output number, array and dictionary generation of each column that goes anywhere.
    pub fn finish(&mut self, rows: usize) -> impl Iterator<Item = (usize, ArrayRef, u64)> {
        self.columns.iter_mut().filter_map(move |column| {
            let (array, generation) = column.column.finish(rows, &column.data_type);
            Some((column.output?, array, generation))
        })
    }

    /// The layout that fitted last, then the others. Where layouts seldom fit, they are seldom tried.
    #[inline(always)]
    fn try_layouts(&mut self, value: &[u8], row: usize) -> bool {
        if let Some(layout) = self.layouts.get(self.layout)
            && self.trust > 0
        {
            if layout.read(&mut self.columns, value, row, &mut self.scratch) {
                self.trust = (self.trust + 1).min(TRUST_MAX);
                return true;
            }
            return self.try_other_layouts(value, row);
        }
        self.trust = u32::from(self.serial.is_multiple_of(DISTRUST_RECORDS));
        false
    }

    #[inline(never)]
    fn try_other_layouts(&mut self, value: &[u8], row: usize) -> bool {
        self.truncate(row);
        let tried = self.layout;
        for index in (0..self.layouts.len()).filter(|index| *index != tried) {
            if self.layouts[index].read_again(&mut self.columns, value, row, &mut self.scratch) {
                self.layout = index;
                self.trust = (self.trust + 1).min(TRUST_MAX);
                return true;
            }
            self.truncate(row);
        }
        self.trust = self.trust.saturating_sub(MISS_COST);
        false
    }

    #[inline(never)]
    fn scan(&mut self, value: &[u8], row: usize) -> Result<(), Fault> {
        self.serial += 1;
        self.learned.steps.clear();
        self.learned.value_end = 0;
        self.learned.repeated = false;
        let mut scanner = Scanner::new(value);
        scanner.begin_object()?;
        self.scan_object(0, &mut scanner, row)?;
        scanner.end()?;
        self.learn(value);
        Ok(())
    }

    fn scan_object(&mut self, node: usize, scanner: &mut Scanner<'_>, row: usize) -> Result<(), Fault> {
        let mut first = true;
        while let Some(key) = scanner.next_key(first)? {
            first = false;
            let mut unescaped = Vec::new();
            let key = if key.escaped {
                key.text(&mut unescaped)?.as_bytes()
            } else {
                key.raw
            };
            let target = self.nodes[node]
                .children
                .iter()
                .find(|(known, _)| **known == *key)
                .map(|(_, target)| *target);
            let token = scanner.token();
            match target {
                Some(Target::Column(index)) => {
                    let literal = self.learned.value_end..scanner.position();
                    self.columns[index].column.truncate(row);
                    self.columns[index].read(scanner, row, &mut self.scratch)?;
                    self.learned.step(literal, Action::Column(index), scanner.position());
                }
                Some(Target::Node(next)) => self.scan_node(next, scanner, row, token, key)?,
                None => {
                    let literal = self.learned.value_end..scanner.position();
                    std::str::from_utf8(key).map_err(|_| Fault::at("a key is not UTF-8", key))?;
                    scanner.skip_value()?;
                    self.learned.step(literal, Action::Skip, scanner.position());
                }
            }
        }
        Ok(())
    }

    fn scan_node(
        &mut self,
        node: usize,
        scanner: &mut Scanner<'_>,
        row: usize,
        token: Option<u8>,
        key: &[u8],
    ) -> Result<(), Fault> {
        if self.nodes[node].seen == self.serial {
            self.learned.repeated = true;
            self.clear(node, row);
        }
        self.nodes[node].seen = self.serial;
        match token {
            Some(b'{') => {
                scanner.pass_byte();
                self.scan_object(node, scanner, row)
            }
            Some(b'n') => {
                let literal = self.learned.value_end..scanner.position();
                scanner.literal("null")?;
                self.learned.step(literal, Action::Null, scanner.position());
                Ok(())
            }
            _ => Err(scanner.expected("an object").in_field(&String::from_utf8_lossy(key))),
        }
    }

    /// Takes back what the columns inside an object have for this row.
    fn clear(&mut self, node: usize, row: usize) {
        for child in 0..self.nodes[node].children.len() {
            match self.nodes[node].children[child].1 {
                Target::Column(index) => self.columns[index].column.truncate(row),
                Target::Node(next) => self.clear(next, row),
            }
        }
    }

    /// Keeps the layout of the record just scanned, in place of one that did not fit of late.
    fn learn(&mut self, value: &[u8]) {
        if self.learn_credit < LEARN_COST || value.len() > LAYOUT_BYTES_MAX || !self.learned.usable() {
            return;
        }
        self.learn_credit -= LEARN_COST;
        let steps = self.learned.steps.iter();
        let layout = Layout {
            steps: steps
                .map(|(literal, action)| (Literal::new(&value[literal.clone()]), *action))
                .collect(),
            tail: value[self.learned.value_end..].into(),
        };
        if self.layouts.len() < LAYOUTS_MAX {
            self.layouts.push(layout);
            self.layout = self.layouts.len() - 1;
        } else {
            // The one tried last: the farthest from what fits now.
            self.layout = (self.layout + LAYOUTS_MAX - 1) % LAYOUTS_MAX;
            self.layouts[self.layout] = layout;
        }
    }
}

impl Learned {
    fn step(&mut self, literal: std::ops::Range<usize>, action: Action, value_end: usize) {
        self.steps.push((literal, action));
        self.value_end = value_end;
    }

    fn usable(&self) -> bool {
        let twice = |(index, step): (usize, &(_, Action))| {
            matches!(step.1, Action::Column(_)) && self.steps[..index].iter().any(|(_, action)| *action == step.1)
        };
        !self.repeated && !self.steps.iter().enumerate().any(twice)
    }
}

impl Literal {
    fn new(bytes: &[u8]) -> Self {
        let mut head = [0; 16];
        let mut mask = [0; 16];
        for (index, byte) in bytes.iter().take(16).enumerate() {
            head[index] = *byte;
            mask[index] = 0xff;
        }
        Self {
            bytes: bytes.into(),
            head: u128::from_le_bytes(head),
            mask: u128::from_le_bytes(mask),
        }
    }

    #[inline(always)]
    fn pass(&self, scanner: &mut Scanner<'_>) -> bool {
        match scanner.rest().first_chunk::<16>() {
            Some(chunk) if (u128::from_le_bytes(*chunk) ^ self.head) & self.mask != 0 => false,
            Some(_) if self.bytes.len() <= 16 => {
                scanner.advance(self.bytes.len());
                true
            }
            _ => scanner.pass(&self.bytes),
        }
    }
}

impl Layout {
    /// Reads a record of this layout; on false the columns may hold part of it.
    #[inline(always)]
    fn read(&self, columns: &mut [JsonColumn], value: &[u8], row: usize, scratch: &mut Vec<u8>) -> bool {
        let mut scanner = Scanner::new(value);
        for (literal, action) in &self.steps {
            if !literal.pass(&mut scanner) {
                return false;
            }
            let read = match action {
                Action::Column(index) => columns[*index].read(&mut scanner, row, scratch),
                Action::Skip => scanner.skip_scalar(),
                Action::Null => scanner.literal("null"),
            };
            if read.is_err() {
                return false;
            }
        }
        scanner.rest() == &*self.tail
    }

    #[inline(never)]
    fn read_again(&self, columns: &mut [JsonColumn], value: &[u8], row: usize, scratch: &mut Vec<u8>) -> bool {
        self.read(columns, value, row, scratch)
    }
}

impl JsonColumn {
    /// Reads the value that stands here, with no white space before it.
    #[inline(always)]
    fn read(&mut self, scanner: &mut Scanner<'_>, row: usize, scratch: &mut Vec<u8>) -> Result<(), Fault> {
        let from = scanner.clone();
        let read = match scanner.byte() {
            Some(b'"') => match scanner.string() {
                Ok(string) => self.set_string(&from, string, row, scratch),
                Err(fault) => Err(fault),
            },
            Some(b'-' | b'0'..=b'9') => match scanner.number() {
                Ok(number) => self.set_number(&from, number, row),
                Err(fault) => Err(fault),
            },
            _ => {
                let mut slow = from;
                let read = self.read_other(&mut slow, row);
                *scanner = slow;
                read
            }
        };
        read.map_err(|fault| fault.in_field(&self.name))
    }

    #[inline(always)]
    fn set_string(
        &mut self,
        from: &Scanner<'_>,
        string: RawString<'_>,
        row: usize,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match &mut self.column {
            AnyColumn::Dictionary(column) => column.set(row, string.bytes(scratch)?),
            AnyColumn::Text(column) => column.set(row, string.bytes(scratch)?),
            AnyColumn::Timestamp(column, unit) => {
                let time = time::parse(string.bytes(scratch)?, *unit).ok_or_else(not_a_time(from))?;
                column.set(row, time);
                Ok(())
            }
            _ => Err(self.mistyped(from)),
        }
    }

    #[inline(always)]
    fn set_number(&mut self, from: &Scanner<'_>, number: Number<'_>, row: usize) -> Result<(), Fault> {
        match &mut self.column {
            AnyColumn::Float64(column) => {
                column.set(row, number.to_f64().ok_or_else(|| from.fault("a number is too large"))?);
            }
            AnyColumn::Int64(column) => {
                column.set(
                    row,
                    number.to_i64().ok_or_else(|| from.fault("not an integer of 64 bits"))?,
                );
            }
            AnyColumn::Timestamp(column, _) => {
                column.set(
                    row,
                    number.to_i64_floor().ok_or_else(|| from.fault("a time is too large"))?,
                );
            }
            AnyColumn::Int32(column) => {
                let value = number.to_i64().and_then(|value| i32::try_from(value).ok());
                column.set(row, value.ok_or_else(|| from.fault("not an integer of 32 bits"))?);
            }
            AnyColumn::Float32(column) => {
                let value = number.to_f64().map(|value| value as f32);
                let finite = value.filter(|value| value.is_finite());
                column.set(row, finite.ok_or_else(|| from.fault("a number is too large"))?);
            }
            _ => return Err(self.mistyped(from)),
        }
        Ok(())
    }

    #[inline(never)]
    fn read_other(&mut self, scanner: &mut Scanner<'_>, row: usize) -> Result<(), Fault> {
        match (scanner.byte(), &mut self.column) {
            (Some(b'n'), _) => scanner.literal("null"),
            (Some(b't'), AnyColumn::Boolean(column)) => {
                scanner.literal("true")?;
                column.set(row, true);
                Ok(())
            }
            (Some(b'f'), AnyColumn::Boolean(column)) => {
                scanner.literal("false")?;
                column.set(row, false);
                Ok(())
            }
            _ => Err(self.mistyped(scanner)),
        }
    }

    #[cold]
    fn mistyped(&self, from: &Scanner<'_>) -> Fault {
        from.clone().expected(match &self.column {
            AnyColumn::Dictionary(_) | AnyColumn::Text(_) | AnyColumn::Bytes(_) => "a string",
            AnyColumn::Int64(_) | AnyColumn::Int32(_) => "an integer",
            AnyColumn::Float64(_) | AnyColumn::Float32(_) => "a number",
            AnyColumn::Boolean(_) => "a boolean",
            AnyColumn::Timestamp(_, TimeUnit::Second) => "a time (RFC 3339, or seconds since 1970)",
            AnyColumn::Timestamp(..) => "a time (RFC 3339, or a number since 1970 in the column's unit)",
            AnyColumn::Map(_) => "an object",
        })
    }
}

fn not_a_time<'s>(from: &'s Scanner<'_>) -> impl FnOnce() -> Fault + 's {
    || from.fault("expected a time like 2026-07-01T12:00:00.000Z, found another string")
}
