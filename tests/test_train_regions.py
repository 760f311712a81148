"""SROBB: regions of known pictures and label maps, the loss by them, and label maps as files."""

from __future__ import annotations

import dataclasses
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from training import GAN, assert_equal, rows, save_three, train, trainer, with_losses
from typer.testing import CliRunner

from waifu4x.cli import train_flags
from waifu4x.cli.app import app
from waifu4x.errors import TrainError, UsageError
from waifu4x.train import recipe
from waifu4x.train.batches import Batches
from waifu4x.train.data import PairCache, open_cache
from waifu4x.train.objectives.labels import with_regions
from waifu4x.train.objectives.losses import L1Loss
from waifu4x.train.objectives.regions import REGIONS, RegionLoss, dilated, from_labels, guess
from waifu4x.train.recipe import DataOptions, RegionOptions

BOUNDARY, BACKGROUND, OBJECTS = (REGIONS[n] for n in ("boundary", "background", "objects"))


def labels(*lines: str) -> Tensor:
    """(1, 1, H, W) of digits."""
    return torch.tensor([[int(c) for c in line] for line in lines])[None, None]


def drawn(regions: Tensor) -> list[str]:
    return ["".join("#.o"[int(value)] for value in line) for line in regions[0, 0]]


# Masks.


def test_regions_of_a_label_map_by_hand() -> None:
    found = labels("1112222", "1112222", "1112223")
    assert drawn(from_labels(found, background=(2,), boundary_px=0)) == [
        "oo##...",
        "oo##..#",
        "oo##.##",
    ]
    # A disk of 1 px has four arms.
    assert drawn(from_labels(found, background=(2,), boundary_px=1)) == [
        "o####.#",
        "o######",
        "o######",
    ]
    assert drawn(from_labels(found, background=(), boundary_px=0))[0] == "oo##ooo"
    assert from_labels(found, background=(2, 1), boundary_px=0).dtype == torch.uint8


@pytest.mark.parametrize("radius_px", [0, 1, 2, 3])
def test_dilation_is_by_a_disk(radius_px: int) -> None:
    mask = np.random.default_rng(radius_px).random((2, 20, 17)) < 0.03
    y, x = np.mgrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]
    disk = np.hypot(y, x) <= radius_px
    got = dilated(torch.from_numpy(mask)[:, None], radius_px)[:, 0].numpy()
    for one, wanted in zip(got, mask, strict=True):
        np.testing.assert_array_equal(one, ndimage.binary_dilation(wanted, disk))


def scene() -> np.ndarray:
    """(48, 96, 3) in 0..1: dark and smooth, a steep edge, bright and smooth, then fine texture."""
    picture = np.full((48, 96), 0.2)
    picture[:, 24:] = 0.7
    # Of one pixel, so that a blurred one is flat: no boundary within.
    board = 0.1 * (-1.0) ** np.add.outer(np.arange(48), np.arange(40))
    picture[:, 56:] += board
    return np.repeat(picture[..., None], 3, axis=2)


def as_batch(*images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).astype(np.float32))


def test_a_known_picture_has_the_regions_that_it_should() -> None:
    options = RegionOptions()
    found = guess(as_batch(scene()), options)[0, 0].numpy()
    # An edge of 0.5 blurred by σ = 2 px is 0.1 a pixel steep at most, and more than 0.04 within
    # 2.7 px of it (half the Gaussian's density); Sobel blurs a little more, and the disk adds 3 px.
    assert (found[:, 20:28] == BOUNDARY).all()
    assert (found[:, :16] == OBJECTS).all()
    assert (found[:, 32:46] == OBJECTS).all()
    assert (found[:, 60:] == BACKGROUND).all()
    assert not (found[:, 33:] == BOUNDARY).any()
    flat = as_batch(np.full((40, 40, 3), 0.5))
    assert (guess(flat, options) == OBJECTS).all()


