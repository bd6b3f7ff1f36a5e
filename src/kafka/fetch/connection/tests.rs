//! A broker of the test's own at the other end of a real socket, with and without TLS.

use std::{
    fs,
    net::{Shutdown, TcpListener},
    path::PathBuf,
    thread::{self, JoinHandle},
};

use openssl::{
    asn1::Asn1Time,
    base64::{decode_block, encode_block},
    bn::BigNum,
    ec::{EcGroup, EcKey},
    hash::{MessageDigest, hash},
    nid::Nid,
    pkcs5,
    pkey::{PKey, Private},
    sign::Signer,
    ssl::{HandshakeError, SslAcceptor, SslMethod, SslVerifyMode},
    symm::Cipher,
    x509::{
        X509, X509Builder, X509NameBuilder,
        extension::{BasicConstraints, SubjectAlternativeName},
        store::X509StoreBuilder,
    },
};
use tempfile::TempDir;

use super::*;
use crate::{Class, Mechanism, Sasl, Secret, Tls, fetch::wire::Reader};

const TIMEOUT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(200);

/// Serves one connection as `talk` does; returns where, and the thread.
fn broker<T: Send + 'static>(talk: impl FnOnce(TcpStream) -> T + Send + 'static) -> (String, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        // A test that fails must not hang.
        limit(&socket, TIMEOUT).unwrap();
        talk(socket)
    });
    (address, serving)
}

/// A request as a broker reads it.
#[derive(Debug, PartialEq)]
struct Request {
    api_key: i16,
    api_version: i16,
    correlation: i32,
    client_id: String,
    body: Vec<u8>,
}

/// `None` when the client has closed the connection.
fn request(stream: &mut impl Read) -> Option<Request> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut frame = vec![0; i32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    let mut reader = Reader::new(&frame);
    Some(Request {
        api_key: reader.i16("").unwrap(),
        api_version: reader.i16("").unwrap(),
        correlation: reader.i32("").unwrap(),
        client_id: reader.string("").unwrap().unwrap().to_owned(),
        body: frame[reader.position()..].to_vec(),
    })
}

fn answer(stream: &mut impl Write, correlation: i32, body: &[u8]) {
    let mut frame = Body::default();
    frame.count(body.len() + 4).i32(correlation);
    frame.0.extend_from_slice(body);
    stream.write_all(&frame.0).unwrap();
}

fn open(config: &KafkaConfig, address: &str) -> Result<Connection, Error> {
    Connection::open(config, "tester", address, TIMEOUT)
}

fn plain(address: &str) -> Connection {
    open(&KafkaConfig::new(address), address).unwrap()
}

/// Its text, after making sure that it is one that is tried again.
#[track_caller]
fn told<T>(outcome: Result<T, Error>) -> String {
    let error = outcome.err().expect("an error");
    assert_eq!(error.class(), Class::Retriable, "{error}");
    error.to_string()
}

