//! Signatures of commands, approvals and outcomes: who may write to a topic does not thereby speak for somebody.
//!
//! Follows the CloudEvents extension *Verifiable CloudEvents with DSSE*, version 0.1: the header `ce_dssematerial` holds a
//! DSSE 1.0.2 envelope in Base64, whose payload is the SHA-256 over the digests of the attributes, of the data byte for byte
//! as it travels, and of the extension attributes that `ce_signedextattrs` lists. The envelope is signed with Ed25519, which
//! is deterministic: the same command gives the same bytes in every run.
//!
//! Owns what is signed and how it is checked against a list of trusted keys, each with its time. Reads no file and no clock.
//! Whether a signed command may be carried out is for the executor: a signature says who speaks, not that it is right, and a
//! record that is played again is signed as well as it was the first time.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{
    Signature, Signer as _, SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes, spki::der::pem::LineEnding,
    },
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Output, Record, time};

/// The envelope's `payloadType`.
pub const PAYLOAD_TYPE: &str = "https://cloudevents.io/verifiability/dsse/v0.1";
const MATERIAL: &str = "ce_dssematerial";
const SIGNED_EXTENSIONS: &str = "ce_signedextattrs";

/// Core attributes in the order of the extension's specification, and the headers that carry them.
const CORE: [&str; 8] = [
    "ce_id",
    "ce_source",
    "ce_specversion",
    "ce_type",
    "content-type",
    "ce_dataschema",
    "ce_subject",
    "ce_time",
];

/// Extension attributes that a command's signature covers where it has them. All that an executor acts on is among them.
const EXTENSIONS: [&str; 7] = [
    "partitionkey",
    "expirytime",
    "correlationid",
    "causationid",
    "sequence",
    "tenant",
    "mode",
];

/// Longest `ce_dssematerial` that is read.
const MATERIAL_BYTES_MAX: usize = 4096;

/// DSSE's envelope. Fields that are not known are refused: nothing in it is there without a reason.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeSignature {
    keyid: String,
    sig: String,
}

/// Why a key file is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("is no Ed25519 private key in PEM (PKCS#8, \"-----BEGIN PRIVATE KEY-----\")")]
    Private(#[source] ed25519_dalek::pkcs8::Error),
    #[error("is no Ed25519 public key in PEM (\"-----BEGIN PUBLIC KEY-----\")")]
    Public(#[source] ed25519_dalek::pkcs8::spki::Error),
    #[error("is a private key; the public one belongs here, as `homeostat keys public` prints it")]
    PrivateForPublic,
    #[error("{name} = {text:?} is no time; for example \"2026-01-02T03:04:05Z\"")]
    Time { name: &'static str, text: String },
    #[error("never counts: not_before is not before not_after")]
    Never,
}

/// Signs with one private key.
pub struct Signer {
    key: SigningKey,
    id: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.id)
    }
}

impl Signer {
    /// A key from 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self::of(SigningKey::from_bytes(seed))
    }

    /// Reads a PEM file's text.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        SigningKey::from_pkcs8_pem(text)
            .map(Self::of)
            .map_err(KeyError::Private)
    }

    fn of(key: SigningKey) -> Self {
        let id = key_id(&key.verifying_key());
        Self { key, id }
    }

    /// Names the key: sixteen hexadecimal digits made from its public half.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Without the public half beside it (PKCS#8 version 1): OpenSSL and what builds on it reads no other.
    pub fn private_pem(&self) -> String {
        let key = KeypairBytes {
            secret_key: self.key.to_bytes(),
            public_key: None,
        };
        let pem = key.to_pkcs8_pem(LineEnding::LF);
        pem.expect("32 bytes always encode").to_string()
    }

    pub fn public_pem(&self) -> String {
        let pem = self.key.verifying_key().to_public_key_pem(LineEnding::LF);
        pem.expect("32 bytes always encode")
    }

    /// Adds the signature's headers to an event's record. Headers that are added later are not covered.
    pub fn sign(&self, output: &mut Output) {
        let present = |name: &&str| {
            output
                .headers
                .iter()
                .any(|(header, _)| header.strip_prefix("ce_") == Some(name))
        };
        let extensions: Vec<&str> = EXTENSIONS.iter().copied().filter(|name| present(name)).collect();
        let payload = material(
            |name| {
                let header = output.headers.iter().rfind(|(header, _)| header == name);
                header.map(|(_, value)| value.as_slice())
            },
            output.value.as_deref().unwrap_or_default(),
            &extensions,
        );
        let signature = self.key.sign(&pre_authentication(PAYLOAD_TYPE, &payload));
        let envelope = Envelope {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![EnvelopeSignature {
                keyid: self.id.clone(),
                sig: STANDARD.encode(signature.to_bytes()),
            }],
        };
        let envelope = serde_json::to_vec(&envelope).expect("text always encodes");
        output
            .headers
            .push((SIGNED_EXTENSIONS.to_owned(), extensions.join(",").into_bytes()));
        output
            .headers
            .push((MATERIAL.to_owned(), STANDARD.encode(envelope).into_bytes()));
    }
}

