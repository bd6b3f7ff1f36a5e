//! Restarts local processes that this executor supervises.
//!
//! Each service has a pid file: who runs, since when, and for which action it was started. The start time, as the
//! kernel counts it, tells a process from another that was given the same pid later; signals go through a pidfd that
//! was opened before the start time was compared, so they cannot reach a stranger.
//!
//! What makes a restart exact is the order of three steps, all under one lock file per service:
//! 1. the old process ends;
//! 2. a launcher, a process of its own, writes the pid file with its own pid and the action's id, durably;
//! 3. the launcher becomes the service (`exec`): same pid, same start time, and the action's id in its environment.
//!
//! The launcher inherits the lock as its standard input and so holds it until it has become the service, whatever
//! happens to the executor meanwhile. Whoever gets the lock afterwards reads the pid file and knows: the action's id is
//! there, and the service was started for it; or it is not, and nothing was.

pub mod launcher;
pub mod pid_file;
mod system;

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command as Spawn, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{launcher::Launch, pid_file::PidFile, system::Process};
use crate::{
    adapter::{Adapter, Before, Effect, Failure, Reconciled, unknown_target},
    admission::Refusal,
    command::Command,
};

/// The action that this adapter knows.
const RESTART: &str = "restart";
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the kernel may take to bury a process after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The local processes that may be restarted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub service: Vec<Service>,
}

/// One local process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The service's name in telemetry.
    pub name: String,
    /// Program and arguments; no shell reads them.
    pub command: Vec<String>,
    /// Added to the executor's own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<PathBuf>,
    /// Written by whoever starts the service first, and by every restart.
    pub pid_file: PathBuf,
    /// How long the process may take to end after SIGTERM before it is killed.
    #[serde(default = "Service::default_stop_timeout_ms")]
    pub stop_timeout_ms: u64,
    /// How long a new process must live for its start to count.
    #[serde(default = "Service::default_settle_ms")]
    pub settle_ms: u64,
    /// Standard output and error are appended here; without it they are discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_file: Option<PathBuf>,
}

impl Service {
    fn default_stop_timeout_ms() -> u64 {
        10_000
    }

    fn default_settle_ms() -> u64 {
        300
    }

    fn lock_path(&self) -> PathBuf {
        let mut name = self.pid_file.clone().into_os_string();
        name.push(".lock");
        name.into()
    }
}

pub struct ProcessAdapter {
    services: BTreeMap<String, Service>,
    /// The program that starts services: this one, under [`launcher::ARGUMENT`].
    launcher: PathBuf,
    /// Started by this run, to be reaped when they end.
    children: Mutex<Vec<Child>>,
}

impl ProcessAdapter {
    pub fn new(config: &Config, launcher: PathBuf) -> Self {
        Self {
            services: config
                .service
                .iter()
                .map(|service| (service.name.clone(), service.clone()))
                .collect(),
            launcher,
            children: Mutex::default(),
        }
    }

    fn service(&self, command: &Command) -> Result<&Service, String> {
        if command.kind() != RESTART {
            return Err(format!(
                "the process adapter knows {RESTART:?} only, not {:?}",
                command.kind()
            ));
        }
        self.services
            .get(command.service())
            .ok_or_else(|| format!("{:?} is no [[process.service]] of this executor", command.service()))
    }

