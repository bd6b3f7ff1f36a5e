use std::process::{Command, Stdio};

use super::*;

fn sleeper() -> std::process::Child {
    Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap()
}

#[test]
fn reads_the_start_time_behind_any_name() {
    let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8412 100 200";
    assert_eq!(parse_stat(stat), Some(8412));
    assert_eq!(parse_stat(&stat.replace(") S", ") Z")), None);
    for cut in 0..stat.len() {
        let _ = parse_stat(&stat[..cut]);
    }
}

#[test]
fn a_pid_given_to_another_process_is_not_the_same_process() {
    let mut child = sleeper();
    let started = start_time_ticks(child.id()).unwrap().unwrap();
    assert!(Process::open(child.id(), started + 1).unwrap().is_none());
    let process = Process::open(child.id(), started).unwrap().unwrap();
    assert!(!process.ended_within(Duration::from_millis(1)).unwrap());
    process.terminate().unwrap();
    assert!(process.ended_within(Duration::from_secs(10)).unwrap());
    // A zombie: still listed, and gone all the same.
    assert_eq!(start_time_ticks(child.id()).unwrap(), None);
    assert!(Process::open(child.id(), started).unwrap().is_none());
    child.wait().unwrap();
    assert!(Process::open(child.id(), started).unwrap().is_none());
    process.kill().unwrap();
}

#[test]
fn pids_that_cannot_be() {
    for pid in [0, u32::MAX] {
        assert!(Process::open(pid, 1).unwrap().is_none());
    }
}
