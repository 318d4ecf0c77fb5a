//! The rules by iptables and ip6tables, legacy or on nftables: whichever `iptables` is.
#![forbid(unsafe_code)]

mod text;

use std::path::PathBuf;

use self::text::{Chain, FORWARD, MASQUERADE};
use super::rule::{self, Family, Nets, Rule};
use super::{Leftovers, RulesError, Wanted, tool};

/// Seconds that a tool waits for another one to release the lock of all tables. Kubernetes holds it
/// for some seconds on large hosts.
const WAIT: &str = "--wait=5";

/// The first release whose `iptables-restore` knows `--wait`, and MASQUERADE `--random-fully`
/// (facts 9.1).
const WAIT_AND_RANDOM: Version = Version(1, 6, 2);

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
    save: PathBuf,
    restore: PathBuf,
    version: Version,
    /// What was set: each chain with our rules as they are listed.
    set: Vec<(&'static Chain, Vec<String>)>,
}

/// What `iptables --version` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

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
            let saved = programs.saved().await?;
            for (chain, rules) in &chains {
                let present = chain.find(&saved);
                input += &chain.set(&present, programs.own(chain), rules, random);
            }
            programs.restore(&input).await?;
            let saved = programs.saved().await?;
            for (chain, rules) in &chains {
                let present = chain.find(&saved);
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
            let saved = programs.saved().await?;
            if !programs.set.iter().all(|(chain, own)| chain.holds(&chain.find(&saved), own)) {
                return Ok(false);
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
        let find = |end: &str| {
            let tool = format!("{}{end}", name(family));
            tool::find(&tool).ok_or(RulesError::Missing { tool, package: "iptables" })
        };
        let (plain, save, restore) = (find("")?, find("-save")?, find("-restore")?);
        let version = Version::parse(&tool::output_of(&plain, &["--version"], "").await?);
        Ok(Self { family, save, restore, version, set: Vec::new() })
    }

    /// Our rules in this chain, as they were listed when they were set last.
    fn own(&self, chain: &Chain) -> Option<&[String]> {
        self.set.iter().find(|(set, _)| *set == chain).map(|(_, own)| own.as_slice())
    }

    /// All tables, in one run of the tool.
    async fn saved(&self) -> Result<String, RulesError> {
        tool::output_of(&self.save, &[], "").await
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
        Self(next(), next(), next())
    }

    fn knows_wait_and_random(self) -> bool {
        self >= WAIT_AND_RANDOM
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

    /// The chains that are not ours to keep, of those that `iptables` itself sees.
    fn unwanted(&self, family: Family) -> Vec<&'static Chain> {
        let own = self.0.filter(|own| own.families.iter().any(|of| of.family == family));
        let kept = own.map(|own| own.wanted).unwrap_or_default();
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
/// the host may have changed from one to the other. With `dry_run`, only finds them.
pub(super) async fn clean(keeps: &Keeps<'_>, dry_run: bool, leftovers: &mut Leftovers) {
    for family in Family::ALL {
        // `iptables` is a link to the same program as one of the others.
        let mut seen = Vec::new();
        for suffix in ["", "-legacy", "-nft"] {
            let name = format!("{}{suffix}", name(family));
            let program =
                tool::find(&format!("{name}-save")).and_then(|tool| tool.canonicalize().ok());
            if program.is_none() || seen.contains(&program) {
                continue;
            }
            seen.push(program);
            let chains = match suffix {
                "" => keeps.unwanted(family),
                _ => vec![&MASQUERADE, &FORWARD],
            };
            match clean_with(&name, &chains, dry_run).await {
                Ok(true) => {
                    leftovers.found.push(format!("the rules that an earlier run left in {name}"));
                }
                Ok(false) => {}
                Err(error) => leftovers
                    .failed
                    .push(format!("an earlier run's rules may be left in {name}: {error}")),
            }
        }
    }
}

/// Says whether there was anything to remove.
async fn clean_with(name: &str, chains: &[&Chain], dry_run: bool) -> Result<bool, RulesError> {
    // `iptables-save` without a table lists those that exist. Naming one would make the kernel
    // create it, and connections be tracked from then on.
    let (save, restore) = (format!("{name}-save"), format!("{name}-restore"));
    let (Some(save), Some(restore)) = (tool::find(&save), tool::find(&restore)) else {
        return Ok(false);
    };
    if chains.is_empty() {
        return Ok(false);
    }
    let saved = tool::output_of(&save, &[], "").await?;
    let input: String = chains.iter().map(|chain| chain.remove(&chain.find(&saved))).collect();
    if input.is_empty() {
        return Ok(false);
    }
    if !dry_run {
        tool::output_of(&restore, &["--noflush", WAIT], &input).await?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_are_read() {
        for (text, version) in [
            ("iptables v1.8.9 (nf_tables)\n", Version(1, 8, 9)),
            ("ip6tables v1.8.9 (legacy)\n", Version(1, 8, 9)),
            ("iptables v1.4.21\n", Version(1, 4, 21)),
            ("iptables v1.10\n", Version(1, 10, 0)),
            ("nonsense", Version(0, 0, 0)),
        ] {
            assert_eq!(Version::parse(text), version, "{text}");
        }
        let knows = |text| Version::parse(text).knows_wait_and_random();
        assert!(knows("iptables v1.6.2") && knows("iptables v1.10.0"));
        assert!(!knows("iptables v1.6.1") && !knows("nonsense"));
    }
}
