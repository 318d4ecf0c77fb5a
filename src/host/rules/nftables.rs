//! The rules by nftables: a table of our own for each family, replaced whole.
//!
//! Written as text, because nft's JSON drops the comments of tables and chains (nft 1.0.6); read
//! as JSON.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::Value;

use super::rule::{self, Action, Family, KUBE_MASQUERADE_MARK, Nets, Rule, Side};
use super::{Leftovers, RulesError, Wanted, tool};

/// Sets the rules of the wanted families.
#[derive(Debug)]
pub(super) struct Nftables {
    nft: PathBuf,
    wanted: Wanted,
    /// Tables and chains may bear comments: since Linux 5.10.
    comments: bool,
    /// What was set, as it is listed.
    set: Vec<(Family, Vec<String>)>,
}

impl Nftables {
    /// Finds `nft` and what it and the kernel know.
    ///
    /// # Errors
    /// [`RulesError::Missing`], or that it does not run.
    pub(super) async fn find(mut wanted: Wanted) -> Result<Self, RulesError> {
        let nft = tool::find("nft")
            .ok_or_else(|| RulesError::Missing { tool: "nft".into(), package: "nftables" })?;
        // `-c` asks kernel and tool and changes nothing.
        let knows = async |what: &str| {
            let table = format!("table ip flannel-probe {{\n{what}\n}}\n");
            tool::run(&nft, &["-c", "-f", "-"], &table).await.map(|output| output.status.success())
        };
        let comments = knows("comment \"probe\"").await?;
        wanted.random_fully = wanted.random_fully
            && knows(
                "chain probe { type nat hook postrouting priority 100; masquerade fully-random; }",
            )
            .await?;
        Ok(Self { nft, wanted, comments, set: Vec::new() })
    }

    /// Replaces the families' tables, all in one transaction.
    pub(super) async fn set(&mut self, nets: &[Nets]) -> Result<(), RulesError> {
        let tables: Vec<Table> =
            nets.iter().map(|nets| Table::new(nets, self.wanted, self.comments)).collect();
        let input: String = tables.iter().map(|table| table.text.as_str()).collect();
        tool::output_of(&self.nft, &["-f", "-"], &input).await?;
        // As the kernel has it, which is not always as it was written.
        let mut set = Vec::new();
        for (nets, table) in nets.iter().zip(&tables) {
            let family = nets.family();
            let present = self.read_table(family).await?;
            // Somebody may have been there between the two: that must not become what holds.
            let rules = present.iter().filter(|object| object.starts_with("{\"rule\"")).count();
            if rules != table.rules || present.len() != 1 + table.chains + table.rules {
                return Err(RulesError::NotKept { chain: name(family) });
            }
            set.push((family, present));
        }
        self.set = set;
        Ok(())
    }

    /// Is everything there as it was when it was set, and nothing else?
    pub(super) async fn holds(&self) -> Result<bool, RulesError> {
        for (family, set) in &self.set {
            if self.read_table(*family).await? != *set {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn read_table(&self, family: Family) -> Result<Vec<String>, RulesError> {
        let args = ["-j", "list", "table", keyword(family), name(family)];
        let output = tool::run(&self.nft, &args, "").await?;
        if !output.status.success() {
            // There is no such table, or nft does not work: setting it will tell.
            return Ok(Vec::new());
        }
        objects(&output.stdout).ok_or_else(|| tool::refused(&self.nft, &args, &output))
    }
}

/// The objects of a listing, one JSON text each, without what differs from one setting of the same
/// rules to the next.
fn objects(listing: &[u8]) -> Option<Vec<String>> {
    let listing: Value = serde_json::from_slice(listing).ok()?;
    let mut objects = Vec::new();
    for object in listing.get("nftables")?.as_array()? {
        if object.get("metainfo").is_some() {
            continue;
        }
        let mut object = object.clone();
        for (_, fields) in object.as_object_mut()? {
            fields.as_object_mut()?.remove("handle");
        }
        objects.push(object.to_string());
    }
    Some(objects)
}

/// Removes the tables of all families but those of `kept`. With `dry_run`, only finds them.
pub(super) async fn clean(kept: &[Family], dry_run: bool, leftovers: &mut Leftovers) {
    let Some(nft) = tool::find("nft") else { return };
    // A kernel without nftables has no tables of it.
    let Ok(tables) = tool::output_of(&nft, &["list", "tables"], "").await else { return };
    for family in Family::ALL.into_iter().filter(|family| !kept.contains(family)) {
        let (keyword, name) = (keyword(family), name(family));
        if !tables.lines().any(|line| line == format!("table {keyword} {name}")) {
            continue;
        }
        let deleted = match dry_run {
            true => Ok(String::new()),
            false => tool::output_of(&nft, &["delete", "table", keyword, name], "").await,
        };
        match deleted {
            Ok(_) => {
                let what = format!("the nftables table {name} that an earlier run left");
                leftovers.found.push(what);
            }
            Err(error) => {
                let what = format!("an earlier run's rules are left in nftables: {error}");
                leftovers.failed.push(what);
            }
        }
    }
}

fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    }
}

/// The input that replaces a table.
struct Table {
    text: String,
    /// How many chains it has.
    chains: usize,
    /// How many rules they have together.
    rules: usize,
}

impl Table {
    /// Pure.
    fn new(nets: &Nets, wanted: Wanted, comments: bool) -> Self {
        let (keyword, name) = (keyword(nets.family()), name(nets.family()));
        let comment = |indent: &str, text: &str| match comments {
            true => format!("{indent}comment \"{text}\"\n"),
            false => String::new(),
        };
        // Adding makes sure that there is something to delete.
        let mut table = Self {
            text: format!(
                "add table {keyword} {name}\ndelete table {keyword} {name}\n\
                 table {keyword} {name} {{\n{}",
                comment("\t", &format!("rules for {name}"))
            ),
            chains: 0,
            rules: 0,
        };
        if wanted.masquerade {
            table.text += "\tchain postrtg {\n";
            table.text += &comment("\t\t", "chain to manage traffic masquerading by flannel");
            table.text += "\t\ttype nat hook postrouting priority 100; policy accept;\n";
            table.rules(keyword, &rule::masquerade(nets), wanted.random_fully);
        }
        if wanted.forward {
            table.text += "\tchain forward {\n";
            table.text += &comment("\t\t", "chain to accept flannel traffic");
            table.text += "\t\ttype filter hook forward priority 0; policy accept;\n";
            table.rules(keyword, &rule::forward(nets), false);
        }
        table.text += "}\n";
        table
    }

    /// Adds the rules and the end of the chain.
    fn rules(&mut self, keyword: &str, rules: &[Rule], random_fully: bool) {
        for rule in rules {
            self.text += "\t\t";
            if rule.marked {
                // Writing to a String cannot fail.
                let _ = write!(
                    self.text,
                    "meta mark & {KUBE_MASQUERADE_MARK:#x} == {KUBE_MASQUERADE_MARK:#x} "
                );
            }
            for (field, side) in [("saddr", rule.source), ("daddr", rule.destination)] {
                self.text += &match side {
                    Side::Any => String::new(),
                    Side::In(net) => format!("{keyword} {field} {net} "),
                    Side::NotIn(net) => format!("{keyword} {field} != {net} "),
                };
            }
            self.text += match rule.action {
                Action::Accept => "accept\n",
                Action::Return => "return\n",
                Action::Masquerade if random_fully => "masquerade fully-random\n",
                Action::Masquerade => "masquerade\n",
            };
        }
        self.text += "\t}\n";
        self.chains += 1;
        self.rules += rules.len();
    }
}

#[cfg(test)]
mod tests;
