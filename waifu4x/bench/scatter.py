"""Quality against time as a picture in SVG: which model is worth its seconds.

Every model is a point with its name beside it. Where points crowd, a name moves away and a thin
line leads back to it; where there is no room for all, the picture grows.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

from waifu4x.pages import nice_ticks

LEFT, TOP, FOOT = 60.0, 34.0, 56.0
"""From the edges of a picture to those of its plot; on the right it is `Layout.right`."""
DOT_PX = 5.0
"""The radius of a point."""

_GAP_PX = 8
_LINE = 1.3  # the height of a line, in heights of its letters
_SHORTEST_TIME_S = 1e-6
_LEAST_DECADES = 1.2  # so that a tick with a number is always in sight
_MOST_TRIES = 8
# In 24ths of a turn: right, left, above, below, and what lies between, above first.
_TURNS = (0, 12, 6, 18, 1, 11, 2, 10, 3, 9, 4, 8, 5, 7, 23, 13, 22, 14, 21, 15, 20, 16, 19, 17)

_ROUNDS_PX = tuple(_GAP_PX * 1.2**n for n in range(28))

Place = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A finite value without a time: a short line at the right edge, with its name."""

    name: str
    value: float
    told: str
    """What is said of it while a pointer rests there."""


@dataclass(frozen=True, kw_only=True)
class Point(Mark):
    """One model. An infinite value, as the PSNR of equal pictures, is drawn at the upper edge."""

    time_s: float
    """Per megapixel of output; below a microsecond it is drawn as that."""
    is_baseline: bool = False
    """Drawn hollow, with a dashed rule from edge to edge."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The sizes of one picture, in units of its ``viewBox``."""

    kind: str
    """Its class, by which a page shows the one that fits."""
    width: float
    height: float
    right: float
    """Where the plot ends."""
    font_px: float
    label_px: float
    """No name is longer; its middle is left out."""
    marks_px: float
    """What marks and their names take from the right of the plot, where there are any."""

    @property
    def bottom(self) -> float:
        return self.height - FOOT


WIDE = Layout(
    kind="broad", width=900, height=430, right=884, font_px=13, label_px=240, marks_px=140
)
NARROW = Layout(
    kind="narrow", width=344, height=400, right=338, font_px=12, label_px=150, marks_px=96
)


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, place: Place, radius: float) -> Box:
        """The square of twice the radius about a place."""
        x, y = place
        return cls(left=x - radius, top=y - radius, right=x + radius, bottom=y + radius)

    def overlaps(self, other: Box) -> bool:
        """Touching edges do not overlap."""
        if self.top >= other.bottom or other.top >= self.bottom:
            return False
        return self.left < other.right and other.left < self.right


@dataclass(frozen=True, kw_only=True)
class Label:
    """Where a name is written."""

    text: str
    box: Box
    leader: tuple[Place, Place] | None
    """From the edge of its point to the box, where the two are apart."""

    def crumbs(self) -> list[Box]:
        """Small boxes along the leader, close enough that nothing slips through between them."""
        if self.leader is None:
            return []
        (x1, y1), (x2, y2) = self.leader
        count = 1 + int(math.dist(*self.leader) / 3.0)
        shares = [n / count for n in range(count)]
        return [Box.around((x1 + (x2 - x1) * s, y1 + (y2 - y1) * s), 1.5) for s in shares]


