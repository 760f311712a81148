"""`--memory`: what does not fit is made in strips, and is what it would have been."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from waifu4x import pictures, streaming
from waifu4x.auto import picking
from waifu4x.batch import limits, streamed
from waifu4x.cli.app import app
from waifu4x.cli.upscale_run import parse_memory
from waifu4x.codecs import metadata
from waifu4x.errors import UsageError
from waifu4x.model_files import checkpoints
from waifu4x.networks.srvggnet import SRVGGNetCompact, SRVGGNetCompactConfig
from waifu4x.tiled import MemoryFullError

pytest.importorskip("pyvips")

ROOT = Path(__file__).parents[1]
COMMAND = get_command(app)
LITTLE = ("--memory", "1K")
FACTS = ("pixels", "alpha", "icc_profile", "in_profile_space", "exif", "xmp", "dpi", "notes")


def run(*arguments: object, model: object = "bicubic", input: bytes | None = None) -> Any:
    options = ["upscale", "-m", str(model), "-s", "2", "--json", *map(str, arguments)]
    return invoke(options, input=input)


def invoke(arguments: list[str], *, input: bytes | None = None) -> Any:
    done = CliRunner().invoke(app, arguments, input=input)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def told(done: Any) -> dict[str, Any]:
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def refused(done: Any, *, code: int = 1) -> str:
    assert done.exit_code == code, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def noise(mode: str = "RGB", size: tuple[int, int] = (70, 90)) -> Image.Image:
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    network = SRVGGNetCompact(SRVGGNetCompactConfig(channels=8, convs=1))
    checkpoints.save(network, path, metadata={"licence": "CC0-1.0"})
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    noise().save(path)
    return path


@pytest.fixture(autouse=True)
def same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer's runner makes it anew every time, which takes longer than most of these tests."""
    monkeypatch.setattr("typer.testing._get_command", lambda app: COMMAND, raising=False)


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.partial")]


def both(source: Path, *options: object, format: str, model: object) -> tuple[Path, Path]:
    """The outputs from memory, and in strips."""
    made = [source.with_name(f"{name}.{format}") for name in ("memory", "strips")]
    for target, memory in zip(made, [(), LITTLE], strict=True):
        done = run(source, "-o", target, *options, *memory, model=model)
        assert done.exit_code == 0, done.output
        assert told(done).get("streamed", False) == bool(memory)
    return made[0], made[1]


def test_auto_looks_at_the_first_rows(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "_LOOKED_AT_ROWS", 40)
    looked: list[np.ndarray] = []

    def look(pixels: np.ndarray) -> picking.Look:
        looked.append(pixels)
        return picking.Look(kind="photo", compressed=True, art_share=0.25, compressed_share=1.0)

    monkeypatch.setattr(picking, "look", look)
    memory, strips = both(source, format="png", model="auto")
    assert_same(memory, strips)
    whole, top = looked
    np.testing.assert_array_equal(top, whole[:40])
    info = CliRunner().invoke(app, ["info", str(strips)])
    assert "waifu4x-photo" in info.stdout


def assert_same(one: Path, other: Path) -> None:
    for name in FACTS:
        left, right = (getattr(pictures.read(path), name) for path in (one, other))
        assert np.array_equal(left, right) if name in ("pixels", "alpha") else left == right, name


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "png"), ("RGBA", "png"), ("LA", "tiff"), ("RGB", "tiff"), ("RGBA", "webp")],
)
def test_a_network_gives_the_same_bytes(tmp_path: Path, tiny: Path, mode: str, format: str) -> None:
    source = tmp_path / "a.png"
    noise(mode).save(source)
    options = ("--precision", "fp32", *(["--lossless"] if format == "webp" else []))
    one, other = both(source, *options, format=format, model=tiny)
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["png", "tiff", "jpg"])
def test_a_kernel_gives_the_same_bytes(tmp_path: Path, kind: str, bits: int) -> None:
    source = tmp_path / f"a.{kind}"
    pixels = np.asarray(noise()).astype(np.uint16) * 257 if bits == 16 else np.asarray(noise())
    tags = Image.Exif()
    tags[0x010F] = "maker"
    picture = pictures.Picture(
        pixels=pixels, dpi=(150.0, 150.0), exif=tags.tobytes(), icc_profile=metadata.srgb_profile()
    )
    pictures.write(picture, source)
    one, other = both(source, format="png" if kind == "jpg" else kind, model="bicubic")
    assert one.read_bytes() == other.read_bytes()
    assert_same(one, other)


@pytest.mark.parametrize("options", [[], ["-q", "40"], ["--background", "#ff8000"]], ids=str)
def test_jpeg_has_the_same_pixels_and_tags(tmp_path: Path, options: list[str]) -> None:
    source = tmp_path / "a.png"
    noise("LA" if options[:1] == ["--background"] else "RGB").save(source, dpi=(200, 200))
    assert_same(*both(source, *options, format="jpg", model="bicubic"))


