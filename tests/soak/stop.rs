//! Telling all threads of a soak that it is over.
#![forbid(unsafe_code)]

use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// Set once, seen by all.
#[derive(Default)]
pub(crate) struct Stop {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Tells everybody.
    pub(crate) fn set(&self) {
        *self.set.lock().unwrap() = true;
        self.changed.notify_all();
    }

    /// Whether it is over.
    pub(crate) fn is_set(&self) -> bool {
        *self.set.lock().unwrap()
    }

    /// Waits so long, or until it is over; says whether it is.
    pub(crate) fn wait(&self, pause: Duration) -> bool {
        let set = self.set.lock().unwrap();
        *self.changed.wait_timeout_while(set, pause, |set| !*set).unwrap().0
    }

    /// Passes a flow's result on; a failure ends all others, too.
    pub(crate) fn heed<T>(&self, result: Result<T, String>) -> Result<T, String> {
        if result.is_err() {
            self.set();
        }
        result
    }
}

/// Tells everybody if the thread that holds it panics.
pub(crate) struct Alarm<'a>(pub(crate) &'a Stop);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set();
        }
    }
}
