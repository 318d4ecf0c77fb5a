//! Go's flag syntax, turned into the one spelling that clap is given: `--name=value`.
//!
//! Source: the Go standard library's `flag` package and `strconv` (facts 1.2).
#![forbid(unsafe_code)]

use std::ffi::OsString;

use super::UsageError;
use super::flags::{Flag, Kind, find};
use crate::go_json::excerpt;

/// What the words of a command line say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// `-h`, `-help`: nothing else counts.
    Help,
    /// One `--name=value` for each flag; values of flags and numbers in their plain form.
    Flags(Vec<String>),
}

/// Reads words up to the first that is no flag. `own` are the flags of a command, besides the
/// daemon's.
pub(super) fn normalise(
    args: impl IntoIterator<Item = OsString>,
    own: &'static [Flag],
) -> Result<Words, UsageError> {
    let mut flags = Vec::new();
    let mut args = args.into_iter().enumerate().map(|(i, arg)| {
        // The word itself might be a password.
        arg.into_string().map_err(|_| UsageError::NotUtf8 { place: format!("argument {}", i + 1) })
    });
    while let Some(word) = args.next().transpose()? {
        let Some(rest) = word.strip_prefix('-') else { break };
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        if rest.is_empty() {
            break;
        }
        let (name, value) = match rest.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (rest, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(UsageError::Syntax { word: excerpt(&word) });
        }
        let Some(flag) = find(name).or_else(|| own.iter().find(|flag| flag.name == name)) else {
            if name == "h" || name == "help" {
                return Ok(Words::Help);
            }
            // Clap knows which name is meant.
            flags.push(format!("--{name}"));
            break;
        };
        let label = format!("--{name}");
        let value = match (value, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".to_owned(),
            (None, _) => match args.next().transpose()? {
                Some(value) => value,
                None => return Err(UsageError::NoValue { flag: label }),
            },
        };
        let value = plain_value(flag, &label, value)?;
        flags.push(format!("{label}={value}"));
    }
    Ok(Words::Flags(flags))
}

/// The plain form of a flag's value: `true` or `false`, a decimal number, or the text itself.
/// `label` names the flag, or the variable, in the error.
pub(super) fn plain_value(flag: &Flag, label: &str, value: String) -> Result<String, UsageError> {
    let (plain, expected) = match flag.kind {
        Kind::Text | Kind::List => return Ok(value),
        Kind::Bool => (parse_bool(&value).map(|b| b.to_string()), "true or false"),
        Kind::Int => (parse_int(&value).map(|i| i.to_string()), "a whole number"),
        Kind::Level => (value.parse::<i32>().ok().map(|i| i.to_string()), "a whole number"),
    };
    plain.ok_or_else(|| UsageError::Value {
        flag: label.to_owned(),
        value: excerpt(&value),
        expected: expected.to_owned(),
    })
}

/// Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's `strconv.ParseInt(text, 0, 64)`: the prefix tells the base, underscores may stand between
/// digits and after the prefix.
fn parse_int(text: &str) -> Option<i64> {
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = unsigned.to_ascii_lowercase();
    let (base, digits) = if let Some(digits) = lower.strip_prefix("0x") {
        (16, digits)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        (8, digits)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (2, digits)
    } else if lower.len() > 1 && lower.starts_with('0') {
        // The leading zero is both the prefix and a digit that an underscore may follow.
        (8, lower.get(1..)?)
    } else {
        (10, lower.as_str())
    };
    // After a prefix one underscore may come first, but nowhere two in a row and none at the end.
    let digits = if base == 10 { digits } else { digits.strip_prefix('_').unwrap_or(digits) };
    if digits.split('_').any(str::is_empty) || digits.contains(['+', '-']) {
        return None;
    }
    let digits: String = digits.split('_').collect();
    let signed = if negative { format!("-{digits}") } else { digits };
    i64::from_str_radix(&signed, base).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn flags(words: &[&str]) -> Vec<String> {
        match normalise(words.iter().map(OsString::from), &[]).unwrap() {
            Words::Flags(flags) => flags,
            Words::Help => panic!("{words:?} asked for help"),
        }
    }

    fn error(words: &[&str]) -> String {
        normalise(words.iter().map(OsString::from), &[]).unwrap_err().to_string()
    }

    #[test]
    fn one_dash_or_two_with_or_without_equals_sign() {
        for words in
            [&["-iface=eth0"] as &[_], &["--iface=eth0"], &["-iface", "eth0"], &["--iface", "eth0"]]
        {
            assert_eq!(flags(words), ["--iface=eth0"]);
        }
        assert_eq!(flags(&["-etcd-password", "-a=b="]), ["--etcd-password=-a=b="]);
        assert_eq!(flags(&["-public-ip="]), ["--public-ip="]);
    }

    #[test]
    fn bool_flags_never_eat_the_next_word() {
        assert_eq!(flags(&["-ip-masq", "false", "-v=1"]), ["--ip-masq=true"]);
        assert_eq!(flags(&["--ip-masq=F", "-version=1"]), ["--ip-masq=false", "--version=true"]);
        assert_eq!(error(&["-ip-masq=yes"]), r#"--ip-masq="yes": expected true or false"#);
    }

    #[test]
    fn flags_end_at_the_first_other_word() {
        for stop in ["word", "-", "--", ""] {
            assert_eq!(flags(&["-v=1", stop, "-v=2", "-nonsense"]), ["--v=1"], "{stop}");
        }
    }

    #[test]
    fn help_ends_everything() {
        for word in ["-h", "--h", "-help", "--help", "-help=x"] {
            let words = ["-v=1", word, "--nonsense"].map(OsString::from);
            assert_eq!(normalise(words, &[]), Ok(Words::Help));
        }
    }

    #[test]
    fn broken_words_are_refused() {
        assert_eq!(error(&["-iface"]), "--iface needs a value");
        assert_eq!(error(&["---iface=x"]), r#""---iface=x" is not a flag"#);
        assert_eq!(error(&["-=x"]), r#""-=x" is not a flag"#);
        assert_eq!(error(&["--=x"]), r#""--=x" is not a flag"#);
        assert_eq!(error(&["-v=0x1"]), r#"--v="0x1": expected a whole number"#);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_utf8_is_refused_without_showing_it() {
        use std::os::unix::ffi::OsStringExt;
        let words = ["--etcd-password".into(), OsString::from_vec(b"secret\xff".to_vec())];
        let error = normalise(words, &[]).unwrap_err().to_string();
        assert_eq!(error, "argument 2 is not valid UTF-8");
    }

    #[test]
    fn integers_are_gos() {
        for (text, expected) in [
            ("0", 0),
            ("60", 60),
            ("+60", 60),
            ("-1", -1),
            ("0x10", 16),
            ("0X_1f", 31),
            ("0o17", 15),
            ("017", 15),
            ("0_17", 15),
            ("0b11", 3),
            ("1_000", 1000),
            ("-0x8000000000000000", i64::MIN),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(parse_int(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "-",
            "+",
            "x",
            "1.0",
            " 1",
            "1 ",
            "0x",
            "0x_",
            "08",
            "_1",
            "1_",
            "1__0",
            "0x__1",
            "--1",
            "+-1",
            "0x-1",
            "0x+1",
            "1e3",
            "9223372036854775808",
        ] {
            assert_eq!(parse_int(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn integers_round_trip(number: i64, other: u32) {
            prop_assert_eq!(parse_int(&number.to_string()), Some(number));
            let number = i64::from(other);
            for text in [format!("{number:#x}"), format!("{number:#o}"), format!("{number:#b}")] {
                prop_assert_eq!(parse_int(&text), Some(number));
            }
        }

        #[test]
        fn no_words_panic(words in proptest::collection::vec("-{0,3}(v|iface|ip-masq|\\PC*)=?\\PC{0,4}", 0..5)) {
            let _ = normalise(words.into_iter().map(OsString::from), &[]);
        }
    }
}