def test_jpeg_that_is_transparent_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.png"
    noise("RGBA").save(source)
    monkeypatch.setattr(streaming, "enlarge", None)
    done = run(source, "-f", "jpg", *LITTLE)
    assert "cannot hold transparency" in done.stderr
    assert (done.exit_code, [p.name for p in tmp_path.iterdir()]) == (1, ["a.png"])


@pytest.mark.parametrize("layout", ["tiled", "pyramid"])
def test_layouts_of_a_tiff(source: Path, layout: str) -> None:
    one, other = both(source, "--tiff", layout, format="tiff", model="bicubic")
    assert one.read_bytes() == other.read_bytes()
    with Image.open(one) as made:
        assert made.size == (140, 180)
        assert made.tag_v2[322] == 256  # type: ignore[attr-defined]


def test_what_is_said(source: Path) -> None:
    done = run(source, *LITTLE, "--dry-run")
    facts = told(done)
    assert (facts["streamed"], facts["status"]) == (True, "planned")
    assert facts["memory_bytes"] > 0
    assert "in strips, about" in done.stderr
    assert partials(source.parent) == []
    done = run(source, *LITTLE, "-v")
    assert "in strips, bicubic on cpu" in done.stderr
    facts = told(done)
    assert facts["notes"] == []
    assert set(facts["seconds"]) == {"read", "network", "upscale", "encode", "write"}
    assert facts["output_bytes"] == Path(facts["output"]).stat().st_size
    assert "streamed" not in told(run(source, "--dry-run", "--overwrite"))


def test_sizes_of_memory() -> None:
    sizes = {"2G": 2**31, "1500M": 1500 * 2**20, "1.5g": 3 * 2**29, "64 KiB": 2**16, "77": 77}
    assert {text: parse_memory(text) for text in sizes} == sizes
    for text in ("", "G", "0", "0.0G", "-1G", "2X", "2GG", "1,5G"):
        with pytest.raises(UsageError, match="is no size: write it as 2G or 1500M"):
            parse_memory(text)


def test_this_program_itself_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_resident_bytes", lambda: 300)
    monkeypatch.setattr("waifu4x.memory.free_host_bytes", lambda: 5000)
    assert [limits.memory_bytes(allowed) for allowed in (None, 1000, 400)] == [2500, 700, 200]
    monkeypatch.undo()
    if sys.platform == "linux":
        assert 2**24 < limits._resident_bytes() < 2**36


def test_without_a_wish_strips_are_made_when_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below half of what is free as a whole; in strips up to all of it; then it is refused."""
    source = tmp_path / "high.png"
    noise(size=(16, 20_000)).save(source)
    in_memory = told(run(source, "--dry-run"))["memory_bytes"]
    for free_bytes, streams in [(2 * in_memory, False), (2 * in_memory - 2, True)]:
        monkeypatch.setattr("waifu4x.memory.free_host_bytes", lambda free=free_bytes: free)
        facts = told(run(source, "--dry-run"))
        assert facts.get("streamed", False) == streams
    assert facts["memory_bytes"] < in_memory
    monkeypatch.setattr("waifu4x.memory.free_host_bytes", lambda: 10_000)
    assert "0.0 are free; choose a smaller size" in refused(run(source))


def test_what_cannot_be_made_in_strips(source: Path) -> None:
    film = source.with_name("film.gif")
    noise().save(film, save_all=True, append_images=[noise().rotate(90)])
    said = refused(run(film, *LITTLE))
    assert "GiB of memory, --memory allows 0.0; it has 2 frames" in said
    said = refused(run(source, "-f", "avif", *LITTLE))
    assert "AVIF is not written in strips: choose PNG, TIFF or JPEG with --format" in said
    done = invoke(["upscale", "-m", "bicubic", str(source), "-o", "-", *LITTLE])
    assert "only into a file: give one with -o" in refused(done)
    assert "--tiff" in refused(run(source, "--tiff", "tiled"), code=2)


def test_what_must_be_held_as_a_whole(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is, where it fits; above that it is refused, and says why."""
    progressive = source.with_name("p.jpg")
    noise().save(progressive, progressive=True)
    assert run(progressive, "-f", "png", *LITTLE).exit_code == 0
    monkeypatch.setattr(streamed, "_ALWAYS_BYTES", 0)
    said = refused(run(progressive, "-f", "png", "--overwrite", *LITTLE))
    assert "--memory allows 0.0; it is progressive; or choose a smaller size" in said
    assert "WebP is not written in strips" in refused(run(source, "-f", "webp", *LITTLE))
    assert run(source, *LITTLE).exit_code == 0, "which needs no whole picture"


