//! Thompson sampling over a few actions, with the probability of each choice computed before it is drawn.
//!
//! Sampling from posteriors and taking the best gives each action a probability: that of being the best. Here those
//! probabilities are integrated on a fixed grid, bounded, and then drawn from once. What is logged as propensity is
//! therefore exact, and a replay draws the same.

use serde::{Deserialize, Serialize};

/// Points of the grid on which posteriors are integrated.
const GRID: usize = 512;

/// What is known of one action in one situation.
#[derive(Clone, Debug, PartialEq)]
pub struct Arm {
    pub action: String,
    /// Parameters of the posterior of "it heals": a Beta distribution. Both are above zero.
    pub healed: f64,
    pub failed: f64,
    /// What the action costs by itself, in the unit of a healed incident.
    pub cost: f64,
}

/// A drawn choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Draw {
    pub chosen: usize,
    /// Probability with which each arm would have been drawn.
    pub propensities: Vec<f64>,
}

/// Draws an arm. `floor` bounds every propensity from below, so that every allowed action is tried now and then; `ceiling`
/// from above, so that none is beyond doubt. `seed` names what is decided.
pub fn draw(arms: &[Arm], floor: f64, ceiling: f64, seed: u128) -> Option<Draw> {
    if arms.is_empty() {
        return None;
    }
    let propensities = bound(best_probabilities(arms), floor, ceiling);
    let point = unit(seed);
    let mut passed = 0.0;
    let mut chosen = propensities.len() - 1;
    for (at, propensity) in propensities.iter().enumerate() {
        passed += propensity;
        if point < passed {
            chosen = at;
            break;
        }
    }
    Some(Draw { chosen, propensities })
}

/// For each arm the probability that its posterior, less its cost, is the greatest.
fn best_probabilities(arms: &[Arm]) -> Vec<f64> {
    let posteriors: Vec<Posterior> = arms.iter().map(Posterior::of).collect();
    let mut best: Vec<f64> = Vec::with_capacity(arms.len());
    for (at, (arm, posterior)) in arms.iter().zip(&posteriors).enumerate() {
        let mut probability = 0.0;
        for point in 0..GRID {
            let value = centre(point) - arm.cost;
            let others = arms
                .iter()
                .zip(&posteriors)
                .enumerate()
                .filter(|(other, _)| *other != at);
            let below: f64 = others
                .map(|(_, (other, posterior))| posterior.below(value + other.cost))
                .product();
            probability += posterior.mass[point] * below;
        }
        best.push(probability);
    }
    let sum: f64 = best.iter().sum();
    if sum > 0.0 {
        best.iter_mut().for_each(|probability| *probability /= sum);
    } else {
        best.fill(1.0 / arms.len() as f64);
    }
    best
}

fn centre(point: usize) -> f64 {
    (point as f64 + 0.5) / GRID as f64
}

/// A Beta distribution on the grid.
struct Posterior {
    mass: Vec<f64>,
    /// Mass of all points before one.
    before: Vec<f64>,
}

impl Posterior {
    fn of(arm: &Arm) -> Self {
        let parameter = |value: f64| if value.is_finite() { value.clamp(1e-3, 1e6) } else { 1.0 };
        let (healed, failed) = (parameter(arm.healed), parameter(arm.failed));
        let density = |point: usize| {
            let x = centre(point);
            (healed - 1.0) * x.ln() + (failed - 1.0) * (1.0 - x).ln()
        };
        let logs: Vec<f64> = (0..GRID).map(density).collect();
        let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut mass: Vec<f64> = logs.iter().map(|log| (log - top).exp()).collect();
        let sum: f64 = mass.iter().sum();
        mass.iter_mut().for_each(|value| *value /= sum);
        let mut before = Vec::with_capacity(GRID + 1);
        let mut passed = 0.0;
        for value in &mass {
            before.push(passed);
            passed += value;
        }
        before.push(passed);
        Self { mass, before }
    }

    /// Probability of a value below `x`; mass is spread evenly within a cell.
    fn below(&self, x: f64) -> f64 {
        let at = (x * GRID as f64).clamp(0.0, GRID as f64);
        let cell = (at.floor() as usize).min(GRID - 1);
        self.before[cell] + self.mass[cell] * (at - cell as f64)
    }
}

