"""Everything that a user asks of one run over many files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from waifu4x.huge.tiff import Layout
from waifu4x.remote import urls
from waifu4x.sizes import Target
from waifu4x.upscaler import Options, Upscaler

STREAM = "-"
"""Standard input, or standard output."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How outputs are written; see `pictures.encode`."""

    format: str | None = None
    """As the user wrote it; None is the input's."""
    quality: int | None = None
    lossless: bool = False
    strip_metadata: bool = False
    background: tuple[int, int, int] | None = None
    layout: Layout | None = None
    """Of a TIFF; None is by its size."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to enlarge, how, and where it goes."""

    inputs: tuple[str, ...]
    """Files, folders and globs, as paths or URLs, ``@list.txt`` and ``-``; see `sources.gather`."""
    target: Target
    output: str | None = None
    """A file, a folder, ``-``, or None: beside the input, for a folder beside that. Or a URL."""
    recursive: bool = False
    name: str | None = None
    """A template for names of outputs; see `naming.check_template`."""
    suffix: str | None = None
    """What is put behind the stems of outputs."""
    options: Options = field(default_factory=Options)
    encoding: Encoding = field(default_factory=Encoding)
    overwrite: bool = False
    retry_failed: bool = False
    """Do only what the journal says failed."""
    fail_fast: bool = False
    shard: tuple[int, int] | None = None
    """(which, of how many) of the parts that the inputs are split into; see `shards`."""
    first_frame: bool = False
    """Take the first picture of every animation and document."""
    provenance: bool = True
    max_pixels: int | None = None
    memory_bytes: int | None = None
    """What the run may take of main memory; None is half of what is free."""
    check_space: bool = True
    tile_px: int | None = None
    precision: str = "auto"
    engine: str = "auto"
    tta: bool = False

    def __post_init__(self) -> None:
        # file:///photos is a path, and has all that paths have.
        object.__setattr__(self, "inputs", tuple(map(urls.plain, self.inputs)))
        if self.output is not None:
            object.__setattr__(self, "output", urls.plain(self.output))

    def settings_key(self, upscaler: Upscaler) -> str:
        """A short name for everything that decides an output's pixels and bytes.

        It depends on nothing of the machine; where the tool or the device changes, what was done
        stays done.
        """
        encoding = asdict(self.encoding)
        if self.encoding.layout is None:
            del encoding["layout"]
        settings = {
            "model": upscaler.identity,
            "target": asdict(self.target),
            "options": asdict(self.options),
            "encoding": encoding,
            "first_frame": self.first_frame,
            "provenance": self.provenance,
            "tile_px": self.tile_px,
            "precision": self.precision,
            "tta": self.tta,
            # Left out by default, as the layout is: folders were done before there was a choice.
            **({} if self.engine == "auto" else {"engine": self.engine}),
        }
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(upscaler: Upscaler) -> str | None:
    """Of the file of the model; None for a resampling kernel, which has none."""
    return None if isinstance(upscaler.model, str) else upscaler.model.sha256
