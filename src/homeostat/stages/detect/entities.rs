//! The entities of one detector, each by its number: the key of a row is made once, after that its bytes are enough.

use std::{
    collections::{BTreeMap, HashMap},
    ops::{Index, IndexMut},
};

use arrow::{
    array::{Array, ArrayRef},
    datatypes::DataType,
    row::{RowConverter, Rows, SortField},
};

use super::part::Entity;

#[derive(Default)]
pub(super) struct Entities {
    /// By key: JSON of the KEY values. What is said and written of all of them is in this order, as after a restart.
    numbers: BTreeMap<String, u32>,
    /// By number. That of a forgotten entity is given to the next new one.
    list: Vec<Option<Entity>>,
    free: Vec<u32>,
    /// Numbers by KEY values as bytes. The same key may have several.
    seen: HashMap<Box<[u8]>, u32>,
    /// Makes bytes of columns of these types.
    converter: Option<(Vec<DataType>, RowConverter)>,
}

impl Entities {
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// The KEY values of every row as bytes; `None` where columns of their types have none.
    pub(super) fn bytes(&mut self, keys: &[ArrayRef]) -> Result<Option<Rows>, arrow::error::ArrowError> {
        let types = keys.iter().map(|column| column.data_type());
        if self
            .converter
            .as_ref()
            .is_none_or(|(known, _)| !types.clone().eq(known))
        {
            self.seen.clear();
            self.converter = None;
            let fields: Vec<_> = types.clone().cloned().map(SortField::new).collect();
            if fields.is_empty() || !RowConverter::supports_fields(&fields) {
                return Ok(None);
            }
            self.converter = Some((types.cloned().collect(), RowConverter::new(fields)?));
        }
        let converter = self.converter.as_ref();
        converter
            .map(|(_, converter)| converter.convert_columns(keys))
            .transpose()
    }

    /// The number of an entity that had these bytes before.
    pub(super) fn seen(&self, bytes: &[u8]) -> Option<u32> {
        self.seen.get(bytes).copied()
    }

    /// The entity with this number had these bytes.
    pub(super) fn remember(&mut self, bytes: &[u8], number: u32) {
        self.seen.insert(bytes.into(), number);
    }

    /// The number of the entity with this key, which is made where there is none.
    pub(super) fn number(&mut self, key: &str, fresh: impl FnOnce() -> Entity) -> u32 {
        match self.numbers.get(key) {
            Some(number) => *number,
            None => self.insert(key.to_owned(), fresh()),
        }
    }

    /// In place of one that had the key before.
    pub(super) fn insert(&mut self, key: String, entity: Entity) -> u32 {
        let number = *self.numbers.entry(key).or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.list.push(None);
                u32::try_from(self.list.len() - 1).expect("fewer entities than fit into memory")
            })
        });
        self.list[number as usize] = Some(entity);
        number
    }

    /// In the order of their keys.
    pub(super) fn in_order(&self) -> Vec<u32> {
        self.numbers.values().copied().collect()
    }

    /// In no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entity> {
        self.list.iter().flatten()
    }

    /// In the order of their keys.
    pub(super) fn each(&mut self, mut change: impl FnMut(&str, &mut Entity)) {
        for (key, number) in &self.numbers {
            change(key, known(&mut self.list[*number as usize]));
        }
    }

    /// Forgets those of which `keep` says no; it sees them in the order of their keys.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&str, &mut Entity) -> bool) {
        let before = self.numbers.len();
        self.numbers.retain(|key, number| {
            let place = &mut self.list[*number as usize];
            let kept = keep(key, known(place));
            if !kept {
                *place = None;
                self.free.push(*number);
            }
            kept
        });
        if self.numbers.len() < before {
            self.seen.retain(|_, number| self.list[*number as usize].is_some());
        }
    }

    /// All of them by number, for [`detector::slab::score`].
    pub(super) fn list(&mut self) -> &mut [Option<Entity>] {
        &mut self.list
    }
}

/// The entity in a place that has one.
pub(super) fn known(place: &mut Option<Entity>) -> &mut Entity {
    place.as_mut().expect("a number is that of an entity")
}

impl Index<u32> for Entities {
    type Output = Entity;

    fn index(&self, number: u32) -> &Entity {
        self.list[number as usize]
            .as_ref()
            .expect("a number is that of an entity")
    }
}

impl IndexMut<u32> for Entities {
    fn index_mut(&mut self, number: u32) -> &mut Entity {
        known(&mut self.list[number as usize])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use detector::Value;

    use super::*;
    use crate::stages::detect::part::Meta;

    fn entity(last_ms: i64) -> Entity {
        let options = [("upper".to_owned(), Value::Number(1.0))];
        let algorithm = detector::build("static_threshold", &options, &["value".to_owned()]).unwrap();
        Entity {
            state: algorithm.fresh(0),
            meta: Meta {
                last_ms,
                ..Meta::default()
            },
            version: 0,
            ahead: None,
            includes: -1,
            unwritten_since: None,
        }
    }

    /// As a plain map from keys would have it, whatever order entities come, go and come again in.
    #[test]
    fn entities_are_found_by_bytes_as_by_key() {
        let mut entities = Entities::default();
        let mut model: BTreeMap<String, i64> = BTreeMap::new();
        let mut random = 7u64;
        for round in 0..200i64 {
            let names: Vec<String> = (0..20)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    format!("service-{}", (random >> 33) % 40)
                })
                .collect();
            // Of another type now and then: bytes of one type say nothing of those of another.
            let column: ArrayRef = match round % 50 {
                49 => Arc::new(names.iter().map(|name| Some(name.len() as i64)).collect::<Int64Array>()),
                _ => Arc::new(StringArray::from(names.clone())),
            };
            let key = |row: usize| match round % 50 {
                49 => names[row].len().to_string(),
                _ => names[row].clone(),
            };
            let bytes = entities.bytes(&[Arc::clone(&column)]).unwrap().unwrap();
            for row in 0..names.len() {
                let row_bytes = bytes.row(row).data();
                let number = entities.seen(row_bytes).unwrap_or_else(|| {
                    let number = entities.number(&key(row), || entity(round));
                    entities.remember(row_bytes, number);
                    number
                });
                let began = *model.entry(key(row)).or_insert(round);
                assert_eq!(entities[number].meta.last_ms, began, "{}", key(row));
            }
            if round % 7 == 0 {
                entities.retain(|_, entity| entity.meta.last_ms + 30 > round);
                model.retain(|_, began| *began + 30 > round);
            }
            let mut found = Vec::new();
            entities.each(|key, entity| found.push((key.to_owned(), entity.meta.last_ms)));
            assert_eq!(found, model.clone().into_iter().collect::<Vec<_>>());
            let ordered = entities
                .in_order()
                .into_iter()
                .map(|number| entities[number].meta.last_ms);
            assert!(ordered.eq(model.values().copied()));
            assert_eq!(entities.len(), entities.iter().count());
        }
        assert!(entities.list().len() <= 60, "numbers of the forgotten are used again");
    }

    #[test]
    fn an_entity_without_keys_has_no_bytes() {
        let mut entities = Entities::default();
        assert!(entities.bytes(&[]).unwrap().is_none());
    }
}
