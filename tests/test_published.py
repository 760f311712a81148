"""Published weights give their published figures: networks, loaders and protocol at once.

They need other people's weights and pictures (see the fixture `shared`) and skip without them.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from waifu4x.bench.protocol import measure
from waifu4x.models import open_upscaler

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
    upscaler = open_upscaler(shared / "weights" / file, device="cpu", precision="fp32")
    set5 = shared / "data" / "bench" / "Set5"
    measured = measure(upscaler, set5, scale=scale, protocol=protocol)
    assert len(measured.pictures) == 5
    assert measured.precision == "fp32"
    assert measured.psnr_db == pytest.approx(psnr_db, abs=TOLERANCE_DB)


def test_none_of_the_weights_is_left_out(shared: Path) -> None:
    """Every file that the README beside the weights gives a figure for is measured."""
    measured = {Path(row[0]).parts[0] for row in PUBLISHED}
    folders = {path.parent.name for path in (shared / "weights").rglob("*.safetensors")}
    assert measured == folders - {"perceptual"}


# Bicubic: luma in float with the small picture not rounded, and as 8-bit RGB, x2, x3, x4; here the
# gray picture of Set14 is measured as gray.
BICUBIC = {
    "Set5": ((33.662, 30.394, 28.422), (33.640, 30.386, 28.418)),
    "Set14": ((30.233, 27.543, 26.003), (30.220, 27.533, 25.993)),
    "B100": ((29.559, 27.208, 25.961), (29.548, 27.202, 25.957)),
}


@pytest.mark.parametrize(
    "name",
    [
        "Set5",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("Set14", "B100")),
    ],
)
def test_bicubic(shared: Path, name: str) -> None:
    bicubic = open_upscaler("bicubic")
    # As RGB its luma spans 219 levels instead of 255: one of 14 pictures is so much better.
    higher_db = 20 * math.log10(255 / 219) / 14 if name == "Set14" else 0.0
    for protocol, values in zip(("luma", "rgb8"), BICUBIC[name], strict=True):
        for scale, wanted in zip((2, 3, 4), values, strict=True):
            measured = measure(
                bicubic, shared / "data" / "bench" / name, scale=scale, protocol=protocol
            )
            assert measured.psnr_db == pytest.approx(wanted + higher_db, abs=TOLERANCE_DB)
