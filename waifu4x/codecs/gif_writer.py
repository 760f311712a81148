"""Whole frames to a GIF: palettes, what changed since the frame before, disposal, timing.

Only what changed is drawn, and the rest is left as it stands. That keeps the file small, and it
keeps what does not move from flickering, whatever palette a later frame uses.
The format: https://www.w3.org/Graphics/GIF/spec-gif89a.txt
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from waifu4x.codecs import palettes

MAX_DELAY_CS = 65_535
"""The longest time that a frame can stay, in hundredths of a second."""
MAX_PLAYS = 65_536
_KEEP, _CLEAR = 1, 2
_SAMPLES_A_FRAME = 20_000
# With four times as many the palette takes four times as long and is not better (PSNR ± 0.1 dB).
_SAMPLES_IN_ALL = 100_000
# A palette for each frame is taken only where it is much better and the difference can be seen:
# in levels of 255, root mean square.
# Own over shared was 0.93 on pans over a photo, 0.61 on cuts between unlike photos.
_OWN_IS_BETTER = 0.75
_VISIBLE_ERROR = 3.0

Samples = npt.NDArray[np.uint8]
"""(H, W, S), S = 1, 2, 3, 4 for gray, gray+alpha, RGB, RGBA."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What one frame does to what stands on the screen."""

    left: int
    top: int
    drawn: npt.NDArray[np.bool_]
    """(h, w) of the rectangle at (left, top); where False, what stands there stays."""
    clear_after: bool
    """The whole screen is emptied before the next frame, because something in it disappears."""

    def crop(self, frame: Samples) -> Samples:
        height, width = self.drawn.shape
        return _rgb(frame)[self.top : self.top + height, self.left : self.left + width]

    def ink(self, frame: Samples) -> palettes.Colors:
        """(N, 3): the colours that are drawn."""
        return self.crop(frame)[self.drawn]


@dataclass(frozen=True, kw_only=True)
class _Tables:
    """The colours of each frame: one table for all, or one for each."""

    colors: tuple[palettes.Colors, ...]
    with_gaps: bool
    """The entry after the last colour stands for "what is there stays"."""

    def of(self, frame: int) -> palettes.Colors:
        return self.colors[min(frame, len(self.colors) - 1)]

    def gap(self, frame: int) -> int | None:
        return len(self.of(frame)) if self.with_gaps else None

    def packed(self, frame: int) -> tuple[int, bytes]:
        """Three bits that say how long it is, and its bytes."""
        table = self.of(frame).tobytes()
        bits = max(1, (len(self.of(frame)) + self.with_gaps - 1).bit_length())
        return bits - 1, table.ljust(3 << bits, b"\0")


def encode(frames: Sequence[Samples], *, delays_cs: Sequence[int] | None, plays: int = 1) -> bytes:
    """A GIF of these frames, or of one picture that stands still.

    Args:
        frames: one or more, of one size. Alpha from 128 upwards is opaque.
        delays_cs: how long each frame stays, 0..MAX_DELAY_CS hundredths of a second; None for a
            picture.
        plays: how often the animation is shown: 0 for ever, at most MAX_PLAYS.
    """
    steps = _steps(frames)
    tables, steps = _tables(frames, steps)
    shared = len(tables.colors) == 1
    height, width = frames[0].shape[:2]
    bits, table = tables.packed(0)
    file = io.BytesIO()
    flags = 0x70 | (0x80 | bits if shared else 0)
    file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, flags, tables.gap(0) or 0, 0))
    if shared:
        file.write(table)
    if delays_cs is not None and plays != 1:
        # What is counted here is how often it is repeated, so "once" is to say nothing.
        file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", max(plays - 1, 0), 0))
    for k, (frame, step) in enumerate(zip(frames, steps, strict=True)):
        gap = tables.gap(k)
        if delays_cs is not None or gap is not None:
            delay = 0 if delays_cs is None else delays_cs[k]
            packed = (_CLEAR if step.clear_after else _KEEP) << 2 | (gap is not None)
            file.write(b"!\xf9\x04" + struct.pack("<BHBB", packed, delay, gap or 0, 0))
        indices = palettes.reduce(step.crop(frame), tables.of(k))
        if gap is not None:
            indices[~step.drawn] = gap
        bits, table = tables.packed(k)
        box = (step.left, step.top, indices.shape[1], indices.shape[0])
        file.write(b"," + struct.pack("<HHHHB", *box, 0 if shared else 0x80 | bits))
        file.write((b"" if shared else table) + _compressed(indices))
    file.write(b";")
    return file.getvalue()


def losses(frames: Iterable[Samples]) -> tuple[str, ...]:
    """What a GIF will not keep of frames as in `encode`, one sentence each."""
    frames = tuple(frames)
    found = []
    if _union(_rgb(frame)[_opaque(frame)] for frame in frames) is None:
        found.append("GIF holds 256 colours: the picture's were reduced to as many")
    alphas = [frame[..., -1] for frame in frames if frame.shape[2] in (2, 4)]
    if any(bool(((alpha > 0) & (alpha < 255)).any()) for alpha in alphas):
        found.append("GIF holds no half transparency: every pixel became opaque or invisible")
    return tuple(found)


