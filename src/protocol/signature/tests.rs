use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Batch, CloudEvent, TimestampKind, cloudevent::ACTION_REQUESTED, id};

const NOW_MS: i64 = 1_767_323_045_000;
const KEY: &str = "homeostat|||cart|service|";

fn signer(number: u8) -> Signer {
    Signer::from_seed(&[number; 32])
}

fn trusted(number: u8) -> TrustedKey {
    TrustedKey::from_pem(&signer(number).public_pem()).unwrap()
}

fn unsigned() -> Output {
    let action = id::derived("action", &["1"]);
    let event = CloudEvent {
        recorded_time_ms: Some(NOW_MS),
        expiry_time_ms: Some(NOW_MS + 60_000),
        correlation_id: Some(id::derived("incident", &["1"])),
        causation_id: Some(id::derived("decision", &["1"])),
        sequence: Some(7),
        traceparent: Some(id::traceparent(action, action)),
        mode: Some("live".into()),
        ..CloudEvent::new(
            action,
            "homeostat",
            "/homeostat/homeostat/shop",
            ACTION_REQUESTED,
            KEY,
            NOW_MS,
        )
    };
    event.output("homeostat.actions", &json!({"action": {"type": "restart"}}))
}

fn signed() -> Output {
    let mut output = unsigned();
    signer(1).sign(&mut output);
    output
}

fn check(output: &Output, keys: &[TrustedKey], at_ms: i64) -> Result<String, Unverified> {
    let mut batch = Batch::default();
    let partition = batch.partition(&output.topic, 0);
    let headers = output.headers.iter().map(|(name, value)| (&**name, &**value));
    batch.push(
        partition,
        0,
        (at_ms, TimestampKind::LogAppend),
        output.key.as_deref(),
        output.value.as_deref(),
        headers,
    );
    verify(&batch.get(0), keys, at_ms).map(str::to_owned)
}

fn set(output: &mut Output, name: &str, value: &str) {
    output.headers.retain(|(header, _)| header != name);
    output.headers.push((name.to_owned(), value.as_bytes().to_vec()));
}

/// Changes the envelope within `ce_dssematerial`.
fn edit_envelope(output: &mut Output, change: impl FnOnce(&mut serde_json::Value)) {
    let header = output.headers.iter_mut().find(|(name, _)| name == MATERIAL).unwrap();
    let mut envelope = serde_json::from_slice(&STANDARD.decode(&header.1).unwrap()).unwrap();
    change(&mut envelope);
    header.1 = STANDARD.encode(envelope.to_string()).into_bytes();
}

#[test]
fn what_a_trusted_key_signed_is_verified_and_signing_twice_gives_the_same_bytes() {
    let output = signed();
    assert_eq!(
        check(&output, &[trusted(2), trusted(1)], NOW_MS),
        Ok(signer(1).id().to_owned())
    );
    assert_eq!(output, signed());
}

#[test]
fn a_signature_of_another_implementation_of_the_specification_is_verified() {
    // Made with Python's `cryptography` and the specification's text, not with this module.
    let mut output = unsigned();
    let vector: serde_json::Value = serde_json::from_str(include_str!("vector.json")).unwrap();
    set(
        &mut output,
        SIGNED_EXTENSIONS,
        vector["signedextattrs"].as_str().unwrap(),
    );
    set(&mut output, MATERIAL, vector["dssematerial"].as_str().unwrap());
    let key = TrustedKey::from_pem(vector["public_key"].as_str().unwrap()).unwrap();
    assert_eq!(
        check(&output, &[key], NOW_MS),
        Ok(vector["keyid"].as_str().unwrap().to_owned())
    );
}