#[track_caller]
fn assert_told<T>(outcome: Result<T, Error>, parts: &[&str]) {
    let text = told(outcome);
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

/// Echoes bodies until the client goes.
fn echo(mut stream: impl Read + Write) {
    while let Some(request) = request(&mut stream) {
        answer(&mut stream, request.correlation, &request.body);
    }
}

#[test]
fn requests_are_answered_in_order_into_a_buffer_that_only_grows() {
    let (address, serving) = broker(|mut socket| {
        let requests: Vec<Request> = (0..3).map(|_| request(&mut socket).unwrap()).collect();
        for request in &requests {
            answer(&mut socket, request.correlation, &request.body);
        }
        requests
    });
    let mut connection = plain(&address);
    let bodies: [&[u8]; 3] = [&[7; 100_000], b"", b"short"];
    let mut sent = Vec::new();
    for (version, body) in bodies.iter().enumerate() {
        sent.push(connection.send(1, version as i16, &Body(body.to_vec())).unwrap());
    }
    let mut buffer = Vec::new();
    for (body, correlation) in bodies.iter().zip(&sent) {
        let length = connection.receive(&mut buffer).unwrap();
        assert_eq!(buffer[..4], correlation.to_be_bytes());
        assert_eq!(&buffer[4..length], *body);
        assert_eq!(buffer.len(), 100_004);
    }
    let requests = serving.join().unwrap();
    for (index, request) in requests.into_iter().enumerate() {
        let expected = Request {
            api_key: 1,
            api_version: index as i16,
            correlation: sent[index],
            client_id: "tester".into(),
            body: bodies[index].to_vec(),
        };
        assert_eq!(request, expected);
    }
    assert_told(connection.receive(&mut buffer), &["no request", "is waiting"]);
}

#[test]
fn what_is_no_answer_is_refused_without_memory_for_it() {
    let huge = (FRAME_BYTES_MAX as i32 + 1).to_be_bytes();
    let cases: [(&[u8], &str); 9] = [
        (&[0, 0, 0, 4, 0, 0, 0, 9], "request 9 where 0 is due"),
        (&[0, 0, 0, 3, 0, 0, 0, 0], "a frame of 3 bytes"),
        (&[0xff, 0xff, 0xff, 0xff], "a frame of -1 bytes"),
        (&huge, "a frame of 268435457 bytes"),
        (b"HTTP/1.1 400", "a frame of 1213486160 bytes"),
        (&[21, 3, 3, 0, 2, 2, 70], "speaks TLS: set tls"),
        (&[0, 0], "closed the connection"),
        (&[0, 0, 0, 8, 0, 0, 0, 0, 1], "closed the connection"),
        (&[], "may demand TLS or SASL"),
    ];
    for (bytes, reason) in cases {
        let bytes = bytes.to_vec();
        let (address, serving) = broker(move |mut socket| {
            request(&mut socket).unwrap();
            socket.write_all(&bytes).unwrap();
        });
        let mut connection = plain(&address);
        connection.send(3, 1, &Body::default()).unwrap();
        let mut buffer = Vec::new();
        assert_told(connection.receive(&mut buffer), &[&address, reason]);
        assert!(buffer.len() <= 8);
        serving.join().unwrap();
    }
}

#[test]
fn a_broker_that_closes_later_is_not_said_to_demand_anything() {
    let (address, serving) = broker(|mut socket| {
        let first = request(&mut socket).unwrap();
        answer(&mut socket, first.correlation, b"");
        request(&mut socket).unwrap();
    });
    let mut connection = plain(&address);
    let mut buffer = Vec::new();
    connection.send(3, 1, &Body::default()).unwrap();
    connection.receive(&mut buffer).unwrap();
    connection.send(3, 1, &Body::default()).unwrap();
    let text = told(connection.receive(&mut buffer));
    assert!(text.ends_with("closed the connection"), "{text}");
    serving.join().unwrap();
}

#[test]
fn silence_ends_in_an_error() {
    let (address, serving) = broker(|mut socket| request(&mut socket).is_some() && request(&mut socket).is_none());
    let mut connection = plain(&address);
    connection.wait_at_most(SHORT).unwrap();
    connection.send(3, 1, &Body::default()).unwrap();
    assert_told(
        connection.receive(&mut Vec::new()),
        &[&address, "does not answer", "200 ms"],
    );
    drop(connection);
    assert!(serving.join().unwrap());
}

#[test]
fn opening_takes_no_longer_than_it_may() {
    let sasl = with_sasl(Mechanism::Plain, "secret");
    let tls = KafkaConfig {
        tls: Some(Tls::default()),
        ..KafkaConfig::default()
    };
    for config in [sasl, tls] {
        let (address, serving) = broker(|mut socket| {
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).unwrap();
        });
        let began = Instant::now();
        let outcome = Connection::open(&config, "tester", &address, SHORT);
        assert_told(outcome, &[&address, "does not answer"]);
        assert!(began.elapsed() < TIMEOUT / 2);
        serving.join().unwrap();
    }
}

#[test]
fn another_thread_breaks_a_wait() {
    let (address, serving) = broker(|mut socket| {
        request(&mut socket).unwrap();
        request(&mut socket).is_none()
    });
    let mut connection = plain(&address);
    connection.send(1, 11, &Body::default()).unwrap();
    let breaker = connection.breaker().unwrap();
    let breaking = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        breaker.shutdown(Shutdown::Both).unwrap();
    });
    let began = Instant::now();
    assert_told(connection.receive(&mut Vec::new()), &["closed"]);
    assert!(began.elapsed() < TIMEOUT / 2);
    breaking.join().unwrap();
    assert!(serving.join().unwrap());
}

