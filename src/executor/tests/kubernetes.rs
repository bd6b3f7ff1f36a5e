//! The Kubernetes adapter against a real control plane: `make test-kubernetes`. What happened is asked of kubectl, not of
//! the adapter.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command as Spawn, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::Duration,
};

use common::{action, command, now_ms, wait_until};
use executor::{
    adapter::{
        Adapter, Before, Effect, Failure, Reconciled,
        kubernetes::{Config, KubernetesAdapter},
    },
    allow::AdapterKind,
    command::Command,
    crash::CrashPoint,
};
use protocol::message::{Action, OutcomeStatus};
use serde_json::{Value, json};

const RIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/kubernetes");
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/kubernetes");

/// One cluster for all tests of this program, ended with it; each test has a namespace of its own.
struct Cluster {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
}

static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
    let said = |program: &mut Spawn| {
        let output = program.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{program:?}");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    };
    // What a killed program left ends by itself.
    let directory = std::env::temp_dir().join(format!("homeostat-kubernetes-{}", std::process::id()));
    let kubectl = said(&mut Spawn::new(format!("{RIG}/build"))).join("kubectl");
    let owner = std::process::id().to_string();
    let kubeconfig = said(
        Spawn::new(format!("{RIG}/start"))
            .arg(directory)
            .args(["--owner", &owner]),
    );
    Cluster { kubeconfig, kubectl }
});

impl Cluster {
    fn limited(&self) -> PathBuf {
        self.kubeconfig.with_file_name("kubeconfig-limited")
    }
}

