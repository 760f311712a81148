"""Published weights give their published figures: networks, loaders and protocol at once.

They need other people's weights and pictures (see the fixture `shared`) and skip without them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benches import measure
from benches import unswept as unswept

from waifu4x.bench import protocol as protocols
from waifu4x.bench import run
from waifu4x.pictures import Picture
from waifu4x.resample import imresize
from waifu4x.sizes import Target
from waifu4x.upscaler import Facts, Upscaler

TOLERANCE_DB = 0.02

# File below weights/, protocol, scale, mean Y-PSNR on Set5, whether it takes long.
PUBLISHED = [
    ("srcnn/srcnn_9-5-5_ImageNet_x2.safetensors", "luma", 2, 36.656, True),
    ("srcnn/srcnn_9-5-5_ImageNet_x3.safetensors", "luma", 3, 32.749, False),
    ("srcnn/srcnn_9-5-5_ImageNet_x4.safetensors", "luma", 4, 30.484, True),
    ("srcnn/srcnn_9-1-5_91images_x3.safetensors", "luma", 3, 32.390, True),
    ("srcnn/srcnn_9-1-5_ImageNet_x3.safetensors", "luma", 3, 32.516, True),
    ("srcnn/srcnn_9-3-5_ImageNet_x3.safetensors", "luma", 3, 32.654, True),
    ("vdsr/vdsr_twtygqyy.safetensors", "luma", 2, 37.573, True),
    ("vdsr/vdsr_twtygqyy.safetensors", "luma", 3, 33.742, True),
    ("vdsr/vdsr_twtygqyy.safetensors", "luma", 4, 31.435, True),
    ("srresnet/srresnet8_pytorch_tutorial_x4.safetensors", "rgb8-float-y", 4, 31.883, False),
    ("srgan/srgan16_krasserm_x4_bnfolded_int8deq.safetensors", "rgb8-float-y", 4, 28.683, True),
    ("srgan/leftthomas_netG_epoch_4_100.pth", "rgb8-float-y", 4, 30.655, True),
    ("realesrgan/realesr-animevideov3.pth", "rgb8-float-y", 4, 28.229, False),
    ("realesrgan/RealESRGAN_General_x4_v3_fp16.safetensors", "rgb8-float-y", 4, 26.640, True),
]


@pytest.mark.parametrize(
    ("file", "protocol", "scale", "psnr_db"),
    [
        pytest.param(
            *row[:4],
            id=f"{Path(row[0]).stem}-x{row[2]}",
            marks=[pytest.mark.slow] if row[4] else [],
        )
        for row in PUBLISHED
    ],
)
def test_published_weights_on_set5(
    *, shared: Path, file: str, protocol: str, scale: int, psnr_db: float
) -> None:
    set5 = shared / "data" / "bench" / "Set5"
    measured = measure(shared / "weights" / file, set5, scale=scale, protocol=protocol)
    assert len(measured.pictures) == 5
    assert measured.precision == "fp32"
    assert measured.mean("psnr") == pytest.approx(psnr_db, abs=TOLERANCE_DB)
    # No network for another scale is among them.
    assert measured.notes == ()


def test_none_of_the_weights_is_left_out(shared: Path) -> None:
    """Every file that the README beside the weights gives a figure for is measured."""
    measured = {Path(row[0]).parts[0] for row in PUBLISHED}
    folders = {path.parent.name for path in (shared / "weights").rglob("*.safetensors")}
    assert measured == folders - {"perceptual"}


# Bicubic. Two programs measured it before this one, and the last digit depends on how each of them
# enlarges: this one in float, rounded once, as `waifu4x upscale` does. Both others round after the
# first of the two passes already, as MATLAB does on uint8; and one of them has the nearest pixel
# beyond the border where MATLAB has a reflection. With their ways of enlarging in its place, this
# program gives their figures, to the last of their digits.

Resize = Callable[[np.ndarray, float], np.ndarray]

EACH_SET = [
    "Set5",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("Set14", "B100")),
]

# By this program: PSNR and SSIM of x2, x3, x4; the gray picture of Set14 as RGB.
HERE = {
    "Set5": ((33.645, 0.9293), (30.386, 0.8678), (28.418, 0.8102)),
    "Set14": ((30.315, 0.8692), (27.626, 0.7752), (26.086, 0.7042)),
    "B100": ((29.550, 0.8427), (27.202, 0.7383), (25.957, 0.6673)),
}
# By MATLAB's enlarging, the same.
BY_MATLAB = {
    "Set5": ((33.64, 0.9292), (30.39, 0.8678), (28.42, 0.8101)),
    "Set14": ((30.31, 0.8691), (27.62, 0.7751), (26.08, 0.7041)),
    "B100": ((29.55, 0.8425), (27.20, 0.7382), (25.96, 0.6672)),
}
# With the nearest pixel beyond the border, and the gray picture of Set14 in its own levels: luma in
# float with the small picture not rounded, and as 8-bit RGB.
CLAMPED = {
    "Set5": ((33.662, 30.394, 28.422), (33.640, 30.386, 28.418)),
    "Set14": ((30.233, 27.543, 26.003), (30.220, 27.533, 25.993)),
    "B100": ((29.559, 27.208, 25.961), (29.548, 27.202, 25.957)),
}


class Enlarged(Upscaler):
    """Bicubic by somebody else's resizing."""

    resized: Resize

    def upscale(self, picture: Picture, target: Target, **_: object) -> tuple[Picture, Facts]:
        assert target.scale is not None
        pixels = self.resized(picture.pixels, float(target.scale))
        return picture.with_pixels(pixels, None), super().upscale(picture, target)[1]

    def enlarge_plane(self, plane: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
        return self.resized(plane, size_px[0] / plane.shape[0])


def clamped(image: np.ndarray, scale: float) -> np.ndarray:
    """`imresize`, but beyond the border there is the nearest pixel."""
    margin = 4 * round(max(1.0, 1.0 / scale))
    sides = [(margin, margin)] * 2 + [(0, 0)] * (image.ndim - 2)
    cut = round(margin * scale)
    return imresize(np.pad(image, sides, mode="edge"), scale)[cut:-cut, cut:-cut]


def resize_by(resized: Resize, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_upscaler(model: str | Path) -> Upscaler:
        assert model == "bicubic"
        upscaler = Enlarged(model="bicubic")
        upscaler.resized = resized
        return upscaler

    monkeypatch.setattr(run, "open_upscaler", open_upscaler)
    monkeypatch.setattr(protocols, "imresize", resized)


@pytest.mark.parametrize("name", EACH_SET)
def test_bicubic_by_matlab(shared: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resize_by(imresize, monkeypatch)
    place = shared / "data" / "bench" / name
    for scale, wanted in zip((2, 3, 4), BY_MATLAB[name], strict=True):
        found = measure("bicubic", place, scale=scale, metrics=("psnr", "ssim"))
        assert found.mean("psnr") == pytest.approx(wanted[0], abs=0.00501)
        assert found.mean("ssim") == pytest.approx(wanted[1], abs=0.0000501)


@pytest.mark.parametrize("name", EACH_SET)
def test_bicubic_with_another_border(
    shared: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize_by(clamped, monkeypatch)
    place = shared / "data" / "bench" / name
    for protocol, row in zip(("luma", "rgb8-own-gray"), CLAMPED[name], strict=True):
        for scale, wanted in zip((2, 3, 4), row, strict=True):
            found = measure("bicubic", place, scale=scale, protocol=protocol)
            assert found.mean("psnr") == pytest.approx(wanted, abs=0.000501)


@pytest.mark.parametrize("name", EACH_SET)
def test_bicubic(shared: Path, name: str) -> None:
    place = shared / "data" / "bench" / name
    for scale, (psnr_db, ssim) in zip((2, 3, 4), HERE[name], strict=True):
        found = measure("bicubic", place, scale=scale, metrics=("psnr", "ssim"))
        assert found.mean("psnr") == pytest.approx(psnr_db, abs=0.000501)
        assert found.mean("ssim") == pytest.approx(ssim, abs=0.0000501)
    for protocol, row in zip(("luma", "rgb8-own-gray"), CLAMPED[name], strict=True):
        for scale, wanted in zip((2, 3, 4), row, strict=True):
            found = measure("bicubic", place, scale=scale, protocol=protocol)
            assert found.mean("psnr") == pytest.approx(wanted, abs=0.006)