/// One public key and when it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    key: VerifyingKey,
    id: String,
    /// From when on, milliseconds since the Unix epoch.
    pub not_before_ms: Option<i64>,
    /// Until when; the moment itself no longer counts.
    pub not_after_ms: Option<i64>,
}

impl TrustedKey {
    /// Reads a PEM file's text. The key counts at all times until [`TrustedKey::not_before_ms`] and the other are set.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        if Signer::from_pem(text).is_ok() {
            return Err(KeyError::PrivateForPublic);
        }
        let key = VerifyingKey::from_public_key_pem(text).map_err(KeyError::Public)?;
        Ok(Self {
            id: key_id(&key),
            key,
            not_before_ms: None,
            not_after_ms: None,
        })
    }

    /// The key counts between these times, in RFC 3339; a time that is left out does not bound it.
    pub fn between(mut self, not_before: Option<&str>, not_after: Option<&str>) -> Result<Self, KeyError> {
        self.not_before_ms = moment("not_before", not_before)?;
        self.not_after_ms = moment("not_after", not_after)?;
        match (self.not_before_ms, self.not_after_ms) {
            (Some(from), Some(to)) if from >= to => Err(KeyError::Never),
            _ => Ok(self),
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }
}

fn moment(name: &'static str, text: Option<&str>) -> Result<Option<i64>, KeyError> {
    let Some(text) = text else { return Ok(None) };
    let at = time::from_rfc3339(text).ok_or_else(|| KeyError::Time {
        name,
        text: text.to_owned(),
    });
    at.map(Some)
}

/// Why a record is not taken for what a trusted key signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    #[error("unsigned: header ce_dssematerial is missing")]
    Unsigned,
    #[error("the signature cannot be read: {0}")]
    Unreadable(String),
    #[error("signed by unknown key {0:?}, which is not trusted here")]
    UnknownKey(String),
    #[error("signed by key {key:?}, which expired at {not_after}")]
    ExpiredKey { key: String, not_after: String },
    #[error("signed by key {key:?}, which is not valid before {not_before}")]
    EarlyKey { key: String, not_before: String },
    #[error("the signature of key {0:?} does not fit: envelope or data were changed, or another key signed")]
    Forged(String),
    #[error("attribute {0:?} is not covered by the signature")]
    NotCovered(&'static str),
}

/// Checks a record against the trusted keys at `at_ms`. The id of the key that signed it.
pub fn verify<'k>(record: &Record<'_>, keys: &'k [TrustedKey], at_ms: i64) -> Result<&'k str, Unverified> {
    let envelope = read_envelope(record)?;
    let payload = decode("payload", &envelope.payload)?;
    let extensions = signed_extensions(record)?;
    let mut refusal = Unverified::Unreadable("it has no signatures".to_owned());
    for signature in &envelope.signatures {
        match check_signature(signature, &payload, keys, at_ms) {
            Err(reason) => refusal = reason,
            Ok(key) => {
                let data = record.value.unwrap_or_default();
                let expected = material(|name| record.header(name), data, &extensions);
                if payload != expected {
                    return Err(Unverified::Forged(key.id.clone()));
                }
                return uncovered(record, &extensions).map_or(Ok(&key.id), Err);
            }
        }
    }
    Err(refusal)
}

fn read_envelope(record: &Record<'_>) -> Result<Envelope, Unverified> {
    let header = record.header(MATERIAL).filter(|header| !header.is_empty());
    let header = header.ok_or(Unverified::Unsigned)?;
    if header.len() > MATERIAL_BYTES_MAX {
        let reason = format!("ce_dssematerial is longer than {MATERIAL_BYTES_MAX} bytes");
        return Err(Unverified::Unreadable(reason));
    }
    let bytes = decode(MATERIAL, header)?;
    let envelope: Envelope = serde_json::from_slice(&bytes)
        .map_err(|error| Unverified::Unreadable(format!("ce_dssematerial is no DSSE envelope: {error}")))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        let reason = format!("payloadType {:?} is not {PAYLOAD_TYPE:?}", envelope.payload_type);
        return Err(Unverified::Unreadable(reason));
    }
    Ok(envelope)
}

