"""``waifu4x export``: what it says, and what it refuses before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import toys
from typer.testing import CliRunner

from waifu4x import exporting, weights
from waifu4x.catalog import DEFAULT_MODEL
from waifu4x.cli.app import app
from waifu4x.model_files import checkpoints
from waifu4x.networks.rrdbnet import RRDBNetConfig
from waifu4x.networks.srvggnet import SRVGGNetCompactConfig
from waifu4x.networks.vdsr import VDSRConfig

TINY = SRVGGNetCompactConfig(scale=2, channels=4, convs=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mine() -> Path:
    """A model as a file in the current folder."""
    return saved("mine", TINY, licence="CC0-1.0")


def saved(name: str, config: Any, **facts: str) -> Path:
    path = Path(f"{name}.safetensors")
    checkpoints.save(toys.random_model(config).network, path, metadata=facts)
    return path


def export(*arguments: object) -> Any:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def refused(*arguments: object) -> str:
    done = export(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


def told(done: Any) -> dict[str, str]:
    assert done.exit_code == 0, done.stderr
    return {line[:9].strip(): line[10:] for line in done.stdout.splitlines()}


def test_a_file_here_by_default(mine: Path) -> None:
    done = export(mine, "--to", "torchscript")
    size_mb = Path("mine-x2.pt").stat().st_size / 1e6
    assert told(done) == {
        "wrote": f"mine-x2.pt, {size_mb:.1f} MB",
        "input": "(N, 3, h, w) float32, RGB, 0 to 1",
        "output": "(N, 3, 2·h, 2·w), the same, to be clamped to 0 to 1",
        "tiles": "an overlap of 3 px (input) leaves no seam",  # one for each convolution
        "checked": "run by TorchScript on random pictures, differs from the network by 0.0e+00 "
        "at most",
        "licence": "CC0-1.0",
    }
    assert done.stderr == ""


def test_luma_and_multiples_are_said() -> None:
    done = export(saved("thin", VDSRConfig(depth=2, channels=4)), "--to", "torchscript")
    assert told(done)["input"] == (
        "(N, 1, h, w) float32, luma (Y of BT.601, studio range), 0 to 1, enlarged (bicubic) "
        "beforehand"
    )
    assert told(done)["output"] == "(N, 1, h, w), the same, to be clamped to 0 to 1"
    assert told(done)["wrote"].startswith("thin.pt, ")
    halved = RRDBNetConfig(blocks=1, channels=4, growth=2, unshuffle=2)
    done = export(saved("halved", halved), "--to", "torchscript")
    assert told(done)["input"].endswith("RGB, 0 to 1; h and w multiples of 2")
    assert told(done)["licence"] == "unknown"


def test_json_and_a_folder(mine: Path) -> None:
    done = export(mine, "--to", "safetensors", "--half", "-o", "new/", "--json")
    facts = json.loads(done.stdout)
    made = Path("new/mine-x2.safetensors")
    assert facts["files"] == [str(made)]
    assert facts["size_bytes"] == made.stat().st_size < mine.stat().st_size
    assert (facts["scale"], facts["weights"], facts["licence"]) == ("2", "fp16", "CC0-1.0")
    assert facts["source_sha256"] == checkpoints.load(mine).sha256
    assert 1e-6 < facts["difference"] <= exporting.HALF_BOUND


def test_an_existing_file_is_kept(mine: Path) -> None:
    target = Path("a.pt")
    target.write_bytes(b"old")
    line = refused(mine, "--to", "torchscript", "-o", target)
    assert line == "a.pt exists already: --overwrite replaces it, -o names another"
    assert target.read_bytes() == b"old"
    assert export(mine, "--to", "torchscript", "-o", target, "--overwrite").exit_code == 0
    assert target.read_bytes()[:2] == b"PK"


def test_a_file_that_fails_its_check_is_an_error(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "BOUND", -1.0)
    done = export(mine, "--to", "torchscript")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "error: mine-x2.pt was not written: by TorchScript its values differ from the network's "
        "by 0, where -1 is allowed; try another --to\n"
    )
    assert list(Path().iterdir()) == [mine]


def test_nothing_is_fetched_for_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Any] = []
    monkeypatch.setattr(weights, "resolve", lambda name, **_: fetched.append(name))
    for name in ("bicubic", "vgg19"):
        assert refused(name, "--to", "safetensors") == (
            f"{name} is no network that could be exported: name another, such as {DEFAULT_MODEL}"
        )
    assert refused("waifu4x-clean", "--to", "torchscript", "--half").endswith("no --half")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = refused("waifu4x-clean", "--to", "onnx")
    assert line.startswith("--to onnx needs onnxruntime (")
    assert line.endswith("): pip install 'waifu4x[onnx]'")
    assert fetched == []


def test_names_that_mean_nothing() -> None:
    assert refused("waifu4x-fst", "--to", "onnx").startswith("there is no model called")
    assert refused("none.pth", "--to", "onnx") == "there is no file 'none.pth'"
    assert export("waifu4x-clean", "--to", "coreml").exit_code == 2
    assert export("waifu4x-clean").exit_code == 2


def test_the_help_has_an_example() -> None:
    assert "Example: waifu4x export waifu4x-clean --to onnx" in export("--help").stdout
