"""One picture that is too large for memory: all its stages at once, strip by strip.

It is still one part of a job, and passes through the threads of `run` as any other does: the one
that decodes looks at it as far as is needed, the calling thread enlarges it while it is written
beside its target, and one that encodes gives it its name (`Assembly.add`). The functions here are
those of `stages`, for streamed parts; all others they pass on to `stages`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from waifu4x import failures, headers, pictures, streaming
from waifu4x.batch import stages, staging
from waifu4x.batch.jobs import Job, check_writable
from waifu4x.batch.request import Request
from waifu4x.batch.stages import Part, Progress
from waifu4x.batch.staging import Opener
from waifu4x.codecs.formats import FORMATS
from waifu4x.errors import OutOfMemoryError, Waifu4xError
from waifu4x.huge import reading, writing
from waifu4x.huge.reading import Reading
from waifu4x.pictures import Picture
from waifu4x.tiled import MemoryFullError
from waifu4x.upscaler import Upscaler

_MOST_TRIES = 12
# Of a picture in strips, to choose a model by.
_LOOKED_AT_ROWS = 512
"""Tiles are halved five times at most: whatever that is, it is no lack of memory."""
_ALWAYS_BYTES = 64 * 2**20
"""What may be held as a whole, however little memory was allowed."""
_ALONE_BYTES = 2**62
"""More than any budget: what is that large goes alone."""


@dataclass(kw_only=True)
class StreamedPart(Part):
    """A picture that is never in memory; its `content` stays empty."""

    temporary: Path
    """Where it is written."""
    stored: Path | bytes
    """Where it is read."""
    reading: Reading | None = None
    """After `decode`, until it was read."""
    written_bytes: int = 0
    """How large its file is, when it is."""


def fitted(
    job: Job,
    upscaler: Upscaler,
    request: Request,
    *,
    to_stdout: bool,
    free_bytes: int,
    limit_bytes: int,
) -> Job:
    """The job as it fits into memory: as it is, or streamed.

    Args:
        free_bytes: what there is; without `Request.memory_bytes` a picture that cannot be streamed
            may take all of it.
        limit_bytes: what a picture may take that need not be streamed: `limits.memory_bytes`.

    Raises:
        OutOfMemoryError: neither fits; the message says what would.
        PictureReadError: the file is damaged.
    """
    if job.memory_bytes <= limit_bytes:
        return job
    found = _in_strips(job, upscaler, request, to_stdout=to_stdout, limit_bytes=limit_bytes)
    if isinstance(found, Job) and found.memory_bytes <= free_bytes:
        return found
    if request.memory_bytes is None and job.memory_bytes <= free_bytes:
        return job
    width_px, height_px = job.size_px
    frames = f" in {job.header.frames} frames" if job.header.frames > 1 else ""
    there = f"{free_bytes / 2**30:.1f} are free"
    if request.memory_bytes is not None:
        there = f"--memory allows {request.memory_bytes / 2**30:.1f}"
    helps = "choose a smaller size" if isinstance(found, Job) else found
    raise OutOfMemoryError(
        f"{job.name}: {width_px}×{height_px} px{frames} need about "
        f"{job.memory_bytes / 2**30:.1f} GiB of memory, {there}; {helps}"
    )


def _in_strips(
    job: Job, upscaler: Upscaler, request: Request, *, to_stdout: bool, limit_bytes: int
) -> Job | str:
    """The job when it is streamed, or why it cannot be: a clause with what helps.

    limit_bytes: what it may take where it has to hold all of the input, or of the output.
    """
    if job.members is not None:
        return "choose a smaller size"
    if reason := streaming.refusal(job.header):
        return f"{reason}: choose a smaller size"
    if to_stdout:
        return "it could be made in strips, but only into a file: give one with -o"
    if job.format not in writing.FORMATS:
        return f"{job.format} is not written in strips: choose PNG, TIFF or JPEG with --format"
    # From a store it comes twice, now and when its turn comes: few are so large.
    with staging.content(job) as content:
        why_whole = reading.why_whole(content, job.header)
        reads_bytes = reading.memory_bytes(content, job.header, whole=why_whole is not None)
    pixel_bytes = (job.header.channels + job.header.has_alpha) * job.header.depth_bits // 8
    settings = stages.settings_of(job.format, request)
    writes_bytes = writing.memory_bytes(settings, job.size_px, pixel_bytes)
    own_bytes = streaming.memory_bytes(upscaler, job.header, job.size_px)
    own_bytes += reads_bytes + writes_bytes
    if own_bytes > limit_bytes:
        # What takes no more however high the picture is cannot be helped.
        if why_whole is not None and reads_bytes > _ALWAYS_BYTES:
            return f"{why_whole}; or choose a smaller size"
        if job.format == "WEBP" and writes_bytes > _ALWAYS_BYTES:
            return "WebP is not written in strips: choose PNG, TIFF or JPEG with --format"
    return dataclasses.replace(
        job, streamed=True, reads_whole=why_whole is not None, memory_bytes=own_bytes
    )


def parts(
    job: Job,
    upscaler: Upscaler,
    request: Request,
    *,
    begin: Callable[[], tuple[Path, Path | bytes]],
) -> Iterator[Part]:
    """As `stages.parts`; `begin` gives what a streamed one is written into, and read from."""
    if not job.streamed:
        yield from stages.parts(job, upscaler, request)
        return
    temporary, stored = begin()
    yield StreamedPart(
        job=job,
        header=job.header,
        format=job.format,
        memory_bytes=_ALONE_BYTES,
        temporary=temporary,
        stored=stored,
    )


def decode(part: Part, request: Request, *, opener: Opener = staging.content) -> None:
    """As `stages.decode`; of a streamed one damage may show only when it is enlarged."""
    if not isinstance(part, StreamedPart):
        stages.decode(part, request, opener=opener)
        return
    started = time.perf_counter()
    job = part.job
    with _naming_its_input(part):
        part.reading = reading.read(
            part.stored,
            job.header,
            max_pixels=pictures.MAX_PIXELS if request.max_pixels is None else request.max_pixels,
            whole=job.reads_whole,
            ask_alpha=not FORMATS[job.format].holds_alpha,
        )
    facts = part.reading.facts
    header = dataclasses.replace(
        headers.of(facts), width_px=job.header.width_px, height_px=job.header.height_px
    )
    is_clear = facts.is_transparent
    check_writable(header, job.format, job.size_px, request, transparent=is_clear)
    part.seconds["read"] = time.perf_counter() - started


def enlarge(part: Part, upscaler: Upscaler, request: Request, *, on_progress: Progress) -> None:
    """As `stages.enlarge`; a streamed one is also written, and again where memory was full.

    Raises:
        PictureReadError, PictureWriteError, too.
    """
    if not isinstance(part, StreamedPart):
        stages.enlarge(part, upscaler, request, on_progress=on_progress)
        return
    assert part.reading is not None, "it was decoded"
    with _naming_its_input(part):
        part.enlarged_by = upscaler = upscaler.for_picture(_top(part.reading))
    told = 0.0

    def inside(share: float) -> None:
        nonlocal told
        told = max(told, share)
        on_progress(told)

    try:
        for _ in range(_MOST_TRIES):
            with _naming_its_input(part):
                if _enlarge_once(part, part.reading, upscaler, request, on_progress=inside):
                    return
    finally:
        part.reading = None
    raise OutOfMemoryError(
        f"{part.job.name}: memory was full again and again; choose a smaller size, or a --tile"
    )


def encode(part: Part, request: Request) -> None:
    """As `stages.encode`; a streamed one is encoded already."""
    if not isinstance(part, StreamedPart):
        stages.encode(part, request)


def _top(reading: Reading) -> Picture:
    """The rows that are read first, which is all that can be looked at without reading twice."""
    source = reading.source
    with source.open() as rows:
        strip = rows(0, min(source.height_px, _LOOKED_AT_ROWS))
    return Picture(pixels=strip.pixels)


@contextmanager
def _naming_its_input(part: StreamedPart) -> Iterator[None]:
    """What is wrong with a copy is said of the file in the store that it is a copy of."""
    try:
        yield
    except Waifu4xError as error:
        renamed = staging.renamed(error, part.job.source.path, part.stored)
        if renamed is error:
            raise
        raise renamed from error


def _enlarge_once(
    part: StreamedPart,
    content: Reading,
    upscaler: Upscaler,
    request: Request,
    *,
    on_progress: Progress,
) -> bool:
    """False where the device's memory was full: begin again, with smaller tiles."""
    started, job = time.perf_counter(), part.job
    part.scale = request.target.factor(job.header.width_px, job.header.height_px)
    # Which number format was taken stands in the file, and is known beforehand.
    part.facts = streaming.facts(upscaler, content.source, request.target, spent_s=0.0)
    stored = content.facts
    if stages.is_stamped(part, request):
        stored = stages.stamped(stored, part, request)
    assert isinstance(stored, Picture), "one came, and one goes"
    settings = stages.settings_of(job.format, request)
    strips = streaming.enlarge(upscaler, content.source, request.target, on_progress=on_progress)
    encode_s = 0.0
    try:
        with (
            closing(cast("Generator", strips)),
            writing.writing(part.temporary, stored, job.size_px, settings) as put,
        ):
            for strip in strips:
                before = time.perf_counter()
                put(strip)
                del strip  # it is large, and the next one is about to be made
                encode_s += time.perf_counter() - before
            before = time.perf_counter()
        encode_s += time.perf_counter() - before
        part.written_bytes = part.temporary.stat().st_size
    except MemoryFullError:
        return False
    except OSError as error:
        # Where it goes to a store, the disk of this machine is what has failed.
        target = job.target if isinstance(job.target, Path) else part.temporary
        raise failures.write_error(error, target, size_bytes=job.output_bytes) from error
    spent_s = time.perf_counter() - started - encode_s
    part.facts = streaming.facts(upscaler, content.source, request.target, spent_s=spent_s)
    part.notes = _notes(part, content.facts, request)
    part.seconds["network"] = part.facts.network_s
    part.seconds["upscale"], part.seconds["encode"] = spent_s, encode_s
    return True


def _notes(part: StreamedPart, facts: Picture, request: Request) -> tuple[str, ...]:
    """What `stages.enlarge` and `stages.encode` say of a picture."""
    assert part.facts is not None, "it was enlarged"
    encoding = request.encoding
    found = stages.notes_of([facts], [facts], part.facts)
    losses = pictures.losses(
        facts,
        part.format,
        strip_metadata=encoding.strip_metadata,
        background=encoding.background,
    )
    return (*stages.frames_left_out(facts), *found, *losses)