fn check_signature<'k>(
    signature: &EnvelopeSignature,
    payload: &[u8],
    keys: &'k [TrustedKey],
    at_ms: i64,
) -> Result<&'k TrustedKey, Unverified> {
    let named = |key: &&TrustedKey| key.id == signature.keyid;
    let key = keys.iter().find(named);
    let key = key.ok_or_else(|| Unverified::UnknownKey(signature.keyid.chars().take(64).collect()))?;
    let bytes = decode("sig", &signature.sig)?;
    let forged = || Unverified::Forged(key.id.clone());
    let signed = Signature::from_slice(&bytes).map_err(|_| forged())?;
    key.key
        .verify_strict(&pre_authentication(PAYLOAD_TYPE, payload), &signed)
        .map_err(|_| forged())?;
    if let Some(not_before_ms) = key.not_before_ms.filter(|not_before_ms| at_ms < *not_before_ms) {
        return Err(Unverified::EarlyKey {
            key: key.id.clone(),
            not_before: time::to_rfc3339(not_before_ms),
        });
    }
    if let Some(not_after_ms) = key.not_after_ms.filter(|not_after_ms| at_ms >= *not_after_ms) {
        return Err(Unverified::ExpiredKey {
            key: key.id.clone(),
            not_after: time::to_rfc3339(not_after_ms),
        });
    }
    Ok(key)
}

/// The names that `ce_signedextattrs` lists, by the rules of the specification.
fn signed_extensions<'a>(record: &Record<'a>) -> Result<Vec<&'a str>, Unverified> {
    let unreadable = |reason: &str| Unverified::Unreadable(format!("ce_signedextattrs {reason}"));
    let header = record.header(SIGNED_EXTENSIONS).unwrap_or_default();
    let text = std::str::from_utf8(header).map_err(|_| unreadable("is not UTF-8"))?;
    let mut names: Vec<&str> = Vec::new();
    for name in text.split(',').filter(|_| !text.is_empty()) {
        if name.is_empty() || names.contains(&name) {
            return Err(unreadable("names an attribute twice, or none"));
        }
        if [
            "id",
            "source",
            "specversion",
            "type",
            "datacontenttype",
            "dataschema",
            "subject",
            "time",
        ]
        .contains(&name)
            || ["dssematerial", "signedextattrs"].contains(&name)
        {
            return Err(unreadable("names an attribute that is no extension"));
        }
        names.push(name);
    }
    Ok(names)
}

/// An attribute that the record has, that matters, and that the signer did not sign: somebody may have added it.
fn uncovered(record: &Record<'_>, signed: &[&str]) -> Option<Unverified> {
    let matters = EXTENSIONS.iter().copied();
    matters
        .filter(|name| record.header(&format!("ce_{name}")).is_some() && !signed.contains(name))
        .map(Unverified::NotCovered)
        .next()
}

fn decode(what: &str, text: impl AsRef<[u8]>) -> Result<Vec<u8>, Unverified> {
    STANDARD
        .decode(text)
        .map_err(|error| Unverified::Unreadable(format!("{what} is not Base64: {error}")))
}

/// The specification's `VERIFICATION_MATERIAL`. `header` gives an attribute by the name of its header.
fn material<'a>(header: impl Fn(&str) -> Option<&'a [u8]>, data: &[u8], extensions: &[&str]) -> Vec<u8> {
    let mut digests = Sha256::new();
    for name in CORE {
        digests.update(Sha256::digest(header(name).unwrap_or_default()));
    }
    digests.update(Sha256::digest(data));
    for name in extensions {
        digests.update(Sha256::digest(name));
        digests.update(Sha256::digest(header(&format!("ce_{name}")).unwrap_or_default()));
    }
    digests.finalize().to_vec()
}

/// DSSE's pre-authentication encoding.
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut encoded = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    encoded.extend_from_slice(payload);
    encoded
}

fn key_id(key: &VerifyingKey) -> String {
    let digest = Sha256::digest(key.as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
