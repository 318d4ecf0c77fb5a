//! The answer for people: at most 100 columns wide, whatever the figures.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime};

use crate::admin::report::{DirectionReport, OffloadReport, PeerReport, Report, StoreReport};

/// Whether to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Colours,
}

impl Style {
    /// Colours on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub(super) fn of_stdout() -> Style {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        if wanted && io::stdout().is_terminal() { Style::Colours } else { Style::Plain }
    }

    fn paint(self, colour: &str, text: &str) -> String {
        match self {
            Style::Plain => text.to_owned(),
            Style::Colours => format!("\x1b[{colour}m{text}\x1b[0m"),
        }
    }

    fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }
}

/// The table. Writing to a string cannot fail.
pub(super) fn render(report: &Report, now: SystemTime, style: Style) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut out = String::new();
    let state = if report.ready { style.good("ready") } else { style.bad("not ready") };
    let up = age(now, report.started_at);
    let _ = writeln!(out, "flanneld {} (pid {}): {state}, up {up}", report.version, report.pid);
    for missing in &report.not_ready {
        let _ = writeln!(out, "  {}", style.bad(missing));
    }
    let mut field = |name: &str, text: &str| {
        let _ = writeln!(out, "{name:<9}{text}");
    };
    field("lease", &lease(report, now, style));
    field("device", &device(report, style));
    field("offload", &offload(&report.offload));
    field("store", &store(report, style));
    if let Some(trouble) = report.store.as_ref().and_then(|store| store.trouble.as_ref()) {
        field("", &style.bad(&shortened(trouble, 88)));
    }
    field("rules", &rules(report, style));
    field("sent", &direction(&report.egress));
    field("received", &direction(&report.ingress));
    for (name, direction) in [("egress", &report.egress), ("ingress", &report.ingress)] {
        if let Some(drops) = drops(direction) {
            field("dropped", &format!("{name}: {drops}"));
        }
    }
    peers(&mut out, &report.peers, report.routes, now);
    out
}

fn lease(report: &Report, now: u64, style: Style) -> String {
    let Some(lease) = &report.lease else { return style.bad("none yet") };
    let end = match (lease.held, lease.expires_at) {
        (false, _) => style.bad("lost, or ended"),
        (true, None) => "reserved".to_owned(),
        (true, Some(end)) => format!("ends in {}", age(end, now)),
    };
    format!("{} of {}, {end}; peers send to {}", lease.subnet, lease.network, lease.public_ip)
}

fn device(report: &Report, style: Style) -> String {
    let Some(device) = &report.device else { return style.bad("none yet") };
    let text = format!("{}, MTU {}", device.name, device.mtu_bytes);
    match &device.trouble {
        None => format!("{text}, {}", style.good("up")),
        Some(trouble) => format!("{text}: {}", style.bad(&shortened(trouble, 60))),
    }
}

fn offload(offload: &OffloadReport) -> String {
    offload.each().map(|(name, on)| format!("{name} {}", if on { "on" } else { "off" })).join(", ")
}

fn store(report: &Report, style: Style) -> String {
    let Some(store) = &report.store else { return style.bad("none yet") };
    let state = match store {
        StoreReport { connected: true, .. } => style.good("connected"),
        StoreReport { reached: true, .. } => style.bad("connection lost"),
        _ => style.bad("no answer yet"),
    };
    format!("{}: {state}", shortened(&store.name, 70))
}

fn rules(report: &Report, style: Style) -> String {
    match &report.rules.trouble {
        Some(trouble) => style.bad(&shortened(trouble, 88)),
        None if report.rules.set => style.good("set"),
        None => "none".to_owned(),
    }
}

fn direction(direction: &DirectionReport) -> String {
    format!(
        "{}, {} in {} packets",
        rate(direction.bits_per_second),
        bytes(direction.bytes),
        count(direction.packets)
    )
}

/// The drops that happened, if any did; those of full queues as well.
fn drops(direction: &DirectionReport) -> Option<String> {
    let mut drops: Vec<(&str, u64)> =
        direction.drops.iter().map(|(reason, &packets)| (reason.as_str(), packets)).collect();
    drops.push(("queue_full", direction.queue_drops.unwrap_or(0)));
    drops.retain(|&(_, packets)| packets > 0);
    drops.sort_by_key(|&(_, packets)| std::cmp::Reverse(packets));
    let shown: Vec<String> = drops
        .iter()
        .take(3)
        .map(|(reason, packets)| format!("{reason} {}", count(*packets)))
        .collect();
    let more = drops.len().saturating_sub(3);
    let rest = if more > 0 { format!(" +{more} more") } else { String::new() };
    (!shown.is_empty()).then(|| shown.join(", ") + &rest)
}

