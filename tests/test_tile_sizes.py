"""Tiles are as large as pays, what memory allows, and the same the next time."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from waifu4x import devices
from waifu4x.engines import FloatArray, one_by_one
from waifu4x.tiled import tile_sizes
from waifu4x.tiled.tile_sizes import TileSizes
from waifu4x.tiling import TileGrid

CPU = torch.device("cpu")


class Clock:
    """An engine that takes time by a clock of its own, and no other."""

    name = "clock"
    scale = 4
    channels = 3
    precision = "bf16"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rates: dict[int, float]) -> None:
        self.seen: list[int] = []
        self._now_s = 0.0
        self._rates = rates
        monkeypatch.setattr(tile_sizes.time, "perf_counter", lambda: self._now_s)

    def run(self, batch: FloatArray) -> FloatArray:
        side_px = batch.shape[1]
        self.seen.append(side_px)
        self._now_s += self._rates[side_px] * side_px**2
        return np.zeros((1, 1, 1, 3), dtype=np.float32)

    def stream(self, batches, *, dtype: np.dtype):  # type: ignore[no-untyped-def]
        return one_by_one(self.run, batches)

    def bytes_per_px(self) -> float:
        return 1500.0  # about as much as the default model's, by OpenVINO


def sizes_of(engine: Clock, folder: Path | None = None, **how: Any) -> TileSizes:
    return TileSizes(
        engine,
        device=CPU,
        halo_px=18,  # the default model's
        multiple=1,
        wished_px=how.pop("wished_px", None),
        name="0" * 64,
        folder=folder,
        **how,
    )


@pytest.fixture(autouse=True)
def _much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda device: 2**40)


def test_large_pictures_are_shown_at_most_a_tenth_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_of(Clock(monkeypatch, {}))
    rng = random.Random(0)
    for _ in range(500):
        area_px, aspect = rng.uniform(4e6, 60e6), math.exp(rng.uniform(-1.2, 1.2))
        height = math.isqrt(int(area_px * aspect))
        grid = sizes.plan(height, math.ceil(area_px / height))
        assert grid.waste <= 1.10
        # None is tiny: the others are at most a pixel larger.
        for spans in (grid.rows, grid.columns):
            cores = [span.core_stop - span.core_start for span in spans]
            assert max(cores) - min(cores) <= 1


def test_pictures_that_are_not_large_are_cut_in_the_fastest_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = sizes_of(Clock(monkeypatch, {}))
    assert sizes.plan(300, 300).waste == 1.0
    # Without a halo only the curve counts.
    sizes.halo_px = 0
    monkeypatch.setattr(sizes, "_curve", {128: 1.1, 256: 1.0, 512: 1.05})
    assert sizes.plan(1024, 1024).core_px == 256
    monkeypatch.setattr(sizes, "_curve", {128: 1.1, 256: 1.0, 512: 0.9, 720: 1.1})
    assert sizes.plan(1024, 1024).core_px == 512


def test_of_ways_that_are_as_fast_large_pictures_waste_the_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = sizes_of(Clock(monkeypatch, {}))
    wastes = []
    for slower in (1.0, 1.05, 1.3):
        monkeypatch.setattr(sizes, "_curve", {256: 1.0, 512: 1.0, 900: slower})
        wastes.append(sizes.plan(2560, 2560).waste)
    # 640 × 1280 px with a halo of 18 all around; then smaller ones.
    assert wastes[:2] == pytest.approx([676 * 1316 / 640 / 1280] * 2)
    assert wastes[2] > wastes[1]


def test_memory_bounds_tiles_and_rows_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Clock(monkeypatch, {})
    grid = sizes_of(engine, memory_bytes=1500 * 500 * 500).plan(1900, 1900)
    assert math.prod(grid.window_px) <= 500 * 500
    wide = sizes_of(engine).plan(2000, 60_000)
    rows = max(span.core_stop - span.core_start for span in wide.rows)
    assert rows * 4 * 60_000 * 4 * 3 <= 2**29
    # What was asked for is never changed.
    assert sizes_of(engine, wished_px=1000).plan(2000, 60_000).core_px == 1000


# -- calibration -----------------------------------------------------------------------------------

RATES = {256: 1e-6, 512: 1.3e-6, 1024: 2e-6}


def test_large_pictures_are_calibrated_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = Clock(monkeypatch, RATES)
    sizes = sizes_of(engine, tmp_path / "engines")
    sizes.plan(1900, 2000)
    assert engine.seen == []
    small = sizes.plan(2500, 2500)
    # The first run of every size is not counted; 1024 px took longer than half a second.
    assert engine.seen == [256, 256, 512, 512, 1024, 1024]
    (kept,) = (tmp_path / "engines").iterdir()
    assert json.loads(kept.read_bytes()) == pytest.approx({"256": 1.0, "512": 1.3, "1024": 2.0})
    # By the curve that stands for all, tiles would be larger.
    assert small.core_px < sizes_of(engine).plan(2500, 2500).core_px

    engine.seen.clear()
    assert sizes_of(engine, tmp_path / "engines").plan(2500, 2500) == small
    assert engine.seen == []


def test_a_slow_network_is_calibrated_no_longer_than_it_must(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = Clock(monkeypatch, {256: 1e-5})
    sizes_of(engine, tmp_path).plan(2500, 2500)
    assert engine.seen == [256, 256]


def test_of_calibrations_side_by_side_the_first_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else whoever was the first would cut its pictures in another way the next time."""
    expected: list[TileGrid] = []

    class Late(Clock):
        """While it measures, another process begins, and ends."""

        def run(self, batch: FloatArray) -> FloatArray:
            if not self.seen:
                self.seen.append(0)
                self._rates = {256: 1e-6, 512: 0.8e-6, 1024: 0.7e-6}
                expected.append(sizes_of(self, tmp_path).plan(2500, 2500))
                self._rates = RATES
            return super().run(batch)

    engine = Late(monkeypatch, RATES)
    assert [sizes_of(engine, tmp_path).plan(2500, 2500)] == expected
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_bytes())["1024"] == 1.0
    assert expected != [sizes_of(engine, tmp_path / "alone").plan(2500, 2500)]


def test_a_calibration_is_kept_without_links_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(tile_sizes.os, "link", refuse)
    engine = Clock(monkeypatch, RATES)
    plan = sizes_of(engine, tmp_path).plan(2500, 2500)
    engine.seen.clear()
    assert sizes_of(engine, tmp_path).plan(2500, 2500) == plan
    assert engine.seen == []
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"x": 1}', b'{"256": "1"', b'{"256": -1}', b'{"256": NaN}']
)
def test_a_damaged_calibration_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    engine = Clock(monkeypatch, RATES)
    first = sizes_of(engine, tmp_path).plan(2500, 2500)
    (kept,) = tmp_path.iterdir()
    good = kept.read_bytes()
    kept.write_bytes(content)
    assert sizes_of(engine, tmp_path).plan(2500, 2500) == first
    assert kept.read_bytes() == good


def test_what_cannot_be_kept_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a picture might be cut in another way every time."""
    engine = Clock(monkeypatch, RATES)
    (tmp_path / "engines").write_bytes(b"a file where the folder should be")
    plan = sizes_of(engine, tmp_path / "engines").plan(2500, 2500)
    assert plan == sizes_of(engine).plan(2500, 2500)


def test_calibrations_of_other_engines_are_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = Clock(monkeypatch, RATES)
    sizes_of(engine, tmp_path).plan(2500, 2500)
    engine.precision = "fp32"
    sizes_of(engine, tmp_path).plan(2500, 2500)
    assert len(list(tmp_path.iterdir())) == 2