#[test]
fn nobody_at_the_address_is_told() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    assert_told(open(&KafkaConfig::default(), &free), &[&free, "cannot be reached"]);
}

/// `localhost` may have an IPv6 address first, where nobody listens.
#[test]
fn addresses_of_a_name_are_tried_in_turn() {
    let (address, serving) = broker(echo);
    let port = address.rsplit_once(':').unwrap().1;
    let connection = plain(&format!("localhost:{port}"));
    drop(connection);
    serving.join().unwrap();
}

#[test]
fn addresses_are_taken_as_librdkafka_takes_them() {
    let taken = [
        ("a.b:1", ("a.b", 1)),
        ("a.b", ("a.b", 9092)),
        ("SASL_SSL://a:65535", ("a", 65535)),
        ("10.0.0.1:2", ("10.0.0.1", 2)),
        ("[::1]:3", ("::1", 3)),
        ("[::1]", ("::1", 9092)),
        ("::1", ("::1", 9092)),
        ("fe80::1:4", ("fe80::1", 4)),
    ];
    for (address, expected) in taken {
        assert_eq!(host_and_port(address).unwrap(), expected, "{address}");
    }
    for address in ["", ":1", "a:", "a:b", "a:65536", "[]:1"] {
        let error = host_and_port(address).unwrap_err();
        assert_eq!(error.class(), Class::Stop, "{address}: {error}");
    }
}

fn with_sasl(mechanism: Mechanism, password: &str) -> KafkaConfig {
    let sasl = Sasl {
        mechanism,
        username: "us=er,1".into(),
        password: Secret(password.into()),
    };
    KafkaConfig {
        sasl: Some(sasl),
        ..KafkaConfig::default()
    }
}

/// What a broker with one user does of SASL, and how it may go wrong.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    Honest,
    /// Does not know the password, and says that all is well.
    Impostor,
    /// Has other mechanisms.
    Other,
    /// Has none.
    Open,
    /// Sends half an answer.
    Cut,
}

fn handshake(stream: &mut (impl Read + Write), server: Server) -> Option<String> {
    let request = request(stream)?;
    assert_eq!((request.api_key, request.api_version), (17, 1));
    let mechanism = Reader::new(&request.body).string("").unwrap().unwrap().to_owned();
    let mut body = Body::default();
    match server {
        Server::Other => body.i16(33).count(2).string("GSSAPI").string("OAUTHBEARER"),
        Server::Open => body.i16(34).count(0),
        Server::Cut => body.i16(0).count(2).string("PLAIN"),
        _ => body.i16(0).count(1).string(&mechanism),
    };
    answer(stream, request.correlation, &body.0);
    Some(mechanism)
}

/// Reads a message; `then` answers, or fails with what the broker says.
fn authenticate(stream: &mut (impl Read + Write), then: impl FnOnce(&[u8]) -> Result<Vec<u8>, String>) -> Option<()> {
    let request = request(stream)?;
    assert_eq!((request.api_key, request.api_version), (36, 0));
    let mut body = Body::default();
    match then(Reader::new(&request.body).bytes("").unwrap().unwrap()) {
        Ok(message) => body.i16(0).i16(-1).bytes(&message),
        Err(reason) => body.i16(58).string(&reason).bytes(b""),
    };
    answer(stream, request.correlation, &body.0);
    Some(())
}

fn hmac(digest: MessageDigest, key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = PKey::hmac(key).unwrap();
    Signer::new(digest, &key).unwrap().sign_oneshot_to_vec(message).unwrap()
}