def test_guessed_regions_are_those_of_the_definition() -> None:
    """Once more with another library's filters, on a picture with some of everything."""
    options = RegionOptions(blur_px=1.5, edge_level=0.03, boundary_px=2, texture_px=3.0)
    random = np.random.default_rng(3)
    picture = ndimage.gaussian_filter(random.random((60, 70, 3)), (4, 4, 0), mode="wrap")
    picture = (picture - picture.min()) / np.ptp(picture)
    picture[30:] += 0.08 * random.standard_normal((30, 70, 3))
    luma = picture @ np.array([0.299, 0.587, 0.114])

    def blurred(plane: np.ndarray, sigma: float) -> np.ndarray:
        reach = int(np.ceil(3 * sigma))
        return ndimage.gaussian_filter(plane, sigma, mode="nearest", radius=reach)

    soft = blurred(luma, 1.5)
    slopes = [ndimage.sobel(soft, axis, mode="nearest") / 8.0 for axis in (0, 1)]
    y, x = np.mgrid[-2:3, -2:3]
    edges = ndimage.binary_dilation(np.hypot(*slopes) > 0.03, np.hypot(y, x) <= 2)
    beside = (~edges).astype(float)
    energy = blurred(beside * (luma - soft) ** 2, 3.0)
    texture = energy > blurred(beside, 3.0) * 0.025**2
    wanted = np.where(edges, BOUNDARY, np.where(texture, BACKGROUND, OBJECTS))
    assert all((wanted == value).mean() > 0.05 for value in REGIONS.values())
    got = guess(torch.from_numpy(picture.transpose(2, 0, 1))[None], options)[0, 0].numpy()
    np.testing.assert_array_equal(got, wanted)


