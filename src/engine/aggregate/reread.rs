//! Pane sets that a version brings, and what was read before: which of it they need, and that it is read again for them.
//!
//! A row is in the log behind every record that is older than the row by more than the source's MAX FUTURE SKEW, or it is refused. So the
//! first offset that is as young as the first pane, less that, has every row of the pane and of later ones behind it.

use std::collections::BTreeMap;

use protocol::{Assignment, Batch, Committed, Outputs, TopicPartition, time};

use super::{
    Aggregate, Partition, ROWS_PER_BATCH, Run,
    lane::Lane,
    metadata::{self, FirstPane, Standing},
    plan,
    side::Fault,
};
use crate::error::Error;

/// So close to what is new, a partition waits for what is read again of it: else the two might follow each other for ever.
const RECORDS_WAITED_FOR: i64 = 10_000;

/// A set that a partition is not yet read for, though its past was read.
struct Addition {
    source: usize,
    set: u64,
    first_pane_ms: i64,
    /// Kafka's timestamp from which on the rows are in the log.
    from_ms: i64,
}

impl Aggregate {
    /// Sets that come later and whose views say from where on they need rows: as far back as the oldest window that a version
    /// before may have left open.
    fn additions(&self, topic: &str, standings: &[Standing]) -> Vec<Addition> {
        let standing = |source: usize| {
            let fingerprint = self.sources[source].spec.fingerprint;
            standings.iter().find(move |standing| standing.source == fingerprint)
        };
        let mut additions = Vec::new();
        for (source, plan) in self.sources_of(topic) {
            let known = standing(source).map_or(&[][..], |standing| &standing.sets);
            let new = plan
                .sets
                .iter()
                .filter(|set| known.iter().all(|(other, _)| *other != set.fingerprint));
            for set in new.filter(|set| !set.windows.is_empty()) {
                let beside = self.sources_beside(topic, source, set);
                let reached = beside.filter_map(|other| standing(other)?.watermark_ms).max();
                let Some(reached_ms) = reached else { continue };
                let before_ms = reached_ms - plan::lookback_ms(set, &self.sources);
                let first_pane_ms = before_ms - before_ms.rem_euclid(set.width_ms);
                additions.push(Addition {
                    source,
                    set: set.fingerprint,
                    first_pane_ms,
                    from_ms: first_pane_ms.saturating_sub(plan.spec.max_future_skew_ms),
                });
            }
        }
        additions
    }

