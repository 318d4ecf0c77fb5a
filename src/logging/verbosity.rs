//! What is logged: `-v` for all of our files, `--vmodule` for more from some of them.

use std::str::FromStr;

use regex::Regex;
use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::place::file_name;

/// What is logged. Other crates (h2, tonic, hyper…) only ever log warnings and errors: what they
/// say below that holds secrets such as etcd's tokens.
#[derive(Clone, Debug, Default)]
pub struct Verbosity {
    /// `-v`: up to 0 the normal log, 1 to 4 also debug events, from 5 on also trace events.
    pub everywhere: i32,
    /// `--vmodule`: more than that from some files.
    pub modules: Modules,
}

/// `--vmodule`: klog's `PATTERN=LEVEL,…`. The first pattern that matches a file's name, without
/// folder and `.rs`, says how verbose it is.
#[derive(Clone, Debug, Default)]
pub struct Modules(Vec<(Regex, i32)>);

/// A text that is no list of patterns and levels.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidModules {
    /// An item without its two halves, or with a level that is no number.
    #[error("PATTERN=LEVEL, with commas between several, such as daemon=2,keep*=5")]
    Syntax,
    /// As klog.
    #[error("levels from 0")]
    Negative,
    /// A bracket or a backslash without its end. klog lets such a pattern never match.
    #[error("patterns of *, ?, [a-z], [^a-z], \\ and letters")]
    Pattern,
}

impl FromStr for Modules {
    type Err = InvalidModules;

    fn from_str(text: &str) -> Result<Self, InvalidModules> {
        let mut modules = Vec::new();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (pattern, level) = item.split_once('=').ok_or(InvalidModules::Syntax)?;
            let level: i32 = level.parse().map_err(|_| InvalidModules::Syntax)?;
            if pattern.is_empty() {
                return Err(InvalidModules::Syntax);
            }
            if level < 0 {
                return Err(InvalidModules::Negative);
            }
            let pattern = translate(pattern).ok_or(InvalidModules::Pattern)?;
            modules.push((Regex::new(&pattern).map_err(|_| InvalidModules::Pattern)?, level));
        }
        Ok(Self(modules))
    }
}

impl Modules {
    fn level(&self, file: &str) -> Option<i32> {
        let module = file.strip_suffix(".rs").unwrap_or(file);
        self.0.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, level)| *level)
    }
}

/// A pattern of Go's `filepath.Match`, for names without slashes, as a regular expression; `None`
/// if it is malformed.
fn translate(pattern: &str) -> Option<String> {
    let mut regex = String::from(r"\A");
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '\\' => regex.push_str(&escaped(chars.next()?)),
            '[' => {
                regex.push('[');
                regex.extend(chars.next_if_eq(&'^'));
                // One range at least, before a closing bracket counts.
                loop {
                    regex.push_str(&member(&mut chars)?);
                    if chars.next_if_eq(&'-').is_some() {
                        regex.push('-');
                        regex.push_str(&member(&mut chars)?);
                    }
                    if chars.next_if_eq(&']').is_some() {
                        break;
                    }
                }
                regex.push(']');
            }
            c => regex.push_str(&escaped(c)),
        }
    }
    regex.push_str(r"\z");
    Some(regex)
}

/// One character of a class.
fn member(chars: &mut impl Iterator<Item = char>) -> Option<String> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next().map(escaped),
        c => Some(escaped(c)),
    }
}

fn escaped(c: char) -> String {
    regex::escape(c.encode_utf8(&mut [0; 4]))
}

impl Verbosity {
    fn of(&self, metadata: &Metadata<'_>) -> LevelFilter {
        let ours = env!("CARGO_CRATE_NAME");
        let module = metadata.target().split("::").next();
        if module != Some(ours) {
            return LevelFilter::WARN;
        }
        let more = file_name(metadata).and_then(|file| self.modules.level(file));
        level(more.map_or(self.everywhere, |more| more.max(self.everywhere)))
    }

    fn most(&self) -> LevelFilter {
        let most = self.modules.0.iter().map(|(_, level)| *level).max();
        level(most.map_or(self.everywhere, |most| most.max(self.everywhere)))
    }
}

fn level(verbosity: i32) -> LevelFilter {
    match verbosity {
        ..=0 => LevelFilter::INFO,
        1..=4 => LevelFilter::DEBUG,
        5.. => LevelFilter::TRACE,
    }
}

/// Asked once for each place in the source; the answer is remembered there.
impl<S: Subscriber> Layer<S> for Verbosity {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= self.of(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level_of(modules: &str, file: &str) -> Option<i32> {
        modules.parse::<Modules>().unwrap().level(file)
    }

    #[test]
    fn the_first_pattern_that_matches_counts() {
        let modules = "daemon=2,keep*=5,*=1,";
        assert_eq!(level_of(modules, "daemon.rs"), Some(2));
        assert_eq!(level_of(modules, "keeper.rs"), Some(5));
        assert_eq!(level_of(modules, "udp.rs"), Some(1));
        assert_eq!(level_of("daemon=2", "daemons.rs"), None);
        assert_eq!(level_of("Daemon=2", "daemon.rs"), None);
        assert_eq!(level_of("daemon.rs=2", "daemon.rs"), None);
        assert_eq!(level_of("", "daemon.rs"), None);
    }

    #[test]
    fn patterns_are_those_of_gos_filepath_match() {
        // From the table of its own test (path/filepath/match_test.go), those without slashes.
        for (pattern, name, matches) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*b*c*d*e*", "axbxcxdxe", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^b-d]", "abc", false),
            ("ab[^e-g]", "abc", true),
            (r"a\*b", "a*b", true),
            (r"a\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            (r"[\]a]", "]", true),
            (r"[\-]", "-", true),
            (r"[x\-]", "x", true),
            (r"[x\-]", "z", false),
            (r"[\-x]", "-", true),
            ("*x", "xxx", true),
            ("a.c", "abc", false),
            ("[a&&b]", "&", true),
        ] {
            let found = level_of(&format!("{pattern}=1"), name).is_some();
            assert_eq!(found, matches, "{pattern} {name}");
        }
    }

    #[test]
    fn malformed_lists_are_refused() {
        use InvalidModules::{Negative, Pattern, Syntax};
        for (text, error) in [
            ("daemon", Syntax),
            ("=1", Syntax),
            ("daemon=", Syntax),
            ("daemon=x", Syntax),
            ("a=1=2", Syntax),
            ("daemon=99999999999", Syntax),
            ("daemon=-1", Negative),
            ("[]a]=1", Pattern),
            ("[-]=1", Pattern),
            ("[x-]=1", Pattern),
            ("[a-b-c]=1", Pattern),
            ("[=1", Pattern),
            ("[^=1", Pattern),
            ("a[=1", Pattern),
            ("[b-a]=1", Pattern),
            (r"a\=1", Pattern),
        ] {
            let result = text.parse::<Modules>().map(|_| ());
            // A backslash before the `=` belongs to the pattern.
            assert_eq!(result, Err(error), "{text}");
        }
    }
}