/// A broker whose user is `us=er,1` with password `secret`; then echoes.
fn serve(mut stream: impl Read + Write, server: Server) -> Option<()> {
    let digest = match handshake(&mut stream, server)?.as_str() {
        "PLAIN" => {
            authenticate(&mut stream, |message| match message {
                b"\0us=er,1\0secret" => Ok(Vec::new()),
                _ => Err("Invalid username or password".into()),
            })?;
            echo(stream);
            return Some(());
        }
        "SCRAM-SHA-256" => MessageDigest::sha256(),
        _ => MessageDigest::sha512(),
    };
    let mut first = String::new();
    let mut challenge = String::new();
    authenticate(&mut stream, |message| {
        let message = String::from_utf8(message.to_vec()).unwrap();
        first = message.strip_prefix("n,,").unwrap().to_owned();
        let nonce = first.strip_prefix("n=us=3Der=2C1,r=").unwrap();
        challenge = format!("r={nonce}server,s={},i=4096", encode_block(b"salt"));
        Ok(challenge.clone().into_bytes())
    })?;
    authenticate(&mut stream, |message| {
        let message = str::from_utf8(message).unwrap();
        let (without_proof, proof) = message.split_once(",p=").unwrap();
        let mut salted = vec![0; digest.size()];
        pkcs5::pbkdf2_hmac(b"secret", b"salt", 4096, digest, &mut salted).unwrap();
        let stored = hash(digest, &hmac(digest, &salted, b"Client Key")).unwrap();
        let all = format!("{first},{challenge},{without_proof}");
        // The proof, less the signature, is the key that what is stored is the hash of.
        let signature = hmac(digest, &stored, all.as_bytes());
        let proof = decode_block(proof).unwrap();
        let key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        if server == Server::Impostor {
            return Ok(format!("v={}", encode_block(&signature)).into_bytes());
        }
        if *hash(digest, &key).unwrap() != *stored {
            return Err("invalid credentials".into());
        }
        let server_key = hmac(digest, &salted, b"Server Key");
        Ok(format!("v={}", encode_block(&hmac(digest, &server_key, all.as_bytes()))).into_bytes())
    })?;
    echo(stream);
    Some(())
}

const MECHANISMS: [Mechanism; 3] = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];

fn against(server: Server, mechanism: Mechanism, password: &str) -> Result<Connection, Error> {
    let (address, serving) = broker(move |socket| serve(socket, server));
    let mut outcome = open(&with_sasl(mechanism, password), &address);
    if let Ok(connection) = &mut outcome {
        let body = Body(b"hello".to_vec());
        let echoed = connection.ask(3, 1, &body, Instant::now() + TIMEOUT).unwrap();
        assert_eq!(echoed, b"hello");
        connection.stream.socket().shutdown(Shutdown::Both).unwrap();
    }
    serving.join().unwrap();
    outcome
}

#[test]
fn every_mechanism_lets_who_knows_the_password_in_and_nobody_else() {
    for mechanism in MECHANISMS {
        against(Server::Honest, mechanism, "secret").unwrap();
        let text = told(against(Server::Honest, mechanism, "guess"));
        for part in ["127.0.0.1:", "us=er,1", mechanism.name(), "sasl.password"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("guess"), "{text}");
    }
}

#[test]
fn a_broker_that_does_not_know_the_password_is_refused() {
    for mechanism in [Mechanism::ScramSha256, Mechanism::ScramSha512] {
        assert_told(
            against(Server::Impostor, mechanism, "secret"),
            &["127.0.0.1:", "cannot show"],
        );
    }
}

#[test]
fn a_broker_with_other_mechanisms_says_which() {
    for mechanism in MECHANISMS {
        let parts = [mechanism.name(), "GSSAPI, OAUTHBEARER", "sasl.mechanism"];
        assert_told(against(Server::Other, mechanism, "secret"), &parts);
        assert_told(
            against(Server::Open, mechanism, "secret"),
            &["takes no SASL", "leave out sasl"],
        );
        assert_told(against(Server::Cut, mechanism, "secret"), &["mechanism is cut short"]);
    }
}

/// A key, and a certificate for it that is signed by itself or by `issuer`.
struct Identity {
    key: PKey<Private>,
    certificate: X509,
}

