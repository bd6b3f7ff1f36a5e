//! Runs commands that the operator has written down: an absolute path and a list of arguments, never a shell's text.
//!
//! A command says which entry is meant only through the allow-list, and fills in parameters that the entry declares,
//! each of a type and within bounds. The environment is the entry's and nothing of the executor's; it holds the action's
//! id, so that the program can tell a repetition. What it prints is kept up to a bound and goes into the outcome.
//!
//! The world keeps no marker of such a command. One that is declared `idempotent` is run again after a crash; any other
//! that may have run is unknown. So is one that had to be ended at its time limit or because it was withdrawn, or that a
//! signal ended.

mod output;
mod param;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, Command as Spawn, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::{
    output::Output,
    param::{Param, Template},
};
use crate::{
    Error,
    adapter::{Adapter, Before, Effect, Failure, Reconciled, process::launcher::ACTION_ID_VARIABLE},
    admission::Refusal,
    command::Command,
};

/// The key of the target, for the program.
const TARGET_VARIABLE: &str = "HOMEOSTAT_TARGET";
/// How long a program may take to end when it is told to.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
const TIMEOUT_MS_MAX: u64 = 3_600_000;
const OUTPUT_BYTES_MAX: usize = 65_536;

/// The commands that may be run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub command: Vec<Entry>,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The name by which an allow-list entry refers to it.
    pub name: String,
    /// Absolute path.
    pub program: PathBuf,
    /// One argument each; `{service}`, `{action_id}` and `{PARAMETER}` are filled in.
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub params: BTreeMap<String, Param>,
    /// The whole environment, beside HOMEOSTAT_ACTION_ID and HOMEOSTAT_TARGET.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<PathBuf>,
    /// The program and all it has started are ended after this long, or when the action's own time is over.
    #[serde(default = "Entry::default_timeout_ms")]
    pub timeout_ms: u64,
    /// How much of the end of what it prints goes into the outcome.
    #[serde(default = "Entry::default_output_bytes_max")]
    pub output_bytes_max: usize,
    /// Whether the program does nothing twice under one action id, even while it is still running.
    #[serde(default)]
    pub idempotent: bool,
}

impl Entry {
    fn default_timeout_ms() -> u64 {
        60_000
    }

    fn default_output_bytes_max() -> usize {
        4_096
    }

    fn check(&self) -> Result<(), String> {
        if !self.program.is_absolute() {
            return Err(format!("program = {:?} must be an absolute path", self.program));
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&self.timeout_ms) {
            let given = self.timeout_ms;
            return Err(format!(
                "timeout_ms = {given} is out of range; it is 1 to {TIMEOUT_MS_MAX}"
            ));
        }
        if self.output_bytes_max > OUTPUT_BYTES_MAX {
            let given = self.output_bytes_max;
            return Err(format!(
                "output_bytes_max = {given} is out of range; it is 0 to {OUTPUT_BYTES_MAX}"
            ));
        }
        for (name, param) in &self.params {
            param.check().map_err(|reason| format!("params.{name}: {reason}"))?;
        }
        Template::read(&self.args, &self.params).map(|_| ())
    }

    /// Looked at when the executor starts, not in the middle of an incident.
    fn check_program(&self) -> Result<(), String> {
        let found = fs::metadata(&self.program).map_err(|error| format!("program {:?}: {error}", self.program))?;
        if found.is_file() && found.permissions().mode() & 0o111 != 0 {
            return Ok(());
        }
        Err(format!("program {:?} is no file that can be run", self.program))
    }
}

impl Config {
    pub fn check(&self) -> Result<(), Error> {
        for entry in &self.command {
            entry.check().map_err(|reason| wrong(entry, &reason))?;
        }
        Ok(())
    }
}

fn wrong(entry: &Entry, reason: &str) -> Error {
    Error::Config(format!("[[catalogue.command]] {:?}: {reason}", entry.name))
}

/// One entry, ready to be run.
pub struct CatalogueAdapter {
    entry: Entry,
    template: Template,
}

impl CatalogueAdapter {
    pub fn new(entry: &Entry) -> Result<Self, Error> {
        let wrong = |reason: String| wrong(entry, &reason);
        entry.check().map_err(wrong)?;
        entry.check_program().map_err(wrong)?;
        Ok(Self {
            entry: entry.clone(),
            template: Template::read(&entry.args, &entry.params).map_err(wrong)?,
        })
    }

