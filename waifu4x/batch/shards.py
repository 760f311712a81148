"""Which files a shard works on, so that several hosts share a folder without a word to each other.

Shard I of N (``--shard I/N``, counted from 1) takes the files whose key it is told by a hash. The
key is a file's place below the input folder, without the endings that pictures and archives have.
It depends on nothing else: not on the machine, the version of Python, what else lies in the folder
or what was done before. So every run splits a folder alike, a host that comes later takes what is
its own, and no file is worked on by two shards.

Why without endings: two files can become one output only where their names differ in endings,
``a.png`` and ``a.jpg`` as WebP, and the plan then gives one of them a longer name. It can do that
only where it sees both. So both lie in one shard, and with them ``a.jpg.png``, whose own output has
that longer name. Hence all shards together make what one run would have made, byte for byte; only
that pictures whose names end in nothing known are refused where another has the name (see
`keeps_longer_name`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import string
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePath

from waifu4x.archives import ARCHIVE_SUFFIXES
from waifu4x.batch import sources
from waifu4x.batch.request import STREAM, Request
from waifu4x.codecs.formats import FORMATS
from waifu4x.errors import UsageError
from waifu4x.remote import urls
from waifu4x.remote.urls import Location

Shard = tuple[int, int]
"""(which, of how many), counted from 1."""

_SUFFIXES = frozenset(
    (*ARCHIVE_SUFFIXES, *(suffix for facts in FORMATS.values() for suffix in facts.suffixes))
)
# What differs from picture to picture, beside the stem.
_VARYING = frozenset({"scale", "width", "height", "ext"})


def parse(text: str) -> Shard:
    """``2/8`` as (2, 8). Raises UsageError."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text.strip())
    if found is None:
        raise UsageError(f"--shard {text!r} is no shard: write the second of eight as 2/8")
    index, count = int(found[1]), int(found[2])
    if not 1 <= index <= count:
        raise UsageError(f"--shard {text}: shards are counted from 1/{count} to {count}/{count}")
    return index, count


def holds(relative: PurePath | str, shard: Shard) -> bool:
    """Whether a file is a shard's own.

    relative: its place below the input folder; a text has forward slashes.
    """
    place = relative if isinstance(relative, str) else relative.as_posix()
    # Not hash(), which is another one in every process. Names may be bytes that are no text.
    digest = hashlib.sha256(key_of(place).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % shard[1] == shard[0] - 1


def key_of(place: str) -> str:
    """The same for all files that could become one output; see the head of this module.

    A file's own ending goes, whatever it is, as it does from the stem of its output; and then all
    that are known. As in `outputs.Claims.key`, names that some file system takes for one are one.
    """
    folder, slash, name = unicodedata.normalize("NFC", place).casefold().rpartition("/")
    at = name.rfind(".")
    # Versions of Python differ in whether a dot at the end is an ending: here it is nothing.
    stem = _without_dots(name[:at] if 0 < at < len(name) - 1 else name)
    while (at := stem.rfind(".")) > 0 and stem[at:] in _SUFFIXES:
        stem = _without_dots(stem[:at])
    return f"{folder}{slash}{stem}"


def _without_dots(stem: str) -> str:
    return stem.rstrip(".") or stem


@dataclass(kw_only=True)
class Others:
    """What belongs to other shards: counted, because it may be millions of files."""

    shard: Shard | None
    folder: Location | None
    """For all outputs."""
    files: int = 0
    in_the_way: list[Location] = field(default_factory=list)
    """Those of them that lie in the output folder: no output may replace them."""

    def __post_init__(self) -> None:
        self._root = None if self.folder is None else urls.real(self.folder)
        self._is_inside = functools.cache(self._lies_inside)

    def leaves(self, path: str, place: str) -> bool:
        """Note a file if it is one of them; True where it is the shard's own."""
        if self.shard is None or holds(place, self.shard):
            return True
        self.files += 1
        if self._is_inside(os.path.dirname(path)):
            self.in_the_way.append(urls.location(path))
        return False

    def _lies_inside(self, folder: str) -> bool:
        if self._root is None:
            return False
        return urls.is_inside(urls.real(urls.location(folder)), self._root)


def keeps_longer_name(name: str) -> bool:
    """Whether an output may have all of the input's name below its own ending, ending included.

    Not where that ending is unknown: of ``a.pic``, ``a.pic.png`` and ``a.png`` the second has
    another key than the first.
    """
    return PurePath(name).suffix.lower() in _SUFFIXES


def check(request: Request, *, folder: Location | None, several: bool) -> None:
    """Refuse what cannot be split, or where two shards might write one file.

    Raises:
        UsageError: it says what to do.
    """
    if STREAM in request.inputs:
        raise UsageError("--shard splits many files, and - is one: give files or folders")
    if not several:
        raise UsageError("--shard splits many files: give a folder, or several files")
    if folder is None:
        raise UsageError("--shard needs one folder for all outputs: give it with -o")
    if request.name is not None:
        _check_template(request.name, request.inputs)


def _check_template(template: str, inputs: tuple[str, ...]) -> None:
    """Different stems must give different names, whatever else is in the names."""
    parts = list(string.Formatter().parse(template))
    fields = [field for _, field, _, _ in parts if field is not None]
    if fields.count("stem") != 1:
        raise UsageError(
            f"--name {template!r}: with --shard it must contain {{stem}}, and once: "
            f"else two shards could write one file"
        )
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise UsageError(f"--name {template!r}: with --shard its fields take no formats")
    if "parent" in fields and not all(map(sources.is_folder, inputs)):
        raise UsageError(
            f"--name {template!r}: with --shard {{parent}} needs folders as inputs: "
            f"give those, or leave it out"
        )
    at = fields.index("stem")
    after = parts[at + 1][0][:1] if at + 1 < len(parts) else ""
    for touching, others in ((parts[at][0][-1:], fields[:at]), (after, fields[at + 1 :])):
        varying = _VARYING.intersection(others)
        # 2.5 is a scale: a.2.5 and a.2 would not be told apart.
        inside = touching.isalnum() or ("scale" in varying and touching in ".+-")
        if varying and (not touching or inside):
            raise UsageError(
                f"--name {template!r}: with --shard {{stem}} must be parted from "
                f"{{{min(varying)}}}, by an underscore for instance"
            )
