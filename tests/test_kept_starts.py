"""A model that has run here starts again without torch, and in no case as another one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from waifu4x import devices, kept_starts, models
from waifu4x.engines import openvino_cache
from waifu4x.engines.openvino_compiled import CompiledNetwork
from waifu4x.model_files import checkpoints
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig
from waifu4x.pictures import Picture
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler

pytest.importorskip("openvino")

PICTURE = Picture(pixels=np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))


@pytest.fixture(autouse=True)
def _only_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "may_have_accelerator", lambda: False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    network = SRVGGNetCompact(SRVGGNetCompactConfig(channels=8, convs=1, scale=2))
    checkpoints.save(network, path, metadata={"licence": "CC0-1.0"})
    return path


def opened(tiny: Path, **how: Any) -> Upscaler:
    return models.open_upscaler(tiny, **{"engine": "openvino", "device": "cpu", **how})


def is_recalled(upscaler: Upscaler) -> bool:
    return isinstance(upscaler.model, kept_starts.KeptModel)


def test_the_second_time_it_is_recalled_and_gives_the_same(tiny: Path) -> None:
    first, second = opened(tiny, tile_px=16), opened(tiny, tile_px=16)
    assert not is_recalled(first)
    assert is_recalled(second)
    one, told = first.upscale(PICTURE, Target(scale=2))
    other, told_again = second.upscale(PICTURE, Target(scale=2))
    np.testing.assert_array_equal(one.pixels, other.pixels)
    for facts in (told, told_again):
        assert (facts.engine, facts.device, facts.tile_px) == ("openvino", "cpu", 15)
    assert told.precision == told_again.precision
    for name in ("name", "path", "sha256", "licence", "scales", "metadata", "architecture"):
        assert getattr(first.model, name) == getattr(second.model, name), name
    assert first.runner is not None
    assert second.runner is not None
    grid = first.runner.plan(20, 30)
    assert first.runner.main_memory_bytes(grid) == second.runner.main_memory_bytes(grid)


def test_its_network_is_loaded_when_it_is_asked_for(tiny: Path) -> None:
    first, second = opened(tiny).model, opened(tiny).model
    assert not isinstance(first, str)
    assert not isinstance(second, str)
    assert "network" not in vars(second)
    assert isinstance(second.network, SRVGGNetCompact)
    assert second.network is second.network
    with pytest.raises(AttributeError, match="no wheels"):
        second.wheels  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize("kind", ["facts", "compiled"])
@pytest.mark.parametrize("damage", ["gone", "cut off", "changed"])
def test_what_is_damaged_is_made_anew(tiny: Path, own_home: Path, kind: str, damage: str) -> None:
    opened(tiny)
    (file,) = (
        path
        for path in (own_home / "engines").iterdir()
        if (b'"facts"' in path.read_bytes()) == (kind == "facts")
    )
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-9] if damage == "cut off" else content[:-9] + b"x" * 9)
    assert not is_recalled(opened(tiny))
    assert is_recalled(opened(tiny))


@pytest.mark.parametrize(
    "how", [{"precision": "fp32"}, {"engine": "torch"}, {"device": "auto"}, {"engine": "auto"}]
)
def test_it_is_the_same_choice_that_is_recalled(tiny: Path, how: dict[str, str]) -> None:
    opened(tiny)
    same = how in ({"device": "auto"}, {"engine": "auto"})
    # The tests say that ``auto`` is torch.
    assert is_recalled(opened(tiny, **how)) is (same and "engine" not in how)


def test_where_there_may_be_a_gpu_torch_is_asked(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tiny)
    monkeypatch.setattr(devices, "may_have_accelerator", lambda: True)
    assert not is_recalled(opened(tiny, device="auto"))
    assert is_recalled(opened(tiny, device="cpu"))


@pytest.mark.parametrize("fact", ["torch", "openvino", "waifu4x", "OMP_NUM_THREADS", "FORMAT"])
def test_other_versions_and_threads_are_not_recalled(
    tiny: Path, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tiny)
    if fact == "FORMAT":
        monkeypatch.setattr(kept_starts, "FORMAT", 0)
    elif fact == "waifu4x":
        monkeypatch.setattr(kept_starts, "__version__", "0.0.0")
    elif fact == "OMP_NUM_THREADS":
        monkeypatch.setenv(fact, "7")
    else:
        real = kept_starts.metadata.version
        monkeypatch.setattr(
            kept_starts.metadata, "version", lambda name: "0" if name == fact else real(name)
        )
    assert not is_recalled(opened(tiny))


@pytest.mark.parametrize("fact", ["openvino", "processor", "capabilities"])
def test_a_folder_from_another_machine_is_not_trusted(
    tiny: Path, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tiny)
    real = openvino_cache.read

    def read(folder: Path, key: str) -> bytes | None:
        content = real(folder, key)
        if content is None or '"start"' not in key:
            return content
        kept = json.loads(content)
        kept["compiled"] = json.dumps({**json.loads(kept["compiled"]), fact: "another"})
        return json.dumps(kept).encode()

    monkeypatch.setattr(openvino_cache, "read", read)
    assert not is_recalled(opened(tiny))


def test_nan_is_computed_again_by_the_network_itself(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = opened(tiny, precision="fp32").upscale(PICTURE, Target(scale=2))
    recalled = (opened(tiny), opened(tiny))[1]
    assert is_recalled(recalled)
    assert recalled.runner is not None
    if recalled.runner.precision == "fp32":
        pytest.skip("this CPU has no bf16")
    run = CompiledNetwork.run

    def spoiled(engine: CompiledNetwork, batch: np.ndarray) -> np.ndarray:
        result = run(engine, batch)
        result[:, 0, 0] = np.nan
        return result

    monkeypatch.setattr(CompiledNetwork, "run", spoiled)
    result, facts = recalled.upscale(PICTURE, Target(scale=2))
    assert facts.notes == ("bf16 gave NaN or infinity: such tiles were computed again in fp32",)
    assert np.abs(result.pixels.astype(int) - expected.pixels).max() <= 1


def test_the_command_does_without_torch(tiny: Path, tmp_path: Path, own_home: Path) -> None:
    import waifu4x

    waifu4x.write(PICTURE, tmp_path / "a.png")
    script = f"""
import sys
from waifu4x.cli import app
sys.argv = ["waifu4x", "upscale", {str(tmp_path / "a.png")!r}, "-m", {str(tiny)!r}, "-s", "2",
    "-g", "-1", "--engine", "openvino", "--overwrite", "--quiet", "-o", {str(tmp_path / "b.png")!r}]
app._leave = lambda code, signals: print(code, "torch" in sys.modules)
app.main()
"""
    results = []
    for expected in ("0 True", "0 False"):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stdout.strip() == expected, done.stderr
        results.append((tmp_path / "b.png").read_bytes())
    assert results[0] == results[1]
