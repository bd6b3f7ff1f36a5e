//! SASL over a connection to a broker: who this client is, by name and password.
//!
//! PLAIN (RFC 4616) and SCRAM (RFC 5802, RFC 7677) without channel binding. As with Kafka's own client and librdkafka, names and
//! passwords are taken as they are, without SASLprep.

use std::time::Instant;

use openssl::{
    base64::{decode_block, encode_block},
    error::ErrorStack,
    hash::{MessageDigest, hash},
    memcmp, pkcs5,
    pkey::PKey,
    rand::rand_bytes,
    sign::Signer,
};

use super::Connection;
use crate::{
    Error, Mechanism, Sasl,
    fetch::wire::{Body, Malformed, Reader},
};

const WHAT: &str = "authentication";

const SASL_HANDSHAKE: i16 = 17;
const SASL_AUTHENTICATE: i16 = 36;

const UNSUPPORTED_SASL_MECHANISM: i16 = 33;
const ILLEGAL_SASL_STATE: i16 = 34;
const SASL_AUTHENTICATION_FAILED: i16 = 58;

/// RFC 7677, which Kafka holds to.
const ITERATIONS_MIN: usize = 4096;
/// About a second of work: nobody may ask for more before it is known who asks.
const ITERATIONS_MAX: usize = 1_000_000;

/// Says who this client is, and with SCRAM makes sure that the broker knows the password, too.
pub(super) fn authenticate(connection: &mut Connection, sasl: &Sasl, deadline: Instant) -> Result<(), Error> {
    choose(connection, sasl.mechanism, deadline)?;
    let digest = match sasl.mechanism {
        Mechanism::Plain => {
            let message = format!("\0{}\0{}", sasl.username, sasl.password.0);
            return exchange(connection, sasl, message.as_bytes(), deadline).map(drop);
        }
        Mechanism::ScramSha256 => MessageDigest::sha256(),
        Mechanism::ScramSha512 => MessageDigest::sha512(),
    };
    let address = connection.address.clone();
    let failed = |reason: String| Error::retriable(WHAT, format!("{} with {address}: {reason}", sasl.mechanism.name()));
    let mut nonce = [0; 24];
    rand_bytes(&mut nonce).map_err(|error| failed(error.to_string()))?;
    let scram = Scram::new(digest, sasl, encode_block(&nonce));
    let challenge = exchange(connection, sasl, scram.first().as_bytes(), deadline)?;
    let (proof, signature) = scram.answer(&challenge).map_err(failed)?;
    let outcome = exchange(connection, sasl, proof.as_bytes(), deadline)?;
    scram.verify(&outcome, &signature).map_err(failed)
}

/// SaslHandshake: names the mechanism.
fn choose(connection: &mut Connection, mechanism: Mechanism, deadline: Instant) -> Result<(), Error> {
    let mut body = Body::default();
    body.string(mechanism.name());
    let answer = connection.ask(SASL_HANDSHAKE, 1, &body, deadline)?;
    let parse = || -> Result<_, Malformed> {
        let mut reader = Reader::new(&answer);
        let code = reader.i16("error code")?;
        let count = reader.length("mechanisms")?.unwrap_or(0);
        let mut offered = Vec::new();
        for _ in 0..count {
            offered.push(reader.string("mechanism")?.unwrap_or_default());
        }
        Ok((code, offered))
    };
    let (code, offered) = parse().map_err(|error| connection.unfit(error))?;
    let address = &connection.address;
    let name = mechanism.name();
    let reason = match code {
        0 => return Ok(()),
        UNSUPPORTED_SASL_MECHANISM => {
            let offered = offered.join(", ");
            format!(
                "{address} does not take {name} but {offered}: set sasl.mechanism to one of these, or enable {name} there"
            )
        }
        ILLEGAL_SASL_STATE => {
            format!("{address} takes no SASL there: use the port of a SASL listener, or leave out sasl")
        }
        code => format!("{address} answers {name} with error {code}"),
    };
    Err(Error::retriable(WHAT, reason))
}

