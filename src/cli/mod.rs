//! The command line: upstream's flags in Go's syntax, the `FLANNELD_*` variables, and our own.
//!
//! What comes out is typed and complete; nothing later asks again whether a value makes sense.
//! Beside the daemon there are commands, known by the first word: see [`tools`].
#![forbid(unsafe_code)]

mod flags;
mod go_syntax;
mod options;
mod tools;

use std::ffi::OsString;

use clap::ArgMatches;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use thiserror::Error;

use self::flags::Flag;
use self::go_syntax::{Words, normalise, plain_value};
pub use self::options::{
    ClientCert, Credentials, EtcdOptions, InvalidChoice, OffloadMode, Options, Secret, StoreOptions,
};
use crate::admin::status::StatusOptions;
use crate::go_json::excerpt;

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run the daemon.
    Run(Box<Options>),
    /// Print this text on stderr, as upstream does, and exit with 0.
    Help(String),
    /// Print the version on stderr, as upstream does, and exit with 0.
    Version,
    /// Print this text on stdout and exit with 0.
    Print(String),
    /// Examine the host, and print what was found.
    Check {
        /// The daemon's options.
        options: Box<Options>,
        /// Print JSON.
        json: bool,
    },
    /// Remove what a daemon left.
    Cleanup {
        /// The daemon's options.
        options: Box<Options>,
        /// Only say what would be removed.
        dry_run: bool,
    },
    /// Show how the running daemon stands.
    Status(StatusOptions),
}

/// What is wrong with the command line or a `FLANNELD_*` variable. One line; the process should
/// print it on stderr and exit with 2.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UsageError {
    /// No flag has this name.
    #[error("unknown flag {flag}{}; see --help", suggestion(.similar.as_deref()))]
    Unknown {
        /// The flag.
        flag: String,
        /// The flag with the most similar name.
        similar: Option<String>,
    },
    /// A word with dashes but without a name.
    #[error("{word} is not a flag")]
    Syntax {
        /// The word.
        word: String,
    },
    /// The last word is a flag that needs a value.
    #[error("{flag} needs a value")]
    NoValue {
        /// The flag.
        flag: String,
    },
    /// The value makes no sense.
    #[error("{flag}={value}: expected {expected}")]
    Value {
        /// The flag or variable.
        flag: String,
        /// The value.
        value: String,
        /// What should stand there.
        expected: String,
    },
    /// Bytes that are no text.
    #[error("{place} is not valid UTF-8")]
    NotUtf8 {
        /// Where they stand.
        place: String,
    },
    /// One flag makes no sense without the other.
    #[error("{flag} needs {other} as well")]
    Alone {
        /// The flag or variable that is given.
        flag: String,
        /// The flag that is missing.
        other: String,
    },
    /// Two flags exclude each other.
    #[error("{flag} and {other} exclude each other")]
    Conflict {
        /// One flag or variable.
        flag: String,
        /// The other flag or variable.
        other: String,
    },
    /// A flag of upstream whose part does not exist yet.
    #[error("{flag}={value}: {part} is not supported yet; {fix}")]
    NotYet {
        /// The flag or variable.
        flag: String,
        /// The value.
        value: String,
        /// What does not exist.
        part: &'static str,
        /// What to do.
        fix: String,
    },
}

fn suggestion(similar: Option<&str>) -> String {
    similar.map(|flag| format!(", did you mean {flag}?")).unwrap_or_default()
}

/// Reads the command line, without the program's name, and for the flags that it does not give
/// the `FLANNELD_*` variables that `env` knows.
///
/// Words after the first that is no flag are ignored, as upstream does; but the first word of all
/// may be a subcommand.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, UsageError> {
    let mut args = args.into_iter().peekable();
    let first = args.peek().cloned().unwrap_or_default();
    if let Some(parsed) = tools::parse_tool(&first, args.by_ref().skip(1), &env) {
        return parsed;
    }
    match parse_flags(args, &[], env)? {
        Parsed::Help => Ok(Command::Help(tools::documented().render_help().to_string())),
        Parsed::Version => Ok(Command::Version),
        Parsed::Values(values) => Ok(Command::Run(Box::new(Options::from_values(&values)?))),
    }
}

