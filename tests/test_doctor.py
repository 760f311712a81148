"""The doctor of data sets: what it finds, what it must not find, and the preview."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from waifu4x.errors import TrainError
from waifu4x.resample import resize
from waifu4x.train import symptoms
from waifu4x.train.degrading.degrade import build
from waifu4x.train.doctor import ADVICE, UNUSABLE, Diagnosis, Finding, Kind, examine, preview


def leaves(side_px: int = 192, *, seed: int = 0) -> np.ndarray:
    """(side_px, side_px, 3) uint8, sharp as a good photograph: discs of all sizes over each other.

    This "dead leaves" model has the spectrum of natural pictures (Lee, Mumford & Huang, 2001).
    """
    random = np.random.default_rng(seed)
    fine_px = 2 * side_px  # drawn at twice the size, so that edges are antialiased
    y, x = np.mgrid[:fine_px, :fine_px]
    image = np.zeros((fine_px, fine_px, 3))
    for _ in range(250):
        radius_px = 6.0 / max(0.05, random.random())
        cy, cx = random.uniform(0, fine_px, 2)
        top, left = (max(0, int(c - radius_px)) for c in (cy, cx))
        window = (slice(top, int(cy + radius_px) + 2), slice(left, int(cx + radius_px) + 2))
        inside = (y[window] - cy) ** 2 + (x[window] - cx) ** 2 < radius_px**2
        image[window][inside] = random.uniform(20, 235, 3)
    small = image.reshape(side_px, 2, side_px, 2, 3).mean(axis=(1, 3))
    return np.clip(np.rint(small + random.normal(0, 1.5, small.shape)), 0, 255).astype(np.uint8)


def enlarged(image: np.ndarray, times: float) -> np.ndarray:
    sides = (round(image.shape[0] * times), round(image.shape[1] * times))
    return np.clip(np.rint(resize(image.astype(np.float32), sides)), 0, 255).astype(np.uint8)


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def save(image: np.ndarray, path: Path) -> Path:
    Image.fromarray(image).save(path)
    return path


def look(*folders: Path) -> Diagnosis:
    return examine(folders, scale=4, patch_px=40)


def kinds_of(diagnosis: Diagnosis) -> list[Kind]:
    return [finding.kind for finding in diagnosis.findings]


def test_good_pictures_pass(tmp_path: Path) -> None:
    for seed in range(4):
        save(leaves(seed=seed), tmp_path / f"{seed}.png")
    Image.fromarray(leaves(seed=4)).save(tmp_path / "4.jpg", quality=92)
    done: list[tuple[int, int]] = []
    diagnosis = examine(
        [tmp_path], scale=4, patch_px=24, on_progress=lambda *each: done.append(each)
    )
    assert diagnosis.findings == ()
    assert (diagnosis.pictures_total, diagnosis.pictures_usable) == (5, 5)
    assert diagnosis.megapixels == pytest.approx(5 * 192**2 / 1e6)
    assert diagnosis.crops == 5 * 4
    assert done == [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)]
    # Sharp as they are, they are few.
    assert len(diagnosis.advice) == 1
    assert "5 pictures of 0.2 megapixels are few" in diagnosis.advice[0]


@pytest.mark.parametrize("times", [2, 3, 4])
def test_enlarged_pictures_are_found(tmp_path: Path, times: int) -> None:
    for seed in range(2):
        save(enlarged(leaves(seed=seed), times)[:384, :384], tmp_path / f"{seed}.png")
    diagnosis = look(tmp_path)
    assert kinds_of(diagnosis) == ["upscaled"] * 2
    assert "detail ends at" in diagnosis.findings[0].says
    used = symptoms.effective_resolution(symptoms.luma_of(enlarged(leaves(), times)))
    assert used == pytest.approx(1 / times, abs=0.12)
    assert any("100% of the pictures are upscaled" in line for line in diagnosis.advice)


def test_repeated_pixels_are_found(tmp_path: Path) -> None:
    for times in (2, 3):
        save(leaves(80).repeat(times, axis=0).repeat(times, axis=1), tmp_path / f"{times}.png")
    assert [finding.says for finding in look(tmp_path).of("upscaled")] == [
        "every pixel is repeated 2×2 times",
        "every pixel is repeated 3×3 times",
    ]
    assert symptoms.repeats(symptoms.luma_of(leaves())) == 1
    assert symptoms.repeats(np.zeros((64, 64), np.float32)) == 1
    one_line = np.zeros((64, 64), np.float32)
    one_line[:, 32:] = one_line[32:] = 9.0
    assert symptoms.repeats(one_line) == 1


def test_small_pictures_have_no_spectrum() -> None:
    assert symptoms.effective_resolution(np.zeros((127, 500), np.float32)) is None
    assert symptoms.effective_resolution(np.zeros((128, 128), np.float32)) is not None


def test_compressed_pictures_are_found_by_their_tables(tmp_path: Path) -> None:
    for quality in (20, 60, 90):
        Image.fromarray(leaves(seed=quality)).save(tmp_path / f"{quality}.jpg", quality=quality)
    assert [finding.says for finding in look(tmp_path).of("compressed")] == [
        "a JPEG of quality 20",
        "a JPEG of quality 60",
    ]


@pytest.mark.parametrize("quality", [1, 5, 20, 40, 50, 75, 90, 100])
def test_the_quality_is_that_of_the_encoder(quality: int) -> None:
    stream = io.BytesIO()
    Image.fromarray(leaves(16)).save(stream, "JPEG", quality=quality)
    tables: dict[int, list[int]] = getattr(Image.open(stream), "quantization", {})
    # Below 8 libjpeg limits most steps to 255.
    assert symptoms.jpeg_quality(tables[0]) == pytest.approx(quality, abs=2 if quality > 8 else 12)


def test_compressed_pictures_are_found_by_their_blocks(tmp_path: Path) -> None:
    """Of former JPEGs, the grid of which may begin anywhere by now."""
    save(as_jpeg(leaves(), 20), tmp_path / "0.png")
    save(as_jpeg(leaves(seed=1), 20)[3:, 5:], tmp_path / "1.png")
    Image.fromarray(as_jpeg(leaves(seed=2), 20)).save(tmp_path / "2.jpg", quality=97)
    says = [finding.says for finding in look(tmp_path).of("compressed")]
    assert len(says) == 3
    assert all("blocks of 8 px" in each for each in says)
    strengths = [symptoms.blockiness(symptoms.luma_of(as_jpeg(leaves(), q))) for q in (20, 60, 95)]
    assert strengths == sorted(strengths, reverse=True)
    assert symptoms.blockiness(np.zeros((31, 80), np.float32)) == 0.0


def test_duplicates_exact_and_near(tmp_path: Path) -> None:
    picture = leaves(320)
    save(picture, tmp_path / "a.png")
    save(picture, tmp_path / "b.bmp")
    Image.fromarray(picture).save(tmp_path / "c.jpg", quality=85)
    save(np.asarray(Image.fromarray(picture).resize((170, 170))), tmp_path / "d.png")
    save(leaves(320, seed=1), tmp_path / "e.png")
    findings = look(tmp_path).findings
    assert [(finding.kind, finding.path.name) for finding in findings] == [
        ("duplicate", "b.bmp"),
        ("near-duplicate", "c.jpg"),
        ("near-duplicate", "d.png"),
    ]
    assert findings[0].says == f"the same as {tmp_path / 'a.png'}"
    assert findings[1].says == f"nearly the same as {tmp_path / 'a.png'}"


def test_many_fingerprints_are_compared_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    prints = random.random((50, symptoms.HASH_BITS)) < 0.5
    prints[33], prints[49] = prints[7], prints[7]
    prints[49, :12] ^= True
    prints[40] = prints[5]
    prints[40, :13] ^= True
    found = symptoms.alike(prints, distance_bits=12)
    assert found == [(7, 33), (7, 49)]
    monkeypatch.setattr(symptoms, "_COMPARED_AT_ONCE", 150)
    assert symptoms.alike(prints, distance_bits=12) == found


def test_everything_else_that_is_found(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"junk")
    save(leaves(150), tmp_path / "small.png")
    flat = np.full((192, 192, 3), 90, dtype=np.uint8)
    flat[:, 100:] = 130
    save(flat, tmp_path / "flat.png")
    save(flat.transpose(1, 0, 2), tmp_path / "flat2.png")
    save(leaves(seed=3)[..., 0], tmp_path / "gray.png")
    save(leaves(seed=4)[..., :1].repeat(3, axis=2), tmp_path / "grayrgb.png")
    save((leaves(seed=5)[..., 0].astype(np.uint16) * 257), tmp_path / "gray16.png")
    alpha = np.full((192, 192, 1), 255, np.uint8)
    save(np.concatenate([leaves(seed=6), alpha], axis=2), tmp_path / "opaque.png")
    alpha[0, 0] = 254
    save(np.concatenate([leaves(seed=7), alpha], axis=2), tmp_path / "transparent.png")
    diagnosis = look(tmp_path)
    assert [(finding.kind, finding.path.stem) for finding in diagnosis.findings] == [
        ("unreadable", "broken"),
        ("small", "small"),
        ("flat", "flat"),
        ("flat", "flat2"),
        ("gray", "flat"),
        ("gray", "flat2"),
        ("gray", "gray"),
        ("gray", "gray16"),
        ("gray", "grayrgb"),
        ("transparent", "transparent"),
    ]
    assert "is not a picture" in diagnosis.findings[0].says
    assert diagnosis.findings[1].says == "150×150 px, less than the crop of 160 px"
    assert diagnosis.pictures_usable == 9 - len([k for k in kinds_of(diagnosis) if k in UNUSABLE])
    assert json.loads(json.dumps(diagnosis.facts()))["findings"][1]["kind"] == "small"
    assert set(ADVICE) >= set(kinds_of(diagnosis))


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no pictures in"):
        look(tmp_path)
    with pytest.raises(TrainError, match="is no folder"):
        look(tmp_path / "absent")
    save(leaves(64), tmp_path / "a.png")
    diagnosis = look(tmp_path)
    assert (diagnosis.pictures_usable, diagnosis.crops, diagnosis.megapixels) == (0, 0, 0.0)
    assert "no picture can be used" in diagnosis.advice[0]


def test_the_preview_shows_crops_and_what_becomes_of_them(tmp_path: Path) -> None:
    for seed in range(2):
        save(leaves(200, seed=seed), tmp_path / f"{seed}.png")
    save(leaves(100), tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"junk")
    degradation = build("bicubic", scale=4)
    sheet = preview([tmp_path], degradation, seed=0)
    assert (sheet.shape, sheet.dtype) == ((8 + 192 + 8 + 192 + 8, 6 * 200 + 8, 3), np.uint8)
    for column in range(6):
        left = 8 + column * 200
        hr, below = (sheet[top : top + 192, left : left + 192] for top in (8, 208))
        lr = below[::4, ::4]
        np.testing.assert_array_equal(lr, degradation(hr, np.random.default_rng(0)))
        np.testing.assert_array_equal(below, lr.repeat(4, axis=0).repeat(4, axis=1))
    np.testing.assert_array_equal(sheet, preview([tmp_path], degradation, seed=0))
    assert (sheet != preview([tmp_path], degradation, seed=1)).any()


def test_a_preview_of_nothing(tmp_path: Path) -> None:
    save(leaves(100), tmp_path / "small.png")
    with pytest.raises(TrainError, match="at least 192 px"):
        preview([tmp_path], build("bicubic", scale=4), seed=0)


@pytest.mark.parametrize("kind", ["art", "photo"])
def test_thresholds_on_true_pictures(shared: Path, kind: str, tmp_path: Path) -> None:
    """A sample of what the thresholds were measured on: good ones pass, spoilt ones do not."""
    paths = sorted((shared / "data" / "train" / kind).glob("*.avif"))[5::90][:8]
    if not paths:
        pytest.skip("needs training pictures")
    crops = []
    for number, path in enumerate(paths):
        with Image.open(path) as opened:
            crops.append(np.asarray(opened.convert("RGB"))[:256, :256])
        save(crops[-1], tmp_path / f"{number}.bmp")
    findings: list[Finding] = [f for f in look(tmp_path).findings if f.kind != "gray"]
    assert len(findings) <= 1
    for number, crop in enumerate(crops):
        save(enlarged(crop, 2), tmp_path / f"{number}.bmp")
    assert len(look(tmp_path).of("upscaled")) >= len(paths) - 1
