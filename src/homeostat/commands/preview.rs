//! `homeostat preview`: what a view says of the topics as they are, without a trace.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arrow::{array::RecordBatch, util::pretty::pretty_format_batches};
use engine::spec::Pipeline;
use kafka::Shutdown;

use super::{Output, control::Fleet};
use crate::{
    error::Refused,
    pipelines,
    preview::{From, Preview as Watched},
    stages::rows::write_rows,
};

const TURN: Duration = Duration::from_millis(200);

/// Shows the rows of a view as its windows close, until Ctrl-C. No group, no sink and no topic is touched.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example: homeostat preview --pipeline pipelines/shop/pipeline.sql --view latency --from earliest --limit 20"
)]
pub struct Preview {
    /// Pipeline file, or a folder with pipeline.sql
    #[arg(long)]
    pipeline: PathBuf,
    /// The view; may be left out where there is one
    #[arg(long)]
    view: Option<String>,
    /// `latest`, `earliest`, or a time as 2026-01-01T00:00:00Z
    #[arg(long, default_value = "latest", value_parser = from)]
    from: From,
    /// Ends after so many rows
    #[arg(long)]
    limit: Option<usize>,
    #[command(flatten)]
    fleet: Fleet,
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

fn from(text: &str) -> Result<From, String> {
    match text {
        "latest" => Ok(From::Latest),
        "earliest" => Ok(From::Earliest),
        time => protocol::time::from_rfc3339(time)
            .map(From::Time)
            .ok_or_else(|| "write latest, earliest, or a time as 2026-01-01T00:00:00Z".to_owned()),
    }
}

impl Preview {
    pub fn run(&self) -> anyhow::Result<()> {
        let path = match self.pipeline.is_dir() {
            true => self.pipeline.join("pipeline.sql"),
            false => self.pipeline.clone(),
        };
        let compiled = pipelines::compile_all(&[pipelines::read(&path)?], std::io::stderr().is_terminal())?;
        let view = self.view(&compiled[0])?;
        let (broker, _, _) = self.fleet.open()?;
        let mut watched = Watched::new(&*broker, &compiled[0], view, self.from)?;
        let shutdown = Shutdown::new();
        crate::signals::request_on_signal(shutdown.clone())?;
        let mut left = self.limit.unwrap_or(usize::MAX);
        while left > 0 && !shutdown.is_requested() {
            let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
            for rows in watched.turn(TURN, now_ms)? {
                let rows = rows.slice(0, rows.num_rows().min(left));
                left -= rows.num_rows();
                if rows.num_rows() > 0 {
                    self.print(&rows)?;
                }
            }
        }
        Ok(())
    }

    fn view(&self, pipeline: &Pipeline) -> Result<usize, Refused> {
        let names = || pipeline.views.iter().map(|view| view.name.as_str());
        let list = names().collect::<Vec<_>>().join(", ");
        match &self.view {
            None if pipeline.views.len() == 1 => Ok(0),
            None => {
                Err(Refused::new("the pipeline has several views, or none").help(format!("--view is one of {list}")))
            }
            Some(view) => names()
                .position(|name| name == view)
                .ok_or_else(|| Refused::new(format!("there is no view {view:?}")).help(format!("there are {list}"))),
        }
    }

    fn print(&self, rows: &RecordBatch) -> anyhow::Result<()> {
        let mut text = Vec::new();
        match self.output {
            Output::Json => write_rows(rows, &mut text),
            Output::Text => writeln!(text, "{}", pretty_format_batches(std::slice::from_ref(rows))?)?,
        }
        // A pipe that nobody reads any more ends the preview.
        let mut out = std::io::stdout().lock();
        out.write_all(&text)?;
        Ok(out.flush()?)
    }
}
