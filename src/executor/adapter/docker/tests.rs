use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;

use super::*;
use crate::command::tests::{action, command};

/// One container of the fake engine; it counts what is done to it.
#[derive(Clone, Debug)]
struct Container {
    id: &'static str,
    name: &'static str,
    service: &'static str,
    running: bool,
    starts: usize,
    stops: usize,
    health: Option<&'static str>,
    exits: bool,
}

impl Container {
    fn new(id: &'static str, name: &'static str, service: &'static str) -> Self {
        Self {
            id,
            name,
            service,
            running: true,
            starts: 1,
            stops: 0,
            health: None,
            exits: false,
        }
    }

    fn json(&self) -> Value {
        let mut state = json!({"Running": self.running, "Restarting": false, "ExitCode": i64::from(self.exits),
            "StartedAt": format!("2026-01-01T00:00:{:02}Z", self.starts)});
        if let Some(health) = self.health {
            state["Health"] = json!({"Status": health});
        }
        json!({"Id": self.id, "Name": format!("/{}", self.name), "State": state})
    }
}

#[derive(Default)]
struct World {
    containers: Vec<Container>,
    requests: Vec<String>,
    /// Changes that are made, and whose answers are not given.
    lost: usize,
    /// Changes that are refused with this.
    refuses: Option<u16>,
}

/// An engine's API on a Unix socket, as far as it is used.
struct FakeEngine {
    world: Arc<Mutex<World>>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl FakeEngine {
    fn new(containers: Vec<Container>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let world = Arc::new(Mutex::new(World {
            containers,
            ..World::default()
        }));
        let served = Arc::clone(&world);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let world = Arc::clone(&served);
                thread::spawn(move || serve(&stream.unwrap(), &world));
            }
        });
        Self {
            world,
            socket,
            _directory: directory,
        }
    }

    fn adapter(&self, targets: Value) -> DockerAdapter {
        let config = json!({"host": format!("unix://{}", self.socket.display()), "timeout_ms": 1_000,
            "stop_timeout_s": 1, "settle_ms": 50, "target": targets});
        DockerAdapter::new(&serde_json::from_value(config).unwrap()).unwrap()
    }

    fn by_name(&self) -> DockerAdapter {
        self.adapter(json!([{"service": "*"}]))
    }

    fn container(&self, name: &str) -> Container {
        let world = self.world.lock().unwrap();
        world
            .containers
            .iter()
            .find(|container| container.name == name)
            .unwrap()
            .clone()
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Container)) {
        let mut world = self.world.lock().unwrap();
        change(
            world
                .containers
                .iter_mut()
                .find(|container| container.name == name)
                .unwrap(),
        );
    }
}

