"""The three stages of one file: it is decoded, enlarged, encoded.

A file goes through them in parts: an archive has one for every member, all else has one. Stages
share nothing but the parts, so each may run in a thread of its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from waifu4x import animations, archives, failures, headers, naming, pictures, provenance, version
from waifu4x.animations import Animation
from waifu4x.archives import Member
from waifu4x.batch import staging
from waifu4x.batch.jobs import Job, check_writable, in_member, memory_bytes
from waifu4x.batch.request import Request, sha256_of
from waifu4x.batch.staging import Opener
from waifu4x.codecs.formats import FORMATS
from waifu4x.errors import PictureReadError, Waifu4xError
from waifu4x.headers import Header
from waifu4x.huge import writing
from waifu4x.pictures import Picture
from waifu4x.provenance import Provenance
from waifu4x.upscaler import Facts, Upscaler

Content = Picture | Animation
Progress = Callable[[float], None]


@dataclass(kw_only=True)
class Part:
    """One picture or animation on its way, or bytes that are passed through."""

    job: Job
    content: Content | bytes = b""
    """What the last stage made of it; before the first, a member of an archive as it is stored."""
    header: Header | None
    """None for bytes that are passed through."""
    memory_bytes: int
    """Main memory that it takes at its peak, estimated."""
    member: str | None = None
    """Its name in the archive that it belongs to."""
    number: int = 0
    """Which part of its job it is, of `total`."""
    total: int = 1
    format: str = ""
    """To write; empty for bytes that are passed through."""
    scale: float = 1.0
    enlarged_by: Upscaler | None = None
    """What was chosen for it; before that None."""
    facts: Facts | None = None
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage: read, upscale, network (which is a part of upscale), encode."""


def parts(job: Job, upscaler: Upscaler, request: Request) -> Iterator[Part]:
    """What a file consists of, not yet decoded, one by one.

    Raises:
        PictureReadError: an archive is damaged; parts that came before are of no use then.
    """
    if job.members is None:
        yield Part(job=job, header=job.header, format=job.format, memory_bytes=job.memory_bytes)
        return
    with staging.file_of(job) as path:
        yield from _members(job, path, upscaler, request)


def _members(job: Job, path: Path, upscaler: Upscaler, request: Request) -> Iterator[Part]:
    total = len(archives.member_names(path))
    members = archives.read_members(path)
    for number in range(total):
        started = time.perf_counter()
        member = next(members, None)
        if member is None:
            raise PictureReadError(
                f"{failures.shown(path)} was changed while it was read: do it again"
            )
        part = _part_of(member, job, upscaler, request)
        part.number, part.total = number, total
        part.seconds["read"] = time.perf_counter() - started
        yield part


def _part_of(member: Member, job: Job, upscaler: Upscaler, request: Request) -> Part:
    data = member.data
    if not member.is_picture:
        return Part(job=job, content=data, member=member.name, header=None, memory_bytes=len(data))
    try:
        header = headers.read(data, max_pixels=request.max_pixels)
        if request.first_frame:
            header = dataclasses.replace(header, frames=1, kind="picture")
        # Pages differ in size and format: what is known of the first says little about them.
        size_px = request.target.size_px(header.width_px, header.height_px)
        return Part(
            job=job,
            content=data,
            member=member.name,
            header=header,
            format=naming.output_format(header.format, wish=request.encoding.format, output=None),
            memory_bytes=memory_bytes(upscaler, header, size_px),
        )
    except Waifu4xError as error:
        raise in_member(job.source.path, member.name, error) from error


def decode(part: Part, request: Request, *, opener: Opener = staging.content) -> None:
    """Put the decoded content in the place of the stored one; bytes pass as they are.

    opener: gives what is stored, where the part does not hold it.

    Raises:
        PictureReadError: it is damaged.
        PictureWriteError: now that it is known what is transparent, the format cannot hold it.
    """
    if part.header is None:
        return
    started = time.perf_counter()
    limit = request.max_pixels
    with _stored(part, opener) as stored, _naming_its_member(part):
        if part.header.frames > 1:
            most = animations.MAX_PIXELS if limit is None else limit
            part.content = animations.read(stored, max_pixels=most)
        else:
            most = pictures.MAX_PIXELS if limit is None else limit
            part.content = pictures.read(stored, max_pixels=most)
        _check_once_more(part.content, part.format, request)
    part.seconds["read"] = part.seconds.get("read", 0.0) + time.perf_counter() - started


@contextmanager
def _stored(part: Part, opener: Opener) -> Iterator[Path | bytes]:
    """What is to be decoded, for as long as that takes."""
    if part.member is None:
        with opener(part.job) as stored:
            yield stored
        return
    assert isinstance(part.content, bytes), "it was decoded already"
    yield part.content


@contextmanager
def _naming_its_member(part: Part) -> Iterator[None]:
    """What goes wrong with one page of many says with which."""
    try:
        yield
    except Waifu4xError as error:
        if part.member is None:
            raise
        raise in_member(part.job.source.path, part.member, error) from error


def _check_once_more(content: Content, format: str, request: Request) -> None:
    """What headers could not tell: the sizes of all pages, and what is transparent."""
    frames = frames_of(content)
    for frame in frames:
        header = dataclasses.replace(headers.of(frame), frames=len(frames))
        if isinstance(content, Animation):
            header = dataclasses.replace(header, kind=content.kind)
        size_px = request.target.size_px(frame.width_px, frame.height_px)
        check_writable(header, format, size_px, request, transparent=frame.is_transparent)


def frames_of(content: Content | bytes) -> tuple[Picture, ...]:
    """The pictures of a content; none of mere bytes."""
    if isinstance(content, bytes):
        return ()
    return content.frames if isinstance(content, Animation) else (content,)


