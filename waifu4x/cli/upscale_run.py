"""The work of ``waifu4x upscale``: one picture after the other, and what is said about it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from PIL import ImageColor
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from waifu4x import files, memory, naming, pictures
from waifu4x.cli.console import stderr
from waifu4x.errors import (
    OutOfMemoryError,
    PictureReadError,
    PictureWriteError,
    UsageError,
    Waifu4xError,
)
from waifu4x.formats import check_writable_as
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Facts, Options, Upscaler, open_upscaler

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


@dataclass(kw_only=True)
class Reporter:
    """Says what happens: data on stdout as JSON when asked, all else on stderr."""

    as_json: bool
    quiet: bool
    verbose: bool
    _progress: Progress | None = field(default=None, init=False)

    @contextmanager
    def job(self, files_total: int) -> Iterator[None]:
        """One bar for the whole job; none when stderr is no terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        disable = self.quiet or not stderr.is_terminal
        with Progress(*columns, console=stderr, transient=True, disable=disable) as progress:
            self._progress = progress
            self._task = progress.add_task("", total=files_total)
            yield

    def working_on(self, name: str, number: int, share: float) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=escape(name), completed=number + share)

    def downloading(self, done_bytes: int, total_bytes: int) -> None:
        if self._progress is not None and total_bytes:
            text = f"downloading the model {done_bytes / total_bytes:.0%}"
            self._progress.update(self._task, description=text)

    def say(self, text: str) -> None:
        if not self.quiet:
            stderr.print(escape(text), soft_wrap=True)

    def fail(self, error: Waifu4xError) -> None:
        stderr.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)

    def outcome(self, facts: dict[str, Any]) -> None:
        if self.as_json:
            typer.echo(json.dumps(facts))


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
    failed: list[Waifu4xError] = []
    taken: dict[Path, str] = {}
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
                job = _plan(source, request, upscaler, taken)
                if dry_run:
                    reporter.say(job.describe(upscaler))
                    reporter.outcome({**job.facts, "status": "planned"})
                elif job.exists and not request.overwrite:
                    reporter.say(f"{job.target} exists: skipped (--overwrite replaces it)")
                    reporter.outcome({**job.facts, "status": "skipped"})
                else:
                    _do(job, request, upscaler, reporter, number=number)
            except Waifu4xError as error:
                failed.append(error)
                reporter.fail(error)
                reporter.outcome({"input": source, "status": "failed", "error": str(error)})
    return failed


def _check(request: Request, reporter: Reporter) -> None:
    """Everything that can be refused before any work."""
    if not request.inputs:
        raise UsageError("give at least one picture: waifu4x upscale meme.png -s 4")
    several = len(request.inputs) > 1
    to_stdout = request.output == STREAM or (request.output is None and STREAM in request.inputs)
    if to_stdout and several:
        raise UsageError("only one picture fits into standard output: give a folder with -o")
    if to_stdout and reporter.as_json:
        raise UsageError("--json and the picture cannot both go to standard output: give -o FILE")
    if to_stdout and sys.stdout.isatty():
        raise UsageError("standard output is a terminal: give -o FILE, or redirect it")
    # A wrong suffix is known now; most inputs will not even have to be read.
    naming.output_format("PNG", wish=request.encoding.format, output=request.output)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One picture that was read, and all that is decided about it before the network runs."""

    source: str
    picture: Picture
    format: str
    size_px: tuple[int, int]
    target: Path | None
    """None is standard output."""
    passes: tuple[float, ...]
    memory_bytes: int
    read_s: float

    @property
    def exists(self) -> bool:
        return self.target is not None and self.target.exists()

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

    def describe(self, upscaler: Upscaler) -> str:
        passes = " · ".join(f"{factor:g}x" for factor in self.passes) or "none, only resampling"
        tiles = upscaler.tiles(self.picture.width_px, self.picture.height_px)
        cut = "" if tiles is None else f", first pass in {tiles} tile{'s' if tiles > 1 else ''}"
        return (
            f"{self.arrow}: passes {passes}{cut}, about "
            f"{self.memory_bytes / 2**20:.0f} MiB of memory"
        )


def _plan(source: str, request: Request, upscaler: Upscaler, taken: dict[Path, str]) -> _Job:
    """Read one input and settle format, size, name and memory.

    Raises:
        Waifu4xError: it cannot be read, or its output could not be written or held.
    """
    started = time.perf_counter()
    picture = _read(source, request)
    size_px = request.target.size_px(picture.width_px, picture.height_px)
    encoding = request.encoding
    format = naming.output_format(picture.format, wish=encoding.format, output=request.output)
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
    job = _Job(
        source=source,
        picture=picture,
        format=format,
        size_px=size_px,
        target=_target(source, request, upscaler, format=format, size_px=size_px),
        passes=upscaler.passes(request.target.factor(picture.width_px, picture.height_px)),
        memory_bytes=upscaler.memory_bytes(picture, size_px),
        read_s=time.perf_counter() - started,
    )
    if job.target is not None:
        _claim(job.target, source, taken)
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
    if Path(source).is_dir():
        raise PictureReadError(f"{source} is a folder: give its pictures, such as {source}/*.png")
    return pictures.read(Path(source), max_pixels=limit)


def _target(
    source: str,
    request: Request,
    upscaler: Upscaler,
    *,
    format: str,
    size_px: tuple[int, int],
) -> Path | None:
    if request.output == STREAM or (request.output is None and source == STREAM):
        return None
    path = Path("stdin" if source == STREAM else source)
    return naming.output_path(
        path,
        request.output,
        suffix=naming.suffix_for(format, source=path, wish=request.encoding.format),
        model=upscaler.name,
        size=naming.size_label(request.target, size_px),
        several=len(request.inputs) > 1,
    )


def _claim(target: Path, source: str, taken: dict[Path, str]) -> None:
    """Make sure that `target` can be written, and that no other input of this run becomes it."""
    # Windows and macOS take a.PNG and a.png for one file.
    key = Path(str(target.resolve()).casefold())
    if taken.setdefault(key, source) != source:
        raise UsageError(f"{source} and {taken[key]} would both become {target}; use -o")
    if not target.parent.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PictureWriteError(
                f"cannot make the folder {target.parent} ({error.strerror}); choose another with -o"
            ) from error
    files.sweep_orphans(target.parent)


def _do(
    job: _Job, request: Request, upscaler: Upscaler, reporter: Reporter, *, number: int
) -> None:
    """Enlarge and write one picture, and say so."""

    def on_progress(share: float) -> None:
        reporter.working_on(job.source, number, share)

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
    sys.stdout.buffer.write(pictures.encode(result, format=job.format, **options))
    sys.stdout.buffer.flush()
