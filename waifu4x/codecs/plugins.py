"""Formats that need a package of their own: known by their first bytes, imported only then.

A file that is one of them names the extra that reads it, where that is not installed; nothing here
imports a plugin, nor Pillow, before `problem` is asked.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

HEAD_BYTES = 256
"""How much of a file's start `plugin_format_of` looks at."""

# Every brand of HEVC in ISO/IEC 23008-12; mif1 and msf1 say only "a HEIF", which AVIF is too.
_HEVC_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"},
)
_CONTAINER_BRANDS = frozenset({b"mif1", b"msf1"})
_AV1_BRANDS = frozenset({b"avif", b"avis"})
_JXL_CODESTREAM = b"\xff\x0a"
_JXL_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A package that teaches Pillow one more format."""

    shown: str
    """What people call the format."""
    module: str
    package: str
    extra: str
    """Of waifu4x, which brings the package."""


PLUGINS: dict[str, Plugin] = {
    "HEIF": Plugin(shown="HEIC", module="pillow_heif", package="pillow-heif", extra="heif"),
    "JXL": Plugin(shown="JPEG XL", module="pillow_jxl", package="pillow-jxl-plugin", extra="jxl"),
}
"""By Pillow's name of the format, which is also the key in `formats.FORMATS`."""


def plugin_format_of(head: bytes) -> str | None:
    """The key in `PLUGINS` for a file that starts with `head` (HEAD_BYTES are enough)."""
    if head.startswith((_JXL_CODESTREAM, _JXL_CONTAINER)):
        return "JXL"
    if head[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(head[:4], "big"), len(head))
    compatible = {head[at : at + 4] for at in range(16, end, 4)}
    major = head[8:12]
    if major in _HEVC_BRANDS:
        return "HEIF"
    if major in _CONTAINER_BRANDS and compatible & _HEVC_BRANDS and not compatible & _AV1_BRANDS:
        return "HEIF"
    return None


def problem(format: str, *, writing: bool = False) -> str | None:
    """Why the plugin for a key of `PLUGINS` cannot serve, as the end of a sentence; None if it can.

    Imports the plugin and registers it with Pillow, which stays so for the whole process.
    """
    plugin = PLUGINS[format]
    install = f"pip install 'waifu4x[{plugin.extra}]'"
    try:
        module = importlib.import_module(plugin.module)
    except ModuleNotFoundError:
        return install
    except ImportError as error:
        # The package is there but a library below it is not, or is of another version.
        reason = " ".join(str(error).split())
        return f"{plugin.package} is installed but does not load ({reason}): try {install}"
    from PIL import Image

    if format == "HEIF" and "HEIF" not in Image.OPEN:
        module.register_heif_opener()
    if writing and format not in Image.SAVE:
        return f"the installed {plugin.package} has no encoder; choose PNG or WebP with --format"
    return None
