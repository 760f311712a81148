"""What `waifu4x bench -o FILE.json` measured of the line of systems, beside what papers report.

    python weights/recipes/systems.py FILE.json … [--scale 4]
    python weights/recipes/systems.py --references blank.json near.json …

A row per model, in the order of the files: parameters, Y-PSNR in dB on Set5, Set14 and B100 with
the published figures in brackets, and seconds for a megapixel of output. With `--references` a
column per file, named as it is: Y-PSNR with the references that it was measured with
(`bench --references`), and by how much they beat those of the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from waifu4x.bench import published

_SETS = ("Set5", "Set14", "B100")
_CALLED = {
    "bicubic": "bicubic",
    "aplus": "A+",
    "srcnn": "SRCNN",
    "vdsr": "VDSR",
    "srresnet": "SRResNet",
    "srgan": "SRGAN",
    "edsr-baseline": "EDSR-baseline",
    "rcan": "RCAN",
    "san": "SAN",
    "srfbn": "SRFBN",
    "srfbn-s": "SRFBN-S",
}
"""Names here, and in `weights/published.toml`; of the others nothing is published there."""
_SOURCES = ("vdsr", "srgan", "safmn", "srfbn", "swinir")


def table(results: list[dict[str, Any]], scale: float) -> str:
    """Markdown."""
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        if result["scale"] == scale and result["dataset"] in _SETS:
            by_model.setdefault(result["model"], {})[result["dataset"]] = result
    lines = [
        f"| x{scale:g} | parameters | {' | '.join(_SETS)} | s/MP |",
        f"|---|---|{'---|' * len(_SETS)}---|",
    ]
    for model, found in by_model.items():
        first = next(iter(found.values()))
        count = "–" if first["parameters"] is None else f"{first['parameters'] / 1e6:.2f} M"
        cells = [_cell(model, name, scale, found.get(name)) for name in _SETS]
        spent_s = statistics.mean(each["seconds_per_megapixel"] for each in found.values())
        lines.append(f"| {model} | {count} | {' | '.join(cells)} | {spent_s:.2f} |")
    return "\n".join(lines)


def _cell(model: str, dataset: str, scale: float, result: dict[str, Any] | None) -> str:
    mine = "–" if result is None else f"{result['means']['psnr']:.2f}"
    reported = [
        figure.psnr_db
        for figure in published.figures()
        if figure.model == _CALLED.get(model)
        and figure.source.name in _SOURCES
        and figure.applies_to(dataset, scale)
        and figure.psnr_db is not None
    ]
    return f"{mine} ({reported[0]:.2f})" if reported else mine


def references_table(measured: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown. `measured` has the results for each kind of reference; the first is the base."""
    base, *others = measured
    psnr_db = {
        kind: {
            (result["model"], result["dataset"], result["scale"]): result["means"]["psnr"]
            for result in results
        }
        for kind, results in measured.items()
    }
    lines = [
        f"| | {base} | {' | '.join(others)} |",
        f"|---|---|{'---|' * len(others)}",
    ]
    for key, floor_db in psnr_db[base].items():
        model, dataset, scale = key
        if model == "bicubic":
            continue
        cells = [
            f"{got_db:.2f} ({got_db - floor_db:+.2f})"
            if (got_db := psnr_db[kind].get(key)) is not None
            else "–"
            for kind in others
        ]
        lines.append(f"| {model}, {dataset} x{scale:g} | {floor_db:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _results(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["results"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, nargs="+")
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--references", action="store_true")
    given = parser.parse_args()
    if given.references:
        print(references_table({path.stem: _results(path) for path in given.measured}))
    else:
        print(table([row for path in given.measured for row in _results(path)], given.scale))
