"""An ``.onnx`` file becomes a model: what its graph takes and gives is found out by running it.

Files say little about themselves, and what they say may be wrong. So a small picture is shown to
the graph in every form that its inputs allow (channels first or last, three or one, in multiples of
1 to 64), until a larger picture comes out, and again in another size. From what comes out follow
the scale, whether white is 1 or 255, and how far a pixel reaches. Files that `waifu4x export` wrote
carry these facts; then they must be true. RGB is assumed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from waifu4x import devices
from waifu4x.engines import FloatArray, onnx_windows, openvino_cache
from waifu4x.engines.onnx_windows import Form
from waifu4x.engines.onnxruntime import GraphConfig, OnnxNetwork, in_one_line, open_session, runtime
from waifu4x.errors import CheckpointError
from waifu4x.model_files.checkpoints import Model, stated_scales
from waifu4x.model_files.given_files import fail, printable
from waifu4x.onnx_bytes import OnnxFile, read
from waifu4x.resample import resize

SUFFIX = ".onnx"
ARCHITECTURE = "onnx"
"""What `Model.architecture` says of such a model: nothing is known of it."""
FARTHEST_PX = 40
"""A reach that is not smaller counts as this; tiles overlap by less than that in any case."""

_FORMAT = 1
_RANGE_KEY = re.compile(r"((value|input|pixel|data)[ _-]?)?range", re.IGNORECASE)
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
# Sizes to try: large enough for reflecting borders, odd multiples, so that half of them is not.
_SMALLEST_PX = 24
_MOST_SCALE = 16
# Smaller is no picture, but the channels of one.
_SMALLEST_FIXED_PX = 16
# A picture enlarged should look like the picture. 15 published networks were within 0.022 of it.
# Made to take 255 for white they were 34 times as far from it where white was 1, or more, but for
# one that only multiplies, to which it is all the same; taking 1, none was nearer with 255.
_LARGEST_ERROR = 0.12
_MUCH_BETTER = 0.25
_BORDER_PX = 6


class _NotThisError(Exception):
    """The graph does not work in this way: try another."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a graph does with one form of picture."""

    form: Form
    channels: int
    scale: int
    multiple: int


def load(
    path: Path, *, name: str | None = None, licence: str | None = None, folder: Path | None = None
) -> Model:
    """Load the graph of any super-resolution network.

    Args:
        path: see `onnx_bytes.read`.
        name: by default the file's name without suffix.
        licence: by default what the file's metadata say.
        folder: where what was found out is kept; without it, it is found out anew.

    Raises:
        UnsafeCheckpointError, CheckpointError: see `onnx_bytes.read`; or ONNX Runtime cannot run
            it, or it does not enlarge pictures, or what it says about itself is not true.
        DeviceError: ONNX Runtime is not installed.
    """
    version = runtime().__version__  # or an error that says how to install it
    file = read(path)
    key = json.dumps(["onnx file", _FORMAT, file.sha256, version])
    config = _kept(folder, key)
    try:
        if config is None:
            config = _find_out(file)
            if folder is not None:
                facts = json.dumps(dataclasses.asdict(config)).encode()
                openvino_cache.write(folder, key, facts)
        _check_told(file.metadata, config)
    except CheckpointError as error:
        fail(path, str(error), sha256=file.sha256, kind=type(error))
    told_px = file.metadata.get("receptive_radius_px", "")
    if re.fullmatch(r"\d{1,6}", told_px):
        # Measured is what one picture showed; this is what can be.
        config = dataclasses.replace(config, receptive_radius_px=int(told_px))
    told_licence = file.metadata.get("licence", file.metadata.get("license"))
    return Model(
        name=path.stem if name is None else name,
        architecture=ARCHITECTURE,
        network=OnnxNetwork(file.graph, config).eval(),
        scale=config.scale,
        channels_in=config.channels_in,
        pre_upsampled=config.pre_upsampled,
        scales=stated_scales(file.metadata) if config.pre_upsampled else (config.scale,),
        size_multiple=config.size_multiple,
        receptive_radius_px=config.receptive_radius_px,
        parameters=file.parameters,
        sha256=file.sha256,
        licence=told_licence if licence is None else licence,
        metadata=file.metadata,
        path=path,
    )


def _kept(folder: Path | None, key: str) -> GraphConfig | None:
    """What was found out before."""
    kept = None if folder is None else openvino_cache.read(folder, key)
    if kept is None:
        return None
    facts = json.loads(kept)  # it was written here: its hash was compared
    return GraphConfig(**{**facts, "form": Form(**facts["form"])})


