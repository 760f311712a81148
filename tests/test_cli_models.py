"""``waifu4x models``: data on stdout, words on stderr, errors raised for the app to say."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from waifu4x import catalog, weights
from waifu4x.catalog import DEFAULT_MODEL, CatalogRow
from waifu4x.cli import models
from waifu4x.errors import (
    HashMismatchError,
    OfflineError,
    UnknownModelError,
    UsageError,
    WeightsError,
)

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()

whole = typer.Typer()
whole.add_typer(models.app, name="models")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(whole, ["models", *arguments])


def lines(*arguments: str) -> list[dict[str, Any]]:
    done = run(*arguments)
    assert done.exception is None
    return [json.loads(line) for line in done.stdout.splitlines()]


def raised(*arguments: str) -> BaseException:
    done = run(*arguments)
    assert done.exception is not None
    return done.exception


@pytest.fixture(autouse=True)
def two_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue is one shipped model, one download and the filters."""
    facts: dict[str, Any] = {
        "architecture": "srresnet",
        "scale": 4,
        "licence": "MIT",
        "good_for": "[bold]tests[/bold]",
        "sha256": SHA256,
        "size_bytes": len(CONTENT),
    }
    boxed = CatalogRow(name=DEFAULT_MODEL, kind="shipped", file="boxed.safetensors", **facts)
    far = CatalogRow(
        name="far", kind="download", file="far.pth", url="https://models.example/far.pth",
        aliases=("away",), **facts,
    )  # fmt: skip
    box = tmp_path / "box"
    box.mkdir()
    (box / "boxed.safetensors").write_bytes(CONTENT)
    monkeypatch.setattr(catalog, "shipped_folder", lambda: box)
    monkeypatch.setattr(catalog, "rows", lambda: (boxed, far, *catalog.RESAMPLERS))


@pytest.fixture
def cached(own_home: Path) -> Path:
    """The file of the download, in the cache."""
    path = own_home / "weights" / "far.pth"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that the (stood-in) loader takes for a checkpoint."""

    def load(path: Path, *, name: str, licence: str | None) -> Any:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return SimpleNamespace(
            architecture="srresnet",
            scale=2,
            pre_upsampled=False,
            any_scale=False,
            sha256=sha256,
            licence=licence,
        )

    module = ModuleType("waifu4x.model_files.checkpoints")
    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "waifu4x.model_files.checkpoints", module)
    path = tmp_path / "mine.pth"
    path.write_bytes(CONTENT)
    return path


def test_list_shows_each_model_and_its_state(cached: Path) -> None:
    done = run("list")
    assert done.exception is None
    assert done.stderr == ""
    text = done.stdout.splitlines()
    assert text[0].split() == [DEFAULT_MODEL, "4x", "0.0", "MB", "shipped"]
    assert text[1].strip() == "[bold]tests[/bold]"  # shown, not obeyed
    assert text[2].split() == ["far", "4x", "0.0", "MB", "downloaded"]
    assert text[4].split() == ["nearest", "any", "built", "in"]
    assert len(text) == 2 * 6


def test_list_as_json(cached: Path) -> None:
    told = {facts["name"]: facts for facts in lines("list", "--json")}
    assert list(told) == [DEFAULT_MODEL, "far", "nearest", "bilinear", "bicubic", "lanczos"]
    assert told["far"] == {
        "name": "far", "kind": "download", "architecture": "srresnet", "scale": 4,
        "licence": "MIT", "good_for": "[bold]tests[/bold]",
        "url": "https://models.example/far.pth", "file": "far.pth", "sha256": SHA256,
        "size_bytes": 7, "aliases": ["away"], "up_to": {}, "state": "downloaded",
        "path": str(cached),
    }  # fmt: skip
    assert told["bicubic"]["path"] is None


def test_show_by_alias() -> None:
    (facts,) = lines("show", "AWAY", "--json")
    assert (facts["name"], facts["state"]) == ("far", "not downloaded")
    text = run("show", "away").stdout
    assert SHA256 in text
    assert "https://models.example/far.pth" in text
    assert isinstance(raised("show", "awayy"), UnknownModelError)


def test_download_prints_where_the_files_lie(cached: Path, tmp_path: Path) -> None:
    done = run("download", "far", "bicubic", DEFAULT_MODEL)
    assert done.exception is None
    assert done.stdout.splitlines() == [str(cached), str(tmp_path / "box" / "boxed.safetensors")]
    assert "bicubic is a resampling filter" in done.stderr


def test_download_of_a_misspelt_name_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(weights, "resolve", lambda name, **_: begun.append(name))
    assert isinstance(raised("download", "far", "farr"), UnknownModelError)
    assert begun == []


def test_download_offline() -> None:
    assert isinstance(raised("download", "far", "--offline"), OfflineError)


def test_no_bar_is_drawn_where_nobody_looks(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(name: str, *, offline: bool, on_progress: weights.Progress) -> Any:
        on_progress(3, 7)
        on_progress(7, 7)
        return SimpleNamespace(path=cached)

    monkeypatch.setattr(weights, "resolve", resolve)
    done = run("download", "far")
    assert done.exception is None
    assert (done.stdout, done.stderr) == (f"{cached}\n", "")


def test_verify(cached: Path, tmp_path: Path) -> None:
    assert [line.split()[:2] for line in run("verify").stdout.splitlines()] == [
        ["ok", DEFAULT_MODEL],
        ["ok", "far"],
    ]
    cached.write_bytes(b"w3ights")
    done = run("verify", "--json")
    assert isinstance(done.exception, HashMismatchError)
    assert str(done.exception).startswith("1 of 2 files cannot be used: far; ")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [facts["state"] for facts in told] == ["shipped", "damaged"]
    assert told[1]["got_sha256"] == hashlib.sha256(b"w3ights").hexdigest()
    cached.unlink()
    (tmp_path / "box" / "boxed.safetensors").unlink()
    done = run("verify")
    assert type(done.exception) is WeightsError
    assert done.stdout.split()[:2] == ["missing", DEFAULT_MODEL]


def test_add_path_remove(checkpoint: Path, own_home: Path) -> None:
    done = run("add", str(checkpoint), "--name", "own", "--licence", "CC0-1.0")
    assert done.exception is None
    assert done.stdout == ""
    assert SHA256 in done.stderr
    assert "-m own" in done.stderr
    (facts,) = lines("show", "own", "--json")
    assert (facts["kind"], facts["licence"], facts["scale"]) == ("user", "CC0-1.0", 2)

    where = run("path", "own").stdout
    assert Path(where.rstrip("\n")).read_bytes() == CONTENT
    assert where.count("\n") == 1
    assert isinstance(raised("add", str(checkpoint), "--name", "own"), UsageError)
    assert run("add", str(checkpoint), "--name", "own", "--overwrite").exception is None

    done = run("remove", "own")
    assert (done.exception, done.stdout) == (None, "")
    assert "removed: " in done.stderr
    assert isinstance(raised("path", "own"), UnknownModelError)
    assert isinstance(raised("remove", DEFAULT_MODEL), UsageError)


def test_path_never_downloads() -> None:
    assert isinstance(raised("path", "far"), OfflineError)
    assert isinstance(raised("path", "bicubic"), UsageError)


def test_every_command_has_an_example() -> None:
    group = typer.main.get_command(models.app)
    commands = group.commands  # type: ignore[attr-defined]
    assert set(commands) == {
        *("list", "show", "download", "verify", "add", "remove", "path", "blend"),
    }
    for name in commands:
        done = run(name, "--help")
        assert done.exit_code == 0
        assert f"Example: waifu4x models {name}" in " ".join(done.stdout.split())
