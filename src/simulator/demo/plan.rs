//! What breaks, where and when: all of it from the seed.

use std::time::Duration;

use crate::{Fault, Random, graph::SHOP};

/// One fault to inject.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub fault: Fault,
    pub service: &'static str,
    /// Quiet before it.
    pub pause: Duration,
}

/// The faults in order, without end. Every four of them are all kinds, each at another service.
pub struct Plan {
    random: Random,
    round: Vec<Planned>,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::derive(seed, "plan"),
            round: Vec::new(),
        }
    }
}

impl Iterator for Plan {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        if self.round.is_empty() {
            let mut faults = Fault::ALL;
            self.random.shuffle(&mut faults);
            let mut services = SHOP.map(|role| role.name);
            self.random.shuffle(&mut services);
            self.round = faults
                .into_iter()
                .zip(services)
                .map(|(fault, service)| {
                    let pause = Duration::from_secs_f64(self.random.between(2.0, 4.0));
                    Planned { fault, service, pause }
                })
                .collect();
        }
        self.round.pop()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_seed_decides_everything() {
        let plan = |seed| Plan::new(seed).take(8).collect::<Vec<_>>();
        assert_eq!(plan(5), plan(5));
        assert_ne!(plan(5), plan(6));
    }

    #[test]
    fn every_round_has_every_fault_at_another_service() {
        for seed in 0..50 {
            let round: Vec<_> = Plan::new(seed).skip(4).take(4).collect();
            assert_eq!(
                round.iter().map(|planned| planned.fault).collect::<BTreeSet<_>>().len(),
                4
            );
            assert_eq!(
                round
                    .iter()
                    .map(|planned| planned.service)
                    .collect::<BTreeSet<_>>()
                    .len(),
                4
            );
        }
    }
}