fn peers(out: &mut String, peers: &[PeerReport], routes: usize, now: u64) {
    let _ = writeln!(out, "\n{}, {}", plural(peers.len(), "peer"), plural(routes, "route"));
    if peers.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "{:<15}  {:<18}  {:>7} {:>6}  {:>7} {:>6}  {:>5}  {:>6} {:>6}",
        "PEER", "SUBNET", "SENT", "bit/s", "RECV", "bit/s", "DROPS", "SEEN", "LEASED"
    );
    for peer in peers {
        let more = peer.subnets.len().saturating_sub(1);
        let first = peer.subnets.first().map_or("", String::as_str);
        let subnet = if more > 0 { format!("{first} +{more}") } else { first.to_owned() };
        let seen = peer.last_seen_at.map_or_else(|| "never".to_owned(), |seen| age(now, seen));
        let _ = writeln!(
            out,
            "{:<15}  {subnet:<18}  {:>7} {:>6}  {:>7} {:>6}  {:>5}  {seen:>6} {:>6}",
            peer.public_ip.to_string(),
            bytes(peer.egress.bytes),
            scaled(peer.egress.bits_per_second, ""),
            bytes(peer.ingress.bytes),
            scaled(peer.ingress.bits_per_second, ""),
            count(peer.egress.drops + peer.ingress.drops),
            span(Duration::from_secs(peer.lease_age_seconds)),
        );
    }
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The time from `then` to `now`.
fn age(now: u64, then: u64) -> String {
    span(Duration::from_secs(now.saturating_sub(then)))
}

/// Two figures at most: `12s`, `3m12s`, `23h05m`, `4d02h`.
fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

fn rate(bits_per_second: u64) -> String {
    scaled(bits_per_second, " ") + "bit/s"
}

fn bytes(bytes: u64) -> String {
    scaled(bytes, " ") + "B"
}

fn count(count: u64) -> String {
    scaled(count, "")
}

/// Three figures and a power of 1,000: `999`, `1.23k`, `45.6M`, `789G`. `gap` stands before the
/// unit.
fn scaled(value: u64, gap: &str) -> String {
    if value < 1000 {
        return format!("{value}{gap}");
    }
    let mut scaled = value as f64;
    for power in ["k", "M", "G", "T", "P", "E"] {
        scaled /= 1000.0;
        // What would be rounded up to four figures belongs to the next power.
        for (limit, decimals) in [(9.995, 2), (99.95, 1), (999.5, 0)] {
            if scaled < limit {
                return format!("{scaled:.decimals$}{gap}{power}");
            }
        }
    }
    // 2^64 is 18.4 E.
    format!("{scaled:.0}{gap}E")
}

/// So much of a text of any length, on one line.
fn shortened(text: &str, max_chars: usize) -> String {
    let mut short: String = text.chars().take(max_chars).filter(|c| !c.is_control()).collect();
    if text.chars().nth(max_chars).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::report::{DeviceReport, LeaseReport, PeerDirectionReport};
    use crate::dataplane::stats::Drop;

    #[test]
    fn figures_keep_three_digits() {
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.00k"),
            (9_994, "9.99k"),
            (9_995, "10.0k"),
            (99_960, "100k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(scaled(value, ""), text, "{value}");
        }
        assert_eq!((rate(1_230_000), bytes(12)), ("1.23 Mbit/s".into(), "12 B".into()));
    }

    #[test]
    fn spans_have_two_figures() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (192, "3m12s"), (83_100, "23h05m"), (352_800, "4d02h")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    /// The largest figures that can be.
    fn widest() -> Report {
        let direction = DirectionReport {
            packets: u64::MAX,
            bytes: u64::MAX,
            bits_per_second: u64::MAX,
            drops: Drop::ALL.map(|reason| (reason.name().to_owned(), u64::MAX)).into(),
            queue_drops: Some(u64::MAX),
            ..DirectionReport::default()
        };
        let peer = PeerDirectionReport {
            packets: u64::MAX,
            bytes: u64::MAX,
            bits_per_second: u64::MAX,
            drops: u64::MAX / 2,
        };
        Report {
            version: "100.100.100".into(),
            pid: u32::MAX,
            not_ready: vec!["the device does not carry packets".into()],
            store: Some(StoreReport {
                name: "x".repeat(300),
                trouble: Some("z".repeat(300)),
                ..StoreReport::default()
            }),
            lease: Some(LeaseReport {
                network: "100.100.0.0/16".into(),
                subnet: "100.100.100.0/24".into(),
                public_ip: [255, 255, 255, 254].into(),
                held: true,
                expires_at: Some(86_400),
            }),
            device: Some(DeviceReport {
                name: "flannel00000000".into(),
                mtu_bytes: u16::MAX,
                trouble: Some("y".repeat(300)),
            }),
            egress: direction.clone(),
            ingress: direction,
            peers: vec![PeerReport {
                public_ip: [255, 255, 255, 254].into(),
                subnets: vec!["100.100.100.128/25".into(); 2],
                lease_age_seconds: 400 * 86_400,
                last_seen_at: Some(0),
                egress: peer,
                ingress: peer,
            }],
            ..Report::default()
        }
    }

    #[test]
    fn a_hundred_columns_are_enough() {
        let text =
            render(&widest(), SystemTime::UNIX_EPOCH + Duration::from_secs(86_399), Style::Plain);
        for line in text.lines() {
            let columns = line.chars().count();
            assert!(columns <= 100, "{columns}: {line}");
        }
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn colours_change_nothing_else() {
        let plain = render(&widest(), SystemTime::UNIX_EPOCH, Style::Plain);
        let coloured = render(&widest(), SystemTime::UNIX_EPOCH, Style::Colours);
        assert_ne!(plain, coloured);
        let stripped = ["32", "31", "0"]
            .iter()
            .fold(coloured, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        assert_eq!(stripped, plain);
    }
}
