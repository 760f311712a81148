"""``waifu4x upscale`` as tests call it: within this process, or as the real program."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from waifu4x.cli.app import app

ROOT = Path(__file__).parents[1]
_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def upscale(*arguments: object) -> Any:
    """The command with the model that has no weights, within this process."""
    options = ["upscale", "-m", "nearest", *map(str, arguments)]
    done = CliRunner().invoke(app, options)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.stderr
    return done


def program(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own; what hangs is an error."""
    command = [sys.executable, "-W", "error", "-m", "waifu4x", "upscale", "-m", "nearest"]
    done = subprocess.run(
        [*command, *map(os.fsencode, map(str, arguments))],
        **{
            "stdin": subprocess.DEVNULL,
            "capture_output": True,
            "timeout": 60,
            "cwd": ROOT,
            "env": {**os.environ, "PYTHONPATH": str(ROOT)},
            "text": True,
            **options,
        },
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def errors(done: Any) -> list[str]:
    """What was said to have gone wrong, a line each."""
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def counted(done: Any, status: str, reason: str = "") -> int:
    """What the summary at the end says: how many files became this, for this reason."""
    row = rf"{status}\s+(\d+)\s*{re.escape(reason)}\s*"
    found = [match for line in done.stderr.splitlines() if (match := re.fullmatch(row, line))]
    return sum(int(match[1]) for match in found)


def names(folder: Path) -> list[str]:
    """All files below, relative, sorted; without the journal."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.as_posix() for path in found if path.parts[0] != ".waifu4x")


def contents(folder: Path) -> dict[str, bytes]:
    """What `names` names, and its bytes."""
    return {name: (folder / name).read_bytes() for name in names(folder)}


def noise(*, seed: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(values)


def save(path: Path, **options: Any) -> Path:
    """Noise as a file; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(**options).save(path)
    return path


def bound_by_permissions() -> Callable[[], None]:
    """What a child process does to be bound by permissions, also where tests run as root.

    Skips the test where that cannot be had. It gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH:
    capabilities(7).
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    libc = ctypes.CDLL(None, use_errno=True)

    def give_up() -> None:
        if os.geteuid() == 0:
            for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
                if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                    os._exit(99)

    tried = subprocess.run([sys.executable, "-c", ""], preexec_fn=give_up, check=False)
    if tried.returncode == 99:
        pytest.skip("root cannot give up its rights here")
    return give_up
