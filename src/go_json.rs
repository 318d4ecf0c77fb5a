//! JSON as Go's `encoding/json` reads and writes it, as far as leases and the network config need.
//!
//! Go matches field names without regard to case, ignores the unknown ones and lets a later
//! duplicate win. It escapes `<`, `>`, `&`, U+2028 and U+2029 on writing and drops the white space
//! of embedded raw values. Serde's derive does none of this, hence this module.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The fields of a JSON object in the order of the text, values not yet decoded.
///
/// `null` decodes to no field, as Go decodes it into a struct.
#[derive(Debug)]
pub(crate) struct Object<'a>(pub(crate) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// Reads one JSON object. The caller bounds the length of `text`.
    pub(crate) fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The value of the last field with this name, in whatever case.
    pub(crate) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Object(Vec::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                // A key that contains escapes cannot be borrowed from the text.
                while let Some(Key(key)) = map.next_key()? {
                    fields.push((key, map.next_value()?));
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_any(Fields)
    }
}

/// An object's key, borrowed from the text where that is possible.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Is this value `null`?
pub(crate) fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// Appends valid JSON text to `out` as Go's encoder embeds a `json.RawMessage`: without white
/// space between tokens, with the characters escaped that HTML or JavaScript would trip over.
pub(crate) fn append_compact(out: &mut String, json: &str) {
    let mut in_string = false;
    let mut escaped = false;
    for c in json.chars() {
        match c {
            ' ' | '\t' | '\n' | '\r' if !in_string => continue,
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
        if c == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && c == '\\' && !escaped;
    }
}

/// Appends a string as a JSON string, escaped as Go escapes.
pub(crate) fn append_string(out: &mut String, text: &str) {
    // Both encoders escape quotes, backslashes and control characters alike; the rest is
    // `append_compact`'s work, which changes no white space inside a string.
    append_compact(out, &serde_json::Value::from(text).to_string());
}

/// A piece of outside text for an error message: quoted, on one line, of bounded length.
pub(crate) fn excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_match_in_any_case_and_the_last_one_wins() {
        let object = Object::parse(r#" {"a":1,"B":[1, 2],"b":"x","\u0061":{"a":3}} "#).unwrap();
        assert_eq!(object.get("A").unwrap().get(), r#"{"a":3}"#);
        assert_eq!(object.get("b").unwrap().get(), r#""x""#);
        assert!(object.get("c").is_none());
    }

    #[test]
    fn null_is_an_empty_object_and_everything_else_is_an_error() {
        assert!(Object::parse("null").unwrap().0.is_empty());
        for text in ["", "[]", "1", "\"x\"", "true", "{}x", "{\"a\"}", "{\"a\":}"] {
            assert!(Object::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn compacts_like_go() {
        let mut out = String::new();
        append_compact(&mut out, "{ \"a b\" :\t[1 ,\n\"x\\\" \\\\\" , \"<&>\u{2028}\" ]}\r\n");
        assert_eq!(out, r#"{"a b":[1,"x\" \\","\u003c\u0026\u003e\u2028"]}"#);
    }

    #[test]
    fn excerpts_are_short_and_on_one_line() {
        assert_eq!(excerpt("a\nb"), r#""a\nb""#);
        assert_eq!(excerpt(&"ü".repeat(81)), format!("\"{}\"…", "ü".repeat(80)));
    }

    proptest! {
        #[test]
        fn strings_survive_the_escaping(text: String) {
            let mut json = String::new();
            append_string(&mut json, &text);
            let bare = json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']);
            prop_assert!(!bare);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
