"""How long a plan will take, from short runs of its stages on this machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

from waifu4x import pictures
from waifu4x.batch.plan import Plan
from waifu4x.pictures import Picture
from waifu4x.upscaler import Upscaler

_SAMPLE_PX = 1024


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a plan takes, about; in all, or of one job."""

    network_s: float
    encode_s: float
    """Of one thread."""
    wall_s: float
    """With the stages side by side."""
    output_px: int
    output_bytes: int
    memory_bytes: int
    """Of the largest file; see `run.run` for how many are on their way at once."""


def estimate(plan: Plan, upscaler: Upscaler, *, workers: int) -> Estimate:
    """Time one tile of the network, and the encoder of every format of the plan.

    Good for tens of per cent: drawings encode faster than the sample does, pictures that are
    smaller than a tile cost more for their size, and a machine that is busy takes longer.
    """
    rates = {format: _encode_s_per_px(format, plan) for format in {job.format for job in plan.jobs}}
    network_s = sum(
        job.frames * upscaler.estimate_s(job.header, plan.request.target) for job in plan.jobs
    )
    encode_s = sum(job.output_px * rates[job.format] for job in plan.jobs)
    on_cpu = upscaler.runner is None or upscaler.runner.device.type == "cpu"
    threads = max(1, min(workers, os.cpu_count() or 1))
    # On a CPU the network and the encoders share its cores; a GPU leaves them alone.
    wall_s = network_s + encode_s / threads if on_cpu else max(network_s, encode_s / threads)
    return Estimate(
        network_s=network_s,
        encode_s=encode_s,
        wall_s=wall_s,
        output_px=sum(job.output_px for job in plan.jobs),
        output_bytes=sum(job.output_bytes for job in plan.jobs),
        memory_bytes=max((job.memory_bytes for job in plan.jobs), default=0),
    )


def _encode_s_per_px(format: str, plan: Plan) -> float:
    """Seconds that encoding takes for a pixel: of waves with some grain, as photographs have."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:_SAMPLE_PX, :_SAMPLE_PX].astype(np.float32) / 40
    waves = 128 + 90 * np.stack([np.sin(x + y), np.sin(x - y), np.cos(x)], axis=2)
    grain = rng.normal(0, 2, waves.shape)
    pixels = np.clip(waves + grain, 0, 255).astype(np.uint8)
    encoding = plan.request.encoding
    started = time.perf_counter()
    pictures.encode(
        Picture(pixels=pixels), format=format, quality=encoding.quality, lossless=encoding.lossless
    )
    return (time.perf_counter() - started) / _SAMPLE_PX**2
