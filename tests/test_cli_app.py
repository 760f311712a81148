"""The command line as a whole: it starts fast, explains itself, and ends with the right code."""

from __future__ import annotations

import ast
import errno
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import waifu4x
from waifu4x.cli import console
from waifu4x.cli.app import app
from waifu4x.errors import NumericsError, UsageError

ROOT = Path(__file__).parents[1]


def command_paths() -> list[tuple[str, ...]]:
    """("models", "list") and so on; groups too, the whole program being ()."""
    found: list[tuple[str, ...]] = []

    def walk(command: Any, path: tuple[str, ...]) -> None:
        found.append(path)
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        **{"capture_output": True, "text": True, "timeout": 60, "cwd": ROOT, **options},
    )


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_all_commands_are_there() -> None:
    assert {path for path in command_paths() if len(path) == 1} == {
        *(("upscale",), ("models",), ("bench",), ("train",), ("devices",), ("info",)),
        *(("compare",), ("export",), ("batch",)),
    }


@pytest.mark.parametrize("path", command_paths(), ids=lambda path: " ".join(path) or "waifu4x")
def test_every_help_has_an_example(path: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        done = invoke(*path, flag)
        assert done.exit_code == 0
        assert done.stderr == ""
        assert " ".join(("Example: waifu4x", *path)) in " ".join(done.stdout.split())


def test_help_and_version_need_neither_torch_nor_numpy() -> None:
    calls = [[*path, "--help"] for path in command_paths()] + [["--version"]]
    script = f"""
import sys
from waifu4x.cli.app import app
for call in {calls}:
    try:
        app(call)
    except SystemExit as end:
        assert end.code == 0, (call, end.code)
    heavy = {{"torch", "numpy", "PIL", "requests", "safetensors"}} & set(sys.modules)
    assert not heavy, (call, heavy)
print("all light")
"""
    done = python("-W", "error", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all light\n")


def test_a_file_and_a_folder_are_enlarged_without_torch_by_a_filter(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    script = (
        "import sys; from waifu4x.cli.app import app\n"
        f"app(['upscale', {str(tmp_path / 'a.png')!r}, '-m', 'nearest'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = python("-W", "error", "-c", script)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a_nearest_4x.png").is_file()


def test_python_m_and_version() -> None:
    done = python("-W", "error", "-m", "waifu4x", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"waifu4x {waifu4x.__version__}\n",
        "",
    )


def test_the_console_script_is_main() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["scripts"] == {"waifu4x": "waifu4x.cli.app:main"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upscale", "--bogus"], "--bogus"),
        (["upscael"], "upscael"),
        (["upscale", "a.png", "-s", "four"], "--scale"),
        (["upscale", "a.png", "--precision", "fp8"], "fp8"),
        (["bench"], "name a folder of pictures"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], words: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_without_arguments_the_help_is_shown() -> None:
    assert "upscale" in invoke().output


def test_completion() -> None:
    script = "import sys; sys.argv[0] = 'waifu4x'; from waifu4x.cli.app import main; main()"
    done = python(
        "-c",
        script,
        env={
            **os.environ,
            "_WAIFU4X_COMPLETE": "complete_bash",
            "COMP_WORDS": "waifu4x up",
            "COMP_CWORD": "1",
        },
    )
    assert done.stdout.split() == ["upscale"]
    assert done.stderr == ""


def _on_a_terminal(**environment: str) -> bytes:
    """What an error looks like to somebody who sits before a terminal."""
    ours, theirs = pty.openpty()
    try:
        done = python(
            *("-m", "waifu4x", "upscale", "a.png", "-m", "nothing-like-it"),
            capture_output=False,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", **environment},
        )
        assert done.returncode == 2
        return os.read(ours, 10_000)
    finally:
        os.close(ours)
        os.close(theirs)


def test_colour_on_a_terminal_and_no_color() -> None:
    assert b"\x1b[1;31m" in _on_a_terminal()
    assert b"31m" not in _on_a_terminal(NO_COLOR="1")


def test_a_pipe_that_closes_early_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "waifu4x", "models", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
    assert told == b""
    assert process.returncode in (0, 1)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (NumericsError("it gave NaN"), 1, "error: it gave NaN\n"),
        (UsageError("not [bold]so[/]"), 2, "error: not [bold]so[/]\n"),
        (UsageError("two\nlines"), 2, "error: two\\nlines\n"),
        (OSError(errno.ENOSPC, "No space left", "x"), 1, "error: [Errno 28] No space left: 'x'\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_a_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("waifu4x.devices.available", fail)
    done = invoke("devices")
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", told)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("waifu4x.devices.available", fail)
    assert isinstance(invoke("devices").exception, ZeroDivisionError)


def test_devices() -> None:
    import json

    lines = [json.loads(line) for line in invoke("devices", "--json").stdout.splitlines()]
    assert lines[-1]["name"] == "cpu"
    assert lines[-1]["free_bytes"] > 0
    assert invoke("devices").stdout.splitlines()[-1].startswith("cpu ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 猫.png", "plain ü 猫.png"),
        ("a\nb\tc\x1b[31m", "a\\nb\\tc\\x1b[31m"),
        ("\udcff", "\\udcff"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert console.printable(text) == shown


# The library from outside.


def test_import_is_lazy_and_every_public_name_resolves() -> None:
    script = """
import sys, waifu4x
heavy = {"torch", "numpy", "PIL", "typer", "rich"} & set(sys.modules)
assert not heavy, heavy
waifu4x.read
assert "torch" not in sys.modules
assert set(waifu4x.__all__) <= set(dir(waifu4x))
for name in waifu4x.__all__:
    assert getattr(waifu4x, name).__name__ == name
"""
    done = python("-W", "error", "-c", script)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        waifu4x.nothing  # noqa: B018


def test_all_is_what_resolves_and_what_type_checkers_see() -> None:
    assert waifu4x.__all__ == sorted(waifu4x.__all__) == sorted(waifu4x._HOMES)
    tree = ast.parse(Path(waifu4x.__file__).read_text("utf-8"))
    checked = next(n for n in tree.body if isinstance(n, ast.If))
    declared = {
        alias.name: str(node.module).removeprefix("waifu4x.")
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == waifu4x._HOMES


def test_the_end_of_the_process_is_as_orderly_as_it_is_short() -> None:
    """Threads are waited for, exit functions called, and all that was printed arrives."""
    script = """
import atexit, sys, threading, time
from waifu4x.cli import app
def late():
    time.sleep(0.2)
    print("thread")
def work():
    atexit.register(print, "exit function")
    threading.Thread(target=late).start()
    print("x" * 100_000)
    print("said", file=sys.stderr)
    raise SystemExit(3)
app.app = work
app.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 3
    assert done.stdout.splitlines() == ["x" * 100_000, "thread", "exit function"]
    assert done.stderr == "said\n"
