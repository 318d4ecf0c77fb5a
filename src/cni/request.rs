//! What the runtime asks for: the variables `CNI_…`.
#![forbid(unsafe_code)]

use std::ffi::OsString;

use super::error::{Code, Error};
use crate::go_json::excerpt;

/// The longest name of an interface that Linux has, in bytes (`IFNAMSIZ` less its final zero).
const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// One interface of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The runtime's name for the container.
    pub container_id: String,
    /// The interface's name inside the container.
    pub ifname: String,
}

impl Attachment {
    /// Checks both names by the specification's rules, which also make them fit for file names.
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, Error> {
        if !is_identifier(container_id) {
            return Err(malformed(
                "CNI_CONTAINERID",
                container_id,
                "it starts with a letter or digit, and then has only these and _ . -",
            ));
        }
        let allowed = |c: char| !c.is_whitespace() && c != '/' && c != ':' && c != '\0';
        if ifname.is_empty()
            || ifname.len() > MAX_INTERFACE_NAME_BYTES
            || matches!(ifname, "." | "..")
            || !ifname.chars().all(allowed)
        {
            return Err(malformed(
                "CNI_IFNAME",
                ifname,
                "a name has 1 to 15 bytes, no / or : and no blanks",
            ));
        }
        Ok(Self { container_id: container_id.into(), ifname: ifname.into() })
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add(Attachment),
    /// Detach it.
    Del(Attachment),
    /// See whether it is still attached as it was.
    Check(Attachment),
    /// Detach all but those that the configuration lists.
    Gc,
    /// Say whether containers can be attached now.
    Status,
}

/// A call of this plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// No `CNI_COMMAND`: somebody at a terminal.
    About,
    /// Say which versions are served.
    Version,
    /// Work, with a configuration on stdin.
    Work {
        /// Which.
        command: Command,
        /// Where the other plugins are: `CNI_PATH`.
        search_path: String,
    },
}

impl Request {
    /// Reads the variables. All that are missing are named at once.
    pub fn from_env(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let read = |name: &str| {
            let value = variable(name).unwrap_or_default();
            value.into_string().map_err(|value| {
                malformed(name, &value.to_string_lossy(), "it must be text in UTF-8")
            })
        };
        let command = read("CNI_COMMAND")?;
        let needed: &[&str] = match command.as_str() {
            "" => return Ok(Self::About),
            "VERSION" => return Ok(Self::Version),
            "ADD" | "CHECK" => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            "GC" | "STATUS" => &["CNI_PATH"],
            other => {
                return Err(malformed(
                    "CNI_COMMAND",
                    other,
                    "it is one of ADD, DEL, CHECK, GC, STATUS, VERSION",
                ));
            }
        };
        let mut missing = Vec::new();
        for name in needed {
            if read(name)?.is_empty() {
                missing.push(*name);
            }
        }
        if !missing.is_empty() {
            return Err(Error::new(
                Code::InvalidEnvironment,
                format!("{command} needs the variables {}: set them", missing.join(", ")),
            ));
        }
        let attachment = || Attachment::new(&read("CNI_CONTAINERID")?, &read("CNI_IFNAME")?);
        let command = match command.as_str() {
            "ADD" => Command::Add(attachment()?),
            "DEL" => Command::Del(attachment()?),
            "CHECK" => Command::Check(attachment()?),
            "GC" => Command::Gc,
            // The others were refused above.
            _ => Command::Status,
        };
        Ok(Self::Work { command, search_path: read("CNI_PATH")? })
    }
}

fn malformed(name: &str, value: &str, rule: &str) -> Error {
    Error::new(Code::InvalidEnvironment, format!("{name} is {}: {rule}", excerpt(value)))
}

/// Is this a name as the specification wants it for containers and networks?
pub(super) fn is_identifier(text: &str) -> bool {
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    starts_well && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}
