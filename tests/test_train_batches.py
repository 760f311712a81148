"""Pictures become pairs, and pairs become batches: aligned, whatever is done to them."""

from __future__ import annotations

import os
import pickle
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training import save_picture, save_three

from waifu4x import color, pictures
from waifu4x.canvas import to_unit
from waifu4x.errors import TrainError, UsageError
from waifu4x.resample import imresize, resize
from waifu4x.train import pairs
from waifu4x.train.batches import Batch, Batches
from waifu4x.train.data import UNUSED_S, PairCache, open_cache
from waifu4x.train.degrading import degrade, spoiling
from waifu4x.train.feeding import Feed
from waifu4x.train.recipe import DataOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_three(tmp_path / "photos")


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> PairCache:
    return open_cache([folder], tmp_path / "cache", scale=2, patch_px=8)


# Pictures.


def test_low_resolution_is_imresize_of_high(folder: Path, cache: PairCache) -> None:
    assert len(cache) == 3
    for number in range(3):
        lr, hr = cache.pair(number)
        np.testing.assert_array_equal(hr, pictures.read(folder / f"{number}.png").pixels)
        np.testing.assert_array_equal(lr, imresize(np.asarray(hr), 0.5))
    assert cache.sizes_px.tolist() == [[16, 20], [16, 21], [16, 22]]


