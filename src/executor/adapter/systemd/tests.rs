use std::{
    collections::BTreeMap,
    future::poll_fn,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;
use zbus::{
    Connection, Guid, Message, MessageStream, ObjectPath, Variant, connection::Builder, export::futures_core::Stream,
    message::Type,
};

use super::*;
use crate::command::tests::{action, command};

/// One unit of the manager of the tests; it counts its starts.
#[derive(Clone, Debug)]
struct Fake {
    load: &'static str,
    active: &'static str,
    result: &'static str,
    kind: &'static str,
    starts: u8,
    /// Looks at the job until it is done.
    job_looks: u32,
    /// What a start comes to.
    becomes: &'static str,
    /// It starts again by itself whenever it is looked at.
    loops: bool,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            load: "loaded",
            active: "active",
            result: "success",
            kind: "simple",
            starts: 1,
            job_looks: 0,
            becomes: "active",
            loops: false,
        }
    }
}

#[derive(Default)]
struct World {
    units: BTreeMap<String, Fake>,
    calls: Vec<String>,
    /// Calls that are followed, and whose answers are not given.
    lost: usize,
    /// The error that changes are answered with.
    refuses: Option<&'static str>,
}

impl World {
    /// `None`: no answer.
    fn change(&mut self, method: &str, unit: &str) -> Option<Result<(), &'static str>> {
        self.calls.push(format!("{method} {unit}"));
        if let Some(error) = self.refuses {
            return Some(Err(error));
        }
        let found = self.units.get_mut(unit).unwrap();
        if method == "StopUnit" {
            found.active = "inactive";
        } else {
            found.starts += 1;
            found.active = found.becomes;
            found.result = if found.becomes == "failed" {
                "exit-code"
            } else {
                "success"
            };
        }
        found.job_looks = 2;
        if self.lost > 0 {
            self.lost -= 1;
            return None;
        }
        Some(Ok(()))
    }

    fn property(&mut self, path: &str, name: &str) -> Variant<'static> {
        let at: usize = path.rsplit('/').next().unwrap().parse().unwrap();
        let unit = self.units.values_mut().nth(at).unwrap();
        match name {
            "LoadState" => unit.load.into(),
            "ActiveState" => unit.active.into(),
            "Result" => unit.result.into(),
            "Type" => unit.kind.into(),
            "InvocationID" => {
                unit.starts += u8::from(unit.loops && unit.starts > 1);
                vec![unit.starts; 16].into()
            }
            "Job" => {
                let job = u32::from(unit.job_looks > 0);
                unit.job_looks = unit.job_looks.saturating_sub(1);
                (job, ObjectPath::try_from("/").unwrap()).into()
            }
            other => panic!("{other}"),
        }
    }
}

/// The bus and the manager in one, on a socket.
struct FakeManager {
    world: Arc<Mutex<World>>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl FakeManager {
    fn new(units: &[(&str, Fake)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        let listener = UnixListener::bind(&socket).unwrap();
        let units = units.iter().map(|(name, unit)| ((*name).to_owned(), unit.clone()));
        let world = Arc::new(Mutex::new(World {
            units: units.collect(),
            ..World::default()
        }));
        let served = Arc::clone(&world);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let world = Arc::clone(&served);
                thread::spawn(move || serve(stream.unwrap(), &world));
            }
        });
        Self {
            world,
            socket,
            _directory: directory,
        }
    }

    fn adapter(&self) -> SystemdAdapter {
        let bus = format!("unix:path={}", self.socket.display());
        let config = json!({"bus": bus, "timeout_ms": 1_000, "settle_ms": 150, "target": [
            {"service": "shop", "unit": "shop@1.service"}, {"service": "*"}]});
        SystemdAdapter::new(&serde_json::from_value(config).unwrap()).unwrap()
    }

    fn unit(&self, name: &str) -> Fake {
        self.world.lock().unwrap().units[name].clone()
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Fake)) {
        change(self.world.lock().unwrap().units.get_mut(name).unwrap());
    }
}

fn serve(stream: UnixStream, world: &Mutex<World>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let guid = Guid::generate();
        let Ok(mut stream) = Builder::unix_stream(stream)
            .server(guid)
            .p2p()
            .build_message_stream()
            .await
        else {
            return;
        };
        let connection = Connection::from(&stream);
        while let Some(message) = next(&mut stream).await {
            if message.message_type() == Type::MethodCall && answer(&connection, &message, world).await.is_none() {
                return;
            }
        }
    });
}