/// What the words behind the program, or behind a command, say.
enum Parsed {
    Help,
    Version,
    Values(Values),
}

/// Reads the daemon's flags and variables, and the flags of a command, `own`, which have none.
fn parse_flags(
    args: impl IntoIterator<Item = OsString>,
    own: &'static [Flag],
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Parsed, UsageError> {
    let mut words = match normalise(args, own)? {
        Words::Help => return Ok(Parsed::Help),
        Words::Flags(words) => words,
    };
    let mut values = Values { matches: matches(&words, own)?, from_env: Vec::new() };
    // Before the variables, as upstream: asking for the version works whatever they hold.
    if values.flag("version") == Some(true) {
        return Ok(Parsed::Version);
    }

    for flag in flags::all().filter(|flag| flag.name != "version") {
        if values.is_given(flag.name) {
            continue;
        }
        let variable = flag.variable();
        let Some(value) = env(&variable).filter(|value| !value.is_empty()) else { continue };
        let value =
            value.into_string().map_err(|_| UsageError::NotUtf8 { place: variable.clone() })?;
        words.push(format!("--{}={}", flag.name, plain_value(flag, &variable, value)?));
        values.from_env.push(flag.name);
    }
    values.matches = matches(&words, own)?;

    values.refuse_what_is_not_there_yet()?;
    Ok(Parsed::Values(values))
}

/// Lets clap find the values. The words are normalised: only a name can be wrong.
fn matches(words: &[String], own: &'static [Flag]) -> Result<ArgMatches, UsageError> {
    let command = flags::command().args(own.iter().map(flags::argument)).no_binary_name(true);
    command.try_get_matches_from(words).map_err(|error| {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            _ => None,
        };
        let flag = context(ContextKind::InvalidArg).unwrap_or_default();
        UsageError::Unknown { flag: excerpt(&flag), similar: context(ContextKind::SuggestedArg) }
    })
}

/// The values of all flags and where they come from. Names must be in the table of flags.
struct Values {
    matches: ArgMatches,
    from_env: Vec<&'static str>,
}

impl Values {
    /// Was the flag or its variable given?
    fn is_given(&self, name: &str) -> bool {
        self.matches.value_source(name).is_some_and(|source| source != ValueSource::DefaultValue)
    }

    /// What an error calls the flag.
    fn label(&self, name: &str) -> String {
        match flags::find(name) {
            Some(flag) if self.from_env.contains(&flag.name) => flag.variable(),
            _ => format!("--{name}"),
        }
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.matches.get_one(name).copied()
    }

    fn int(&self, name: &str) -> i64 {
        self.matches.get_one(name).copied().unwrap_or_default()
    }

    fn level(&self, name: &str) -> i32 {
        self.matches.get_one(name).copied().unwrap_or_default()
    }

    /// The text, empty if there is none.
    fn text(&self, name: &str) -> &str {
        self.matches.get_one::<String>(name).map(String::as_str).unwrap_or_default()
    }

    fn list(&self, name: &str) -> Vec<String> {
        self.matches.get_many(name).map(|items| items.cloned().collect()).unwrap_or_default()
    }

    fn error(&self, name: &str, expected: impl Into<String>) -> UsageError {
        UsageError::Value {
            flag: self.label(name),
            value: excerpt(&self.raw(name)),
            expected: expected.into(),
        }
    }

    /// The last value as it was normalised.
    fn raw(&self, name: &str) -> String {
        let last = self.matches.get_raw(name).and_then(|mut values| values.next_back());
        last.map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn refuse_what_is_not_there_yet(&self) -> Result<(), UsageError> {
        for row in flags::NOT_YET {
            let value = self.raw(row.name);
            if self.is_given(row.name) && value != row.accepts {
                return Err(UsageError::NotYet {
                    flag: self.label(row.name),
                    value: excerpt(&value),
                    part: row.part,
                    fix: match row.accepts {
                        "" => "remove it".to_owned(),
                        accepts => format!("remove it or set it to {accepts}"),
                    },
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
