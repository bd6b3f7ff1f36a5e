//! What a newcomer meets is true: every command, path, port and variable that the front door names exists.
//!
//! `compose-spec.schema.json` is the Compose specification's own schema, under the Apache License 2.0.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::programs::{program, root};

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn compose() -> Value {
    serde_yaml_ng::from_str(&read("docker-compose.yml")).expect("docker-compose.yml is YAML")
}

fn help(name: &str, arguments: &[&str]) -> String {
    let output = program(name)
        .args(arguments)
        .arg("--help")
        .output()
        .expect("a program of ours starts");
    assert!(
        output.status.success(),
        "{name} {} --help: {output:?}",
        arguments.join(" ")
    );
    String::from_utf8(output.stdout).expect("help is text")
}

/// Names of the programs that the workspace builds.
fn programs() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(root().join("src")).unwrap().flatten() {
        let Ok(manifest) = fs::read_to_string(entry.path().join("Cargo.toml")) else {
            continue;
        };
        let bins = manifest.split("[[bin]]").skip(1);
        names.extend(bins.filter_map(|bin| Some(bin.split("name = \"").nth(1)?.split('"').next()?.to_owned())));
    }
    names
}

fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

#[test]
fn compose_fits_the_compose_schema() {
    let schema: Value = serde_json::from_str(include_str!("compose-spec.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).expect("the schema is one");
    let compose = compose();
    let errors: Vec<String> = validator
        .iter_errors(&compose)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");

    let mut broken = compose;
    broken["services"]["kafka"]["prots"] = Value::Array(Vec::new());
    assert!(!validator.is_valid(&broken), "the schema tells a misspelt key");
}

#[test]
fn compose_has_the_two_profiles() {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let profiles: BTreeSet<&str> = services
        .values()
        .flat_map(|service| strings(&service["profiles"]))
        .collect();
    assert_eq!(profiles, BTreeSet::from(["app", "kafka"]));
    for (name, service) in services {
        for (wanted, condition) in service["depends_on"].as_object().into_iter().flatten() {
            let wanted = services
                .get(wanted)
                .unwrap_or_else(|| panic!("{name} depends on {wanted}"));
            assert!(condition["condition"] != "service_healthy" || wanted["healthcheck"].is_object());
            let theirs = strings(&wanted["profiles"]);
            for profile in strings(&service["profiles"]) {
                assert!(
                    theirs.contains(&profile),
                    "{name}: what it depends on is not in profile {profile}"
                );
            }
        }
    }
}

#[test]
fn compose_starts_programs_that_exist() {
    let compose = compose();
    let programs = programs();
    for (name, service) in compose["services"].as_object().unwrap() {
        if service["build"].is_null() {
            continue;
        }
        let mut words = match strings(&service["entrypoint"]) {
            entrypoint if entrypoint.is_empty() => vec!["homeostat"],
            entrypoint => entrypoint,
        };
        words.extend(strings(&service["command"]));
        assert!(programs.contains(words[0]), "{name} starts {}", words[0]);
        let subcommand: Vec<&str> = words[1..]
            .iter()
            .take_while(|word| !word.starts_with('-'))
            .copied()
            .collect();
        let help = help(words[0], &subcommand);
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "{name}: {option} is no option of {}", words[0]);
        }
    }
}

