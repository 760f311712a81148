"""SIGINT and SIGTERM in the middle of the work: the right code, and nothing half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from waifu4x import pictures
from waifu4x.model_files import checkpoints
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def _sensitive() -> None:
    # A shell's background job inherits a SIGINT that is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(number: signal.Signals, command: list[str]) -> tuple[int, str]:
    """Start the program, wait for its first line, send the signal: its code and its words."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "waifu4x", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=_sensitive,
    ) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        time.sleep(0.2)
        assert process.poll() is None, told + process.stderr.read()
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    return process.returncode, told + rest


def _pictures(folder: Path) -> list[str]:
    """One that takes no time, and one that takes a minute."""
    rng = np.random.default_rng(0)
    for name, side_px in (("small", 16), ("large", 1200)):
        pixels = rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [str(folder / "small.png"), str(folder / "large.png")]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_while_the_network_runs(tmp_path: Path, number: signal.Signals, code: int) -> None:
    inputs = _pictures(tmp_path)
    weights = tmp_path / "tiny.safetensors"
    checkpoints.save(
        SRVGGNetCompact(SRVGGNetCompactConfig(channels=24, convs=8)), weights, metadata={}
    )
    out = tmp_path / "out"
    command = ["upscale", *inputs, "-m", str(weights), "-t", "16", "-o", f"{out}/"]
    got, told = _interrupt(number, command)
    assert got == code
    assert "Traceback" not in told
    assert "small.png" in told
    assert "large.png" not in told
    assert sorted(path.name for path in out.iterdir()) == [".waifu4x", "small.png"]
    assert pictures.read(out / "small.png").width_px == 64


def test_the_library_leaves_signals_alone() -> None:
    """The handler is the program's alone: importing the library changes no signal."""
    import waifu4x

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert waifu4x.open_upscaler("nearest").name == "nearest"
    assert torch.zeros(1).sum() == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("code", [0, 3])
def test_what_keeps_the_process_alive_at_its_end_is_left_by_a_later_signal(code: int) -> None:
    """A store that does not answer: threads are waited for, but not against the user's will."""
    script = f"""
import threading
from waifu4x.cli import app
def work():
    threading.Thread(target=threading.Event().wait).start()
    print("said")
    raise SystemExit({code})
app._PATIENCE_S = 0.0
app.app = work
app.main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_sensitive,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    ) as process:
        assert process.stdout is not None
        # Written when all else is done, and not held back until the end.
        assert process.stdout.readline() == "said\n"
        give_up_s = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < give_up_s:
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
    assert process.returncode == code
