//! `make bench-healing`: the trial's arms side by side, the product killed again and again, the table, the goals. Exit code 0: all
//! reached, 1: one missed, 2: could not run.

mod kills;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, thread};

use anyhow::{Context, Result};
use clap::Parser;
use kills::{Killed, Kills};
use remediation::choose::{TrainOptions, train};
use trial::{
    Error, Random,
    arm::{Arm, Oracle, Product, Run, StaticRule, Way, live, storm},
    catalogue::{self, Catalogue, Fault},
    marks::Marks,
    world::World,
};

/// Breaks simulated services and judges what the product's decision code does about it.
#[derive(Parser)]
#[command(name = "homeostat-trial", version)]
struct Cli {
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs with a fault, for each arm
    #[arg(long, default_value_t = 1_000)]
    runs: u32,
    /// Runs in which nothing breaks
    #[arg(long, default_value_t = 120)]
    healthy: u32,
    /// Kills of processors and executors, at least; half of them of each
    #[arg(long, default_value_t = KILLS_MIN)]
    kills: u32,
    /// Past incidents to learn from
    #[arg(long, default_value_t = 500)]
    history: u32,
    /// Services, actions and faults; docs/healing.md describes the file
    #[arg(long)]
    catalogue: Option<PathBuf>,
    /// Also prints what was done about each fault
    #[arg(long)]
    faults: bool,
}

/// Two runs of five show something that does not tell what is wrong.
const AMBIGUOUS: (u32, u32) = (2, 5);
/// Learning is judged from this run on.
const LEARNED_AFTER: u32 = 500;
/// Goals are judged over no fewer kills.
const KILLS_MIN: u32 = 1_000;
const ARMS: [&str; 5] = ["static rule", "rules only", "tree", "tree + bandit", "oracle"];
/// Worlds to learn from are not those to be judged in.
const PAST: u64 = 0x7061_7374;
const HEALTHY: u64 = 0x6865_616c;
const KILLED: u64 = 0x6465_6164;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let (name, text) = match &cli.catalogue {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            (path.display().to_string(), text)
        }
        None => ("(shipped)".to_owned(), catalogue::DEFAULT.to_owned()),
    };
    let catalogue = Catalogue::read(&name, &text)?;
    let model = learn(&catalogue, cli)?;
    let ways = [Way::Rules, Way::Tree(model.clone()), Way::Bandit(model)];
    let (results, killed) = thread::scope(|scope| {
        let catalogue = &catalogue;
        let killed = scope.spawn(|| kill(catalogue, cli));
        let product = |way: &Way| Product::new(catalogue, way, cli.seed, 0.2);
        let run = move |arm: Result<Product, Error>| scope.spawn(move || lives(catalogue, cli, &mut arm?));
        let products: Vec<_> = ways.iter().map(|way| run(product(way))).collect();
        let fixed = scope.spawn(|| {
            [
                lives(catalogue, cli, &mut StaticRule::default()),
                lives(catalogue, cli, &mut Oracle::default()),
            ]
        });
        let mut results: Vec<Result<Lived, Error>> = products.into_iter().map(joined).collect();
        let [rule, oracle] = joined(fixed);
        results.insert(0, rule);
        results.push(oracle);
        (results, joined(killed))
    });
    let (results, killed): (Vec<Lived>, _) = (results.into_iter().collect::<Result<_, _>>()?, killed?);
    let (busiest, budget) = storm(&catalogue, 10_000, 60)?;
    if cli.faults {
        results
            .iter()
            .zip(ARMS)
            .for_each(|(lived, arm)| print_faults(arm, lived));
    }
    Ok(report(cli, &results, killed, busiest, budget))
}

/// Faults, one after the other, until so many have died over them.
fn kill(catalogue: &Catalogue, cli: &Cli) -> Result<Kills, Error> {
    let mut watch = trial::watch(catalogue)?;
    let mut arm = Killed::new(catalogue, cli.seed);
    let enough = |kills: &Kills| kills.all() >= cli.kills && kills.executor.min(kills.processor) >= cli.kills / 2;
    for at in 0..cli.kills.saturating_mul(4) {
        if enough(&arm.total) {
            break;
        }
        let mut random = Random::derive(cli.seed ^ KILLED, u64::from(at));
        let fault = pick(catalogue, at, &mut random);
        live(&mut World::new(catalogue, Some(fault), random), &mut watch, &mut arm)?;
    }
    Ok(arm.total)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

struct Lived {
    broken: Vec<Run>,
    healthy: Vec<Run>,
}

/// All runs of one arm, one after the other, as a fleet would live through them.
fn lives(catalogue: &Catalogue, cli: &Cli, arm: &mut dyn Arm) -> Result<Lived, Error> {
    let mut watch = trial::watch(catalogue)?;
    let mut lived = Lived {
        broken: Vec::new(),
        healthy: Vec::new(),
    };
    for at in 0..cli.runs {
        let mut random = Random::derive(cli.seed, u64::from(at));
        let fault = pick(catalogue, at, &mut random);
        let mut world = World::new(catalogue, Some(fault), random);
        lived.broken.push(live(&mut world, &mut watch, arm)?);
    }
    for at in 0..cli.healthy {
        let random = Random::derive(cli.seed ^ HEALTHY, u64::from(at));
        lived
            .healthy
            .push(live(&mut World::new(catalogue, None, random), &mut watch, arm)?);
    }
    Ok(lived)
}

/// A fault by its weight.
fn pick<'a>(catalogue: &'a Catalogue, at: u32, random: &mut Random) -> &'a Fault {
    let ambiguous = at % AMBIGUOUS.1 < AMBIGUOUS.0;
    let faults: Vec<&Fault> = catalogue
        .faults
        .iter()
        .filter(|fault| fault.ambiguous == ambiguous)
        .collect();
    let mut left = random.unit() * faults.iter().map(|fault| fault.weight).sum::<f64>();
    for fault in &faults {
        left -= fault.weight;
        if left < 0.0 {
            return fault;
        }
    }
    faults
        .last()
        .expect("a catalogue that was read has faults of both kinds")
}

