//! What came of a soak, and whether that is good.
#![forbid(unsafe_code)]

use std::fmt;
use std::thread::ScopedJoinHandle;

use crate::DATAGRAMS;
use crate::drops::Drops;
use crate::footprint::Footprint;
use crate::storm::Tally;
use crate::stream::STYLES;
use crate::{churn, datagram, stream};

/// A thread of the soak.
pub(crate) type Handle<'scope> = ScopedJoinHandle<'scope, Result<Outcome, String>>;

/// What a thread has to tell. The numbers are those of the kind.
pub(crate) enum Outcome {
    /// An end of a flow of TCP connections.
    Streams(usize, stream::Counts),
    /// The receiving end of a flow of datagrams.
    Datagrams(usize, datagram::Counts),
    /// The sending end of one.
    Sent,
    /// Changes of the store.
    Leases(churn::Counts),
    /// What faults have done.
    Faults(Tally),
}

/// Packets that one dropped buffer may have held: the longest train that the kernel makes
/// (`UDP_MAX_SEGMENTS` since Linux 6.9).
const TRAIN_PACKETS: u64 = 128;

/// One datagram of so many may come late: the kernel queues per processor, so a thread that is moved
/// to another one can overtake itself. A data path that does not keep order passes it at once.
const ONE_LATE_IN: u64 = 1_000;

/// A daemon's end, from its log.
#[derive(Debug)]
struct Ending {
    egress_packets: u64,
    ingress_packets: u64,
    /// By the daemon, with its reasons.
    dropped: u64,
    errors: u64,
    lines: [String; 2],
}

/// Everything that is known at the end.
#[derive(Default)]
pub(crate) struct Report {
    /// By style; each connection is counted by both of its ends.
    streams: [stream::Counts; STYLES.len()],
    /// By kind.
    datagrams: [datagram::Counts; DATAGRAMS.len()],
    leases: churn::Counts,
    /// Of the flows and of the daemons' memory.
    failures: Vec<String>,
    /// Of each host's processes, one after the other.
    footprints: Vec<Vec<Footprint>>,
    /// None in a soak without faults.
    faults: Option<Tally>,
    /// By the kernel, but not while faults could show.
    drops: Drops,
    endings: Vec<Ending>,
}

impl Report {
    /// Adds what a thread told.
    pub(crate) fn add(&mut self, outcome: Result<Outcome, String>) {
        match outcome {
            Ok(Outcome::Streams(kind, counts)) => {
                self.streams[kind].connections += counts.connections;
                self.streams[kind].bytes += counts.bytes;
            }
            Ok(Outcome::Datagrams(kind, counts)) => {
                if counts.received == 0 {
                    self.failures.push(format!("{}: a flow got nothing", DATAGRAMS[kind].0));
                }
                self.datagrams[kind].add(&counts);
            }
            Ok(Outcome::Sent) => {}
            Ok(Outcome::Leases(counts)) => self.leases = counts,
            Ok(Outcome::Faults(tally)) => self.faults = Some(tally),
            Err(failure) => self.failures.push(failure),
        }
    }

    /// Adds the daemons' samples; so much more memory is no leak.
    pub(crate) fn add_footprints(&mut self, footprints: Vec<Vec<Footprint>>, growth_kib: u64) {
        for (number, footprint) in each(&footprints) {
            let wrong = footprint.judge(growth_kib).err();
            self.failures.extend(wrong.map(|wrong| format!("daemon {number}: {wrong}")));
        }
        self.footprints = footprints;
    }

    /// Adds what the daemons logged during the traffic.
    pub(crate) fn add_logs(&mut self, logs: &[Vec<String>]) {
        for lines in logs {
            let (told, strange): (Vec<_>, Vec<_>) =
                lines.iter().partition(|line| is_about_churn(line));
            self.failures.extend(strange.iter().map(|line| format!("unexpected log: {line}")));
            // The last lease comes on top.
            if told.len() as u64 > self.leases.changes() + 1 {
                let (lines, changes) = (told.len(), self.leases.changes());
                self.failures.push(format!("{lines} lines about {changes} changes of leases"));
            }
        }
    }

    /// Adds what the kernel dropped, from the beginning to the end.
    pub(crate) fn add_drops(&mut self, drops: Drops) {
        self.drops = drops - self.faults.as_ref().map_or(Drops::default(), |tally| tally.drops);
    }

    /// Adds what the daemons logged at their end.
    pub(crate) fn add_endings(&mut self, logs: &[String]) {
        self.endings = logs.iter().map(|log| Ending::parse(log)).collect();
    }