@dataclass(frozen=True, kw_only=True)
class _Scales:
    """From seconds and values to places."""

    times: tuple[float, float]
    """log10 of the seconds at the left and the right edge."""
    values: tuple[float, float]
    """At the lower and the upper edge."""
    layout: Layout

    @classmethod
    def of(cls, points: Sequence[Point], marks: Sequence[Mark], layout: Layout) -> _Scales:
        logs = [math.log10(max(point.time_s, _SHORTEST_TIME_S)) for point in points]
        values = [each.value for each in (*points, *marks) if math.isfinite(each.value)] or [0.0]
        first, last, low, high = min(logs), max(logs), min(values), max(values)
        room = max(0.08 * (last - first), 0.5 * (_LEAST_DECADES - (last - first)))
        # Values that are all but the same lie in the middle, however large they are.
        more = 0.1 * (high - low if high - low > 1e-3 * abs(high) else abs(high)) or 1.0
        times = (first - room, last + room)
        return cls(times=times, values=(low - more, high + more), layout=layout)

    def x(self, time_s: float) -> float:
        first, last = self.times
        share = (math.log10(max(time_s, _SHORTEST_TIME_S)) - first) / (last - first)
        return round(LEFT + (self.layout.right - LEFT) * share, 1)

    def y(self, value: float) -> float:
        if not math.isfinite(value):
            return TOP + DOT_PX + 1
        share = (value - self.values[0]) / (self.values[1] - self.values[0])
        return round(self.layout.bottom - (self.layout.bottom - TOP) * share, 1)


def draw(
    points: Sequence[Point], *, marks: Sequence[Mark] = (), value_title: str, layout: Layout
) -> str:
    """The picture as one ``<svg>``; all texts in it are escaped.

    points: at least one. value_title: of the upright axis.
    """
    if marks:
        layout = replace(layout, right=layout.right - layout.marks_px)
    scales, places, labels = _arranged(points, marks, layout)
    layout = scales.layout
    parts = [*_value_axis(scales, value_title), *_time_axis(scales)]
    parts += [
        f'<line class="baseline" x1="{LEFT:g}" x2="{layout.right:g}" y1="{y}" y2="{y}"/>'
        for y in (scales.y(point.value) for point in points if point.is_baseline)
    ]
    parts += _marks(marks, scales)
    parts += [_point(*each) for each in zip(points, places, labels, strict=True)]
    told = [point.told for point in sorted(points, key=lambda point: point.time_s)]
    head = (
        f'<svg class="plot {layout.kind}" viewBox="0 0 {layout.width:g} {layout.height:g}" '
        f'role="img" aria-label="{escape("; ".join([value_title, *told]))}">'
    )
    return "\n".join([head, *parts, "</svg>"])


def _arranged(
    points: Sequence[Point], marks: Sequence[Mark], layout: Layout
) -> tuple[_Scales, list[Place], list[Label]]:
    """As high as it must be for all labels."""
    tries = 0
    while True:
        scales = _Scales.of(points, marks, layout)
        places = [(scales.x(point.time_s), scales.y(point.value)) for point in points]
        # Not all of many points at one place can be led to without crossings, however much room.
        labels = place_labels(points, places, layout=layout, may_cross=tries > 2)
        if labels is not None:
            return scales, places, labels
        tries, layout = tries + 1, replace(layout, height=round(1.4 * layout.height))


def _value_axis(scales: _Scales, title: str) -> list[str]:
    layout = scales.layout
    ticks = nice_ticks(*scales.values, count=6)
    decimals = max((len(f"{tick:.10g}".partition(".")[2]) for tick in ticks), default=0)
    parts = [f'<text class="title" x="2" y="{layout.font_px + 2:g}">{escape(title)}</text>']
    for tick in ticks:
        y = scales.y(tick)
        parts += [
            f'<line class="grid" x1="{LEFT:g}" x2="{layout.right:g}" y1="{y}" y2="{y}"/>',
            f'<text x="{LEFT - 7:g}" y="{y + 0.35 * layout.font_px:.1f}" '
            f'text-anchor="end">{tick:.{decimals}f}</text>',
        ]
    return parts


def _time_axis(scales: _Scales) -> list[str]:
    layout = scales.layout
    told = _told_ticks(scales)
    parts = [
        f'<text class="title" x="{layout.right:g}" y="{layout.height - 8:g}" text-anchor="end">'
        f"seconds per megapixel of output</text>"
    ]
    for time_s in time_ticks(scales.times):
        x = scales.x(time_s)
        kind, end = ("grid", layout.bottom + 5) if time_s in told else ("minor", layout.bottom)
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{TOP:g}" y2="{end:g}"/>')
        if time_s in told:
            # The last number may not leave the picture.
            at = min(x, layout.width - text_px(seconds(time_s), layout.font_px) / 2)
            parts.append(
                f'<text x="{at:.1f}" y="{layout.bottom + 6 + layout.font_px:g}" '
                f'text-anchor="middle">{seconds(time_s)}</text>'
            )
    return parts


