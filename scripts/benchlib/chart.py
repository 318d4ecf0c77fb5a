"""The bar chart for the README: throughput as a ratio to the baseline, as one SVG."""

from html import escape

from .report import Place, describe

BARS = {"tcp1": ("TCP, 1 stream", "Gbit/s"), "tcp8": ("TCP, 8 streams", "Gbit/s"),
        "both": ("TCP, both directions", "Gbit/s"), "udp64": ("UDP, 64 B", "kpps"),
        "udp1400": ("UDP, 1400 B", "kpps")}
# For each system in turn: readable on the light and on the dark background.
COLOURS = ["#8b949e", "#58a6d6", "#e8743b", "#b58ad6", "#5fb37a", "#d6b04c", "#d66a8b", "#7a86d6"]
TITLES = {"whole": "links that pass 64 KiB buffers uncut", "wire": "links that cut like a plain NIC"}
PANEL, LEFT, BAR, GAP = 470, 150, 11, 12
WIDEST = 200

# The background changes together with the text, so that it can be read on any page.
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 10px; fill: #59636e; stroke: #ffffff; stroke-width: 3px; paint-order: stroke }
.title { font-size: 15px; font-weight: 600 }
.page { fill: #ffffff } .line { stroke: #59636e; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1; stroke: #0d1117 } .page { fill: #0d1117 } .line { stroke: #9198a1 }
}"""


def draw(results, models, about):
    """The chart of all systems, host to host (else pod to pod), a panel for each link model."""
    ends = next((ends for ends in ("host", "pod") if any(
        place.ends == ends for place, _ in results.values)), "host")
    systems = list(results.labels)
    cells = {(model, metric, system): results.summary(Place(model, ends, system), metric)
             for model in models for metric in BARS for system in systems}
    metrics = [metric for metric in BARS if any(cells[m, metric, s] for m in models for s in systems)]
    ratios = [cell["ratio"] for cell in cells.values() if cell and cell["ratio"] is not None]
    scale = WIDEST / max([1.0, *ratios])
    group = len(systems) * BAR + GAP
    width, top = max(PANEL * len(models), 640), 84
    height = top + len(metrics) * group + 34

    base = results.labels[results.baseline]
    parts = [text(16, 26, f"Throughput, {ends} to {ends} ({base} = 1)", "title")]
    x = 16
    for index, system in enumerate(systems):
        label = results.labels[system]
        parts += [bar(x, 38, 10, 10, index), text(x + 14, 47, label)]
        x += 28 + 7 * len(label)
    for column, model in enumerate(models):
        parts += panel(column * PANEL, top, model, metrics, systems, cells, scale, group)
    parts.append(text(16, height - 10, describe(about), "small"))
    width = max(width, x)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" role="img" aria-label="Throughput of flanneld and others">'
            f'<style>{STYLE}</style><rect class="page" width="100%" height="100%" rx="6"/>'
            + "".join(parts) + "</svg>\n")


def panel(left, top, model, metrics, systems, cells, scale, group):
    one, bottom = left + LEFT + scale, top + len(metrics) * group - GAP
    parts = [text(left + 16, top - 14, f"{model}: {TITLES[model]}"),
             f'<line class="line" x1="{one:.1f}" y1="{top - 6}" x2="{one:.1f}" y2="{bottom}"/>']
    for row, metric in enumerate(metrics):
        title, unit = BARS[metric]
        y = top + row * group
        middle = y + len(systems) * BAR / 2 + 4
        parts.append(text(left + 16, middle, title))
        for index, system in enumerate(systems):
            cell, at = cells[model, metric, system], y + index * BAR
            if cell is None:
                continue
            if cell["median"] is None or cell["ratio"] is None:
                parts.append(text(left + LEFT + 4, at + 9, "failed", "small"))
                continue
            length = cell["ratio"] * scale
            parts += [bar(left + LEFT, at, length, BAR - 2, index),
                      text(left + LEFT + length + 5, at + 9,
                           f"{cell['ratio']:.2f} · {cell['median']:.3g} {unit}", "small")]
    return parts


def text(x, y, words, kind=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def bar(x, y, width, height, index):
    colour = COLOURS[index % len(COLOURS)]
    return (f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height}" rx="2"'
            f' fill="{colour}"/>')
