//! What a stage reads again, beside what is new: a reader outside of the group, polled once a turn.

use std::time::{Duration, Instant};

use protocol::{Batch, TopicPartition};

use super::StageLoop;
use crate::{Consumer, ConsumerConfig, Error, Polled};

/// The reader, and what it reads.
pub(super) struct Reread {
    reader: Box<dyn Consumer>,
    partitions: Vec<TopicPartition>,
    batch: Batch,
}

impl StageLoop<'_> {
    /// Begins to read again what the stage says.
    pub(super) fn open_reread(&mut self) -> Result<(), Error> {
        self.reread = None;
        let places = self.stage.rereads();
        if places.is_empty() {
            return Ok(());
        }
        let client_id = format!("{}-reread", self.config.client_id);
        let mut reader = self.broker.consumer(&ConsumerConfig::new(client_id, None))?;
        reader.assign(&places)?;
        self.reread = Some(Reread {
            reader,
            partitions: places.into_iter().map(|(partition, _)| partition).collect(),
            batch: Batch::default(),
        });
        Ok(())
    }

    /// One poll of it. Tells whether there was something.
    pub(super) fn poll_reread(&mut self, wait: Duration) -> Result<bool, Error> {
        let Some(mut reread) = self.reread.take() else {
            return Ok(false);
        };
        let polled = reread.reader.poll(wait, &mut reread.batch);
        let stepped = match &polled {
            Ok(Polled::Records | Polled::Idle) => self.step_again(&mut reread),
            _ => Ok(true),
        };
        // A call that failed may succeed in the next turn.
        if !matches!(stepped, Ok(false)) {
            self.reread = Some(reread);
        }
        stepped?;
        self.publish()?;
        match polled? {
            Polled::OutOfRange(partition) => {
                let reason = format!("retention has removed what was to be read of {partition}");
                Err(Error::abort("reading again", reason))
            }
            polled => Ok(polled == Polled::Records),
        }
    }

    /// Hands over what was read; tells whether there is more.
    fn step_again(&mut self, reread: &mut Reread) -> Result<bool, Error> {
        let position = |partition: &TopicPartition| Some((partition.clone(), reread.reader.position(partition)?));
        let next: Vec<(TopicPartition, i64)> = reread.partitions.iter().filter_map(position).collect();
        let started = Instant::now();
        let result = self.stage.reread(&reread.batch, &next, &mut self.outputs);
        self.window.step += started.elapsed();
        result.map_err(|error| self.stage_error(error))?;
        let places = self.stage.rereads();
        if places.len() != reread.partitions.len() {
            let assigned = reread.reader.assign(&places);
            assigned.map_err(|error| Error::abort("reading again", error))?;
            reread.partitions = places.into_iter().map(|(partition, _)| partition).collect();
        }
        Ok(!reread.partitions.is_empty())
    }
}