async fn next(stream: &mut MessageStream) -> Option<Message> {
    poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await?.ok()
}

/// `None` closes the connection.
async fn answer(connection: &Connection, message: &Message, world: &Mutex<World>) -> Option<()> {
    let header = message.header();
    let member = header.member()?.to_string();
    let body = message.body();
    let replied = match &*member {
        "Hello" => connection.reply(&header, &":1.1").await,
        "LoadUnit" => {
            let (name,): (String,) = body.deserialize().ok()?;
            let at = world.lock().unwrap().units.keys().position(|unit| *unit == name);
            match at {
                Some(at) => {
                    let path = format!("/org/freedesktop/systemd1/unit/{at}");
                    connection.reply(&header, &ObjectPath::try_from(path).ok()?).await
                }
                None => {
                    let error = "org.freedesktop.systemd1.NoSuchUnit";
                    connection.reply_error(&header, error, &"Unit not found.").await
                }
            }
        }
        "Get" => {
            let (_, name): (String, String) = body.deserialize().ok()?;
            let value = world.lock().unwrap().property(header.path()?.as_str(), &name);
            connection.reply(&header, &value).await
        }
        method => {
            let (unit, mode): (String, String) = body.deserialize().ok()?;
            assert_eq!(mode, "replace");
            let changed = world.lock().unwrap().change(method, &unit)?;
            match changed {
                Ok(()) => {
                    let path = ObjectPath::try_from("/org/freedesktop/systemd1/job/1").ok()?;
                    connection.reply(&header, &path).await
                }
                Err(error) => connection.reply_error(&header, error, &"not today").await,
            }
        }
    };
    replied.ok()
}

fn asked(service: &str, kind: &str) -> Command {
    let mut action = action(service, 1);
    action.action.kind = kind.into();
    action.timing.exec_timeout_ms = 3_000;
    command(action, 1)
}

fn carry_out(adapter: &SystemdAdapter, command: &Command) -> Result<Effect, Failure> {
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
    let manager = FakeManager::new(&[("cart.service", Fake::default()), ("shop@1.service", Fake::default())]);
    let adapter = manager.adapter();
    let command = asked("cart", "restart");
    let before = adapter.observe(&command).unwrap();
    assert_eq!(adapter.reconcile(&command, Some(&before)), Reconciled::NotDone);
    let effect = adapter.act(&command, &before).unwrap();
    assert_eq!(effect["before"]["invocation"], "01".repeat(16));
    assert_eq!(effect["after"]["invocation"], "02".repeat(16));
    assert!(matches!(
        adapter.reconcile(&command, Some(&before)),
        Reconciled::Done(_)
    ));
    adapter.act(&command, &before).unwrap();
    assert_eq!(manager.unit("cart.service").starts, 2);
    carry_out(&adapter, &asked("shop", "restart")).unwrap();
    assert_eq!(manager.unit("shop@1.service").starts, 2);
}

#[test]
fn invariant_13_a_lost_answer_does_not_restart_twice() {
    let manager = FakeManager::new(&[("cart.service", Fake::default())]);
    manager.world.lock().unwrap().lost = 1;
    carry_out(&manager.adapter(), &asked("cart", "restart")).unwrap();
    assert_eq!(manager.unit("cart.service").starts, 2);
    assert_eq!(manager.world.lock().unwrap().calls, ["RestartUnit cart.service"]);
}

#[test]
fn stopping_and_starting_are_states() {
    let manager = FakeManager::new(&[("cart.service", Fake::default())]);
    let adapter = manager.adapter();
    for (kind, active) in [
        ("stop", "inactive"),
        ("stop", "inactive"),
        ("start", "active"),
        ("start", "active"),
    ] {
        let command = asked("cart", kind);
        carry_out(&adapter, &command).unwrap();
        assert_eq!(manager.unit("cart.service").active, active);
        let before = adapter.observe(&command).unwrap();
        assert!(matches!(
            adapter.reconcile(&command, Some(&before)),
            Reconciled::Done(_)
        ));
    }
    let calls = manager.world.lock().unwrap().calls.clone();
    assert_eq!(calls, ["StopUnit cart.service", "StartUnit cart.service"]);
}