#[test]
fn whatever_is_changed_of_a_signed_command_is_noticed() {
    type Change = fn(&mut Output);
    let forged = Unverified::Forged(signer(1).id().to_owned());
    let changes: [(&str, Change); 17] = [
        ("data", |output| output.value.as_mut().unwrap()[3] ^= 1),
        ("data, a blank more", |output| output.value.as_mut().unwrap().push(b' ')),
        ("data gone", |output| output.value = None),
        ("another target", |output| {
            set(output, "ce_subject", "homeostat|||payment|service|")
        }),
        ("another partition key", |output| {
            set(output, "ce_partitionkey", "homeostat|||payment|service|")
        }),
        ("another tenant", |output| set(output, "ce_tenant", "other")),
        ("another mode", |output| set(output, "ce_mode", "shadow")),
        ("a higher fencing token", |output| {
            set(output, "ce_sequence", "00000000000000000099")
        }),
        ("a later expiry", |output| {
            set(output, "ce_expirytime", "2036-01-01T00:00:00.000Z")
        }),
        ("no expiry", |output| {
            output.headers.retain(|(name, _)| name != "ce_expirytime")
        }),
        ("another incident", |output| {
            set(output, "ce_correlationid", &id::derived("incident", &["2"]).to_string());
        }),
        ("another decision", |output| {
            set(output, "ce_causationid", &id::derived("decision", &["2"]).to_string());
        }),
        ("another id", |output| {
            set(output, "ce_id", &id::derived("action", &["2"]).to_string())
        }),
        ("another source", |output| {
            set(output, "ce_source", "/homeostat/other/shop")
        }),
        ("another type", |output| {
            set(output, "ce_type", "dev.homeostat.action.cancelled.v1")
        }),
        ("another time", |output| {
            set(output, "ce_time", "2026-01-02T03:04:06.000Z")
        }),
        ("fewer attributes said to be signed", |output| {
            set(output, SIGNED_EXTENSIONS, "tenant,mode")
        }),
    ];
    for (what, change) in changes {
        let mut output = signed();
        change(&mut output);
        assert_eq!(check(&output, &[trusted(1)], NOW_MS), Err(forged.clone()), "{what}");
    }
}

#[test]
fn what_is_not_signed_may_change() {
    for header in ["ce_recordedtime", "ce_traceparent"] {
        let mut output = signed();
        set(&mut output, header, "changed");
        assert!(check(&output, &[trusted(1)], NOW_MS).is_ok(), "{header}");
    }
}

#[test]
fn an_attribute_that_was_added_after_signing_is_refused() {
    let mut output = unsigned();
    output.headers.retain(|(name, _)| name != "ce_sequence");
    signer(1).sign(&mut output);
    set(&mut output, "ce_sequence", "00000000000000000099");
    assert_eq!(
        check(&output, &[trusted(1)], NOW_MS),
        Err(Unverified::NotCovered("sequence"))
    );
}

#[test]
fn who_signed_is_asked_at_the_time_of_the_record() {
    let limited = |from: Option<i64>, to: Option<i64>| TrustedKey {
        not_before_ms: from,
        not_after_ms: to,
        ..trusted(1)
    };
    let key = || signer(1).id().to_owned();
    let expired = Unverified::ExpiredKey {
        key: key(),
        not_after: time::to_rfc3339(NOW_MS),
    };
    let early = Unverified::EarlyKey {
        key: key(),
        not_before: time::to_rfc3339(NOW_MS + 1),
    };
    let cases = [
        ("no other key", vec![], Err(Unverified::UnknownKey(key()))),
        ("only another key", vec![trusted(2)], Err(Unverified::UnknownKey(key()))),
        (
            "within its time",
            vec![limited(Some(NOW_MS), Some(NOW_MS + 1))],
            Ok(key()),
        ),
        ("expired this moment", vec![limited(None, Some(NOW_MS))], Err(expired)),
        ("not yet", vec![limited(Some(NOW_MS + 1), None)], Err(early)),
    ];
    for (what, keys, expected) in cases {
        assert_eq!(check(&signed(), &keys, NOW_MS), expected, "{what}");
    }
}

#[test]
fn an_envelope_that_says_something_else_is_refused() {
    type Change = fn(&mut Output);
    let forged = Unverified::Forged(signer(1).id().to_owned());
    let changes: [(&str, Change, Option<Unverified>); 11] = [
        (
            "stripped",
            |output| output.headers.retain(|(name, _)| name != MATERIAL),
            Some(Unverified::Unsigned),
        ),
        ("empty", |output| set(output, MATERIAL, ""), Some(Unverified::Unsigned)),
        ("no base64", |output| set(output, MATERIAL, "%%%"), None),
        ("no json", |output| set(output, MATERIAL, &STANDARD.encode("{")), None),
        (
            "endless",
            |output| set(output, MATERIAL, &"A".repeat(MATERIAL_BYTES_MAX + 4)),
            None,
        ),
        (
            "another payload type",
            |output| edit_envelope(output, |it| it["payloadType"] = json!("text/plain")),
            None,
        ),
        (
            "a field more",
            |output| edit_envelope(output, |it| it["extra"] = json!(1)),
            None,
        ),
        (
            "no signatures",
            |output| edit_envelope(output, |it| it["signatures"] = json!([])),
            None,
        ),
        (
            "a payload of its own",
            |output| {
                edit_envelope(output, |it| it["payload"] = json!(STANDARD.encode([0; 32])));
            },
            Some(forged.clone()),
        ),
        (
            "a signature of zeros",
            |output| {
                edit_envelope(output, |it| {
                    it["signatures"][0]["sig"] = json!(STANDARD.encode([0; 64]))
                });
            },
            Some(forged.clone()),
        ),
        (
            "a short signature",
            |output| {
                edit_envelope(output, |it| {
                    it["signatures"][0]["sig"] = json!(STANDARD.encode([0; 63]))
                });
            },
            Some(forged),
        ),
    ];
    for (what, change, expected) in changes {
        let mut output = signed();
        change(&mut output);
        let refused = check(&output, &[trusted(1)], NOW_MS).expect_err(what);
        match expected {
            Some(expected) => assert_eq!(refused, expected, "{what}"),
            None => assert!(matches!(refused, Unverified::Unreadable(_)), "{what}: {refused}"),
        }
    }
}

