//! The demonstration: a shop on a broker, broken again and again, and a timeline of how it heals.
//!
//! It starts the services and the executor, says on `control` that restarts may be automatic, injects faults through a
//! private channel, and watches the fleet's topics as anybody could. The processor runs beside it and is started by the
//! caller; neither it nor the executor learns of a fault but through telemetry.
//! Fails with [`Error`] when something of its own cannot be started; a fault that does not heal is a result.

pub mod observe;
mod plan;
pub mod process;
pub mod report;
mod shop;
pub mod watch;

use std::{
    io::Write,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    time::{Duration, Instant},
};

use kafka::{Broker, ProducerConfig};
use protocol::{
    CloudEvent, Topics, cloudevent, id,
    message::{Control, Mode},
};

use self::{
    observe::{Follower, Seen},
    report::Report,
    shop::Shop,
    watch::Watch,
};
pub use self::{
    plan::{Plan, Planned},
    report::{Output, Summary},
    shop::Programs,
};
use crate::{
    Error,
    graph::SHOP,
    service::{HEARTBEATS_TOPIC, METRICS_TOPIC, SPANS_TOPIC, now_ms},
};

/// Topics that the services write to, and their partitions.
pub const TELEMETRY: [(&str, i32); 3] = [(METRICS_TOPIC, 2), (SPANS_TOPIC, 1), (HEARTBEATS_TOPIC, 2)];
/// Shortest demonstration in which every kind of fault can heal.
pub const DURATION_MIN: Duration = Duration::from_secs(60);

/// What the demonstration needs beyond its duration at most, for faults that do not heal.
const OVERTIME: Duration = Duration::from_secs(42);
const READY_TIMEOUT: Duration = Duration::from_secs(40);
/// Detectors learn what is usual, and the startup grace passes.
const LEARNING: Duration = Duration::from_secs(12);
/// Watched at the end for actions that nobody needs.
const CALM: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);

/// What an operator chooses.
#[derive(Clone, Debug)]
pub struct Options {
    pub duration: Duration,
    pub seed: u64,
    pub output: Output,
    /// Without an executor nothing is carried out, and nothing heals.
    pub executor: bool,
    pub programs: Programs,
}

/// Runs the demonstration on a broker whose topics exist, beside a processor that runs, until it is over or `stopped`.
pub fn run(
    options: &Options,
    broker: Arc<dyn Broker>,
    bootstrap: &str,
    topics: &Topics,
    out: impl Write,
    stopped: &dyn Fn() -> bool,
) -> Result<Summary, Error> {
    let (sender, receiver) = sync_channel(4096);
    let mut report = Report::new(out, options.output);
    let say = |report: &mut Report<_>, text: String| report.say(0, &text).map_err(written);
    let follower = Follower::start(Arc::clone(&broker), topics.clone(), sender)?;
    let began = Instant::now();
    let mut shop = Shop::open(options.programs.clone(), bootstrap, options.seed)?;
    say(
        &mut report,
        format!(
            "{} services run, each a process; logs in {}",
            SHOP.len(),
            shop.folder().display()
        ),
    )?;
    for control in automatic_restarts() {
        publish_control(&*broker, topics, &control)?;
        say(&mut report, format!("control   {}", shown(&control)))?;
    }
    if options.executor {
        let pid = shop.start_executor(topics)?;
        say(&mut report, format!("the executor runs as process {pid}"))?;
    } else {
        say(
            &mut report,
            "no executor: commands will be published, and nobody carries them out".to_owned(),
        )?;
    }
    let mut demo = Demo {
        shop,
        watch: Watch::default(),
        report,
        receiver,
        began,
        stopped,
    };
    let done = demo.all(options);
    drop(follower);
    let repeated_effects = demo.shop.repeated_effects();
    demo.shop.close();
    let summary = report::summary(&demo.watch, repeated_effects);
    let at_ms = demo.at_ms();
    demo.report.summary(at_ms, &summary).map_err(written)?;
    done.map(|()| summary)
}

fn written(source: std::io::Error) -> Error {
    Error::System {
        what: "cannot write the timeline",
        source,
    }
}

/// What a person would say who trusts the fleet with restarts: the shipped default is shadow.
fn automatic_restarts() -> impl Iterator<Item = Control> {
    SHOP.into_iter().map(|role| Control::Mode {
        service: role.name.to_owned(),
        action: "restart".to_owned(),
        mode: Mode::Auto,
        until: None,
        by: "homeostat demo".to_owned(),
        reason: "the demonstration heals by itself".to_owned(),
    })
}

fn shown(control: &Control) -> String {
    match control {
        Control::Mode {
            service,
            action,
            mode,
            until: None,
            by,
            ..
        } => {
            let mode = serde_json::to_value(mode)
                .ok()
                .and_then(|mode| mode.as_str().map(str::to_owned))
                .unwrap_or_default();
            format!("{service:<15} {action} may be {mode}, says {by}")
        }
        other => other.scope(),
    }
}

