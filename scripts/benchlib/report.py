"""From single values to medians, ratios, a table and JSON."""

import datetime
import json
import os
import platform
import statistics
from dataclasses import dataclass

# Metrics, by table: name → (title, digits).
TABLES = {
    "TCP, Gbit/s": {"tcp1": ("1 stream", 2), "tcp8": ("8 streams", 2),
                    "both": ("both directions", 2)},
    "UDP at the highest rate, 1000 packets received/s": {
        "udp64": ("64 B", 1), "udp1400": ("1400 B", 1),
        "peers8": ("1400 B, 8 peers", 1), "peers64": ("1400 B, 64 peers", 1)},
    "UDP loss at 50 % and 90 % of that, %": {
        "udp64_loss50": ("64 B, 50 %", 2), "udp64_loss90": ("64 B, 90 %", 2),
        "udp1400_loss50": ("1400 B, 50 %", 2), "udp1400_loss90": ("1400 B, 90 %", 2)},
    "Round trip, idle, µs": {"rtt_p50": ("p50", 0), "rtt_p99": ("p99", 0),
                             "rtt_p999": ("p99.9", 0)},
    "Round trip beside one TCP stream, µs": {
        "beside_p50": ("p50", 0), "beside_p99": ("p99", 0), "beside_p999": ("p99.9", 0),
        "bulk_lost": ("bulk lost, %", 1)},
    "Cost of TCP, 1 stream": {
        "cpu_daemons": ("daemons, CPU s/GB", 3), "cpu_machine": ("whole machine, CPU s/GB", 3),
        "memory": ("peak memory, MiB", 1)},
}
METRICS = {name: (title, about) for title, columns in TABLES.items()
           for name, about in columns.items()}
# Differences and shares, where a ratio says nothing.
NO_RATIO = {"bulk_lost", "memory"} | {name for name in METRICS if "loss" in name}


@dataclass(frozen=True)
class Place:
    """Where something was measured."""

    model: str
    ends: str
    system: str

    def __str__(self):
        return f"{self.model}, {self.ends}, {self.system}"


class Results:
    """Values by place, metric and round. None stands for a measurement that failed."""

    def __init__(self, baseline, labels):
        self.baseline, self.labels = baseline, labels
        self.values = {}
        self.errors = []

    def add(self, place, round_number, metrics):
        for metric, value in metrics.items():
            self.values.setdefault((place, metric), {})[round_number] = value

    def fail(self, place, round_number, metrics, reason):
        self.errors.append({**vars(place), "round": round_number, "metrics": list(metrics),
                            "reason": str(reason)})
        self.add(place, round_number, dict.fromkeys(metrics))

    def summary(self, place, metric):
        """Median, spread and ratio; None if this was not measured at all."""
        by_round = self.values.get((place, metric))
        if by_round is None:
            return None
        good = [value for value in by_round.values() if value is not None]
        base = self.values.get((Place(place.model, place.ends, self.baseline), metric), {})
        # Paired by round, so that what slows the whole machine down for a while cancels out.
        ratios = [value / base[number] for number, value in by_round.items()
                  if value is not None and base.get(number) and metric not in NO_RATIO]
        return {
            "median": statistics.median(good) if good else None,
            "min": min(good, default=None), "max": max(good, default=None),
            "ratio": statistics.median(ratios) if ratios else None,
            "values": list(by_round.values()), "failed": len(by_round) - len(good),
        }

    def table(self):
        """Everything as text, one table for each link model and pair of ends."""
        sections = dict.fromkeys((place.model, place.ends) for place, _ in self.values)
        lines = [f"Median (ratio to {self.labels[self.baseline]}: median of the rounds' ratios)"
                 " lowest–highest"]
        for model, ends in sections:
            lines += ["", f"=== link model {model}, {ends} to {ends} ==="]
            for title, columns in TABLES.items():
                lines += self._group(title, columns, model, ends)
        if self.errors:
            lines += ["", "Failed:"]
            lines += [f"  {e['model']}, {e['ends']}, {e['system']}, round {e['round']}, "
                      f"{', '.join(e['metrics'])}: {e['reason']}" for e in self.errors]
        return "\n".join(lines)

    def _group(self, title, columns, model, ends):
        rows = []
        for system, label in self.labels.items():
            cells = [self._cell(Place(model, ends, system), metric, digits)
                     for metric, (_, digits) in columns.items()]
            rows.append((label, cells))
        used = [i for i in range(len(columns)) if any(cells[i] for _, cells in rows)]
        if not used:
            return []
        heads = [head for head, _ in columns.values()]
        table = [["", *(heads[i] for i in used)]]
        table += [[label, *(cells[i] or "-" for i in used)] for label, cells in rows
                  if any(cells[i] for i in used)]
        widths = [max(len(row[i]) for row in table) for i in range(len(used) + 1)]
        return ["", title] + ["  " + "   ".join(
            text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in table]

    def _cell(self, place, metric, digits):
        summary = self.summary(place, metric)
        if summary is None:
            return ""
        if summary["median"] is None:
            return "FAILED"
        text = f"{summary['median']:.{digits}f}"
        if summary["ratio"] is not None:
            text += f" ({summary['ratio']:.2f})"
        text += f" {summary['min']:.{digits}f}–{summary['max']:.{digits}f}"
        if summary["failed"]:
            text += f" [{summary['failed']} of {len(summary['values'])} FAILED]"
        return text

    def as_dict(self, settings):
        measured = [{**vars(place), "metric": metric, "title": METRICS[metric][0],
                     "column": METRICS[metric][1][0], **self.summary(place, metric)}
                    for place, metric in self.values]
        return {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "machine": machine(), "baseline": self.baseline, "labels": self.labels,
                "settings": settings, "results": measured, "errors": self.errors}


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return {"kernel": platform.release(), "cpu": models[0] if models else platform.machine(),
            "cpus": os.cpu_count()}


def describe(about):
    return (f"Linux {about['kernel']}, {about['cpu']}, {about['cpus']} CPUs shared by senders, "
            "receivers and daemons")


def write(path, text):
    """Writes a file; leaves none of root's where the caller of sudo works."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    if "SUDO_UID" in os.environ:
        os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID", -1)))


def write_json(path, document):
    write(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