#[test]
fn success_is_seen_not_said() {
    let manager = FakeManager::new(&[("cart.service", Fake::default())]);
    let adapter = manager.adapter();
    manager.change("cart.service", |unit| unit.becomes = "failed");
    refused(carry_out(&adapter, &asked("cart", "restart")), 500, "exit-code");
    manager.change("cart.service", |unit| unit.becomes = "activating");
    let failure = carry_out(&adapter, &asked("cart", "restart")).unwrap_err();
    assert!(
        matches!(&failure, Failure::Unknown(reason) if reason.contains("not settled in time")),
        "{failure:?}"
    );
    manager.change("cart.service", |unit| {
        unit.becomes = "active";
        unit.loops = true;
    });
    refused(carry_out(&adapter, &asked("cart", "restart")), 500, "over and over");
    // A service that is over when its work is done has not failed.
    manager.change("cart.service", |unit| {
        unit.loops = false;
        unit.becomes = "inactive";
        unit.kind = "oneshot";
    });
    carry_out(&adapter, &asked("cart", "restart")).unwrap();
}

#[test]
fn what_the_manager_says_is_told() {
    let masked = Fake {
        load: "masked",
        ..Fake::default()
    };
    let lost = Fake {
        load: "not-found",
        ..Fake::default()
    };
    let units = [
        ("cart.service", Fake::default()),
        ("db.service", masked),
        ("old.service", lost),
    ];
    let manager = FakeManager::new(&units);
    let adapter = manager.adapter();
    refused(
        carry_out(&adapter, &asked("none", "restart")),
        404,
        "unit none.service: does not exist",
    );
    refused(
        carry_out(&adapter, &asked("old", "restart")),
        404,
        "unit old.service does not exist",
    );
    refused(carry_out(&adapter, &asked("db", "restart")), 409, "it is masked");
    for (error, code, part) in [
        ("org.freedesktop.DBus.Error.AccessDenied", 403, "polkit"),
        (
            "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
            403,
            "polkit",
        ),
        ("org.freedesktop.systemd1.OnlyByDependency", 409, "not today"),
        ("org.freedesktop.systemd1.Odd", 500, "Odd: not today"),
    ] {
        manager.world.lock().unwrap().refuses = Some(error);
        refused(carry_out(&adapter, &asked("cart", "restart")), code, part);
    }
    assert_eq!(manager.unit("cart.service").starts, 1);
}

#[test]
fn nobody_there_is_no_effect() {
    let manager = FakeManager::new(&[("cart.service", Fake::default())]);
    let command = asked("cart", "restart");
    let mut adapter = manager.adapter();
    let before = adapter.observe(&command).unwrap();
    adapter.config.bus = "unix:path=/nowhere/bus".into();
    for failure in [
        adapter.observe(&command).unwrap_err(),
        adapter.act(&command, &before).unwrap_err(),
    ] {
        assert!(
            matches!(failure, Failure::Failed { retryable: true, .. }),
            "{failure:?}"
        );
    }
    assert!(matches!(
        adapter.reconcile(&command, Some(&before)),
        Reconciled::Unknown(_)
    ));
}

#[test]
fn commands_are_understood_or_refused_before_anything_is_claimed() {
    let config = json!({"target": [{"service": "cart*"}, {"service": "odd*", "unit": "{service}.timer"}]});
    let adapter = SystemdAdapter::new(&serde_json::from_value(config).unwrap()).unwrap();
    for (service, kind, expected) in [
        ("cart", "restart", None),
        ("odd-1", "start", None),
        ("cart", "kill", Some("knows no action")),
        ("db", "restart", Some("no [[systemd.target]]")),
        ("cart/../x", "restart", Some("no name of a unit")),
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
    with_params.action.params.insert("t".into(), Value::from(1));
    assert_eq!(adapter.knows(&command(with_params, 1)).unwrap_err().code, 412);
}

#[test]
fn a_wrong_configuration_is_refused() {
    for (text, expected) in [
        (json!({"bus": "user"}), "systemd.bus"),
        (json!({"timeout_ms": 0}), "systemd.timeout_ms"),
        (json!({"settle_ms": 1_000_000}), "systemd.settle_ms"),
        (json!({"target": [{"service": ""}]}), "service is empty"),
        (
            json!({"target": [{"service": "a", "unit": "cart"}]}),
            "such as cart.service",
        ),
        (
            json!({"target": [{"service": "a", "unit": ".service"}]}),
            "such as cart.service",
        ),
        (
            json!({"target": [{"service": "a", "unit": "a b.service"}]}),
            "such as cart.service",
        ),
    ] {
        let error = SystemdAdapter::new(&serde_json::from_value(text).unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}
