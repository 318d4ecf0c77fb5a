//! When faults may show in the traffic.
#![forbid(unsafe_code)]

use std::sync::Mutex;
use std::time::Instant;

/// The times from the beginning of a fault until everything has recovered from it.
#[derive(Default)]
pub(crate) struct Windows(Mutex<Vec<Window>>);

struct Window {
    from: Instant,
    /// None as long as it is open.
    until: Option<Instant>,
    unreachable: bool,
}

impl Windows {
    /// Before a fault begins, of which some hosts may be told that others are `unreachable`.
    pub(crate) fn open(&self, unreachable: bool) {
        self.0.lock().unwrap().push(Window { from: Instant::now(), until: None, unreachable });
    }

    /// Once everything has recovered from it.
    pub(crate) fn close(&self) {
        if let Some(window) = self.0.lock().unwrap().last_mut() {
            window.until = Some(Instant::now());
        }
    }

    /// Whether a fault may have harmed what was under way between those two.
    pub(crate) fn explain(&self, from: Instant, until: Instant) -> bool {
        self.any(from, until, |_| true)
    }

    /// Whether somebody may have been told then that a host is unreachable.
    pub(crate) fn explain_unreachable(&self, from: Instant, until: Instant) -> bool {
        self.any(from, until, |window| window.unreachable)
    }

    fn any(&self, from: Instant, until: Instant, which: impl Fn(&Window) -> bool) -> bool {
        let before = |window: &Window| window.until.is_some_and(|end| end < from);
        let windows = self.0.lock().unwrap();
        windows.iter().any(|window| which(window) && window.from <= until && !before(window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_touches_a_fault_is_explained_by_it() {
        let windows = Windows::default();
        let before = Instant::now();
        assert!(!windows.explain(before, Instant::now()));
        windows.open(false);
        let during = Instant::now();
        assert!(windows.explain(before, during));
        assert!(windows.explain(during, Instant::now()));
        assert!(!windows.explain_unreachable(during, Instant::now()));
        windows.close();
        while Instant::now() <= windows.0.lock().unwrap()[0].until.unwrap() {}
        let after = Instant::now();
        assert!(windows.explain(during, after));
        assert!(!windows.explain(after, Instant::now()));
        assert!(!windows.explain(before, before));
    }
}
