//! Scenarios as text under `tests/scenarios`: a command per line, what the fleet says to it in lines that begin with `>`.
//! `BLESS=1` writes what the fleet says now; the change is then read in the diff.

use std::{fmt::Write, fs, path::Path, time::Duration};

use protocol::message::{Control, Mode, OutcomeStatus};

use super::World;
use crate::{Choice, Effect, FleetConfig, Limit, Policy};

#[test]
fn scenarios() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut wrong = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let said = run(&text, &path);
        if said == text {
            continue;
        }
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, said).unwrap();
        } else {
            wrong.push(format!("{}\n{}", path.display(), first_difference(&text, &said)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn first_difference(expected: &str, said: &str) -> String {
    let at = expected.lines().zip(said.lines()).take_while(|(a, b)| a == b).count();
    let from = at.saturating_sub(3);
    let show = |text: &str| {
        text.lines()
            .skip(from)
            .take(8)
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    };
    format!(
        "  line {}: expected\n{}  but the fleet said\n{}",
        at + 1,
        show(expected),
        show(said)
    )
}

/// Runs a scenario and writes it down again with what the fleet says.
fn run(text: &str, path: &Path) -> String {
    let mut config = FleetConfig {
        startup_grace: Duration::ZERO,
        settle: Duration::ZERO,
        settle_silent: Duration::ZERO,
        ..FleetConfig::default()
    };
    let mut policies = Vec::new();
    let mut world: Option<World> = None;
    let mut written = String::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('>') {
            continue;
        }
        writeln!(written, "{line}").unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let fail = |what: &str| -> ! { panic!("{}:{}: {what}: {line}", path.display(), number + 1) };
        match words.as_slice() {
            [] => {}
            [first, ..] if first.starts_with('#') => {}
            ["config", ..] => {
                config = overlay(&config, line.trim_start_matches("config").trim());
            }
            ["policy", rest @ ..] => policies.push(policy(rest).unwrap_or_else(|| fail("not a policy"))),
            command => {
                let world = world.get_or_insert_with(|| World::new(config.clone(), policies.clone()));
                let effects = act(world, command).unwrap_or_else(|| fail("not a command"));
                for said in effects.iter().filter_map(super::words) {
                    writeln!(written, "> {said}").unwrap();
                }
            }
        }
    }
    written
}

fn overlay(config: &FleetConfig, json: &str) -> FleetConfig {
    let mut value = serde_json::to_value(config).unwrap();
    let changes: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).unwrap();
    value.as_object_mut().unwrap().extend(changes);
    serde_json::from_value(value).unwrap()
}

/// `policy NAME on DETECTOR do restart[,scale_up] [for K/N] [mode auto] [cooldown 1m] [limit 5/1h] [expires 2m] …`
fn policy(words: &[&str]) -> Option<Policy> {
    let [name, "on", detector, "do", kinds, rest @ ..] = words else {
        return None;
    };
    let kinds: Vec<String> = kinds.split(',').map(str::to_owned).collect();
    let action = match kinds.as_slice() {
        [kind] => Choice::Fixed(kind.clone()),
        _ => Choice::Ladder(kinds),
    };
    let mut policy = Policy::new("shop", name, detector, action);
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        match *word {
            "latched" => policy.latched = true,
            "predictive" => policy.predictive = true,
            "clear" => policy.clear_windows = Some(rest.next()?.parse().ok()?),
            "for" => {
                let (k, n) = rest.next()?.split_once('/')?;
                (policy.for_k, policy.for_n) = (k.parse().ok()?, n.parse().ok()?);
            }
            "mode" => policy.mode = mode(rest.next()?)?,
            "cooldown" => policy.cooldown = duration(rest.next()?)?,
            "expires" => policy.expires_after = duration(rest.next()?)?,
            "limit" => {
                let (actions, per) = rest.next()?.split_once('/')?;
                let (actions, per) = (actions.parse().ok()?, duration(per)?);
                policy.limits.push(Limit { actions, per });
            }
            _ => return None,
        }
    }
    Some(policy)
}

