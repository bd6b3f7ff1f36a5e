//! TLS over a connection to a broker, with the files and the checks that librdkafka has for the same configuration.

use std::{
    fs, io,
    net::{IpAddr, TcpStream},
    path::Path,
};

use openssl::{
    error::ErrorStack,
    pkey::PKey,
    ssl::{self, HandshakeError, Ssl, SslContext, SslMethod, SslStream, SslVerifyMode},
    x509::X509VerifyResult,
};

use crate::{Error, Tls};

const WHAT: &str = "authentication";

/// Shakes hands over `stream`, and makes sure that the other end is `host`.
///
/// # Errors
/// [`Error::Config`] for files that cannot be used; retriable for whatever the broker has to do with.
pub(super) fn handshake(
    tls: &Tls,
    host: &str,
    address: &str,
    stream: TcpStream,
) -> Result<SslStream<TcpStream>, Error> {
    let context = context(tls)?;
    let failed =
        |error: ErrorStack| Error::retriable(WHAT, format!("TLS with {address} cannot begin: {}", cause(&error)));
    let mut session = Ssl::new(&context).map_err(failed)?;
    match host.parse::<IpAddr>() {
        // An address is no server name (RFC 6066), and is looked for among the certificate's addresses.
        Ok(ip) => session.param_mut().set_ip(ip),
        Err(_) => session
            .set_hostname(host)
            .and_then(|()| session.param_mut().set_host(host)),
    }
    .map_err(failed)?;
    session.connect(stream).map_err(|error| match error {
        HandshakeError::SetupFailure(error) => failed(error),
        HandshakeError::WouldBlock(_) => Error::retriable(
            WHAT,
            format!("{address} does not answer the TLS handshake: its listener may be one without TLS, or is too busy"),
        ),
        HandshakeError::Failure(middle) => Error::retriable(
            WHAT,
            refused(address, host, middle.ssl().verify_result(), middle.error()),
        ),
    })
}

fn context(tls: &Tls) -> Result<SslContext, Error> {
    let unusable = |name: &'static str, file: &Path, why: &str| {
        Error::Config(format!("tls.{name}: {} cannot be used: {why}", file.display()))
    };
    let broken = |error: ErrorStack| Error::Config(format!("tls: {}", cause(&error)));
    let mut context = SslContext::builder(SslMethod::tls_client()).map_err(broken)?;
    context.set_verify(SslVerifyMode::PEER);
    // One read for several records of TLS.
    context.set_read_ahead(true);
    if let Some(authorities) = tls.authorities() {
        let loaded = match authorities.is_dir() {
            true => context.load_verify_locations(None, Some(&authorities)),
            false => context.load_verify_locations(Some(&authorities), None),
        };
        loaded.map_err(|error| unusable("ca_file", &authorities, &cause(&error)))?;
    }
    if let (Some(certificate), Some(key_file)) = (&tls.certificate_file, &tls.key_file) {
        context
            .set_certificate_chain_file(certificate)
            .map_err(|error| unusable("certificate_file", certificate, &cause(&error)))?;
        let pem = fs::read(key_file).map_err(|error| unusable("key_file", key_file, &error.to_string()))?;
        // Without a password an empty one: OpenSSL would ask at the terminal.
        let password = tls.key_password.as_ref().map_or("", |password| &password.0);
        let key = PKey::private_key_from_pem_passphrase(&pem, password.as_bytes()).map_err(|error| {
            let why = format!(
                "{} (if it is encrypted, is tls.key_password its password?)",
                cause(&error)
            );
            unusable("key_file", key_file, &why)
        })?;
        context
            .set_private_key(&key)
            .and_then(|()| context.check_private_key())
            .map_err(|error| {
                let why = format!("it is not the key of {}: {}", certificate.display(), cause(&error));
                unusable("key_file", key_file, &why)
            })?;
    }
    Ok(context.build())
}

/// X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL.
const OTHER_NAME: [i32; 2] = [62, 64];
/// X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
const OTHER_TIME: [i32; 2] = [9, 10];

fn refused(address: &str, host: &str, verified: X509VerifyResult, error: &ssl::Error) -> String {
    if verified != X509VerifyResult::OK {
        let why = verified.error_string();
        return match verified.as_raw() {
            code if OTHER_NAME.contains(&code) => format!(
                "the certificate of {address} is not for {host} ({why}): call the broker as its certificate does, or let the \
                 certificate name {host}"
            ),
            code if OTHER_TIME.contains(&code) => {
                format!("the certificate of {address} is not valid now ({why}): renew it, or set the clock right")
            }
            _ => format!(
                "the certificate of {address} is not trusted ({why}): set tls.ca_file to the certificate of who signed it"
            ),
        };
    }
    match error.ssl_error() {
        Some(stack) if !is_end(stack) => {
            let cause = cause(stack);
            match ALIEN.iter().any(|alien| cause.contains(alien)) {
                true => format!("{address} does not speak TLS: use the port of a TLS listener, or leave out tls"),
                false => ended(address, &cause),
            }
        }
        _ => format!(
            "{address} closed the connection in the TLS handshake: its listener may be one without TLS; use the port of a TLS \
             listener, or leave out tls"
        ),
    }
}

/// What OpenSSL says of bytes that are not TLS.
const ALIEN: [&str; 3] = ["wrong version number", "packet length too long", "record layer failure"];

/// Why TLS was broken off by the other end, if that is what `error` of a read or write says.
pub(super) fn broken_off(address: &str, error: &io::Error) -> Option<Error> {
    let stack = error.get_ref()?.downcast_ref::<ssl::Error>()?.ssl_error()?;
    (!is_end(stack)).then(|| Error::retriable(WHAT, ended(address, &cause(stack))))
}

/// Whether the socket ended, which OpenSSL says in its own way, too.
fn is_end(stack: &ErrorStack) -> bool {
    stack.errors().iter().any(|error| {
        error.library() == Some("system library")
            || error.reason().is_some_and(|reason| reason.contains("unexpected eof"))
    })
}

fn ended(address: &str, cause: &str) -> String {
    format!(
        "{address} refuses TLS ({cause}): where it demands a client's certificate, set tls.certificate_file and tls.key_file to \
         one that it trusts"
    )
}

/// The first error of OpenSSL's, in a few words.
fn cause(stack: &ErrorStack) -> String {
    match stack.errors().first() {
        Some(error) => error.reason().unwrap_or("unknown error").to_owned(),
        None => "unknown error".to_owned(),
    }
}