/// Standard output, or standard error where it failed.
fn kubectl_as(kubeconfig: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Spawn::new(&CLUSTER.kubectl)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// A namespace with a shop in it.
struct Shop {
    namespace: String,
    kubeconfig: PathBuf,
}

impl Shop {
    fn new(namespace: &str) -> Self {
        let shop = Self {
            namespace: namespace.into(),
            kubeconfig: CLUSTER.kubeconfig.clone(),
        };
        let created = kubectl_as(&shop.kubeconfig, &["create", "namespace", namespace], "");
        created.unwrap();
        shop
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let arguments = [&["--namespace", &self.namespace], arguments].concat();
        kubectl_as(&self.kubeconfig, &arguments, "").unwrap()
    }

    /// Creates a workload, as JSON over a plain one, and waits for its pods.
    fn create(&self, kind: &str, name: &str, more: Value) {
        let mut workload = json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "main", "image": "shop/main:1"}]},
                },
            },
        });
        if kind != "DaemonSet" {
            workload["spec"]["replicas"] = json!(3);
        }
        for (key, value) in more.as_object().unwrap() {
            workload["spec"][key] = value.clone();
        }
        let arguments = ["--namespace", &self.namespace, "create", "-f", "-"];
        // A namespace has its default account a moment later than itself; sets retry, so nothing waits for that here.
        kubectl_as(&self.kubeconfig, &arguments, &workload.to_string()).unwrap();
        self.kubectl(&["rollout", "status", kind, name, "--timeout", "60s"]);
    }

    fn get(&self, what: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[&["get", "--output", "json"], what].concat())).unwrap()
    }

    fn revision(&self, deployment: &str) -> i64 {
        let found = self.get(&["deployment", deployment]);
        let text = &found["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
        text.as_str().unwrap().parse().unwrap()
    }

    fn image(&self, deployment: &str) -> String {
        let found = self.get(&["deployment", deployment]);
        found["spec"]["template"]["spec"]["containers"][0]["image"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn adapter(&self) -> KubernetesAdapter {
        self.adapter_as(&self.kubeconfig)
    }

    fn adapter_as(&self, kubeconfig: &Path) -> KubernetesAdapter {
        KubernetesAdapter::new(&self.config(kubeconfig)).unwrap()
    }

    fn config(&self, kubeconfig: &Path) -> Config {
        let namespace = &self.namespace;
        serde_json::from_value(json!({
            "kubeconfig": kubeconfig,
            "poll_ms": 50,
            "timeout_ms": 5_000,
            "target": [
                {"service": "db-*", "kind": "pod", "namespace": namespace},
                {"service": "db", "kind": "statefulset", "namespace": namespace, "replicas_max": 4},
                {"service": "agent", "kind": "daemonset", "namespace": namespace},
                {"service": "node-*", "kind": "node"},
                {"service": "pod-*", "kind": "pod", "namespace": namespace},
                {"service": "*", "kind": "deployment", "namespace": namespace, "replicas_max": 5},
            ],
        }))
        .unwrap()
    }
}

/// Commands under ids of their own.
fn asked(service: &str, kind: &str, params: Value) -> Command {
    command(&requested(service, kind, params), 1)
}

fn requested(service: &str, kind: &str, params: Value) -> Action {
    static NEXT: AtomicI64 = AtomicI64::new(1);
    let mut action = action(service, u32::try_from(NEXT.fetch_add(1, Ordering::SeqCst)).unwrap());
    action.action.kind = kind.into();
    action.action.params = params.as_object().unwrap().clone();
    action.timing.exec_timeout_ms = 30_000;
    action.timing.start_deadline = now_ms() + 60_000;
    action
}

/// As the worker does it.
fn carry_out(adapter: &dyn Adapter, command: &Command) -> Result<Effect, Failure> {
    adapter.knows(command)?;
    assert_eq!(adapter.reconcile(command, None), Reconciled::NotDone);
    let before = adapter.observe(command)?;
    adapter.act(command, &before)
}

fn refused(outcome: Result<Effect, Failure>, code: u16, part: &str) {
    match outcome {
        Err(Failure::Failed {
            code: found, reason, ..
        }) if found == code && reason.contains(part) => {}
        other => panic!("not {code} with {part:?}: {other:?}"),
    }
}

#[test]
#[ignore = "make test-kubernetes"]
fn a_restart_happens_once_per_action() {
    let shop = Shop::new("restart");
    shop.create("Deployment", "cart", json!({}));
    let adapter = shop.adapter();
    let command = asked("cart", "restart", json!({"reason": "slow"}));
    let effect = carry_out(&adapter, &command).unwrap();
    assert_eq!(
        (shop.revision("cart"), &effect["revision"]),
        (2, &json!(2)),
        "{effect:?}"
    );
    assert_eq!(effect["marker"], command.id().to_string());
    let cart = shop.get(&["deployment", "cart"]);
    assert_eq!(cart["status"]["updatedReplicas"], 3);

    // The same action again, with and without a memory of it, by an executor that knows nothing else.
    let successor = shop.adapter();
    let before = Before::from_iter([("generation".to_owned(), json!(1))]);
    assert!(matches!(successor.reconcile(&command, None), Reconciled::Done(_)));
    assert!(matches!(
        successor.reconcile(&command, Some(&before)),
        Reconciled::Done(_)
    ));
    successor.act(&command, &before).unwrap();
    assert_eq!(shop.revision("cart"), 2);

    carry_out(&adapter, &asked("cart", "restart", json!({}))).unwrap();
    assert_eq!(shop.revision("cart"), 3);
}

#[test]
#[ignore = "make test-kubernetes"]
fn stateful_sets_and_daemon_sets_restart_too() {
    let shop = Shop::new("sets");
    shop.create("StatefulSet", "db", json!({"serviceName": "db", "replicas": 2}));
    shop.create("DaemonSet", "agent", json!({}));
    let adapter = shop.adapter();
    for (kind, name) in [("statefulset", "db"), ("daemonset", "agent")] {
        let uids = || {
            let pods = shop.get(&["pods", "--selector", &format!("app={name}")]);
            let uids = pods["items"].as_array().unwrap().iter();
            uids.map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let before = uids();
        let command = asked(name, "restart", json!({}));
        carry_out(&adapter, &command).unwrap();
        let after = uids();
        assert!(before.len() == 2 && after.len() == 2, "{kind}: {before:?} {after:?}");
        assert!(
            after.iter().all(|uid| !before.contains(uid)),
            "{kind}: {before:?} {after:?}"
        );
        assert!(matches!(adapter.reconcile(&command, None), Reconciled::Done(_)));
    }
    shop.kubectl(&[
        "patch",
        "statefulset",
        "db",
        "--patch",
        r#"{"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null}}}"#,
    ]);
    refused(carry_out(&adapter, &asked("db", "restart", json!({}))), 409, "OnDelete");
}

#[test]
#[ignore = "make test-kubernetes"]
fn scales_to_a_number_within_bounds_and_not_against_others() {
    let shop = Shop::new("scale");
    shop.create("Deployment", "cart", json!({}));
    let adapter = shop.adapter();
    let replicas = || shop.get(&["deployment", "cart"])["status"]["availableReplicas"].clone();
    let effect = carry_out(&adapter, &asked("cart", "scale", json!({"replicas": 4}))).unwrap();
    assert_eq!((replicas(), &effect["replicas"]), (json!(4), &json!(4)));

    // One more is a number as soon as it was looked at: again is no second one.
    let command = asked("cart", "scale_up", json!({}));
    let before = adapter.observe(&command).unwrap();
    assert_eq!(before["to_replicas"], 5);
    adapter.act(&command, &before).unwrap();
    adapter.act(&command, &before).unwrap();
    assert_eq!(replicas(), 5);
    refused(
        carry_out(&adapter, &asked("cart", "scale_up", json!({}))),
        409,
        "6 replicas are out of bounds",
    );
    refused(
        carry_out(&adapter, &asked("cart", "scale", json!({"replicas": 6}))),
        403,
        "admits 1 to 5",
    );

    // Somebody scales between the look and the action.
    let command = asked("cart", "scale", json!({"replicas": 5}));
    let before = adapter.observe(&command).unwrap();
    shop.kubectl(&["scale", "deployment", "cart", "--replicas", "2"]);
    refused(adapter.act(&command, &before), 409, "changed by somebody else");
    assert_eq!(adapter.reconcile(&command, Some(&before)), Reconciled::NotDone);
    assert_eq!(shop.get(&["deployment", "cart"])["spec"]["replicas"], 2);

    // And somebody replaces it altogether.
    let before = adapter.observe(&command).unwrap();
    shop.kubectl(&["delete", "deployment", "cart"]);
    refused(adapter.act(&command, &before), 404, "does not exist");
    shop.create("Deployment", "cart", json!({}));
    refused(adapter.act(&command, &before), 409, "replaced by another");
}

#[test]
#[ignore = "make test-kubernetes"]
fn a_stalled_rollout_is_told_and_rolled_back_to_a_revision() {
    let shop = Shop::new("rollback");
    shop.create("Deployment", "cart", json!({"progressDeadlineSeconds": 2}));
    let adapter = shop.adapter();
    shop.kubectl(&["set", "image", "deployment/cart", "main=shop/main:2"]);
    shop.kubectl(&["rollout", "status", "deployment", "cart", "--timeout", "30s"]);
    shop.kubectl(&["set", "image", "deployment/cart", "main=shop/main:broken"]);
    let command = asked("cart", "restart", json!({}));
    refused(carry_out(&adapter, &command), 500, "stalled");
    assert!(matches!(adapter.reconcile(&command, None), Reconciled::Failed(_)));

    // The restart was revision 4, of the broken image as well; a person names the one that worked.
    refused(
        carry_out(&adapter, &asked("cart", "rollback", json!({"revision": 9}))),
        409,
        "there are 1, 2, 3, 4",
    );
    let stale = asked("cart", "rollback", json!({"revision": 2, "from_revision": 3}));
    refused(carry_out(&adapter, &stale), 409, "revision 4 runs, not 3");
    let command = asked("cart", "rollback", json!({"revision": 2, "from_revision": 4}));
    let before = adapter.observe(&command).unwrap();
    let effect = adapter.act(&command, &before).unwrap();
    assert_eq!(
        (shop.image("cart"), effect["before"]["to_revision"].clone()),
        ("shop/main:2".into(), json!(2))
    );
    assert_eq!(shop.revision("cart"), 5);
    adapter.act(&command, &before).unwrap();
    assert_eq!(shop.revision("cart"), 5);
    let template = &shop.get(&["deployment", "cart"])["spec"]["template"];
    assert_eq!(
        template["metadata"]["annotations"],
        Value::Null,
        "the restart's marker went with its revision"
    );

    // Without a revision the newest older one is meant.
    shop.kubectl(&["set", "image", "deployment/cart", "main=shop/main:3"]);
    shop.kubectl(&["rollout", "status", "deployment", "cart", "--timeout", "30s"]);
    carry_out(&adapter, &asked("cart", "rollback", json!({}))).unwrap();
    assert_eq!(shop.image("cart"), "shop/main:2");

    shop.kubectl(&["rollout", "pause", "deployment", "cart"]);
    refused(
        carry_out(&adapter, &asked("cart", "rollback", json!({}))),
        409,
        "paused",
    );
    refused(carry_out(&adapter, &asked("cart", "restart", json!({}))), 409, "paused");
}

#[test]
#[ignore = "make test-kubernetes"]
fn a_rollout_that_takes_too_long_is_doubt() {
    let shop = Shop::new("slow");
    shop.create("Deployment", "cart", json!({}));
    shop.kubectl(&["set", "image", "deployment/cart", "main=shop/main:broken"]);
    let mut action = requested("cart", "restart", json!({}));
    action.timing.exec_timeout_ms = 1_000;
    let failure = carry_out(&shop.adapter(), &command(&action, 1)).unwrap_err();
    assert!(
        matches!(&failure, Failure::Unknown(reason) if reason.contains("not finished in time")),
        "{failure:?}"
    );
}

#[test]
#[ignore = "make test-kubernetes"]
fn a_pod_is_deleted_under_the_uid_that_was_seen() {
    let shop = Shop::new("pods");
    shop.create("StatefulSet", "db", json!({"serviceName": "db", "replicas": 2}));
    let adapter = shop.adapter();
    let uid = || {
        shop.get(&["pod", "db-1"])["metadata"]["uid"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let ready = || {
        wait_until("the pod", || {
            shop.kubectl(&["get", "pods", "--output", "name"]).contains("pod/db-1")
        });
        shop.kubectl(&["wait", "pod", "db-1", "--for", "condition=Ready", "--timeout", "30s"]);
    };
    let first = uid();
    let command = asked("db-1", "delete_pod", json!({}));
    let before = adapter.observe(&command).unwrap();
    assert_eq!(adapter.reconcile(&command, Some(&before)), Reconciled::NotDone);
    adapter.act(&command, &before).unwrap();
    ready();
    let second = uid();
    assert_ne!(first, second);

    // Its successor has the same name and is left alone, whoever asks.
    assert!(matches!(
        adapter.reconcile(&command, Some(&before)),
        Reconciled::Done(_)
    ));
    refused(adapter.act(&command, &before), 409, "replaced");
    assert_eq!(uid(), second);

    shop.kubectl(&["run", "pod-1", "--image", "shop/main:1"]);
    refused(
        carry_out(&adapter, &asked("pod-1", "delete_pod", json!({}))),
        409,
        "no controller",
    );
    refused(
        carry_out(&adapter, &asked("pod-2", "delete_pod", json!({}))),
        404,
        "does not exist",
    );
}

#[test]
#[ignore = "make test-kubernetes"]
fn a_node_is_cordoned_and_opened_again() {
    let shop = Shop::new("nodes");
    let adapter = shop.adapter();
    let cordoned = || shop.get(&["node", "node-2"])["spec"]["unschedulable"] == Value::Bool(true);
    let command = asked("node-2", "cordon", json!({}));
    carry_out(&adapter, &command).unwrap();
    assert!(cordoned() && matches!(adapter.reconcile(&command, None), Reconciled::Done(_)));
    carry_out(&adapter, &asked("node-2", "uncordon", json!({}))).unwrap();
    assert!(!cordoned());
    refused(
        carry_out(&adapter, &asked("node-9", "cordon", json!({}))),
        404,
        "node node-9 does not exist",
    );
}

/// Carries bytes to the API server; cuts the connection when the request that is `lost` away has been delivered, so that
/// its answer never comes.
struct Proxy {
    kubeconfig: tempfile::NamedTempFile,
    lost: Arc<AtomicI64>,
}

impl Proxy {
    fn new() -> Self {
        let text = std::fs::read_to_string(&CLUSTER.kubeconfig).unwrap();
        let server = text
            .split("https://")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let own = listener.local_addr().unwrap().to_string();
        kubeconfig.write_all(text.replace(&server, &own).as_bytes()).unwrap();
        let lost = Arc::new(AtomicI64::new(i64::MAX));
        let counter = Arc::clone(&lost);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let counter = Arc::clone(&counter);
                thread::spawn(move || Self::carry(&client, &server, &counter));
            }
        });
        Self { kubeconfig, lost }
    }

    fn carry(client: &TcpStream, server: &TcpStream, lost: &AtomicI64) {
        let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let cut = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        thread::spawn(move || {
            let (mut from, mut to) = back;
            let mut buffer = [0; 65_536];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                if is_cut.load(Ordering::SeqCst) || to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
        });
        let (mut from, mut to) = (client, server);
        let mut buffer = [0; 65_536];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let last = lost.fetch_sub(1, Ordering::SeqCst) == 1;
            cut.store(last, Ordering::SeqCst);
            if to.write_all(&buffer[..read]).is_err() || last {
                break;
            }
        }
        // Long enough for the server to have done what it was asked.
        thread::sleep(Duration::from_millis(300));
        let _ = (
            client.shutdown(std::net::Shutdown::Both),
            server.shutdown(std::net::Shutdown::Both),
        );
    }
}

#[test]
#[ignore = "make test-kubernetes"]
fn invariant_13_a_lost_answer_is_settled_by_looking() {
    let shop = Shop::new("lost");
    shop.create("Deployment", "cart", json!({"replicas": 1}));
    shop.create("StatefulSet", "db", json!({"serviceName": "db", "replicas": 1}));
    let proxy = Proxy::new();
    let adapter = shop.adapter_as(proxy.kubeconfig.path());
    let mut cut = 0;
    for request in 1..=5 {
        let command = asked("cart", "restart", json!({}));
        let before = adapter.observe(&command).unwrap();
        proxy.lost.store(request, Ordering::SeqCst);
        adapter.act(&command, &before).unwrap();
        cut += usize::from(proxy.lost.swap(i64::MAX, Ordering::SeqCst) <= 0);
        assert_eq!(shop.revision("cart"), request + 1, "cut at request {request}");

        let uid = || shop.get(&["pod", "db-0"])["metadata"]["uid"].clone();
        let command = asked("db-0", "delete_pod", json!({}));
        let before = adapter.observe(&command).unwrap();
        proxy.lost.store(request, Ordering::SeqCst);
        adapter.act(&command, &before).unwrap();
        proxy.lost.store(i64::MAX, Ordering::SeqCst);
        shop.kubectl(&["rollout", "status", "statefulset", "db", "--timeout", "30s"]);
        let after = uid();
        assert_ne!(after, before["uid"]);
        thread::sleep(Duration::from_millis(200));
        assert_eq!(uid(), after, "cut at request {request}: deleted once");
    }
    assert!(cut >= 4, "{cut} of 5 answers were lost");
}

/// Killed at every named point, the executor that is started next ends with one restart and one final word.
#[test]
#[ignore = "make test-kubernetes"]
fn invariant_13_one_restart_through_a_kill_at_every_point() {
    let shop = Shop::new("killed");
    shop.create("Deployment", "cart", json!({}));
    let mut revision = 1;
    for point in [
        CrashPoint::AfterClaim,
        CrashPoint::AfterIntent,
        CrashPoint::AfterAct,
        CrashPoint::BeforeOutcome,
    ] {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| std::fs::write(directory.path().join(name), value.to_string()).unwrap();
        write("action.json", json!(requested("cart", "restart", json!({}))));
        write("config.json", json!(shop.config(&shop.kubeconfig)));
        assert!(
            !common::child(directory.path(), Some(point)).success(),
            "{point:?} was not reached"
        );
        assert!(common::child(directory.path(), None).success(), "{point:?}");
        assert!(common::child(directory.path(), None).success(), "{point:?}");
        revision += 1;
        assert_eq!(shop.revision("cart"), revision, "{point:?}");
        let outcomes = common::outcomes(directory.path());
        let last: Vec<_> = outcomes.iter().filter(|outcome| outcome.status.terminal()).collect();
        assert!(
            last.len() >= 2 && last.iter().all(|outcome| *outcome == last[0]),
            "{point:?}: {last:?}"
        );
        assert_eq!(last[0].status, OutcomeStatus::Succeeded, "{point:?}: {last:?}");
    }
}

#[test]
fn child_process() {
    let Some(directory) = std::env::var_os("EXECUTOR_TEST_DIRECTORY").map(PathBuf::from) else {
        return;
    };
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let action: Action = serde_json::from_slice(&read("action.json")).unwrap();
    let adapter = KubernetesAdapter::new(&serde_json::from_slice(&read("config.json")).unwrap()).unwrap();
    let worker = common::worker(
        &directory,
        AdapterKind::Kubernetes,
        Box::new(adapter),
        &action.action.kind,
    );
    worker.carry_out(&command(&action, 1)).unwrap();
}

/// The shipped manifests, bound to the limited user, for the namespace of the test.
fn grant(shop: &Shop) {
    let _ = kubectl_as(&shop.kubeconfig, &["create", "namespace", "homeostat"], "");
    for file in ["rbac.yaml", "rbac-nodes.yaml"] {
        let text = std::fs::read_to_string(format!("{MANIFESTS}/{file}")).unwrap();
        let text = text.replace("namespace: shop", &format!("namespace: {}", shop.namespace));
        kubectl_as(&shop.kubeconfig, &["apply", "-f", "-"], &text).unwrap();
    }
    shop.kubectl(&[
        "create",
        "rolebinding",
        "limited",
        "--role",
        "homeostat-executor",
        "--user",
        "homeostat",
    ]);
    let cluster_role = "homeostat-executor-nodes";
    shop.kubectl(&[
        "create",
        "clusterrolebinding",
        "limited",
        "--clusterrole",
        cluster_role,
        "--user",
        "homeostat",
    ]);
}

/// Every action once, and what it needs of the objects.
fn every_action(shop: &Shop, adapter: &dyn Adapter) -> Vec<(&'static str, Result<Effect, Failure>)> {
    shop.kubectl(&["set", "env", "deployment/cart", &format!("AT={}", now_ms())]);
    for workload in ["deployment/cart", "statefulset/db"] {
        shop.kubectl(&["rollout", "status", workload, "--timeout", "30s"]);
    }
    [
        ("cart", "scale_up", json!({})),
        ("cart", "scale", json!({"replicas": 1})),
        ("cart", "restart", json!({})),
        ("cart", "rollback", json!({})),
        ("db", "restart", json!({})),
        ("agent", "restart", json!({})),
        ("db-0", "delete_pod", json!({})),
        ("node-1", "cordon", json!({})),
        ("node-1", "uncordon", json!({})),
    ]
    .into_iter()
    .map(|(service, kind, params)| (kind, carry_out_blindly(adapter, &asked(service, kind, params))))
    .collect()
}

fn carry_out_blindly(adapter: &dyn Adapter, command: &Command) -> Result<Effect, Failure> {
    let before = adapter.observe(command)?;
    adapter.act(command, &before)
}

#[test]
#[ignore = "make test-kubernetes"]
fn the_shipped_role_is_enough_and_nothing_in_it_is_too_much() {
    let shop = Shop::new("rights");
    shop.create("Deployment", "cart", json!({"replicas": 1}));
    shop.create("StatefulSet", "db", json!({"serviceName": "db", "replicas": 1}));
    shop.create("DaemonSet", "agent", json!({}));
    let adapter = shop.adapter_as(&CLUSTER.limited());
    refused(
        carry_out_blindly(&adapter, &asked("cart", "restart", json!({}))),
        403,
        "may not get it; see deploy/kubernetes",
    );

    grant(&shop);
    let role = |kind: &str| match kind {
        "role" => shop.get(&["role", "homeostat-executor"]),
        _ => shop.get(&["clusterrole", "homeostat-executor-nodes"]),
    };
    wait_until("the grants", || {
        may(&shop, &["patch", "nodes"]) && may(&shop, &["delete", "pods"])
    });
    for (kind, outcome) in every_action(&shop, &adapter) {
        assert!(outcome.is_ok(), "{kind}: {outcome:?}");
    }

    for kind in ["role", "clusterrole"] {
        let whole = role(kind);
        for (rule, granted) in whole["rules"].as_array().unwrap().iter().enumerate() {
            for (at, verb) in granted["verbs"].as_array().unwrap().iter().enumerate() {
                let mut less = whole.clone();
                less["rules"][rule]["verbs"].as_array_mut().unwrap().remove(at);
                if less["rules"][rule]["verbs"] == json!([]) {
                    less["rules"].as_array_mut().unwrap().remove(rule);
                }
                let asked = [verb.as_str().unwrap(), granted["resources"][0].as_str().unwrap()];
                replace(&shop, &less);
                wait_until("the right to go", || !may(&shop, &asked));
                let outcomes = every_action(&shop, &adapter);
                let missed = outcomes.iter().any(|(_, outcome)| {
                    matches!(outcome, Err(Failure::Failed { code: 403, reason, .. }) if reason.contains(asked[0]))
                });
                assert!(missed, "nothing needs {asked:?}: {outcomes:?}");
                replace(&shop, &whole);
                wait_until("the right to come back", || may(&shop, &asked));
            }
        }
    }

    for refused in [
        ["get", "secrets"],
        ["create", "pods"],
        ["create", "pods/exec"],
        ["patch", "pods"],
        ["delete", "deployments"],
        ["update", "deployments"],
        ["patch", "replicasets"],
        ["delete", "nodes"],
        ["patch", "roles"],
        ["impersonate", "users"],
    ] {
        assert!(!may(&shop, &refused), "{refused:?}");
    }
    let elsewhere = ["--namespace", "default", "auth", "can-i", "patch", "deployments"];
    assert!(kubectl_as(&CLUSTER.limited(), &elsewhere, "").is_err());
}

fn may(shop: &Shop, what: &[&str]) -> bool {
    let arguments = [&["--namespace", &shop.namespace, "auth", "can-i"], what].concat();
    kubectl_as(&CLUSTER.limited(), &arguments, "").is_ok()
}

fn replace(shop: &Shop, object: &Value) {
    let mut object = object.clone();
    object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    kubectl_as(&shop.kubeconfig, &["replace", "-f", "-"], &object.to_string()).unwrap();
}