    /// What is known to be wrong before the counters are read.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// All that is wrong.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = self.failures.clone();
        let mut fault = |bad: bool, text: String| faults.extend(bad.then_some(text));
        for (counts, style) in self.streams.iter().zip(&STYLES) {
            fault(counts.connections == 0, format!("{}: none", style.name));
        }
        let mut total = datagram::Counts::default();
        for (counts, (name, ..)) in self.datagrams.iter().zip(&DATAGRAMS) {
            fault(counts.corrupt > 0, format!("CORRUPT: {} of the {name}", counts.corrupt));
            fault(counts.duplicates > 0, format!("{name}: {} came twice", counts.duplicates));
            let late = counts.reordered;
            // Faults move flows to other queues: with a lower MTU, the longer datagrams as fragments.
            let late_is_wrong = self.faults.is_none() && late > counts.received / ONE_LATE_IN;
            fault(late_is_wrong, format!("{name}: {late} came late"));
            total.add(counts);
        }
        let wrong = self.drops.checksums;
        let wrong = wrong + self.faults.as_ref().map_or(0, |tally| tally.drops.checksums);
        fault(wrong > 0, format!("CORRUPT: {wrong} packets had wrong checksums"));

        // Each loss has a counter that explains it, in the kernel or in a daemon, or a fault.
        let explained = TRAIN_PACKETS * u64::try_from(self.drops.buffers()).unwrap();
        let lost = total.lost() - total.excused;
        fault(lost > explained, format!("{lost} datagrams are lost, but {} dropped", self.drops));
        if let Some(tally) = &self.faults {
            fault(tally.count() == 0, "no fault was done".into());
            // A process that was killed did not tell its counters; the storm has asked before.
            return faults;
        }
        let sum = |of: fn(&Ending) -> u64| self.endings.iter().map(of).sum::<u64>();
        let (sent, taken) = (sum(|e| e.egress_packets), sum(|e| e.ingress_packets));
        fault(
            taken > sent || sent - taken > explained,
            format!("the daemons sent {sent} packets and took {taken}, but {}", self.drops),
        );
        fault(sum(|e| e.dropped + e.errors) > 0, "the daemons dropped packets".into());
        faults
    }
}

/// All processes' footprints, with the number of the host.
fn each(footprints: &[Vec<Footprint>]) -> impl Iterator<Item = (usize, &Footprint)> {
    let hosts = footprints.iter().enumerate();
    hosts.flat_map(|(number, processes)| processes.iter().map(move |process| (number, process)))
}

impl Ending {
    fn parse(log: &str) -> Ending {
        let line = |direction: &str| -> String {
            let found = log.lines().find_map(|line| Some(line.split_once(direction)?.1.to_owned()));
            found.unwrap_or_else(|| panic!("no counters of {direction} in\n{log}"))
        };
        let lines = [line("] egress: "), line("] ingress: ")];
        let sum = |lines: &[String], wanted: fn(&str) -> bool| -> u64 {
            let counters = lines.iter().flat_map(|line| line.split_whitespace());
            let counters = counters.filter_map(|counter| counter.split_once('='));
            counters.filter(|(name, _)| wanted(name)).map(|(_, n)| n.parse::<u64>().unwrap()).sum()
        };
        Ending {
            egress_packets: sum(&lines[..1], |name| name == "packets"),
            ingress_packets: sum(&lines[1..], |name| name == "packets"),
            // The host's own multicast on flannel0 may be anything but IPv4.
            dropped: sum(&lines, |name| name.starts_with("drop_") && name != "drop_not_ipv4"),
            errors: sum(&lines, |name| name == "errors" || name == "icmp_errors"),
            lines,
        }
    }
}

