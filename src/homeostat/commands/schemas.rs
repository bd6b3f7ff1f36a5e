//! `homeostat schemas`: the JSON Schemas of everything on the fleet's topics.

use protocol::schema;

use crate::error::Refused;

/// Prints one schema, or the list of them.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat schemas dev.homeostat.anomaly.v1")]
pub struct Schemas {
    /// Event type or file whose schema to print; without it the files are listed
    event_type: Option<String>,
}

impl Schemas {
    pub fn run(&self) -> anyhow::Result<()> {
        let Some(wanted) = &self.event_type else {
            schema::ALL.iter().for_each(|(file, _)| println!("{file}"));
            return Ok(());
        };
        let file = schema::schema_for(wanted).unwrap_or(wanted);
        let text = schema::text(file).ok_or_else(|| {
            Refused::new(format!("no event type or schema file is named {wanted:?}"))
                .help("`homeostat schemas` lists them")
        })?;
        println!("{text}");
        Ok(())
    }
}
