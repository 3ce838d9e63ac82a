"""Draws docs/scaling.svg with the standard library alone: small panels, black and grey, every series labelled. Used by scaling.py."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 340, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 44, 40
# Look of a series: (colour, dashes, filled marker or None).
MEASURED = ("#000", None, "filled")
FORMULA = ("#777", None, None)
ASSUMED = ("#000", "5 3", "open")
OTHER = ("#777", "2 3", "open")


class Axis:
    """A scale with its ticks; `low` and `high` in the values' own units."""

    def __init__(self, values, start, end, log, ticks=None):
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        if log:
            self.low, self.high = math.log10(low) - 0.08, math.log10(high) + 0.08
        else:
            self.low, self.high = 0 if low >= 0 else low, high * 1.08
        self.ticks = ticks or self.some_ticks()

    def some_ticks(self):
        if self.log:
            ticks = [m * 10.0**e for e in range(-4, 13) for m in (1, 2, 5)]
            inside = [t for t in ticks if self.low <= math.log10(t) <= self.high]
            return inside if len(inside) <= 6 else [t for t in inside if str(f"{t:e}").startswith("1.0")] or inside[::3]
        step = 10.0 ** math.floor(math.log10(self.high / 4 or 1))
        step = next(step * m for m in (1, 2, 5, 10) if self.high / (step * m) <= 6)
        return [i * step for i in range(int(self.high / step) + 1)]

    def at(self, value):
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / ((self.high - self.low) or 1) * (self.end - self.start)


def number(value):
    """Short: 1, 20, 1k, 5M, 0.2."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}"


def panel(column, row, title, x_label, y_label, series, log_x=True, log_y=True, ticks=None, notes=()):
    """`series`: (label, look, [(x, y)]), without a place in the legend where the label is empty; `notes`: (x, y, text above)."""
    left, top = column * WIDTH, row * HEIGHT
    points = [point for _, _, list_of in series for point in list_of]
    x = Axis([p[0] for p in points], left + LEFT, left + WIDTH - RIGHT, log_x, ticks)
    y = Axis([p[1] for p in points], top + HEIGHT - BOTTOM, top + TOP, log_y)
    parts = [f'<text x="{left + LEFT}" y="{top + 14}" font-weight="bold">{escape(title)}</text>']
    for tick in x.ticks:
        at = x.at(tick)
        parts.append(f'<line x1="{at:.1f}" y1="{y.start}" x2="{at:.1f}" y2="{y.start + 4}" stroke="#000"/>')
        parts.append(f'<text x="{at:.1f}" y="{y.start + 15}" text-anchor="middle">{number(tick)}</text>')
    for tick in y.ticks:
        at = y.at(tick)
        parts.append(f'<line x1="{x.start}" y1="{at:.1f}" x2="{x.end}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x.start - 5}" y="{at + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    parts.append(f'<path d="M{x.start} {y.end}V{y.start}H{x.end}" fill="none" stroke="#000"/>')
    parts.append(f'<text x="{(x.start + x.end) / 2}" y="{top + HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate({left + 12} {(y.start + y.end) / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    legend = x.start
    for label, (colour, dashes, marker), list_of in series:
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        line = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in list_of)
        if marker != "filled":
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"{dash}/>')
        if marker:
            fill = colour if marker == "filled" else "#fff"
            parts += [
                f'<circle cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="3" fill="{fill}" stroke="{colour}"/>' for a, b in list_of
            ]
        if not label:
            continue
        middle = top + 28
        if marker != "filled":
            parts.append(f'<line x1="{legend}" y1="{middle}" x2="{legend + 16}" y2="{middle}" stroke="{colour}"{dash}/>')
        if marker:
            fill = colour if marker == "filled" else "#fff"
            parts.append(f'<circle cx="{legend + 8}" cy="{middle}" r="3" fill="{fill}" stroke="{colour}"/>')
        parts.append(f'<text x="{legend + 20}" y="{middle + 3.5}">{escape(label)}</text>')
        legend += 30 + 5.6 * len(label)
    for a, b, text in notes:
        parts.append(f'<text x="{x.at(a):.1f}" y="{y.at(b) - 8:.1f}">{escape(text)}</text>')
    return "\n".join(parts)


def figure(panels, columns=3):
    """An SVG of `panels`, each the arguments of `panel` after its place."""
    rows = math.ceil(len(panels) / columns)
    width, height = columns * WIDTH, rows * HEIGHT
    body = "\n".join(panel(i % columns, i // columns, **one) for i, one in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="10">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