/// Whether a line tells of a lease that the soak made: of a third byte above 100.
pub(crate) fn is_about_churn(line: &str) -> bool {
    let subnet = line.split_once("] peer 172.7.").and_then(|(_, rest)| rest.split_once('.'));
    subnet.is_some_and(|(third, _)| third.parse::<u8>().is_ok_and(|third| third > 100))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (stream::Counts { connections, bytes }, style) in self.streams.iter().zip(&STYLES) {
            // Both ends have counted the connection, each its own direction's bytes.
            writeln!(f, "  {}: connections={} bytes={bytes}", style.name, connections / 2)?;
        }
        for (counts, (name, ..)) in self.datagrams.iter().zip(&DATAGRAMS) {
            let datagram::Counts { sent, received, bytes, duplicates, reordered, corrupt, excused } =
                counts;
            writeln!(
                f,
                "  {name}: sent={sent} received={received} bytes={bytes} lost={} excused={excused} \
                 duplicates={duplicates} reordered={reordered} corrupt={corrupt}",
                counts.lost()
            )?;
        }
        let churn::Counts { added, moved, removed } = self.leases;
        writeln!(f, "  leases: added={added} moved={moved} removed={removed}")?;
        writeln!(f, "  dropped by the kernel: {}", self.drops)?;
        if let Some(tally) = &self.faults {
            write!(f, "{tally}")?;
        }
        for (number, footprint) in each(&self.footprints) {
            writeln!(f, "  daemon {number}: {footprint}")?;
        }
        for (number, Ending { lines: [egress, ingress], .. }) in self.endings.iter().enumerate() {
            writeln!(f, "  daemon {number}, egress: {egress}")?;
            writeln!(f, "  daemon {number}, ingress: {ingress}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a soak on one daemon could have left that talked to itself.
    fn good() -> Report {
        let mut report = Report::default();
        for kind in 0..STYLES.len() {
            report.add(Ok(Outcome::Streams(kind, stream::Counts { connections: 1, bytes: 1 })));
        }
        for kind in 0..DATAGRAMS.len() {
            let counts = datagram::Counts { sent: 9, received: 9, ..Default::default() };
            report.add(Ok(Outcome::Datagrams(kind, counts)));
        }
        report.endings = vec![ending(90, 90, "")];
        report
    }

    fn ending(egress: u64, ingress: u64, more: &str) -> Ending {
        Ending::parse(&format!(
            "I1 main.rs:1] egress: packets={egress} bytes=9\n\
             I1 main.rs:1] ingress: packets={ingress} bytes=9{more}"
        ))
    }

    fn only_fault(report: &Report) -> String {
        let faults = report.faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].clone()
    }

    #[test]
    fn what_is_wrong_is_found() {
        assert_eq!(good().faults(), Vec::<String>::new());
        let datagrams = |change: fn(&mut datagram::Counts)| {
            let mut report = good();
            change(&mut report.datagrams[1]);
            only_fault(&report)
        };
        assert!(datagrams(|counts| counts.corrupt = 1).contains("CORRUPT: 1 of the UDP_SEGMENT"));
        assert!(datagrams(|counts| counts.duplicates = 1).contains("1 came twice"));
        assert!(datagrams(|counts| counts.reordered = 1).contains("1 came late"));
        assert!(datagrams(|counts| counts.received -= 1).contains("1 datagrams are lost"));

        let mut report = good();
        report.drops.checksums = 1;
        assert!(only_fault(&report).contains("CORRUPT: 1 packets had wrong checksums"));
        for (end, fault) in [
            (ending(90, 89, ""), "sent 90 packets and took 89"),
            (ending(90, 91, ""), "sent 90 packets and took 91"),
            (ending(90, 90, " drop_malformed=1"), "the daemons dropped packets"),
            (ending(90, 90, " errors=1"), "the daemons dropped packets"),
        ] {
            let mut report = good();
            report.endings = vec![end];
            assert!(only_fault(&report).contains(fault), "{fault}");
        }
        // What a counter of the kernel explains is no fault.
        let mut report = good();
        report.drops.devices = 1;
        report.datagrams[0].received -= 1;
        report.endings = vec![ending(90, 89, "")];
        assert_eq!(report.faults(), Vec::<String>::new());
    }

    #[test]
    fn only_what_a_fault_explains_is_excused() {
        let mut report = good();
        report.datagrams[0].received -= 2;
        report.datagrams[0].excused = 1;
        report.faults = Some(Tally::default());
        let faults = report.faults();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("1 datagrams are lost"), "{faults:?}");
        assert!(faults[1].contains("no fault was done"), "{faults:?}");
        // What the kernel dropped during a fault explains nothing that was lost without.
        let drops = Drops { devices: 1, checksums: 1, ..Drops::default() };
        let mut tally = Tally::default();
        tally.drops = drops;
        report.faults = Some(tally);
        report.add_drops(drops);
        let faults = report.faults();
        assert!(faults[0].contains("CORRUPT: 1 packets had wrong checksums"), "{faults:?}");
        assert!(faults[1].contains("1 datagrams are lost"), "{faults:?}");
    }

    #[test]
    fn only_lines_about_the_churn_are_expected() {
        let line =
            |text: &str| vec![vec![format!("I0629 14:28:35.866793    5522 daemon.rs:1] {text}")]];
        let faults = |text: &str| {
            let mut report = good();
            report.add_logs(&line(text));
            report.faults()
        };
        assert!(faults("peer 172.7.101.0/24 at 10.4.7.100 is up").is_empty());
        assert!(faults("peer 172.7.199.0/24 is gone").is_empty());
        assert_eq!(faults("peer 172.7.100.0/24 is gone").len(), 1);
        assert_eq!(faults("flannel0 was changed from outside").len(), 1);
    }
}
