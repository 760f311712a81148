"""What looks like a picture: by its name, or by its first bytes."""

from __future__ import annotations

import os

from waifu4x.archives import ARCHIVE_SUFFIXES
from waifu4x.codecs import plugins
from waifu4x.codecs.formats import FORMATS

HEAD_BYTES = plugins.HEAD_BYTES
"""How much `starts_like_a_picture` looks at."""

_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_SUFFIXES = frozenset(
    (*ARCHIVE_SUFFIXES, *(suffix for facts in FORMATS.values() for suffix in facts.suffixes))
)
_MAGICS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM"),
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that nobody means: hidden, or put there by a system."""
    return name.startswith(".") or name.lower() in _CLUTTER


def is_named_like_one(name: str) -> bool:
    """Whether the name of a file is that of a picture or archive."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES


def starts_like_one(head: bytes) -> bool:
    """Whether a file that begins with `head` (HEAD_BYTES) is a picture."""
    if head.startswith(_MAGICS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    is_avif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    return is_avif or plugins.plugin_format_of(head) is not None