/// SaslAuthenticate: one message there, one back.
fn exchange(connection: &mut Connection, sasl: &Sasl, message: &[u8], deadline: Instant) -> Result<Vec<u8>, Error> {
    let mut body = Body::default();
    body.bytes(message);
    let answer = connection.ask(SASL_AUTHENTICATE, 0, &body, deadline)?;
    let parse = || -> Result<_, Malformed> {
        let mut reader = Reader::new(&answer);
        let code = reader.i16("error code")?;
        let text = reader.string("error message")?.unwrap_or("no reason given");
        Ok((code, text, reader.bytes("authentication bytes")?.unwrap_or_default()))
    };
    let (code, text, bytes) = parse().map_err(|error| connection.unfit(error))?;
    let address = &connection.address;
    let (user, name) = (&sasl.username, sasl.mechanism.name());
    let reason = match code {
        0 => return Ok(bytes.to_vec()),
        SASL_AUTHENTICATION_FAILED => {
            format!("{address} refuses {user} by {name} ({text}): correct sasl.username and sasl.password")
        }
        code => format!("{address} answers {user} by {name} with error {code} ({text})"),
    };
    Err(Error::retriable(WHAT, reason))
}

/// The client's half of SCRAM. What it fails with is a reason for people.
struct Scram<'a> {
    digest: MessageDigest,
    password: &'a str,
    nonce: String,
    /// `client-first-message-bare`.
    bare: String,
}

impl<'a> Scram<'a> {
    /// `nonce`: printable, without commas, never used before.
    fn new(digest: MessageDigest, sasl: &'a Sasl, nonce: String) -> Self {
        let name = sasl.username.replace('=', "=3D").replace(',', "=2C");
        Self {
            digest,
            password: &sasl.password.0,
            bare: format!("n={name},r={nonce}"),
            nonce,
        }
    }

