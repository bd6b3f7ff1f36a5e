use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const LONG: Duration = Duration::from_secs(10);

#[test]
fn jobs_of_one_key_run_in_order_and_of_many_keys_side_by_side() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let pool = Pool::new(4, 100, |job: (u32, u32)| {
        let running = RUNNING.fetch_add(1, Ordering::SeqCst) + 1;
        MOST.fetch_max(running, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(5));
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        job
    });
    for number in 0..10 {
        for key in 0..5 {
            pool.submit(key, (key, number));
        }
    }
    assert!(pool.settle(LONG));
    let finished = pool.finished().unwrap();
    assert_eq!(finished.len(), 50);
    for key in 0..5 {
        let numbers: Vec<u32> = finished.iter().filter(|job| job.0 == key).map(|job| job.1).collect();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    }
    assert!((2..=4).contains(&MOST.load(Ordering::SeqCst)));
}

#[test]
fn room_counts_what_waits_and_what_runs_and_withdrawn_jobs_never_run() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let wait = Arc::clone(&gate);
    let pool = Pool::new(1, 3, move |job: u32| {
        drop(wait.lock());
        job
    });
    assert_eq!(pool.room(), 3);
    pool.submit("a", 1);
    pool.submit("a", 2);
    pool.submit("b", 3);
    assert_eq!(pool.room(), 0);
    while pool.shared.lock().running == 0 {
        thread::yield_now();
    }
    assert_eq!(pool.withdraw().len(), 2);
    assert_eq!(pool.room(), 2);
    assert!(!pool.settle(Duration::from_millis(5)));
    drop(closed);
    assert!(pool.settle(LONG));
    pool.submit("a", 4);
    pool.submit("b", 5);
    assert!(pool.settle(LONG));
    let mut finished = pool.finished().unwrap();
    finished.sort_unstable();
    assert_eq!(finished, [1, 4, 5]);
}

#[test]
fn a_job_that_panics_is_told() {
    let pool = Pool::new(1, 3, |_: u32| -> u32 { panic!("on purpose") });
    pool.submit("a", 1);
    assert!(!pool.settle(LONG));
    assert!(pool.finished().is_none());
}
