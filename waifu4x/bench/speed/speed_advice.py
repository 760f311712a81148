"""What measuring the speed of a model found out, and which flags that speaks for.

Rows are times alone; every ratio is made here, of the times of the same rounds. A flag is advised
only when it is faster by more than noise and changes no more of a picture than rounding does, or in
int8, which changes more, when it costs next to nothing of what counts: the PSNR to the truth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NOISE = 1.05
"""How many times as fast is still taken for as fast."""
STEADY_SHARE = 0.75
"""In which share of the rounds a way must be faster by more than noise."""
AGREEMENT_DB = 50.0
"""PSNR to fp32 below which a precision is not advised: 0.8 of 255, root mean square. Rounding to
8 bits alone is 59 dB."""
MOST_LOSS_DB = 0.05
"""What int8 may lose of fp32's PSNR to the truth, and still be advised."""


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One way of running the model."""

    flags: str
    """What `waifu4x upscale` must be given for it; empty for what it does by itself."""
    engine: str
    """"torch", "openvino", "onnxruntime", or "numpy" for filters."""
    precision: str
    tile_px: int | None
    """The explicit tile; None for the automatic one."""
    megapixels: float
    """Of the enlarged picture, in millions of pixels."""
    probe_s: float | None = None
    """Of the run between the warm-up and the first round; None where it failed."""
    times_s: tuple[float, ...] = ()
    """Of enlarging the picture, by round; none where it failed, or was so slow in its probe that it
    took part in no round."""
    used_tile_px: int | None = None
    """The longest side of a tile as it was cut; None for filters and where nothing was run."""
    waste: float | None = None
    """Pixels shown to the network over pixels of its input; None where nothing was run."""
    agreement_db: float | None = None
    """PSNR to the result of torch's fp32 in automatic tiles, 8-bit RGB; infinite for the same
    pixels, None where one of the two failed, and for bicubic beside a network."""
    loss_db: float | None = None
    """By how much its PSNR to true pictures is below that of torch's fp32; None where that was not
    measured, which it is of int8 alone."""
    ready_s: float | None = None
    """Seconds until its engine was ready, with converting the model where that had not been kept;
    in no round. None for torch, which converts nothing, and where it failed."""
    note: str = ""
    """Why it failed or was dropped, or what was decided on the way."""

    @property
    def is_automatic(self) -> bool:
        """Whether it is what the command does without flags."""
        return self.flags == ""

    @property
    def rounds(self) -> int:
        """How many rounds it was timed in."""
        return len(self.times_s)

    @property
    def megapixels_per_second(self) -> float | None:
        """Of output, the median of the rounds, or of the probe where it took part in none; None
        where it failed."""
        times_s = self._known_times_s
        return self.megapixels / statistics.median(times_s) if times_s else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Megapixels per second at the slowest and at the fastest."""
        times_s = self._known_times_s
        return (self.megapixels / max(times_s), self.megapixels / min(times_s)) if times_s else None

    @property
    def _known_times_s(self) -> tuple[float, ...]:
        return self.times_s or (() if self.probe_s is None else (self.probe_s,))

    def ratios_to(self, other: SpeedRow) -> list[float]:
        """How many times as fast as `other`, in each round that both ran in; of the probes where
        one of them ran in none; nothing where one failed."""
        if self.rounds and other.rounds:
            return [b / a for a, b in zip(self.times_s, other.times_s, strict=True)]
        if self.probe_s is None or other.probe_s is None:
            return []
        return [other.probe_s / self.probe_s]

    def ratio_to(self, other: SpeedRow) -> float | None:
        """The median of `ratios_to`: 2.0 is twice as fast. None where one failed."""
        ratios = self.ratios_to(other)
        return statistics.median(ratios) if ratios else None

    def is_faster_than(self, other: SpeedRow) -> bool:
        """Whether it is faster by more than noise in at least STEADY_SHARE of the rounds."""
        ratios = self.ratios_to(other)
        return bool(ratios) and _ahead(ratios) >= STEADY_SHARE * len(ratios)