def enlarge(part: Part, upscaler: Upscaler, request: Request, *, on_progress: Progress) -> None:
    """Put the enlarged content in the place of the decoded one; bytes pass as they are.

    Raises:
        OutOfMemoryError, NumericsError: see `Upscaler.upscale`.
    """
    started = time.perf_counter()
    if isinstance(part.content, bytes):
        on_progress(1.0)
        return
    frames = frames_of(part.content)
    part.enlarged_by = upscaler = upscaler.for_picture(frames[0])
    results: list[Picture] = []
    facts: list[Facts] = []
    for chunk in _chunks(part.content, upscaler, request):

        def inside(share: float, done: int = len(results), size: int = len(chunk)) -> None:
            on_progress((done + share * size) / len(frames))

        with _naming_its_member(part):
            enlarged, known = upscaler.upscale_all(chunk, request.target, on_progress=inside)
        results += enlarged
        facts.append(known)
    part.facts = _joined(facts)
    part.scale = request.target.factor(frames[0].width_px, frames[0].height_px)
    part.notes = notes_of(frames, results, part.facts)
    part.content = _with_frames(part.content, results)
    part.seconds["network"] = part.facts.network_s
    part.seconds["upscale"] = time.perf_counter() - started


def notes_of(
    frames: Sequence[Picture], results: Sequence[Picture], facts: Facts
) -> tuple[str, ...]:
    """What is to be told of pictures that were enlarged, each sentence once."""
    warning = provenance.warning(frames[0])
    notes = dict.fromkeys(note for picture in (*frames, *results) for note in picture.notes)
    return (*([warning] if warning else []), *notes, *facts.notes)


def _chunks(content: Content, upscaler: Upscaler, request: Request) -> Iterator[list[Picture]]:
    """Frames that go through the network together; pages may differ, so they go one by one."""
    frames, size = list(frames_of(content)), 1
    if isinstance(content, Animation) and content.kind == "animation":
        size = upscaler.frames_at_once(frames[0], request.target)
    for start in range(0, len(frames), size):
        yield frames[start : start + size]


def _joined(facts: list[Facts]) -> Facts:
    return dataclasses.replace(
        facts[0],
        network_s=sum(f.network_s for f in facts),
        notes=tuple(dict.fromkeys(note for f in facts for note in f.notes)),
    )


def _with_frames(content: Content, frames: list[Picture]) -> Content:
    return content.with_frames(frames) if isinstance(content, Animation) else frames[0]


def encode(part: Part, request: Request) -> None:
    """Put the bytes of a file in the place of the enlarged content, its provenance among them.

    Raises:
        PictureWriteError: the encoder failed.
    """
    started = time.perf_counter()
    content, encoding = part.content, request.encoding
    if isinstance(content, bytes):
        return
    strip, background = encoding.strip_metadata, encoding.background
    if isinstance(content, Animation):
        part.notes += animations.losses(content, part.format, strip_metadata=strip)
    else:
        part.notes += pictures.losses(
            content, part.format, strip_metadata=strip, background=background
        )
        part.notes = (*frames_left_out(content), *part.notes)
    if is_stamped(part, request):
        content = stamped(content, part, request)
    options = {
        "format": part.format,
        "quality": encoding.quality,
        "lossless": encoding.lossless,
        "strip_metadata": strip,
    }
    settings = settings_of(part.format, request)
    with _naming_its_member(part):
        if isinstance(content, Animation):
            part.content = animations.encode(content, **options)
        elif writing.is_in_strips(settings, content):
            part.content = writing.encode(content, settings)
        else:
            part.content = pictures.encode(content, background=background, **options)
    part.seconds["encode"] = time.perf_counter() - started


def settings_of(format: str, request: Request) -> writing.Settings:
    """How one picture is written."""
    encoding = request.encoding
    return writing.Settings(
        format=format,
        quality=encoding.quality,
        lossless=encoding.lossless,
        strip_metadata=encoding.strip_metadata,
        background=encoding.background,
        layout=encoding.layout,
    )


def frames_left_out(picture: Picture) -> tuple[str, ...]:
    """What is told of a picture that was the first of several."""
    if picture.frames_total == 1:
        return ()
    return (f"it has {picture.frames_total} frames or pages: only the first was taken",)


def is_stamped(part: Part, request: Request) -> bool:
    """Whether the output says how it was made."""
    wanted = request.provenance and not request.encoding.strip_metadata
    return wanted and FORMATS[part.format].holds_metadata


def stamped(content: Content, part: Part, request: Request) -> Content:
    """With what made it, in the one place where an animation has metadata, on every page."""
    frames = list(frames_of(content))
    number = len(frames) if isinstance(content, Animation) and content.kind == "pages" else 1
    options, upscaler = request.options, part.enlarged_by
    assert upscaler is not None, "it was enlarged"
    settings = {
        "strength": f"{options.strength:g}" if options.strength != 1.0 else "",
        "color_fix": "yes" if options.color_fix else "",
        "tta": "yes" if request.tta else "",
        "tile": str(request.tile_px or ""),
        "precision": part.facts.precision if part.facts is not None else "",
        "engine": part.facts.engine if part.facts is not None else "",
        "references": upscaler.beside,
    }
    made = Provenance(
        tool="waifu4x",
        version=version.__version__,
        model=upscaler.name,
        sha256=sha256_of(upscaler),
        scale=part.scale,
        settings={key: value for key, value in settings.items() if value},
    )
    frames[:number] = [provenance.stamp(frame, made) for frame in frames[:number]]
    return _with_frames(content, frames)