    /// Ended children stay zombies until somebody asks for their status.
    fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// Starts the launcher and waits until it has become the service.
    fn launch(&self, service: &Service, command: &Command, lock: File) -> Result<u32, Failure> {
        let launch = Launch {
            action_id: command.id(),
            service: service.clone(),
        };
        let launch = serde_json::to_string(&launch).expect("the configuration was read from text");
        let mut spawn = Spawn::new(&self.launcher);
        // The executor's own settings, secrets among them, are none of the service's business.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HOMEOSTAT_") {
                spawn.env_remove(name);
            }
        }
        let mut child = spawn
            .arg(launcher::ARGUMENT)
            .env(launcher::LAUNCH_VARIABLE, launch)
            .stdin(Stdio::from(lock))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| Failure::failed(format!("{} cannot be started: {error}", self.launcher.display())))?;
        let pid = child.id();
        // Everything the launcher says is an error; the pipe closes when it becomes the service.
        let mut said = String::new();
        if let Some(mut pipe) = child.stdout.take() {
            let _ = pipe.read_to_string(&mut said);
        }
        let mut children = self.children.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        children.push(child);
        drop(children);
        if said.is_empty() {
            Ok(pid)
        } else {
            Err(Failure::failed(said))
        }
    }

    fn settled(&self, service: &Service, pid: u32) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_millis(service.settle_ms);
        loop {
            let mut children = self.children.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let ended = children
                .iter_mut()
                .find(|child| child.id() == pid)
                .and_then(|child| child.try_wait().ok().flatten());
            drop(children);
            if let Some(status) = ended {
                return Err(Failure::failed(format!(
                    "started, and ended within {} ms: {status}",
                    service.settle_ms
                )));
            }
            if Instant::now() >= deadline {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Adapter for ProcessAdapter {
    fn knows(&self, command: &Command) -> Result<(), Refusal> {
        self.service(command).map(|_| ()).map_err(unknown_target)
    }

    fn reconcile(&self, command: &Command, _before: Option<&Before>) -> Reconciled {
        self.reap();
        let service = match self.service(command) {
            Ok(service) => service,
            Err(reason) => return Reconciled::Unknown(reason),
        };
        let found = lock(service, LOCK_TIMEOUT).and_then(|_lock| pid_file::read(&service.pid_file));
        match found {
            Ok(Some(file)) if file.action_id == Some(command.id()) => match file.error.clone() {
                Some(error) => Reconciled::Failed(Failure::failed(error)),
                None => Reconciled::Done(effect(None, &file)),
            },
            Ok(_) => Reconciled::NotDone,
            Err(error) => Reconciled::Unknown(format!("{}: {error}", service.pid_file.display())),
        }
    }

    fn act(&self, command: &Command, before: &Before) -> Result<Effect, Failure> {
        self.act_while_wanted(command, before, &|| true)
    }

    fn act_while_wanted(
        &self,
        command: &Command,
        _before: &Before,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Effect, Failure> {
        self.reap();
        let service = self.service(command).map_err(Failure::failed)?;
        let lock = lock(service, LOCK_TIMEOUT)
            .map_err(|error| Failure::failed(format!("{}: {error}", service.lock_path().display())))?;
        let before = pid_file::read(&service.pid_file)
            .map_err(|error| Failure::failed(format!("{}: {error}", service.pid_file.display())))?;
        // A process that was asked to end has to be replaced: from here on the restart runs to its end.
        if !wanted() {
            return Err(Failure::Stopped("before the process was asked to end".into()));
        }
        if let Some(before) = &before {
            let stop_timeout = Duration::from_millis(service.stop_timeout_ms).min(command.exec_timeout());
            stop(before, stop_timeout)
                .map_err(|error| Failure::failed(format!("process {} cannot be ended: {error}", before.pid)))?;
            self.reap();
        }
        let pid = self.launch(service, command, lock)?;
        self.settled(service, pid)?;
        match pid_file::read(&service.pid_file) {
            Ok(Some(after)) => Ok(effect(before.as_ref(), &after)),
            Ok(None) => Err(Failure::Unknown(format!("{} is gone", service.pid_file.display()))),
            Err(error) => Err(Failure::Unknown(format!("{}: {error}", service.pid_file.display()))),
        }
    }
}

fn effect(before: Option<&PidFile>, after: &PidFile) -> Effect {
    let mut effect = Effect::new();
    if let Some(before) = before {
        effect.insert("pid_before".into(), json!(before.pid));
    }
    effect.insert("pid_after".into(), json!(after.pid));
    effect.insert("marker".into(), after.action_id.map_or(Value::Null, |id| json!(id)));
    effect
}

/// Takes the service's lock. It ends with the last process that has the file open, which may be the launcher.
fn lock(service: &Service, timeout: Duration) -> io::Result<File> {
    let path = service.lock_path();
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)?;
    let deadline = Instant::now() + timeout;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "another process has been starting this service for too long",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Ends the process that the pid file names, if it is still that one: asked first, then killed.
fn stop(file: &PidFile, stop_timeout: Duration) -> io::Result<()> {
    let Some(process) = Process::open(file.pid, file.start_time_ticks)? else {
        return Ok(());
    };
    process.terminate()?;
    if process.ended_within(stop_timeout)? {
        return Ok(());
    }
    process.kill()?;
    if process.ended_within(KILL_TIMEOUT)? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "it survived SIGKILL"))
}

/// Writes the pid file of a process that someone else has just started, so that the executor can restart it.
pub fn adopt(pid_file: &Path, pid: u32) -> io::Result<()> {
    pid_file::write(pid_file, &PidFile::of(pid, None)?)
}
