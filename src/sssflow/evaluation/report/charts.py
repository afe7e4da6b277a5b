"""Charts as inline SVG: colours come from the page's style sheet, text is escaped, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _LEFT, _RIGHT, _TOP = 860.0, 52.0, 12.0, 14.0
_PLACE, _LETTER = 76.0, 7.2
"""Room of a column with the number beside its bar, to the next bar; of a letter of a name."""
COLOURS = 6
"""Of models in the style sheet; a seventh model takes the first again."""


@dataclass(frozen=True)
class Group:
    """One group of a strip chart: for each series one value per case, None where there is none."""

    name: str
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y) by rising x, and the x of the point to mark, if any."""

    name: str
    points: Sequence[tuple[float, float]]
    marked_x: float | None = None


@dataclass(frozen=True)
class _Frame:
    height: float
    low: float
    high: float
    width: float = _WIDTH

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        share = (value - self.low) / (self.high - self.low)
        return _TOP + (1 - share) * (self.height - _TOP - 34)


def strip_chart(groups: Sequence[Group], series: Sequence[str], *, label: str) -> Markup:
    """Every case as a dot, the mean as a bar, the same case joined between the series.

    Values are shares from 0 to 1, shown in percent. With many classes or models the chart is
    wider, so that no text lies over another; the page scrolls it.
    """
    columns = _PLACE * (len(series) + 1)
    least = max((max(columns, _LETTER * (len(g.name) + 2)) for g in groups), default=columns)
    wide = max(_WIDTH, _LEFT + _RIGHT + least * len(groups))
    frame = _Frame(height=300.0, low=0.0, high=1.0, width=wide)
    parts = [_axis(frame)]
    width = (wide - _LEFT - _RIGHT) / max(1, len(groups))
    for position, group in enumerate(groups):
        left = _LEFT + position * width
        xs = [left + width * (i + 1) / (len(series) + 1) for i in range(len(series))]
        parts.append(
            _text(left + width / 2, frame.height - 10, group.name, "middle", "axis strong")
        )
        parts += _pairs(frame, xs, [group.values[name] for name in series])
        for i, name in enumerate(series):
            parts += _dots(frame, xs[i], group.values[name], i % COLOURS)
    return _svg(frame, parts, label)


def line_chart(lines: Sequence[Line], *, label: str, x_name: str, series: Sequence[str]) -> Markup:
    """Curves over a common x; the y range is 0 to 1 in percent. Colour follows `series`."""
    frame = _Frame(height=280.0, low=0.0, high=1.0)
    last = max((x for line in lines for x, _ in line.points), default=1.0) or 1.0

    def place(x: float) -> float:
        return _LEFT + x / last * (_WIDTH - _LEFT - _RIGHT - 8)

    parts = [_axis(frame)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        text = f"{last * share:.0f}"
        parts.append(_text(place(last * share), frame.height - 18, text, anchor))
    parts.append(_text(_WIDTH / 2, frame.height - 3, x_name, "middle"))
    for line in lines:
        colour = series.index(line.name) % COLOURS if line.name in series else 0
        path = " ".join(f"{place(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="curve m{colour}" points="{path}"/>')
        for x, y in line.points:
            if line.marked_x is not None and x == line.marked_x:
                title = f"<title>{escape(line.name)}: kept step {x:.0f}, {_percent(y, 1)}</title>"
                spot = f'cx="{place(x):.1f}" cy="{frame.y(y):.1f}" r="5"'
                parts.append(f'<circle class="kept m{colour}" {spot}>{title}</circle>')
    return _svg(frame, parts, label)


def _pairs(
    frame: _Frame, xs: Sequence[float], columns: Sequence[Sequence[float | None]]
) -> list[str]:
    lines = []
    for row in zip(*columns, strict=True):
        for i in range(len(row) - 1):
            a, b = row[i], row[i + 1]
            if a is not None and b is not None:
                ends = f'x1="{xs[i]:.1f}" y1="{frame.y(a):.1f}" x2="{xs[i + 1]:.1f}"'
                lines.append(f'<line class="pair" {ends} y2="{frame.y(b):.1f}"/>')
    return lines


def _dots(frame: _Frame, x: float, values: Sequence[float | None], colour: int) -> list[str]:
    defined = [value for value in values if value is not None]
    parts = [
        f'<circle class="dot m{colour}" cx="{x:.1f}" cy="{frame.y(value):.1f}" r="3.5"/>'
        for value in defined
    ]
    if defined:
        y = frame.y(sum(defined) / len(defined))
        ends = f'x1="{x - 16:.1f}" y1="{y:.1f}" x2="{x + 16:.1f}" y2="{y:.1f}"'
        parts.append(f'<line class="mean m{colour}" {ends}/>')
        parts.append(
            _text(x + 20, y + 4, _percent(sum(defined) / len(defined), 1), "start", "mean-text")
        )
    return parts


def _axis(frame: _Frame) -> str:
    parts = []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = frame.y(tick)
        right = frame.width - _RIGHT
        parts.append(
            f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 8, y + 4, _percent(tick), "end"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "axis") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}\u00a0%"


def _svg(frame: _Frame, parts: Sequence[str], label: str) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {frame.width:.0f} {frame.height:.0f}" role="img"'
    if frame.width > _WIDTH:
        head += f' style="--least: {frame.width:.0f}px"'
    # Every text above went through escape(); the rest are numbers and our own class names.
    return Markup(f'{head} aria-label="{escape(label)}">{"".join(parts)}</svg>')  # noqa: S704