fn serve(stream: &UnixStream, world: &Mutex<World>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
            if first.is_empty() {
                first = line;
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).unwrap();
        let Some((status, body)) = answer(&first, &mut world.lock().unwrap()) else {
            return;
        };
        let body = if status == 204 { String::new() } else { body.to_string() };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        if (&*stream).write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

fn answer(line: &str, world: &mut World) -> Option<(u16, Value)> {
    let (method, rest) = line.split_once(' ').unwrap();
    let path = rest.split(' ').next().unwrap();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let path = path.strip_prefix("/containers/").unwrap();
    world.requests.push(format!("{method} {path}?{query}"));
    if path == "json" {
        assert!(query.contains("all=true"), "{query}");
        let all = world.containers.iter();
        let listed = all.filter(|container| query.contains(&format!("service%3D{}%22", container.service)));
        return Some((200, listed.map(|container| json!({"Id": container.id})).collect()));
    }
    let (name, verb) = path.split_once('/').unwrap();
    let refuses = world.refuses;
    let mut found = world.containers.iter_mut();
    let Some(container) = found.find(|container| container.name == name || container.id.starts_with(name)) else {
        return Some((404, json!({"message": "no such container"})));
    };
    if verb == "json" {
        return Some((200, container.json()));
    }
    if let Some(code) = refuses {
        return Some((code, json!({"message": "not today"})));
    }
    if verb != "start" {
        assert!(query.contains("t=1"), "{query}");
        container.stops += 1;
        container.running = false;
    }
    if verb != "stop" {
        container.starts += 1;
        container.running = !container.exits;
    }
    if world.lost > 0 {
        world.lost -= 1;
        return None;
    }
    Some((204, Value::Null))
}

fn asked(service: &str, kind: &str) -> Command {
    let mut action = action(service, 1);
    action.action.kind = kind.into();
    action.timing.exec_timeout_ms = 3_000;
    command(action, 1)
}

fn carry_out(adapter: &DockerAdapter, command: &Command) -> Result<Effect, Failure> {
    adapter.knows(command)?;
    assert_eq!(adapter.reconcile(command, None), Reconciled::NotDone);
    let before = adapter.observe(command)?;
    adapter.act(command, &before)
}

fn refused(outcome: Result<Effect, Failure>, code: u16, part: &str) {
    match outcome {
        Err(Failure::Failed {
            code: found, reason, ..
        }) if found == code && reason.contains(part) => {}
        other => panic!("not {code} with {part:?}: {other:?}"),
    }
}

#[test]
fn a_restart_happens_once_per_action() {
    let engine = FakeEngine::new(vec![
        Container::new("c1", "cart", "cart"),
        Container::new("c2", "db", "db"),
    ]);
    let adapter = engine.by_name();
    let command = asked("cart", "restart");
    let before = adapter.observe(&command).unwrap();
    assert_eq!(adapter.reconcile(&command, Some(&before)), Reconciled::NotDone);
    let effect = adapter.act(&command, &before).unwrap();
    assert_ne!(effect["before"][0]["started_at"], effect["after"][0]["started_at"]);
    assert!(matches!(
        adapter.reconcile(&command, Some(&before)),
        Reconciled::Done(_)
    ));
    adapter.act(&command, &before).unwrap();
    assert_eq!((engine.container("cart").starts, engine.container("db").starts), (2, 1));
}

#[test]
fn invariant_13_a_lost_answer_does_not_restart_twice() {
    let engine = FakeEngine::new(vec![Container::new("c1", "cart", "cart")]);
    engine.world.lock().unwrap().lost = 1;
    carry_out(&engine.by_name(), &asked("cart", "restart")).unwrap();
    assert_eq!(engine.container("cart").starts, 2);
}

#[test]
fn stopping_and_starting_are_states() {
    let engine = FakeEngine::new(vec![Container::new("c1", "cart", "cart")]);
    let adapter = engine.by_name();
    for (kind, running) in [("stop", false), ("stop", false), ("start", true), ("start", true)] {
        let command = asked("cart", kind);
        carry_out(&adapter, &command).unwrap();
        assert_eq!(engine.container("cart").running, running);
        let before = adapter.observe(&command).unwrap();
        assert!(matches!(
            adapter.reconcile(&command, Some(&before)),
            Reconciled::Done(_)
        ));
    }
    assert_eq!(
        (engine.container("cart").starts, engine.container("cart").stops),
        (2, 1)
    );
    engine.world.lock().unwrap().lost = 1;
    carry_out(&adapter, &asked("cart", "stop")).unwrap();
    assert_eq!(engine.container("cart").stops, 2);
}

#[test]
fn labels_choose_all_containers_of_a_service_up_to_a_number() {
    let engine = FakeEngine::new(vec![
        Container::new("c1", "shop-cart-2", "cart"),
        Container::new("c2", "shop-cart-1", "cart"),
        Container::new("c3", "shop-db-1", "db"),
    ]);
    let labels = json!({"compose.service": "{service}"});
    let one = engine.adapter(json!([{"service": "*", "labels": labels}]));
    refused(
        carry_out(&one, &asked("cart", "restart")),
        409,
        "2 containers match, containers_max is 1: shop-cart-1, shop-cart-2",
    );
    refused(
        carry_out(&one, &asked("payment", "restart")),
        404,
        "no container has the labels",
    );

    let many = engine.adapter(json!([{"service": "*", "labels": labels, "containers_max": 2}]));
    let command = asked("cart", "restart");
    let before = many.observe(&command).unwrap();
    many.act(&command, &before).unwrap();
    let starts = |name| engine.container(name).starts;
    assert_eq!(
        (starts("shop-cart-1"), starts("shop-cart-2"), starts("shop-db-1")),
        (2, 2, 1)
    );

    // Interrupted after the first: only the second is left to do.
    let before = many.observe(&command).unwrap();
    engine.change("shop-cart-1", |container| container.starts += 1);
    assert_eq!(many.reconcile(&command, Some(&before)), Reconciled::NotDone);
    many.act(&command, &before).unwrap();
    assert_eq!((starts("shop-cart-1"), starts("shop-cart-2")), (3, 3));
}

#[test]
fn success_is_seen_not_said() {
    let engine = FakeEngine::new(vec![Container::new("c1", "cart", "cart")]);
    let adapter = engine.by_name();
    engine.change("cart", |container| container.exits = true);
    refused(carry_out(&adapter, &asked("cart", "restart")), 500, "ended with code 1");
    engine.change("cart", |container| {
        container.exits = false;
        container.health = Some("unhealthy");
    });
    refused(carry_out(&adapter, &asked("cart", "restart")), 500, "not healthy");
    engine.change("cart", |container| container.health = Some("starting"));
    let failure = carry_out(&adapter, &asked("cart", "restart")).unwrap_err();
    assert!(matches!(failure, Failure::Unknown(_)), "{failure:?}");
    engine.change("cart", |container| container.health = Some("healthy"));
    carry_out(&adapter, &asked("cart", "restart")).unwrap();
}

#[test]
fn what_the_engine_says_is_told() {
    let engine = FakeEngine::new(vec![Container::new("beef01", "cart", "cart")]);
    let adapter = engine.by_name();
    refused(
        carry_out(&adapter, &asked("db", "restart")),
        404,
        "container db: does not exist",
    );
    refused(
        carry_out(&adapter, &asked("beef", "restart")),
        404,
        "container beef does not exist",
    );
    let command = asked("cart", "restart");
    let before = adapter.observe(&command).unwrap();
    engine.world.lock().unwrap().refuses = Some(409);
    refused(adapter.act(&command, &before), 409, "container cart: not today");
    engine.world.lock().unwrap().refuses = Some(500);
    refused(adapter.act(&command, &before), 500, "answered 500: not today");
    engine.world.lock().unwrap().containers.clear();
    refused(adapter.act(&command, &before), 404, "container cart: does not exist");
    assert_eq!(
        engine
            .world
            .lock()
            .unwrap()
            .requests
            .iter()
            .filter(|line| line.starts_with("POST"))
            .count(),
        2
    );
}

#[test]
fn nobody_there_is_no_effect() {
    let engine = FakeEngine::new(vec![Container::new("c1", "cart", "cart")]);
    let command = asked("cart", "restart");
    let before = engine.by_name().observe(&command).unwrap();
    let deserted = engine.socket.with_file_name("deserted.sock");
    drop(UnixListener::bind(&deserted).unwrap());
    for socket in ["/nowhere/docker.sock".into(), deserted] {
        let mut adapter = engine.by_name();
        adapter.config.host = format!("unix://{}", socket.display());
        for failure in [
            adapter.observe(&command).unwrap_err(),
            adapter.act(&command, &before).unwrap_err(),
        ] {
            assert!(
                matches!(failure, Failure::Failed { retryable: true, .. }),
                "{failure:?}"
            );
        }
    }
}

#[test]
fn commands_are_understood_or_refused_before_anything_is_claimed() {
    let engine = FakeEngine::new(vec![]);
    let adapter = engine.adapter(json!([{"service": "cart*"}]));
    for (service, kind, expected) in [
        ("cart", "restart", None),
        ("cart", "kill", Some("knows no action")),
        ("db", "restart", Some("no [[docker.target]]")),
        ("cart/../x", "restart", Some("no name of a container")),
    ] {
        match expected {
            None => assert_eq!(adapter.knows(&asked(service, kind)), Ok(())),
            Some(part) => assert!(
                adapter.knows(&asked(service, kind)).unwrap_err().reason.contains(part),
                "{service}"
            ),
        }
    }
    let mut with_params = action("cart", 1);
    with_params.action.params.insert("t".into(), json!(1));
    assert_eq!(adapter.knows(&command(with_params, 1)).unwrap_err().code, 412);
}

#[test]
fn a_wrong_configuration_is_refused() {
    for (text, expected) in [
        (json!({"host": "ssh://x"}), "docker.host"),
        (json!({"timeout_ms": 0}), "docker.timeout_ms = 0"),
        (json!({"stop_timeout_s": 5000}), "docker.stop_timeout_s"),
        (json!({"target": [{"service": ""}]}), "service is empty"),
        (
            json!({"target": [{"service": "a", "container": "b", "labels": {"c": "d"}}]}),
            "both set",
        ),
        (
            json!({"target": [{"service": "a", "container": "../b"}]}),
            "no name of a container",
        ),
        (
            json!({"target": [{"service": "a", "labels": {"c=d": "e"}}]}),
            "no label",
        ),
        (
            json!({"target": [{"service": "a", "containers_max": 0}]}),
            "containers_max = 0",
        ),
    ] {
        let error = DockerAdapter::new(&serde_json::from_value(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}