@dataclass(frozen=True, kw_only=True)
class SpeedReport:
    """One model on one device."""

    model: str
    scale: float
    device: str
    """"cpu", "cuda:0", …"""
    device_name: str
    """For people."""
    threads: int | None
    """That torch uses on the CPU; None for filters."""
    input_px: tuple[int, int]
    """(width, height) of the picture that was enlarged; so is `output_px`."""
    output_px: tuple[int, int]
    budget_s: float
    spent_s: float
    bicubic: SpeedRow
    """The yardstick, measured in the same rounds; its `flags` mean nothing."""
    rows: tuple[SpeedRow, ...]
    """The engines and their precisions in automatic tiles, then the explicit tiles from small to
    large; a filter has one row."""
    truth: tuple[str, ...] = ()
    """The sets of true pictures that `SpeedRow.loss_db` is of, on the worst of them; none where
    nothing was compared with them."""
    notes: tuple[str, ...] = ()
    """What to know about the whole measurement, one sentence each."""

    @property
    def rounds(self) -> int:
        return self.bicubic.rounds

    @property
    def automatic(self) -> SpeedRow:
        """What the command does without flags; it is guaranteed to have been measured."""
        return next(row for row in self.rows if row.is_automatic)

    @property
    def fp32(self) -> SpeedRow:
        """torch's fp32 in automatic tiles, which may have failed; the automatic choice for a file
        that torch cannot run."""
        plain = [row for row in self.rows if row.tile_px is None and row.engine == "torch"]
        return next((row for row in plain if row.precision == "fp32"), self.automatic)

    @property
    def advice(self) -> tuple[str, ...]:
        """Which flags to give, one sentence each: see `advise`."""
        return advise(self)

    def facts(self) -> dict[str, object]:
        """All of it as plain values for JSON; None for an infinite agreement, which JSON cannot
        say: `equals_fp32` tells."""
        plain = ("model", "scale", "device", "device_name", "threads", "budget_s", "spent_s")
        return {
            **{key: getattr(self, key) for key in plain},
            "input_size": list(self.input_px),
            "output_size": list(self.output_px),
            "rounds": self.rounds,
            "truth": list(self.truth),
            "bicubic": self._row_facts(self.bicubic),
            "rows": [self._row_facts(row) for row in self.rows],
            "notes": list(self.notes),
            "advice": list(self.advice),
        }

    def _row_facts(self, row: SpeedRow) -> dict[str, object]:
        slowest, fastest = row.spread or (None, None)
        agreement_db = row.agreement_db
        exact = None if agreement_db is None else math.isinf(agreement_db)
        return {
            "flags": row.flags,
            "engine": row.engine,
            "precision": row.precision,
            "tile": row.tile_px,
            "used_tile": row.used_tile_px,
            "megapixels_per_second": row.megapixels_per_second,
            "slowest": slowest,
            "fastest": fastest,
            "ratio_to_bicubic": row.ratio_to(self.bicubic),
            "ratio_to_fp32": row.ratio_to(self.fp32),
            "ratio_to_automatic": row.ratio_to(self.automatic),
            "waste": row.waste,
            "agreement_db": None if exact else agreement_db,
            "equals_fp32": exact,
            "loss_db": row.loss_db,
            "ready_s": row.ready_s,
            "rounds": row.rounds,
            "note": row.note,
        }


def advise(report: SpeedReport) -> tuple[str, ...]:
    """Sentences for people: the best flags first, then what reduced precisions cost.

    Advised is the fastest of the ways that `is_faster_than` the automatic choice and that
    `may_be_advised`; of those that are as fast but for noise, the one with the fewest flags. Int8
    that may not be advised is guaranteed not to be named.
    """
    automatic = report.automatic
    if automatic.engine == "numpy":
        return (f"nothing: {report.model} is no network, and no flag changes its speed",)
    return (_best(report), *_costs(report))


def may_be_advised(row: SpeedRow, automatic: SpeedRow) -> bool:
    """Whether nobody would see a difference to fp32, or there is none to what is done anyway."""
    if (row.engine, row.precision) == (automatic.engine, automatic.precision):
        return True
    if row.precision == "int8":
        return row.loss_db is not None and row.loss_db <= MOST_LOSS_DB
    if row.agreement_db is None:
        return False
    return row.agreement_db >= min(AGREEMENT_DB, automatic.agreement_db or AGREEMENT_DB)


