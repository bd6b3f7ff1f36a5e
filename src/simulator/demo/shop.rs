//! Everything that the demonstration starts, in a folder of its own, and how it ends.
//!
//! Services are started here once; afterwards the executor restarts them from the same command. Each has a process
//! group of its own, so that Ctrl-C reaches the demonstration alone and the end stays in order: the executor first, so that
//! nothing is restarted any more, then every service by its pid file, then whoever is left on the control channel.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use protocol::Topics;

use super::process::PidFile;
use crate::{
    Error, Fault,
    control::{Hello, Switchboard},
    graph::SHOP,
    service::start_log,
    visitors,
};

const START_TIMEOUT: Duration = Duration::from_secs(30);
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// What an executor that ends in order may take; longer than a start that is under way.
const EXECUTOR_END_TIMEOUT: Duration = Duration::from_secs(5);

/// The programs that the demonstration starts.
#[derive(Clone, Debug)]
pub struct Programs {
    pub shop: PathBuf,
    pub executor: PathBuf,
}

impl Programs {
    /// Beside the program that runs now, where one build puts them all.
    pub fn beside_current() -> Result<Self, Error> {
        let current = std::env::current_exe().map_err(Error::system("cannot learn the path of this program"))?;
        let folder = current.parent().unwrap_or(Path::new("/")).to_owned();
        let find = |name: &'static str| {
            // Test programs lie one folder deeper.
            let candidates = [folder.join(name), folder.join("..").join(name)];
            candidates
                .into_iter()
                .find(|path| path.is_file())
                .ok_or(Error::MissingProgram {
                    name,
                    beside: current.clone(),
                })
        };
        Ok(Self {
            shop: find("homeostat-shop")?,
            executor: find("homeostat-executor")?,
        })
    }
}

/// The running shop.
pub struct Shop {
    folder: tempfile::TempDir,
    programs: Programs,
    bootstrap: String,
    seed: u64,
    switchboard: Switchboard,
    children: Vec<Child>,
    executor: Option<Child>,
}

