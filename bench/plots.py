"""Plots as SVG, drawn by hand: bars for comparisons, lines on logarithmic axes for growth.

The colours change with the reader's light or dark scheme, also where the file is shown as an image.
"""

import math
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: 600 }
.small { font-size: 12px; fill: #57606a }
.grid { stroke: #d0d7de; stroke-width: 1 }
.axis { stroke: #57606a; stroke-width: 1 }
.range { stroke: #24292f; stroke-width: 1.5 }
.back { fill: #ffffff }
.c0 { fill: #d1570c } .c1 { fill: #0969da } .c2 { fill: #57606a } .c3 { fill: #8250df } .c4 { fill: #1a7f37 }
.s0 { stroke: #d1570c } .s1 { stroke: #0969da } .s2 { stroke: #57606a } .s3 { stroke: #8250df } .s4 { stroke: #1a7f37 }
.other { fill: #9fb3c8 }
.line { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .grid { stroke: #30363d } .axis { stroke: #9198a1 }
  .range { stroke: #e6edf3 } .back { fill: #0d1117 } .other { fill: #4f6780 }
  .c0 { fill: #f0883e } .c1 { fill: #58a6ff } .c2 { fill: #9198a1 } .c3 { fill: #bc8cff } .c4 { fill: #3fb950 }
  .s0 { stroke: #f0883e } .s1 { stroke: #58a6ff } .s2 { stroke: #9198a1 } .s3 { stroke: #bc8cff } .s4 { stroke: #3fb950 }
}
"""

WIDTH = 760
COLOURS = 5


@dataclass
class Bar:
    label: str
    value: float
    low: float
    high: float
    ours: bool = False
    base: bool = False


@dataclass
class Line:
    """Points from left to right; those in `apart` are drawn hollow and unconnected."""

    label: str
    points: list
    apart: list = field(default_factory=list)


def bars(title, unit, entries):
    """Horizontal bars from zero, each with its value, and a line from its lowest to its highest."""
    left, right, top, row = 210, 70, 58, 26
    height = top + row * len(entries) + 34
    ticks = nice_ticks(max(bar.high for bar in entries))
    across = (WIDTH - left - right) / ticks[-1]
    bottom = top + row * len(entries)
    parts = [text(left, 44, unit, "small")]
    for tick in ticks:
        x = left + tick * across
        parts.append(stroke("grid", x, top - 4, x, bottom))
        parts.append(text(x, bottom + 18, f"{tick:g}", "small", "middle"))
    for number, bar in enumerate(entries):
        y = top + row * number
        middle = y + row / 2
        kind = "c0" if bar.ours else "c2" if bar.base else "other"
        parts.append(box(kind, left, y + 4, bar.value * across, row - 8))
        for x in (bar.low, bar.high):
            parts.append(stroke("range", left + x * across, middle - 4, left + x * across, middle + 4))
        parts.append(stroke("range", left + bar.low * across, middle, left + bar.high * across, middle))
        parts.append(text(left - 8, middle + 4.5, bar.label, anchor="end"))
        parts.append(text(left + max(bar.value, bar.high) * across + 7, middle + 4.5, significant(bar.value)))
    parts.append(stroke("axis", left, top - 4, left, bottom))
    return document(title, height, parts)


def groups(title, unit, names, series):
    """Bars side by side for each of `names`; `series` are pairs of a label and, for each name, a value and its text."""
    left, right, top, height = 66, 24, 96, 400
    bottom = height - 44
    ticks = nice_ticks(max(value for _, values in series for value, _ in values))
    up = (bottom - top) / ticks[-1]
    group = (WIDTH - left - right) / len(names)
    width = min(group * 0.8 / len(series), 48)
    parts = [text(left, 76, unit, "small")]
    for tick in ticks:
        parts.append(stroke("grid", left, bottom - tick * up, WIDTH - right, bottom - tick * up))
        parts.append(text(left - 8, bottom - tick * up + 4, f"{tick:g}", "small", "end"))
    for at, name in enumerate(names):
        middle = left + group * (at + 0.5)
        parts.append(text(middle, bottom + 20, name, anchor="middle"))
        for number, (_, values) in enumerate(series):
            value, words = values[at]
            x, high = middle + width * (number - len(series) / 2), value * up
            parts.append(box(f"c{number % COLOURS}", x + 2, bottom - high, width - 4, high))
            parts.append(text(x + width / 2, bottom - high - 5, words, "small", "middle"))
    parts.append(stroke("axis", left, bottom, WIDTH - right, bottom))
    x = left
    for number, (label, _) in enumerate(series):
        parts.append(box(f"c{number % COLOURS}", x, 44, 10, 10))
        parts.append(text(x + 16, 53.5, label))
        x += 40 + 7.5 * len(label)
    return document(title, height, parts)


def lines(title, x_label, y_label, series, x_ticks=None, x_text=None, note=""):
    """Lines of points on two logarithmic axes, divided in powers of ten or at `x_ticks`."""
    left, right, top, height = 66, 150, 62, 430
    bottom = height - 62
    points = [point for line in series for point in line.points + line.apart]
    x_ticks = x_ticks or decades([x for x, _ in points])
    y_ticks = decades([y for _, y in points])
    x_at, y_at = log_scale(x_ticks, left, WIDTH - right), log_scale(y_ticks, bottom, top)
    parts = [text(left, 46, y_label, "small"), text((left + WIDTH - right) / 2, height - 24, x_label, "small", "middle")]
    for tick in x_ticks:
        parts.append(stroke("grid", x_at(tick), top, x_at(tick), bottom))
        parts.append(text(x_at(tick), bottom + 18, (x_text or tick_text)(tick), "small", "middle"))
    for tick in y_ticks:
        parts.append(stroke("grid", left, y_at(tick), WIDTH - right, y_at(tick)))
        parts.append(text(left - 8, y_at(tick) + 4, tick_text(tick), "small", "end"))
    parts += [stroke("axis", left, bottom, WIDTH - right, bottom), stroke("axis", left, top, left, bottom)]
    ends = []
    for number, line in enumerate(series):
        colour = number % COLOURS
        if line.points:
            path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line.points)
            parts.append(f'<polyline class="line s{colour}" points="{path}"/>')
        for x, y in line.points:
            parts.append(f'<circle class="c{colour}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3.5"/>')
        for x, y in line.apart:
            parts.append(f'<circle class="back s{colour}" stroke-width="2" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="4"/>')
        ends.append((y_at((line.points + line.apart)[-1][1]), number, line.label))
    # A label stands where its line ends, or as close beneath as the label before it allows.
    free = top
    for y, number, label in sorted(ends):
        y = max(y, free)
        parts.append(box(f"c{number % COLOURS}", WIDTH - right + 12, y - 5, 10, 10))
        parts.append(text(WIDTH - right + 28, y + 4.5, label))
        free = y + 20
    if note:
        parts.append(text(left, height - 6, note, "small"))
    return document(title, height, parts)


def log_scale(ticks, start, end):
    """Where on a logarithmic axis from the first to the last of the ticks a value lies."""
    low, high = math.log10(ticks[0]), math.log10(ticks[-1])
    return lambda value: start + (end - start) * (math.log10(value) - low) / (high - low)


def decades(values):
    """The powers of ten that enclose all values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def nice_ticks(highest):
    """Zero and a few round numbers, the last not below `highest`."""
    step = 10 ** math.floor(math.log10(highest / 4)) if highest > 0 else 1
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if step * factor * 6 >= highest)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def tick_text(value):
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def significant(value):
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.{max(2 - math.floor(math.log10(abs(value))), 0)}f}"


def stroke(kind, x1, y1, x2, y2):
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def box(kind, x, y, width, height):
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2"/>'


def text(x, y, words, kind="", anchor="start"):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def document(title, height, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
    back = f'<rect class="back" width="{WIDTH}" height="{height}"/>'
    named = f"<title>{escape(title)}</title>"
    return "\n".join([head, named, f"<style>{STYLE}</style>", back, text(16, 26, title, "title"), *parts, "</svg>", ""])
