//! The rules by iptables and ip6tables, legacy or on nftables: whichever `iptables` is.

mod text;

use std::path::PathBuf;

use tracing::{info, warn};

use self::text::{Chain, FORWARD, MASQUERADE, Present};
use super::rule::{self, Family, Nets, Rule};
use super::{RulesError, Wanted, tool};

/// Seconds that a tool waits for another one to release the lock of all tables. Kubernetes holds it
/// for some seconds on large hosts.
const WAIT: &str = "--wait=5";

/// The first release whose `iptables-restore` knows `--wait`, and MASQUERADE `--random-fully`
/// (facts 9.1).
const WAIT_AND_RANDOM: (u32, u32, u32) = (1, 6, 2);

/// Sets the rules of the wanted families.
#[derive(Debug)]
pub(super) struct Iptables {
    families: Vec<Programs>,
    wanted: Wanted,
}

/// One family's tools.
#[derive(Debug)]
struct Programs {
    family: Family,
    list: PathBuf,
    restore: PathBuf,
    version: Version,
    /// What was set: each chain with our rules as they are listed.
    set: Vec<(&'static Chain, Vec<String>)>,
}

/// What `iptables --version` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    number: (u32, u32, u32),
    /// Rules are kept by nftables.
    nft: bool,
}

impl Iptables {
    /// Finds the tools for these families.
    ///
    /// # Errors
    /// [`RulesError::Missing`], or that they do not run.
    pub(super) async fn find(families: &[Family], wanted: Wanted) -> Result<Self, RulesError> {
        let mut found = Vec::new();
        for &family in families {
            found.push(Programs::find(family).await?);
        }
        Ok(Self { families: found, wanted })
    }

