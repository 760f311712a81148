"""What `waifu4x bench -o FILE.json` measured, as one table for the model cards and the README.

    python weights/recipes/table.py FILE.json [MODEL …]

A row per set and compression, a column per model (bicubic and all others, or those that are named);
each cell is PSNR in dB / SSIM / GMSD. The best of each is bold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_METRICS = ("psnr", "ssim", "gmsd")


def table(results: list[dict[str, Any]], models: list[str]) -> str:
    """Markdown."""
    by_place: dict[tuple[str, int, int | None], dict[str, dict[str, float]]] = {}
    for result in results:
        place = result["dataset"], result["scale"], result.get("jpeg_quality")
        by_place.setdefault(place, {})[result["model"]] = result["means"]
    lines = [f"| set | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    for (dataset, scale, quality), means in by_place.items():
        best = {
            metric: (min if metric == "gmsd" else max)(means[model][metric] for model in models)
            for metric in _METRICS
        }
        cells = [" / ".join(_cell(means[model], m, best) for m in _METRICS) for model in models]
        state = "clean" if quality is None else f"JPEG {quality}"
        lines.append(f"| {dataset} x{scale}, {state} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(means: dict[str, float], metric: str, best: dict[str, float]) -> str:
    text = f"{means[metric]:.2f}" if metric == "psnr" else f"{means[metric]:.3f}".lstrip("0")
    return f"**{text}**" if means[metric] == best[metric] else text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("models", nargs="*")
    given = parser.parse_args()
    found = json.loads(given.measured.read_text(encoding="utf-8"))["results"]
    print(table(found, given.models or list(dict.fromkeys(result["model"] for result in found))))
