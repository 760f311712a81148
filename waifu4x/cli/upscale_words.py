"""What ``waifu4x upscale`` says of jobs and runs: words for people, facts for programs."""

from __future__ import annotations

from typing import Any

from waifu4x.batch.jobs import Job
from waifu4x.batch.plan import Plan
from waifu4x.batch.request import STREAM
from waifu4x.batch.run import Split
from waifu4x.upscaler import Facts, Upscaler


def facts(job: Job) -> dict[str, Any]:
    """What is known of a job beforehand, for its JSON line."""
    facts: dict[str, Any] = {
        "input": job.name if job.data is not None else str(job.source.path),
        "output": STREAM if job.target is None else str(job.target),
        "input_size": [job.header.width_px, job.header.height_px],
        "output_size": list(job.size_px),
        "format": job.format,
        "passes": list(job.passes),
    }
    if job.streamed:
        facts["streamed"] = True
    if job.header.frames > 1:
        facts["frames"] = job.header.frames
    if job.members is not None:
        facts["members"] = job.members
    return facts


def arrow(job: Job) -> str:
    """What becomes what."""
    before = f"{job.header.width_px}×{job.header.height_px}"
    after = f"{job.size_px[0]}×{job.size_px[1]}"
    where = "standard output" if job.target is None else str(job.target)
    count = ""
    if job.members is not None:
        count = f" ({job.members} picture{'s' if job.members > 1 else ''})"
    elif job.header.frames > 1:
        count = f" ({job.header.frames} {'pages' if job.header.kind == 'pages' else 'frames'})"
    return f"{job.name} {before}{count} → {where} {after}"


def costs(job: Job, upscaler: Upscaler, whole: Plan) -> dict[str, Any]:
    """What a job takes, estimated, for its JSON line."""
    target = whole.request.target
    return {
        "tiles": upscaler.tiles(job.header, target),
        "tile": upscaler.tile_px(job.header, target),
        "memory_bytes": job.memory_bytes,
        "output_bytes": job.output_bytes,
        "estimated_s": round(job.frames * upscaler.estimate_s(job.header, target), 2),
    }


def job_in_words(job: Job, costs: dict[str, Any]) -> str:
    """A job and its costs."""
    passes = " · ".join(f"{factor:g}x" for factor in job.passes) or "none, only resampling"
    tiles = f"{costs['tiles']} tile{'s' if costs['tiles'] > 1 else ''}"
    cut = f", first pass in {tiles} of up to {costs['tile']} px" if costs["tiles"] else ""
    network = f" and {costs['estimated_s']:.1f} s in the network" if job.passes else ""
    return (
        f"{arrow(job)}: passes {passes}{cut}, {'in strips, ' if job.streamed else ''}about "
        f"{job.memory_bytes / 2**20:.0f} MiB of memory{network}"
    )


def made_in_words(facts: Facts) -> str:
    """How a picture came to be."""
    tiles = "untiled" if facts.tile_px is None else f"tiles of up to {facts.tile_px} px"
    how = f"on {facts.device} in {facts.precision} by {facts.engine}"
    why = "" if facts.picked is None else f" ({facts.picked})"
    return f"{facts.model}{why} {how}, {tiles}, waste {facts.waste:.2f}"


def split_in_words(split: Split) -> str:
    """Where the time of a run went."""
    spent = split.stages_s
    return (
        f"{split.wall_s:.2f} s: decoding {spent['read']:.2f} s, upscaling {spent['upscale']:.2f} s "
        f"(network {spent['network']:.2f} s), encoding {spent['encode']:.2f} s, writing "
        f"{spent['write']:.2f} s, side by side; upscaling waited {split.starved_s:.2f} s for "
        f"pictures and {split.blocked_s:.2f} s for encoders"
    )