impl Identity {
    fn new(name: &str, issuer: Option<&Identity>, days: (i64, i64)) -> Self {
        const DAY: i64 = 86_400;
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let mut subject = X509NameBuilder::new().unwrap();
        subject.append_entry_by_text("CN", name).unwrap();
        let subject = subject.build();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs() as i64;
        let at = |day: i64| Asn1Time::from_unix(now + day * DAY).unwrap();
        let mut builder = X509Builder::new().unwrap();
        builder.set_version(2).unwrap();
        let serial = BigNum::from_u32(name.len() as u32).unwrap().to_asn1_integer().unwrap();
        builder.set_serial_number(&serial).unwrap();
        builder.set_subject_name(&subject).unwrap();
        builder
            .set_issuer_name(issuer.map_or(&subject, |issuer| issuer.certificate.subject_name()))
            .unwrap();
        builder.set_not_before(&at(days.0)).unwrap();
        builder.set_not_after(&at(days.1)).unwrap();
        builder.set_pubkey(&key).unwrap();
        let mut constraints = BasicConstraints::new();
        constraints.critical();
        match issuer {
            None => builder.append_extension(constraints.ca().build().unwrap()).unwrap(),
            Some(_) => {
                let mut names = SubjectAlternativeName::new();
                match name.parse::<IpAddr>() {
                    Ok(_) => names.ip(name),
                    Err(_) => names.dns(name),
                };
                let names = names.build(&builder.x509v3_context(None, None)).unwrap();
                builder.append_extension(names).unwrap();
            }
        }
        builder
            .sign(issuer.map_or(&key, |issuer| &issuer.key), MessageDigest::sha256())
            .unwrap();
        let certificate = builder.build();
        Self { key, certificate }
    }

    fn pem(&self, folder: &TempDir, name: &str) -> PathBuf {
        let file = folder.path().join(format!("{name}.pem"));
        fs::write(&file, self.certificate.to_pem().unwrap()).unwrap();
        file
    }

    fn key_pem(&self, folder: &TempDir, password: Option<&str>) -> PathBuf {
        let file = folder.path().join("key.pem");
        let pem = match password {
            None => self.key.private_key_to_pem_pkcs8(),
            Some(password) => self
                .key
                .private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), password.as_bytes()),
        };
        fs::write(&file, pem.unwrap()).unwrap();
        file
    }
}

const VALID: (i64, i64) = (-1, 1);

/// TLS at `identity`'s end; `demands` clients' certificates that it signed.
fn tls_broker(identity: Identity, demands: Option<X509>) -> (String, JoinHandle<bool>) {
    broker(move |socket| {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_private_key(&identity.key).unwrap();
        acceptor.set_certificate(&identity.certificate).unwrap();
        let demanding = demands.is_some();
        if let Some(authority) = demands {
            let mut store = X509StoreBuilder::new().unwrap();
            store.add_cert(authority).unwrap();
            acceptor.set_cert_store(store.build());
            acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
        }
        match acceptor.build().accept(socket) {
            Ok(session) => serve(session, Server::Honest).is_some(),
            Err(HandshakeError::Failure(mut middle)) if demanding => {
                // Until the client has read why: what is unread when a socket closes may take that with it.
                let _ = middle.get_mut().read_to_end(&mut Vec::new());
                false
            }
            Err(_) => false,
        }
    })
}

fn trusting(ca_file: PathBuf) -> KafkaConfig {
    let mut config = with_sasl(Mechanism::ScramSha512, "secret");
    config.tls = Some(Tls {
        ca_file: Some(ca_file),
        ..Tls::default()
    });
    config
}

