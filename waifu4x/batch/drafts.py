"""What a file's header says of the output, and what the output would be called."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from waifu4x import archives, headers, memory, naming
from waifu4x.batch import limits, shards, staging, streamed
from waifu4x.batch.heads import Heads
from waifu4x.batch.jobs import Job, archive_header, check_writable, memory_bytes
from waifu4x.batch.journal import Journal, Line
from waifu4x.batch.remote_outputs import There
from waifu4x.batch.request import STREAM, Request
from waifu4x.batch.sources import Source
from waifu4x.errors import PictureReadError, UsageError
from waifu4x.headers import Header
from waifu4x.remote import stores, urls
from waifu4x.remote.ranged import Ranged
from waifu4x.remote.urls import Location, Url
from waifu4x.upscaler import Upscaler


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A file whose target is not settled yet."""

    source: Source
    job: Job | None
    """None where the journal knows the output: its header was not read."""
    target: Location | None
    other: Location | None
    """Where it goes when another input becomes `target`; it keeps the input's suffix too."""
    stamp: tuple[int, int] | None
    """Size in bytes and time in ns of the input, from before its header was read."""


@dataclass(kw_only=True)
class Drafter:
    """What all files of a run have in common while they are drafted."""

    request: Request
    upscaler: Upscaler
    folder: Location | None
    journal: Journal | None
    heads: Heads = field(default_factory=lambda: Heads(()))
    there: There = field(default_factory=lambda: There(None))

    def __post_init__(self) -> None:
        self._settings = self.request.settings_key(self.upscaler)
        self._free_bytes = memory.free_host_bytes()
        self._limit_bytes = limits.memory_bytes(self.request.memory_bytes)
        self.heads.is_wanted = lambda source: self.remembered(source) is None

    def draft(self, source: Source, *, data: bytes | None) -> Draft:
        """All but the claim on the target and what lies there already.

        Raises:
            Waifu4xError: the file is no picture, or could not become what is wished.
        """
        request, members = self.request, None
        head = self.heads.of(source) if data is None else data
        stamp = self._stamp(source) if self.journal is not None else None
        if isinstance(head, Ranged):
            source = replace(source, stamp=head.stamp)
        try:
            if not isinstance(head, bytes) and archives.is_archive(source.path):
                header, members = archive_header(
                    source.path, max_pixels=request.max_pixels, content=head
                )
            else:
                header = headers.read(head, max_pixels=request.max_pixels)
        except PictureReadError as error:
            raise staging.renamed(error, source.path, None) from error
        if request.first_frame:
            header = replace(header, frames=1, kind="picture")
        format = self._format(header, is_archive=members is not None)
        size_px = request.target.size_px(header.width_px, header.height_px)
        check_writable(header, format, size_px, request)
        job = Job(
            source=source,
            data=data,
            header=header,
            members=members,
            format=format,
            size_px=size_px,
            passes=self.upscaler.passes(request.target.factor(header.width_px, header.height_px)),
            target=None,
            memory_bytes=memory_bytes(self.upscaler, header, size_px),
        )
        target, other = self._targets(job)
        job = streamed.fitted(
            job,
            self.upscaler,
            request,
            to_stdout=target is None,
            free_bytes=self._free_bytes,
            limit_bytes=self._limit_bytes,
        )
        return Draft(source=source, job=job, target=target, other=other, stamp=stamp)

    def remembered(self, source: Source) -> Draft | None:
        """A draft without a look into the file, where the journal says all that is needed.

        It is so where an output of the name that the file's own suffix leads to was made of this
        file as it is now, by these settings: what its header says has led to that name already.
        """
        request, journal, path = self.request, self.journal, source.path
        by_header = request.name is not None or request.max_pixels is not None
        if journal is None or self.folder is None or request.overwrite or by_header:
            return None
        if journal.is_empty:
            return None  # most first runs are of many files
        place = source.relative.as_posix()
        if request.retry_failed and journal.has_failed(place):
            return None
        wish, suffix = request.encoding.format, path.suffix
        if wish is not None and not archives.is_archive(path):
            suffix = naming.suffix_for("PNG", source=path, wish=wish)
        names = [f"{stem}{request.suffix or ''}{suffix}" for stem in (path.stem, path.name)]
        stamp = None
        for name in names:
            known = journal.find(_below(place, name))
            if known is None or known.source != place:
                continue
            stamp = stamp or self._stamp(source)
            line = self.line(source, name, stamp)
            if line is not None and known.is_about(line):
                below = self.folder / source.relative.parent
                if isinstance(below, Url) and self.there.find(below / name) is None:
                    return None  # so that headers of many such come ahead of time
                target, other = (below / name for name in names)
                other = self._longer(other, path)
                return Draft(source=source, job=None, target=target, other=other, stamp=stamp)
        return None

    def line(self, source: Source, name: str, stamp: tuple[int, int] | None) -> Line | None:
        """What the journal will say when the output `name` is done; None where none is kept.

        stamp: as in `Draft`; None where the file went meanwhile: reading it will say so.
        """
        if self.journal is None or stamp is None:
            return None
        place = source.relative.as_posix()
        return Line(
            output=_below(place, name),
            source=place,
            source_bytes=stamp[0],
            source_mtime_ns=stamp[1],
            settings=self._settings,
            status="done",
        )

    def _stamp(self, source: Source) -> tuple[int, int] | None:
        if source.stamp is not None:
            return source.stamp
        head = self.heads.of(source)
        if isinstance(head, Ranged):
            return head.stamp
        assert isinstance(head, Path), "what lies here is read where it lies"
        try:
            facts = os.stat(head)
        except OSError:
            return None
        return facts.st_size, facts.st_mtime_ns

    def _format(self, header: Header, *, is_archive: bool) -> str:
        output = None if self.folder is not None or is_archive else self.request.output
        wish = self.request.encoding.format
        return naming.output_format(header.format, wish=wish, output=output)

    def _targets(self, job: Job) -> tuple[Location | None, Location | None]:
        """Where the output goes, and where else when that is taken; None is standard output."""
        request, path = self.request, job.source.path
        is_stream = request.output is None and job.data is not None
        if request.output == STREAM or is_stream:
            if job.members is not None:
                raise UsageError(f"{job.name} is an archive: give a file or a folder with -o")
            return None, None
        if self.folder is None and request.output is not None:
            named = self._named_file(urls.location(request.output), job)
            return named, named
        if self.folder is None and isinstance(path, Url):
            stores.check(path, writing=True)
        below = path.parent if self.folder is None else self.folder / job.source.relative.parent
        suffix = path.suffix
        if job.members is None:
            suffix = naming.suffix_for(job.format, source=path, wish=request.encoding.format)
        if request.name is not None:
            name = naming.fill_template(
                request.name,
                source=path,
                model=self.upscaler.label,
                scale=request.target.factor(job.header.width_px, job.header.height_px),
                size_px=job.size_px,
                suffix=suffix,
            )
            return below / name, below / name
        addition = request.suffix or ""
        if request.suffix is None and self.folder is None:
            label = naming.size_label(request.target, job.size_px)
            addition = f"_{self.upscaler.label}_{label}"
        other = self._longer(below / f"{path.name}{addition}{suffix}", path)
        return below / f"{path.stem}{addition}{suffix}", other

    def _longer(self, other: Location, source: Location) -> Location | None:
        """`other`, where no other shard could have an output of that name."""
        is_safe = self.request.shard is None or shards.keeps_longer_name(source.name)
        return other if is_safe else None

    def _named_file(self, target: Location, job: Job) -> Location:
        if job.members is not None and not archives.is_archive(target):
            raise UsageError(f"{job.name} is an archive, and {target} is not named like one")
        return target


def _below(place: str, name: str) -> str:
    """`name` in the folder that `place` is in."""
    folder, slash, _ = place.rpartition("/")
    return f"{folder}{slash}{name}"
