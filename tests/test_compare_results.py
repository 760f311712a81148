"""What is compared, by which models, and how it is measured."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from waifu4x import catalog, pictures, weights
from waifu4x.bench import metrics
from waifu4x.compare import captions, crops, results, subjects
from waifu4x.compare.crops import Crop
from waifu4x.compare.subjects import Wish
from waifu4x.errors import OfflineError, PictureReadError, UnknownModelError, UsageError
from waifu4x.pictures import Picture
from waifu4x.resample import imresize
from waifu4x.sizes import Target

torch.set_num_threads(1)


def noise(width: int, height: int, *, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def flat_with(busy: Crop, *, size: tuple[int, int] = (60, 40)) -> np.ndarray:
    """Gray, but for one place."""
    image = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    busy.cut(image)[:] = noise(busy.width_px, busy.height_px)
    return image


# -------------------------------------------------------------------------------------------- crops


def test_crops_are_written_as_four_numbers() -> None:
    assert crops.parse("40, 20,120,90") == Crop(x=40, y=20, width_px=120, height_px=90)
    assert str(crops.parse("1,2,3,4")) == "1,2,3,4"
    for wrong in ("", "1,2,3", "1,2,0,4", "-1,2,3,4", "1,2,3,4,5", "a,b,c,d", "1.5,2,3,4"):
        with pytest.raises(UsageError, match="no rectangle"):
            crops.parse(wrong)


def test_the_most_detailed_window_is_where_the_detail_is() -> None:
    busy = Crop(x=33, y=11, width_px=16, height_px=12)
    image = flat_with(busy)
    # One pixel to the left and above differs from its neighbours too.
    found = crops.most_detailed(image, (16, 12))
    assert abs(found.x - busy.x) <= 1
    assert abs(found.y - busy.y) <= 1
    assert (found.width_px, found.height_px) == (16, 12)


def test_texture_wins_over_one_hard_edge() -> None:
    image = np.full((40, 80, 3), 100, dtype=np.uint8)
    image[:, 10] = 0
    image[:, 11:] = 255
    image[10:30, 50:70] = 255 - noise(20, 20) // 8
    found = crops.most_detailed(image, (20, 20))
    assert found.x >= 45


def test_of_a_flat_picture_the_middle_is_taken_and_windows_never_leave_it() -> None:
    flat = np.zeros((30, 50, 3), dtype=np.uint8)
    middle = Crop(x=20, y=10, width_px=10, height_px=10)
    assert crops.most_detailed(flat, (10, 10)) == middle
    assert crops.most_detailed(flat, (99, 99)) == crops.whole(flat)
    assert crops.most_detailed(noise(1, 1), (5, 5)) == Crop(x=0, y=0, width_px=1, height_px=1)


def test_a_second_window_keeps_clear_of_the_first() -> None:
    image = flat_with(Crop(x=4, y=4, width_px=12, height_px=12))
    Crop(x=40, y=20, width_px=12, height_px=12).cut(image)[:] = noise(12, 12) // 4 + 64
    first = crops.most_detailed(image, (12, 12))
    second = crops.most_detailed(image, (12, 12), avoid=[first])
    assert first.x < 20 < second.x


def test_large_pictures_are_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "_FINE_PX", 500)
    monkeypatch.setattr(crops, "_BAND_ROWS", 8)
    busy = Crop(x=33, y=11, width_px=16, height_px=12)
    found = crops.most_detailed(flat_with(busy), (16, 12))
    assert abs(found.x - busy.x) <= 4
    assert abs(found.y - busy.y) <= 4


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    wanted=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    fine_px=st.sampled_from([20, 200, 4_000_000]),
)
def test_windows_lie_within(size: tuple[int, int], wanted: tuple[int, int], fine_px: int) -> None:
    image = noise(*size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "_FINE_PX", fine_px)
        found = crops.most_detailed(image, wanted)
    assert found.cut(image).shape == (min(wanted[1], size[1]), min(wanted[0], size[0]), 3)
    assert min(found.x, found.y) >= 0


# ----------------------------------------------------------------------------------------- subjects


def test_small_pictures_are_compared_whole_and_of_large_ones_a_part() -> None:
    small = subjects.prepare(Picture(pixels=noise(30, 20)), "a.png", wish=Wish())
    assert small.region == small.window == crops.whole(small.shown)
    assert (small.scale, small.chosen, small.truth) == (4, "the whole picture", None)
    large = Picture(
        pixels=flat_with(Crop(x=500, y=300, width_px=60, height_px=50), size=(700, 400))
    )
    part = subjects.prepare(large, "b.png", wish=Wish())
    assert (part.window.width_px, part.window.height_px) == (120, 90)
    assert part.region == part.window
    assert part.chosen == "the most detailed region"
    assert part.window.x <= 500 <= 560 <= part.window.x + 120
    wide = subjects.prepare(large, "b.png", wish=Wish(region_px=subjects.PAGE_REGION_PX[0] * 288))
    assert (wide.region.width_px, wide.region.height_px) == subjects.PAGE_REGION_PX
    inner = wide.window.relative_to(wide.region)
    assert inner.x >= 0 <= inner.y
    assert inner.x + 120 <= wide.region.width_px
    narrow = subjects.prepare(large, "b.png", wish=Wish(region_px=384 * 288 // 4))
    assert (narrow.region.width_px, narrow.region.height_px) == (192, 144)
    everything = subjects.prepare(large, "b.png", wish=Wish(crop="all"))
    assert everything.region == everything.window == crops.whole(everything.shown)


def test_a_crop_is_in_pixels_of_the_given_picture() -> None:
    picture = Picture(pixels=noise(64, 48))
    one = subjects.prepare(picture, "a.png", wish=Wish(crop="10,5,20,16"))
    assert one.region == one.window == Crop(x=10, y=5, width_px=20, height_px=16)
    with pytest.raises(UsageError, match=r"reaches beyond a.png, which is 64x48"):
        subjects.prepare(picture, "a.png", wish=Wish(crop="60,5,20,16"))
    shrunk = subjects.prepare(picture, "a.png", wish=Wish(crop="10,5,20,16", downscale=4))
    assert shrunk.region == Crop(x=2, y=1, width_px=6, height_px=5)
    assert shrunk.notes == (
        "--crop 10,5,20,16 became 8,4,24,20, whole pixels of the small picture",
    )
    exact = subjects.prepare(picture, "a.png", wish=Wish(crop="8,4,24,20", downscale=4))
    assert exact.notes == ()


def test_what_is_shrunk_becomes_the_truth() -> None:
    hr = noise(34, 27)
    subject = subjects.prepare(Picture(pixels=hr), "a.png", wish=Wish(downscale=4))
    assert subject.truth is not None
    np.testing.assert_array_equal(subject.truth, hr[:24, :32])
    np.testing.assert_array_equal(subject.shown, imresize(hr[:24, :32], 0.25))
    assert subject.scale == 4
    with pytest.raises(UsageError, match="too small"):
        subjects.prepare(Picture(pixels=noise(3, 30)), "a.png", wish=Wish(downscale=4))


def test_a_reference_says_the_scale_and_may_have_a_rest() -> None:
    small = Picture(pixels=noise(10, 8))
    subject = subjects.prepare(small, "a.png", wish=Wish(), reference=noise(32, 24))
    assert (subject.scale, subject.notes[0]) == (
        3,
        "the reference of a.png was cut from 32x24 to 30x24 px",
    )
    assert subject.truth is not None
    assert subject.truth.shape == (24, 30, 3)
    for wish, size in ((Wish(), (10, 8)), (Wish(), (40, 24)), (Wish(scale=2), (30, 24))):
        with pytest.raises(UsageError, match=r"the reference of a\.png is"):
            subjects.prepare(small, "a.png", wish=wish, reference=noise(*size))
    with pytest.raises(UsageError, match="leave --reference out"):
        subjects.prepare(small, "a.png", wish=Wish(downscale=2), reference=noise(20, 16))


@pytest.mark.parametrize(
    "wrong",
    [{"scale": 1}, {"scale": 99}, {"downscale": 0}, {"scale": 3, "downscale": 2}, {"crop": "x"}],
)
def test_wishes_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Wish(**wrong)


def test_transparency_depth_and_gray_are_shown_as_a_screen_does() -> None:
    pixels = np.full((2, 2, 1), 65535, dtype=np.uint16)
    alpha = np.array([[65535, 0], [0, 65535]], dtype=np.uint16)
    shown = subjects.flatten(Picture(pixels=pixels, alpha=alpha), (10, 20, 30))
    assert (shown.dtype, shown.shape) == (np.uint8, (2, 2, 3))
    assert shown[0].tolist() == [[255, 255, 255], [10, 20, 30]]


def test_only_the_first_frame_is_compared_and_it_is_said() -> None:
    film = dataclasses.replace(Picture(pixels=noise(8, 8)), frames_total=3)
    (note,) = subjects.prepare(film, "a.gif", wish=Wish()).notes
    assert note.startswith("a.gif has 3 frames or pages")


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"text")
    with pytest.raises(PictureReadError):
        subjects.read(tmp_path / "a.png", Wish())


# ------------------------------------------------------------------------------------------ results


def subject_of(width: int = 24, height: int = 18, **wish: object) -> subjects.Subject:
    return subjects.prepare(
        Picture(pixels=noise(width, height) // 4 + 90),
        "a.png",
        wish=Wish(**wish),  # pyright: ignore[reportArgumentType]
    )


def shipped() -> tuple[str, ...]:
    """Those that stand in for others at smaller scales are not asked for."""
    stand_ins = re.compile(r".*-x[23]")
    return tuple(
        r.name for r in catalog.rows() if r.kind == "shipped" and not stand_ins.fullmatch(r.name)
    )


def test_bicubic_is_first_and_nothing_runs_twice() -> None:
    seen: list[tuple[str, float]] = []
    outcome = results.run(
        [subject_of(scale=2)],
        ["nearest", "Bicubic", "nearest", "lanczos"],
        on_progress=lambda name, share: seen.append((name, share)),
    )
    (comparison,) = outcome.comparisons
    assert [r.model for r in comparison.results] == ["bicubic", "nearest", "lanczos"]
    assert [r.parameters for r in comparison.results] == [None] * 3
    assert all(r.time_s > 0 and r.psnr_db is None for r in comparison.results)
    enlarged = comparison.lr.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(comparison.results[1].pixels, enlarged)
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert seen[-1] == ("lanczos", 1.0)


def test_measured_as_the_papers_do() -> None:
    subject = subject_of(48, 40, downscale=2)
    (comparison,) = results.run([subject], ["nearest"]).comparisons
    for result in comparison.results:
        assert comparison.truth is not None
        expected = metrics.psnr_y(result.pixels, comparison.truth, border_px=2)
        assert result.psnr_db == expected
        assert result.ssim is not None
        assert 0.0 < result.ssim < 1.0
    best = comparison.best("psnr_db")
    assert best == max(r.psnr_db for r in comparison.results if r.psnr_db is not None)


def test_where_nothing_can_be_measured() -> None:
    (tiny,) = results.run([subject_of(8, 8, downscale=2)], []).comparisons
    # 4 of 8 rows are left: enough for an error, not for a window of SSIM.
    assert tiny.results[0].psnr_db is not None
    assert (tiny.results[0].ssim, tiny.best("psnr_db")) == (None, None)
    (none,) = results.run([subject_of(6, 6, downscale=3)], []).comparisons
    assert none.results[0].psnr_db is None


def test_a_part_is_what_it_is_in_the_whole_picture() -> None:
    picture = Picture(pixels=noise(200, 160))
    part = subjects.prepare(picture, "a.png", wish=Wish(scale=2, crop="70,60,30,20"))
    (comparison,) = results.run([part], ["lanczos"]).comparisons
    from waifu4x.models import open_upscaler

    large = open_upscaler("lanczos").upscale(picture, Target(scale=2))[0].pixels
    np.testing.assert_array_equal(comparison.results[1].pixels, large[120:160, 140:200])
    assert not comparison.is_whole
    assert comparison.window == Crop(x=0, y=0, width_px=30, height_px=20)


def test_a_network_at_hand_is_run_with_its_facts() -> None:
    outcome = results.run([subject_of()])
    assert outcome.left_out == ()
    (comparison,) = outcome.comparisons
    assert [r.model for r in comparison.results] == ["bicubic", *shipped()]
    network = comparison.results[1]
    assert network.parameters is not None
    assert network.parameters > 1000
    assert network.pixels.shape == (72, 96, 3)
    told = captions.of_result(network, comparison)
    assert told.parameters == f"{captions.count(network.parameters)} parameters"
    assert told.time.endswith("s")


def test_transparent_pictures_are_compared_over_the_background() -> None:
    alpha = np.zeros((10, 10), dtype=np.uint8)
    picture = Picture(pixels=noise(10, 10), alpha=alpha)
    subject = subjects.prepare(picture, "a.png", wish=Wish(scale=2, background=(1, 2, 3)))
    (comparison,) = results.run([subject], []).comparisons
    assert (comparison.results[0].pixels == (1, 2, 3)).all()


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(weights, "download", refuse)
    models, damaged = results.at_hand()
    assert models == shipped()
    assert damaged == ()
    with pytest.raises(OfflineError):
        results.run([subject_of()], ["x4plus"], offline=True)
    with pytest.raises(UnknownModelError):
        results.run([subject_of()], ["waifu5x"])
    with pytest.raises(UsageError, match="no picture"):
        results.run([], None)


def test_a_damaged_model_is_left_out_and_told(own_home: Path) -> None:
    file = weights.resolve("waifu4x-clean").path
    row = weights.add(file, name="mine")
    again = weights.add(file, name="other")
    folder = weights.models_folder()
    # Of another size it is known to be damaged; of the same size only once it is hashed.
    (folder / str(row.file)).write_bytes(b"short")
    (folder / str(again.file)).write_bytes(bytes(int(again.size_bytes or 0)))
    outcome = results.run([subject_of()])
    assert [left.model for left in outcome.left_out] == ["mine", "other"]
    assert "is damaged" in outcome.left_out[0].reason
    assert "expected sha256" in outcome.left_out[1].reason
    assert len(outcome.comparisons[0].results) == 1 + len(shipped())


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    file = weights.resolve("waifu4x-clean").path
    paths = [tmp_path / name / "net.safetensors" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(file.read_bytes())
    (comparison,) = results.run([subject_of()], paths).comparisons
    assert [r.model for r in comparison.results] == ["bicubic", "net", "net (2)"]


def test_bicubic_reads_as_in_the_papers(shared: Path) -> None:
    butterfly = subjects.read(shared / "data/bench/Set5/butterfly.png", Wish(downscale=4))
    result = results.run([butterfly], []).comparisons[0].results[0]
    assert result.psnr_db == pytest.approx(22.10, abs=0.005)
    assert result.ssim == pytest.approx(0.737, abs=0.0005)


def test_words() -> None:
    assert [captions.seconds(s) for s in (0.0001, 0.0123, 0.21, 9.99, 12.34, 59.96, 125.4)] == [
        *("1 ms", "12 ms", "0.21 s", "9.99 s", "12.3 s", "1 min 00 s", "2 min 05 s")
    ]
    assert [captions.count(n) for n in (512, 8032, 620_336, 999_499, 16_697_987)] == [
        *("512", "8.0 k", "620 k", "999 k", "16.7 M")
    ]
    assert captions.decibels(math.inf) == "identical"
    assert captions.decibels(28.416) == "28.42 dB"


def test_pictures_are_read_from_files(tmp_path: Path) -> None:
    pictures.write(Picture(pixels=noise(12, 9)), tmp_path / "lr.png")
    pictures.write(Picture(pixels=noise(24, 18)), tmp_path / "hr.png")
    subject = subjects.read(tmp_path / "lr.png", Wish(), reference=tmp_path / "hr.png")
    assert (subject.name, subject.scale) == ("lr.png", 2)