#[test]
fn tls_reaches_a_broker_that_is_who_it_should_be_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Identity::new("authority", None, VALID);
    let stranger = Identity::new("stranger", None, VALID);
    let trusted = trusting(authority.pem(&folder, "authority"));
    let mistaken = trusting(stranger.pem(&folder, "stranger"));
    let at_ip = || Identity::new("127.0.0.1", Some(&authority), VALID);

    let (address, serving) = tls_broker(at_ip(), None);
    let mut connection = open(&trusted, &address).unwrap();
    // More than a record of TLS, more than a buffer of the socket.
    let body = Body((0..3_000_000_u32).map(|index| index as u8).collect());
    let deadline = Instant::now() + TIMEOUT;
    let reading = connection.breaker().unwrap();
    assert!(connection.ask(3, 1, &body, deadline).unwrap() == body.0);
    reading.shutdown(Shutdown::Both).unwrap();
    assert!(serving.join().unwrap());

    let cases = [
        (at_ip(), &mistaken, ["not trusted", "tls.ca_file"]),
        (
            Identity::new("10.0.0.1", Some(&authority), VALID),
            &trusted,
            ["not for 127.0.0.1", "IP address mismatch"],
        ),
        (
            Identity::new("localhost", Some(&authority), VALID),
            &trusted,
            ["not for 127.0.0.1", "IP address mismatch"],
        ),
        (
            Identity::new("127.0.0.1", Some(&authority), (-2, -1)),
            &trusted,
            ["has expired", "renew it"],
        ),
    ];
    for (identity, config, parts) in cases {
        let (address, serving) = tls_broker(identity, None);
        assert_told(open(config, &address), &[&address, parts[0], parts[1]]);
        assert!(!serving.join().unwrap());
    }

    for (name, right) in [("localhost", true), ("elsewhere.example", false)] {
        let (address, serving) = tls_broker(Identity::new(name, Some(&authority), VALID), None);
        let outcome = open(&trusted, &address.replace("127.0.0.1", "localhost"));
        match right {
            true => drop(outcome.unwrap()),
            false => assert_told(outcome, &["not for localhost", "hostname mismatch"]),
        }
        assert_eq!(serving.join().unwrap(), right);
    }
}

#[test]
fn tls_and_plaintext_that_meet_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Identity::new("authority", None, VALID);
    let mut config = trusting(authority.pem(&folder, "authority"));
    // What a plaintext Kafka makes of it: a request of more bytes than it takes.
    let (address, serving) = broker(drop);
    assert_told(open(&config, &address), &[&address, "leave out tls"]);
    serving.join().unwrap();
    let (address, serving) = broker(|mut socket| socket.write_all(b"no TLS at all, but text").unwrap());
    assert_told(open(&config, &address), &[&address, "leave out tls"]);
    serving.join().unwrap();

    config.tls = None;
    let (address, serving) = tls_broker(Identity::new("127.0.0.1", Some(&authority), VALID), None);
    assert_told(open(&config, &address), &[&address, "set tls"]);
    assert!(!serving.join().unwrap());
}

#[test]
fn a_client_shows_its_certificate_where_one_is_demanded() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Identity::new("authority", None, VALID);
    let client = Identity::new("client", Some(&authority), VALID);
    let other = Identity::new("other", Some(&authority), VALID);
    let mut config = trusting(authority.pem(&folder, "authority"));
    let demanding = || {
        let identity = Identity::new("127.0.0.1", Some(&authority), VALID);
        tls_broker(identity, Some(authority.certificate.clone()))
    };
    let with = |config: &mut KafkaConfig, key: PathBuf, password: Option<&str>| {
        let tls = config.tls.as_mut().unwrap();
        tls.certificate_file = Some(client.pem(&folder, "client"));
        tls.key_file = Some(key);
        tls.key_password = password.map(|password| Secret(password.into()));
    };

    let (address, serving) = demanding();
    assert_told(
        open(&config, &address),
        &[&address, "certificate required", "tls.certificate_file"],
    );
    assert!(!serving.join().unwrap());

    for password in [None, Some("hunter2")] {
        with(&mut config, client.key_pem(&folder, password), password);
        let (address, serving) = demanding();
        drop(open(&config, &address).unwrap());
        assert!(serving.join().unwrap());
    }

    // No broker has to do with these.
    let refused = |config: &KafkaConfig, part: &str| {
        let (address, serving) = broker(drop);
        let error = open(config, &address).err().unwrap();
        assert_eq!(error.class(), Class::Stop, "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(!error.to_string().contains("hunter"), "{error}");
        serving.join().unwrap();
    };
    with(&mut config, client.key_pem(&folder, Some("hunter2")), Some("hunter3"));
    refused(&config, "tls.key_password");
    with(&mut config, client.key_pem(&folder, Some("hunter2")), None);
    refused(&config, "tls.key_password");
    with(&mut config, other.key_pem(&folder, None), None);
    refused(&config, "it is not the key of");
    with(&mut config, folder.path().join("absent"), None);
    refused(&config, "tls.key_file");
    config.tls.as_mut().unwrap().ca_file = Some(other.key_pem(&folder, None));
    refused(&config, "tls.ca_file");
}