fn publish_control(broker: &dyn Broker, topics: &Topics, control: &Control) -> Result<(), Error> {
    let (scope, now_ms) = (control.scope(), now_ms());
    let event_id = id::derived("control", &[&scope, &now_ms.to_string()]);
    let source = format!("/homeostat/{}/demo", topics.tenant());
    let event = CloudEvent::new(event_id, topics.tenant(), &source, cloudevent::CONTROL, &scope, now_ms);
    let mut producer = broker.producer(&ProducerConfig::new("homeostat-demo"))?;
    producer.send(&event.output(topics.control(), control))?;
    Ok(producer.flush()?)
}

struct Demo<'a, W: Write> {
    shop: Shop,
    watch: Watch,
    report: Report<W>,
    receiver: Receiver<Seen>,
    began: Instant,
    stopped: &'a dyn Fn() -> bool,
}

/// Why watching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Met,
    TimedOut,
    Interrupted,
}

impl<W: Write> Demo<'_, W> {
    fn at_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn all(&mut self, options: &Options) -> Result<(), Error> {
        let names = SHOP.map(|role| role.name);
        match self.watch_until(READY_TIMEOUT, |demo| demo.watch.ready(&names))? {
            Ended::Met => {}
            Ended::Interrupted => return Ok(()),
            Ended::TimedOut => {
                return Err(Error::Failed(format!(
                    "the shop and the processor were not at work after {READY_TIMEOUT:?}"
                )));
            }
        }
        self.say("the processor follows; detectors learn what is usual")?;
        if self.watch_until(LEARNING, |_| false)? == Ended::Interrupted {
            return Ok(());
        }
        self.break_and_watch(options)?;
        self.watch_until(CALM, |_| false)?;
        Ok(())
    }

    /// One fault after another, each watched until it has healed: all kinds once, then more while there is time.
    fn break_and_watch(&mut self, options: &Options) -> Result<(), Error> {
        let first_round = crate::Fault::ALL.len();
        let end = self.began + options.duration;
        let mut slowest = Duration::ZERO;
        for (index, planned) in Plan::new(options.seed).enumerate() {
            let left = (end + OVERTIME).saturating_duration_since(Instant::now());
            let to_come = u32::try_from(first_round.saturating_sub(index)).unwrap_or(1);
            let patience = if to_come > 0 { left / to_come } else { left };
            if to_come == 0 && Instant::now() + planned.pause + slowest.mul_f64(1.5) + CALM > end {
                return Ok(());
            }
            let patience = patience.saturating_sub(planned.pause);
            if self.watch_until(planned.pause, |_| false)? == Ended::Interrupted {
                return Ok(());
            }
            let since = Instant::now();
            let open = self.inject(&planned)?;
            let healed = self.watch_until(patience, |demo| demo.settle(open, planned.service))?;
            slowest = slowest.max(since.elapsed());
            match healed {
                Ended::Met => {}
                Ended::Interrupted => return Ok(()),
                Ended::TimedOut => {
                    self.say(&format!(
                        "{} of {} did not heal in {patience:.0?}",
                        planned.fault, planned.service
                    ))?;
                }
            }
        }
        Ok(())
    }

    fn inject(&mut self, planned: &Planned) -> Result<usize, Error> {
        let at_ms = self.at_ms();
        let broken = self.shop.inject(planned.service, planned.fault)?;
        self.report
            .fault(at_ms, planned.fault, planned.service, broken.pid)
            .map_err(written)?;
        Ok(self.watch.inject(planned.fault, planned.service, broken.pid, at_ms))
    }

    fn settle(&mut self, index: usize, service: &str) -> bool {
        let at_ms = self.at_ms();
        let alive = self.shop.alive(service);
        self.watch.settle(index, alive, at_ms)
    }

    fn say(&mut self, text: &str) -> Result<(), Error> {
        let at_ms = self.at_ms();
        self.report.say(at_ms, text).map_err(written)
    }

    /// Writes the timeline until the condition is met or the time is over.
    fn watch_until(&mut self, timeout: Duration, mut met: impl FnMut(&mut Self) -> bool) -> Result<Ended, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            self.take_records()?;
            self.shop.reap()?;
            if (self.stopped)() {
                return Ok(Ended::Interrupted);
            }
            if met(self) {
                return Ok(Ended::Met);
            }
            if Instant::now() >= deadline {
                return Ok(Ended::TimedOut);
            }
        }
    }
    /// Waits a tick and tells what arrived in it, in the order of the loop: topics are read side by side.
    fn take_records(&mut self) -> Result<(), Error> {
        let tick_ends = Instant::now() + TICK;
        let mut arrived = Vec::new();
        loop {
            let left = tick_ends.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(seen) => arrived.push((self.at_ms(), seen)),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Failed("the fleet's topics cannot be read any further".into()));
                }
            }
            if left.is_zero() {
                break;
            }
        }
        let times: Vec<u64> = arrived.iter().map(|(at_ms, _)| *at_ms).collect();
        arrived.sort_by_key(|(_, seen)| seen.what.rank());
        for (at_ms, (_, seen)) in times.into_iter().zip(arrived) {
            let fault = self
                .watch
                .see(&seen, at_ms)
                .map(|index| self.watch.faults()[index].fault);
            self.report.seen(at_ms, fault, &seen).map_err(written)?;
        }
        Ok(())
    }
}
