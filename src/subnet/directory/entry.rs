//! The text of a lease's file.
//!
//! ```text
//! {"PublicIP":"10.4.7.21","PublicIPv6":null}
//! expires=2026-11-23T21:00:00Z
//! ```
//!
//! First the value as it would stand in etcd, then the deadline. Without that line the lease is a
//! reservation: it never ends. Made by hand, the JSON may be spread over several lines.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::timestamp;
use crate::subnet::lease::{Expiry, LeaseAttrs};

const DEADLINE: &str = "expires=";

pub(super) fn format(attrs: &LeaseAttrs, expiry: Expiry) -> String {
    let mut text = attrs.to_json();
    text.push('\n');
    if let Expiry::At(end) = expiry {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{DEADLINE}{}", timestamp::format(end));
    }
    text
}

pub(super) fn parse(text: &[u8]) -> Result<(LeaseAttrs, Expiry), String> {
    let text = std::str::from_utf8(text).map_err(|_| "the file is not UTF-8 text".to_owned())?;
    let (mut json, mut expiry) = (String::new(), Expiry::Permanent);
    for line in text.lines() {
        match line.trim().strip_prefix(DEADLINE) {
            Some(end) => {
                let end = timestamp::parse(end.trim()).ok_or_else(|| {
                    format!("{DEADLINE}{end}: expected UTC like 2026-11-23T21:00:00Z")
                })?;
                expiry = Expiry::At(end);
            }
            None => {
                json.push_str(line);
                json.push('\n');
            }
        }
    }
    let attrs = LeaseAttrs::from_json(json.as_bytes()).map_err(|e| e.to_string())?;
    Ok((attrs, expiry))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn text_and_lease_are_one() {
        let attrs = LeaseAttrs::udp("10.4.7.21".parse().unwrap());
        let end = Expiry::At(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_467_600));
        let text = format(&attrs, end);
        assert_eq!(
            text,
            "{\"PublicIP\":\"10.4.7.21\",\"PublicIPv6\":null}\nexpires=2026-11-23T21:00:00Z\n"
        );
        assert_eq!(parse(text.as_bytes()), Ok((attrs.clone(), end)));
        let text = format(&attrs, Expiry::Permanent);
        assert_eq!(text, "{\"PublicIP\":\"10.4.7.21\",\"PublicIPv6\":null}\n");
        assert_eq!(parse(text.as_bytes()), Ok((attrs, Expiry::Permanent)));
    }

    #[test]
    fn what_a_hand_writes_is_read() {
        let attrs = LeaseAttrs::udp("10.4.7.21".parse().unwrap());
        let text = "{\r\n  \"publicip\": \"10.4.7.21\"\r\n}\r\n\r\n expires= 2026-11-23T21:00:00Z";
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_467_600);
        assert_eq!(parse(text.as_bytes()), Ok((attrs, Expiry::At(end))));
    }

    #[test]
    fn half_a_file_is_no_lease() {
        for text in [
            &b""[..],
            b"\xff\xfe",
            b"{\"PublicIP\":\"10.4.7.2",
            b"expires=2026-11-23T21:00:00Z",
            b"{\"PublicIP\":\"10.4.7.21\"}\nexpires=2026-11",
            b"{\"PublicIP\":\"10.4.7.21\"}\nexpires=",
        ] {
            assert!(parse(text).is_err(), "{:?}", String::from_utf8_lossy(text));
        }
    }
}