    /// `client-first-message`: no channel binding, no other name to act as.
    fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// `client-final-message`, and the signature that only a server has that knows the password.
    fn answer(&self, challenge: &[u8]) -> Result<(String, Vec<u8>), String> {
        let unfit = || "the broker's challenge is not as RFC 5802 has it".to_owned();
        let challenge = str::from_utf8(challenge).map_err(|_| unfit())?;
        let mut attributes = challenge.split(',');
        let mut attribute = |name| {
            attributes
                .next()
                .and_then(|next| next.strip_prefix(name))
                .ok_or_else(unfit)
        };
        let (nonce, salt, iterations) = (attribute("r=")?, attribute("s=")?, attribute("i=")?);
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("the broker's nonce does not go on from this client's: somebody may be replaying".into());
        }
        let salt = decode_block(salt).map_err(|_| unfit())?;
        let iterations: usize = iterations.parse().map_err(|_| unfit())?;
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations) {
            return Err(format!(
                "the broker asks for {iterations} iterations, not {ITERATIONS_MIN} to {ITERATIONS_MAX}: store the password anew"
            ));
        }
        // `biws` is the header `n,,` again.
        let without_proof = format!("c=biws,r={nonce}");
        let message = format!("{},{challenge},{without_proof}", self.bare);
        let (proof, signature) = self
            .sign(&salt, iterations, message.as_bytes())
            .map_err(|error| error.to_string())?;
        Ok((format!("{without_proof},p={}", encode_block(&proof)), signature))
    }

    /// The client's proof and the server's signature of the whole exchange.
    fn sign(&self, salt: &[u8], iterations: usize, message: &[u8]) -> Result<(Vec<u8>, Vec<u8>), ErrorStack> {
        let mut salted = vec![0; self.digest.size()];
        pkcs5::pbkdf2_hmac(self.password.as_bytes(), salt, iterations, self.digest, &mut salted)?;
        let client_key = self.hmac(&salted, b"Client Key")?;
        let stored_key = hash(self.digest, &client_key)?;
        let mut proof = self.hmac(&stored_key, message)?;
        for (byte, key) in proof.iter_mut().zip(&client_key) {
            *byte ^= key;
        }
        let server_key = self.hmac(&salted, b"Server Key")?;
        Ok((proof, self.hmac(&server_key, message)?))
    }

    fn hmac(&self, key: &[u8], message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
        Signer::new(self.digest, &*PKey::hmac(key)?)?.sign_oneshot_to_vec(message)
    }

    /// Whether `server-final-message` bears the signature.
    fn verify(&self, outcome: &[u8], signature: &[u8]) -> Result<(), String> {
        let outcome = String::from_utf8_lossy(outcome);
        let first = outcome.split(',').next().unwrap_or_default();
        if let Some(error) = first.strip_prefix("e=") {
            return Err(format!(
                "the broker says {error}: correct sasl.username and sasl.password"
            ));
        }
        let given = first.strip_prefix("v=").and_then(|given| decode_block(given).ok());
        match given {
            Some(given) if given.len() == signature.len() && memcmp::eq(&given, signature) => Ok(()),
            _ => Err("the broker cannot show that it knows the password: it may not be who it should be".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const CHALLENGE: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const WITHOUT_PROOF: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

    fn sasl(username: &str, password: &str) -> Sasl {
        Sasl {
            mechanism: Mechanism::ScramSha256,
            username: username.into(),
            password: Secret(password.into()),
        }
    }

    /// SHA-256: the example of RFC 7677. SHA-512: the same exchange, as Python's hashlib and hmac compute it.
    #[test]
    fn answers_and_verifies_as_the_standard_has_it() {
        let known = [
            (
                MessageDigest::sha256(),
                "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
                "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
            ),
            (
                MessageDigest::sha512(),
                "gMGXRcevScNtxZ6/8lQYpGtnsNAc3mGcmNomv+xnoOMw+3R2xNJdMNnzMlTN8PPC6wdp6dybEmDYXYTxwnYPJQ==",
                "ZQnYEgWQMFmmsM8aQMF0nDDCy/AgCzkwk8CmMZYcMg0vSVlKDanekLtifDSeVGT4+5ZxXnJq199RVG2rR7N7Zw==",
            ),
        ];
        let sasl = sasl("user", "pencil");
        for (digest, proof, verifier) in known {
            let scram = Scram::new(digest, &sasl, NONCE.into());
            assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
            let (answer, signature) = scram.answer(CHALLENGE.as_bytes()).unwrap();
            assert_eq!(answer, format!("{WITHOUT_PROOF},p={proof}"));
            scram.verify(format!("v={verifier}").as_bytes(), &signature).unwrap();
            scram
                .verify(format!("v={verifier},x=more").as_bytes(), &signature)
                .unwrap();

            let mut forged = signature.clone();
            forged[0] ^= 1;
            for outcome in [
                format!("v={}", encode_block(&forged)),
                format!("v={}", encode_block(&signature[1..])),
                "v=".into(),
                "v=!".into(),
                "x".into(),
                String::new(),
            ] {
                let refused = scram.verify(outcome.as_bytes(), &signature).unwrap_err();
                assert!(refused.contains("cannot show"), "{outcome}: {refused}");
            }
            let refused = scram.verify(b"e=invalid-proof", &signature).unwrap_err();
            assert!(refused.contains("invalid-proof"), "{refused}");
        }
    }

    #[test]
    fn names_are_escaped() {
        let sasl = sasl("a=b,c", "p");
        let scram = Scram::new(MessageDigest::sha256(), &sasl, NONCE.into());
        assert_eq!(scram.first(), format!("n,,n=a=3Db=2Cc,r={NONCE}"));
    }

    #[test]
    fn challenges_that_are_not_to_be_trusted_are_refused() {
        let sasl = sasl("user", "pencil");
        let scram = Scram::new(MessageDigest::sha256(), &sasl, NONCE.into());
        let cases = [
            ("", "RFC 5802"),
            ("m=ext,r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=4096", "RFC 5802"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA", "RFC 5802"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=!,i=4096", "RFC 5802"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=many", "RFC 5802"),
            ("r=rOprNGfwEbeRWgbNEkqO,s=AAAA,i=4096", "nonce"),
            ("r=anotherone,s=AAAA,i=4096", "nonce"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=4095", "iterations"),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=2000000000", "iterations"),
        ];
        for (challenge, reason) in cases {
            let refused = scram.answer(challenge.as_bytes()).unwrap_err();
            assert!(refused.contains(reason), "{challenge}: {refused}");
        }
        assert!(scram.answer(b"r=\xff").unwrap_err().contains("RFC 5802"));
    }
}
