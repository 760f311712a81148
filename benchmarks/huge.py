"""Pictures that no memory holds: does time grow as their pixels do, and memory hardly at all.

    python benchmarks/huge.py [--sizes 4096,8192,16384] [--models waifu4x-clean,bicubic]
                              [--formats png,tiff] [--memory 2G] [--folder DIR]

For every size a square PNG is made, in strips, and enlarged to 4x by the program as a whole process
within ``--memory``. Then libvips decodes all of the output, and some bands of rows are compared
with what an upscaler in this process makes of their part of the input: "off by" is the largest
difference of a sample, of 255, and how many in a million differ. In bf16 tiles that are cut
elsewhere differ by one or two.

It needs ``pip install 'waifu4x[huge]'``, Linux or macOS, and 20 bytes on the disk for a pixel of
the largest input.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import photo

from waifu4x import Picture, Target, Upscaler, open_upscaler
from waifu4x.huge import vips, writing
from waifu4x.strips import Strip

SCALE = 4
_BAND_PX = 64
_PATTERN_PX = 1024
# Nothing further away moves an 8-bit value: tests/test_tiled.py.
_HALO_PX = 40
_COMPARED_PX = 16
_BANDS = 3

# Prints seconds and the peak of memory of one process. It is small itself: a process counts that of
# whoever started it as its own (setmax_mm_hiwater_rss in fs/exec.c of Linux).
_MEASURED = """
import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True)
spent_s = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(spent_s, peak * (1 if sys.platform == "darwin" else 1024))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="4096,8192,16384")
    parser.add_argument("--models", default="waifu4x-clean,bicubic")
    parser.add_argument("--formats", default="png,tiff")
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--folder", type=Path, help="where the pictures lie meanwhile")
    asked = parser.parse_args()
    print(
        f"{'model':<14}{'format':<8}{'input':>7}{'output':>9}{'seconds':>9}{'µs/px':>8}"
        f"{'peak MiB':>10}{'file MiB':>10}  off by"
    )
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for side_px in map(int, asked.sizes.split(",")):
            source = Path(folder) / f"{side_px}.png"
            make(source, side_px)
            for model in asked.models.split(","):
                for format in asked.formats.split(","):
                    target = source.with_name(f"out.{format}")
                    spent_s, peak_bytes = run(source, target, model, memory=asked.memory)
                    print(
                        f"{model:<14}{format:<8}{side_px:>7}{side_px * SCALE:>9}{spent_s:>9.1f}"
                        f"{spent_s / side_px**2 * 1e6:>8.3f}{peak_bytes / 2**20:>10.0f}"
                        f"{target.stat().st_size / 2**20:>10.0f}"
                        f"  {compared(source, target, side_px, open_upscaler(model))}",
                        flush=True,
                    )
                    target.unlink()
            source.unlink()


def make(path: Path, side_px: int) -> None:
    """A photo many times over, lighter and darker across the picture: no two parts are alike."""
    pattern = photo(_PATTERN_PX, _PATTERN_PX)
    wide = np.tile(pattern, (1, -(-side_px // _PATTERN_PX), 1))[:, :side_px]
    across = np.linspace(0.6, 1.0, side_px, dtype=np.float32)[:, None]
    facts = Picture(pixels=pattern[:1, :1])
    settings = writing.Settings(format="PNG")
    with writing.writing(path, facts, (side_px, side_px), settings) as put:
        for top in range(0, side_px, _BAND_PX):
            rows = np.arange(top, min(top + _BAND_PX, side_px))
            down = 1.0 - 0.4 * rows[:, None, None].astype(np.float32) / side_px
            put(Strip((wide[rows % _PATTERN_PX] * across * down).astype(np.uint8), None))


def run(source: Path, target: Path, model: str, *, memory: str) -> tuple[float, int]:
    """Seconds, and the peak of memory in bytes, of the program as a whole process."""
    command = [
        *(sys.executable, "-m", "waifu4x", "upscale", str(source), "-o", str(target)),
        *("-m", model, "-s", str(SCALE), "--memory", memory, "--max-pixels", "1000000000"),
        *("--overwrite", "--no-space-check", "--quiet"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    spent_s, peak_bytes = done.stdout.split()
    return float(spent_s), int(peak_bytes)


def compared(source: Path, target: Path, side_px: int, upscaler: Upscaler) -> str:
    """Decode all of the output, and compare some bands of it."""
    largest = different = seen = 0
    with rows_of(source) as given, rows_of(target) as made:
        for number in range(_BANDS):
            # Well inside, and neither at the start of a tile nor in the middle of it.
            top = int((number + 0.5) / _BANDS * side_px) + 7
            around = given(top - _HALO_PX, top + _COMPARED_PX + _HALO_PX)
            alone, _ = upscaler.upscale(Picture(pixels=around), Target(scale=SCALE))
            inside = slice(_HALO_PX * SCALE, (_HALO_PX + _COMPARED_PX) * SCALE)
            wanted = alone.pixels[inside].astype(np.int16)
            got = made(top * SCALE, (top + _COMPARED_PX) * SCALE)
            off = np.abs(wanted - got)
            largest = max(largest, int(off.max()))
            different, seen = different + int((off > 0).sum()), seen + off.size
        made(side_px * SCALE, side_px * SCALE)
    return f"{largest}, {math.ceil(different / seen * 1e6)} ppm"


@contextlib.contextmanager
def rows_of(path: Path) -> Iterator:
    """A function that gives rows from `start` to `stop`, having decoded all above."""
    format = {".png": "PNG", ".tiff": "TIFF", ".tif": "TIFF", ".jpg": "JPEG"}[path.suffix]
    with vips.opened(path, format) as decoding:
        done = 0

        def rows(start: int, stop: int) -> np.ndarray:
            nonlocal done
            while done < start:
                step = min(_BAND_PX, start - done)
                decoding.next_rows(step)
                done += step
            if stop == start:
                return np.empty(0)
            done = stop
            return decoding.next_rows(stop - start)

        yield rows


if __name__ == "__main__":
    main()
