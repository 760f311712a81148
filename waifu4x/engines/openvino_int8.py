"""A network's graph with most convolutions in int8: by NNCF, an extra, imported when used.

How this is done was found by trying, on the default model, realesr-animevideov3 and
realesr-general-x4v3. As NNCF does it by itself, but for the last convolution, PSNR to fp32 on Set5
was 47.9, 38.0 and 34.9 dB, and PSNR to the truth fell by 0.034, 0.22 and 0.18 dB; as it is done
here, it is 50.6, 40.4 and 36.3 dB, and falls by 0.025, -0.024 and -0.18 dB.

- The first convolution, and the last or the last four, are not in int8.
- Ranges lie symmetrically around 0. Others are better by 0.3 to 2.4 dB, but networks without
  residual sums then take OpenVINO 1.6 times as long as in bf16.
- No bias is corrected layer by layer: that took pictures farther from the truth, by 0.005 to
  0.26 dB. Where four convolutions are kept, each channel of the last one is scaled and shifted to
  fit what it is in fp32.

Not kept: ranges of quantiles (1 dB better for the two, 5 dB worse for the default model), channels
equalised from layer to layer (0.7 and 2.7 dB better, and farther from the truth as often as not),
and SmoothQuant, which NNCF leaves out for such networks.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from waifu4x import devices
from waifu4x.catalog import shipped_folder
from waifu4x.engines import FloatArray, openvino_graph, openvino_quietly
from waifu4x.engines.openvino_compiled import CALIBRATION_PICTURE, in_one_line
from waifu4x.errors import DeviceError

EXTRA = "pip install 'waifu4x[int8]'"

CROP_PX = 64
"""The side of the crops that the calibration picture is made of."""

FORMAT = 1
"""To be raised when the same network is converted in another way."""

# How many convolutions at the end stay out: the second where the first agrees less than that.
_KEPT_LAST = (1, 4)
_CLOSE_DB = 42.0
_LEAST_DB = 30.0


class Converted(NamedTuple):
    """A compiled network in int8."""

    compiled: Any
    agreement_db: float
    """PSNR to fp32 on the calibration picture."""


def check() -> None:
    """Raises DeviceError where NNCF, or OpenVINO itself, is missing."""
    if not (devices.has_openvino() and devices.has_nncf()):
        raise DeviceError(f"int8 needs OpenVINO and NNCF: {EXTRA}, or use --precision bf16 or fp32")


def facts() -> dict[str, Any]:
    """What a conversion depends on, beside what every other does. Raises DeviceError as `check`."""
    check()
    return {
        "format": FORMAT,
        "nncf": version("nncf"),
        "calibration": hashlib.sha256(_picture()).hexdigest(),
    }


def convert(
    read: Callable[[], Any], compile: Callable[[Any, str], Any], *, channels: int, multiple: int
) -> Converted:
    """The network in int8.

    Args:
        read: gives OpenVINO's model of it, a new one each time; channels last, of any size.
        compile: a model, and ``fp32`` or ``int8``, to a compiled one.
        channels, multiple: what the network takes; see `networks.NetworkConfig`.

    Raises:
        DeviceError: NNCF is missing, or the network is not one for int8.
    """
    check()
    windows = calibration(channels=channels, multiple=multiple)
    exact = _results(compile(read(), "fp32"), windows)
    if not np.isfinite(exact).all():
        raise DeviceError("this network gives NaN or infinity, and has no ranges for int8")
    best: Converted | None = None
    for kept in _KEPT_LAST:
        model = _quantised(read(), windows, kept_last=kept)
        if model is None:
            break
        if kept > 1:
            _refit(model, read(), compile, windows)
        compiled = compile(model, "int8")
        results = _results(compiled, windows)
        if results.shape != exact.shape:  # nothing at all, where OpenVINO fails without an error
            raise DeviceError("OpenVINO gives nothing in int8 on this CPU: use another --precision")
        found = Converted(compiled, _psnr_db(results, exact))
        best = found if best is None or found.agreement_db > best.agreement_db else best
        if best.agreement_db >= _CLOSE_DB:
            break
    if best is None:
        raise DeviceError("this network has too few convolutions for int8: use another --precision")
    if best.agreement_db < _LEAST_DB:
        raise DeviceError(
            f"this network in int8 is only within {best.agreement_db:.0f} dB of fp32: use another "
            f"--precision"
        )
    return best


def calibration(*, channels: int, multiple: int) -> list[FloatArray]:
    """The crops of the calibration picture, each (1, h, w, C) in [0, 1]: RGB, or luma of it."""
    with Image.open(shipped_folder() / CALIBRATION_PICTURE) as opened:
        picture = np.asarray(opened.convert("L" if channels == 1 else "RGB"), dtype=np.float32)
    picture = picture.reshape(*picture.shape[:2], channels) / np.float32(255.0)
    side_px = CROP_PX // multiple * multiple
    return [
        np.ascontiguousarray(picture[None, top : top + side_px, left : left + side_px])
        for top in range(0, picture.shape[0], CROP_PX)
        for left in range(0, picture.shape[1], CROP_PX)
    ]


@cache
def _picture() -> bytes:
    return (shipped_folder() / CALIBRATION_PICTURE).read_bytes()


def _results(compiled: Any, windows: list[FloatArray]) -> FloatArray:
    return np.concatenate([compiled(window)[0] for window in windows])


def _psnr_db(one: FloatArray, other: FloatArray) -> float:
    one, other = np.clip(one, 0.0, 1.0), np.clip(other, 0.0, 1.0)
    error = float(np.mean(np.square(one - other), dtype=np.float64))
    return -10.0 * math.log10(error) if error > 0.0 else math.inf


# -- what is quantised -----------------------------------------------------------------------------


def _quantised(model: Any, windows: list[FloatArray], *, kept_last: int) -> Any:
    """The model by NNCF; None where less than half of what may be in int8 would be."""
    convolutions = _convolutions(model)
    others = len(convolutions) - 2  # than the first and the last one
    if others + 1 - kept_last < max(1, others / 2):
        return None
    nncf = _nncf()
    kept = [node.get_friendly_name() for node in (convolutions[0], *convolutions[-kept_last:])]
    # Without these instructions the lower half of the range is all that does not overflow.
    overflow = "DISABLE" if _has_vnni() else "ENABLE"
    with warnings.catch_warnings(), _without_bars():
        warnings.simplefilter("ignore")
        return nncf.quantize(
            model,
            nncf.Dataset(windows),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(windows),
            ignored_scope=nncf.IgnoredScope(
                names=[openvino_graph.PICTURE, *kept, *_picture_nodes(model)], validate=False
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix[overflow], disable_bias_correction=True
            ),
        )


def _convolutions(model: Any) -> list[Any]:
    """In the order in which they are computed; not what only enlarges the picture."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Convolution"
        and node.get_friendly_name() != openvino_graph.PICTURE
    ]