def test_odd_kinds_of_pictures(tmp_path: Path) -> None:
    """Gray, 16 bit, alpha, and sides that are no multiple of the scale."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (33, 35), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    rgba = rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    cache = open_cache([tmp_path], tmp_path / "cache", scale=2, patch_px=8)
    hrs = [np.asarray(cache.pair(number)[1]) for number in range(3)]
    np.testing.assert_array_equal(hrs[0], np.repeat(gray[:32, :34, None], 3, axis=2))
    np.testing.assert_array_equal(hrs[1], hrs[0])
    np.testing.assert_array_equal(hrs[2], rgba[..., :3])


def test_what_no_run_has_opened_for_long_is_removed(tmp_path: Path) -> None:
    folder, kept = tmp_path / "photos", tmp_path / "cache"
    save_picture(folder / "a.png", seed=0, size=(40, 40))
    for scale in (2, 4):
        open_cache([folder], kept, scale=scale, patch_px=8)
    old, young = sorted(kept.glob("x*.json"))
    (kept / "notes.json").write_text("mine")
    for path, share in ((old, 1.01), (young, 0.99), (kept / "notes.json", 9.0)):
        then = time.time() - share * UNUSED_S
        os.utime(path, (then, then))
    open_cache([folder], kept, scale=3, patch_px=8)
    left = {path.name.partition("-")[0] for path in kept.iterdir()}
    assert left == {"x3", "x4", "notes.json"}
    # Opened again it is young again.
    open_cache([folder], kept, scale=4, patch_px=8)
    assert young.stat().st_mtime > time.time() - 0.5 * UNUSED_S


def test_the_cache_is_used_again_and_made_anew_when_a_picture_changes(
    folder: Path, tmp_path: Path
) -> None:
    decoded: list[int] = []

    def look() -> PairCache:
        return open_cache(
            *([folder], tmp_path / "cache"),
            scale=2,
            patch_px=8,
            on_progress=lambda done, total: decoded.append(total),
        )

    look()
    assert decoded == [3, 3, 3]
    look()
    assert len(decoded) == 3
    save_picture(folder / "1.png", seed=9, size=(42, 32))
    os.utime(folder / "1.png", ns=(0, 12345))
    changed = look()
    assert len(decoded) == 6
    np.testing.assert_array_equal(changed.pair(1)[1], pictures.read(folder / "1.png").pixels)
    for lost in (tmp_path / "cache").glob("*.hr"):
        lost.unlink()
    assert len(look()) == 3
    assert not list((tmp_path / "cache").glob(".*"))


def test_unusable_pictures_are_skipped_with_their_reasons(folder: Path, tmp_path: Path) -> None:
    save_picture(folder / "small.png", seed=5, size=(40, 15))
    (folder / "bad.png").write_bytes(b"junk")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"junk")
    cache = open_cache([folder], tmp_path / "cache", scale=2, patch_px=8)
    assert len(cache) == 3
    assert len(cache.skipped) == 2
    assert any("bad.png" in s and "not a picture" in s for s in cache.skipped)
    assert any("small.png: smaller than 16 px" in s for s in cache.skipped)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, words in ((tmp_path / "absent", "is no folder"), (empty, "no pictures in")):
        with pytest.raises(TrainError, match=words):
            open_cache([place], tmp_path / "cache", scale=2, patch_px=8)
    save_picture(empty / "small.png", seed=0, size=(8, 8))
    for _ in range(2):  # also when the cache knows already
        with pytest.raises(TrainError, match=r"at least 16 px; 1 were skipped"):
            open_cache([empty], tmp_path / "cache", scale=2, patch_px=8)


# Batches.


def numbered(sizes: list[tuple[int, int]], groups: list[int], *, scale: int) -> PairCache:
    """Pictures whose pixels say where they lie: red is the picture, green the row, blue the column;
    the high-resolution ones in low-resolution pixels, so that aligned crops look alike."""
    lr, hr = [], []
    for number, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width].astype(np.uint8)
        small = np.stack([np.full_like(y, number), y, x], axis=2)
        lr.append(small.ravel())
        hr.append(small.repeat(scale, axis=0).repeat(scale, axis=1).ravel())
    return PairCache(
        scale=scale,
        sizes_px=np.array(sizes),
        groups=np.array(groups),
        hr=np.concatenate(hr),
        lr=np.concatenate(lr),
        skipped=(),
    )


def batches(cache: PairCache, *, batch: int = 64, patch_px: int = 7, **options: Any) -> Batches:
    data = DataOptions(batch=batch, patch_px=patch_px, **options.pop("data", {}))
    return Batches([cache], data, **options)


def uint8(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_are_aligned_whatever_the_turn(scale: int) -> None:
    cache = numbered([(20, 9), (8, 30), (11, 11)], [0, 0, 0], scale=scale)
    batch = batches(cache)[0]
    lr, hr = uint8(batch.x), uint8(batch.truth)
    assert lr.shape == (64, 3, 7, 7)
    assert hr.shape == (64, 3, 7 * scale, 7 * scale)
    assert (lr.dtype, hr.dtype) == (np.uint8, np.uint8)
    np.testing.assert_array_equal(lr.repeat(scale, axis=2).repeat(scale, axis=3), hr)
    assert batch.target is batch.truth
    # A crop is a window of one picture: one picture's number, 7 rows and 7 columns next to
    # each other; all eight turns come up.
    assert all(len(np.unique(crop[0])) == 1 for crop in lr)
    steps = {
        (
            *(int(crop[1, 1, 0]) - int(crop[1, 0, 0]), int(crop[1, 0, 1]) - int(crop[1, 0, 0])),
            int(crop[2, 0, 1]) - int(crop[2, 0, 0]) + int(crop[2, 1, 0]) - int(crop[2, 0, 0]),
        )
        for crop in lr
    }
    assert steps == {(a, b, c) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1)) for c in (1, -1)}


def test_every_place_is_equally_likely_and_folders_are_balanced() -> None:
    # Folder 0 has pictures of 1 and of 9 places, folder 1 one of 100 places.
    cache = numbered([(4, 4), (6, 6), (13, 13)], [0, 0, 1], scale=2)
    lr = uint8(batches(cache, batch=6000, patch_px=4)[0].x)
    counts = Counter(int(crop[0, 0, 0]) for crop in lr)
    assert counts[2] == pytest.approx(3000, abs=200)
    assert counts[0] == pytest.approx(300, abs=80)
    corners = Counter((int(c[1].min()), int(c[2].min())) for c in lr if c[0, 0, 0] == 1)
    assert len(corners) == 9
    assert min(corners.values()) > 220  # of 300 expected


def _equal(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("x", "truth", "target")
    )


DEGRADED = {"degradation": "jpeg", "sharpen": True}


@pytest.mark.parametrize("data", [{}, DEGRADED])
def test_a_batch_depends_on_seed_and_step_alone(cache: PairCache, data: dict[str, Any]) -> None:
    def of(step: int, **options: Any) -> Batch:
        return batches(cache, batch=4, data=data, **options)[step]

    one = batches(cache, batch=4, data=data)
    for step in (9, 3, 3):  # in any order
        assert _equal(one[step], of(step))
    assert not _equal(of(3), of(4))
    assert not _equal(of(3), of(3, seed=1))
    assert _equal(pickle.loads(pickle.dumps(one))[9], of(9))


@pytest.mark.parametrize("data", [{}, DEGRADED])
@pytest.mark.parametrize("world", [2, 3])
def test_the_parts_of_all_processes_are_the_whole(
    cache: PairCache, data: dict[str, Any], world: int
) -> None:
    whole = batches(cache, batch=6, data=data)[5]
    for rank in range(world):
        part = batches(cache, batch=6, data=data, rank=rank, world=world)[5]
        assert len(part) == 6 // world
        for name in ("x", "truth", "target"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::world])


def test_scales_take_turns(folder: Path, tmp_path: Path) -> None:
    caches = [open_cache([folder], tmp_path / "cache", scale=s, patch_px=6) for s in (2, 3, 4)]
    several = Batches(caches, DataOptions(batch=2, patch_px=6), luma=True, enlarged=True)
    assert [several[step].truth.shape[2] for step in range(5)] == [12, 18, 24, 12, 18]
    assert all(several[step].x.shape == several[step].truth.shape for step in range(3))


def _windows(whole: np.ndarray, side_px: int, *, step_px: int) -> list[np.ndarray]:
    """Every crop, in each of the eight ways to turn it."""
    found = []
    for y in range(0, whole.shape[0] - side_px + 1, step_px):
        for x in range(0, whole.shape[1] - side_px + 1, step_px):
            crop = whole[y : y + side_px, x : x + side_px]
            for turned in (crop, crop[::-1], crop[:, ::-1], crop[::-1, ::-1]):
                found += [turned, turned.transpose(1, 0, 2)]
    return found


@pytest.mark.parametrize("scale", [2, 3])
def test_luma_crops_are_those_of_the_whole_picture_enlarged(tmp_path: Path, scale: int) -> None:
    """Also at the picture's border: no crop has a border of its own."""
    save_picture(tmp_path / "p" / "0.png", seed=4, size=(30, 24))
    cache = open_cache([tmp_path / "p"], tmp_path / "cache", scale=scale, patch_px=5)
    lr, hr = (np.asarray(image) for image in cache.pair(0))
    enlarged = np.clip(resize(to_unit(lr), (hr.shape[0], hr.shape[1])), 0.0, 1.0)
    wanted = [color.rgb_to_ycbcr(image)[..., :1] for image in (enlarged, to_unit(hr))]
    windows = [np.stack(_windows(image, 5 * scale, step_px=scale)) for image in wanted]
    batch = batches(cache, batch=40, patch_px=5, luma=True, enlarged=True)[0]
    assert batch.x.shape == batch.truth.shape == (40, 1, 5 * scale, 5 * scale)
    found = set()
    for x, truth in zip(batch.x.numpy(), batch.truth.numpy(), strict=True):
        apart = np.abs(windows[0] - x.transpose(1, 2, 0)).max(axis=(1, 2, 3))
        best = int(apart.argmin())
        assert apart[best] < 1e-5
        np.testing.assert_allclose(windows[1][best], truth.transpose(1, 2, 0), atol=1e-6)
        found.add(best // 8)
    assert len(found) > 15  # places, of 24 or 80


def test_a_sharpened_truth_is_for_losses_alone(cache: PairCache) -> None:
    plain = batches(cache, batch=4, patch_px=8)[0]
    sharp = batches(cache, batch=4, patch_px=8, data={"sharpen": True})[0]
    assert torch.equal(sharp.x, plain.x)
    assert torch.equal(sharp.truth, plain.truth)
    assert not torch.equal(sharp.target, plain.truth)
    hr = numbered([(8, 8)], [0], scale=2)
    (target,) = batches(hr, batch=1, patch_px=8, data={"sharpen": True})[0].target.numpy()
    wanted = spoiling.sharpen(np.asarray(hr.pair(0)[1]))
    assert any(
        np.array_equal(target.transpose(1, 2, 0), turned)
        for turned in _windows(wanted, 16, step_px=16)
    )


def test_degradations_see_what_lies_around_a_crop(cache: PairCache) -> None:
    """Of a degradation that does nothing but bicubic, a crop is that of the whole picture."""
    none = {"degradation": "jpeg", "degrade": {"none_chance": 1.0}}
    plain = batches(cache, batch=32, patch_px=8)[0]
    done = batches(cache, batch=32, patch_px=8, data=none)[0]
    assert torch.equal(done.truth, plain.truth)
    assert torch.equal(done.x, plain.x)


def test_degradations_are_aligned_and_differ_by_sample(cache: PairCache) -> None:
    done = batches(cache, batch=16, patch_px=8, data={"degradation": "jpeg"})[0]
    plain = batches(cache, batch=16, patch_px=8)[0]
    assert torch.equal(done.truth, plain.truth)
    apart = (done.x.float() - plain.x.float()).abs().mean((1, 2, 3))
    assert 0.0 < float(apart.max()) < 30.0
    assert len(set(apart.tolist())) > 8
    strong = batches(cache, batch=4, patch_px=8, data={"degradation": "real"})[0]
    assert strong.x.shape == (4, 3, 8, 8)
    assert not torch.equal(strong.x, plain.x[:4])


def test_what_reaches_the_device(cache: PairCache) -> None:
    batch = batches(cache, batch=4, patch_px=8, data={"sharpen": True})[0]
    moved = batch.to(torch.device("cpu"))
    for name in ("x", "truth", "target"):
        tensor = getattr(moved, name)
        torch.testing.assert_close(tensor, getattr(batch, name).float() / 255.0)
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    plain = batches(cache, batch=4, patch_px=8)[0].to(torch.device("cpu"))
    assert plain.target is plain.truth
    part = plain.part(1, 3)
    assert part.target is part.truth
    assert torch.equal(part.x, plain.x[1:3])


def test_a_feed_can_be_turned_back(cache: PairCache) -> None:
    source = batches(cache, batch=2, patch_px=8)
    feed = Feed(source, device=torch.device("cpu"), workers=0)
    state = torch.get_rng_state()
    for step in (4, 5, 6, 5, 6, 0):
        batch, waited_s = feed.take(step)
        assert _equal(batch, source[step].to(torch.device("cpu")))
        assert waited_s >= 0.0
    feed.close()
    assert torch.equal(torch.get_rng_state(), state)


def test_caches_are_sent_to_processes_as_paths(cache: PairCache, tmp_path: Path) -> None:
    sent = pickle.dumps(cache)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    assert isinstance(again.hr, np.memmap)
    for number in range(len(cache)):
        for mine, wanted in zip(again.pair(number), cache.pair(number), strict=True):
            np.testing.assert_array_equal(mine, wanted)
    in_memory = numbered([(8, 8)], [0], scale=2)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(in_memory)).pair(0)[1], in_memory.pair(0)[1]
    )