def _rgb(frame: Samples) -> Samples:
    if frame.shape[2] > 2:
        return frame[..., :3]
    return np.broadcast_to(frame[..., :1], (*frame.shape[:2], 3))


def _opaque(frame: Samples) -> npt.NDArray[np.bool_]:
    if frame.shape[2] in (2, 4):
        return frame[..., -1] >= 128
    return np.ones(frame.shape[:2], dtype=bool)


def _union(inks: Iterable[palettes.Colors]) -> palettes.Colors | None:
    """All colours of all frames; None if they are more than a table holds."""
    found = np.zeros((0, 3), np.uint8)
    for ink in inks:
        own = palettes.distinct(ink, most=256)
        both = None if own is None else np.concatenate([found, own])
        union = None if both is None else palettes.distinct(both, most=256)
        if union is None:
            return None
        found = union
    return found


def _steps(frames: Sequence[Samples]) -> list[_Step]:
    steps = []
    before, opaque, emptied = frames[0], _opaque(frames[0]), True
    for k, frame in enumerate(frames):
        if emptied:
            drawn = opaque
        else:
            drawn = opaque & ((_rgb(frame) != _rgb(before)).any(axis=2) | ~_opaque(before))
        following = _opaque(frames[k + 1]) if k + 1 < len(frames) else opaque
        # Nothing can be made invisible again but by emptying the screen.
        clear_after = bool((opaque & ~following).any())
        # The first frame and what is to be cleared cover everything: some viewers insist on it.
        whole = (0, frame.shape[0], 0, frame.shape[1])
        top, bottom, left, right = whole if k == 0 or clear_after else bounds(drawn)
        drawn = np.array(drawn[top:bottom, left:right])
        steps.append(_Step(left=left, top=top, drawn=drawn, clear_after=clear_after))
        before, opaque, emptied = frame, following, clear_after
    return steps


def bounds(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """top, bottom, left, right; one pixel where nothing is set, as no frame may be empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 1, 0, 1
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _tables(frames: Sequence[Samples], steps: list[_Step]) -> tuple[_Tables, list[_Step]]:
    """Colour tables, and the steps, which may have to draw more to do without a gap entry."""
    pairs = list(zip(frames, steps, strict=True))
    exact = _union(step.ink(frame) for frame, step in pairs)
    with_gaps = any(step.clear_after or not step.drawn.all() for step in steps)
    if exact is not None and len(exact) == 256 and with_gaps and all(map(_is_opaque, frames)):
        # All entries are colours. What stays is drawn again: its colours are in the table, too.
        steps = [dataclasses.replace(s, drawn=np.ones_like(s.drawn)) for s in steps]
        with_gaps = False
    room = 256 - with_gaps
    if exact is not None and len(exact) <= room:
        return _Tables(colors=(palettes.build(exact, most=room),), with_gaps=with_gaps), steps
    inks = [step.ink(frame) for frame, step in zip(frames, steps, strict=True)]
    return _Tables(colors=_reduced(inks, room), with_gaps=with_gaps), steps


def _reduced(inks: list[palettes.Colors], room: int) -> tuple[palettes.Colors, ...]:
    """One table for all frames, unless tables of their own are much better."""
    most = max(1_000, min(_SAMPLES_A_FRAME, _SAMPLES_IN_ALL // len(inks)))
    samples = [_sample(ink, _SAMPLES_IN_ALL if len(inks) == 1 else most) for ink in inks]
    shared = palettes.build(np.concatenate(samples), most=room)
    if len(inks) == 1:
        return (shared,)
    exact = [palettes.distinct(ink, most=room) for ink in inks]
    own = tuple(
        palettes.build(sample if colors is None else colors, most=room)
        for colors, sample in zip(exact, samples, strict=True)
    )
    if all(colors is not None for colors in exact):
        return own  # without any loss
    sizes = [len(sample) for sample in samples]
    one = [palettes.mean_square_error(sample, shared) for sample in samples]
    many = [palettes.mean_square_error(s, t) for s, t in zip(samples, own, strict=True)]
    error, own_error = np.sqrt(np.average([one, many], axis=1, weights=sizes))
    return own if error > _VISIBLE_ERROR and own_error < _OWN_IS_BETTER * error else (shared,)


def _is_opaque(frame: Samples) -> bool:
    return bool(_opaque(frame).all())


def _sample(ink: palettes.Colors, most: int) -> palettes.Colors:
    if len(ink) <= most:
        return ink
    # Chosen at random, but always the same: a regular step would see some columns only.
    return ink[np.random.default_rng(0).integers(len(ink), size=most)]


def _compressed(indices: npt.NDArray[np.uint8]) -> bytes:
    """LZW, in the blocks of a GIF: Pillow's, cut out of a file of its own."""
    file = io.BytesIO()
    Image.fromarray(indices).save(file, "GIF", optimize=False, interlace=0)
    data = file.getvalue()
    # A header of 13 bytes, the colour table, 10 bytes that say where the frame lies.
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    assert data[start] == ord(",")
    return data[start + 10 : -1]