/// Brings probabilities between bounds that sum to one: what is taken from some is given to the others in proportion.
fn bound(mut probabilities: Vec<f64>, floor: f64, ceiling: f64) -> Vec<f64> {
    let count = probabilities.len() as f64;
    let floor = floor.clamp(0.0, 1.0 / count);
    let ceiling = ceiling.clamp(1.0 / count, 1.0);
    // The lower bound is a mixture with the uniform choice: exact, and it keeps the order.
    for probability in &mut probabilities {
        *probability = floor + (1.0 - floor * count) * *probability;
    }
    let Some(top) = (0..probabilities.len()).max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b])) else {
        return probabilities;
    };
    let excess = probabilities[top] - ceiling;
    if excess > 0.0 && probabilities.len() > 1 {
        probabilities[top] = ceiling;
        let rest = 1.0 - ceiling - excess;
        for (at, probability) in probabilities.iter_mut().enumerate() {
            if at != top {
                *probability *= if rest > 0.0 { (1.0 - ceiling) / rest } else { 1.0 };
            }
        }
    }
    let sum: f64 = probabilities.iter().sum();
    probabilities.iter_mut().for_each(|probability| *probability /= sum);
    probabilities
}

/// A number in [0, 1) from a seed: the finaliser of SplitMix64 over both halves.
fn unit(seed: u128) -> f64 {
    let mix = |mut z: u64| {
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let bits = mix(mix(seed as u64) ^ (seed >> 64) as u64);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arm(healed: f64, failed: f64, cost: f64) -> Arm {
        Arm {
            action: String::new(),
            healed,
            failed,
            cost,
        }
    }

    fn arms() -> impl Strategy<Value = Vec<Arm>> {
        let one = (0.01..200.0f64, 0.01..200.0f64, 0.0..0.5f64).prop_map(|(h, f, c)| arm(h, f, c));
        prop::collection::vec(one, 1..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn propensities_are_probabilities_within_their_bounds(arms in arms(), seed in any::<u128>()) {
            let draw = draw(&arms, 0.05, 0.9, seed).unwrap();
            let sum: f64 = draw.propensities.iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-9);
            prop_assert!(draw.chosen < arms.len());
            for propensity in &draw.propensities {
                prop_assert!(*propensity >= 0.05 - 1e-9);
                prop_assert!(*propensity <= 0.9 + 1e-9 || arms.len() == 1);
            }
        }
    }

    /// Logged propensities are the frequencies with which arms are drawn.
    #[test]
    fn draws_follow_their_propensities() {
        let arms = [arm(4.0, 6.0, 0.0), arm(6.0, 4.0, 0.1), arm(1.0, 1.0, 0.3)];
        let mut counts = [0u32; 3];
        let mut propensities = Vec::new();
        for seed in 0..20_000u128 {
            let draw = draw(&arms, 0.05, 0.9, seed * 0x1_0000_0001_0000_0001).unwrap();
            counts[draw.chosen] += 1;
            propensities = draw.propensities;
        }
        for (count, propensity) in counts.iter().zip(propensities) {
            let share = f64::from(*count) / 20_000.0;
            assert!((share - propensity).abs() < 0.015, "{share} against {propensity}");
        }
    }

    /// The closed form for two Betas: P(Beta(1, 1) < Beta(2, 1)) = 2/3.
    #[test]
    fn the_better_arm_is_better_as_often_as_it_should() {
        let best = best_probabilities(&[arm(2.0, 1.0, 0.0), arm(1.0, 1.0, 0.0)]);
        assert!((best[0] - 2.0 / 3.0).abs() < 1e-3, "{best:?}");
    }

    /// Regret of the sampler shrinks: after a few hundred incidents it mostly picks what heals.
    #[test]
    fn it_learns_what_heals() {
        let truth = [0.2, 0.8, 0.5];
        let mut arms: Vec<Arm> = truth.iter().map(|_| arm(1.0, 1.0, 0.0)).collect();
        let mut right = 0;
        for round in 0..500u128 {
            let seed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834);
            let draw = draw(&arms, 0.02, 0.95, seed).unwrap();
            let healed = unit(seed ^ 0xabcdef) < truth[draw.chosen];
            let arm = &mut arms[draw.chosen];
            if healed {
                arm.healed += 1.0
            } else {
                arm.failed += 1.0
            }
            right += u32::from(round >= 400 && draw.chosen == 1);
        }
        assert!(right >= 80, "{right} of the last 100");
    }
}