    /// A set's own source, and those on the topic that versions of its views are over.
    fn sources_beside<'a>(
        &'a self,
        topic: &'a str,
        source: usize,
        set: &'a crate::spec::PaneSetSpec,
    ) -> impl Iterator<Item = usize> + 'a {
        let beside = self.sources_of(topic).filter(move |(other, plan)| {
            *other == source || plan.sets.iter().any(|other| plan::shares_a_view(set, other))
        });
        beside.map(|(other, _)| other)
    }

    /// See [`protocol::Stage::lookback`].
    pub(super) fn looks_back(&self, place: &TopicPartition, committed: Option<&Committed>) -> Option<i64> {
        let metadata = &committed.filter(|committed| !committed.metadata.is_empty())?.metadata;
        // What cannot be read is said when the partition is opened.
        let (version, standings) = metadata::decode(metadata).ok()?;
        if self.follow.is_behind(version) {
            return None;
        }
        let additions = self.additions(&place.topic, &standings);
        // What is negative means other things to Kafka.
        additions.iter().map(|addition| addition.from_ms.max(0)).min()
    }

    /// What becomes of the sets that come later: those whose past is in the log have it read again. A set whose past has gone
    /// meanwhile begins with what is new, as one whose past was never there.
    pub(super) fn backfills(
        &self,
        place: &TopicPartition,
        assignment: &Assignment,
        position: i64,
        standings: &mut [Standing],
    ) -> BTreeMap<u64, FirstPane> {
        let additions = self.additions(&place.topic, standings);
        let start = assignment.log_start_offset;
        for standing in standings {
            standing.sets.retain(|(set, first)| {
                let gone = matches!(first, FirstPane::Backfilling { offset, .. } if *offset < start);
                if gone {
                    let set = format!("{set:016x}");
                    tracing::warn!(partition = %place, set, "retention has removed what was yet to be backfilled: views begin with what is new");
                }
                !gone
            });
        }
        let offset = assignment
            .lookback_offset
            .map_or(position, |offset| offset.min(position));
        let is_whole = start == 0 || offset > start;
        let mut backfills = BTreeMap::new();
        for addition in additions {
            let source = &self.sources[addition.source];
            let views = plan::views_of(source, addition.set);
            if !is_whole {
                tracing::warn!(
                    partition = %place,
                    views,
                    "not backfilled: the topic may not hold their windows' past any more; the versions before go on until these have whole windows"
                );
                continue;
            }
            tracing::info!(
                partition = %place,
                views,
                from = time::to_rfc3339(addition.first_pane_ms),
                offset,
                records = position - offset,
                "backfill begins"
            );
            let first_pane_ms = addition.first_pane_ms;
            backfills.insert(addition.set, FirstPane::Backfilling { first_pane_ms, offset });
        }
        backfills
    }

    pub(super) fn reread_places(&self) -> Vec<(TopicPartition, i64)> {
        let places = self.partitions.iter();
        places
            .filter_map(|(place, partition)| Some((place.clone(), partition.rereads_from()?)))
            .collect()
    }

    pub(super) fn reread_batch(
        &mut self,
        batch: &Batch,
        next: &[(TopicPartition, i64)],
        out: &mut Outputs,
    ) -> Result<(), Error> {
        for run in Run::split(batch) {
            let Some(mut partition) = self.partitions.remove(run.place) else {
                continue;
            };
            let mut result = Ok(());
            for (source, lane) in &mut partition.lanes {
                result = result.and_then(|()| self.reread_lane(*source, lane, partition.position, &run, out));
            }
            self.partitions.insert(run.place.clone(), partition);
            result?;
        }
        for (place, next) in next {
            if let Some(mut partition) = self.partitions.remove(place) {
                let met = self.reread_to(place, &mut partition, *next);
                self.partitions.insert(place.clone(), partition);
                met?;
            }
        }
        self.align();
        Ok(())
    }

    /// Records that were read before: those behind the partition's position are yet to come the usual way.
    fn reread_lane(
        &mut self,
        source: usize,
        lane: &mut Lane,
        position: i64,
        run: &Run<'_>,
        out: &mut Outputs,
    ) -> Result<(), Error> {
        let Some(from) = lane.rereads_from() else {
            return Ok(());
        };
        let mut rows = 0;
        for record in run.records() {
            if record.offset < from || record.offset >= position {
                continue;
            }
            // When a heartbeat was received is not known any more. The producer said when it was sent; what it dates ahead of all that has
            // been received is no later than that.
            let known_ms = lane.greatest_time_ms().unwrap_or(record.timestamp_ms);
            match self.decoders[source].push(&record, record.timestamp_ms.min(known_ms)) {
                Ok(decoded) => rows += decoded,
                Err(reason) if lane.is_new() => self.dead_letter(source, &record, Fault::Decode, &reason, out),
                Err(_) => {}
            }
            if rows >= ROWS_PER_BATCH {
                self.fold_again(source, lane, run, out)?;
                rows = 0;
            }
        }
        self.fold_again(source, lane, run, out)
    }

    fn fold_again(&mut self, source: usize, lane: &mut Lane, run: &Run<'_>, out: &mut Outputs) -> Result<(), Error> {
        let rows = self.decoders[source].finish()?;
        if rows.batch.num_rows() == 0 {
            return Ok(());
        }
        self.counters.rows_backfilled += rows.batch.num_rows() as u64;
        let remarks = lane.reread(&self.sources[source].spec, &rows)?;
        self.say(source, &remarks, &rows, run, out);
        Ok(())
    }

    /// Everything below `next` was read again.
    fn reread_to(&self, place: &TopicPartition, partition: &mut Partition, next: i64) -> Result<(), Error> {
        let position = partition.position;
        let reached = partition.reached();
        for (source, lane) in &mut partition.lanes {
            lane.has_reread(next.min(position));
            self.meet(*source, lane, place, position, &reached)?;
        }
        Ok(())
    }

    /// Sets that have everything below the partition's position are done, and followed from there on. Asked before the position moves on.
    pub(super) fn meet(
        &self,
        source: usize,
        lane: &mut Lane,
        place: &TopicPartition,
        position: i64,
        reached: &Reached,
    ) -> Result<(), Error> {
        let plan = &self.sources[source];
        let met_ms = |set: usize| {
            let beside = self.sources_beside(&place.topic, source, &plan.sets[set]);
            beside.filter_map(|other| *reached.get(&other)?).max()
        };
        for set in lane.meet(position, met_ms)? {
            let views = plan::views_of(plan, plan.sets[set].fingerprint);
            tracing::info!(partition = %place, views, offset = position, "backfill is done");
        }
        Ok(())
    }
}

/// The watermarks of a partition's sources.
pub(super) type Reached = BTreeMap<usize, Option<i64>>;

impl Partition {
    pub(super) fn reached(&self) -> Reached {
        let lanes = self.lanes.iter();
        lanes.map(|(source, lane)| (*source, lane.watermark_ms())).collect()
    }

    /// The least offset that is read again of it.
    pub(super) fn rereads_from(&self) -> Option<i64> {
        self.lanes.iter().filter_map(|(_, lane)| lane.rereads_from()).min()
    }

    /// Whether what is read again has all but come to where the partition stands.
    pub(super) fn is_waiting_to_meet(&self) -> bool {
        let close = |from: i64| self.position - from <= RECORDS_WAITED_FOR;
        self.rereads_from().is_some_and(close) && self.lanes.iter().all(|(_, lane)| !lane.is_replaying())
    }
}
