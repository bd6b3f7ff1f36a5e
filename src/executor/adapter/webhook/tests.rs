use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use super::*;
use crate::command::tests::{action, command};

/// Answers one status after the other; 0 closes the connection without an answer. Keeps the requests.
pub(in crate::adapter) fn receiver(statuses: &'static [u16]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&requests);
    thread::spawn(move || {
        for status in statuses {
            let (stream, _) = listener.accept().unwrap();
            kept.lock().unwrap().push(read_request(&stream));
            if *status > 0 {
                let _ = write!(
                    &stream,
                    "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
            }
        }
    });
    (url, requests)
}

fn read_request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        text.push_str(&line);
        if line == "\r\n" {
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            return text + &String::from_utf8(body).unwrap();
        }
    }
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint {
        name: "pager".into(),
        url: url.into(),
        headers: BTreeMap::from([("x-team".into(), "shop".into())]),
        header_env: BTreeMap::new(),
        timeout_ms: 2_000,
        connect_timeout_ms: 500,
        idempotent: true,
        ca_file: None,
    }
}

/// A command that may start for `start_ms` from now.
pub(in crate::adapter) fn pending(start_ms: i64) -> Command {
    let mut action = action("cart", 1);
    action.timing.start_deadline = crate::clock::now_ms() + start_ms;
    command(action, 1)
}

#[test]
fn posts_the_command_under_its_id() {
    let (url, requests) = receiver(&[202]);
    let command = pending(5_000);
    let effect = WebhookAdapter::new(&endpoint(&url))
        .unwrap()
        .act(&command, &Before::new())
        .unwrap();
    assert_eq!(effect["status"], 202);
    let request = requests.lock().unwrap()[0].clone();
    let head = request.to_ascii_lowercase();
    assert!(request.starts_with("POST /hook HTTP/1.1"));
    assert!(head.contains(&format!("idempotency-key: {}\r\n", command.id())));
    assert!(head.contains("x-team: shop\r\n") && head.contains("traceparent: 00-"));
    assert!(request.ends_with(std::str::from_utf8(&command.data).unwrap()));
}

#[test]
fn asks_again_under_the_same_key_until_it_knows() {
    let (url, requests) = receiver(&[503, 0, 429, 200]);
    let effect = WebhookAdapter::new(&endpoint(&url))
        .unwrap()
        .act(&pending(20_000), &Before::new())
        .unwrap();
    assert_eq!(effect["requests"], 4);
    let requests = requests.lock().unwrap();
    let key = |request: &str| {
        let line = request
            .lines()
            .find(|line| line.to_ascii_lowercase().starts_with("idempotency-key"));
        line.unwrap().to_owned()
    };
    assert!(requests.iter().all(|request| key(request) == key(&requests[0])));
}

#[test]
fn a_refusal_is_a_failure_and_is_not_repeated() {
    let (url, requests) = receiver(&[404, 200]);
    let failure = WebhookAdapter::new(&endpoint(&url))
        .unwrap()
        .act(&pending(5_000), &Before::new())
        .unwrap_err();
    assert!(
        matches!(failure, Failure::Failed { retryable: false, .. }),
        "{failure:?}"
    );
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[test]
fn doubt_at_the_deadline_is_unknown() {
    let (url, _) = receiver(&[500, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500]);
    let failure = WebhookAdapter::new(&endpoint(&url))
        .unwrap()
        .act(&pending(300), &Before::new())
        .unwrap_err();
    assert!(matches!(failure, Failure::Unknown(_)), "{failure:?}");
}

#[test]
fn a_receiver_without_keys_is_asked_once_when_it_may_have_acted() {
    let (url, requests) = receiver(&[500, 200]);
    let plain = Endpoint {
        idempotent: false,
        ..endpoint(&url)
    };
    let adapter = WebhookAdapter::new(&plain).unwrap();
    assert!(matches!(
        adapter.reconcile(&pending(5_000), None),
        Reconciled::Unknown(_)
    ));
    assert!(matches!(
        adapter.act(&pending(5_000), &Before::new()).unwrap_err(),
        Failure::Unknown(_)
    ));
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[test]
fn nobody_there_is_no_effect() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = WebhookAdapter::new(&endpoint(&format!("http://{address}/")))
        .unwrap()
        .act(&pending(300), &Before::new())
        .unwrap_err();
    assert!(
        matches!(failure, Failure::Failed { retryable: true, .. }),
        "{failure:?}"
    );
}

#[test]
fn a_wrong_endpoint_is_refused_at_the_start() {
    for (change, expected) in [
        (
            Endpoint {
                url: "pager".into(),
                ..endpoint("x")
            },
            "url",
        ),
        (
            Endpoint {
                url: "ftp://x/".into(),
                ..endpoint("x")
            },
            "url",
        ),
        (
            Endpoint {
                header_env: BTreeMap::from([("authorization".into(), "HOMEOSTAT_TEST_UNSET".into())]),
                ..endpoint("http://x/")
            },
            "HOMEOSTAT_TEST_UNSET is not set",
        ),
        (
            Endpoint {
                ca_file: Some("/nowhere.pem".into()),
                ..endpoint("http://x/")
            },
            "/nowhere.pem",
        ),
        (
            Endpoint {
                headers: BTreeMap::from([("a b".into(), "c".into())]),
                ..endpoint("http://x/")
            },
            "a b",
        ),
    ] {
        let error = WebhookAdapter::new(&change).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains("pager"), "{error}");
    }
}

#[test]
fn backs_off_between_nothing_and_a_doubling_ceiling() {
    for attempt in 0..40 {
        let ceiling = backoff_ceiling_ms(attempt);
        assert!(ceiling <= 10_000);
        for random in [0, 1, 249, u64::MAX] {
            assert!(backoff(attempt, random).as_millis() <= u128::from(ceiling));
        }
    }
    assert_eq!(backoff(3, 1), Duration::from_millis(1));
}

fn backoff_ceiling_ms(attempt: u32) -> u64 {
    (250u64 << attempt.min(16)).min(10_000)
}
