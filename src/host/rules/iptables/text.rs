//! What iptables reads and prints. Pure.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::super::rule::{Action, KUBE_MASQUERADE_MARK, Nets, Rule, Side};

/// A chain of ours and where it is entered from.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Chain {
    pub(in super::super) table: &'static str,
    pub(in super::super) name: &'static str,
    pub(super) parent: &'static str,
    comment: &'static str,
    /// Its first rule is about marks.
    marks: bool,
}

/// Flannel's chain for masquerading.
pub(in super::super) const MASQUERADE: Chain = Chain {
    table: "nat",
    name: "FLANNEL-POSTRTG",
    parent: "POSTROUTING",
    comment: "flanneld masq",
    marks: true,
};

/// Flannel's chain for forwarded packets.
pub(in super::super) const FORWARD: Chain = Chain {
    table: "filter",
    name: "FLANNEL-FWD",
    parent: "FORWARD",
    comment: "flanneld forward",
    marks: false,
};

/// What is there of a chain: lines of `iptables-save`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Present {
    /// Does the chain exist?
    pub(super) exists: bool,
    /// Its rules: ours, and those of another daemon on this host.
    pub(super) rules: Vec<String>,
    /// Rules in it that no flannel has put there.
    pub(super) strays: Vec<String>,
    /// The parent's rules that are ours: one jump. Others are doubles, or of releases of flannel
    /// that had no chains.
    pub(super) in_parent: Vec<String>,
}

impl Chain {
    fn jump(&self) -> String {
        format!("-A {} -m comment --comment \"{}\" -j {}", self.parent, self.comment, self.name)
    }

    /// Picks what concerns this chain out of what `iptables-save` prints for all tables.
    pub(super) fn find(&self, saved: &str) -> Present {
        let (head, declared) = (format!("*{}", self.table), format!(":{} ", self.name));
        let table = saved.lines().skip_while(|line| *line != head);
        let (own, parent) = (format!("-A {} ", self.name), format!("-A {} ", self.parent));
        let comment = format!("--comment \"{}\"", self.comment);
        let jump = format!("-j {}", self.name);
        let mut present = Present::default();
        for line in table.take_while(|line| *line != "COMMIT") {
            if line.starts_with(&declared) {
                present.exists = true;
            } else if line.starts_with(&own) {
                match line.contains(&comment) {
                    true => present.rules.push(line.to_owned()),
                    false => present.strays.push(line.to_owned()),
                }
            } else if line.starts_with(&parent)
                && (line.contains(&comment) || line.ends_with(&jump))
            {
                present.in_parent.push(line.to_owned());
            }
        }
        present
    }

    /// The part of an `iptables-restore --noflush` that puts `rules` into the chain, and makes sure
    /// that it is entered once. What is there and right stays where it is.
    ///
    /// `own` are the rules that we have set before, as they are listed; without them, the chain
    /// is emptied. With them, it keeps the rules of another daemon; the rule about marks, which is
    /// the same for all, stands once and first.
    pub(super) fn set(
        &self,
        present: &Present,
        own: Option<&[String]>,
        rules: &[Rule],
        random_fully: bool,
    ) -> String {
        let mut text = format!("*{}\n", self.table);
        let mut keeps_marks = false;
        match own {
            Some(own) if present.exists => {
                keeps_marks = self.has_marks_first(present)
                    && present.rules.iter().filter(|line| is_about_marks(line)).count() == 1;
                let ours = present.rules.iter().filter(|line| match is_about_marks(line) {
                    true => !keeps_marks,
                    false => own.contains(line),
                });
                text.extend(ours.chain(&present.strays).map(|line| deletion(line)));
            }
            // Naming a chain creates or empties it.
            _ => text += &format!(":{} - [0:0]\n", self.name),
        }
        let jump = self.jump();
        let mut entered = false;
        for line in &present.in_parent {
            if *line == jump && !entered {
                entered = true;
            } else {
                text += &deletion(line);
            }
        }
        if !entered {
            text += &jump;
            text.push('\n');
        }
        for rule in rules {
            match rule.marked {
                true if keeps_marks => {}
                true => text += &self.rule("-I", rule, random_fully),
                false => text += &self.rule("-A", rule, random_fully),
            }
        }
        text + "COMMIT\n"
    }

    /// Is the chain entered, and are these rules in it, without a stray?
    pub(super) fn holds(&self, present: &Present, own: &[String]) -> bool {
        present.strays.is_empty()
            && present.in_parent.len() == 1
            && self.has_marks_first(present)
            && present.rules.windows(own.len()).any(|lines| lines == own)
    }

    fn has_marks_first(&self, present: &Present) -> bool {
        !self.marks || present.rules.first().is_some_and(|line| is_about_marks(line))
    }

    /// The same for a chain that shall not be; empty if there is nothing to do.
    pub(super) fn remove(&self, present: &Present) -> String {
        if *present == Present::default() {
            return String::new();
        }
        let mut text = format!("*{}\n", self.table);
        text.extend(present.in_parent.iter().map(|line| deletion(line)));
        if present.exists {
            // Writing to a String cannot fail.
            let _ = write!(text, "-F {0}\n-X {0}\n", self.name);
        }
        text + "COMMIT\n"
    }

    /// A line that adds a rule: at the end by `-A`, at the start by `-I`.
    fn rule(&self, command: &str, rule: &Rule, random_fully: bool) -> String {
        let mut text = format!("{command} {}", self.name);
        for (flag, side) in [("-s", rule.source), ("-d", rule.destination)] {
            text += &match side {
                Side::Any => String::new(),
                Side::In(net) => format!(" {flag} {net}"),
                Side::NotIn(net) => format!(" ! {flag} {net}"),
            };
        }
        if rule.marked {
            text += &format!(" -m mark --mark {KUBE_MASQUERADE_MARK:#x}/{KUBE_MASQUERADE_MARK:#x}");
        }
        text += &format!(" -m comment --comment \"{}\" -j ", self.comment);
        text += match rule.action {
            Action::Accept => "ACCEPT",
            Action::Return => "RETURN",
            Action::Masquerade if random_fully => "MASQUERADE --random-fully",
            Action::Masquerade => "MASQUERADE",
        };
        text + "\n"
    }
}

impl Present {
    /// Our rules among those of the chain, as they are listed: not always as they were written.
    /// Without the one about marks.
    pub(super) fn find_own(&self, rules: &[Rule], nets: &Nets) -> Option<&[String]> {
        let count = rules.iter().filter(|rule| !rule.marked).count();
        // The last: ours were put at the end.
        self.rules.windows(count).rfind(|lines| lines.iter().all(|line| nets.are_in(line)))
    }
}

/// All other rules are about networks.
fn is_about_marks(line: &str) -> bool {
    !line.contains(" -s ") && !line.contains(" -d ")
}

/// The line that undoes a line of `-A`.
fn deletion(line: &str) -> String {
    format!("{}\n", line.replacen("-A ", "-D ", 1))
}

#[cfg(test)]
mod tests;
