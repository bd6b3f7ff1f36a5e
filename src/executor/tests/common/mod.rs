//! Commands and services that keep count of what happens to them.
#![allow(dead_code)] // Each test program uses its part.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use executor::{
    Error,
    adapter::{
        Adapter,
        process::{self, Service},
    },
    admission::Limits,
    allow::{AdapterKind, Allow, Unlisted},
    budget::{Bounds, BreakerConfig},
    command::{Command, Reader},
    control::ControlView,
    crash::{Crash, CrashPoint},
    ledger::Ledger,
    report::{Identity, Reporter},
    watch::Watch,
    worker::{Cancellations, ControlSource, Worker},
};
use protocol::{
    Batch, CloudEvent, Output, Target, TimestampKind, Topics,
    cloudevent::ACTION_REQUESTED,
    id,
    message::{Action, ActionBody, ActionTarget, Approval, Executor, Explain, Ladder, Outcome, Timing},
};

pub const EXECUTOR: &str = env!("CARGO_BIN_EXE_homeostat-executor");

pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap()
}

/// A restart of `service` that may start for a minute.
pub fn action(service: &str, number: u32) -> Action {
    let target = Target::service("homeostat", service);
    let incident_id = id::incident("homeostat", &target.key(), "policy", 1);
    Action {
        action_id: id::action("homeostat", &target.key(), incident_id, 1, number),
        incident_id,
        decision_id: id::derived("decision", &[service]),
        attempt: number + 1,
        ladder: Ladder {
            step: 1,
            of: 1,
            policy: "policy".into(),
        },
        action: ActionBody {
            kind: "restart".into(),
            version: 1,
            params: serde_json::Map::new(),
        },
        target: ActionTarget {
            key: target.key(),
            target,
        },
        timing: Timing {
            decided_at: now_ms(),
            start_deadline: now_ms() + 60_000,
            exec_timeout_ms: 10_000,
            verify_after_ms: 1_000,
            verify_for_ms: 1_000,
        },
        mode: "live".into(),
        approval: Approval {
            required: false,
            state: "not_required".into(),
            id: None,
        },
        explain: Explain {
            policy: "policy".into(),
            detector: "quiet".into(),
            pipeline: "shop".into(),
            score: 1.0,
            evidence: vec![],
            gates: vec![],
        },
    }
}

pub fn output(action: &Action, sequence: u64) -> Output {
    let event = CloudEvent {
        expiry_time_ms: Some(action.timing.start_deadline),
        correlation_id: Some(action.incident_id),
        causation_id: Some(action.decision_id),
        sequence: Some(sequence),
        traceparent: Some(id::traceparent(action.incident_id, action.action_id)),
        mode: Some(action.mode.clone()),
        ..CloudEvent::new(
            action.action_id,
            &action.target.target.tenant,
            "/homeostat/homeostat/shop",
            ACTION_REQUESTED,
            &action.target.key,
            now_ms(),
        )
    };
    event.output("homeostat.actions", action)
}

pub fn command(action: &Action, sequence: u64) -> Command {
    let output = output(action, sequence);
    let mut batch = Batch::default();
    let partition = batch.partition(&output.topic, 0);
    batch.push(
        partition,
        0,
        (now_ms(), TimestampKind::Create),
        output.key.as_deref(),
        output.value.as_deref(),
        output.headers.iter().map(|(name, value)| (&**name, &**value)),
    );
    Reader::default().read(&batch.get(0)).unwrap()
}

/// A service that writes a line for each of its starts: the target counts, not the executor.
pub struct Counted {
    pub service: Service,
    starts: PathBuf,
}

impl Counted {
    pub fn new(directory: &Path, name: &str) -> Self {
        let starts = directory.join(format!("{name}.starts"));
        let script = format!(
            "echo \"${{HOMEOSTAT_ACTION_ID:-by hand}}\" >> {}; exec sleep 300",
            starts.display()
        );
        let service = serde_json::from_value(serde_json::json!({
            "name": name,
            "command": ["sh", "-c", script],
            "pid_file": directory.join(format!("{name}.json")),
            "stop_timeout_ms": 2_000,
            "settle_ms": 50,
        }));
        Self {
            service: service.unwrap(),
            starts,
        }
    }

