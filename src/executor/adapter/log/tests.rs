use super::*;
use crate::command::tests::{action, command};

#[test]
fn a_line_is_the_marker_and_a_torn_one_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("commands.jsonl");
    let adapter = LogAdapter::new(&Config {
        file: Some(path.clone()),
    });
    let (first, second) = (command(action("cart", 1), 1), command(action("cart", 2), 2));
    assert_eq!(adapter.reconcile(&first), Reconciled::NotDone);
    adapter.act(&first).unwrap();
    assert!(matches!(adapter.reconcile(&first), Reconciled::Done(_)));
    assert_eq!(adapter.reconcile(&second), Reconciled::NotDone);

    adapter.act(&second).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for cut in 1..=5 {
        std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        assert_eq!(adapter.reconcile(&second), Reconciled::NotDone);
    }
    adapter.act(&second).unwrap();
    assert!(matches!(adapter.reconcile(&second), Reconciled::Done(_)));
    let text = std::fs::read_to_string(&path).unwrap();
    let whole_lines = text.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok());
    assert_eq!(whole_lines.count(), 2);
}

#[test]
fn a_command_over_several_lines_is_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("commands.jsonl");
    let adapter = LogAdapter::new(&Config {
        file: Some(path.clone()),
    });
    let mut command = command(action("cart", 1), 1);
    command.data = serde_json::to_vec_pretty(&command.action).unwrap();
    adapter.act(&command).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    assert!(matches!(adapter.reconcile(&command), Reconciled::Done(_)));
}
