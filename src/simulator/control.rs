//! The private channel on which the demonstration breaks a service: a socket in its own folder, never Kafka.
//!
//! Every process of the shop connects when it starts and says who it is. What comes back is the name of a fault. When
//! the channel closes the demonstration is over and the process ends, so nothing outlives it, not even a `kill -9`.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Fault};

/// First and only thing a process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub service: String,
    pub pid: u32,
    /// The action that started it, if one did.
    pub action_id: Option<String>,
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}

/// The demonstration's end: which process of each service spoke last.
pub struct Switchboard {
    lines: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Default)]
struct Lines {
    /// The latest process of each service.
    current: BTreeMap<String, (Hello, UnixStream)>,
    /// Processes replaced by a later one; their channels stay open until the end.
    replaced: Vec<UnixStream>,
    closed: bool,
}

impl Switchboard {
    /// Listens in the folder from now on.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = socket(folder);
        let listener = UnixListener::bind(&path).map_err(Error::path("cannot listen on", &path))?;
        let lines = Arc::<(Mutex<Lines>, Condvar)>::default();
        let shared = Arc::clone(&lines);
        thread::Builder::new()
            .name("switchboard".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    greet(stream, &shared);
                }
            })
            .map_err(Error::system("cannot start a thread"))?;
        Ok(Self { lines })
    }

    /// The latest process of the service.
    pub fn latest(&self, service: &str) -> Option<Hello> {
        let lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.current.get(service).map(|(hello, _)| hello.clone())
    }

    /// Waits until every one of the services has spoken.
    pub fn wait_for(&self, services: &[&str], timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        let mut lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let missing: Vec<_> = services
                .iter()
                .filter(|name| !lines.current.contains_key(**name))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Failed(format!("did not start within {timeout:?}: {missing:?}")));
            }
            lines = self
                .lines
                .1
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Breaks the latest process of the service.
    pub fn inject(&self, service: &str, fault: Fault) -> Result<Hello, Error> {
        let mut lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((hello, stream)) = lines.current.get_mut(service) else {
            return Err(Error::UnknownService {
                name: service.to_owned(),
            });
        };
        writeln!(stream, "{fault}").map_err(Error::system("a service cannot be told its fault"))?;
        Ok(hello.clone())
    }

    /// Ends every process that has spoken, and whoever speaks later.
    pub fn close(&self) {
        let mut lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.closed = true;
        for stream in lines.current.values().map(|(_, stream)| stream).chain(&lines.replaced) {
            // One that has ended cannot be told, and need not be.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn greet(stream: UnixStream, lines: &(Mutex<Lines>, Condvar)) {
    let mut first = String::new();
    // A process that connects says who it is at once; one that does not holds nobody up for long.
    let said = stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .and_then(|()| BufReader::new(&stream).read_line(&mut first));
    match said.ok().and_then(|_| serde_json::from_str::<Hello>(&first).ok()) {
        Some(hello) => {
            let mut known = lines.0.lock().unwrap_or_else(PoisonError::into_inner);
            if known.closed {
                return;
            }
            if let Some((_, old)) = known.current.insert(hello.service.clone(), (hello, stream)) {
                known.replaced.push(old);
            }
            lines.1.notify_all();
        }
        None => tracing::warn!(
            said = first.trim(),
            "a process on the control channel did not say who it is"
        ),
    }
}

/// A process's end: calls `on_fault` for every fault, and ends the process when the channel closes.
pub fn obey(folder: &Path, hello: &Hello, mut on_fault: impl FnMut(Fault) + Send + 'static) -> Result<(), Error> {
    let path = socket(folder);
    let mut stream = UnixStream::connect(&path).map_err(Error::path("cannot reach", &path))?;
    let hello = serde_json::to_string(hello).expect("a greeting is two strings and a number");
    writeln!(stream, "{hello}").map_err(Error::path("cannot write to", &path))?;
    thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                match line.parse() {
                    Ok(fault) => on_fault(fault),
                    Err(reason) => tracing::warn!(reason, "unknown word on the control channel"),
                }
            }
            std::process::exit(0);
        })
        .map_err(Error::system("cannot start a thread"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_process_of_a_service_gets_the_fault() {
        let folder = tempfile::tempdir().unwrap();
        let board = Switchboard::open(folder.path()).unwrap();
        let connect = |pid: u32| {
            let mut stream = UnixStream::connect(socket(folder.path())).unwrap();
            let hello = Hello {
                service: "cart".into(),
                pid,
                action_id: None,
            };
            writeln!(stream, "{}", serde_json::to_string(&hello).unwrap()).unwrap();
            while board.latest("cart").map(|hello| hello.pid) != Some(pid) {
                thread::sleep(Duration::from_millis(1));
            }
            stream
        };
        let _old = connect(1);
        let new = connect(2);
        board.wait_for(&["cart"], Duration::from_secs(1)).unwrap();
        assert_eq!(board.inject("cart", Fault::Leak).unwrap().pid, 2);
        let mut told = String::new();
        BufReader::new(new).read_line(&mut told).unwrap();
        assert_eq!(told.trim().parse(), Ok(Fault::Leak));
    }

    #[test]
    fn a_service_that_never_speaks_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let board = Switchboard::open(folder.path()).unwrap();
        let error = board.wait_for(&["cart"], Duration::from_millis(10)).unwrap_err();
        assert!(error.to_string().contains("cart"), "{error}");
        assert!(board.inject("cart", Fault::Hang).is_err());
    }
}
