//! A real Kafka for tests: the one that `KAFKA_BOOTSTRAP` names, or one started here by `tests/kafka/start`.
//!
//! A test that needs Kafka fails when it cannot have it. What is started here ends with the process, however that ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How long a broker may take to answer on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running Kafka.
pub struct Kafka {
    pub bootstrap: String,
    /// Where it lives; `None` when somebody else started it.
    folder: Option<PathBuf>,
}

impl Kafka {
    /// The one Kafka of this process.
    ///
    /// # Panics
    /// When there is none and none can be started.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var("KAFKA_BOOTSTRAP") {
            Ok(bootstrap) if !bootstrap.is_empty() => Self {
                bootstrap,
                folder: None,
            },
            _ => Self::start(&[]).expect("a test that needs Kafka fails without it"),
        })
    }

    /// The one Kafka, for tests that start many processes: one of them at a time, or a small machine's broker answers nobody.
    pub fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another one, with options of `tests/kafka/start`: `--tls`, or properties of the broker.
    pub fn start(options: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("homeostat-kafka-").tempdir()?.keep();
        let owner = std::process::id().to_string();
        let started = Command::new(script("start"))
            .arg(&folder)
            .args(["--owner", &owner])
            .args(options)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("tests/kafka/start cannot be run")?;
        if !started.status.success() {
            bail!("tests/kafka/start failed: {}", started.status);
        }
        let bootstrap = String::from_utf8(started.stdout)?.trim().to_owned();
        Ok(Self {
            bootstrap,
            folder: Some(folder),
        })
    }

    /// A file of a Kafka started with `--tls`: `ca.pem`, `client.pem`, `client.key`, or an address in `ssl` or `sasl_ssl`.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.as_ref().context("this Kafka was not started here")?;
        Ok(folder.join(name))
    }

    pub fn address(&self, listener: &str) -> Result<String> {
        Ok(fs::read_to_string(self.file(listener)?)?.trim().to_owned())
    }

    /// A client of it.
    pub fn broker(&self) -> Result<Arc<kafka::Kafka>> {
        Ok(Arc::new(kafka::Kafka::at(&self.bootstrap)?))
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            let _ = Command::new(script("stop")).arg(folder).status();
        }
    }
}

/// Asks again while the broker does not answer.
pub fn patiently(mut call: impl FnMut() -> Result<(), kafka::Error>) -> Result<()> {
    let began = Instant::now();
    loop {
        match call() {
            Err(error) if error.class() == kafka::Class::Retriable && began.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(200));
            }
            done => return Ok(done?),
        }
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kafka").join(name)
}
