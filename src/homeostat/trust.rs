//! Reads the keys of those whose word counts: `[[approver]]` and `[[executor]]` of the configuration.

use std::{fs, path::Path};

use protocol::signature::TrustedKey;
use remediation::{Approver, Trust};

use crate::{config::Config, error::Refused};

/// Everybody who is listed.
pub fn load(config: &Config) -> Result<Trust, Refused> {
    let (mut trust, mut seen) = (Trust::default(), Vec::new());
    for entry in &config.approver {
        let times = (entry.not_before.as_deref(), entry.not_after.as_deref());
        let key = key("approver", &entry.name, &entry.key_file, times, &mut seen)?;
        let approver = Approver {
            name: entry.name.clone(),
            roles: entry.roles.clone(),
        };
        trust.add_approver(approver, key);
    }
    for entry in &config.executor {
        let times = (entry.not_before.as_deref(), entry.not_after.as_deref());
        let key = key("executor", &entry.id, &entry.key_file, times, &mut seen)?;
        trust.add_executor(entry.id.clone(), key);
    }
    Ok(trust)
}

/// One key has one owner: who signs must not be able to pass for somebody else.
fn key(
    table: &str,
    name: &str,
    file: &Path,
    (not_before, not_after): (Option<&str>, Option<&str>),
    seen: &mut Vec<String>,
) -> Result<TrustedKey, Refused> {
    let wrong = |reason: String| {
        let place = format!("configuration: [[{table}]] {name:?}: key_file {}", file.display());
        Refused::new(format!("{place}: {reason}")).help("`homeostat keys public --key-file FILE` prints the public key")
    };
    if name.is_empty() {
        return Err(Refused::new(format!("configuration: an [[{table}]] without a name")));
    }
    let text = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let key = TrustedKey::from_pem(&text)
        .and_then(|key| key.between(not_before, not_after))
        .map_err(|error| wrong(error.to_string()))?;
    if seen.iter().any(|id| id == key.id()) {
        return Err(wrong(format!(
            "is key {:?}, which another entry names already",
            key.id()
        )));
    }
    seen.push(key.id().to_owned());
    Ok(key)
}
