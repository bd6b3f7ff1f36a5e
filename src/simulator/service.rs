//! One service of the shop, as a process: it answers requests, calls others, and says how it is.
//!
//! Its faults are real as far as its own process goes: it ends, it stands still, it takes memory, it is slow and fails.
//! Nothing here knows what watches or restarts it; a fresh process is well.

use std::{
    fs::OpenOptions,
    io::Write,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use kafka::{Broker, ProducerConfig};
use protocol::Output;

use crate::{
    Error, Fault, Random,
    call::{self, TraceContext},
    control::{self, Hello},
    graph::{self, Role},
    meter::{Ending, Scrape, Span},
    otlp::{self, Identity, Interval},
};

pub const METRICS_TOPIC: &str = "otlp_metrics";
pub const SPANS_TOPIC: &str = "otlp_spans";
pub const HEARTBEATS_TOPIC: &str = "heartbeats";

/// Requests worked on at once.
const WORKERS: usize = 8;
/// A leak stops here: the machine is not the thing to break.
const LEAK_BYTES_MAX: usize = 320 << 20;
const LEAK_STEP_BYTES: usize = 12 << 20;
const LEAK_STEP: Duration = Duration::from_millis(200);
/// What the latency fault adds to every request, and how many it makes fail.
const SLOW_MS: (f64, f64) = (300.0, 500.0);
const SLOW_FAIL: f64 = 0.4;
/// Exit code of a crash, as a shell shows a segmentation fault.
const CRASH_EXIT: i32 = 139;

/// What a service is told when it starts.
#[derive(Clone, Debug)]
pub struct Options {
    pub service: String,
    /// The shop's folder: addresses, the control channel, the log of starts.
    pub folder: PathBuf,
    pub seed: u64,
    /// The action that started it, if one did.
    pub action_id: Option<String>,
}

/// How the process is; zero is well.
#[derive(Default)]
struct Condition {
    hung: AtomicBool,
    slow: AtomicBool,
    leaks: AtomicU8,
}

struct Service {
    role: &'static Role,
    folder: PathBuf,
    condition: Condition,
    meter: Mutex<Scrape>,
    random: Mutex<Random>,
}

/// Runs until the process ends. Without `broker` nothing is published.
pub fn run(options: &Options, broker: &dyn Broker) -> Result<(), Error> {
    let role = graph::role(&options.service).ok_or_else(|| Error::UnknownService {
        name: options.service.clone(),
    })?;
    let pid = std::process::id();
    log_start(options, pid)?;
    let service = Arc::new(Service {
        role,
        folder: options.folder.clone(),
        condition: Condition::default(),
        meter: Mutex::default(),
        random: Mutex::new(Random::derive(options.seed, role.name)),
    });
    let listener = call::listen(&options.folder, role.name)?;
    for _ in 0..WORKERS {
        let listener = listener
            .try_clone()
            .map_err(Error::system("cannot share the listening socket"))?;
        let service = Arc::clone(&service);
        thread::spawn(move || service.serve(&listener));
    }
    let hello = Hello {
        service: role.name.to_owned(),
        pid,
        action_id: options.action_id.clone(),
    };
    let told = Arc::clone(&service);
    control::obey(&options.folder, &hello, move |fault| told.break_down(fault))?;
    let identity = Identity {
        service: role.name.into(),
        instance: format!("{}-{pid}", role.name),
        pid,
    };
    service.publish(&identity, broker)
}

/// The target's own record of what was done to it: one line per start, so that effects are counted here.
fn log_start(options: &Options, pid: u32) -> Result<(), Error> {
    let path = start_log(&options.folder, &options.service);
    let line = serde_json::json!({
        "service": options.service,
        "pid": pid,
        "action_id": options.action_id,
        "at": protocol::time::to_rfc3339(now_ms()),
    });
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(Error::path("cannot write", &path))?;
    // One write, so that lines of two processes cannot mix.
    file.write_all(format!("{line}\n").as_bytes())
        .map_err(Error::path("cannot write", &path))
}

/// Where a service notes its starts.
pub fn start_log(folder: &Path, service: &str) -> PathBuf {
    folder.join(format!("{service}.starts.jsonl"))
}

impl Service {
    fn serve(&self, listener: &TcpListener) {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    self.stand_still_if_hung();
                    // A caller that went away is its own business.
                    if let Err(error) = self.answer(&stream) {
                        tracing::debug!(%error, "request");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    fn answer(&self, stream: &TcpStream) -> std::io::Result<()> {
        let parent = call::read_request(stream)?;
        let (started, start_ns) = (Instant::now(), now_ns());
        let (context, operation, own_ms, fails) = self.draw(parent);
        let mut ending = if fails { Ending::Failed } else { Ending::Served };
        thread::sleep(Duration::from_secs_f64(own_ms / 1000.0));
        let mut waited = Duration::ZERO;
        for called in operation.calls {
            let since = Instant::now();
            let served = self.ask(called, context);
            waited += since.elapsed();
            self.stand_still_if_hung();
            if !served {
                ending = if fails {
                    Ending::Failed
                } else {
                    Ending::DependencyFailed
                };
                break;
            }
        }
        let total = started.elapsed();
        let mut meter = self.meter();
        meter.request(ending, total.as_secs_f64(), total.saturating_sub(waited).as_secs_f64());
        meter.span(Span {
            context,
            parent: parent.map(|parent| parent.span_id),
            name: format!("GET /{}", operation.name),
            client: false,
            start_ns,
            end_ns: start_ns + duration_ns(total),
            failed: ending != Ending::Served,
        });
        drop(meter);
        call::respond(stream, ending.status())
    }

    /// What chance decides about a request: its span, what it asks for, its own work and whether that fails.
    fn draw(&self, parent: Option<TraceContext>) -> (TraceContext, &'static graph::Operation, f64, bool) {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let trace_id = parent.map_or_else(|| random.bytes(), |parent| parent.trace_id);
        let context = TraceContext {
            trace_id,
            span_id: random.bytes(),
        };
        let operation = self.role.operation(random.unit());
        // Skewed to the right, as service times are.
        let mut own_ms = self.role.own_ms * (0.6 + 0.4 * -(1.0 - random.unit()).ln()).min(4.0);
        let mut fails = random.chance(0.002);
        if self.condition.slow.load(Ordering::Relaxed) {
            own_ms += random.between(SLOW_MS.0, SLOW_MS.1);
            fails |= random.chance(SLOW_FAIL);
        }
        (context, operation, own_ms, fails)
    }

    fn ask(&self, called: &str, parent: TraceContext) -> bool {
        let span_id = self.random.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        let context = TraceContext { span_id, ..parent };
        let (started, start_ns) = (Instant::now(), now_ns());
        let served = call::call(&self.folder, called, "call", context).is_ok_and(|status| status == 200);
        self.meter().span(Span {
            context,
            parent: Some(parent.span_id),
            name: format!("GET {called}"),
            client: true,
            start_ns,
            end_ns: start_ns + duration_ns(started.elapsed()),
            failed: !served,
        });
        served
    }

    fn meter(&self) -> std::sync::MutexGuard<'_, Scrape> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A hung process does nothing any more; its control channel is no part of it.
    fn stand_still_if_hung(&self) {
        while self.condition.hung.load(Ordering::Relaxed) {
            thread::park();
        }
    }

    fn break_down(self: &Arc<Self>, fault: Fault) {
        match fault {
            Fault::Crash => std::process::exit(CRASH_EXIT),
            Fault::Hang => self.condition.hung.store(true, Ordering::Relaxed),
            Fault::Latency => self.condition.slow.store(true, Ordering::Relaxed),
            Fault::Leak => {
                if self.condition.leaks.fetch_add(1, Ordering::Relaxed) == 0 {
                    let service = Arc::clone(self);
                    thread::spawn(move || service.leak());
                }
            }
        }
    }

    fn leak(&self) {
        let mut held: Vec<Vec<u8>> = Vec::new();
        while held.len() * LEAK_STEP_BYTES < LEAK_BYTES_MAX {
            self.stand_still_if_hung();
            // Written to, so that the pages are the process's own and not the kernel's one page of zeros.
            held.push(vec![held.len() as u8 | 1; LEAK_STEP_BYTES]);
            std::hint::black_box(&held);
            thread::sleep(LEAK_STEP);
        }
        loop {
            thread::park();
        }
    }

    fn publish(&self, identity: &Identity, broker: &dyn Broker) -> Result<(), Error> {
        let mut producer = broker.producer(&ProducerConfig::new(format!("shop-{}", self.role.name)))?;
        let mut start_ns = now_ns();
        loop {
            let scrape = self.meter().take();
            let interval = Interval {
                start_ns,
                end_ns: now_ns().max(start_ns + 1),
            };
            start_ns = interval.end_ns;
            let metrics = otlp::metrics(identity, interval, &scrape, resident_bytes());
            let records = [
                Some((HEARTBEATS_TOPIC, otlp::heartbeat(identity, now_ms()))),
                Some((METRICS_TOPIC, metrics)),
                otlp::spans(identity, &scrape).map(|spans| (SPANS_TOPIC, spans)),
            ];
            let sent = records
                .into_iter()
                .flatten()
                .try_for_each(|(topic, value)| producer.send(&record(topic, value)))
                .and_then(|()| producer.flush());
            if let Err(error) = sent {
                // Telemetry is lost rather than the service: its requests matter more.
                tracing::warn!(%error, "telemetry was not delivered");
            }
            let pause_ms = self
                .random
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .between(250.0, 450.0);
            thread::sleep(Duration::from_secs_f64(pause_ms / 1000.0));
            self.stand_still_if_hung();
        }
    }
}

fn record(topic: &str, value: Vec<u8>) -> Output {
    Output {
        topic: topic.into(),
        partition: None,
        key: None,
        value: Some(value),
        headers: Vec::new(),
    }
}

/// Resident memory of this process; 0 where the kernel does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    resident
        .and_then(|text| text.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

pub(crate) fn now_ms() -> i64 {
    i64::try_from(since_epoch().as_millis()).unwrap_or(i64::MAX)
}

fn now_ns() -> u64 {
    duration_ns(since_epoch())
}

fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