def test_without_libvips(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits into memory is read without it; the rest says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(source, *LITTLE).exit_code == 0
    monkeypatch.setattr(streamed, "_ALWAYS_BYTES", 0)
    said = refused(run(source, "--overwrite", *LITTLE))
    assert "GiB of memory, --memory allows 0.0; reading it in parts takes libvips" in said
    assert "pip install 'waifu4x[huge]'" in said


def test_standard_input(source: Path) -> None:
    target = source.with_name("out.png")
    done = run("-", "-o", target, *LITTLE, input=source.read_bytes())
    assert told(done)["streamed"]
    assert pictures.read(target).width_px == 140


def test_a_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    """Some of its pictures in strips, one of them damaged in its middle."""
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for name in ("a", "b", "c"):
        noise(size=(400, 400) if name != "b" else (8, 8)).save(inputs / f"{name}.png")
    whole = (inputs / "c.png").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    (inputs / "c.png").write_bytes(damaged)
    done = run(inputs, "-o", out, "--memory", "2M")
    lines = {Path(line["input"]).name: line for line in map(json.loads, done.stdout.splitlines())}
    assert {name: line["status"] for name, line in lines.items()} == {
        "a.png": "done",
        "b.png": "done",
        "c.png": "failed",
    }
    assert [name for name, line in lines.items() if "streamed" in line] == ["a.png"]
    assert "c.png is damaged or cut off" in lines["c.png"]["error"]
    assert done.exit_code == 3
    assert sorted(path.name for path in out.glob("*.*")) == [".waifu4x", "a.png", "b.png"]
    assert partials(tmp_path) == []
    (inputs / "c.png").write_bytes(whole)
    done = run(inputs, "-o", out, "--memory", "2M")
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()].count("done") == 1
    assert done.exit_code == 0


def interrupted(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, times: int) -> list[int]:
    """After its first strip the picture ends by `error`, so often."""
    enlarge, tries = streaming.enlarge, []

    def fail(*arguments: Any, **options: Any) -> Iterator[Any]:
        tries.append(len(tries))
        for strip in enlarge(*arguments, **options):
            yield strip
            if len(tries) <= times:
                raise error

    monkeypatch.setattr(streaming, "enlarge", fail)
    return tries


def test_an_interruption_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = source.with_name("out.png")
    target.write_bytes(b"precious")
    interrupted(monkeypatch, KeyboardInterrupt(), times=1)
    done = run(source, "-o", target, "--overwrite", *LITTLE)
    assert (done.exit_code, done.stdout) == (130, "")
    assert sorted(path.name for path in source.parent.iterdir()) == ["a.png", "out.png"]
    assert target.read_bytes() == b"precious"


def test_full_memory_begins_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, plain = source.with_name("out.png"), source.with_name("plain.png")
    assert run(source, "-o", plain).exit_code == 0
    tries = interrupted(monkeypatch, MemoryFullError(), times=2)
    assert run(source, "-o", target, *LITTLE).exit_code == 0
    assert len(tries) == 3
    assert target.read_bytes() == plain.read_bytes()


def test_full_memory_does_not_begin_again_for_ever(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, MemoryFullError(), times=99)
    done = run(source, *LITTLE)
    assert "memory was full again and again" in done.stderr
    assert (done.exit_code, partials(source.parent)) == (1, [])


@pytest.mark.parametrize("where", ["while strips are written", "when it is given its name"])
def test_a_full_disk(source: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fail(*arguments: object, **options: object) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = "waifu4x.codecs.png_stream.idat" if "strips" in where else "os.fsync"
    monkeypatch.setattr(name, fail)
    said = refused(run(source, *LITTLE))
    assert str(source.with_name("a_bicubic_2x.png")) in said
    assert "the disk is full: free some space" in said
    assert [path.name for path in source.parent.iterdir()] == ["a.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_while_strips_are_written(tmp_path: Path) -> None:
    source, out = tmp_path / "a.png", tmp_path / "out"
    Image.new("RGB", (800, 40_000)).save(source)
    command = ["upscale", str(source), "-m", "bicubic", "-o", f"{out}/", *LITTLE]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "waifu4x", *command],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        ends_s = time.monotonic() + 60
        while not partials(tmp_path) and process.poll() is None and time.monotonic() < ends_s:
            time.sleep(0.05)
        time.sleep(0.3)
        assert partials(tmp_path), "it was to take seconds"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "")
    assert [path.name for path in out.iterdir()] == []


def test_what_says_how_it_was_made(source: Path) -> None:
    target = source.with_name("out.png")
    assert run(source, "-o", target, *LITTLE).exit_code == 0
    again = told(run(target, "-o", source.with_name("b.jpg"), *LITTLE))
    assert "it was already enlarged 2x by waifu4x" in again["notes"][0]
    packet = pictures.read(io.BytesIO(target.read_bytes())).xmp or b""
    assert b"<waifu4x:Model>bicubic</waifu4x:Model>" in packet
