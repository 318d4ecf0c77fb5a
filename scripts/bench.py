"""Measures flanneld beside kernel VXLAN and other overlays. Run by scripts/bench.sh."""

import argparse
import contextlib
import fcntl
import sys
import time

from benchlib import chart, report
from benchlib.lab import MODELS, Failure, Lab, Traffic, World, ignore_signals, stop_on_signals
from benchlib.report import Place, Results
from benchlib.systems import VARIANTS, all_systems
from benchlib.work import FULL, ITEMS, QUICK, End, Work, many_peers

LOCK = "/run/lock/flanneld-bench"
MANY = (8, 64)
# What is reported as failed when an item fails as a whole.
MAIN_METRICS = {"rtt": ["rtt_p50", "rtt_p99", "rtt_p999"],
                "beside": ["beside_p50", "beside_p99", "beside_p999", "bulk_lost"],
                "peers": [f"peers{count}" for count in MANY]}


def words(text):
    return [word for word in text.split(",") if word]


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/bench.sh", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""
Items:   {', '.join(ITEMS)}, peers (1400 B to {MANY[0]} and {MANY[1]} hosts at once)
Systems: none, vxlan, NAME of each --flanneld, NAME-{', NAME-'.join(VARIANTS)},
         flanneld, wireguard-go and nebula where --peer names them
