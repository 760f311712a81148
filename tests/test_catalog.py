"""The catalogue: every row is complete, unambiguous and found; an unknown name gets an offer."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from waifu4x import catalog
from waifu4x.auto import automatic
from waifu4x.catalog import DEFAULT_MODEL, CatalogRow
from waifu4x.errors import UnknownModelError, UsageError, WeightsError
from waifu4x.networks import NETWORKS

ROWS = catalog.rows()
WEIGHTED = [row for row in ROWS if row.kind != "resample"]
FEATURES = [row for row in ROWS if row.kind == "features"]


def test_every_name_and_alias_means_one_model() -> None:
    counts = Counter(name.casefold() for row in ROWS for name in row.names)
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(
    ("asked", "taken"),
    [(1.5, "srcnn-x2"), (2, "srcnn-x2"), (2.1, "srcnn-x3"), (3, "srcnn-x3"), (3.5, "srcnn"),
     (4, "srcnn"), (8, "srcnn"), (None, "srcnn")],
)  # fmt: skip
def test_the_least_sibling_that_is_enough_is_taken(asked: float | None, taken: str) -> None:
    assert catalog.for_scale(catalog.find("srcnn"), asked).name == taken


@pytest.mark.parametrize("row", WEIGHTED, ids=lambda row: row.name)
def test_rows_with_weights_are_complete(row: CatalogRow) -> None:
    assert row.kind in ("shipped", "download", "features")
    assert re.fullmatch(r"[0-9a-f]{64}", row.sha256 or "")
    assert row.size_bytes is not None
    assert row.size_bytes > 0
    any_scale = row.architecture in ("srcnn", "vdsr", "metasr")
    assert row.scale in ((None,) if row in FEATURES or any_scale else (1, 2, 3, 4, 8))
    assert row in FEATURES or row.architecture in NETWORKS
    assert row.licence
    assert "\n" not in row.good_for
    assert row.file is not None
    assert Path(row.file).name == row.file
    assert Path(row.file).suffix in (".pth", ".safetensors") or row.name == "niqe"


@pytest.mark.parametrize("row", WEIGHTED, ids=lambda row: row.name)
def test_only_downloads_have_an_address_and_it_is_https(row: CatalogRow) -> None:
    if row.kind == "shipped":
        assert row.url is None
        return
    address = urlsplit(row.url or "")
    assert address.scheme == "https"
    assert address.hostname
    assert address.path.endswith(f"/{row.file}")
    assert not address.query


def test_no_two_models_share_bytes_or_a_file_name() -> None:
    assert len({row.sha256 for row in WEIGHTED}) == len(WEIGHTED)
    assert len({(row.file or "").casefold() for row in WEIGHTED}) == len(WEIGHTED)


def test_licences_allow_everyone_to_use_the_model() -> None:
    licences = {row.licence for row in WEIGHTED}
    assert licences <= {"MIT", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "CC-BY-SA-4.0"}


def test_the_plain_filters_have_no_file_and_any_scale() -> None:
    filters = [row for row in ROWS if row.kind == "resample"]
    assert [row.name for row in filters] == ["nearest", "bilinear", "bicubic", "lanczos"]
    for row in filters:
        assert (row.file, row.url, row.sha256, row.size_bytes, row.scale) == (None,) * 5


def test_what_is_taken_unasked_ships_and_comes_first() -> None:
    assert catalog.find(DEFAULT_MODEL).kind == "shipped"
    chosen_from = list(dict.fromkeys(automatic.MODEL_FOR.values()))
    assert [row.name for row in ROWS[: len(chosen_from)]] == chosen_from
    assert DEFAULT_MODEL in chosen_from


def test_shipped_files_are_the_promised_ones() -> None:
    for row in ROWS:
        if row.kind == "shipped":
            data = (catalog.shipped_folder() / str(row.file)).read_bytes()
            assert hashlib.sha256(data).hexdigest() == row.sha256
            assert len(data) == row.size_bytes


def test_the_catalogue_agrees_with_the_published_registry(shared: Path) -> None:
    import json

    published = json.loads((shared / "weights" / "registry.json").read_text())["models"]
    facts = {model["name"]: model for model in published}
    downloads = [row for row in ROWS if row.kind == "download"]
    assert len(downloads) == 10
    for row in downloads:
        known = facts[row.name]
        assert (row.url, row.sha256, row.size_bytes, row.scale, row.architecture) == tuple(
            known[key] for key in ("url", "sha256", "size_bytes", "scale", "architecture")
        )
        assert row.licence == known["licence"]
    vgg = catalog.find("vgg19")
    known = facts[f"torchvision_{vgg.name}"]
    assert vgg.url == known["url"]
    assert str(vgg.sha256).startswith(known["sha256_prefix"])


def test_features_come_last_and_are_named_by_their_hash() -> None:
    assert [row.name for row in FEATURES] == [
        *("vgg19", "alexnet", "vgg16", "squeezenet1_1"),
        *("lpips-alex", "lpips-vgg", "lpips-squeeze", "niqe"),
    ]
    assert list(ROWS[-len(FEATURES) :]) == FEATURES
    # torch.hub's convention: it checks downloads by it.
    for row in FEATURES[:4]:
        assert f"-{str(row.sha256)[:8]}." in str(row.file)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("RealESRGAN_x4plus", "RealESRGAN_x4plus"),
        ("realesrgan_X4PLUS", "RealESRGAN_x4plus"),
        ("x4plus", "RealESRGAN_x4plus"),
        ("Anime6B", "RealESRGAN_x4plus_anime_6B"),
        ("lanczos", "lanczos"),
    ],
)
def test_find_ignores_case_and_knows_aliases(asked: str, found: str) -> None:
    assert catalog.find(asked).name == found


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("RealESRGAN_x4plu", "did you mean RealESRGAN_x4plus"),
        ("bicubik", "did you mean bicubic"),
        ("waifu4xfast", "did you mean waifu4x-fast"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(asked: str, offered: str) -> None:
    with pytest.raises(UnknownModelError, match=re.escape(offered)) as caught:
        catalog.find(asked)
    assert repr(asked) in str(caught.value)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize("asked", ["", "qqqqqqqqqq", "x\ny", "[bold]"])
def test_a_name_near_to_nothing_gets_no_offer_and_one_line(asked: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        catalog.find(asked)
    assert "did you mean" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_catalogue_comes_before_the_users_own() -> None:
    own = CatalogRow(
        name="bicubic", kind="user", architecture="x", scale=4, licence="x", good_for="x"
    )
    mine = CatalogRow(
        name="mine", kind="user", architecture="x", scale=4, licence="x", good_for="x"
    )
    assert catalog.find("bicubic", also=[own]).kind == "resample"
    assert catalog.find("MINE", also=[own, mine]) is mine


def test_a_wheel_finds_the_catalogue_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "waifu4x"
    (package / "_weights").mkdir(parents=True)
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    with pytest.raises(WeightsError, match="installation is incomplete"):
        catalog.shipped_folder()
    (package / "_weights" / catalog.CATALOG_FILE).touch()
    assert catalog.shipped_folder() == package / "_weights"


def test_the_current_directory_is_never_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "weights", tmp_path / "_weights", tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / catalog.CATALOG_FILE).write_text("[[model]]\nname = 'planted'\n")
    monkeypatch.chdir(tmp_path)
    assert tmp_path not in catalog.shipped_folder().parents


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "model = 1",
            "[[model]]\nname = 'x'",
            "= broken",
            "[[model]]\nname = 'x'\nurll = 'y'",
        ),
        "[[model]]\nname = 'x'\nkind = 'features'\nfile = 'x'\nsha256 = ''\nsize_bytes = 1",
        "[[model]]\nname = 'x'\nkind = 'user'\nurl = 'y'\nsha256 = ''\nsize_bytes = 1",
    ],
)
def test_a_damaged_catalogue_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / catalog.CATALOG_FILE).write_text(text)
    monkeypatch.setattr(catalog, "shipped_folder", lambda: tmp_path)
    with pytest.raises(WeightsError, match="is damaged"):
        catalog.rows.__wrapped__()


def test_neither_the_catalogue_nor_the_weights_bring_torch_with_them() -> None:
    code = (
        "import sys, waifu4x.weights, waifu4x.cli.models as m; m.weights.list_available();"
        "print([name for name in ('torch', 'pooch', 'requests', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
