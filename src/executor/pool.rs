//! Threads that carry jobs out: in order per key, side by side across keys, never more than so many at once.
//!
//! Knows nothing of commands. The owner submits while [`Pool::room`] says that it may, and collects what finished; a job that
//! was not begun can be taken back.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Does one job. What it returns is handed back by [`Pool::finished`].
pub trait Work<J, R>: Send + Sync + 'static {
    fn work(&self, job: J) -> R;
}

impl<J, R, F: Fn(J) -> R + Send + Sync + 'static> Work<J, R> for F {
    fn work(&self, job: J) -> R {
        self(job)
    }
}

/// Jobs of type `J` under keys `K`, with results `R`.
pub struct Pool<K, J, R> {
    shared: Arc<Shared<K, J, R>>,
    threads: Vec<JoinHandle<()>>,
    jobs_max: usize,
}

struct Shared<K, J, R> {
    state: Mutex<State<K, J, R>>,
    changed: Condvar,
}

struct State<K, J, R> {
    /// Waiting jobs by key. A key is here while it has jobs waiting or one running.
    queues: HashMap<K, VecDeque<J>>,
    /// Keys with a job waiting and none running, oldest first.
    ready: VecDeque<K>,
    waiting: usize,
    running: usize,
    finished: Vec<R>,
    died: bool,
    ending: bool,
}

impl<K: Clone + Eq + Hash + Send + 'static, J: Send + 'static, R: Send + 'static> Pool<K, J, R> {
    pub fn new(threads: usize, jobs_max: usize, work: impl Work<J, R>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queues: HashMap::new(),
                ready: VecDeque::new(),
                waiting: 0,
                running: 0,
                finished: Vec::new(),
                died: false,
                ending: false,
            }),
            changed: Condvar::new(),
        });
        let work = Arc::new(work);
        let threads = (0..threads.max(1))
            .map(|_| {
                let (shared, work) = (Arc::clone(&shared), Arc::clone(&work));
                thread::spawn(move || shared.run(work.as_ref()))
            })
            .collect();
        Self {
            shared,
            threads,
            jobs_max,
        }
    }

    /// How many more jobs may be submitted.
    pub fn room(&self) -> usize {
        let state = self.shared.lock();
        self.jobs_max.saturating_sub(state.waiting + state.running)
    }

    pub fn submit(&self, key: K, job: J) {
        let mut state = self.shared.lock();
        state.waiting += 1;
        match state.queues.get_mut(&key) {
            Some(queue) => queue.push_back(job),
            None => {
                state.queues.insert(key.clone(), VecDeque::from([job]));
                state.ready.push_back(key);
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Takes back every job that was not begun.
    pub fn withdraw(&self) -> Vec<J> {
        let mut state = self.shared.lock();
        let ready: Vec<K> = state.ready.drain(..).collect();
        let mut jobs = Vec::new();
        for queue in state.queues.values_mut() {
            jobs.extend(queue.drain(..));
        }
        for key in ready {
            state.queues.remove(&key);
        }
        state.waiting = 0;
        jobs
    }

    /// What finished since the last call; `None` once a worker has died.
    pub fn finished(&self) -> Option<Vec<R>> {
        let mut state = self.shared.lock();
        (!state.died).then(|| std::mem::take(&mut state.finished))
    }

    /// Waits until nothing waits or runs, or the time is over. Whether all is done.
    pub fn settle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        while state.waiting + state.running > 0 && !state.died {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .0;
        }
        !state.died
    }
}

impl<K, J, R> Drop for Pool<K, J, R> {
    /// Running jobs are left to themselves: the process is about to end. Idle threads are waited for.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ending = true;
        let idle = state.running == 0;
        drop(state);
        self.shared.changed.notify_all();
        if idle {
            for thread in self.threads.drain(..) {
                // One that panicked has been told of already.
                let _ = thread.join();
            }
        }
    }
}

impl<K, J, R> Shared<K, J, R> {
    fn lock(&self) -> MutexGuard<'_, State<K, J, R>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<K: Clone + Eq + Hash, J, R> Shared<K, J, R> {
    fn run(&self, work: &(impl Work<J, R> + ?Sized)) {
        while let Some((key, job)) = self.next() {
            let watch = DeathWatch(self);
            let result = work.work(job);
            std::mem::forget(watch);
            self.done(&key, result);
        }
    }

    fn next(&self) -> Option<(K, J)> {
        let mut state = self.lock();
        loop {
            if state.ending {
                return None;
            }
            if let Some(key) = state.ready.pop_front() {
                let job = state.queues.get_mut(&key).and_then(VecDeque::pop_front);
                if let Some(job) = job {
                    state.waiting -= 1;
                    state.running += 1;
                    return Some((key, job));
                }
                state.queues.remove(&key);
                continue;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn done(&self, key: &K, result: R) {
        let mut state = self.lock();
        state.running -= 1;
        state.finished.push(result);
        if state.queues.get(key).is_some_and(|queue| !queue.is_empty()) {
            state.ready.push_back(key.clone());
        } else {
            state.queues.remove(key);
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// Tells the owner when a job panicked: its offset would otherwise never be committed, and nobody would know why.
struct DeathWatch<'a, K, J, R>(&'a Shared<K, J, R>);

impl<K, J, R> Drop for DeathWatch<'_, K, J, R> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.running -= 1;
        state.died = true;
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