def lost(row: SpeedRow, truth: Sequence[str]) -> str:
    """What int8 costs, for people; its `loss_db` is not None."""
    assert row.loss_db is not None
    where = truth[0] if len(truth) == 1 else f"the worst of {', '.join(truth)}"
    verb = "loses" if row.loss_db >= 0.0 else "gains"
    return f"{verb} {abs(row.loss_db):.3f} dB of PSNR on {where}"


def _best(report: SpeedReport) -> str:
    automatic = report.automatic
    allowed = [row for row in report.rows if row.rounds and may_be_advised(row, automatic)]
    speeds = {row.flags: row.ratio_to(automatic) or 0.0 for row in allowed}
    faster = [row for row in allowed if row.is_faster_than(automatic)]
    if faster:
        least = max(speeds[row.flags] for row in faster) / NOISE
        row = min(
            (row for row in faster if speeds[row.flags] >= least),
            key=lambda row: (row.flags.count("--"), -speeds[row.flags]),
        )
        ratios = row.ratios_to(automatic)
        return (
            f"{row.flags}: {speeds[row.flags]:.2f} times as fast as the automatic choice "
            f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds)"
            f"{_price(row, report)}"
        )
    row = max(allowed, key=lambda row: speeds[row.flags])
    if speeds[row.flags] >= NOISE:
        ratios = row.ratios_to(automatic)
        return (
            f"nothing yet: {row.flags} was {speeds[row.flags]:.2f} times as fast as the automatic "
            f"choice, but faster by {NOISE - 1.0:.0%} in only {_ahead(ratios)} of {len(ratios)} "
            f"rounds; measure again, for longer{_price(row, report)}"
        )
    tiles = f"{automatic.engine} {automatic.precision} in tiles of {automatic.used_tile_px} px"
    by = f"within {NOISE - 1.0:.0%} of " if speeds[row.flags] > 1.0 else ""
    return f"nothing: the automatic choice, {tiles}, is {by}the fastest here"


def _price(row: SpeedRow, report: SpeedReport) -> str:
    return "" if row.loss_db is None else f"; it {lost(row, report.truth)}"


def _costs(report: SpeedReport) -> list[str]:
    """What precisions cost that are faster than they are exact."""
    automatic, sentences = report.automatic, []
    for row in report.rows:
        if row.tile_px is not None or not row.rounds or row.precision == "int8":
            continue
        if row.is_automatic:
            if _loses_much(row) and (exact := _fastest_exact(report)) is not None:
                sentences.append(
                    f"{row.precision}, the automatic choice, {_agreement(row)}: "
                    f"{exact.flags} takes {row.ratio_to(exact):.2f} times as long"
                )
        elif not may_be_advised(row, automatic) and row.is_faster_than(automatic):
            sentences.append(
                f"not {row.flags}: {row.ratio_to(automatic):.2f} times as fast as the automatic "
                f"choice, but it {_agreement(row)}"
            )
    return sentences


def _fastest_exact(report: SpeedReport) -> SpeedRow | None:
    """Of fp32 in automatic tiles; None where it failed."""
    found = [row for row in report.rows if row.precision == "fp32" and row.tile_px is None]
    ratios = {row: ratio for row in found if (ratio := row.ratio_to(report.automatic)) is not None}
    return max(ratios, key=lambda row: ratios[row], default=None)


def _ahead(ratios: Sequence[float]) -> int:
    """In how many rounds."""
    return sum(ratio >= NOISE for ratio in ratios)


def _loses_much(row: SpeedRow) -> bool:
    return row.agreement_db is not None and row.agreement_db < AGREEMENT_DB


def _agreement(row: SpeedRow) -> str:
    if row.agreement_db is None:
        return "could not be compared with fp32, which failed"
    rms = 255.0 * 10.0 ** (-row.agreement_db / 20.0)
    return (
        f"agrees with fp32 to {row.agreement_db:.1f} dB only "
        f"(values differ by {rms:.1f} of 255, root mean square)"
    )
