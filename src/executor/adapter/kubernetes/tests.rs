use super::*;
use crate::command::tests::{action, command};

fn config(text: &str) -> Result<Config, String> {
    let config: Config = serde_json::from_str(text).map_err(|error| error.to_string())?;
    config.check().map_err(|error| error.to_string())?;
    Ok(config)
}

fn adapter(targets: &str) -> KubernetesAdapter {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
         clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {token: t}}]\n",
    )
    .unwrap();
    let mut config = config(&format!("{{\"poll_ms\": 10, \"target\": {targets}}}")).unwrap();
    config.kubeconfig = Some(kubeconfig);
    KubernetesAdapter::new(&config).unwrap()
}

fn asked(service: &str, kind: &str, params: Value) -> Command {
    let mut action = action(service, 1);
    action.action.kind = kind.into();
    action.action.params = params.as_object().unwrap().clone();
    action.timing.exec_timeout_ms = 100;
    command(action, 1)
}

#[test]
fn a_wrong_configuration_is_refused() {
    for (text, expected) in [
        (r#"{"poll_ms": 0}"#, "kubernetes.poll_ms = 0"),
        (r#"{"timeout_ms": 9999999}"#, "10 to 600000"),
        (r#"{"namespace": "shop"}"#, "unknown field"),
        (
            r#"{"target": [{"service": "a", "kind": "cronjob"}]}"#,
            "unknown variant",
        ),
        (r#"{"target": [{"service": "", "kind": "node"}]}"#, "service is empty"),
        (
            r#"{"target": [{"service": "a", "kind": "deployment"}]}"#,
            "needs its namespace",
        ),
        (
            r#"{"target": [{"service": "a", "kind": "node", "namespace": "shop"}]}"#,
            "leave it out",
        ),
        (
            r#"{"target": [{"service": "a", "kind": "pod", "namespace": "../x"}]}"#,
            "no name of a namespace",
        ),
        (
            r#"{"target": [{"service": "a", "kind": "pod", "namespace": "x", "name": "A"}]}"#,
            "no name of an object",
        ),
        (
            r#"{"target": [{"service": "a", "kind": "deployment", "namespace": "x", "replicas_min": 3, "replicas_max": 2}]}"#,
            "no range",
        ),
        (
            r#"{"target": [{"service": "a", "kind": "daemonset", "namespace": "x", "replicas_max": 2}]}"#,
            "for deployments and stateful sets",
        ),
    ] {
        let error = config(text).unwrap_err();
        assert!(error.contains(expected), "{text}\n{error}");
    }
}

#[test]
fn a_kubeconfig_that_cannot_be_read_is_a_wrong_configuration() {
    let config = Config {
        kubeconfig: Some("/nowhere/kubeconfig".into()),
        ..Config::default()
    };
    let error = KubernetesAdapter::new(&config).err().unwrap();
    assert!(
        matches!(&error, Error::Config(text) if text.contains("/nowhere/kubeconfig")),
        "{error}"
    );
}

#[test]
fn commands_are_understood_or_refused_before_anything_is_claimed() {
    let adapter = adapter(
        r#"[{"service": "cart", "kind": "deployment", "namespace": "shop", "replicas_max": 5},
            {"service": "db", "kind": "statefulset", "namespace": "shop", "name": "postgres"},
            {"service": "cart-*", "kind": "pod", "namespace": "shop"},
            {"service": "*", "kind": "node"}]"#,
    );
    for (service, kind, params, expected) in [
        ("cart", "restart", json!({}), None),
        ("cart", "scale", json!({"replicas": 5}), None),
        ("cart", "scale", json!({"replicas": 6}), Some((403, "admits 1 to 5"))),
        ("cart", "scale", json!({"replicas": 0}), Some((403, "admits 1 to 5"))),
        ("cart", "scale", json!({}), Some((412, "needs the parameter"))),
        ("cart", "exec", json!({}), Some((404, "knows no action"))),
        ("db", "rollback", json!({}), Some((404, "of a kind with"))),
        ("db", "scale", json!({"replicas": 2}), Some((403, "no replicas_max"))),
        ("cart-1", "delete_pod", json!({}), None),
        ("node-1", "cordon", json!({}), None),
        (
            "../node-1",
            "cordon",
            json!({}),
            Some((404, "no name of a Kubernetes object")),
        ),
        ("payment", "restart", json!({}), Some((404, "of a kind with"))),
    ] {
        let knows = adapter.knows(&asked(service, kind, params.clone()));
        match expected {
            None => assert_eq!(knows, Ok(()), "{service} {kind}"),
            Some((code, part)) => {
                let refusal = knows.unwrap_err();
                assert!(
                    refusal.code == code && refusal.reason.contains(part),
                    "{service} {kind} {params} {refusal:?}"
                );
            }
        }
    }
    let job = adapter.job(&asked("db", "restart", json!({}))).unwrap();
    assert_eq!(job.object.label, "statefulset shop/postgres");
}

#[test]
fn nobody_there_is_no_effect_and_after_an_intent_it_is_doubt() {
    let adapter = adapter(r#"[{"service": "cart", "kind": "deployment", "namespace": "shop"}]"#);
    let command = asked("cart", "restart", json!({}));
    let failure = adapter.observe(&command).unwrap_err();
    assert!(
        matches!(failure, Failure::Failed { retryable: true, .. }),
        "{failure:?}"
    );
    let before = Before::new();
    assert!(matches!(
        adapter.reconcile(&command, Some(&before)),
        Reconciled::Unknown(_)
    ));
    let failure = adapter.act(&command, &before).unwrap_err();
    assert!(
        matches!(failure, Failure::Failed { retryable: true, .. }),
        "{failure:?}"
    );
}