def time_ticks(times: tuple[float, float]) -> list[float]:
    """1, 2 and 5 times the powers of ten, in seconds, from 10**times[0] to 10**times[1]."""
    first, last = times
    exponents = range(math.floor(first), math.ceil(last) + 1)
    ticks = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]
    return [tick for tick in ticks if first <= math.log10(tick) <= last]


def _told_ticks(scales: _Scales) -> list[float]:
    """Those with a number: all; where they would touch, the decades; or every second one."""
    first, last = scales.times
    ticks = time_ticks(scales.times)
    decade_px = (scales.layout.right - LEFT) / (last - first)
    need_px = 1.2 * max(text_px(seconds(tick), scales.layout.font_px) for tick in ticks)
    if decade_px * math.log10(2) >= need_px:
        return ticks
    pitch = math.ceil(need_px / decade_px)
    exponents = range(math.ceil(first), math.floor(last) + 1)
    return [float(f"1e{exponent}") for exponent in exponents if exponent % pitch == 0]


def seconds(time_s: float) -> str:
    """For an axis, as short as can be: "20 s", "5,000 s", "0.0002 s"."""
    return f"{time_s:,.9f}".rstrip("0").rstrip(".") + " s"


def _point(point: Point, place: Place, label: Label) -> str:
    kind = " hollow" if point.is_baseline else ""
    parts = [f'<g class="point{kind}"><title>{escape(point.told)}</title>']
    if label.leader is not None:
        (x1, y1), (x2, y2) = label.leader
        parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    # Towards its point: most fonts are narrower than was reckoned.
    box, anchor, x = label.box, "middle", (label.box.left + label.box.right) / 2
    if box.left >= place[0]:
        anchor, x = "start", box.left
    elif box.right <= place[0]:
        anchor, x = "end", box.right
    y = box.bottom - 0.27 * (box.bottom - box.top)
    parts += [
        f'<circle cx="{place[0]}" cy="{place[1]}" r="{DOT_PX:g}"/>',
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(label.text)}</text></g>',
    ]
    return "".join(parts)


def _marks(marks: Sequence[Mark], scales: _Scales) -> list[str]:
    """Names keep the order of their values, and move up and down until none touch."""
    layout = scales.layout
    pitch = layout.font_px * _LINE
    falling = sorted(marks, key=lambda mark: -mark.value)
    heights = spread([scales.y(mark.value) for mark in falling], pitch, within=(TOP, layout.bottom))
    parts = []
    for mark, at in zip(falling, heights, strict=True):
        y, right = scales.y(mark.value), layout.right
        name = shortened(mark.name, layout.width - right - 22, font_px=layout.font_px)
        parts.append(
            f'<g class="mark"><title>{escape(mark.told)}</title>'
            f'<polyline points="{right - 6:g},{y} {right + 5:g},{y} {right + 16:g},{at:.1f}"/>'
            f'<text x="{right + 20:g}" y="{at + 0.35 * layout.font_px:.1f}">'
            f"{escape(name)}</text></g>"
        )
    return parts


def spread(wanted: Sequence[float], pitch: float, *, within: Place) -> list[float]:
    """Rising places, each at least `pitch` from the next, as near to rising wishes as can be.

    The least squares: wishes that are too near become a row about their mean.
    """
    rows: list[tuple[float, int]] = []
    for number, wish in enumerate(wanted):
        first, count = wish - number * pitch, 1
        while rows and rows[-1][0] > first:
            before, more = rows.pop()
            first = (first * count + before * more) / (count + more)
            count += more
        rows.append((first, count))
    low, high = within[0], max(within[0], within[1] - pitch * (len(wanted) - 1))
    firsts = [min(max(first, low), high) for first, count in rows for _ in range(count)]
    return [first + number * pitch for number, first in enumerate(firsts)]


