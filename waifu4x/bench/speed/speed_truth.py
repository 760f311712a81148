"""What a way of computing costs of the PSNR to the truth: on the example pictures, or on sets.

By the default protocol of `waifu4x bench`: see `protocol.enlarge`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from waifu4x.bench.metrics import psnr
from waifu4x.bench.protocol import DEFAULT_PROTOCOL, PROTOCOLS, check_sizes, enlarge
from waifu4x.bench.sets import DataSet
from waifu4x.errors import UsageError
from waifu4x.upscaler import Upscaler

# Those without transparency and JPEG's artefacts.
_EXAMPLES = ("anime.png", "meme.png", "photo.png")
# Of equal pictures, which have an infinite one; rounding to 8 bits alone is 59 dB.
_MOST_DB = 100.0


def example_set(*, scale: float) -> DataSet | None:
    """The example pictures that come with the program and are large enough to be shrunk by `scale`;
    None where none is, or none came."""
    package = Path(__file__).resolve().parents[2]
    # An installed package carries them, a checkout has them beside it.
    for folder in (package / "_examples", package.parent / "examples"):
        pictures = tuple(folder / name for name in _EXAMPLES if (folder / name).is_file())
        if fitting := tuple(path for path in pictures if _is_fitting(path, scale=scale)):
            name = "an example picture" if len(fitting) == 1 else f"{len(fitting)} example pictures"
            return DataSet(name=name, folder=folder, pictures=fitting)
    return None


def _is_fitting(path: Path, *, scale: float) -> bool:
    try:
        check_sizes(path, scale=scale)
    except UsageError:
        return False
    return True


def loss_db(
    exact: Upscaler,
    other: Upscaler,
    dataset: DataSet,
    *,
    scale: float,
    on_picture: Callable[[str], None],
) -> float:
    """By how much the mean PSNR of `other` is below that of `exact`, in dB of luma.

    Each picture is shrunk by `scale` and enlarged by both; a PSNR counts as 100 dB at most.

    Args:
        on_picture: called with the name of each picture before it is enlarged.

    Raises:
        UsageError, PictureReadError: a picture that is too small, or cannot be read.
        DeviceError, NumericsError, OutOfMemoryError: one of the two cannot enlarge a picture.
    """
    lost_db = 0.0
    for path in dataset.pictures:
        on_picture(dataset.name_of(path))
        lost_db += _psnr_db(exact, path, scale) - _psnr_db(other, path, scale)
    return lost_db / len(dataset.pictures)


def _psnr_db(upscaler: Upscaler, path: Path, scale: float) -> float:
    protocol = PROTOCOLS[DEFAULT_PROTOCOL]
    pair = enlarge(upscaler, path, scale=scale, protocol=protocol).pair
    return min(_MOST_DB, psnr(pair.luma, pair.true_luma))