    /// Starts it as an operator would, outside the executor.
    pub fn start_by_hand(&self) -> std::process::Child {
        let child = std::process::Command::new(&self.service.command[0])
            .args(&self.service.command[1..])
            .env_remove("HOMEOSTAT_ACTION_ID")
            .spawn()
            .unwrap();
        process::adopt(&self.service.pid_file, child.id()).unwrap();
        wait_until("the first start", || self.starts().len() == 1);
        child
    }

    /// The action ids it was started for, in order.
    pub fn starts(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.starts).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn pid(&self) -> u32 {
        process::pid_file::read(&self.service.pid_file).unwrap().unwrap().pid
    }

    pub fn runs(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid())).is_ok_and(|stat| !stat.contains(") Z"))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Ok(Some(file)) = process::pid_file::read(&self.service.pid_file) {
            let _ = std::process::Command::new("kill")
                .args(["-9", &file.pid.to_string()])
                .status();
        }
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process of its own that carries the command in the directory out: this test program's test `child_process`, told so
/// by the environment.
pub fn child(directory: &Path, crash: Option<CrashPoint>) -> std::process::ExitStatus {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child_process", "--nocapture", "--quiet"])
        .env("EXECUTOR_TEST_DIRECTORY", directory)
        .stdout(std::process::Stdio::null());
    if let Some(point) = crash {
        command.env("HOMEOSTAT_CRASH_POINT", point.as_str());
    }
    command.status().unwrap()
}

/// What the workers of a directory have said.
pub fn outcomes(directory: &Path) -> Vec<Outcome> {
    let text = fs::read_to_string(directory.join("outcomes.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn identity(id: &str) -> Identity {
    Identity {
        executor: Executor {
            id: id.into(),
            version: "0".into(),
        },
        topics: Topics::new("homeostat."),
        tenant: "homeostat".into(),
        signer: None,
    }
}

/// Allowed to do one thing to everything, with ledger and reports in the directory.
pub fn worker(directory: &Path, kind: AdapterKind, adapter: Box<dyn Adapter>, action: &str) -> Worker {
    Worker {
        identity: identity("test"),
        limits: Limits {
            skew_margin_ms: 0,
            age_ms_max: 600_000,
        },
        bounds: Bounds {
            budget: Vec::new(),
            breaker: BreakerConfig {
                failures_max: u32::MAX,
                open_ms: 1,
            },
        },
        allow: vec![Allow {
            action: action.into(),
            target: "*".into(),
            adapter: kind,
            endpoint: None,
            params: BTreeMap::new(),
        }],
        unlisted: Unlisted::Reject,
        adapters: BTreeMap::from([((kind, None), adapter)]),
        ledger: Ledger::open(&directory.join("ledger.redb"), uuid::Uuid::nil()).unwrap(),
        control: Box::new(NoControl),
        cancelled: Cancellations::default(),
        reporter: Box::new(FileReporter(directory.join("outcomes.jsonl"))),
        watch: Watch::none(),
        crash: Crash::from_environment(),
        now_ms: Box::new(now_ms),
    }
}

struct FileReporter(PathBuf);

impl Reporter for FileReporter {
    fn announce(&self, output: Output) {
        self.publish(output).unwrap();
    }

    fn publish(&self, output: Output) -> Result<(), Error> {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.0).unwrap();
        let line = [output.value.unwrap(), b"\n".to_vec()].concat();
        file.write_all(&line).unwrap();
        Ok(())
    }
}

struct NoControl;

impl ControlSource for NoControl {
    fn current(&self) -> Result<Option<Arc<ControlView>>, Error> {
        Ok(Some(Arc::default()))
    }
}