/// A model of incidents that people settled and wrote down, in worlds of their own.
fn learn(catalogue: &Catalogue, cli: &Cli) -> Result<serde_json::Value> {
    let mut watch = trial::watch(catalogue)?;
    let mut product = Product::new(catalogue, &Way::Unlearned, cli.seed, 0.0)?;
    let mut examples = Vec::new();
    for at in 0..cli.history {
        let mut random = Random::derive(cli.seed ^ PAST, u64::from(at));
        let fault = pick(catalogue, at, &mut random);
        let mut world = World::new(catalogue, Some(fault), random);
        live(&mut world, &mut watch, &mut product)?;
        let label = match (fault.cures.first(), fault.heals_s) {
            (Some(cure), _) => cure,
            (None, Some(_)) => "noop",
            (None, None) => "escalate",
        };
        let service = world.truth().map(|truth| truth.service).unwrap_or_default();
        examples.extend(product.example(&format!("{at:06}"), service, label));
    }
    let model = train(&examples, &TrainOptions::default()).context("learning from past incidents")?;
    println!(
        "model of {} past incidents, right out of bag {:.3}, always the most frequent {:.3}",
        examples.len(),
        model.accuracy(),
        model.majority()
    );
    Ok(serde_json::from_slice(&model.to_json())?)
}

fn print_faults(arm: &str, lived: &Lived) {
    let mut by_fault: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in &lived.broken {
        by_fault
            .entry(run.fault.as_deref().unwrap_or_default())
            .or_default()
            .push(run);
    }
    for (fault, runs) in by_fault {
        let marks = Marks::of(runs.iter().copied());
        let mut done: BTreeMap<String, u32> = BTreeMap::new();
        for action in runs.iter().flat_map(|run| &run.done) {
            let name = format!("{}{}", action.kind, if action.needed { "" } else { " (false)" });
            *done.entry(name).or_default() += 1;
        }
        let escalated = runs.iter().filter(|run| run.escalated).count();
        println!(
            "{arm:<14} {fault:<24} {:>4} runs, right {:.2}, median {:>5.0} s, escalated {escalated}, {done:?}",
            runs.len(),
            marks.right.value,
            marks.seconds_median
        );
    }
}