def text_px(text: str, font_px: float) -> float:
    """How wide a text may be: as in DejaVu Sans, of the wide ones among the fonts of systems."""
    return font_px * sum(_em(letter) for letter in text)


def _em(letter: str) -> float:
    if not letter.isascii():
        is_wide = unicodedata.east_asian_width(letter) in "WF"
        return 0.0 if unicodedata.combining(letter) else 1.3 if is_wide else 1.0
    if letter in "mwMW@%":
        return 1.0
    if letter in "fijlrtI.,:;'|!-()[] /\\":
        return 0.42
    return 0.8 if letter.isupper() or letter in "&+=<>~#^" else 0.65


def shortened(text: str, room_px: float, *, font_px: float) -> str:
    """The text, or its two ends with "…" between them: names of models differ at either end."""
    if text_px(text, font_px) <= room_px:
        return text
    whole = len(text)
    shorts = (f"{text[: (n + 1) // 2]}…{text[whole - n // 2 :]}" for n in range(whole - 1, 0, -1))
    return next((short for short in shorts if text_px(short, font_px) <= room_px), "…")


def place_labels(
    points: Sequence[Point], places: Sequence[Place], *, layout: Layout, may_cross: bool = False
) -> list[Label] | None:
    """A label for every point, which is at the place of the same number; None without room for all.

    No label covers another, a point, a baseline or a line that leads to a point, or leaves the
    plot; and unless they may, no such line crosses another, a label or a point.
    """
    dots = [Box.around(place, DOT_PX + 1.5) for place in places]
    ruled = [place[1] for place, point in zip(places, points, strict=True) if point.is_baseline]
    rules = [Box(left=LEFT, top=y - 1, right=layout.right, bottom=y + 1) for y in ruled]
    order = sorted(range(len(points)), key=lambda number: places[number])
    for _ in range(_MOST_TRIES):
        made: dict[int, Label] = {}
        for number in order:
            taken = [box for label in made.values() for box in (label.box, *label.crumbs())]
            blocked = [*dots, *rules, *taken]
            avoided = [*taken, *(dot for dot in dots if not dot.overlaps(dots[number]))]
            for label in _labels(points[number].name, places[number], layout):
                crumbs = () if may_cross else label.crumbs()
                if not any(map(label.box.overlaps, blocked)) and not any(
                    crumb.overlaps(other) for crumb in crumbs for other in avoided
                ):
                    made[number] = label
                    break
            else:
                # Whoever finds no room chooses first the next time.
                order = [number, *(other for other in order if other != number)]
                break
        else:
            return [made[number] for number in range(len(points))]
    return None


def _labels(name: str, place: Place, layout: Layout) -> Iterator[Label]:
    """Right, left, above, below and between, in growing rounds: all places that may be tried."""
    text = shortened(name, layout.label_px, font_px=layout.font_px)
    (x, y), width, height = place, text_px(text, layout.font_px), _LINE * layout.font_px
    for distance, turn in itertools.product(_ROUNDS_PX, _TURNS):
        across, up = math.cos(math.tau * turn / 24), math.sin(math.tau * turn / 24)
        left = x + distance * across + width / 2 * (across - 1)
        top = y - distance * up - height / 2 * (up + 1)
        fits = LEFT + 2 <= left <= layout.right - 2 - width
        if fits and TOP <= top <= layout.bottom - 2 - height:
            box = Box(left=left, top=top, right=left + width, bottom=top + height)
            end = (min(max(x, left), box.right), min(max(y, top), box.bottom))
            length = math.dist(place, end) or 1.0  # over its point, where it may not stay
            start = (x + DOT_PX / length * (end[0] - x), y + DOT_PX / length * (end[1] - y))
            yield Label(text=text, box=box, leader=(start, end) if length > _GAP_PX + 2 else None)