Compare two builds:
  scripts/bench.sh --flanneld old=/tmp/old --flanneld new=/tmp/new --systems vxlan,old,new""")
    parser.add_argument("--quick", action="store_true",
                        help="three minutes: 3 short rounds, the main items and systems")
    parser.add_argument("--rounds", type=int, metavar="N", help="5 if not given")
    parser.add_argument("--only", type=words, metavar="ITEM,…", help="measure these items")
    parser.add_argument("--systems", type=words, metavar="NAME,…", help="measure these systems")
    parser.add_argument("--models", type=words, metavar="MODEL,…", default=list(MODELS),
                        help=f"link models: {','.join(MODELS)}")
    parser.add_argument("--pods", action="store_true",
                        help="measure pod to pod, added by the CNI plugin, as well as host to host")
    parser.add_argument("--flanneld", action="append", default=[], metavar="[NAME=]PATH",
                        help="measure this binary instead of building one; may be repeated")
    parser.add_argument("--peer", action="append", default=[], metavar="PEER",
                        help="flanneld=PATH (udp backend, on etcd), wireguard-go, nebula")
    parser.add_argument("--baseline", default="vxlan", metavar="SYSTEM", help="what ratios are to")
    parser.add_argument("--json", metavar="FILE", help="write all values there")
    parser.add_argument("--svg", metavar="FILE", help="draw a chart there")
    parser.add_argument("--traffic", required=True, metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("--plugin", metavar="PATH", help=argparse.SUPPRESS)
    given = parser.parse_args()

    binaries = dict(item.split("=", 1) if "=" in item else ("ours", item) for item in given.flanneld)
    try:
        makers = all_systems(binaries, given.peer)
    except Failure as failure:
        parser.error(str(failure))
    if given.systems is None:
        variants = ["off"] if given.quick else list(VARIANTS)
        first = list(binaries)[:1]
        given.systems = ["none", "vxlan", *binaries, *(f"{n}-{v}" for n in first for v in variants)]
        given.systems += [peer.partition("=")[0] for peer in given.peer]
    if given.only is None:
        given.only = list(ITEMS) if given.quick else [*ITEMS, "peers"]
    given.rounds = given.rounds or (3 if given.quick else 5)
    for what, chosen, known in (("item", given.only, [*ITEMS, "peers"]),
                                ("link model", given.models, MODELS),
                                ("system", given.systems, makers)):
        unknown = [word for word in chosen if word not in known]
        if unknown or not chosen:
            parser.error(f"unknown {what} '{','.join(unknown)}': expected {', '.join(known)}")
    if given.baseline not in given.systems:
        given.baseline = given.systems[0]
    return given, {name: makers[name] for name in given.systems}


class Bench:
    """One run: all models, rounds, items and systems, interleaved."""

    def __init__(self, given, makers, lab):
        self.given, self.makers, self.lab = given, makers, lab
        self.pace = QUICK if given.quick else FULL
        self.traffic = Traffic(lab, given.traffic)
        labels = {name: make().label for name, make in makers.items()}
        self.results = Results(given.baseline, labels)
        self.began = time.monotonic()

    def run(self):
        items = [item for item in self.given.only if item in ITEMS]
        for model in self.given.models:
            if items:
                self._pairs(model, items)
            if "peers" in self.given.only:
                self._many(model)

    def _pairs(self, model, items):
        """Two hosts for each system; all systems stay up, idle, while one is measured."""
        ends = ["host", "pod"] if self.given.pods else ["host"]
        every = {end: [m for item in items for m in MAIN_METRICS.get(item, [item])] for end in ends}
        plugin = self.given.plugin if self.given.pods else None
        systems = self._set_up(model, self.makers, 2, plugin, every)
        works = {(name, end): Work(self.traffic, self.pace, system, *path(system, end))
                 for name, system in systems.items() for end in ends}
        for number in range(1, self.given.rounds + 1):
            for end in ends:
                for item in items:
                    for name in systems:
                        self._attempt(Place(model, end, name), number, item,
                                      lambda work=works[name, end], item=item: work.measure(item))
            for name, system in systems.items():
                with contextlib.suppress(Failure, OSError):
                    peak = system.peak_memory_mib()
                    if peak is not None:
                        self.results.add(Place(model, "host", name), number, {"memory": peak})
        if plugin:
            for name, system in systems.items():
                try:
                    system.world.delete_pods(plugin)
                except (Failure, OSError) as failure:
                    self._say(f"{name}: the pods could not be deleted: {failure}")
        self.lab.clear()

    def _many(self, model):
        """A host, a daemon and a sink for each peer. Not for the variants: that would be more
        daemons than a small machine has memory for."""
        variants = tuple(f"-{variant}" for variant in VARIANTS)
        makers = {name: make for name, make in self.makers.items() if not name.endswith(variants)}
        systems = self._set_up(model, makers, max(MANY) + 1, None, {"host": MAIN_METRICS["peers"]})
        for number in range(1, self.given.rounds + 1):
            for count in MANY:
                for name, system in systems.items():
                    self._attempt(
                        Place(model, "host", name), number, f"peers{count}",
                        lambda system=system, count=count: many_peers(
                            self.traffic, self.pace, system, count))
        self.lab.clear()

    def _set_up(self, model, makers, hosts, plugin, metrics):
        systems = {}
        for name, make in makers.items():
            self._say(f"{model}: setting up {name} on {hosts} hosts")
            system = make()
            try:
                system.start(World(self.lab, hosts, model), plugin)
                systems[name] = system
            except (Failure, OSError) as failure:
                self._say(f"  FAILED: {failure}")
                for end, names in metrics.items():
                    self.results.fail(Place(model, end, name), 0, names, failure)
        return systems

    def _attempt(self, place, number, item, measure):
        try:
            metrics = measure()
            self.results.add(place, number, metrics)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        except (Failure, OSError) as failure:
            self.results.fail(place, number, MAIN_METRICS.get(item, [item]), failure)
            shown = f"FAILED: {failure}"
        self._say(f"{place}, round {number}: {shown}")

    def _say(self, line):
        print(f"{time.monotonic() - self.began:6.0f} s  {line}", file=sys.stderr, flush=True)


def path(system, ends):
    """Between the first two hosts, or between their pods."""
    hosts = system.world.hosts[:2]
    if ends == "pod":
        return [End(host.pod_netns, host.pod_address) for host in hosts]
    return [End(host.netns, system.address(host)) for host in hosts]


def main():
    given, makers = arguments()
    lock = open(LOCK, "w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("bench: another bench is running: wait for it, or end it with Ctrl-C")
    stop_on_signals()
    lab = Lab()
    bench = Bench(given, makers, lab)
    stopped = None
    try:
        bench.run()
    except SystemExit as stop:
        stopped = stop
    finally:
        ignore_signals()
        lab.close()
    results = bench.results
    about = report.machine()
    rounds = "INTERRUPTED" if stopped else f"{given.rounds} interleaved rounds"
    print(f"\n{report.describe(about)}; {rounds}\n{results.table()}", flush=True)
    if stopped:
        raise stopped
    if given.json:
        report.write_json(given.json, results.as_dict(vars(given)))
    if given.svg:
        report.write(given.svg, chart.draw(results, given.models, about))
    sys.exit(1 if results.errors else 0)


if __name__ == "__main__":
    main()
