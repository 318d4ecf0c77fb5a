//! What was found, and how it is printed.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it must be.
    Ok,
    /// Worth knowing.
    Note,
    /// The daemon works, something else will not.
    Warning,
    /// Keeps the daemon from working.
    Failure,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Ok => AnsiColor::Green.on_default(),
            Self::Note => AnsiColor::Cyan.on_default(),
            Self::Warning => AnsiColor::Yellow.on_default(),
            Self::Failure => AnsiColor::Red.on_default().bold(),
        }
    }
}

/// One thing that was examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, in a word.
    pub about: &'static str,
    /// What was found.
    pub text: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// All findings, in the order in which the host was examined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn ok(&mut self, about: &'static str, text: impl Into<String>) {
        self.add(Severity::Ok, about, text.into(), None);
    }

    pub(super) fn note(&mut self, about: &'static str, text: impl Into<String>, fix: Option<&str>) {
        self.add(Severity::Note, about, text.into(), fix.map(str::to_owned));
    }

    pub(super) fn warning(
        &mut self,
        about: &'static str,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(Severity::Warning, about, text.into(), Some(fix.into()));
    }

    pub(super) fn failure(
        &mut self,
        about: &'static str,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.add(Severity::Failure, about, text.into(), Some(fix.into()));
    }

    pub(super) fn add(
        &mut self,
        severity: Severity,
        about: &'static str,
        text: String,
        fix: Option<String>,
    ) {
        self.findings.push(Finding { severity, about, text, fix });
    }

    /// Does anything keep the daemon from working?
    #[must_use]
    pub fn failed(&self) -> bool {
        self.count(Severity::Failure) > 0
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// Writes it for people, with colours.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        for finding in &self.findings {
            let style = finding.severity.style();
            let (word, about) = (finding.severity.word(), finding.about);
            writeln!(out, "{style}{word:8}{style:#} {about:10} {}", finding.text)?;
            if let Some(fix) = &finding.fix {
                writeln!(out, "{:20}fix: {fix}", "")?;
            }
        }
        let (failures, warnings) = (self.count(Severity::Failure), self.count(Severity::Warning));
        let so_many = |count, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        writeln!(out, "{}, {}", so_many(failures, "failure"), so_many(warnings, "warning"))
    }

    /// Writes it for programs: one JSON object.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_programs_read_the_same() {
        let mut report = Report::default();
        report.ok("tun", "opens");
        assert!(!report.failed());
        report.warning("peers", "one is away", "wait");
        report.failure("port", "taken", "free it");
        assert!(report.failed());
        let mut text = Vec::new();
        report.write_text(&mut text).unwrap();
        let text = anstream::adapter::strip_str(std::str::from_utf8(&text).unwrap()).to_string();
        assert_eq!(
            text,
            "ok       tun        opens\n\
             warning  peers      one is away\n                    fix: wait\n\
             FAILURE  port       taken\n                    fix: free it\n\
             1 failure, 1 warning\n"
        );
        let mut json = Vec::new();
        report.write_json(&mut json).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["findings"][0]["severity"], "ok");
        assert!(json["findings"][0].get("fix").is_none());
        assert_eq!(json["findings"][2]["fix"], "free it");
    }
}