#[test]
fn another_key_under_a_trusted_keys_name_is_refused() {
    let mut output = unsigned();
    signer(2).sign(&mut output);
    edit_envelope(&mut output, |it| it["signatures"][0]["keyid"] = json!(signer(1).id()));
    let refused = Unverified::Forged(signer(1).id().to_owned());
    assert_eq!(check(&output, &[trusted(1)], NOW_MS), Err(refused));
}

#[test]
fn one_trusted_signature_of_several_is_enough() {
    let (first, mut second) = (signed(), unsigned());
    signer(2).sign(&mut second);
    let header = |output: &Output| {
        let (_, value) = output.headers.iter().find(|(name, _)| name == MATERIAL).unwrap();
        serde_json::from_slice::<serde_json::Value>(&STANDARD.decode(value).unwrap()).unwrap()
    };
    let other = header(&second)["signatures"][0].clone();
    let mut both = first;
    edit_envelope(&mut both, |it| {
        it["signatures"].as_array_mut().unwrap().insert(0, other)
    });
    assert!(check(&both, &[trusted(1)], NOW_MS).is_ok());
    assert!(check(&both, &[trusted(2)], NOW_MS).is_ok());
    assert!(check(&both, &[trusted(3)], NOW_MS).is_err());
}

#[test]
fn names_in_signedextattrs_follow_the_specification() {
    for names in ["tenant,tenant", "tenant,", "id", "dssematerial", "signedextattrs"] {
        let mut output = signed();
        set(&mut output, SIGNED_EXTENSIONS, names);
        let refused = check(&output, &[trusted(1)], NOW_MS).unwrap_err();
        assert!(matches!(refused, Unverified::Unreadable(_)), "{names}: {refused}");
    }
}

#[test]
fn keys_travel_as_pem_and_the_wrong_half_is_named() {
    // As `openssl pkey` writes it.
    let pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB\n-----END PRIVATE KEY-----\n";
    assert_eq!(Signer::from_seed(&[1; 32]).private_pem(), pem);
    assert_eq!(Signer::from_pem(pem).unwrap().id(), Signer::from_seed(&[1; 32]).id());
    let signer = signer(3);
    assert_eq!(Signer::from_pem(&signer.private_pem()).unwrap().id(), signer.id());
    assert_eq!(TrustedKey::from_pem(&signer.public_pem()).unwrap().id(), signer.id());
    let wrong = TrustedKey::from_pem(&signer.private_pem()).unwrap_err();
    assert!(matches!(wrong, KeyError::PrivateForPublic), "{wrong}");
    assert!(matches!(
        Signer::from_pem(&signer.public_pem()),
        Err(KeyError::Private(_))
    ));
    assert!(matches!(TrustedKey::from_pem("nonsense"), Err(KeyError::Public(_))));
    assert_eq!(
        format!("{signer:?}"),
        format!("Signer({})", signer.id()),
        "no secret in a log"
    );
}

proptest! {
    #[test]
    fn no_header_makes_the_check_panic(material in ".{0,200}", names in ".{0,60}", json in "[{}\\[\\]\":,a-z]{0,80}") {
        for material in [material, STANDARD.encode(json)] {
            let mut output = signed();
            set(&mut output, MATERIAL, &material);
            set(&mut output, SIGNED_EXTENSIONS, &names);
            prop_assert!(check(&output, &[trusted(1)], NOW_MS).is_err());
        }
    }
}
