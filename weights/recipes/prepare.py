"""Lay out the crops that the shipped models are trained and judged on.

    python weights/recipes/prepare.py CROPS OUT

CROPS holds `photo/` and `art/`, each with its pictures and a `manifest.csv` that names every file's
source. OUT gets `train/photo`, `train/art`, `val/photo` and `val/art`, links to those files. Which
side a picture falls on is decided by a digest of its source, so that two crops of one photograph,
or of one comic page, are never divided, and every machine divides alike.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path

_VALIDATED_SHARE = {"photo": 0.10, "art": 0.07}


def side_of(source: str, *, validated_share: float) -> str:
    """ "val" or "train", for every crop of one source alike."""
    digest = hashlib.sha256(source.encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2.0**64
    return "val" if drawn < validated_share else "train"


def divide(crops: Path, out: Path) -> dict[str, int]:
    """Link every crop into its side. Gives how many pictures lie in each folder."""
    counts: dict[str, int] = {}
    for kind, share in _VALIDATED_SHARE.items():
        with (crops / kind / "manifest.csv").open(encoding="utf-8", newline="") as manifest:
            for row in csv.DictReader(manifest):
                # One comic's episode is one source: its pages share figures and lettering.
                source = row["origin_repo"] if "_ep" in row["origin_repo"] else row["path"]
                side = side_of(f"{row['origin_repo']} {source}", validated_share=share)
                link = out / side / kind / row["file"]
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to((crops / kind / row["file"]).resolve())
                counts[f"{side}/{kind}"] = counts.get(f"{side}/{kind}", 0) + 1
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("crops", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    for folder, count in divide(given.crops, given.out).items():
        print(f"{folder}: {count} pictures")
