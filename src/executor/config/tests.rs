use std::io::Write;

use super::*;

fn load(text: &str) -> Result<Config, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Config::load(Some(file.path())).map_err(|error| error.to_string())
}

#[test]
fn the_defaults_stand_alone_and_allow_nothing() {
    let config = Config::load(None).unwrap();
    assert!(config.allow.is_empty());
    assert_eq!(config.id, "local");
    assert_eq!(config.kubernetes, kubernetes::Config::default());
    assert_eq!(config.docker, docker::Config::default());
    assert_eq!(config.systemd, systemd::Config::default());
    assert!(
        config.retention_ms() > 8 * DAY_MS,
        "the actions topic keeps commands for 7 days"
    );
}

#[test]
fn budgets_stand_beside_the_one_over_all() {
    let text = "[[limits.budget]]\naction = \"restart\"\ntarget = \"cart-*\"\nactions_max = 3\nwindow_ms = 900000";
    let config = load(text).unwrap();
    let bounds = config.bounds();
    let budget: Vec<_> = bounds
        .budget
        .iter()
        .map(|rule| (&*rule.action, rule.actions_max))
        .collect();
    assert_eq!(budget, [("*", 120), ("restart", 3)]);
    assert_eq!(bounds.breaker.failures_max, 5);
}

#[test]
fn the_example_is_valid() {
    let text = include_str!("../../../docs/examples/executor.toml");
    let config = load(text).unwrap();
    assert!(!config.allow.is_empty() && !config.process.service.is_empty());
}

#[test]
fn what_the_page_shows_is_one_valid_file() {
    let page = include_str!("../../../docs/executors.md");
    let blocks: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    let config = load(&blocks.concat()).unwrap();
    assert_eq!(config.allow.len(), page.matches("\n[[allow]]").count());
}

#[test]
fn unknown_keys_are_refused_with_their_place_and_a_suggestion() {
    for (text, expected) in [
        ("idd = \"x\"", ["\"idd\"", "line 1", "did you mean \"id\"?"]),
        (
            "id = \"x\"\n[limits]\nage_max = 1",
            ["\"age_max\"", "line 3", "\"age_max_ms\""],
        ),
        (
            "[[allow]]\naction = \"restart\"\ntargt = \"*\"\nadapter = \"log\"",
            ["\"targt\"", "line 3", "\"target\""],
        ),
        (
            "[[allow]]\naction = \"restart\"\ntarget = \"*\"\nadapter = \"proces\"",
            ["proces", "line 4", "process, webhook, log"],
        ),
        ("concurrency = \"many\"", ["concurrency", "line 1", "many"]),
        ("[kafka", [".toml", "line 1", ""]),
    ] {
        let error = load(text).unwrap_err();
        if expected[0] != ".toml" {
            for part in expected {
                assert!(error.contains(part), "{text}\n{error}");
            }
        }
    }
}

#[test]
fn contradictions_are_refused() {
    for (text, expected) in [
        ("id = \"../x\"", "id ="),
        ("concurrency = 0", "concurrency = 0"),
        ("[topics]\nprefix = \"\"", "prefix"),
        ("[limits]\nactions_max = 0", "limits: actions_max = 0 is out of range"),
        ("[limits]\nwindow_ms = 86400001", "limits: window_ms = 86400001"),
        (
            "[[limits.budget]]\nactions_max = 1\nwindow_ms = 0",
            "[[limits.budget]] entry 1: window_ms = 0",
        ),
        (
            "[[limits.budget]]\ntarget = \"\"\nactions_max = 1\nwindow_ms = 1",
            "must not be empty",
        ),
        ("[[limits.budget]]\nwindow_ms = 1", "actions_max"),
        ("[limits.breaker]\nfailures_max = 0", "limits.breaker: failures_max = 0"),
        ("[limits.breaker]\nopen_ms = 0", "limits.breaker: open_ms = 0"),
        (
            "[[allow]]\naction = \"a\"\ntarget = \"*\"\nadapter = \"webhook\"",
            "needs endpoint",
        ),
        (
            "[[allow]]\naction = \"a\"\ntarget = \"*\"\nadapter = \"webhook\"\nendpoint = \"pagr\"\n[[webhook.endpoint]]\nname = \"pager\"\nurl = \"http://x\"",
            "did you mean \"pager\"?",
        ),
        (
            "[[allow]]\naction = \"a\"\ntarget = \"*\"\nadapter = \"log\"\nendpoint = \"pager\"",
            "has no endpoint",
        ),
        (
            "[[allow]]\naction = \"a\"\ntarget = \"*\"\nadapter = \"kubernetes\"",
            "add a [[kubernetes.target]]",
        ),
        (
            "[[allow]]\naction = \"a\"\ntarget = \"*\"\nadapter = \"catalogue\"\ncommand = \"drian\"\n[[catalogue.command]]\nname = \"drain\"\nprogram = \"/bin/true\"",
            "command \"drian\" is no [[catalogue.command]]; did you mean \"drain\"?",
        ),
        (
            "[[catalogue.command]]\nname = \"drain\"\nprogram = \"drain\"",
            "absolute path",
        ),
        (
            "[[catalogue.command]]\nname = \"a\"\nprogram = \"/bin/true\"\nshell = true",
            "unknown key \"shell\"",
        ),
        (
            "[[allow]]\naction = \"a\"\ntarget = \"*\"\nadapter = \"docker\"",
            "add a [[docker.target]]",
        ),
        (
            "[[allow]]\naction = \"a\"\ntarget = \"*\"\nadapter = \"systemd\"",
            "add a [[systemd.target]]",
        ),
        (
            "[[allow]]\naction = \"a\"\ntarget = \"*\"\nadapter = \"alert\"\nreceiver = \"x\"",
            "receiver \"x\" is no [[alert.receiver]]",
        ),
        ("[kubernetes]\npoll_ms = 1", "kubernetes.poll_ms = 1 is out of range"),
        (
            "[[allow]]\naction = \"a\"\ntarget = \"\"\nadapter = \"log\"",
            "must not be empty",
        ),
        (
            "[[process.service]]\nname = \"a\"\ncommand = []\npid_file = \"/run/a.pid\"",
            "command is empty",
        ),
        (
            "[[process.service]]\nname = \"a\"\ncommand = [\"x\"]\npid_file = \"a.pid\"",
            "absolute",
        ),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(expected), "{text}\n{error}");
    }
}

#[test]
fn a_file_that_is_named_must_exist() {
    let error = Config::load(Some(Path::new("/nowhere.toml"))).unwrap_err().to_string();
    assert!(error.contains("/nowhere.toml does not exist"), "{error}");
}