fn act(world: &mut World, command: &[&str]) -> Option<Vec<Effect>> {
    let by = || "someone".to_owned();
    let reason = String::new;
    Some(match command {
        // Time passes second by second; the signal of the last alarms does not.
        ["pass", span] => seconds(world, duration(span)?, |_| Vec::new()),
        // Time passes, and every ten seconds a window of the service alarms.
        ["pass", span, "alarming", service, score] => {
            let (service, score) = ((*service).to_owned(), score.parse().ok()?);
            seconds(world, duration(span)?, move |world| alarm(world, &service, score))
        }
        ["jump", span] => {
            world.now_ms += i64::try_from(duration(span)?.as_millis()).ok()? - 1_000;
            world.second()
        }
        ["alarm", service, score] => alarm(world, service, score.parse().ok()?),
        ["alarm", service, score, "on", detector] => alarm_on(world, service, score.parse().ok()?, detector),
        ["below", service, score] => {
            let detector = world.policies[0].detector.clone();
            world.window(&detector, service, score.parse().ok()?, &[], &[])
        }
        ["clear", service] => {
            let detector = world.policies[0].detector.clone();
            clear_on(world, service, &detector)
        }
        ["clear", service, "on", detector] => clear_on(world, service, detector),
        ["outcome", service, status] => world.outcome(service, outcome(status)?, 200),
        ["outcome", service, status, code] => world.outcome(service, outcome(status)?, code.parse().ok()?),
        ["grant", service, by] => world.answer(service, by, true),
        ["deny", service, by] => world.answer(service, by, false),
        ["kill_switch", state] => world.control(&Control::KillSwitch {
            engaged: *state == "on",
            by: by(),
            reason: reason(),
        }),
        ["mode", service, action, mode_text, span @ ..] => world.control(&Control::Mode {
            service: (*service).into(),
            action: (*action).into(),
            mode: mode(mode_text)?,
            until: match span {
                [] => None,
                ["for", span] => Some(world.now_ms + i64::try_from(duration(span)?.as_millis()).ok()?),
                _ => return None,
            },
            by: by(),
            reason: reason(),
        }),
        ["protect", service] => world.control(&Control::Protected {
            service: (*service).into(),
            by: by(),
            reason: reason(),
        }),
        ["maintenance", service, span] => {
            let from = world.now_ms;
            let to = from + i64::try_from(duration(span)?.as_millis()).ok()?;
            world.control(&Control::Maintenance {
                service: (*service).into(),
                from,
                to,
                by: by(),
                reason: reason(),
            })
        }
        ["reset", service] => {
            let at = world.now_ms;
            world.control(&Control::Reset {
                service: (*service).into(),
                by: by(),
                at,
                reason: reason(),
            })
        }
        ["cancel", service, by] => {
            let sent = world.actions.get(*service).map(|action| action.action_id);
            let action = sent.or_else(|| Some(world.requests.get(*service)?.action_id))?;
            let at = world.now_ms;
            world.control(&Control::Cancel {
                action,
                by: (*by).to_owned(),
                at,
                reason: reason(),
            })
        }
        ["thresholds", service, action, set] => world.control(&Control::Thresholds {
            service: (*service).into(),
            action: (*action).into(),
            set: serde_json::from_str(set).ok()?,
            by: by(),
            reason: reason(),
        }),
        ["withdraw", scope] => world.withdraw(scope),
        ["population", count] => {
            let count = count.parse().ok()?;
            world.population.values_mut().for_each(|value| *value = count);
            world.second()
        }
        ["calls", caller, callees] => callees
            .split(',')
            .flat_map(|callee| world.call(caller, callee))
            .collect(),
        ["watermark", state] => {
            world.flowing = *state == "flows";
            Vec::new()
        }
        ["sources", state] => {
            world.telemetry_healthy = *state == "alive";
            Vec::new()
        }
        _ => return None,
    })
}

fn seconds(world: &mut World, span: Duration, mut every_ten: impl FnMut(&mut World) -> Vec<Effect>) -> Vec<Effect> {
    let mut out = Vec::new();
    for second in 1..=span.as_secs() {
        out.extend(world.second());
        if second % 10 == 0 {
            out.extend(every_ten(world));
        }
    }
    out
}

fn alarm(world: &mut World, service: &str, score: f64) -> Vec<Effect> {
    let detector = world.policies[0].detector.clone();
    alarm_on(world, service, score, &detector)
}

fn alarm_on(world: &mut World, service: &str, score: f64, detector: &str) -> Vec<Effect> {
    let meets = names(world, detector);
    let meets: Vec<&str> = meets.iter().map(String::as_str).collect();
    world.window(detector, service, score, &meets, &[])
}

fn clear_on(world: &mut World, service: &str, detector: &str) -> Vec<Effect> {
    let clears = names(world, detector);
    let clears: Vec<&str> = clears.iter().map(String::as_str).collect();
    world.window(detector, service, 0.2, &[], &clears)
}

fn names(world: &World, detector: &str) -> Vec<String> {
    let watching = world.policies.iter().filter(|policy| policy.detector == detector);
    watching.map(|policy| policy.name.clone()).collect()
}

fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

fn mode(text: &str) -> Option<Mode> {
    serde_json::from_value(text.into()).ok()
}

fn outcome(text: &str) -> Option<OutcomeStatus> {
    serde_json::from_value(text.into()).ok()
}

#[test]
fn a_difference_names_its_line() {
    let text = first_difference("a\nb\nc\n", "a\nx\nc\n");
    assert!(text.starts_with("  line 2"), "{text}");
}