impl Shop {
    /// Starts every service and the visitors, and waits until all of them have spoken on the control channel.
    pub fn open(programs: Programs, bootstrap: &str, seed: u64) -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("homeostat-demo-")
            .tempdir()
            .map_err(Error::system("cannot create a temporary folder"))?;
        let switchboard = Switchboard::open(folder.path())?;
        let mut shop = Self {
            folder,
            programs,
            bootstrap: bootstrap.to_owned(),
            seed,
            switchboard,
            children: Vec::new(),
            executor: None,
        };
        for role in SHOP {
            let child = shop.spawn(&shop.service_command(role.name), role.name)?;
            PidFile::of(child.id())?.write(&shop.pid_file(role.name))?;
            shop.children.push(child);
        }
        let visit = shop.visitors_command();
        let child = shop.spawn(&visit, visitors::NAME)?;
        shop.children.push(child);
        let mut all = SHOP.map(|role| role.name).to_vec();
        all.push(visitors::NAME);
        shop.switchboard.wait_for(&all, START_TIMEOUT)?;
        Ok(shop)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn pid_file(&self, service: &str) -> PathBuf {
        self.folder().join(format!("{service}.pid"))
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}.log"))
    }

    /// Program and arguments: all that a service is told, so that a restart needs nothing else.
    fn service_command(&self, service: &str) -> Vec<String> {
        let mut command = self.shop_command("serve");
        command.extend(["--service", service, "--bootstrap", &self.bootstrap].map(str::to_owned));
        command
    }

    fn visitors_command(&self) -> Vec<String> {
        self.shop_command("visit")
    }

    fn shop_command(&self, verb: &str) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        vec![
            path(&self.programs.shop),
            verb.to_owned(),
            "--folder".to_owned(),
            path(self.folder()),
            "--seed".to_owned(),
            self.seed.to_string(),
        ]
    }

    fn spawn(&self, command: &[String], name: &str) -> Result<Child, Error> {
        let log = open_log(&self.log_file(name))?;
        let errors = log.try_clone().map_err(Error::system("cannot share a log file"))?;
        let (program, arguments) = command.split_first().expect("a command begins with its program");
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(Error::path("cannot start", program))
    }

    /// Starts the executor with the right to restart every service, and nothing else.
    pub fn start_executor(&mut self, topics: &Topics) -> Result<u32, Error> {
        let path = self.folder().join("executor.toml");
        fs::write(&path, self.executor_config(topics)).map_err(Error::path("cannot write", &path))?;
        let command = [
            self.programs.shop.to_string_lossy().into_owned(),
            "with-parent".to_owned(),
            self.programs.executor.to_string_lossy().into_owned(),
            "--config".to_owned(),
            path.to_string_lossy().into_owned(),
        ];
        let child = self.spawn(&command, "executor")?;
        let pid = child.id();
        self.executor = Some(child);
        Ok(pid)
    }

    fn executor_config(&self, topics: &Topics) -> String {
        let text = |path: &Path| toml_string(&path.to_string_lossy());
        let mut config = format!(
            "# Written by `homeostat demo`: restarts the services of the shop, and nothing else.\n\
             id = \"demo\"\n\n\
             [kafka]\nbootstrap = {}\n\n\
             [topics]\nprefix = {}\n\n\
             [ledger]\npath = {}\n",
            toml_string(&self.bootstrap),
            toml_string(topics.prefix()),
            text(&self.folder().join("ledger.redb")),
        );
        for role in SHOP {
            let name = toml_string(role.name);
            let command: Vec<String> = self
                .service_command(role.name)
                .iter()
                .map(|word| toml_string(word))
                .collect();
            config += &format!(
                "\n[[allow]]\naction = \"restart\"\ntarget = {name}\nadapter = \"process\"\n\n\
                 [[process.service]]\nname = {name}\ncommand = [{}]\npid_file = {}\nlog_file = {}\nstop_timeout_ms = 2000\n",
                command.join(", "),
                text(&self.pid_file(role.name)),
                text(&self.log_file(role.name)),
            );
        }
        config
    }

    /// Breaks a service; returns the process that was broken.
    pub fn inject(&self, service: &str, fault: Fault) -> Result<Hello, Error> {
        self.switchboard.inject(service, fault)
    }

    /// The process of the service, if the process table has it.
    pub fn alive(&self, service: &str) -> Option<u32> {
        PidFile::read(&self.pid_file(service))
            .filter(PidFile::alive)
            .map(|file| file.pid)
    }

    /// Ended children are asked for their status, so that none stays as a zombie. The executor must not end.
    pub fn reap(&mut self) -> Result<(), Error> {
        self.children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if let Some(child) = &mut self.executor
            && let Ok(Some(status)) = child.try_wait()
        {
            self.executor = None;
            let said = tail(&self.log_file("executor"));
            return Err(Error::Failed(format!("the executor ended with {status}{said}")));
        }
        Ok(())
    }

    /// Actions for which the services' own logs show more than one start.
    pub fn repeated_effects(&self) -> usize {
        let mut starts: BTreeMap<String, u32> = BTreeMap::new();
        for role in SHOP {
            let log = fs::read_to_string(start_log(self.folder(), role.name)).unwrap_or_default();
            for line in log
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            {
                if let Some(action) = line.get("action_id").and_then(|id| id.as_str()) {
                    *starts.entry(action.to_owned()).or_default() += 1;
                }
            }
        }
        starts.values().filter(|count| **count > 1).count()
    }

    /// Ends everything, in order.
    pub fn close(&mut self) {
        if let Some(mut child) = self.executor.take() {
            if let Ok(file) = PidFile::of(child.id()) {
                end(&file, EXECUTOR_END_TIMEOUT);
            }
            let _ = child.wait();
        }
        self.switchboard.close();
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline && SHOP.iter().any(|role| self.alive(role.name).is_some()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        for role in SHOP {
            if let Some(file) = PidFile::read(&self.pid_file(role.name)) {
                end(&file, END_TIMEOUT);
            }
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.close();
    }
}

fn end(file: &PidFile, timeout: Duration) {
    if let Err(error) = file.end(timeout) {
        tracing::error!(pid = file.pid, %error, "a process of the demonstration could not be ended");
    }
}

fn open_log(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::path("cannot write", path))
}

/// The end of a log, for an error.
fn tail(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    match read {
        Ok(_) if !lines.is_empty() => {
            format!(
                "; its last words:\n{}",
                lines.into_iter().rev().collect::<Vec<_>>().join("\n")
            )
        }
        _ => String::new(),
    }
}

/// A basic string of TOML; JSON's escapes are among TOML's.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
