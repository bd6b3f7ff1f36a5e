use std::path::Path;

use serde_json::Value;

use super::*;
use crate::command::tests::{action, command};

fn entry(script: &str, more: Value) -> Entry {
    let mut entry = json!({"name": "drain", "program": "/bin/sh", "args": ["-c", script, "sh", "{service}", "{n}"],
        "params": {"n": {"type": "integer", "min": 1, "max": 9, "default": 1}}});
    for (key, value) in more.as_object().unwrap() {
        entry[key] = value.clone();
    }
    serde_json::from_value(entry).unwrap()
}

fn run(script: &str, more: Value, params: Value) -> Result<Effect, Failure> {
    let adapter = CatalogueAdapter::new(&entry(script, more)).unwrap();
    let command = asked(params);
    adapter.knows(&command)?;
    adapter.act(&command, &Before::new())
}

fn asked(params: Value) -> Command {
    let mut action = action("cart", 1);
    action.action.params = params.as_object().unwrap().clone();
    command(action, 1)
}

#[test]
fn runs_with_its_arguments_and_an_environment_of_its_own() {
    let script = "echo \"$1 $2 $HOMEOSTAT_ACTION_ID $HOMEOSTAT_TARGET\"; pwd; env | sort; echo err >&2";
    let more = json!({"env": {"MODE": "soft"}, "working_dir": "/"});
    let effect = run(script, more, json!({"n": 3})).unwrap();
    let said = effect["output"].as_str().unwrap();
    let command = asked(json!({"n": 3}));
    let first = format!("cart 3 {} {}\n/\n", command.id(), command.action.target.key);
    assert!(said.starts_with(&first), "{said}");
    // What the shell itself sets is not of the executor's environment.
    let variables: Vec<&str> = said
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name))
        .collect();
    assert_eq!(variables, ["HOMEOSTAT_ACTION_ID", "HOMEOSTAT_TARGET", "MODE"]);
    assert!(said.ends_with("err\n"), "{said}");
    assert_eq!(effect["command"], "drain");
}

#[test]
fn no_value_is_ever_read_by_a_shell() {
    let adapter = CatalogueAdapter::new(&entry("echo", json!({}))).unwrap();
    let refusal = adapter.knows(&asked(json!({"n": "1; touch /tmp/x"}))).unwrap_err();
    assert_eq!(refusal.code, 412, "{refusal:?}");
}

#[test]
fn the_end_of_long_output_is_kept() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let effect = run(script, json!({"output_bytes_max": 20}), json!({})).unwrap();
    assert_eq!(effect["output"], "ne 19998\nline 19999\n");
    let none = run("echo hi", json!({"output_bytes_max": 0}), json!({})).unwrap();
    assert_eq!(none["output"], "");
}

#[test]
fn failure_and_doubt_are_told_apart() {
    let failure = run("echo no disk; exit 3", json!({}), json!({})).unwrap_err();
    assert_eq!(failure, Failure::failed("command \"drain\" ended with code 3: no disk"));
    let failure = run("kill -9 $$", json!({}), json!({})).unwrap_err();
    assert!(
        matches!(&failure, Failure::Unknown(reason) if reason.contains("signal 9")),
        "{failure:?}"
    );
}

#[test]
fn a_program_that_takes_too_long_ends_with_all_it_has_started() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    // The program ends when it is told to; what it has started does not.
    let script = format!(
        "(trap '' TERM; sleep 300; sleep 300) & echo $! > {}; echo begun; wait",
        pid.display()
    );
    let started = Instant::now();
    let failure = run(&script, json!({"timeout_ms": 300}), json!({})).unwrap_err();
    assert!(
        matches!(&failure, Failure::Unknown(reason) if reason.contains("within 300 ms") && reason.contains("begun")),
        "{failure:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(20));
    gone(&pid, started);
}

/// Waits for the process to be gone that wrote its number there.
fn gone(pid: &Path, since: Instant) {
    let child = fs::read_to_string(pid).unwrap();
    let gone = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z"))
    };
    while !gone() {
        assert!(since.elapsed() < Duration::from_secs(20), "{child} still runs");
        thread::sleep(LOOK);
    }
}

#[test]
fn a_withdrawn_program_is_not_started_or_ends_with_all_it_has_started() {
    let directory = tempfile::tempdir().unwrap();
    let pid = directory.path().join("pid");
    let script = format!("sleep 300 & echo $! > {}; echo begun; wait", pid.display());
    let adapter = CatalogueAdapter::new(&entry(&script, json!({}))).unwrap();
    let command = asked(json!({}));
    let started = Instant::now();
    let failure = adapter
        .act_while_wanted(&command, &Before::new(), &|| false)
        .unwrap_err();
    assert!(matches!(failure, Failure::Stopped(_)), "{failure:?}");
    assert!(!pid.exists());

    let begun = || fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n'));
    let failure = adapter
        .act_while_wanted(&command, &Before::new(), &|| !begun())
        .unwrap_err();
    assert!(
        matches!(&failure, Failure::Unknown(reason) if reason.contains("withdrawn")),
        "{failure:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(20));
    gone(&pid, started);
}

#[test]
fn a_process_left_behind_does_not_hold_the_outcome_up() {
    let started = Instant::now();
    let effect = run("sleep 20 & echo done", json!({}), json!({})).unwrap();
    assert_eq!(effect["output"], "done\n");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_may_have_run_is_repeated_only_where_it_may_be() {
    let command = asked(json!({}));
    for (idempotent, expected) in [(true, true), (false, false)] {
        let adapter = CatalogueAdapter::new(&entry("true", json!({"idempotent": idempotent}))).unwrap();
        assert_eq!(adapter.reconcile(&command, None), Reconciled::NotDone);
        let found = adapter.reconcile(&command, Some(&Before::new()));
        assert_eq!(found == Reconciled::Repeatable, expected);
        assert_eq!(matches!(found, Reconciled::Unknown(_)), !expected);
    }
}

#[test]
fn a_wrong_entry_is_refused_at_the_start() {
    for (more, expected) in [
        (json!({"program": "sh"}), "absolute path"),
        (json!({"program": "/nowhere/sh"}), "No such file"),
        (json!({"program": "/etc/passwd"}), "no file that can be run"),
        (json!({"program": "/tmp"}), "no file that can be run"),
        (json!({"timeout_ms": 0}), "timeout_ms = 0"),
        (json!({"output_bytes_max": 1_000_000}), "output_bytes_max = 1000000"),
        (json!({"args": ["{m}"]}), "declare params.m"),
    ] {
        let error = CatalogueAdapter::new(&entry("true", more)).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("\"drain\""), "{error}");
    }
}