# Low-resolution pictures of one's own.


def textured(*, seed: int, size: tuple[int, int] = (96, 80)) -> np.ndarray:
    """Blots of several sizes, of one colour each."""
    random = np.random.default_rng(seed)
    image = np.full((*size[::-1], 3), 128.0)
    y, x = np.mgrid[: size[1], : size[0]]
    for _ in range(60):
        top, left, radius_px = random.uniform((0, 0, 2), (size[1], size[0], 14))
        inside = (y - top) ** 2 + (x - left) ** 2 < radius_px**2
        image[inside] = random.uniform(20, 235, 3)
    return image.astype(np.uint8)


def save_pair(folder: Path, name: str, *, seed: int, scale: int = 2) -> tuple[Path, Path]:
    hr = textured(seed=seed)
    large, small = folder / "hr" / name, folder / "lr" / name
    for path, image in ((large, hr), (small, imresize(hr, 1.0 / scale))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return large, small


def opened(folder: Path, *, scale: int = 2) -> PairCache:
    return open_cache(
        [folder / "hr"],
        folder / "cache",
        scale=scale,
        patch_px=8,
        lr_folder=folder / "lr",
    )


def test_pairs_of_ones_own(tmp_path: Path) -> None:
    """By relative path whatever the suffix, in place of what would be made of the large ones."""
    save_pair(tmp_path, "0.png", seed=0)
    _, second = save_pair(tmp_path, "deep/1.png", seed=1)
    _, third = save_pair(tmp_path, "2.png", seed=2)
    second.rename(second.with_suffix(".bmp.png").with_name("1x2.png"))
    lr = np.asarray(Image.open(third)).astype(np.int16) + 9
    third.unlink()
    Image.fromarray(np.clip(lr, 0, 255).astype(np.uint8)).save(third.with_suffix(".bmp"))
    cache = opened(tmp_path)
    assert len(cache) == 3
    by_folder = open_cache([tmp_path / "hr"], tmp_path / "cache", scale=2, patch_px=8)
    brighter = 0
    for number in range(3):
        (mine, large), (made, wanted) = cache.pair(number), by_folder.pair(number)
        np.testing.assert_array_equal(large, wanted)
        brighter += not np.array_equal(mine, made)
        assert np.abs(mine.astype(int) - made.astype(int)).max() <= 9
    assert brighter == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda lr: lr[:-1], "has 48 x 39 px, which is not 1/2 of 96 x 80"),
        (lambda lr: np.roll(lr, 1, axis=1), "is shifted by +1.0 px to the right"),
        (lambda lr: np.roll(lr, -2, axis=0), "px to the right and -2.0 px down"),
        (lambda lr: lr[::-1], "is another picture"),
        (lambda lr: 255 - lr, "is another picture"),
        (lambda lr: imresize(textured(seed=77), 0.5), "is another picture"),
    ],
)
def test_pairs_that_do_not_fit_are_named(tmp_path: Path, spoil: Any, words: str) -> None:
    save_pair(tmp_path, "good.png", seed=0)
    _, small = save_pair(tmp_path, "odd.png", seed=1)
    lr = np.asarray(Image.open(small))
    Image.fromarray(np.ascontiguousarray(spoil(lr))).save(small)
    with pytest.raises(TrainError) as caught:
        opened(tmp_path)
    assert str(small) in str(caught.value)
    assert words in str(caught.value)
    assert "good" not in str(caught.value)
    assert str(caught.value).endswith("fix or remove them")
    assert not list((tmp_path / "cache").glob("*.json"))