def _picture_nodes(model: Any) -> list[str]:
    """The nodes that do not lie between two convolutions: they compute pictures, not features."""
    ordered = model.get_ordered_ops()
    after: set[str] = set()
    before: set[str] = set()
    for node in ordered:
        if any(_is_or_in(source, after) for source in _sources(node)):
            after.add(node.get_friendly_name())
    for node in reversed(ordered):
        if _is_or_in(node, before):
            before.update(source.get_friendly_name() for source in _sources(node))
    names = {n.get_friendly_name(): n.get_type_name() for n in ordered}
    return [
        name
        for name, kind in names.items()
        if kind not in ("Constant", "Parameter", "Result", "Convolution")
        if name not in after or name not in before
    ]


def _sources(node: Any) -> list[Any]:
    return [entry.get_source_output().get_node() for entry in node.inputs()]


def _is_or_in(node: Any, names: set[str]) -> bool:
    return node.get_type_name() == "Convolution" or node.get_friendly_name() in names


def _refit(
    model: Any, exact: Any, compile: Callable[[Any, str], Any], windows: list[FloatArray]
) -> None:
    """Scale and shift each channel of the last convolution to be nearest to what it is in fp32."""
    last = _convolutions(model)[-1]
    weights = last.input_value(1).get_node()
    if weights.get_type_name() != "Constant":
        return
    y, x = (
        np.moveaxis(_results(compile(_until_last(part), precision), windows), 1, 0)
        for part, precision in ((exact, "fp32"), (model, "int8"))
    )
    y, x = (values.reshape(len(values), -1).astype(np.float64) for values in (y, x))
    means_y, means_x = y.mean(axis=1), x.mean(axis=1)
    spread = np.square(x - means_x[:, None]).mean(axis=1)
    together = ((x - means_x[:, None]) * (y - means_y[:, None])).mean(axis=1)
    gain = np.where(spread > 0.0, together / np.where(spread > 0.0, spread, 1.0), 1.0)
    shift = means_y - gain * means_x

    opset = importlib.import_module("openvino.opset13")
    users = list(last.output(0).get_target_inputs())
    scaled = (weights.data * gain[:, None, None, None]).astype(np.float32)
    last.input(1).replace_source_output(opset.constant(scaled).output(0))
    shifts = opset.constant(shift.astype(np.float32)[None, :, None, None])
    shifted = opset.add(last, shifts).output(0)
    for user in users:
        user.replace_source_output(shifted)


def _until_last(model: Any) -> Any:
    """A copy of the model that ends with its last convolution."""
    copied = model.clone()
    last = _convolutions(copied)[-1]
    return openvino_quietly.load().Model([last.output(0)], copied.get_parameters(), "until last")


def _has_vnni() -> bool:
    return torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()


# -- NNCF itself -----------------------------------------------------------------------------------


@cache
def _nncf() -> Any:
    """NNCF as a module, which neither reports, nor logs, nor has others log in its way."""
    kind = logging.getLoggerClass()
    try:
        nncf = openvino_quietly.load("nncf")
    except Exception as error:  # whatever a broken installation raises
        reason = in_one_line(error)
        raise DeviceError(f"NNCF is installed but does not load ({reason}): try {EXTRA}") from error
    finally:
        logging.setLoggerClass(kind)
    nncf.nncf_logger.disabled = True
    return nncf


@contextmanager
def _without_bars() -> Iterator[None]:
    """It shows bars of progress on standard output, and there is no way to ask it not to."""
    place: Any = None
    with suppress(ImportError):  # where it has moved, bars are not worth an error
        place = importlib.import_module("nncf.common.logging.track_progress")
    shown = getattr(place, "Progress", None)
    if shown is None:
        yield
        return
    place.Progress = lambda *columns, **how: shown(*columns, **{**how, "disable": True})
    try:
        yield
    finally:
        place.Progress = shown
