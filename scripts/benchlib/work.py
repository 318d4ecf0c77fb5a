"""What is measured: each item of work, over one path of one system."""

import contextlib
import time
from dataclasses import dataclass

from .lab import Failure, report

TCP_PORT, UDP_PORT, ECHO_PORT = 7001, 7002, 7003
# Far more than any report takes to come after the traffic has ended.
PATIENCE_S = 20
# TCP's slow start is not counted.
SKIP_S = 0.2
# A probe every millisecond leaves the processors to the bulk transfer.
PROBE_INTERVAL_US = 1000


@dataclass(frozen=True)
class Pace:
    """How long each measurement takes."""

    tcp_s: float
    udp_s: float
    loss: bool
    idle_samples: int
    beside_s: float


FULL = Pace(tcp_s=3.0, udp_s=2.0, loss=True, idle_samples=20_000, beside_s=3.0)
QUICK = Pace(tcp_s=0.65, udp_s=0.4, loss=False, idle_samples=2_000, beside_s=0.7)


@dataclass(frozen=True)
class End:
    """Where a program runs, and its address there."""

    netns: str
    address: str


class Work:
    """Measures one system between two ends."""

    def __init__(self, traffic, pace, system, here, there):
        self.traffic, self.pace, self.system = traffic, pace, system
        self.here, self.there = here, there

    def measure(self, item):
        """Metrics of one item: name → value."""
        self.system.check_alive()
        metrics = ITEMS[item](self)
        self.system.check_alive()
        return metrics

    @contextlib.contextmanager
    def _tcp_sink(self, end, streams, port=TCP_PORT):
        with self.traffic.listening(end.netns, "tcp-sink", "--listen", f"{end.address}:{port}",
                                    "--streams", streams) as sink:
            yield sink

    def _tcp(self, here, there, streams, seconds, port=TCP_PORT):
        return self.traffic.running(
            here.netns, "tcp", "--from", here.address, "--to", f"{there.address}:{port}",
            "--streams", streams, "--seconds", seconds)

    def _finish(self, process, what, seconds=0.0):
        return report(process, what, seconds + PATIENCE_S)

    def tcp_one(self):
        rate, received, used = self._tcp_rate(1)
        gigabytes = received / 1e9
        metrics = {"tcp1": rate, "cpu_machine": used["machine"] / gigabytes}
        if used["daemons"] is not None:
            metrics["cpu_daemons"] = used["daemons"] / gigabytes
        return metrics

    def tcp_eight(self):
        return {"tcp8": self._tcp_rate(8)[0]}

    def _tcp_rate(self, streams):
        seconds = SKIP_S + self.pace.tcp_s
        with self._tcp_sink(self.there, streams) as sink:
            before = self._cpu()
            with self._tcp(self.here, self.there, streams, seconds) as client:
                sent = self._finish(client, "tcp", seconds)
            received = self._finish(sink, "tcp-sink")
            after = self._cpu()
        window = (sent["first"] + SKIP_S, sent["first"] + seconds)
        used = {what: None if then is None else after[what] - then for what, then in before.items()}
        return gbps(received["samples"], *window), received["bytes"], used

    def _cpu(self):
        return {"daemons": self.system.cpu_seconds(), "machine": machine_cpu_seconds()}

    def both_directions(self):
        seconds = SKIP_S + self.pace.tcp_s
        ways = [(self.here, self.there), (self.there, self.here)]
        with contextlib.ExitStack() as stack:
            sinks = [stack.enter_context(self._tcp_sink(to, 1)) for _, to in ways]
            clients = [stack.enter_context(self._tcp(a, b, 1, seconds)) for a, b in ways]
            sent = [self._finish(client, "tcp", seconds) for client in clients]
            received = [self._finish(sink, "tcp-sink") for sink in sinks]
        window = (max(way["first"] for way in sent) + SKIP_S,
                  min(way["first"] for way in sent) + seconds)
        return {"both": sum(gbps(way["samples"], *window) for way in received)}

    def udp_small(self):
        return self._udp_metrics("udp64", 64)

    def udp_large(self):
        return self._udp_metrics("udp1400", 1400)

    def _udp_metrics(self, name, size):
        peak, _ = self._udp(size)
        metrics = {name: peak / 1000}
        if self.pace.loss:
            for percent in (50, 90):
                _, lost = self._udp(size, int(peak * percent / 100))
                metrics[f"{name}_loss{percent}"] = lost * 100
        return metrics

    def _udp(self, size, rate=None):
        """Packets received per second, and the share of the sent ones that was lost."""
        seconds = self.pace.udp_s
        with udp_sink(self.traffic, self.there, seconds) as sink:
            sent = self.traffic.call(
                self.here.netns, "blast", "--from", self.here.address,
                "--to", f"{self.there.address}:{UDP_PORT}", "--bytes", size,
                "--seconds", seconds, *(("--rate", rate) if rate else ()),
                patience=seconds + PATIENCE_S)
            received = self._finish(sink, "sink", seconds)
        if rate and sent["packets"] < 0.9 * rate * seconds:
            raise Failure(f"blast: {sent['packets'] / seconds:.0f} packets/s instead of {rate}")
        return packets_per_second([received]), 1 - received["packets"] / sent["packets"]

    def round_trips(self):
        with self._echo():
            trips = self._probe("--samples", self.pace.idle_samples)
        return {f"rtt_{name}": value for name, value in trips_us(trips).items()}

    def beside_bulk(self):
        """Round trips beside one TCP stream; what the stream loses while the probe runs."""
        alone = SKIP_S + self.pace.beside_s
        # The stream outlives the probe, also if starting it takes long.
        seconds = alone + self.pace.beside_s + 0.3
        with self._echo(), self._tcp_sink(self.there, 1) as sink, \
                self._tcp(self.here, self.there, 1, seconds) as client:
            time.sleep(alone)
            samples = int(self.pace.beside_s * 1e6 / PROBE_INTERVAL_US)
            trips = self._probe("--samples", samples, "--interval-us", PROBE_INTERVAL_US,
                                "--seconds", self.pace.beside_s)
            sent = self._finish(client, "tcp", seconds)
            received = self._finish(sink, "tcp-sink")["samples"]
        if trips["last"] > sent["last"]:
            raise Failure("rtt: the probe outlived the stream")
        before = gbps(received, sent["first"] + SKIP_S, trips["first"])
        during = gbps(received, trips["first"], trips["last"])
        metrics = {f"beside_{name}": value for name, value in trips_us(trips).items()}
        return {**metrics, "bulk_lost": (1 - during / before) * 100}

    def _echo(self):
        return self.traffic.listening(self.there.netns, "echo",
                                      "--listen", f"{self.there.address}:{ECHO_PORT}")

    def _probe(self, *options):
        return self.traffic.call(
            self.here.netns, "rtt", "--from", self.here.address,
            "--to", f"{self.there.address}:{ECHO_PORT}", *options, patience=60 + PATIENCE_S)