def test_many_wrong_pairs_are_counted(tmp_path: Path) -> None:
    for number in range(5):
        _, small = save_pair(tmp_path, f"{number}.png", seed=number)
        Image.fromarray(np.asarray(Image.open(small))[1:]).save(small)
    with pytest.raises(TrainError, match=r"0\.png .*1\.png .*2\.png .*; and 2 more: fix"):
        opened(tmp_path)


def test_pictures_without_a_partner_or_with_two(tmp_path: Path) -> None:
    save_pair(tmp_path, "0.png", seed=0)
    _, small = save_pair(tmp_path, "1.png", seed=1)
    small.rename(tmp_path / "kept.png")
    with pytest.raises(UsageError, match=r"1\.png has no partners in .*each needs one"):
        opened(tmp_path)
    for name in ("1.png", "1x2.png"):
        (tmp_path / "lr" / name).write_bytes((tmp_path / "kept.png").read_bytes())
    with pytest.raises(UsageError, match=r"1\.png has 2 partners"):
        opened(tmp_path)
    (tmp_path / "lr" / "1.png").unlink()
    assert len(opened(tmp_path)) == 2
    with pytest.raises(UsageError, match="is no folder"):
        open_cache([tmp_path / "hr"], tmp_path, scale=2, patch_px=8, lr_folder=tmp_path / "absent")


