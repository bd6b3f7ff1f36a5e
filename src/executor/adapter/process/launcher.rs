//! The short life of the process that becomes the service: mark, then `exec`.
//!
//! Runs as `homeostat-executor start-service`, started by the executor only, with what to start in the environment.
//! Standard input is the service's lock, standard output a pipe on which to say what went wrong; both end with `exec`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, Stdio},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Service,
    pid_file::{self, PidFile},
};

/// The hidden subcommand of the executor's program.
pub const ARGUMENT: &str = "start-service";
/// JSON of [`Launch`]. Not an argument: arguments are for every user of the machine to read.
pub const LAUNCH_VARIABLE: &str = "HOMEOSTAT_LAUNCH";
/// The marker in the service's environment.
pub const ACTION_ID_VARIABLE: &str = "HOMEOSTAT_ACTION_ID";

/// What to start, and what for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    pub action_id: Uuid,
    pub service: Service,
}

/// Becomes the service. Returns only with what went wrong, after saying so.
pub fn run() -> io::Error {
    let error = start();
    let _ = io::stdout().write_all(error.to_string().as_bytes());
    error
}

fn start() -> io::Error {
    match prepare() {
        Ok(Prepared {
            mut command,
            service,
            marker,
            errors,
            lock,
        }) => {
            let error = command.exec();
            let reason = format!("{} cannot be started: {error}", service.command.join(" "));
            let failed = PidFile {
                error: Some(reason.clone()),
                ..marker
            };
            let _ = pid_file::write(&service.pid_file, &failed);
            let _ = (&errors).write_all(reason.as_bytes());
            drop(lock);
            io::Error::other(reason)
        }
        Err(error) => error,
    }
}

struct Prepared {
    command: Command,
    service: Service,
    marker: PidFile,
    /// `exec` puts the service's log in place of the pipe, and nothing in place of the lock, before it can fail. These
    /// copies last until it has succeeded.
    errors: File,
    lock: File,
}

fn prepare() -> io::Result<Prepared> {
    let launch = std::env::var(LAUNCH_VARIABLE).map_err(io::Error::other)?;
    let Launch { action_id, service } = serde_json::from_str(&launch)?;
    let Some((program, arguments)) = service.command.split_first() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the service has no command",
        ));
    };
    // The service outlives the executor and the terminal that started it.
    let _ = rustix::process::setsid();
    let errors = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let lock = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let log = match &service.log_file {
        Some(path) => OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{} cannot be written: {error}", path.display())))?,
        None => OpenOptions::new().write(true).open("/dev/null")?,
    };
    if let Some(file) = pid_file::read(&service.pid_file)?.filter(|file| file.action_id == Some(action_id)) {
        let reason = format!("action {action_id} already started process {}", file.pid);
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(&service.env)
        .env(ACTION_ID_VARIABLE, action_id.to_string())
        .env_remove(LAUNCH_VARIABLE)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if let Some(directory) = &service.working_dir {
        command.current_dir(directory);
    }
    let marker = PidFile::of(std::process::id(), Some(action_id))?;
    pid_file::write(&service.pid_file, &marker)?;
    Ok(Prepared {
        command,
        service,
        marker,
        errors,
        lock,
    })
}
