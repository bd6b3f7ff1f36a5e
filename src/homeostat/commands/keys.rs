//! `homeostat keys`: the keys that sign commands. Writes files and reaches no broker.
//!
//! A rotation is two steps, so that nobody is ever without a key that counts: the new key is made and every executor learns to
//! trust it; only then does the processor sign with it.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use protocol::{
    signature::{Signer, TrustedKey},
    time,
};

use super::control::now_ms;
use crate::error::Refused;

/// Makes, shows and rotates the keys that sign commands.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example: homeostat keys generate --key-file /etc/homeostat/signing.pem")]
pub struct Keys {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Makes a new private key; an existing file is never overwritten
    Generate {
        /// Where the private key is written, readable by its owner alone
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
    },
    /// Prints the public key, for the executors' trust lists
    Public {
        /// The private key, as `keys generate` wrote it
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
    },
    /// Makes the next key and prints what executors have to trust meanwhile; with --activate, signs with it from then on
    Rotate {
        /// The private key in use
        #[arg(long, value_name = "FILE")]
        key_file: PathBuf,
        /// Puts the next key in the place of the one in use, which is kept beside it
        #[arg(long)]
        activate: bool,
        /// How long executors go on trusting the key in use
        #[arg(long, value_parser = humantime::parse_duration, default_value = "24h")]
        overlap: Duration,
    },
}

impl Keys {
    pub fn run(&self) -> anyhow::Result<()> {
        match &self.what {
            What::Generate { key_file } => generate(key_file),
            What::Public { key_file } => {
                print!("{}", signer(key_file)?.public_pem());
                Ok(())
            }
            What::Rotate {
                key_file,
                activate: true,
                ..
            } => activate(key_file),
            What::Rotate { key_file, overlap, .. } => prepare(key_file, *overlap),
        }
    }
}

/// Reads a private key.
pub fn signer(key_file: &Path) -> anyhow::Result<Signer> {
    let help = "`homeostat keys generate --key-file FILE` makes one";
    let text = fs::read_to_string(key_file)
        .map_err(|error| Refused::new(format!("key file {}: {error}", key_file.display())).help(help))?;
    Signer::from_pem(&text).map_err(|error| {
        let refused = match TrustedKey::from_pem(&text) {
            Ok(_) => Refused::new(format!("key file {} is a public key", key_file.display()))
                .help("signing needs the private one; the public one belongs into the executors' [[trust]] entries"),
            Err(_) => Refused::new(format!("key file {} {error}", key_file.display())).help(help),
        };
        refused.into()
    })
}

fn generate(key_file: &Path) -> anyhow::Result<()> {
    let signer = make(key_file)?;
    let public = key_file.with_extension("pub.pem");
    write_new(&public, &signer.public_pem(), 0o644)?;
    println!(
        "key {}: private in {}, public in {}",
        signer.id(),
        key_file.display(),
        public.display()
    );
    println!(
        "\nfor homeostat:\n\n[signing]\nkey_file = {:?}",
        key_file.display().to_string()
    );
    println!("\nfor every executor:\n\n{}", trust_entry(&public, None, None));
    Ok(())
}

fn prepare(key_file: &Path, overlap: Duration) -> anyhow::Result<()> {
    let current = signer(key_file)?;
    let next_file = key_file.with_extension("next.pem");
    let next = make(&next_file)?;
    let next_public = key_file.with_extension(format!("{}.pub.pem", next.id()));
    let current_public = key_file.with_extension(format!("{}.pub.pem", current.id()));
    write_new(&next_public, &next.public_pem(), 0o644)?;
    super::replace(&current_public, current.public_pem().as_bytes())?;
    let now_ms = now_ms();
    let overlap_ms = i64::try_from(overlap.as_millis()).unwrap_or(i64::MAX);
    let end = time::to_rfc3339(now_ms.saturating_add(overlap_ms));
    println!("next key {} in {}", next.id(), next_file.display());
    println!(
        "\n1. Give every executor these entries in the place of that of key {}, and restart it:\n",
        current.id()
    );
    println!("{}", trust_entry(&current_public, None, Some(&end)));
    println!("{}", trust_entry(&next_public, Some(&time::to_rfc3339(now_ms)), None));
    println!(
        "2. Before {end}: homeostat keys rotate --activate --key-file {}",
        key_file.display()
    );
    println!("3. Restart homeostat, which then signs with key {}.", next.id());
    Ok(())
}

fn activate(key_file: &Path) -> anyhow::Result<()> {
    let current = signer(key_file)?;
    let next_file = key_file.with_extension("next.pem");
    if !next_file.is_file() {
        return Err(Refused::new(format!("there is no next key {}", next_file.display()))
            .help("`homeostat keys rotate` without --activate makes it; executors have to trust it first")
            .into());
    }
    let next = signer(&next_file)?;
    let retired = key_file.with_extension(format!("{}.retired.pem", current.id()));
    // A link first: at no moment is the place of the key empty.
    fs::hard_link(key_file, &retired)
        .or_else(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                Ok(())
            } else {
                Err(error)
            }
        })
        .with_context(|| format!("keeping the old key in {}", retired.display()))?;
    fs::rename(&next_file, key_file).with_context(|| format!("replacing {}", key_file.display()))?;
    println!(
        "key {} is in place; key {} is kept in {}. Restart homeostat to sign with the new one",
        next.id(),
        current.id(),
        retired.display()
    );
    Ok(())
}

fn trust_entry(public: &Path, not_before: Option<&str>, not_after: Option<&str>) -> String {
    let mut entry = format!("[[trust]]\nkey_file = {:?}\n", public.display().to_string());
    for (name, moment) in [("not_before", not_before), ("not_after", not_after)] {
        if let Some(moment) = moment {
            entry.push_str(&format!("{name} = {moment:?}\n"));
        }
    }
    entry
}

fn make(key_file: &Path) -> anyhow::Result<Signer> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the system has no randomness")?;
    let signer = Signer::from_seed(&seed);
    write_new(key_file, &signer.private_pem(), 0o600)?;
    Ok(signer)
}

/// Never overwrites: a key that is lost cannot be made again.
fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| {
            let refused = Refused::new(format!("{}: {error}", path.display()));
            match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    refused.help("keys are never overwritten: move it away, or name another file")
                }
                _ => refused,
            }
        })?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", path.display()))
}
