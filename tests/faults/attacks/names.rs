//! Names of leases that are no subnet's, or want to be something else in the log or elsewhere, for
//! every kind of store.

/// What an honest lease would say.
pub(super) const VALUE: &str = r#"{"PublicIP":"10.4.7.66","PublicIPv6":null}"#;

/// What a name wants to be taken for.
const FORGED: &str = "E1123 00:00:00.000000       1 forged.rs:1] forged";

pub(super) const NAMES: [&[u8]; 18] = [
    b"172.7.190.0-24%2f..%2f..%2fetc%2fpasswd",
    b"..%2f172.7.190.0-24",
    b"..\\172.7.190.0-24",
    b"172.7.190.0-24\nE1123 00:00:00.000000       1 forged.rs:1] forged",
    b"172.7.190.0-24\r\x1b[2J\x1b]0;forged\x07",
    b"\xe2\x80\xae42-0.091.7.271",
    b"\xe2\x80\xa8172.7.190.0-24",
    b"172.7.190.0-24\xe2\x80\x8b",
    b"\xef\xbc\x91\xef\xbc\x97\xef\xbc\x92.7.190.0-24",
    b"\xff\xfe172.7.190.0-24",
    b" 172.7.190.0-24",
    b"172.7.190.0-24 ",
    b"172.7.190.0-024",
    b"0172.7.190.0-24",
    b"172.7.190.0-33",
    b"172.7.190.0-24&fd00::1%eth0-64",
    b"-",
    &[b'x'; 255],
];

/// A daemon has said of so many entries once that they are skipped, and nothing that their names
/// wanted it to say.
pub(super) fn assert_each_is_told_once(log: &str, entries: usize) {
    assert_eq!(log.matches("skipping").count(), entries, "{log}");
    let is_ours = |line: &str| !line.starts_with(FORGED) && !line.contains(char::is_control);
    assert!(log.lines().all(is_ours), "{log}");
    assert!(!log.contains(['\u{202e}', '\u{2028}', '\u{200b}']), "{log}");
}
