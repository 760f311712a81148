"""The work of ``waifu4x upscale``: one picture after the other, and what is said about it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageColor

from waifu4x import memory, naming, pictures
from waifu4x.cli import outputs
from waifu4x.cli.allocator import keep_large_blocks
from waifu4x.cli.outputs import Claims
from waifu4x.cli.reporter import Reporter
from waifu4x.errors import (
    OutOfMemoryError,
    PictureReadError,
    PictureWriteError,
    UsageError,
    Waifu4xError,
)
from waifu4x.formats import check_writable_as
from waifu4x.models import open_upscaler
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Facts, Options, Upscaler

STREAM = "-"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How outputs are written."""

    format: str | None
    quality: int | None
    lossless: bool
    strip_metadata: bool
    background: tuple[int, int, int] | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything the user asked for."""

    inputs: tuple[str, ...]
    output: str | None
    name: str | None
    model: str
    target: Target
    options: Options
    encoding: Encoding
    overwrite: bool
    max_pixels: int | None
    tile_px: int | None
    device: str
    precision: str
    tta: bool
    offline: bool

    @property
    def several(self) -> bool:
        return len(self.inputs) > 1

    @property
    def named_output(self) -> str | None:
        """``-o`` where it can name a file, and so its suffix a format."""
        return None if self.several or self.name is not None else self.output


def parse_color(text: str) -> tuple[int, int, int]:
    """A CSS colour name or #rrggbb as three numbers 0..255."""
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise UsageError(f"{text!r} is no colour: write it as white or #ff8800") from error


def run(request: Request, reporter: Reporter, *, dry_run: bool) -> list[Waifu4xError]:
    """Enlarge every input; the errors of those that failed are returned, one per file.

    Raises:
        Waifu4xError: nothing can be done for any input, so nothing was.
    """
    _check(request, reporter)
    keep_large_blocks()
    failed: list[Waifu4xError] = []
    claims = Claims.of(source for source in request.inputs if source != STREAM)
    with reporter.job(len(request.inputs)):
        upscaler = open_upscaler(
            request.model,
            device=request.device,
            precision=request.precision,
            tile_px=request.tile_px,
            tta=request.tta,
            options=request.options,
            offline=request.offline,
            on_download=reporter.downloading,
        )
        for number, source in enumerate(request.inputs):
            reporter.working_on(source, number, 0.0)
            try:
                job = _plan(source, request, upscaler, claims)
                if job.exists and not request.overwrite:
                    reporter.say(f"{job.target} exists: skipped (--overwrite replaces it)")
                    reporter.outcome({**job.facts, "status": "skipped"})
                elif dry_run:
                    costs = job.costs(upscaler, request.target)
                    reporter.say(job.describe(costs))
                    reporter.outcome({**job.facts, **costs, "status": "planned"})
                else:
                    _do(job, request, upscaler, reporter, number=number)
            except (Waifu4xError, MemoryError) as caught:
                error = caught if isinstance(caught, Waifu4xError) else _too_large(source)
                failed.append(error)
                reporter.fail(error)
                reporter.outcome({"input": source, "status": "failed", "error": str(error)})
    return failed