def test_a_changed_partner_is_decoded_anew(tmp_path: Path) -> None:
    _, small = save_pair(tmp_path, "0.png", seed=0)
    before = np.array(opened(tmp_path).pair(0)[0])
    lr = np.asarray(Image.open(small))
    Image.fromarray(np.clip(lr.astype(np.int16) + 5, 0, 255).astype(np.uint8)).save(small)
    os.utime(small, ns=(0, 12345))
    assert not np.array_equal(opened(tmp_path).pair(0)[0], before)


def test_shifts_are_measured_to_a_tenth_of_a_pixel() -> None:
    hr = textured(seed=3, size=(320, 256))
    reference = imresize(hr, 0.25)
    for down_px, right_px in ((0, 0), (1, 0), (0, -1), (2, 3), (-4, 5)):  # of the large picture
        moved = imresize(np.roll(hr, (down_px, right_px), axis=(0, 1)), 0.25)
        found = pairs.shift(pairs._luma(moved), pairs._luma(reference))
        assert found[:2] == pytest.approx((down_px / 4, right_px / 4), abs=0.12)
        fits = max(abs(down_px), abs(right_px)) <= 2
        assert (pairs.difference(moved, hr, reference=reference) is None) == fits
    # Every fourth pixel lies 0.375 px from where bicubic interpolation sees the middle.
    assert pairs.difference(hr[::4, ::4], hr, reference=reference) is None


def test_degraded_pictures_are_recognised_and_others_are_not() -> None:
    """Of 24 pairs as Real-ESRGAN's training would make them nearly all; of other pictures none."""
    random = np.random.default_rng(0)
    real = degrade.build("real", scale=2, options={"caption_chance": 0.0})
    fitting, others = 0, 0
    for seed in range(24):
        hr = textured(seed=seed, size=(160, 128))
        reference = imresize(hr, 0.5)
        fitting += pairs.difference(real(hr, random), hr, reference=reference) is None
        other = imresize(textured(seed=1000 + seed, size=(160, 128)), 0.5)
        others += pairs.difference(other, hr, reference=reference) is None
    assert fitting >= 22
    assert others == 0


def test_flat_pictures_have_nothing_to_align() -> None:
    hr = np.full((32, 32, 3), 200, dtype=np.uint8)
    lr = np.full((16, 16, 3), 190, dtype=np.uint8)
    assert pairs.difference(lr, hr, reference=imresize(hr, 0.5)) is None
    dark = np.full((16, 16, 3), 20, dtype=np.uint8)
    assert pairs.difference(dark, hr, reference=imresize(hr, 0.5)) == "is another picture"
