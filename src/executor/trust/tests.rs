use std::{fs, path::Path};

use protocol::{Batch, signature::Signer};

use super::*;
use crate::command::tests::{NOW_MS, action, event};

fn signer(number: u8) -> Signer {
    Signer::from_seed(&[number; 32])
}

fn entry(directory: &Path, name: &str, text: &str) -> Entry {
    let key_file = directory.join(name);
    fs::write(&key_file, text).unwrap();
    Entry {
        key_file,
        not_before: None,
        not_after: None,
    }
}

fn check(trust: &Trust, signers: &[Signer], appended: (i64, TimestampKind), now_ms: i64) -> Result<(), Unverified> {
    let action = action("cart", 1);
    let mut output = event(&action, 1).output("homeostat.actions", &action);
    signers.iter().for_each(|signer| signer.sign(&mut output));
    let mut batch = Batch::default();
    let partition = batch.partition(&output.topic, 0);
    let headers = output.headers.iter().map(|(name, value)| (&**name, &**value));
    batch.push(
        partition,
        0,
        appended,
        output.key.as_deref(),
        output.value.as_deref(),
        headers,
    );
    trust.check(&batch.get(0), now_ms)
}

#[test]
fn a_list_of_keys_makes_signatures_required_unless_said_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let entries = [entry(directory.path(), "one.pem", &signer(1).public_pem())];
    let now = (NOW_MS, TimestampKind::LogAppend);
    let load = |entries: &[Entry], require| Trust::load(entries, require).unwrap();
    let cases: [(Trust, &[Signer], bool); 8] = [
        (load(&[], None), &[], true),
        (load(&[], None), &[signer(2)], true),
        (load(&[], Some(false)), &[], true),
        (load(&entries, None), &[], false),
        (load(&entries, None), &[signer(1)], true),
        (load(&entries, Some(false)), &[], true),
        (load(&entries, Some(false)), &[signer(2)], false),
        (load(&entries, Some(true)), &[signer(2)], false),
    ];
    for (index, (trust, signers, accepted)) in cases.into_iter().enumerate() {
        let checked = check(&trust, signers, now, NOW_MS);
        assert_eq!(checked.is_ok(), accepted, "case {index}: {checked:?}");
    }
}

#[test]
fn keys_rotate_by_their_times_and_the_append_time_counts_where_the_broker_says_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |ms: i64| Some(protocol::time::to_rfc3339(NOW_MS + ms));
    let old = Entry {
        not_after: at(1_000),
        ..entry(directory.path(), "old.pem", &signer(1).public_pem())
    };
    let new = Entry {
        not_before: at(0),
        ..entry(directory.path(), "new.pem", &signer(2).public_pem())
    };
    let trust = Trust::load(&[old, new], None).unwrap();
    let log = TimestampKind::LogAppend;
    let cases = [
        ("old, before the new one begins", 1, (NOW_MS - 1, log), NOW_MS, true),
        ("new, before it begins", 2, (NOW_MS - 1, log), NOW_MS, false),
        ("old, in the overlap", 1, (NOW_MS + 500, log), NOW_MS, true),
        ("new, in the overlap", 2, (NOW_MS + 500, log), NOW_MS, true),
        ("old, expired", 1, (NOW_MS + 1_000, log), NOW_MS, false),
        (
            "old, written in time and read late",
            1,
            (NOW_MS + 999, log),
            NOW_MS + 60_000,
            true,
        ),
        (
            "old, from a broker that does not say when",
            1,
            (NOW_MS, TimestampKind::Create),
            NOW_MS + 60_000,
            false,
        ),
        ("a third", 3, (NOW_MS, log), NOW_MS, false),
    ];
    for (what, key, appended, now_ms, accepted) in cases {
        let checked = check(&trust, &[signer(key)], appended, now_ms);
        assert_eq!(checked.is_ok(), accepted, "{what}: {checked:?}");
    }
}

#[test]
fn what_cannot_be_trusted_is_refused_with_its_file_and_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    let good = || entry(directory.path(), "good.pem", &signer(1).public_pem());
    let timed = |not_before: &str, not_after: &str| Entry {
        not_before: Some(not_before.into()),
        not_after: Some(not_after.into()),
        ..good()
    };
    let missing = Entry {
        key_file: directory.path().join("missing.pem"),
        ..good()
    };
    let cases = [
        (vec![], Some(true), "require_signature = true needs a [[trust]] entry"),
        (vec![missing], None, "missing.pem: cannot be read"),
        (
            vec![entry(directory.path(), "text.pem", "hello")],
            None,
            "text.pem: is no Ed25519 public key in PEM",
        ),
        (
            vec![entry(directory.path(), "private.pem", &signer(1).private_pem())],
            None,
            "private.pem: is a private key; the public one belongs here",
        ),
        (vec![good(), good()], None, "which another entry names already"),
        (
            vec![timed("yesterday", "2026-01-01T00:00:00Z")],
            None,
            "not_before = \"yesterday\" is no time",
        ),
        (
            vec![timed("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")],
            None,
            "never counts",
        ),
    ];
    for (entries, require, expected) in cases {
        let error = Trust::load(&entries, require).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
