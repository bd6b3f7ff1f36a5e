//! Keeps the end of what a program prints, however much that is.

use std::{
    io::{PipeReader, Read},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

/// A process that outlives the program may keep the pipe open: it is not waited for longer.
const REST_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Output {
    kept: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Output {
    /// Reads in a thread of its own: a program that may not write does not end.
    pub fn collect(mut reader: PipeReader, bytes_max: usize) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = mpsc::sync_channel(1);
        let keep = Arc::clone(&kept);
        thread::spawn(move || {
            let mut buffer = [0; 8_192];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                let mut kept = keep.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                kept.extend_from_slice(&buffer[..read]);
                let over = kept.len().saturating_sub(bytes_max);
                kept.drain(..over);
            }
            let _ = end.send(());
        });
        Self { kept, ended }
    }

    /// What was kept, as text.
    pub fn end(self) -> String {
        let _ = self.ended.recv_timeout(REST_TIMEOUT);
        let kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        String::from_utf8_lossy(&kept).into_owned()
    }
}