#[test]
fn compose_mounts_what_is_there_where_the_image_expects_it() {
    let compose = compose();
    let volumes: BTreeSet<&str> = compose["volumes"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    for (name, service) in compose["services"].as_object().unwrap() {
        let mut inside = Vec::new();
        for volume in strings(&service["volumes"]) {
            let mut parts = volume.split(':');
            let (source, target) = (parts.next().unwrap(), parts.next().unwrap());
            inside.push(target);
            match source.strip_prefix("./") {
                Some(path) => assert!(root().join(path).exists(), "{name} mounts {path}"),
                None => assert!(volumes.contains(source), "{name} mounts volume {source}"),
            }
        }
        for path in strings(&service["command"])
            .into_iter()
            .filter(|word| word.starts_with('/'))
        {
            assert!(
                inside.iter().any(|mount| mount.starts_with(path)),
                "{name}: nothing is mounted for {path}"
            );
        }
    }
    let executor = read("deploy/executor.toml");
    let ledger = executor
        .split("path = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap();
    let mounts = strings(&compose["services"]["executor"]["volumes"]);
    assert!(
        mounts
            .iter()
            .any(|mount| mount.split(':').nth(1).is_some_and(|target| ledger.starts_with(target)))
    );
}

#[test]
fn compose_ports_meet() {
    let compose = compose();
    let kafka = &compose["services"]["kafka"];
    let variable = |name: &str| kafka["environment"][name].as_str().unwrap().to_owned();
    let listening: BTreeMap<String, String> = variable("KAFKA_LISTENERS")
        .split(',')
        .map(|listener| {
            let (name, address) = listener.split_once("://").unwrap();
            (name.to_owned(), address.rsplit(':').next().unwrap().to_owned())
        })
        .collect();
    let protocols = variable("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP");
    for name in listening.keys() {
        assert!(
            protocols.contains(&format!("{name}:")),
            "no protocol for listener {name}"
        );
    }
    for advertised in variable("KAFKA_ADVERTISED_LISTENERS").split(',') {
        let (name, address) = advertised.split_once("://").unwrap();
        assert_eq!(listening[name], address.rsplit(':').next().unwrap(), "{advertised}");
    }
    let controller = &listening[&variable("KAFKA_CONTROLLER_LISTENER_NAMES")];
    assert!(variable("KAFKA_CONTROLLER_QUORUM_VOTERS").ends_with(&format!("@kafka:{controller}")));
    assert!(strings(&kafka["ports"]).contains(&&*format!("127.0.0.1:9092:{}", listening["HOST"])));

    for (name, service) in compose["services"].as_object().unwrap() {
        if let Some(bootstrap) = service["environment"]["KAFKA_BOOTSTRAP"].as_str() {
            assert_eq!(bootstrap, format!("kafka:{}", listening["INTERNAL"]), "{name}");
        }
    }
    let app = &compose["services"]["homeostat"];
    let port = app["environment"]["HOMEOSTAT__HTTP__LISTEN"]
        .as_str()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap();
    assert_eq!(strings(&app["ports"]), [format!("127.0.0.1:{port}:{port}")]);
    assert!(read("Dockerfile").contains(&format!("EXPOSE {port}")));
}

#[test]
fn compose_variables_are_settings() {
    let compose = compose();
    let defaults = read("src/homeostat/default.toml");
    for (name, service) in compose["services"].as_object().unwrap() {
        for variable in service["environment"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(variable, _)| variable)
        {
            if let Some(key) = variable.strip_prefix("HOMEOSTAT__") {
                let (section, key) = key
                    .to_lowercase()
                    .split_once("__")
                    .map(|(s, k)| (s.to_owned(), k.to_owned()))
                    .unwrap();
                let body = defaults
                    .split(&format!("[{section}]"))
                    .nth(1)
                    .unwrap_or_else(|| panic!("{name}: {variable}"));
                let body = body.split("\n[").next().unwrap();
                assert!(
                    body.lines().any(|line| line.starts_with(&format!("{key} ="))),
                    "{name}: {variable}"
                );
            } else if name == "kafka" {
                let property = variable
                    .strip_prefix("KAFKA_")
                    .unwrap()
                    .to_lowercase()
                    .replace('_', ".");
                assert!(
                    BROKER_PROPERTIES.contains(&&*property),
                    "{property} is no setting of the broker"
                );
            } else {
                assert_eq!(variable, "KAFKA_BOOTSTRAP", "{name}");
            }
        }
    }
}

/// Settings of Kafka 4.1's broker that the compose file may use.
const BROKER_PROPERTIES: [&str; 12] = [
    "node.id",
    "process.roles",
    "controller.quorum.voters",
    "controller.listener.names",
    "listeners",
    "advertised.listeners",
    "listener.security.protocol.map",
    "inter.broker.listener.name",
    "offsets.topic.replication.factor",
    "transaction.state.log.replication.factor",
    "transaction.state.log.min.isr",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms",
];

#[test]
fn the_image_copies_what_is_there_and_builds_every_program() {
    let dockerfile = read("Dockerfile");
    for line in dockerfile
        .lines()
        .filter(|line| line.starts_with("COPY ") && !line.contains("--from"))
    {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        for source in &words[..words.len() - 1] {
            assert!(root().join(source).exists(), "{line}");
        }
    }
    for program in programs() {
        assert!(
            dockerfile.contains(&format!("/release/{program}")),
            "{program} is not in the image"
        );
    }
    // Everything that the workspace is built from is copied.
    let manifest = read("Cargo.toml");
    for member in manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split('"').next())
    {
        let top = member.split('/').next().unwrap();
        assert!(
            dockerfile.contains(&format!("COPY {top} {top}\n")),
            "{member} is not copied"
        );
    }
    let image_rust = dockerfile
        .split("FROM rust:")
        .nth(1)
        .and_then(|rest| rest.split('-').next())
        .unwrap();
    let wanted = manifest
        .split("rust-version = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap();
    let minor = |version: &str| {
        version
            .split('.')
            .nth(1)
            .and_then(|text| text.parse::<u32>().ok())
            .unwrap()
    };
    assert!(
        minor(image_rust) >= minor(wanted),
        "the image builds with Rust {image_rust}, {wanted} is needed"
    );
}

#[test]
fn the_makefile_lists_itself_and_names_what_exists() {
    let makefile = read("Makefile");
    assert!(makefile.lines().count() <= 50, "a Makefile of at most a screen");
    let listed = Command::new("make").arg("help").current_dir(root()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let targets: Vec<&str> = makefile
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0))
        .filter(|target| target.chars().all(|c| c.is_ascii_lowercase()))
        .collect();
    for target in &targets {
        assert!(
            listed.lines().any(|line| line.starts_with(&format!("{target} "))),
            "make help leaves {target} out"
        );
    }
    for target in ["demo", "test", "check", "bench"] {
        assert!(targets.contains(&target), "{target}");
    }
    let scripts = makefile
        .split_whitespace()
        .chain([".ci/run"])
        .map(|word| word.trim_start_matches('@'));
    for script in scripts.filter(|word| word.starts_with(".ci/")) {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(root().join(script))
            .unwrap_or_else(|error| panic!("{script}: {error}"))
            .permissions();
        assert!(mode.mode() & 0o111 != 0, "{script} is not executable");
    }
}

/// Text behind `marker` up to the end of the word, wherever it stands in code of a page.
fn named(page: &str, marker: &str) -> BTreeSet<String> {
    let code = page.split('`').skip(1).step_by(2).map(str::to_owned);
    let indented = page
        .lines()
        .filter_map(|line| line.strip_prefix("    ").map(str::to_owned));
    let mut words = BTreeSet::new();
    for text in code.chain(indented) {
        for rest in text.split(marker).skip(usize::from(!text.starts_with(marker))) {
            let word: String = rest.chars().take_while(|c| c.is_ascii_lowercase()).collect();
            words.insert(word);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn pages_name_commands_and_files_that_exist() {
    let commands = help("homeostat", &[]);
    let makefile = read("Makefile");
    for page in ["README.md", "docs/README.md"] {
        let text = read(page);
        for command in named(&text, "homeostat ") {
            let exists = commands
                .lines()
                .any(|line| line.split_whitespace().next() == Some(&command));
            assert!(exists, "{page}: homeostat {command}");
        }
        for target in named(&text, "make ") {
            assert!(makefile.contains(&format!("\n{target}:")), "{page}: make {target}");
        }
        let folder = root().join(page).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert!(folder.join(link).exists(), "{page}: {link}");
        }
    }
}

#[test]
fn the_shipped_pipelines_compile() {
    for name in ["shop", "starter"] {
        let path = root().join(format!("pipelines/{name}/pipeline.sql"));
        let output = program("homeostat").arg("validate").arg(&path).output().unwrap();
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn the_shipped_configurations_are_accepted() {
    for path in ["deploy/executor.toml", "docs/examples/executor.toml"] {
        let output = program("homeostat-executor")
            .arg("--config")
            .arg(root().join(path))
            .arg("--check")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{path}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Tests that a page links to as `[name](path)`, with their files.
fn linked(text: &str) -> Vec<(String, String)> {
    let links = text.split('[').skip(1);
    let link = |rest: &str| {
        let (name, rest) = rest.split_once("](")?;
        let (path, _) = rest.split_once(')')?;
        Some((name.to_owned(), path.to_owned()))
    };
    links.filter_map(link).collect()
}

/// Whether a file has a test of that name: a function right below its attributes and comments, or a scenario's text.
fn is_a_test(name: &str, path: &Path) -> bool {
    if path.extension().is_some_and(|extension| extension == "txt") {
        return path.is_file() && path.file_stem().is_some_and(|stem| stem == name);
    }
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let Some(at) = lines.iter().position(|line| line.starts_with(&format!("fn {name}("))) else {
        return false;
    };
    let above = lines[..at].iter().rev();
    let mut above = above.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    above.any(|line| *line == "#[test]")
}

#[test]
fn every_fault_scenario_has_its_tests_and_every_invariant_its_scenario() {
    let (page, folder) = (read("docs/scenarios.md"), root().join("docs"));
    let rows: Vec<Vec<&str>> = page
        .lines()
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() == 7 && cells[1].parse::<u32>().is_ok())
        .collect();
    let numbers: Vec<u32> = rows.iter().map(|cells| cells[1].parse().unwrap()).collect();
    assert_eq!(numbers, (1..=42).collect::<Vec<_>>());
    let mut guarded = BTreeSet::new();
    for cells in &rows {
        assert!(!linked(cells[4]).is_empty(), "scenario {} has no test", cells[1]);
        assert!(!cells[5].is_empty(), "scenario {} guards nothing", cells[1]);
        guarded.extend(cells[5].split_whitespace());
    }
    let invariants: Vec<String> = (1..=12).map(|number| format!("I{number}")).collect();
    let known: BTreeSet<&str> = invariants.iter().map(String::as_str).collect();
    assert_eq!(guarded, known);
    for (name, path) in linked(&page) {
        assert!(is_a_test(&name, &folder.join(&path)), "{path} has no test {name}");
    }
}

#[test]
fn every_acceptance_row_has_its_tests() {
    let (page, folder) = (read("docs/acceptance.md"), root().join("docs"));
    let rows: Vec<Vec<&str>> = page
        .lines()
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells.len() == 5 && cells[1].ends_with(|c: char| c.is_ascii_digit()))
        .collect();
    let numbers = |letter: &str| -> Vec<u32> {
        let of = rows
            .iter()
            .filter_map(|cells| cells[1].strip_prefix(letter)?.parse().ok());
        of.collect()
    };
    for (letter, count) in [("", 13), ("D", 54), ("C", 7), ("E", 21), ("B", 7)] {
        assert_eq!(numbers(letter), (1..=count).collect::<Vec<_>>(), "rows {letter:?}");
    }
    for cells in &rows {
        assert!(!linked(cells[3]).is_empty(), "row {} has no test", cells[1]);
        for (name, path) in linked(cells[3]) {
            assert!(is_a_test(&name, &folder.join(&path)), "{path} has no test {name}");
        }
    }
}

#[test]
fn what_heals_does_not_link_what_breaks() {
    for crate_name in ["remediation", "detector"] {
        let manifest = read(&format!("src/{crate_name}/Cargo.toml"));
        let names = manifest.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        let named: Vec<&str> = names
            .filter(|name| ["simulator", "trial", "rehearsal"].contains(name))
            .collect();
        assert!(named.is_empty(), "{crate_name} links {named:?}");
    }
}

#[test]
#[ignore = "takes minutes without optimisation: make soak"]
fn the_bench_of_healing_ends_with_one_line_of_json() {
    let few = [
        "--seed",
        "7",
        "--runs",
        "5",
        "--healthy",
        "1",
        "--kills",
        "10",
        "--history",
        "60",
    ];
    let bench = program("homeostat-trial").args(few).output().unwrap();
    let out = String::from_utf8(bench.stdout).unwrap();
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    for name in [
        "repair_success",
        "false_remediation",
        "healthy_run_actions",
        "duplicate_effects",
    ] {
        assert!(last[name].is_number(), "{name}: {last}");
    }
    assert_eq!(
        (&last["healthy_runs"], &last["runs"], &last["seed"]),
        (&1.into(), &5.into(), &7.into())
    );
    // One healthy run and ten kills are too few for the goals: it says so, by its table and by its exit code.
    assert_eq!(
        (bench.status.code(), &last["reached"]),
        (Some(1), &false.into()),
        "{out}"
    );
    for arm in ["static rule", "rules only", "tree", "tree + bandit", "oracle"] {
        assert!(out.contains(arm), "{arm}");
    }
    assert!(
        out.contains("| actions in healthy runs = 0 |") && out.contains("| NO |"),
        "{out}"
    );
}