def _check(request: Request, reporter: Reporter) -> None:
    """Everything that can be refused before any work."""
    if not request.inputs:
        raise UsageError("give at least one picture: waifu4x upscale meme.png -s 4")
    to_stdout = request.output == STREAM or (request.output is None and STREAM in request.inputs)
    if to_stdout and request.several:
        raise UsageError("only one picture fits into standard output: give a folder with -o")
    if to_stdout and reporter.as_json:
        raise UsageError("--json and the picture cannot both go to standard output: give -o FILE")
    if to_stdout and (sys.stdout is None or sys.stdout.isatty()):
        raise UsageError("standard output is a terminal, or closed: give -o FILE, or redirect it")
    if STREAM in request.inputs and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("standard input is a terminal, or closed: redirect a picture into it")
    if request.several and request.output is not None and os.path.isfile(request.output):
        raise UsageError(f"{request.output} is a file: give a folder for several pictures")
    if request.name is not None:
        naming.check_template(request.name)
        output = request.output or ""
        if naming.format_named(Path(output).suffix) and not naming.means_folder(output):
            raise UsageError("give the output's name by -o FILE or by --name, not both")
    # A wrong suffix or quality is known now; no input has to be read for it.
    encoding = request.encoding
    check_writable_as(
        naming.output_format("PNG", wish=encoding.format, output=request.named_output),
        1,
        1,
        quality=encoding.quality,
        lossless=encoding.lossless,
        background=encoding.background,
    )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One picture that was read, and all that is decided about it before the network runs."""

    source: str
    picture: Picture
    format: str
    size_px: tuple[int, int]
    target: Path | None
    """None is standard output."""
    exists: bool
    """Whether there is a file at `target` already."""
    passes: tuple[float, ...]
    memory_bytes: int
    read_s: float

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "input": self.source,
            "output": STREAM if self.target is None else str(self.target),
            "input_size": [self.picture.width_px, self.picture.height_px],
            "output_size": list(self.size_px),
            "format": self.format,
            "passes": list(self.passes),
        }

    @property
    def arrow(self) -> str:
        before = f"{self.picture.width_px}×{self.picture.height_px}"
        after = f"{self.size_px[0]}×{self.size_px[1]}"
        where = "standard output" if self.target is None else str(self.target)
        return f"{self.source} {before} → {where} {after}"

    def costs(self, upscaler: Upscaler, target: Target) -> dict[str, Any]:
        return {
            "tiles": upscaler.tiles(self.picture, target),
            "tile": upscaler.tile_px(self.picture, target),
            "memory_bytes": self.memory_bytes,
            "estimated_s": round(upscaler.estimate_s(self.picture, target), 2),
        }

    def describe(self, costs: dict[str, Any]) -> str:
        passes = " · ".join(f"{factor:g}x" for factor in self.passes) or "none, only resampling"
        tiles = f"{costs['tiles']} tile{'s' if costs['tiles'] > 1 else ''}"
        cut = f", first pass in {tiles} of up to {costs['tile']} px" if costs["tiles"] else ""
        network = f" and {costs['estimated_s']:.1f} s in the network" if self.passes else ""
        return (
            f"{self.arrow}: passes {passes}{cut}, about "
            f"{self.memory_bytes / 2**20:.0f} MiB of memory{network}"
        )


def _plan(source: str, request: Request, upscaler: Upscaler, claims: Claims) -> _Job:
    """Read one input and settle format, size, name and memory.

    Raises:
        Waifu4xError: it cannot be read, or its output could not be written or held.
    """
    started = time.perf_counter()
    picture = _read(source, request)
    size_px = request.target.size_px(picture.width_px, picture.height_px)
    encoding = request.encoding
    format = naming.output_format(picture.format, wish=encoding.format, output=request.named_output)
    check_writable_as(
        format,
        *size_px,
        transparent=picture.is_transparent,
        channels=picture.pixels.shape[2],
        depth_bits=picture.depth_bits,
        quality=encoding.quality,
        lossless=encoding.lossless,
        background=encoding.background,
    )
    target = _target(source, request, upscaler, picture, format=format, size_px=size_px)
    if target is not None:
        claims.claim(target, source)
    job = _Job(
        source=source,
        picture=picture,
        format=format,
        size_px=size_px,
        target=target,
        exists=target is not None and outputs.exists(target),
        passes=upscaler.passes(request.target.factor(picture.width_px, picture.height_px)),
        memory_bytes=upscaler.memory_bytes(picture, size_px),
        read_s=time.perf_counter() - started,
    )
    free_bytes = memory.free_host_bytes()
    if job.memory_bytes > free_bytes:
        raise OutOfMemoryError(
            f"{source}: {size_px[0]}×{size_px[1]} px need about {job.memory_bytes / 2**30:.1f} GiB "
            f"of memory, {free_bytes / 2**30:.1f} are free; choose a smaller size"
        )
    return job


def _read(source: str, request: Request) -> Picture:
    limit = pictures.MAX_PIXELS if request.max_pixels is None else request.max_pixels
    if source == STREAM:
        return pictures.read(sys.stdin.buffer, max_pixels=limit)
    if os.path.isdir(source):
        raise PictureReadError(f"{source} is a folder: give its pictures, such as {source}/*.png")
    return pictures.read(Path(source), max_pixels=limit)


def _target(
    source: str,
    request: Request,
    upscaler: Upscaler,
    picture: Picture,
    *,
    format: str,
    size_px: tuple[int, int],
) -> Path | None:
    if request.output == STREAM or (request.output is None and source == STREAM):
        return None
    path = Path("stdin" if source == STREAM else source)
    suffix = naming.suffix_for(format, source=path, wish=request.encoding.format)
    name = None
    if request.name is not None:
        name = naming.fill_template(
            request.name,
            source=path,
            model=upscaler.name,
            scale=request.target.factor(picture.width_px, picture.height_px),
            size_px=size_px,
            suffix=suffix,
        )
    return naming.output_path(
        path,
        request.output,
        suffix=suffix,
        name=name,
        model=upscaler.name,
        size=naming.size_label(request.target, size_px),
        several=request.several,
    )


def _too_large(source: str) -> OutOfMemoryError:
    return OutOfMemoryError(f"{source} does not fit into memory; choose a smaller size")


def _do(
    job: _Job, request: Request, upscaler: Upscaler, reporter: Reporter, *, number: int
) -> None:
    """Enlarge and write one picture, and say so."""

    def on_progress(share: float) -> None:
        reporter.working_on(job.source, number, share)

    if job.target is not None:
        outputs.prepare_folder(job.target.parent)
    started = time.perf_counter()
    result, facts = upscaler.upscale(job.picture, request.target, on_progress=on_progress)
    upscaled_s = time.perf_counter() - started
    _write(result, job, request.encoding)
    written_s = time.perf_counter() - started - upscaled_s
    lost = pictures.losses(
        result,
        job.format,
        strip_metadata=request.encoding.strip_metadata,
        background=request.encoding.background,
    )
    notes = (*dict.fromkeys((*job.picture.notes, *result.notes)), *facts.notes, *lost)
    if job.picture.frames_total > 1:
        notes = (f"it has {job.picture.frames_total} frames: only the first was enlarged", *notes)
    seconds = {
        "read": round(job.read_s, 4),
        "network": round(facts.network_s, 4),
        "upscale": round(upscaled_s, 4),
        "write": round(written_s, 4),
    }
    reporter.say(f"{job.arrow} ({sum((job.read_s, upscaled_s, written_s)):.1f} s)")
    for note in notes:
        reporter.say(f"  note: {job.source}: {note}")
    if reporter.verbose:
        reporter.say(f"  {_in_words(facts)}; {', '.join(f'{k} {v} s' for k, v in seconds.items())}")
    reporter.outcome(
        {
            **job.facts,
            "status": "done",
            "model": facts.model,
            "device": facts.device,
            "precision": facts.precision,
            "tile": facts.tile_px,
            "waste": round(facts.waste, 3),
            "seconds": seconds,
            "notes": list(notes),
        }
    )


def _in_words(facts: Facts) -> str:
    tiles = "untiled" if facts.tile_px is None else f"tiles of up to {facts.tile_px} px"
    return f"{facts.model} on {facts.device} in {facts.precision}, {tiles}, waste {facts.waste:.2f}"


def _write(result: Picture, job: _Job, encoding: Encoding) -> None:
    options = {
        "quality": encoding.quality,
        "lossless": encoding.lossless,
        "strip_metadata": encoding.strip_metadata,
        "background": encoding.background,
    }
    if job.target is not None:
        pictures.write(result, job.target, format=job.format, **options)
        return
    data = pictures.encode(result, format=job.format, **options)
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise  # whoever read it has read enough
    except OSError as error:
        raise PictureWriteError(f"cannot write to standard output: {error.strerror}") from error
