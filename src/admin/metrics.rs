//! The metrics, in Prometheus' text format.
//!
//! Written by hand: a line for each figure is all there is to it, and the figures are counted
//! elsewhere. Label values are names of ours and addresses, which need no escaping.
#![forbid(unsafe_code)]

use std::fmt::{Display, Write};

use super::report::{DirectionReport, PeerDirectionReport, PeerReport, Report};

/// All metrics of a report.
pub(super) fn page(report: &Report) -> String {
    let mut page = Page { text: String::new(), metric: "" };
    daemon(&mut page, report);
    data_path(&mut page, report);
    peers(&mut page, &report.peers);
    page.text
}

fn daemon(page: &mut Page, report: &Report) {
    page.gauge("flanneld_build_info", "The daemon's version; always 1.");
    page.line(&[("version", &report.version)], 1);
    page.gauge("flanneld_start_time_seconds", "When the daemon started, in Unix time.");
    page.line(&[], report.started_at);
    page.gauge("flanneld_ready", "Whether the overlay works on this host: 1 or 0.");
    page.line(&[], u8::from(report.ready));

    page.gauge("flanneld_store_connected", "Whether the store answers: 1 or 0.");
    page.line(&[], u8::from(report.store.as_ref().is_some_and(|store| store.connected)));
    page.gauge("flanneld_lease_held", "Whether this host holds a lease: 1 or 0.");
    page.line(&[], u8::from(report.lease.as_ref().is_some_and(|lease| lease.held)));
    if let Some(end) = report.lease.as_ref().and_then(|lease| lease.expires_at) {
        page.gauge(
            "flanneld_lease_expiry_timestamp_seconds",
            "When this host's lease ends unless it is renewed, in Unix time; none for a reservation.",
        );
        page.line(&[], end);
    }
    page.gauge("flanneld_device_up", "Whether the device carries packets: 1 or 0.");
    let up = report.device.as_ref().is_some_and(|device| device.trouble.is_none());
    page.line(&[], u8::from(up));
    if let Some(device) = &report.device {
        page.gauge("flanneld_device_mtu_bytes", "The largest packet of a pod.");
        page.line(&[], device.mtu_bytes);
    }
    page.gauge("flanneld_rules_set", "Whether traffic rules are set: 1 or 0.");
    page.line(&[], u8::from(report.rules.set));
    page.gauge("flanneld_subnet_file_written", "Whether subnet.env says what is true: 1 or 0.");
    page.line(&[], u8::from(report.subnet_file_written));
    page.gauge("flanneld_routes", "Subnets in the table of routes.");
    page.line(&[], report.routes);
    page.gauge("flanneld_peers", "Other hosts that hold leases.");
    page.line(&[], report.peers.len());
    page.gauge(
        "flanneld_offload_enabled",
        "Whether an offload of the kernel is in use: 1, or 0 if not wished or switched off.",
    );
    for (feature, on) in report.offload.each() {
        page.line(&[("feature", feature)], u8::from(on));
    }
}

/// How a counter is read off a direction.
type Reading = fn(&DirectionReport) -> u64;

fn data_path(page: &mut Page, report: &Report) {
    let directions = [("egress", &report.egress), ("ingress", &report.ingress)];
    let counters: [(&str, &str, Reading); 8] = [
        ("flanneld_packets_total", "Packets of pods that were passed on.", |d| d.packets),
        ("flanneld_bytes_total", "Bytes of those packets.", |d| d.bytes),
        ("flanneld_batches_total", "Wake-ups that found packets.", |d| d.batches),
        ("flanneld_syscalls_total", "System calls that moved packets.", |d| d.syscalls),
        ("flanneld_superpackets_in_total", "Superpackets that came in whole.", |d| {
            d.superpackets_in
        }),
        ("flanneld_superpackets_out_total", "Superpackets that went out whole.", |d| {
            d.superpackets_out
        }),
        ("flanneld_icmp_errors_total", "ICMP errors that were sent.", |d| d.icmp_errors),
        ("flanneld_errors_total", "Errors that the kernel reported.", |d| d.errors),
    ];
    for (name, help, read) in counters {
        page.counter(name, help);
        for (direction, counts) in directions {
            page.line(&[("direction", direction)], read(counts));
        }
    }
    page.counter("flanneld_drops_total", "Packets that went no further, by reason.");
    for (direction, counts) in directions {
        for (reason, packets) in &counts.drops {
            page.line(&[("direction", direction), ("reason", reason)], packets);
        }
    }
    page.counter(
        "flanneld_queue_drops_total",
        "Packets that the kernel dropped: because a queue of the device was full (egress), or a socket's, or a datagram's checksum was wrong (ingress).",
    );
    for (direction, counts) in directions {
        if let Some(packets) = counts.queue_drops {
            page.line(&[("direction", direction)], packets);
        }
    }
}

/// How a counter is read off a direction of a peer.
type PeerReading = fn(&PeerDirectionReport) -> u64;

fn peers(page: &mut Page, peers: &[PeerReport]) {
    let peers: Vec<(String, &PeerReport)> =
        peers.iter().map(|peer| (peer.public_ip.to_string(), peer)).collect();
    let counters: [(&str, &str, PeerReading); 3] = [
        ("flanneld_peer_packets_total", "Packets to and from a peer.", |d| d.packets),
        ("flanneld_peer_bytes_total", "Bytes of those packets.", |d| d.bytes),
        ("flanneld_peer_drops_total", "Packets for or of a peer that went no further.", |d| {
            d.drops
        }),
    ];
    for (name, help, read) in counters {
        page.counter(name, help);
        for (ip, peer) in &peers {
            page.line(&[("peer", ip), ("direction", "egress")], read(&peer.egress));
            page.line(&[("peer", ip), ("direction", "ingress")], read(&peer.ingress));
        }
    }
    page.gauge(
        "flanneld_peer_last_seen_timestamp_seconds",
        "When a packet of the peer was last seen, in Unix time, to a second; none before the first.",
    );
    for (ip, peer) in &peers {
        if let Some(seen) = peer.last_seen_at {
            page.line(&[("peer", ip)], seen);
        }
    }
    page.gauge(
        "flanneld_peer_lease_age_seconds",
        "How long this daemon has known the peer's lease, unchanged.",
    );
    for (ip, peer) in &peers {
        page.line(&[("peer", ip)], peer.lease_age_seconds);
    }
}

/// The text as it grows. Writing to a string cannot fail.
struct Page {
    text: String,
    metric: &'static str,
}

impl Page {
    fn counter(&mut self, name: &'static str, help: &str) {
        self.family(name, "counter", help);
    }

    fn gauge(&mut self, name: &'static str, help: &str) {
        self.family(name, "gauge", help);
    }

    /// The lines that follow are of this metric.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self.metric = name;
    }

    fn line(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(self.metric);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}