def test_regions_are_of_each_picture_alone() -> None:
    random = np.random.default_rng(0)
    one, two = as_batch(scene()), as_batch(random.random((48, 96, 3)))
    both = guess(torch.cat([one, two]).requires_grad_(), RegionOptions())
    assert both.shape == (2, 1, 48, 96)
    assert torch.equal(both, torch.cat([guess(each, RegionOptions()) for each in (one, two)]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(guess(one, RegionOptions()), both[:1])


# The loss.


def content_of_each(options: RegionOptions) -> RegionLoss:
    weights = dict(zip(REGIONS, options.weights, strict=True))
    return RegionLoss({name: (L1Loss(), weight) for name, weight in weights.items()}, options)


def test_the_loss_of_three_regions_by_hand() -> None:
    options = RegionOptions(weights=(1.0, 2.0, 4.0), weight=0.5)
    loss = content_of_each(options)
    target = torch.zeros(1, 3, 1, 4)
    prediction = torch.tensor([0.1, 0.2, 0.4, 0.8]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    regions = torch.tensor([0, 1, 2, 2], dtype=torch.uint8).view(1, 1, 1, 4)
    got = loss(prediction, target, regions)
    terms = {"boundary": 0.5 * 0.1 / 4, "background": 1.0 * 0.2 / 4, "objects": 2.0 * 1.2 / 4}
    assert {name: float(term) for name, term in loss.terms.items()} == pytest.approx(terms)
    assert float(got) == pytest.approx(sum(terms.values()))
    # By the picture itself where there are no labels: a flat one is an object everywhere.
    guessed = float(loss(prediction, target))
    assert guessed == pytest.approx(2.0 * 1.5 / 4)
    with pytest.raises(ValueError, match=r"\(1, 3, 1, 4\)"):
        loss(prediction, target[..., :2])


def test_pictures_are_masked_before_the_features_are_taken() -> None:
    """What lies outside of a region must not reach its content, however far features look."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Blurred(nn.Module):
        def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
            seen.append((prediction.detach(), target))
            return nn.functional.avg_pool2d((prediction - target).abs(), 3, 1, 1).square().mean()

    loss = RegionLoss({"background": (Blurred(), 1.0)}, RegionOptions(weight=1.0))
    regions = torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.uint8).view(1, 1, 1, 6)
    prediction = torch.rand(1, 3, 1, 6).requires_grad_()
    loss(prediction, torch.rand(1, 3, 1, 6), regions).backward()
    (shown,) = seen
    for picture in shown:
        assert bool((picture[..., [0, 1, 4, 5]] == 0.0).all())
        assert bool((picture[..., 2:4] > 0.0).all())
    assert prediction.grad is not None
    touched = prediction.grad.abs().sum((0, 1, 2)) > 0.0
    assert touched.tolist() == [False, False, True, True, False, False]


def test_options_of_regions() -> None:
    options = RegionOptions(weights=(1.0, 0.0, 2.0))
    # What has no weight needs no layer, and no weights of VGG-19 that deep.
    assert options.layers() == {"boundary": {"relu1_2": 1.0}, "objects": {"relu5_4": 1.0}}
    chosen = recipe.load("srobb")
    assert chosen.stages[1].losses.layers() == ("relu1_2", "relu4_3", "relu5_4")
    assert chosen.stages[0].losses.layers() == ()
    for changes, words in (
        ({"weights": (0.0, 0.0, 0.0)}, "some region"),
        ({"weight": 0.0}, "some region"),
        ({"weights": (1.0, -1.0, 1.0)}, "0 or more"),
        ({"boundary_px": -1}, "0 or more"),
        ({"blur_px": 0.0}, "above 0"),
    ):
        with pytest.raises(UsageError, match=words):
            RegionOptions(**changes)
    with pytest.raises(ValueError, match="boundary, background, objects, not"):
        RegionLoss({"sky": (L1Loss(), 1.0)}, options)


def test_flags_of_regions() -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("scale", "generator", "degradation", "batch", "patch", "pixel_loss", "content_loss")
    )
    nothing |= dict.fromkeys(("content_criterion", "content_weight", "gan", "discriminator"))
    nothing |= dict.fromkeys(("learning_rate", "steps", "minutes"))
    shallow = (
        "stages.1.losses.regions.background={ relu2_2 = 1.0 }",
        "stages.1.losses.regions.objects={ conv3_1 = 2.0 }",
    )
    chosen = train_flags.recipe_of(
        "srobb", **nothing, extra_loss=("obb:2,1,0.5",), settings=shallow
    )
    losses = chosen.stages[1].losses
    assert losses.layers() == ("conv3_1", "relu1_2", "relu2_2")
    assert losses.regions is not None
    assert losses.regions.weights == (2.0, 1.0, 0.5)
    added = train_flags.recipe_of("srgan", **nothing, extra_loss=("obb",), settings=())
    assert added.stages[1].losses.regions == RegionOptions()
    with pytest.raises(UsageError, match="is not of type"):
        train_flags.recipe_of("srgan", **nothing, extra_loss=("obb:1,2",), settings=())


# Label maps.

CLASSES = (7, 200)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Label maps, and pictures that show the regions of their maps: red is 100 times them."""
    random = np.random.default_rng(1)
    for number, (height, width) in enumerate([(33, 40), (48, 34)]):
        coarse = random.choice([3, *CLASSES], (height // 8 + 1, width // 8 + 1))
        indices = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
        path = tmp_path / "labels" / "deep" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(indices.astype(np.uint8))
        if number == 1:
            image.putpalette(random.integers(0, 256, 768).tolist())
            assert image.mode == "P"
        image.save(path)
        # Of the map as it is cut with the picture, whose odd row is left out.
        cut = torch.from_numpy(indices[: height // 2 * 2, : width // 2 * 2].copy())[None, None]
        regions = from_labels(cut, background=CLASSES, boundary_px=1)[0, 0].numpy()
        picture = np.zeros((height, width, 3), np.uint8)
        picture[: regions.shape[0], : regions.shape[1]] = 100 * regions[..., None]
        path = tmp_path / "photos" / "deep" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return tmp_path


OPTIONS = RegionOptions(background_classes=CLASSES, boundary_px=1)


def labelled(place: Path, options: RegionOptions = OPTIONS) -> PairCache:
    cache = open_cache([place / "photos"], place / "cache", scale=2, patch_px=8)
    return with_regions(
        cache, [place / "photos"], place / "labels", place / "cache", options=options
    )


def test_label_maps_are_cut_and_turned_with_their_pictures(place: Path) -> None:
    cache = labelled(place)
    data = DataOptions(batch=24, patch_px=8)
    batches = Batches([cache], data)
    whole = batches[5]
    assert whole.regions is not None
    assert whole.regions.shape == (24, 1, 16, 16)
    assert whole.regions.dtype == torch.uint8
    assert set(whole.regions.unique().tolist()) == {0, 1, 2}
    assert torch.equal(whole.truth, (100 * whole.regions).expand(-1, 3, -1, -1))
    moved = whole.to(torch.device("cpu")).part(3, 9)
    assert moved.regions is not None
    assert torch.equal(moved.regions, whole.regions[3:9])
    # Also in a process of its own, which is sent the paths alone, and as a part of a batch.
    sent = pickle.dumps(Batches([cache], data, rank=1, world=2))
    assert len(sent) < 5000
    half = pickle.loads(sent)[5].regions
    assert torch.equal(half, whole.regions[1::2])
    assert Batches([dataclasses.replace(cache, regions=None)], data)[5].regions is None


def test_a_map_of_one_bit_has_two_classes(place: Path) -> None:
    gray = np.zeros((33, 40), np.uint8)
    gray[8:24, 5:30] = 1
    path, found = place / "labels" / "deep" / "0.png", []
    for image in (Image.fromarray(255 * gray).convert("1"), Image.fromarray(gray)):
        image.save(path)
        with Image.open(path) as opened:
            assert opened.mode == image.mode
        regions = labelled(place, dataclasses.replace(OPTIONS, background_classes=(1,))).regions
        assert regions is not None
        found.append(np.array(regions.map(0)))
    np.testing.assert_array_equal(found[0], found[1])
    assert set(np.unique(found[0])) == {0, 1, 2}


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_of_few_bits_is_not_spread(place: Path, bits: int) -> None:
    """As many annotation tools write it; Pillow cannot."""
    indices = np.zeros((33, 40), np.uint8)
    indices[8:24, 4:32] = 2
    path = place / "labels" / "deep" / "0.png"
    Image.fromarray(indices).save(path)
    options = dataclasses.replace(OPTIONS, background_classes=(2,))
    expected = labelled(place, options).regions
    per_byte = 8 // bits
    packed = sum(
        indices[:, k::per_byte] << (8 - bits * (k + 1)) for k in range(per_byte)
    ).astype(np.uint8)  # fmt: skip
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    header = struct.pack(">IIBBBBB", 40, 33, bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )
    )
    regions = labelled(place, options).regions
    assert regions is not None
    assert expected is not None
    np.testing.assert_array_equal(regions.map(0), expected.map(0))
    assert len(np.unique(regions.map(0))) > 1


def test_label_maps_are_read_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = Image.open

    def opened(stream: Any, *arguments: Any, **options: Any) -> Any:
        read.append(Path(getattr(stream, "name", "")))
        return original(stream, *arguments, **options)

    # By another spelling of the same folder.
    open_cache([place / "labels" / ".." / "photos"], place / "cache", scale=2, patch_px=8)
    first = labelled(place)
    monkeypatch.setattr(Image, "open", opened)
    again = labelled(place)
    assert not read
    assert first.regions is not None
    assert again.regions is not None
    assert first.regions.place == again.regions.place
    wider = labelled(place, dataclasses.replace(OPTIONS, boundary_px=2))
    assert [path.parent.parent.name for path in read] == ["labels", "labels"]
    assert wider.regions is not None
    for number in (0, 1):
        one, other = (c.regions.map(number) for c in (first, wider) if c.regions is not None)
        assert int((other == BOUNDARY).sum()) > int((one == BOUNDARY).sum())


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda path: path.unlink(), UsageError, r"0.png has no partners in .*each needs one"),
        (lambda path: Image.new("RGB", (40, 33)).save(path), TrainError, "has colours"),
        (lambda path: Image.new("L", (40, 31)).save(path), TrainError, "40 x 31 px, and its"),
        (lambda path: Image.new("L", (42, 33)).save(path), TrainError, "42 x 33 px, and its"),
        (lambda path: path.write_bytes(b"junk"), TrainError, "0.png"),
    ],
)
def test_label_maps_that_do_not_fit(
    place: Path, spoil: Callable[[Path], object], kind: type[Exception], words: str
) -> None:
    spoil(place / "labels" / "deep" / "0.png")
    with pytest.raises(kind, match=words) as caught:
        labelled(place)
    assert "\n" not in str(caught.value)
    assert not list((place / "cache").glob("*.regions"))


# Training.

SHALLOW = RegionOptions(
    boundary={"conv1_1": 1.0},
    background={"conv1_2": 1.0},
    objects={"relu1_2": 1.0},
    weight=0.5,
)


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_stage_with_regions_goes_on_bit_for_bit(
    place: Path, tmp_path: Path, *, with_labels: bool
) -> None:
    cache = labelled(place) if with_labels else None
    if cache is None:
        cache = open_cache([save_three(tmp_path / "in")], tmp_path / "c", scale=2, patch_px=8)
    chosen = with_losses(GAN, content={}, regions=SHALLOW).with_steps(6)
    whole = trainer(cache, chosen, tmp_path / "whole")
    losses = train(whole)
    assert {"regions/boundary", "regions/background", "regions/objects"} <= losses[-1].keys()
    first = trainer(cache, chosen, tmp_path / "cut")
    train(first, stop=lambda: int(first.state.step >= 4))
    second = trainer(cache, chosen, tmp_path / "cut")
    assert (second.state.step, second.stage.name) == (4, "gan")
    train(second)
    assert_equal(second, whole)
    rest = [row["losses"] for row in rows(tmp_path / "cut")]
    assert [r["regions/objects"] for r in rest[4:]] == [
        one["regions/objects"] for one in losses[4:]
    ]


def test_labels_at_the_command_line(place: Path, tmp_path: Path) -> None:
    def command(*arguments: object) -> Any:
        done = CliRunner().invoke(app, ["train", *map(str, arguments)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    given = (place / "photos", "--labels", place / "labels", "--out", tmp_path / "run")
    for options, words in (
        (("--recipe", "srgan"), "has no loss by regions; give --extra-loss obb:1,1,1"),
        (("--recipe", "srobb", "--degradation", "web"), "data.degrade.caption_chance=0.0"),
        (("--recipe", "srobb", "--patch", 3), "need crops of 16 px, and these have 12"),
    ):
        done = command(*given, *options)
        assert done.exit_code == 2
        assert words in done.stderr
    assert not (tmp_path / "run").exists()