# In the order of the table.
ITEMS = {
    "tcp1": Work.tcp_one,
    "tcp8": Work.tcp_eight,
    "both": Work.both_directions,
    "udp64": Work.udp_small,
    "udp1400": Work.udp_large,
    "rtt": Work.round_trips,
    "beside": Work.beside_bulk,
}


def many_peers(traffic, pace, system, peers):
    """One blaster sends to many hosts in turn: what all of them receive, packets per second."""
    system.check_alive()
    hub, *others = system.world.hosts[:peers + 1]
    ends = [End(host.netns, system.address(host)) for host in others]
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(udp_sink(traffic, end, pace.udp_s)) for end in ends]
        traffic.call(hub.netns, "blast", "--from", system.address(hub),
                     "--to", ",".join(f"{end.address}:{UDP_PORT}" for end in ends),
                     "--bytes", 1400, "--seconds", pace.udp_s, patience=pace.udp_s + PATIENCE_S)
        received = [report(sink, "sink", pace.udp_s + PATIENCE_S) for sink in sinks]
    missed = sum(not one["packets"] for one in received)
    if missed:
        raise Failure(f"nothing arrived at {missed} of {peers} peers")
    return {f"peers{peers}": packets_per_second(received) / 1000}


def udp_sink(traffic, end, seconds):
    # Idle means that no queue on the way holds anything any more.
    return traffic.listening(end.netns, "sink", "--listen", f"{end.address}:{UDP_PORT}",
                             "--seconds", seconds + PATIENCE_S / 2, "--idle", 0.25)


def packets_per_second(received):
    """Over all sinks, from the first to the last datagram."""
    packets = sum(one["packets"] for one in received)
    if packets < 2:
        raise Failure("sink: nothing arrived")
    some = [one for one in received if one["packets"]]
    return packets / max(max(one["last"] for one in some) - min(one["first"] for one in some), 1e-6)


def gbps(samples, start, end):
    """Gbit/s that arrived in that time, by (time, bytes so far) samples."""
    bits = (bytes_until(samples, end) - bytes_until(samples, start)) * 8
    if bits <= 0 or end <= start:
        raise Failure("tcp: nothing arrived")
    return bits / (end - start) / 1e9


def bytes_until(samples, moment):
    last_time, last_bytes = samples[0]
    for time_s, so_far in samples:
        if time_s >= moment:
            if time_s == last_time:
                return so_far
            share = (moment - last_time) / (time_s - last_time)
            return last_bytes + (so_far - last_bytes) * max(share, 0)
        last_time, last_bytes = time_s, so_far
    return last_bytes


def trips_us(trips):
    """The quantiles for which there were samples enough."""
    by_name = {name: trips[f"{name}_us"] for name in ("p50", "p99", "p999")}
    return {name: value for name, value in by_name.items() if value is not None}


def machine_cpu_seconds():
    """proc_stat(5): all that was not idle, by all processors, in ticks of 10 ms."""
    with open("/proc/stat", encoding="utf-8") as stat:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / 100