    /// What is kept of iptables' chains, so that [`clean`] leaves it.
    pub(super) fn keeps(&self) -> Keeps<'_> {
        Keeps(Some(self))
    }

    /// Puts the rules into their chains, each family in one run of `iptables-restore`.
    pub(super) async fn set(&mut self, nets: &[Nets]) -> Result<(), RulesError> {
        let wanted = self.wanted;
        for programs in &mut self.families {
            let Some(nets) = nets.iter().find(|nets| nets.family() == programs.family) else {
                continue;
            };
            let chains = wanted_chains(wanted, nets);
            let random = wanted.random_fully && programs.version.knows_wait_and_random();
            let mut input = String::new();
            for (chain, rules) in &chains {
                let present = programs.present(chain).await?;
                input += &chain.set(&present, programs.own(chain), rules, random);
            }
            programs.restore(&input).await?;
            for (chain, rules) in &chains {
                let present = programs.present(chain).await?;
                match present.find_own(rules, nets) {
                    Some(own) if chain.holds(&present, own) => {
                        programs.set.retain(|(set, _)| set != chain);
                        programs.set.push((chain, own.to_vec()));
                    }
                    _ => return Err(RulesError::NotKept { chain: chain.name }),
                }
            }
        }
        Ok(())
    }

    /// Is everything there as it was when it was set?
    pub(super) async fn holds(&self) -> Result<bool, RulesError> {
        for programs in &self.families {
            for (chain, own) in &programs.set {
                if !chain.holds(&programs.present(chain).await?, own) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn wanted_chains(wanted: Wanted, nets: &Nets) -> Vec<(&'static Chain, Vec<Rule>)> {
    let mut chains = Vec::new();
    if wanted.masquerade {
        chains.push((&MASQUERADE, rule::masquerade(nets).to_vec()));
    }
    if wanted.forward {
        chains.push((&FORWARD, rule::forward(nets).to_vec()));
    }
    chains
}

impl Programs {
    async fn find(family: Family) -> Result<Self, RulesError> {
        let name = name(family);
        let missing = |tool: String| RulesError::Missing { tool, package: "iptables" };
        let list = tool::find(name).ok_or_else(|| missing(name.into()))?;
        let restore = format!("{name}-restore");
        let restore = tool::find(&restore).ok_or_else(|| missing(restore))?;
        let version = Version::parse(&tool::output_of(&list, &["--version"], "").await?);
        Ok(Self { family, list, restore, version, set: Vec::new() })
    }

    /// Our rules in this chain, as they were listed when they were set last.
    fn own(&self, chain: &Chain) -> Option<&[String]> {
        self.set.iter().find(|(set, _)| *set == chain).map(|(_, own)| own.as_slice())
    }

    async fn present(&self, chain: &Chain) -> Result<Present, RulesError> {
        let list = async |name| {
            let args = [WAIT, "-t", chain.table, "-S", name];
            let output = tool::run(&self.list, &args, "").await?;
            match output.status.code() {
                Some(0) => Ok(tool::text(&output.stdout)),
                // There is no such chain.
                Some(1) if name == chain.name => Ok(String::new()),
                _ => Err(tool::refused(&self.list, &args, &output)),
            }
        };
        Ok(chain.find(&(list(chain.parent).await? + &list(chain.name).await?)))
    }

    async fn restore(&self, input: &str) -> Result<(), RulesError> {
        let args: &[&str] = match self.version.knows_wait_and_random() {
            true => &["--noflush", WAIT],
            false => &["--noflush"],
        };
        tool::output_of(&self.restore, args, input).await.map(|_| ())
    }
}

impl Version {
    /// Reads `iptables v1.8.9 (nf_tables)`; what is no number counts as 0.
    fn parse(text: &str) -> Self {
        let number = text.split_whitespace().find_map(|word| word.strip_prefix('v'));
        let mut parts = number.unwrap_or_default().split('.').map(|part| part.parse().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        Self { number: (next(), next(), next()), nft: text.contains("nf_tables") }
    }

    fn knows_wait_and_random(self) -> bool {
        self.number >= WAIT_AND_RANDOM
    }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// What [`clean`] must leave alone.
pub(super) struct Keeps<'a>(Option<&'a Iptables>);

impl Keeps<'_> {
    /// Nothing.
    pub(super) const NOTHING: Keeps<'static> = Keeps(None);

    /// Of what the tool with this suffix sees, the chains that are not ours to keep.
    fn unwanted(&self, family: Family, suffix: &str) -> Vec<&'static Chain> {
        let own = self.0.and_then(|iptables| {
            let programs = iptables.families.iter().find(|of| of.family == family)?;
            let alias = if programs.version.nft { "-nft" } else { "-legacy" };
            (suffix.is_empty() || suffix == alias).then_some(iptables.wanted)
        });
        let kept = own.unwrap_or_default();
        let mut chains = Vec::new();
        if !kept.masquerade {
            chains.push(&MASQUERADE);
        }
        if !kept.forward {
            chains.push(&FORWARD);
        }
        chains
    }
}

/// Removes chains of ours that are not wanted (any more), jumps first, in both kinds of iptables:
/// the host may have changed from one to the other. A failure costs a line in the log.
pub(super) async fn clean(keeps: &Keeps<'_>) {
    for family in Family::ALL {
        for suffix in ["", "-legacy", "-nft"] {
            let chains = keeps.unwanted(family, suffix);
            if chains.is_empty() {
                continue;
            }
            let name = format!("{}{suffix}", name(family));
            match clean_with(&name, &chains).await {
                Ok(true) => info!("removed the rules that an earlier run left in {name}"),
                Ok(false) => {}
                Err(error) => warn!("an earlier run's rules may be left in {name}: {error}"),
            }
        }
    }
}

/// Says whether there was anything to remove.
async fn clean_with(name: &str, chains: &[&Chain]) -> Result<bool, RulesError> {
    // `iptables-save` without a table lists those that exist. Naming one would make the kernel
    // create it, and connections be tracked from then on.
    let (save, restore) = (format!("{name}-save"), format!("{name}-restore"));
    let (Some(save), Some(restore)) = (tool::find(&save), tool::find(&restore)) else {
        return Ok(false);
    };
    let saved = tool::output_of(&save, &[], "").await?;
    let input: String =
        chains.iter().map(|chain| chain.remove(&chain.find_saved(&saved))).collect();
    if input.is_empty() {
        return Ok(false);
    }
    tool::output_of(&restore, &["--noflush"], &input).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_are_read() {
        for (text, number, nft) in [
            ("iptables v1.8.9 (nf_tables)\n", (1, 8, 9), true),
            ("ip6tables v1.8.9 (legacy)\n", (1, 8, 9), false),
            ("iptables v1.4.21\n", (1, 4, 21), false),
            ("iptables v1.10\n", (1, 10, 0), false),
            ("nonsense", (0, 0, 0), false),
        ] {
            assert_eq!(Version::parse(text), Version { number, nft }, "{text}");
        }
        let knows = |text| Version::parse(text).knows_wait_and_random();
        assert!(knows("iptables v1.6.2") && knows("iptables v1.10.0"));
        assert!(!knows("iptables v1.6.1") && !knows("nonsense"));
    }
}
