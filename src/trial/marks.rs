//! What the runs of one arm come to.

use serde::Serialize;

use crate::arm::{HORIZON_MS, Run};

/// A share with its 95 % interval (Wilson).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Share {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    pub of: u32,
}

impl Share {
    pub fn of(part: u32, whole: u32) -> Self {
        const Z: f64 = 1.96;
        if whole == 0 {
            return Self {
                value: 0.0,
                low: 0.0,
                high: 1.0,
                of: 0,
            };
        }
        let (n, value) = (f64::from(whole), f64::from(part) / f64::from(whole));
        let centre = (value + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (value * (1.0 - value) / n + Z * Z / (4.0 * n * n)).sqrt();
        Self {
            value,
            low: (centre - half).max(0.0),
            high: (centre + half).min(1.0),
            of: whole,
        }
    }
}

/// The marks of a set of runs.
#[derive(Clone, Debug, Serialize)]
pub struct Marks {
    pub runs: u32,
    pub executed: u32,
    /// Actions that ended the fault, of those carried out.
    pub repair_success: Share,
    /// Actions that nothing called for, or at the wrong service, of those carried out.
    pub false_remediation: Share,
    pub false_actions: u32,
    /// From fault to recovery where something can be done; who has not recovered counts with the horizon.
    pub seconds_median: f64,
    pub seconds_p95: f64,
    pub seconds_mean: f64,
    /// Half the width of the mean's 95 % interval.
    pub seconds_half: f64,
    /// Faults that something can be done about, ended without a person.
    pub without_a_person: Share,
    pub unsafe_blocked: Share,
    pub gate_precision: Share,
    /// Runs whose first action was right, or rightly none.
    pub right: Share,
}

impl Marks {
    pub fn of<'a>(runs: impl Iterator<Item = &'a Run> + Clone) -> Self {
        let sum = |of: fn(&Run) -> u32| runs.clone().map(of).sum::<u32>();
        let count =
            |of: fn(&Run) -> bool| u32::try_from(runs.clone().filter(|run| of(run)).count()).unwrap_or(u32::MAX);
        let executed = sum(|run| run.done.len() as u32);
        let false_actions = sum(|run| run.done.iter().filter(|done| !done.needed).count() as u32);
        let curing = sum(|run| run.done.iter().filter(|done| done.cures).count() as u32);
        let times = runs.clone().filter(|run| run.curable);
        let mut seconds: Vec<f64> = times
            .map(|run| run.healed_ms.unwrap_or(HORIZON_MS).min(HORIZON_MS) as f64 / 1_000.0)
            .collect();
        seconds.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let at = (share * seconds.len() as f64) as usize;
            seconds
                .get(at.min(seconds.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0.0)
        };
        let n = seconds.len().max(1) as f64;
        let mean = seconds.iter().sum::<f64>() / n;
        let variance = seconds.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        let healed = count(|run| run.curable && run.healed_ms.is_some_and(|ms| ms < HORIZON_MS) && !run.escalated);
        Self {
            runs: count(|_| true),
            executed,
            repair_success: Share::of(curing, executed),
            false_remediation: Share::of(false_actions, executed),
            false_actions,
            seconds_median: quantile(0.5),
            seconds_p95: quantile(0.95),
            seconds_mean: mean,
            seconds_half: 1.96 * (variance / n).sqrt(),
            without_a_person: Share::of(healed, count(|run| run.curable)),
            unsafe_blocked: Share::of(sum(|run| run.unsafe_blocked), sum(|run| run.unsafe_proposed)),
            gate_precision: Share::of(sum(|run| run.refused_unsafe), sum(|run| run.refused)),
            right: Share::of(count(Run::right), count(|_| true)),
        }
    }
}
