"""What tests share: where other people's pictures and weights lie, and a home of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from waifu4x.upscaler import Upscaler

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Published weights and benchmark pictures; tests that need them skip without them."""
    folder = Path(os.environ.get("WAIFU4X_SHARED", ROOT.parent / "shared"))
    if not (folder / "weights").is_dir():
        pytest.skip("needs the published weights and pictures (WAIFU4X_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own and never touches the user's, nor the network."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("WAIFU4X_HOME", str(home))
    # Whatever else is installed: most tests look into PyTorch's way of running a network.
    monkeypatch.setenv("WAIFU4X_ENGINE", "torch")
    return home


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that pictures are enlarged."""
    made: list[int] = []
    original = Upscaler.upscale_all

    def count(self: Upscaler, pictures: Any, *arguments: Any, **options: Any) -> Any:
        made.append(len(pictures))
        return original(self, pictures, *arguments, **options)

    monkeypatch.setattr(Upscaler, "upscale_all", count)
    return made
