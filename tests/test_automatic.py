"""`-m auto`: each picture gets the model for its kind, and says which."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from waifu4x import catalog, files, open_upscaler, pictures
from waifu4x.auto import automatic, picking
from waifu4x.auto.automatic import AutoUpscaler
from waifu4x.cli.app import app
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Options, Upscaler

EXAMPLES = Path(__file__).parents[1] / "examples"
DARK = Picture(pixels=np.zeros((4, 4, 3), np.uint8))
LIGHT = Picture(pixels=np.full((4, 4, 3), 255, np.uint8))


def look(pixels: np.ndarray) -> picking.Look:
    """Dark pictures are photographs; all are compressed."""
    is_art = bool(pixels.mean() > 100)
    return picking.Look(
        kind="art" if is_art else "photo",
        compressed=True,
        art_share=float(is_art),
        compressed_share=1.0,
    )


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(picking, "look", look)
    return []


def auto(opened: list[str], *, scale: float | None = 4) -> AutoUpscaler:
    """Filters in the place of networks."""

    def opener(row: catalog.CatalogRow) -> Upscaler:
        opened.append(row.name)
        return Upscaler(model="lanczos" if "art" in row.name else "nearest")

    return automatic.open_auto(opener, scale=scale, options=Options())


def test_each_picture_gets_its_model_which_is_opened_once(opened: list[str]) -> None:
    upscaler = auto(opened)
    first = list(opened)
    told = [upscaler.upscale(p, Target(scale=2))[1].model for p in (DARK, LIGHT, DARK, LIGHT)]
    assert told == ["nearest", "lanczos", "nearest", "lanczos"]
    assert first == ["waifu4x-art"]
    assert sorted(opened) == ["waifu4x-art", "waifu4x-photo"]


def test_frames_go_by_the_first_of_them(opened: list[str]) -> None:
    frames = [DARK, LIGHT]
    results, facts = auto(opened).upscale_all(frames, Target(scale=2))
    assert facts.model == "nearest"
    assert len(results) == 2


def test_twice_or_less_has_models_of_its_own(opened: list[str]) -> None:
    for scale in (2, 1.5):
        upscaler = auto(opened, scale=scale)
        assert upscaler.rows["waifu4x-photo"].name == "waifu4x-photo-x2"
    assert auto(opened, scale=None).rows["waifu4x-photo"].name == "waifu4x-photo"
    assert auto(opened, scale=2).identity != auto(opened, scale=3).identity


def test_what_it_chooses_from_is_alike_and_ships() -> None:
    for scale in (2, 4):
        rows = [catalog.for_scale(catalog.find(n), scale) for n in automatic.MODEL_FOR.values()]
        assert {(row.kind, row.scale, row.architecture) for row in rows} == {
            ("shipped", scale, "msrresnet")
        }


def test_a_model_gives_way_to_its_sibling() -> None:
    assert open_upscaler("waifu4x-art", scale=2).name == "waifu4x-art-x2"
    assert open_upscaler("waifu4x-art", scale=2.5).name == "waifu4x-art"
    assert open_upscaler("waifu4x-art").name == "waifu4x-art"


@pytest.mark.parametrize(
    ("example", "quality", "model"),
    [
        ("photo", 60, "waifu4x-photo"),
        ("anime", 60, "waifu4x-art"),
        ("anime", None, "waifu4x-clean"),
    ],
)
def test_it_is_taken_unasked_and_told(
    example: str, quality: int | None, model: str, tmp_path: Path
) -> None:
    source, output = tmp_path / f"{example}.png", tmp_path / "out.png"
    whole = pictures.read(EXAMPLES / f"{example}.png")
    small = whole.with_pixels(whole.pixels[:64, :96].copy(), None)
    files.write_bytes(
        source, pictures.encode(small, format="JPEG" if quality else "PNG", quality=quality)
    )
    done = CliRunner().invoke(app, ["upscale", str(source), "-o", str(output), "--json", "-v"])
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    kind = f"{'photo' if example == 'photo' else 'art'}, {'compressed' if quality else 'clean'}"
    assert facts["model"] == model
    assert facts["picked"].startswith(f"{kind} (")
    assert f"{model} ({kind} (" in done.stderr
    assert pictures.read(output).pixels.shape == (256, 384, 3)
    assert model in CliRunner().invoke(app, ["info", str(output)]).stdout
