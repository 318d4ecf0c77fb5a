//! What the runtime says about the network: the JSON on stdin.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::error::{Code, Error};
use super::request::{Attachment, is_identifier};
use crate::go_json::{Object, excerpt, is_null};

const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/flannel";

/// The names of the list that `GC` brings; runtimes send the second one as well, because an early
/// text of the specification had it.
pub(super) const VALID_ATTACHMENTS: [&str; 2] =
    ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// A version of CNI's specification, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CniVersion(&'static str);

impl CniVersion {
    /// All that are served. Their order as text is their order in time.
    pub const ALL: [Self; 7] = [
        Self("0.1.0"),
        Self("0.2.0"),
        Self("0.3.0"),
        Self("0.3.1"),
        Self("0.4.0"),
        Self("1.0.0"),
        Self("1.1.0"),
    ];
    /// What a configuration has that does not say.
    pub(super) const OLDEST: Self = Self("0.1.0");
    /// The first with `CHECK`.
    pub(super) const WITH_CHECK: Self = Self("0.4.0");
    /// The first with `GC` and `STATUS`, and the newest.
    pub const LATEST: Self = Self("1.1.0");

    /// The version as it is written.
    pub fn as_str(self) -> &'static str {
        self.0
    }

    fn parse(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|version| version.0 == text).ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            Error::new(Code::IncompatibleVersion, "incompatible CNI versions").with_details(
                format!(
                    "cniVersion is {}, this plugin serves {all}: write one of these",
                    excerpt(text)
                ),
            )
        })
    }
}

/// The plugin's configuration. Keys are found as Go finds them, in any case.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The version that the configuration and the result are in.
    pub version: CniVersion,
    /// `cniVersion` as it was written, if it was.
    pub version_text: Option<String>,
    /// The network's name.
    pub name: String,
    /// Where flanneld writes its `subnet.env`.
    pub subnet_file: PathBuf,
    /// Where the delegate's configurations are kept from ADD to DEL.
    pub data_dir: PathBuf,
    /// What the operator says about addresses.
    pub ipam: Map<String, Value>,
    /// What the operator says to the plugin that does the work.
    pub delegate: Map<String, Value>,
    /// What the runtime says by capability.
    pub runtime_config: Option<Map<String, Value>>,
    /// What the plugin before, or the ADD before, returned.
    pub prev_result: Option<Value>,
    /// The attachments that `GC` shall keep, as they were written.
    pub valid_attachments: Option<Value>,
}

impl Config {
    /// Reads the configuration, in the order and by the rules of the reference implementation.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let undecodable = |error: &dyn std::fmt::Display| {
            let msg = format!("cannot decode the network configuration on stdin: {error}");
            Error::new(Code::Decoding, msg)
        };
        let text = std::str::from_utf8(text).map_err(|error| undecodable(&error))?;
        // Bounds the depth of all values: what ADD keeps can then be read back by DEL.
        serde_json::from_str::<Value>(text).map_err(|error| undecodable(&error))?;
        let fields = Fields(Object::parse(text).map_err(|error| undecodable(&error))?);

        let name = fields.get::<String>("name", "a string")?.unwrap_or_default();
        if !is_identifier(&name) {
            return Err(invalid(
                "name",
                &name.into(),
                "the network's name is wanted: letters, digits, and then also _ . -",
            ));
        }
        let version_text = fields.get::<String>("cniVersion", "a string")?;
        let version_text = version_text.filter(|text| !text.is_empty());
        let version = match &version_text {
            Some(text) => CniVersion::parse(text)?,
            None => CniVersion::OLDEST,
        };
        let mut valid_attachments = None;
        for key in VALID_ATTACHMENTS.into_iter().rev() {
            valid_attachments = fields.get(key, "a list of attachments")?.or(valid_attachments);
        }
        Ok(Self {
            version,
            version_text,
            name,
            subnet_file: fields.path("subnetFile", DEFAULT_SUBNET_FILE)?,
            data_dir: fields.path("dataDir", DEFAULT_DATA_DIR)?,
            ipam: fields.get("ipam", "an object")?.unwrap_or_default(),
            delegate: fields.get("delegate", "an object")?.unwrap_or_default(),
            runtime_config: fields.get("runtimeConfig", "an object")?,
            prev_result: fields.get("prevResult", "an object")?,
            valid_attachments,
        })
    }

    /// The attachments that `GC` shall keep. Without the list it must not guess that all are gone.
    pub(super) fn parse_valid_attachments(&self) -> Result<Vec<Attachment>, Error> {
        let [key, _] = VALID_ATTACHMENTS;
        let wanted = "a list of objects with containerID and ifname is wanted";
        let refuse = |value: &Value| invalid(key, value, wanted);
        let list = self.valid_attachments.as_ref().unwrap_or(&Value::Null);
        let items = list.as_array().ok_or_else(|| refuse(list))?;
        let attachment = |item: &Value| {
            let text = |key| item.get(key)?.as_str();
            Attachment::new(text("containerID")?, text("ifname")?).ok()
        };
        items.iter().map(|item| attachment(item).ok_or_else(|| refuse(item))).collect()
    }
}

/// An error about one key: its name, its value and the fix.
pub(super) fn invalid(key: &str, value: &Value, fix: &str) -> Error {
    const MAX_CHARS: usize = 80;
    // As JSON it is on one line, whatever it holds.
    let mut value = value.to_string();
    if let Some((end, _)) = value.char_indices().nth(MAX_CHARS) {
        value.truncate(end);
        value.push('…');
    }
    Error::new(Code::InvalidConfig, format!("network configuration: {key} is {value}: {fix}"))
}

struct Fields<'a>(Object<'a>);

impl Fields<'_> {
    /// The value of `key`, unless it is missing or null.
    fn get<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
        wanted: &str,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.0.get(key).filter(|value| !is_null(value)) else { return Ok(None) };
        serde_json::from_str(value.get()).map(Some).map_err(|_| {
            let value = serde_json::from_str(value.get()).unwrap_or_default();
            invalid(key, &value, &format!("{wanted} is wanted"))
        })
    }

    fn path(&self, key: &str, default: &str) -> Result<PathBuf, Error> {
        match self.get::<String>(key, "a string")? {
            None => Ok(default.into()),
            Some(path) if path.is_empty() => Err(invalid(
                key,
                &path.into(),
                &format!("write a path, or leave the key out for {default}"),
            )),
            Some(path) => Ok(path.into()),
        }
    }
}
