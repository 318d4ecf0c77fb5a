//! What is logged once, with bounded memory.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::hash::Hash;

/// More than this are not told apart any more: whoever can write the store could fill the log and
/// the memory with made-up names otherwise.
const MAX_REMEMBERED: usize = 64;

/// The longest part of an outside text that is logged, in characters.
const MAX_SHOWN_CHARS: usize = 128;

/// Is this the first time that something is seen?
#[derive(Debug)]
pub(crate) enum Seen {
    /// Yes: say it.
    First,
    /// Yes, but it is one too many: say that no more of these will be told.
    Last,
    /// It was said, or there were too many.
    Before,
}

/// Remembers what was said.
#[derive(Debug)]
pub(crate) struct Once<K> {
    said: HashSet<K>,
    closed: bool,
}

impl<K: Eq + Hash> Once<K> {
    pub(crate) fn new() -> Self {
        Self { said: HashSet::new(), closed: false }
    }

    pub(crate) fn see(&mut self, key: K) -> Seen {
        if self.said.contains(&key) || self.closed {
            return Seen::Before;
        }
        if self.said.len() >= MAX_REMEMBERED {
            self.closed = true;
            return Seen::Last;
        }
        self.said.insert(key);
        Seen::First
    }

    /// It is as it should be now: the next trouble with it is worth a word again.
    pub(crate) fn forget<Q>(&mut self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.said.remove(key);
        self.reopen();
    }

    /// Forgets what is not there any more.
    pub(crate) fn retain(&mut self, is_there: impl FnMut(&K) -> bool) {
        self.said.retain(is_there);
        self.reopen();
    }

    /// Once all that was said is forgotten, there is room again.
    fn reopen(&mut self) {
        self.closed &= !self.said.is_empty();
    }
}

/// Keys of the store that are no leases: each is logged once.
#[derive(Debug)]
pub(crate) struct Strays {
    once: Once<Vec<u8>>,
}

impl Strays {
    pub(crate) fn new() -> Self {
        Self { once: Once::new() }
    }

    /// Logs that the entry `key` of `store` is skipped because of `reason`, unless it was said.
    pub(crate) fn skip(&mut self, store: &str, key: &[u8], reason: &str) {
        match self.once.see(key.to_vec()) {
            Seen::First => tracing::warn!(
                "{store}: skipping {}: {}; delete it or repair it",
                shown(key),
                shown(reason.as_bytes())
            ),
            Seen::Last => {
                tracing::warn!(
                    "{store}: more than {MAX_REMEMBERED} entries are no leases; the others are skipped silently"
                );
            }
            Seen::Before => {}
        }
    }

    /// The entry is a lease, or gone.
    pub(crate) fn forget(&mut self, key: &[u8]) {
        self.once.forget(key);
    }

    /// Only these are still there, lease or not.
    pub(crate) fn retain(&mut self, mut is_there: impl FnMut(&[u8]) -> bool) {
        self.once.retain(|key| is_there(key));
    }
}

/// An outside text as it may stand in a log line: one line, no control characters, not too long.
pub(crate) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut out: String = text.chars().take(MAX_SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::logged::logged;

    #[test]
    fn memory_is_bounded_and_the_end_is_announced_once() {
        let mut once = Once::new();
        for i in 0..MAX_REMEMBERED {
            assert!(matches!(once.see(i), Seen::First));
            assert!(matches!(once.see(i), Seen::Before));
        }
        assert!(matches!(once.see(9999), Seen::Last));
        assert!(matches!(once.see(9998), Seen::Before));
        assert_eq!(once.said.len(), MAX_REMEMBERED);
    }

    #[test]
    fn what_was_repaired_is_told_again_when_it_breaks_again() {
        let mut once = Once::new();
        once.see("a".to_owned());
        once.forget("a");
        assert!(matches!(once.see("a".to_owned()), Seen::First));
    }

    #[test]
    fn once_all_are_gone_there_is_room_again() {
        for at_once in [true, false] {
            let mut once = Once::new();
            for i in 0..=MAX_REMEMBERED {
                once.see(i);
            }
            once.forget(&0);
            // Or each one that is repaired were a line of the next one.
            assert!(matches!(once.see(9999), Seen::Before));
            if at_once {
                once.retain(|_| false);
            } else {
                (0..=MAX_REMEMBERED).for_each(|i| once.forget(&i));
            }
            assert!(matches!(once.see(9999), Seen::First));
        }
    }

    #[test]
    fn a_stray_is_named_once_and_many_are_not_all_named() {
        let mut strays = Strays::new();
        let mut skip = |name: &str| strays.skip("etcd at http://a:1", name.as_bytes(), "no lease");
        let log = logged(|| (0..1000).for_each(|_| skip("/subnets/README")));
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("/subnets/README: no lease"), "{log}");
        let log = logged(|| (0..1000).for_each(|i| skip(&format!("/subnets/{i}"))));
        assert_eq!(log.lines().count(), MAX_REMEMBERED, "{log}");
    }

    #[test]
    fn outside_text_cannot_forge_log_lines() {
        assert_eq!(shown(b"a\nERROR b\x1b[31m"), "a\\nERROR b\\u{1b}[31m");
        assert!(shown(&[b'x'; 10_000]).chars().count() <= MAX_SHOWN_CHARS + 1);
    }
}
