"""What `waifu4x bench -o FILE.json` measured of the line of systems, beside what papers report.

    python weights/recipes/systems.py FILE.json … [--scale 4]

A row per model, in the order of the files: parameters, Y-PSNR in dB on Set5, Set14 and B100 with
the published figures in brackets, and seconds for a megapixel of output.
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
    "srfbn-s": "SRFBN-S",
}
"""Names here, and in `weights/published.toml`; of the others nothing is published there."""
_SOURCES = ("vdsr", "srgan", "safmn", "srfbn")


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, nargs="+")
    parser.add_argument("--scale", type=float, default=4.0)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in given.measured:
        rows += json.loads(path.read_text(encoding="utf-8"))["results"]
    print(table(rows, given.scale))