    fn arguments(&self, command: &Command) -> Result<Vec<String>, Refusal> {
        self.template
            .fill(&self.entry.params, command)
            .map_err(|reason| Refusal::rejected(412, format!("command {:?}: {reason}", self.entry.name)))
    }

    fn start(&self, command: &Command, arguments: &[String], writer: io::PipeWriter) -> io::Result<Child> {
        let mut spawn = Spawn::new(&self.entry.program);
        if let Some(directory) = &self.entry.working_dir {
            spawn.current_dir(directory);
        }
        spawn
            .args(arguments)
            .env_clear()
            .envs(&self.entry.env)
            .env(ACTION_ID_VARIABLE, command.id().to_string())
            .env(TARGET_VARIABLE, &command.action.target.key)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            // Its own group, to be ended as a whole.
            .process_group(0)
            .spawn()
    }
}

impl Adapter for CatalogueAdapter {
    fn knows(&self, command: &Command) -> Result<(), Refusal> {
        self.arguments(command).map(|_| ())
    }

    fn reconcile(&self, _command: &Command, before: Option<&Before>) -> Reconciled {
        match before {
            None => Reconciled::NotDone,
            Some(_) if self.entry.idempotent => Reconciled::Repeatable,
            Some(_) => Reconciled::Unknown(format!("command {:?} may have run, or may be running", self.entry.name)),
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
        let arguments = self.arguments(command)?;
        if !wanted() {
            return Err(Failure::Stopped("before the program was started".into()));
        }
        let cannot =
            |error: io::Error| Failure::failed(format!("{} cannot be started: {error}", self.entry.program.display()));
        let (reader, writer) = io::pipe().map_err(cannot)?;
        let output = Output::collect(reader, self.entry.output_bytes_max);
        let started = Instant::now();
        let mut child = self.start(command, &arguments, writer).map_err(cannot)?;
        let limit = Duration::from_millis(self.entry.timeout_ms).min(command.exec_timeout());
        let ended = wait(&mut child, limit, wanted);
        let took = started.elapsed();
        if !matches!(ended, Ok(Waited::Ended(_))) {
            end(&mut child);
        }
        let said = output.end();
        let name = &self.entry.name;
        let doubt = |what: String| Err(Failure::Unknown(told(&format!("command {name:?} {what}"), &said)));
        match ended {
            Ok(Waited::Ended(status)) => self.judge(status, said, took),
            Ok(Waited::TimeOver) => doubt(format!("did not end within {} ms and was ended", limit.as_millis())),
            // What it has done by then nobody knows.
            Ok(Waited::Withdrawn) => doubt("was withdrawn on the way and was ended".into()),
            Err(error) => doubt(format!("cannot be waited for: {error}")),
        }
    }
}

impl CatalogueAdapter {
    fn judge(&self, status: ExitStatus, said: String, took: Duration) -> Result<Effect, Failure> {
        let name = &self.entry.name;
        match status.code() {
            Some(0) => Ok(Effect::from_iter([
                ("command".to_owned(), json!(name)),
                (
                    "took_ms".to_owned(),
                    json!(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
                ),
                ("output".to_owned(), json!(said)),
            ])),
            Some(code) => Err(Failure::failed(told(
                &format!("command {name:?} ended with code {code}"),
                &said,
            ))),
            None => {
                let signal = status.signal().unwrap_or_default();
                Err(Failure::Unknown(told(
                    &format!("command {name:?} was ended by signal {signal}"),
                    &said,
                )))
            }
        }
    }
}

fn told(what: &str, said: &str) -> String {
    match said.trim() {
        "" => what.to_owned(),
        said => format!("{what}: {said}"),
    }
}

/// Why a program is not waited for any longer.
enum Waited {
    Ended(ExitStatus),
    TimeOver,
    Withdrawn,
}

fn wait(child: &mut Child, limit: Duration, wanted: &dyn Fn() -> bool) -> io::Result<Waited> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Waited::Ended(status));
        }
        if !wanted() {
            return Ok(Waited::Withdrawn);
        }
        if Instant::now() >= deadline {
            return Ok(Waited::TimeOver);
        }
        thread::sleep(LOOK);
    }
}

/// Ends the program and what it has started: asked first, then killed.
fn end(child: &mut Child) {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return;
    };
    // Nobody there to be told is what is wanted.
    let _ = kill_process_group(group, Signal::TERM);
    let ended = matches!(wait(child, END_TIMEOUT, &|| true), Ok(Waited::Ended(_)));
    let _ = kill_process_group(group, Signal::KILL);
    if !ended {
        let _ = child.wait();
    }
}

#[cfg(test)]
mod tests;
