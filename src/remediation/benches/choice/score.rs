//! Cross-validation and what is printed of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use remediation::choose::{Example, TrainOptions, train};

const FOLDS: usize = 5;
const ROUNDS: u64 = 2;

/// What was said of the incidents of one label, and how often the label was said.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    asked: usize,
    right: usize,
    abstained: usize,
    /// Right, and said with a lead.
    right_sure: usize,
    /// The label was the answer, rightly or not.
    said: usize,
}

/// Prints how often a model is right on incidents that it has not seen.
pub fn report(name: &str, examples: &[Example]) -> Result<()> {
    let mut by_label: BTreeMap<&str, Vec<&Example>> = BTreeMap::new();
    for example in examples {
        by_label.entry(&example.label).or_default().push(example);
    }
    let (count, labels) = (examples.len(), by_label.len());
    if let [only] = by_label.keys().collect::<Vec<_>>().as_slice() {
        println!("{name}: {count} incidents, all {only:?}: nothing to choose between\n");
        return Ok(());
    }
    let most = by_label.values().map(Vec::len).max().context("an empty table")?;
    let by_class = cross_validate(&mut by_label)?;
    let sum = |of: fn(&Tally) -> usize| by_class.values().map(of).sum::<usize>();
    let (asked, abstained) = (sum(|tally| tally.asked), sum(|tally| tally.abstained));
    let (right, majority) = (share(sum(|tally| tally.right), asked), share(most, count));
    // Rounds ask about the same incidents again: they count once.
    let (low, high) = wilson(right, count as f64);
    println!(
        "{name}: {count} incidents, {labels} labels, majority {majority:.3}, right {right:.3} ({low:.3} to {high:.3}), abstained {:.3}, \
         right where not {:.3}",
        share(abstained, asked),
        share(sum(|tally| tally.right_sure), asked - abstained),
    );
    if low <= majority {
        println!("  too few incidents, or too little in them, to say that it is better than the majority");
    }
    let once = by_label.values().filter(|examples| examples.len() < FOLDS).count();
    if once > 0 {
        println!("  labels with fewer than {FOLDS} incidents, which are not in every fold: {once}");
    }
    println!(
        "  {:<62} {:>5} {:>7} {:>9} {:>9}",
        "label", "count", "recall", "precision", "abstained"
    );
    for (label, tally) in &by_class {
        println!(
            "  {label:<62} {:>5} {:>7.3} {:>9} {:>9.3}",
            by_label[label].len(),
            share(tally.right, tally.asked),
            match tally.said {
                0 => "-".to_owned(),
                said => format!("{:.3}", share(tally.right, said)),
            },
            share(tally.abstained, tally.asked)
        );
    }
    println!();
    Ok(())
}

fn cross_validate<'a>(by_label: &mut BTreeMap<&'a str, Vec<&'a Example>>) -> Result<BTreeMap<&'a str, Tally>> {
    let mut by_class: BTreeMap<&str, Tally> = by_label.keys().map(|label| (*label, Tally::default())).collect();
    for round in 0..ROUNDS {
        let mixed = |example: &&Example| protocol::id::derived("fold", &[&example.incident, &round.to_string()]);
        let mut folds: Vec<Vec<&Example>> = vec![Vec::new(); FOLDS];
        let mut at = 0;
        for examples in by_label.values_mut() {
            examples.sort_by_key(mixed);
            for example in examples {
                folds[at % FOLDS].push(example);
                at += 1;
            }
        }
        for held_back in 0..FOLDS {
            let others = (0..FOLDS).filter(|fold| *fold != held_back);
            let learned: Vec<Example> = others
                .flat_map(|fold| &folds[fold])
                .map(|example| (*example).clone())
                .collect();
            let model = train(&learned, &TrainOptions::default())?;
            for example in &folds[held_back] {
                let ranking = model.choose(&example.features);
                let best = ranking.best().context("a model knows actions")?;
                if let Some(said) = by_class.get_mut(best) {
                    said.said += 1;
                }
                let tally = by_class.get_mut(&*example.label).context("every label has a tally")?;
                let right = best == example.label;
                tally.asked += 1;
                tally.right += usize::from(right);
                tally.abstained += usize::from(ranking.abstained);
                tally.right_sure += usize::from(right && !ranking.abstained);
            }
        }
    }
    Ok(by_class)
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// 95 % interval of a share of `count`.
fn wilson(share: f64, count: f64) -> (f64, f64) {
    const Z: f64 = 1.96;
    let middle = share + Z * Z / (2.0 * count);
    let half = Z * (share * (1.0 - share) / count + Z * Z / (4.0 * count * count)).sqrt();
    let scale = 1.0 + Z * Z / count;
    ((middle - half) / scale, (middle + half) / scale)
}
