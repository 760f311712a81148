"""A long folder takes no more memory than a short one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FILES, EARLY = 500, 50
ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/status"),
]

# In a process of its own, whose memory is not that of the tests before. Many files end in a short
# time, so each figure is the largest of some: what matters is the peak that a machine must bear.
_SCRIPT = """
import json, re, sys
from pathlib import Path
from waifu4x.batch import plan, run
from waifu4x.batch.request import Request
from waifu4x.cli.allocator import keep_large_blocks
from waifu4x.models import open_upscaler
from waifu4x.sizes import Target

def resident_kib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

folder, model, precision = sys.argv[1:]
keep_large_blocks()
upscaler = open_upscaler(model, precision=precision)
request = Request(
    inputs=(folder,), target=Target(scale=4.0), output=folder + "-out", precision=precision
)
seen = []
def note(outcome):
    assert outcome.error is None, outcome.error
    seen.append(resident_kib())
run.run(
    plan.make(request, upscaler),
    upscaler,
    on_outcome=note,
    on_progress=lambda job, share: None,
    workers=2,
)
print(json.dumps(seen))
"""


def _fill(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for k in range(FILES):
        # The same sizes over and over, so that the largest are there early.
        side_px = 40 + 4 * (k % 10)
        pixels = rng.integers(0, 256, (side_px, 2 * side_px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03}.{'png' if k % 3 else 'jpg'}")


@pytest.mark.parametrize(
    ("model", "precision"), [("nearest", "auto"), ("waifu4x-clean", "auto")], ids=str
)
def test_memory_does_not_grow(tmp_path: Path, model: str, precision: str) -> None:
    _fill(tmp_path / "in")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _SCRIPT, str(tmp_path / "in"), model, precision],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    seen = json.loads(done.stdout)
    assert len(seen) == FILES
    early, late = max(seen[:EARLY]), max(seen[-EARLY:])
    print(f"{model} {precision}: {early / 1024:.1f} MiB, then {late / 1024:.1f} MiB")
    assert late <= 1.05 * early
