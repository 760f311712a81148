"""What `engines` measured: kept in a file, shown as a table, held against the goals."""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BASELINE = "plain"
NCNN = "ncnn"
OPENVINO = "openvino"
RANDOM = "random weights"

GOAL_DB = 50.0
GOAL_TIMES = {"without OpenVINO": 4.0, "with OpenVINO": 6.0}
"""End to end, as fast as the baseline times this."""

WHOLE, ALONE = 0, 1
_COLUMNS = {WHOLE: "end to end", ALONE: "inference only"}
_BEGIN, _END = "<!-- engines table -->", "<!-- /engines table -->"
_FORMAT = 1
_LINE_CHARACTERS = 105
_JOIN = "\x01"  # a space at which no line ends


@dataclass(kw_only=True)
class Record:
    """What is known of one model."""

    model: str
    about: str
    """Whose weights these are."""
    weights: str
    """Where they lie now."""
    side_px: int
    conditions: dict[str, str]
    """What must not change from one invocation to the next: versions, the processor."""
    baseline_tile_px: int | None
    ncnn_settings: dict[str, Any] | None = None
    """The one of `engines_ncnn.CANDIDATES` that was fastest."""
    labels: dict[str, str] = field(default_factory=dict)
    agreement_db: dict[str, float | None] = field(default_factory=dict)
    """Against the baseline, of 8-bit values; None where every one is the same."""
    rounds: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    """By contestant the seconds end to end, and of inference only."""

    def ratios(self, key: str, column: int, *, against: str = BASELINE) -> list[float]:
        """How many times as fast as `against`, of every round in which both ran."""
        return [r[against][column] / r[key][column] for r in self.rounds if {key, against} <= {*r}]


def load(path: Path | None) -> dict[str, Record]:
    """The records in a file, by their models; none where there is no file yet."""
    if path is None or not path.exists():
        return {}
    content = json.loads(path.read_text("utf-8"))
    if content.get("format") != _FORMAT:
        sys.exit(f"{path} is not of this benchmark, or of an older one: name another file")
    return {entry["model"]: Record(**entry) for entry in content["records"]}


def save(records: dict[str, Record], path: Path) -> None:
    """Write the records so that an interrupt leaves the old file or the new one."""
    content = {"format": _FORMAT, "records": [asdict(record) for record in records.values()]}
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1), "utf-8")
    partial.replace(path)


def markdown(records: dict[str, Record]) -> str:
    """What stands in the README: how it was measured, and a row for every contestant."""
    if not records:
        return "No figures yet: `python benchmarks/engines.py --write-readme` writes them here."
    conditions = {text for record in records.values() for text in record.conditions.values()}
    counts = [len(record.rounds) for record in records.values()]
    rounds = f"{min(counts)} to {max(counts)} rounds"
    if min(counts) == max(counts):
        rounds = f"{min(counts)} round{'s' if min(counts) > 1 else ''}"
    about = (
        f"Times as fast as plain PyTorch in fp32, median and range of {rounds} in which all took "
        f"turns, by `python{_JOIN}benchmarks/engines.py` ({'; '.join(sorted(conditions))}). End to "
        f"end is a process from PNG file to PNG file, inference only from array to array once "
        f"everything is loaded. Agreement is that of 8-bit values with plain PyTorch's."
    )
    lines = [
        *(line.replace(_JOIN, " ") for line in _wrapped(about)),
        "",
        f"| model, picture | by | {' | '.join(_COLUMNS.values())} | agreement |",
        "|---|---|---|---|---|",
    ]
    for record in records.values():
        lines += _rows(record)
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _LINE_CHARACTERS, break_on_hyphens=False, break_long_words=False)


def _rows(record: Record) -> list[str]:
    """The table's rows of one model, which names itself in the first."""
    first = f"{record.model} ({record.about}), {record.side_px}×{record.side_px}"
    rows = []
    for key, label in record.labels.items():
        cells = ["1", "1", "–"]
        if key != BASELINE:
            times = [record.ratios(key, column) for column in _COLUMNS]
            cells = [*(spread(values) for values in times), _agreement(record, key)]
        rows.append(f"| {' | '.join(['' if rows else first, label, *cells])} |")
    return rows


def _agreement(record: Record, key: str) -> str:
    db = record.agreement_db[key]
    return "every value" if db is None else f"{db:.1f} dB"


def write_readme(path: Path, text: str) -> None:
    """Put `text` between the markers of the page."""
    page = path.read_text("utf-8")
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        sys.exit(f"{path} lacks {_BEGIN} and {_END}: put both where the table belongs")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def goals(record: Record) -> list[str]:
    """A line for each goal: what was wanted, what was reached, by which contestant."""
    ours = [key for key in record.labels if key not in (BASELINE, NCNN)]
    lines = [_agreement_goal(record, ours)]
    exact = [key for key in ours if record.about == RANDOM or _agrees(record, key)]
    for name, wanted in GOAL_TIMES.items():
        with_openvino = name == "with OpenVINO"
        able = [key for key in exact if key.startswith(OPENVINO) == with_openvino]
        what = f"end to end at least {wanted:g} times as fast as plain PyTorch, {name}"
        lines.append(_speed_goal(record, able, what, wanted=wanted, column=WHOLE))
    if NCNN in record.labels:
        for column, name in _COLUMNS.items():
            what = f"ahead of ncnn, {name}"
            lines.append(_speed_goal(record, exact, what, wanted=1.0, column=column, against=NCNN))
    return lines


def _agrees(record: Record, key: str) -> bool:
    db = record.agreement_db[key]
    return db is None or db >= GOAL_DB


def _agreement_goal(record: Record, ours: list[str]) -> str:
    if record.about == RANDOM:
        # Nothing taught such a network to be calm: it amplifies what rounding changes.
        return f"goal: agreement of at least {GOAL_DB:g} dB: not judged for {RANDOM}"
    wanting = [record.labels[key] for key in ours if not _agrees(record, key)]
    said = f"missed by {', '.join(wanting)}" if wanting else "reached by all"
    return f"goal: agreement of at least {GOAL_DB:g} dB: {said}"


def _speed_goal(
    record: Record,
    able: list[str],
    what: str,
    *,
    wanted: float,
    column: int,
    against: str = BASELINE,
) -> str:
    """The fastest of `able`, which all agree well enough, against what is wanted."""
    times = {key: record.ratios(key, column, against=against) for key in able}
    times = {key: values for key, values in times.items() if values}
    if not times:
        return f"goal: {what}: nobody ran"
    best = max(times, key=lambda key: statistics.median(times[key]))
    verdict = "reached" if statistics.median(times[best]) >= wanted else "missed"
    return f"goal: {what}: {spread(times[best])} by {record.labels[best]}: {verdict}"


def spread(values: list[float]) -> str:
    """Median and range; a single value has none."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