def _find_out(file: OnnxFile) -> GraphConfig:
    try:
        session = open_session(file.graph, capped=True)
    except Exception as error:  # ONNX Runtime's are of no common class
        if devices.is_out_of_memory(error):
            raise CheckpointError("needs more memory than any known network") from error
        raise CheckpointError(f"ONNX Runtime cannot run it ({in_one_line(error)})") from error
    found = _how_it_works(session)
    found = dataclasses.replace(found, form=_with_white(session, found, file.metadata))
    radius_px = _radius_px(session, found)
    form, multiple = found.form, found.multiple
    if form.height_px is not None or form.width_px is not None:
        # Less than the half, so that something is left of a window.
        smallest_px = min(n for n in (form.height_px, form.width_px) if n is not None)
        form = dataclasses.replace(form, halo_px=min(radius_px, smallest_px // 4))
    return GraphConfig(
        scale=found.scale,
        channels_in=found.channels,
        # A network that makes nothing larger is given what has been enlarged, unless it says no.
        pre_upsampled=found.scale == 1 and file.metadata.get("pre_upsampled") != "no",
        size_multiple=multiple,
        receptive_radius_px=radius_px,
        precision=file.precision,
        form=form,
    )


def _check_told(told: dict[str, str], config: GraphConfig) -> None:
    """Raises CheckpointError where the metadata that `waifu4x export` writes are not true."""
    is_ours = told.get("made_by", "").startswith("waifu4x ")
    found = {
        "scale": str(config.scale),
        "color": "RGB" if config.channels_in == 3 else "luma, BT.601, studio range",
        "layout": "NCHW float32",
        "pre_upsampled": "yes, bicubic" if config.pre_upsampled else "no",
        "size_multiple": str(config.size_multiple),
    }
    wrong = [key for key, value in found.items() if is_ours and told.get(key, value) != value]
    if wrong:
        raise CheckpointError(
            f"says that its {wrong[0]} is {told[wrong[0]]}, but it is {found[wrong[0]]}; "
            f"export it again"
        )
    told_px = told.get("receptive_radius_px", "")
    if re.fullmatch(r"\d{1,6}", told_px) and int(told_px) < config.receptive_radius_px:
        raise CheckpointError(
            f"says that its receptive_radius_px is {told_px}, but a pixel reached "
            f"{config.receptive_radius_px} px; export it again"
        )


# -- what it takes ---------------------------------------------------------------------------------


def _how_it_works(session: Any) -> _Found:
    """The first form of picture from which the graph makes a larger one, in two sizes."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(printable(each.name, limit=30) for each in inputs[:5])
        raise CheckpointError(f"takes {len(inputs)} inputs ({names}), where one picture is given")
    (taken,) = inputs
    shape = [side if isinstance(side, int) and side > 0 else None for side in taken.shape]
    if taken.type not in _TYPES or len(shape) != 4:
        raise CheckpointError(
            f"takes {printable(taken.type)} of {len(shape)} dimensions, where a picture is given: "
            f"four of float, float16 or uint8"
        )
    reason = "its input has no place for one or three channels"
    for form, channels in _forms(shape, _TYPES[taken.type]):
        free = form.height_px is None or form.width_px is None
        for multiple in _MULTIPLES if free else (1,):
            try:
                return _tried(session, form, channels=channels, multiple=multiple)
            except _NotThisError as error:
                # The first says more than those about sizes that nobody would expect.
                reason = str(error) if reason.startswith("its input has") else reason
    raise CheckpointError(f"does not enlarge pictures ({reason})")


def _forms(shape: list[int | None], dtype: str) -> Iterator[tuple[Form, int]]:
    """Every form that fits the shape, those first whose channels it states."""
    found = []
    for first, channels in itertools.product((True, False), (3, 1)):
        place = shape[1] if first else shape[3]
        height_px, width_px = shape[2:] if first else shape[1:3]
        fixed = [n for n in (height_px, width_px) if n is not None]
        if place in (None, channels) and all(n >= _SMALLEST_FIXED_PX for n in fixed):
            form = Form(
                channels_first=first,
                channels_first_out=first,
                white=255.0 if dtype == "uint8" else 1.0,
                dtype=dtype,
                batch=shape[0] or 1,
                height_px=height_px,
                width_px=width_px,
            )
            found.append((place is None, form, channels))
    for _, form, channels in sorted(found, key=lambda each: each[0]):
        yield form, channels


def _tried(session: Any, form: Form, *, channels: int, multiple: int) -> _Found:
    """Raises _NotThisError where no larger picture comes out, or in another size another one."""
    made = set()
    for more in ((0, 2), (4, 0)):
        height, width = (
            fixed or _smallest_px(multiple) + n * multiple
            for fixed, n in zip((form.height_px, form.width_px), more, strict=True)
        )
        window = _picture(height, width, channels)
        made.add(_what_came_out(window, _shown(session, window, form), form))
    if len(made) > 1:
        raise _NotThisError("its scale depends on the size of the picture")
    ((first, scale),) = made
    form = dataclasses.replace(form, channels_first_out=first)
    return _Found(form=form, channels=channels, scale=scale, multiple=multiple)


def _shown(session: Any, window: FloatArray, form: Form) -> FloatArray:
    """What the graph makes of one window; its channels may be anywhere."""
    try:
        return onnx_windows.call(session, window, form=form)
    except Exception as error:  # ONNX Runtime's are of no common class
        if devices.is_out_of_memory(error):
            raise CheckpointError("needs more memory than any known network") from error
        raise _NotThisError(in_one_line(error)) from error


def _what_came_out(window: FloatArray, made: FloatArray, form: Form) -> tuple[bool, int]:
    """Whether its channels are first, and how much larger it is."""
    height, width, channels = window.shape
    shape = made.shape
    # As it came out of `call`, or with the channels in the other place.
    for turned in (False, True):
        if turned:
            made = made.transpose(2, 0, 1) if form.channels_first else made.transpose(1, 2, 0)
        scale = made.shape[0] // height
        if scale and made.shape == (scale * height, scale * width, channels):
            if scale > _MOST_SCALE:
                raise CheckpointError(f"enlarges {scale} times, where {_MOST_SCALE} is the most")
            return form.channels_first != turned, scale
    raise _NotThisError(f"it makes {shape} of {window.shape}")


# -- what its numbers mean -------------------------------------------------------------------------


def _with_white(session: Any, found: _Found, told: dict[str, str]) -> Form:
    """The form with the value of white: as the metadata say, else as the graph shows."""
    form = found.form
    if form.dtype == "uint8":
        return form
    said = [value for key, value in told.items() if _RANGE_KEY.fullmatch(key)]
    numbers = re.findall(r"(?<![\d.])-?\d+(?:\.\d+)?|\d+", said[0]) if said else []
    if numbers and {float(number) for number in numbers} | {0.0} in ({0.0, 1.0}, {0.0, 255.0}):
        return dataclasses.replace(form, white=max(map(float, numbers)))
    if numbers:
        raise CheckpointError(f"has values in {said[0]}, where 0 to 1 or 0 to 255 is understood")
    errors = {}
    for white in (1.0, 255.0):
        form = dataclasses.replace(form, white=white)
        errors[white] = _unlikeness(session, dataclasses.replace(found, form=form))
    # A network without offsets does not care; then it is what most take.
    best = 255.0 if errors[255.0] < _MUCH_BETTER * errors[1.0] else 1.0
    if not errors[best] <= _LARGEST_ERROR:
        raise CheckpointError(
            "makes what does not look like the picture, with values of 0 to 1 and of 0 to 255; is "
            "it a network for super-resolution?"
        )
    return dataclasses.replace(form, white=best)


def _unlikeness(session: Any, found: _Found) -> float:
    """The mean difference of what is made of a gray picture from the picture, where white is 1."""
    form, side_px = found.form, _smallest_px(found.multiple)
    # From dark to bright, without what networks sharpen.
    rows = np.linspace(0.0, 0.4, form.height_px or side_px, dtype=np.float32)
    columns = np.linspace(0.1, 0.5, form.width_px or side_px, dtype=np.float32)
    window = np.add.outer(rows, columns)[..., None].repeat(found.channels, axis=2)
    made = onnx_windows.call(session, window, form=form)
    plain = resize(window, (made.shape[0], made.shape[1]))
    # And without what they do at borders.
    inner = slice(_BORDER_PX * found.scale, -_BORDER_PX * found.scale)
    difference = float(np.abs(made - plain)[inner, inner].mean())
    return difference if np.isfinite(difference) else np.inf


def _radius_px(session: Any, found: _Found) -> int:
    """How far a pixel reaches: 0 is not beyond itself, FARTHEST_PX is as far as was looked."""
    multiple, form = found.multiple, found.form
    long_px = (2 * -(-FARTHEST_PX // multiple) + 1) * multiple
    short_px = _smallest_px(multiple)
    farthest = 0
    for axis, (height, width) in enumerate(((long_px, short_px), (short_px, long_px))):
        window = _picture(form.height_px or height, form.width_px or width, found.channels)
        # One block of the multiple in the middle, as only whole blocks are shown to the network.
        rows, columns = (n // 2 // multiple * multiple for n in window.shape[:2])
        made = onnx_windows.call(session, window, form=form)
        # NaN passes through where a number is lost, and is lost where some make a number of it.
        for value in (np.nan, 0.0, 1.0) if form.dtype != "uint8" else (0.0, 1.0):
            spoiled = window.copy()
            spoiled[rows : rows + multiple, columns : columns + multiple] = value
            changed = onnx_windows.call(session, spoiled, form=form) != made
            hit = np.flatnonzero(changed.any(axis=(1 - axis, 2))) // found.scale
            if hit.size:
                start, last = (rows, columns)[axis], window.shape[axis] - 1
                farthest = max(farthest, start - hit[0], hit[-1] - (start + multiple - 1))
                if hit[0] == 0 or hit[-1] == last:
                    return FARTHEST_PX  # it may reach beyond the border
    return min(int(farthest), FARTHEST_PX)


def _smallest_px(multiple: int) -> int:
    """An odd multiple."""
    return multiple * (-(-_SMALLEST_PX // multiple) | 1)


def _picture(height: int, width: int, channels: int) -> FloatArray:
    """(h, w, C) float32 in [0.1, 0.9]: a slope, waves and a little noise, as pictures have them."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    slope = (rows / height + columns / width) / 2.0
    waves = np.sin(rows / 3.0) * np.cos(columns / 4.0)
    noise = np.random.default_rng(0).random((height, width, channels)) - 0.5
    values = 0.5 + 0.4 * (slope - 0.5) + 0.12 * waves
    return (values[..., None] + 0.1 * noise).astype(np.float32)
