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
    assert_eq!(adapter.reconcile(&first, None), Reconciled::NotDone);
    adapter.act(&first, &Before::new()).unwrap();
    assert!(matches!(adapter.reconcile(&first, None), Reconciled::Done(_)));
    assert_eq!(adapter.reconcile(&second, None), Reconciled::NotDone);

    adapter.act(&second, &Before::new()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for cut in 1..=5 {
        std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        assert_eq!(adapter.reconcile(&second, None), Reconciled::NotDone);
    }
    adapter.act(&second, &Before::new()).unwrap();
    assert!(matches!(adapter.reconcile(&second, None), Reconciled::Done(_)));
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
    adapter.act(&command, &Before::new()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    assert!(matches!(adapter.reconcile(&command, None), Reconciled::Done(_)));
}
