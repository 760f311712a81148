"""The encoded parts of one file are put together, and the file where it belongs, whole."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from waifu4x import archives, failures, naming
from waifu4x.archives import ArchiveWriter
from waifu4x.batch import outputs, staging
from waifu4x.batch.jobs import Job
from waifu4x.batch.stages import Part
from waifu4x.batch.streamed import StreamedPart
from waifu4x.errors import PictureWriteError
from waifu4x.remote import stores
from waifu4x.remote.urls import Location, Url
from waifu4x.upscaler import Facts


class Folders:
    """Makes the folders of outputs, each once."""

    def __init__(self) -> None:
        self._made: set[Location] = set()
        self._lock = threading.Lock()

    def prepare(self, folder: Location) -> None:
        """Raises PictureWriteError when the folder cannot be made."""
        with self._lock:
            if folder not in self._made:
                if isinstance(folder, Url):
                    stores.prepare_folder(folder)
                else:
                    outputs.prepare_folder(folder)
                self._made.add(folder)


class Assembly:
    """One output on its way; its parts may come from several threads, in any order.

    A part waits in `add` for those before it, so no more than one for each thread is ever held. It
    follows that parts must be begun in their order, and that a part that will never come must be
    answered by `drop`, or those after it would wait for ever.
    """

    def __init__(
        self, job: Job, *, wish: str | None, folders: Folders, stdout: BinaryIO | None
    ) -> None:
        self.job = job
        self.size_bytes = 0
        """Of the file, when it is there."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Of all parts, by stage; see `Part.seconds`, and "write"."""
        self.notes: dict[str, None] = {}
        self.facts: Facts | None = None
        """Of the first picture."""
        self._wish = wish
        self._folders = folders
        self._stdout = stdout
        self._turn = threading.Condition()
        self._next = 0
        self._dropped = False
        self._open = ExitStack()
        self._archive: ArchiveWriter | None = None

    @property
    def dropped(self) -> bool:
        """It failed: what still comes of it is of no use."""
        return self._dropped

    def begin(self) -> tuple[Path, Path | bytes]:
        """Where an output can be written while it is made, and its input read meanwhile.

        `add` gives the output its name, and then the input may be gone. To be called in the thread
        that decodes, once. Raises PictureReadError, PictureWriteError.
        """
        job, target = self.job, self.job.target
        assert target is not None, "what is written as it is made is a file"
        with ExitStack() as opened:
            stored = job.data
            if stored is None:
                stored = opened.enter_context(staging.file_of(job))
            with self._turn:
                self._folders.prepare(target.parent)
                temporary = opened.enter_context(staging.written(target))
                self._open.enter_context(opened.pop_all())
        return temporary, stored

    def add(self, part: Part) -> bool:
        """Take an encoded part; True when the output is whole, and there.

        Raises:
            PictureWriteError: it cannot be written.
        """
        with self._turn:
            while part.number != self._next and not self._dropped:
                self._turn.wait()
            if self._dropped:
                return False
            started = time.perf_counter()
            if self.job.members is None:
                self._store(part)
            else:
                self._append(part)
            self._learn(part)
            self.seconds["write"] += time.perf_counter() - started
            self._next += 1
            self._turn.notify_all()
            return self._next == part.total

    def drop(self) -> bool:
        """Leave nothing behind; when it ends, nothing of the output is being written.

        An output that is there already stays. False when it was dropped before.
        """
        with self._turn:
            is_first, self._dropped = not self._dropped, True
            self._turn.notify_all()
            # Leaving it by an error is what removes a temporary.
            dropping = PictureWriteError("dropped")
            with suppress(PictureWriteError):
                self._open.__exit__(type(dropping), dropping, None)
            return is_first

    def _learn(self, part: Part) -> None:
        for stage, spent_s in part.seconds.items():
            self.seconds[stage] += spent_s
        prefix = "" if part.member is None else f"{failures.one_line(part.member)}: "
        self.notes |= dict.fromkeys(prefix + note for note in part.notes)
        self.facts = self.facts or part.facts

    def _store(self, part: Part) -> None:
        if isinstance(part, StreamedPart):
            self._put_in_place(part)
            return
        data = part.content
        assert isinstance(data, bytes), "it was encoded"
        if self.job.target is not None:
            self._folders.prepare(self.job.target.parent)
            staging.store(data, self.job.target)
        else:
            self._send(data)
        self.size_bytes = len(data)

    def _put_in_place(self, part: StreamedPart) -> None:
        assert self.job.target is not None, "it was written into a file"
        try:
            self._open.close()
        except OSError as error:
            target = self.job.target if isinstance(self.job.target, Path) else part.temporary
            size_bytes = part.written_bytes
            raise failures.write_error(error, target, size_bytes=size_bytes) from error
        self.size_bytes = part.written_bytes

    def _send(self, data: bytes) -> None:
        assert self._stdout is not None, "a plan for standard output comes with a stream"
        try:
            self._stdout.write(data)
            self._stdout.flush()
        except BrokenPipeError:
            raise  # whoever read it has read enough
        except OSError as error:
            raise PictureWriteError(f"cannot write to standard output: {error.strerror}") from error

    def _append(self, part: Part) -> None:
        target, name = self.job.target, part.member
        assert target is not None, "an archive never goes to standard output"
        assert name is not None, "it is a member of one"
        if self._archive is None:
            self._folders.prepare(target.parent)
            here = target
            if isinstance(here, Url):
                here = self._open.enter_context(staging.written(target))
            self._open.callback(self._measure, here)
            self._archive = self._open.enter_context(archives.write_archive(here))
        if part.format:
            suffix = naming.suffix_for(part.format, source=Path(name), wish=self._wish)
            name = archives.member_name(name, suffix, taken=self._archive.names)
        assert isinstance(part.content, bytes), "it was encoded"
        self._archive.add(name, part.content)
        if part.number == part.total - 1:
            self._open.close()

    def _measure(self, written: Path) -> None:
        with suppress(FileNotFoundError):  # whoever waited for it may have moved it already
            self.size_bytes = written.stat().st_size
