//! The versions of the pipelines that one `panes` partition is at, and how an entity's state goes from one to the next.
//!
//! A detector is the same in two versions when its name is: its entities go over when the view that it is on does.

use std::{collections::BTreeMap, sync::Arc};

use engine::{assemble::Assembler, spec::Pipeline, version::Version};

use super::{
    entities::Entities,
    part::{Entity, EntityRecord, Part, seed},
    watch::Watch,
};

/// Versions with windows open, oldest first, and their detectors.
pub(super) struct Live {
    pub(super) versions: Vec<Version>,
    pub(super) watches: Vec<Watch>,
    /// Names of the detectors of all versions, each once.
    pub(super) slots: Vec<String>,
}

impl Live {
    pub(super) fn new(versions: Vec<Version>) -> Result<Self, detector::Error> {
        let mut watches = Vec::new();
        for version in &versions {
            for (index, pipeline) in version.pipelines.iter().enumerate() {
                for at in 0..pipeline.detectors.len() {
                    watches.push(Watch::declared(version.number, index, pipeline, at)?);
                }
                let judged = pipeline.views.iter().filter_map(|view| view.judged.as_ref());
                for spec in judged.flat_map(|judged| &judged.detectors) {
                    watches.push(Watch::inner(version.number, index, pipeline, spec)?);
                }
            }
        }
        let mut slots: Vec<String> = Vec::new();
        for watch in &mut watches {
            watch.slot = slots.iter().position(|id| *id == watch.id).unwrap_or_else(|| {
                slots.push(watch.id.clone());
                slots.len() - 1
            });
        }
        Ok(Self {
            versions,
            watches,
            slots,
        })
    }

    /// Numbers of the versions; none where pipelines are not versioned.
    pub(super) fn numbers(&self) -> Vec<u64> {
        let numbers = self.versions.iter().map(|version| version.number);
        numbers.filter(|number| *number > 0).collect()
    }

    pub(super) fn newest(&self) -> u64 {
        self.versions.last().map_or(0, |version| version.number)
    }

    pub(super) fn pipeline(&self, version: u64, index: usize) -> &Pipeline {
        let found = self.versions.iter().find(|found| found.number == version);
        &found.expect("windows are of versions that live").pipelines[index]
    }

    pub(super) fn owners(&self, assembler: &Assembler) -> Vec<usize> {
        (0..self.slots.len()).map(|slot| self.owner(slot, assembler)).collect()
    }

    /// The watch whose state the entities of a slot have: the newest, or that of the version of its view that is in its turn.
    pub(super) fn owner(&self, slot: usize, assembler: &Assembler) -> usize {
        let of_slot = |watch: &Watch| watch.slot == slot;
        let newest = self
            .watches
            .iter()
            .rposition(of_slot)
            .expect("slots are made for watches");
        let view = self.watches[newest].view.as_ref();
        let turn = view.and_then(|view| assembler.in_turn(view));
        let in_turn = |watch: &Watch| of_slot(watch) && turn == Some(watch.version);
        self.watches.iter().position(in_turn).unwrap_or(newest)
    }
}

impl Part {
    /// Goes on with these versions; `offset` brought them about.
    pub(super) fn adopt(&mut self, live: Arc<Live>, offset: i64) {
        let before = std::mem::replace(&mut self.live, live);
        let owners = std::mem::take(&mut self.owners);
        let entities = std::mem::take(&mut self.entities);
        let mut known: BTreeMap<&str, (usize, Entities)> = BTreeMap::new();
        for (id, (owner, entities)) in before.slots.iter().zip(owners.into_iter().zip(entities)) {
            known.insert(id, (owner, entities));
        }
        let live = Arc::clone(&self.live);
        for (slot, id) in live.slots.iter().enumerate() {
            let owner = live.owner(slot, &self.assembler);
            self.owners.push(owner);
            match known.remove(id.as_str()) {
                Some((old, entities)) => {
                    self.entities.push(entities);
                    self.hand_over(&before.watches[old], &live.watches[owner], offset);
                }
                None => {
                    self.entities.push(Entities::default());
                    self.revive(slot);
                }
            }
        }
    }

    /// The entities of a slot go over to this watch, if they are another version's.
    pub(super) fn own(&mut self, at: usize, offset: i64) {
        let live = Arc::clone(&self.live);
        let new = &live.watches[at];
        let owner = std::mem::replace(&mut self.owners[new.slot], at);
        if owner != at {
            self.hand_over(&live.watches[owner], new, offset);
        }
    }

    fn hand_over(&mut self, old: &Watch, new: &Watch, offset: i64) {
        if old.version == new.version {
            return;
        }
        let source = new.source.filter(|_| old.panes != new.panes);
        let closed_ms = source.and_then(|source| self.assembler.table().sources.get(&source)?.closed_ms);
        self.entities[new.slot].each(|key, entity| {
            if let Some(ahead) = entity.ahead.take_if(|_| entity.version <= new.version) {
                entity.state = new.restore(key, &ahead);
                return;
            }
            if entity.version >= new.version {
                return;
            }
            entity.version = new.version;
            if let Some(source) = source {
                // Other rows are watched from here on: silence counts anew.
                entity.meta.source = source;
                entity.meta.last_ms = entity.meta.last_ms.max(closed_ms.unwrap_or(i64::MIN));
                entity.dirty(offset);
            }
            if old.is_alike(new) {
                return;
            }
            let mut snapshot = Vec::new();
            entity.state.snapshot(&mut snapshot);
            entity.state = match old.learns_the_same(new) {
                true => new.restore(key, &snapshot),
                false => new.algorithm.fresh(seed(&new.id, key)),
            };
            entity.dirty(offset);
        });
    }

    /// Makes entities of the state that was read for a slot.
    pub(super) fn revive(&mut self, slot: usize) {
        let live = Arc::clone(&self.live);
        let watch = &live.watches[self.owners[slot]];
        for (key, value) in self.stored.remove(&watch.id).unwrap_or_default() {
            let split = value.iter().position(|byte| *byte == b'\n').unwrap_or(value.len());
            let (record, snapshot) = value.split_at(split);
            let snapshot = snapshot.get(1..).unwrap_or_default();
            // It was read before: what is no record was refused.
            let Ok(record) = serde_json::from_slice::<EntityRecord>(record) else {
                continue;
            };
            let is_ahead = record.version > watch.version;
            let entity = Entity {
                state: match is_ahead {
                    true => watch.algorithm.fresh(seed(&watch.id, &key)),
                    false => watch.restore(&key, snapshot),
                },
                meta: record.meta,
                version: record.version.max(watch.version),
                ahead: is_ahead.then(|| snapshot.to_vec()),
                includes: record.includes,
                unwritten_since: None,
            };
            self.entities[slot].insert(key, entity);
        }
    }
}