/// Prints the tables and the goals; whether all are reached.
fn report(cli: &Cli, results: &[Lived], killed: Kills, busiest: usize, budget: usize) -> bool {
    let of = |ambiguous: bool| {
        let marks = |lived: &Lived| Marks::of(lived.broken.iter().filter(|run| run.ambiguous == ambiguous));
        results.iter().map(marks).collect::<Vec<_>>()
    };
    let (clear, ambiguous) = (of(false), of(true));
    print_table("clear", &clear);
    print_table("ambiguous", &ambiguous);
    let after = LEARNED_AFTER.min(cli.runs / 2) as usize;
    let learned = |lived: &Lived, ambiguous: bool| {
        Marks::of(lived.broken.iter().skip(after).filter(|run| run.ambiguous == ambiguous))
            .right
            .value
    };
    let regret = |ambiguous: bool| 100.0 * (learned(&results[4], ambiguous) - learned(&results[3], ambiguous));
    let best = &results[3];
    let healthy_actions: usize = best.healthy.iter().map(|run| run.done.len()).sum();
    let sum = |of: fn(&Run) -> u32| results.iter().flat_map(|lived| &lived.broken).map(of).sum::<u32>();
    let (replayed, same) = (sum(|run| run.replayed), sum(|run| run.replayed_same));
    let (rule, product) = (&clear[0], &clear[3]);
    let fewer = 1.0 - f64::from(product.false_actions) / f64::from(rule.false_actions.max(1));
    let faster = 1.0 - product.seconds_median / rule.seconds_median.max(1.0);
    let goals = [
        (
            "repair success >= 0.80",
            product.repair_success.value,
            product.repair_success.value >= 0.80,
        ),
        (
            "false remediation <= 0.05",
            product.false_remediation.value,
            product.false_remediation.value <= 0.05,
        ),
        ("false actions, less than static >= 0.40", fewer, fewer >= 0.40),
        (
            "actions in healthy runs = 0",
            healthy_actions as f64,
            healthy_actions == 0 && cli.healthy >= 100,
        ),
        ("median to recovery, less than static >= 0.25", faster, faster >= 0.25),
        (
            "p95 to recovery, s, no worse than static",
            product.seconds_p95,
            product.seconds_p95 <= rule.seconds_p95,
        ),
        (
            "closed without a person >= 0.56",
            product.without_a_person.value,
            product.without_a_person.value >= 0.56,
        ),
        (
            "unsafe proposals blocked >= 0.99",
            product.unsafe_blocked.value,
            product.unsafe_blocked.value >= 0.99,
        ),
        (
            "gate precision >= 0.90",
            product.gate_precision.value,
            product.gate_precision.value >= 0.90,
        ),
        (
            "duplicate effects = 0 over >= 1000 kills",
            f64::from(killed.duplicate_effects),
            killed.duplicate_effects == 0 && killed.all() >= KILLS_MIN && killed.effects > 0,
        ),
        (
            "commands or last words that contradict others = 0",
            f64::from(killed.contradictions),
            killed.contradictions == 0,
        ),
        (
            "effects that were never reported = 0",
            f64::from(killed.unreported),
            killed.unreported == 0,
        ),
        (
            "most actions per minute in a storm <= budget",
            busiest as f64,
            busiest <= budget,
        ),
        (
            "regret after learning <= 10 points",
            regret(false),
            regret(false) <= 10.0,
        ),
        (
            "decisions reproduced on replay = all",
            f64::from(same) / f64::from(replayed.max(1)),
            same == replayed,
        ),
    ];
    println!("\n| goal (tree + bandit, clear runs) | reached | |\n|---|---|---|");
    for (goal, value, reached) in &goals {
        println!("| {goal} | {value:.3} | {} |", if *reached { "yes" } else { "NO" });
    }
    println!(
        "\nregret on ambiguous runs: {:.1} points; decisions replayed {replayed}",
        regret(true)
    );
    println!(
        "kills: {} of the processor and {} of the executor, over {} commands and {} effects; {} effects twice",
        killed.processor, killed.executor, killed.commands, killed.effects, killed.duplicate_effects
    );
    let reached = goals.iter().all(|(_, _, reached)| *reached);
    let line = serde_json::json!({
        "repair_success": product.repair_success.value, "false_remediation": product.false_remediation.value,
        "healthy_run_actions": healthy_actions, "duplicate_effects": killed.duplicate_effects, "healthy_runs": cli.healthy,
        "runs": cli.runs, "seed": cli.seed, "reached": reached, "kills": killed.all(), "processor_kills": killed.processor, "executor_kills": killed.executor,
        "killed_commands": killed.commands, "killed_effects": killed.effects, "regret_points": regret(false),
        "ambiguous": {"repair_success": ambiguous[3].repair_success.value, "false_remediation": ambiguous[3].false_remediation.value, "regret_points": regret(true)},
        "less_false_than_static": fewer, "faster_than_static": faster,
        "without_a_person": product.without_a_person.value, "unsafe_blocked": product.unsafe_blocked.value,
        "gate_precision": product.gate_precision.value, "storm_actions_per_minute": busiest, "storm_budget": budget,
    });
    println!("{line}");
    reached
}

fn print_table(kind: &str, marks: &[Marks]) {
    println!("\n| {kind} runs: {} | {} |", marks[0].runs, ARMS.join(" | "));
    println!("|---|{}", "---|".repeat(ARMS.len()));
    let row = |name: &str, cell: &dyn Fn(&Marks) -> String| {
        let cells: Vec<String> = marks.iter().map(cell).collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    let share = |of: fn(&Marks) -> trial::marks::Share| {
        move |marks: &Marks| {
            let share = of(marks);
            match share.of {
                0 => "-".to_owned(),
                _ => format!("{:.3} ({:.3}-{:.3})", share.value, share.low, share.high),
            }
        }
    };
    row("actions", &|marks| marks.executed.to_string());
    row("repair success", &share(|marks| marks.repair_success));
    row("false remediation", &share(|marks| marks.false_remediation));
    row("false actions", &|marks| marks.false_actions.to_string());
    row("fault to recovery, median s", &|marks| {
        format!("{:.0}", marks.seconds_median)
    });
    row("fault to recovery, p95 s", &|marks| format!("{:.0}", marks.seconds_p95));
    row("fault to recovery, mean s", &|marks| {
        format!("{:.0} ± {:.0}", marks.seconds_mean, marks.seconds_half)
    });
    row("closed without a person", &share(|marks| marks.without_a_person));
    row("unsafe proposals blocked", &share(|marks| marks.unsafe_blocked));
    row("gate precision", &share(|marks| marks.gate_precision));
    row("first action right", &share(|marks| marks.right));
}
