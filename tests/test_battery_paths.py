"""Names and places of every kind: nothing is written outside the output folder, nothing hangs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from command import bound_by_permissions, contents, counted, errors, names, program, save, upscale
from PIL import Image

from waifu4x import pictures

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names and links of POSIX")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """``in`` with a.png and sub/b.png; ``secret.png`` outside of it."""
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "sub" / "b.png", seed=1)
    save(tmp_path / "secret.png", seed=2)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below, and what it holds."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def unharmed(place: Path) -> Callable[[], None]:
    """Called at the end: all that was there before is as it was, and new is only ``out``."""
    before: dict[str, bytes | str] = {}

    def check() -> None:
        now = everything(place)
        out = str(place / "out") + os.sep
        assert {path: now.get(path) for path in before} == before
        assert all(path.startswith(out) for path in now.keys() - before.keys())
        assert not list(place.rglob("*.partial"))

    def note_or_check() -> None:
        if before:
            check()
        else:
            before.update(everything(place))

    return note_or_check


# 1, 2: other ways to write a path.


def test_1_dots_in_paths(place: Path, unharmed: Callable[[], None]) -> None:
    unharmed()
    done = upscale(f"{place}/in/sub/../../in", "-r", "-o", f"{place}/in/../out")
    assert done.exit_code == 0
    assert names(place / "out") == ["a.png", "sub/b.png"]
    unharmed()


@pytest.mark.parametrize("template", ["../{stem}", "/tmp/{stem}", "x/../../{stem}"])
def test_1_templates_and_suffixes_lead_nowhere(place: Path, template: str) -> None:
    before = everything(place)
    assert upscale(place / "in", "-o", place / "out", "--name", template).exit_code == 2
    assert upscale(place / "in", "-o", place / "out", "--suffix", "/../../x").exit_code == 2
    assert everything(place) == before


def test_2_absolute_and_relative_are_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "in")
    assert upscale(".", "-r", "-o", "../out").exit_code == 0
    again = upscale(place / "in", "-r", "-o", place / "out")
    assert again.exit_code == 0
    assert names(place / "out") == ["a.png", "sub/b.png"]
    assert counted(again, "skipped", "done before") == 2


# 3 to 7: links.


def test_3_a_link_out_of_the_folder(place: Path, unharmed: Callable[[], None]) -> None:
    (place / "in" / "out.png").symlink_to(place / "secret.png")
    (place / "in" / "up").symlink_to(place)
    unharmed()
    done = upscale(place / "in", "-r", "-o", place / "out")
    assert done.exit_code == 0
    assert names(place / "out") == ["a.png", "sub/b.png"]
    assert "a link that leaves the folder" in done.stderr
    unharmed()


def test_3_a_link_out_of_the_output_folder(place: Path, unharmed: Callable[[], None]) -> None:
    (place / "out").mkdir()
    (place / "elsewhere").mkdir()
    (place / "out" / "sub").symlink_to(place / "elsewhere")
    (place / "out" / "a.png").symlink_to(place / "secret.png")
    secret = (place / "secret.png").read_bytes()
    done = upscale(place / "in", "-r", "-o", place / "out", "--overwrite")
    assert done.exit_code == 3
    (told,) = errors(done)
    assert "a link leads out of" in told
    assert names(place / "elsewhere") == []
    assert (place / "secret.png").read_bytes() == secret
    assert not (place / "out" / "a.png").is_symlink()


def test_4_links_within_the_folder(place: Path, unharmed: Callable[[], None]) -> None:
    (place / "in" / "c.png").symlink_to("a.png")
    (place / "in" / "folder").symlink_to("sub")
    unharmed()
    done = upscale(place / "in", "-r", "-o", place / "out")
    assert done.exit_code == 0
    assert names(place / "out") == ["a.png", "c.png", "sub/b.png"]
    assert not (place / "out" / "c.png").is_symlink()
    unharmed()


def test_5_links_in_a_circle(place: Path, unharmed: Callable[[], None]) -> None:
    (place / "in" / "loop.png").symlink_to("loop.png")
    (place / "in" / "sub" / "again").symlink_to("..")
    unharmed()
    done = upscale(place / "in", "-r", "-o", place / "out")
    assert done.exit_code == 0
    assert names(place / "out") == ["a.png", "sub/b.png"]
    named = upscale(place / "in" / "loop.png", place / "in" / "a.png", "-o", place / "out")
    assert named.exit_code == 3
    assert "loop.png" in errors(named)[0]
    unharmed()


def test_6_a_dangling_link(place: Path, unharmed: Callable[[], None]) -> None:
    (place / "in" / "gone.png").symlink_to("nothing.png")
    unharmed()
    done = upscale(place / "in", "-r", "-o", place / "out")
    assert done.exit_code == 0
    assert "a link to nothing" in done.stderr
    named = upscale(place / "in" / "gone.png", "-o", f"{place}/out/")
    assert named.exit_code == 1
    assert "gone.png does not exist" in errors(named)[0]
    unharmed()


# 7, 8: input and output are near each other.


@pytest.mark.parametrize("out", ["in/out", "in/sub/deep/out", "in/sub"])
def test_7_the_output_folder_inside_the_input_folder(place: Path, out: str) -> None:
    (place / "in" / "sub" / "b.png").rename(place / "in" / "b.png")
    (place / "in" / "sub").rmdir()
    for again in (False, True):
        done = upscale(place / "in", "-r", "-o", place / out)
        assert done.exit_code == 0
        assert names(place / out) == ["a.png", "b.png"]
        assert ("left out  1  the output folder" in done.stderr) is again
    assert pictures.read(place / out / "a.png").width_px == 4 * 6


@pytest.mark.parametrize("out", ["in", "in/", "in/../in", "link"])
def test_8_the_output_folder_is_the_input_folder(place: Path, out: str) -> None:
    (place / "link").symlink_to("in")
    before = everything(place)
    done = upscale(place / "in", "-o", f"{place}/{out}", "--overwrite")
    assert done.exit_code == 2
    assert "another one with -o" in errors(done)[0]
    by_glob = upscale(place / "in" / "*.png", "-o", f"{place}/{out}", "--overwrite")
    assert by_glob.exit_code == 3
    assert "is the input itself" in errors(by_glob)[0]
    assert {path: everything(place)[path] for path in before} == before
    assert names(place / "in") == ["a.png", "sub/b.png"]


# 9 to 11: two inputs, one name.


def same_twice(place: Path, *options: object) -> list[str]:
    """Runs it, and again: the same files, nothing done any more. The names of the outputs."""
    first = upscale(place / "in", "-o", place / "out", *options)
    assert first.exit_code == 0, first.stderr
    made = contents(place / "out")
    second = upscale(place / "in", "-o", place / "out", *options)
    assert second.exit_code == 0
    assert counted(second, "skipped", "done before") == len(made)
    assert contents(place / "out") == made
    return sorted(made)


def test_9_two_suffixes_of_one_stem(place: Path) -> None:
    save(place / "in" / "a.jpg", seed=3, size=(5, 5))
    assert same_twice(place, "-f", "png") == ["a.jpg.png", "a.png"]
    for name, size in (("a.png", (24, 16)), ("a.jpg.png", (20, 20))):
        with Image.open(place / "out" / name) as image:
            assert image.size == size


@linux
def test_10_names_that_differ_in_case(place: Path) -> None:
    save(place / "in" / "A.PNG", seed=3, size=(5, 5))
    made = same_twice(place)
    assert len({name.casefold() for name in made}) == 2


@linux
def test_11_names_that_differ_in_unicode_form(place: Path) -> None:
    (place / "in" / "a.png").unlink()
    for seed, form in enumerate(("NFC", "NFD")):
        save(place / "in" / unicodedata.normalize(form, "é.png"), seed=seed)
    made = same_twice(place)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in made}) == 2


# 12 to 18: names.


@linux
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param(b"\xff\xfe.png", "\\udcff\\udcfe.png", id="12 no UTF-8"),
        pytest.param(b"new\nline\r.png", "new\\nline\\r.png", id="13 line breaks"),
        pytest.param(b"-rf.png", "-rf.png", id="14 leading dash"),
        pytest.param(b"[bold]x[red].png", "[bold]x[red].png", id="15 markup and glob"),
        pytest.param(b"x" * 251 + b".png", "x" * 251 + ".png", id="16 255 bytes"),
        pytest.param(b"CON.png", "CON.png", id="17 reserved by Windows"),
        pytest.param(b"\x1b[31m\x07.png", "\\x1b[31m\\x07.png", id="18 escape codes"),
        pytest.param("a\u2028b\x85.png".encode(), "a\\u2028b\\x85.png", id="18 Unicode lines"),
        pytest.param(b"%s{0}$HOME`x` *?.png", "%s{0}$HOME`x` *?.png", id="18 shell and glob"),
    ],
)
def test_names(place: Path, unharmed: Callable[[], None], name: bytes, shown: str) -> None:
    decoded = os.fsdecode(name)
    (place / "in" / "a.png").rename(place / "in" / decoded)
    (place / "in" / "broken.png").write_bytes(b"x")
    unharmed()
    done = upscale(place / "in", "-o", place / "out", "--json")
    assert done.exit_code == 3
    assert names(place / "out") == [decoded]
    row = next(row for row in map(json.loads, done.stdout.splitlines()) if row["status"] == "done")
    assert row["input"] == str(place / "in" / decoded)
    assert f"{place}/in/{shown} 6×4 → {place}/out/{shown} 24×16" in done.stderr
    assert len(errors(done)) == 1
    again = upscale(place / "in", "-o", place / "out")
    assert counted(again, "skipped", "done before") == 1
    # Named in a list, and once it is broken.
    (place / "list.txt").write_bytes(os.fsencode(place / "in") + b"/" + name.replace(b"\n", b"?"))
    listed = upscale(f"@{place}/list.txt", "-o", place / "out", "--dry-run")
    assert "broken.png" not in listed.stderr
    (place / "list.txt").unlink()
    (place / "in" / decoded).write_bytes(b"y")
    assert any(f"/{shown} is not a picture" in line for line in errors(upscale(place / "in")))
    (place / "in" / decoded).write_bytes(b"y")


def test_a_name_that_leaves_no_room_for_more(place: Path) -> None:
    longest = save(place / "in" / ("x" * 251 + ".png"))
    done = upscale(place / "in" / "a.png", longest, place / ("y" * 300))
    assert done.exit_code == 3
    assert len(errors(done)) == 2
    assert all("ile name too long" in line for line in errors(done))
    assert (place / "in" / "a_nearest_4x.png").exists()


# 19 to 22: what is no file.


@pytest.mark.parametrize("suffix", ["png", "cbz"])
def test_19_a_fifo(place: Path, suffix: str) -> None:
    os.mkfifo(place / "in" / f"pipe.{suffix}")
    done = program(place / "in", "-o", place / "out", "-v", timeout=30)
    assert done.returncode == 0
    assert f"pipe.{suffix} no regular file: skipped" in done.stderr
    named = program(place / "in" / f"pipe.{suffix}", "-o", f"{place}/out/", timeout=30)
    assert named.returncode == 1
    assert "is no regular file" in errors(named)[0]


def test_20_a_socket(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "in")  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("listener.png")
        done = upscale(place / "in", "-o", place / "out")
        assert done.exit_code == 0
        assert "no regular file" in done.stderr
        assert "no regular file" in errors(upscale("listener.png"))[0]


@linux
def test_21_a_device(place: Path) -> None:
    (place / "in" / "zero.png").symlink_to("/dev/zero")
    done = program(place / "in", "-o", place / "out", timeout=30)
    assert done.returncode == 0
    assert "a link that leaves the folder" in done.stderr
    named = program("/dev/zero", place / "in" / "zero.png", "-o", place / "out", timeout=30)
    assert named.returncode == 3
    assert sum("is no regular file" in line for line in errors(named)) == 2


def test_22_what_may_not_be_read(place: Path) -> None:
    give_up = bound_by_permissions()
    save(place / "in" / "shut.png").chmod(0)
    (place / "in" / "notes").write_bytes(b"no picture")
    (place / "in" / "notes").chmod(0)
    (place / "in" / "sub").chmod(0)
    try:
        done = program(place / "in", "-r", "-o", place / "out", preexec_fn=give_up)
    finally:
        (place / "in" / "sub").chmod(0o755)
    assert done.returncode == 3
    told = "\n".join(errors(done))
    assert len(errors(done)) == 2
    assert "shut.png may not be read: check its permissions" in told
    assert "sub cannot be listed (Permission denied)" in told
    assert names(place / "out") == ["a.png"]


# 23, 24: folders with nothing, and with much.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "there is no picture in"),
        ({"notes.txt": b"text", "b": b""}, "2 left out: no picture"),
        ({".hidden.png": b"x", "Thumbs.db": b"x"}, "2 left out: hidden"),
        ({"sub/a.png": b"x"}, "a folder (-r goes into it)"),
    ],
    ids=["empty", "no images", "hidden", "deeper"],
)
def test_23_nothing_to_do(tmp_path: Path, content: dict[str, bytes], words: str) -> None:
    (tmp_path / "in").mkdir()
    for name, data in content.items():
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    done = upscale(tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 1
    (told,) = errors(done)
    assert words in told
    assert not (tmp_path / "out").exists()


def test_23_empty_files(place: Path) -> None:
    (place / "in" / "zero.png").write_bytes(b"")
    done = upscale(place / "in", "-o", place / "out")
    assert done.exit_code == 3
    assert "zero.png is empty (0 bytes)" in errors(done)[0]
    assert names(place / "out") == ["a.png"]


def test_24_ten_thousand_files(tmp_path: Path) -> None:
    """All done before: looked at, and nothing more."""
    count = 10_000
    data = save(tmp_path / "a.png", size=(1, 1)).read_bytes()
    rows = []
    for k in range(count):
        folder = f"{k % 10}"
        for side in ("in", "out"):
            path = tmp_path / side / folder / f"{k}.png"
            if k < 10:
                path.parent.mkdir(parents=True)
            path.write_bytes(data)
        rows.append(f"{folder}/{k}.png")
    planned = program(tmp_path / "in", "-r", "-o", tmp_path / "new", "--dry-run", "--quiet")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert not (tmp_path / "new").exists()
    done = program(tmp_path / "in", "-r", "-o", tmp_path / "out")
    assert done.returncode == 0
    assert counted(done, "skipped", "exists (--overwrite replaces it)") == count
    assert done.stderr.count("\n") < 5


def test_a_tree_deeper_than_python_can_call_itself(tmp_path: Path) -> None:
    deep, levels = tmp_path / "i", 1100
    try:
        for _ in range(levels):
            deep.mkdir()
            deep /= "d"
        save(deep.parent / "a.png")
        done = upscale(tmp_path / "i", "-r", "-o", tmp_path / "o")
        assert done.exit_code == 0
        below = deep.parent.relative_to(tmp_path / "i")
        assert (tmp_path / "o" / below / "a.png").exists()
    finally:
        # shutil.rmtree, which pytest would use, calls itself too.
        subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


# Ways to say which files.


def test_globs_lists_folders_and_i(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    save(place / "more" / "c.jpg", seed=4)
    (place / "list.txt").write_bytes(b"\xef\xbb\xbfsecret.png\r\n\r\nmore/*.jpg\n")
    done = upscale("in/*.png", "@list.txt", "-i", "in/sub", "-o", "out")
    assert done.exit_code == 0, done.stderr
    assert names(place / "out") == ["a.png", "b.png", "c.jpg", "secret.png"]
    (place / "list.txt").write_text("@list.txt")
    assert upscale("@list.txt", "-o", "out").exit_code == 2
    assert "nothing matches no*.png" in errors(upscale("no*.png", "-o", "out"))[0]
    assert "cannot be read" in errors(upscale("@none.txt", "-o", "out"))[0]


def test_several_folders_keep_their_names(place: Path) -> None:
    save(place / "other" / "in" / "a.png", seed=5, size=(5, 5))
    save(place / "third" / "a.png", seed=6)
    done = upscale(place / "in", place / "third", place / "in", "-r", "-o", place / "out")
    assert done.exit_code == 0
    assert names(place / "out") == ["in/a.png", "in/sub/b.png", "third/a.png"]
    one = upscale(place / "in", place / "in" / "a.png", "-r", "-o", place / "one")
    assert one.exit_code == 0
    assert names(place / "one") == ["a.png", "sub/b.png"]


def test_no_input_is_replaced_though_it_is_broken(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "a.png").write_bytes(b"precious")
    done = upscale(
        *(place / "in" / "a.png", place / "out" / "a.png"), "-o", place / "out", "--overwrite"
    )
    assert done.exit_code == 3
    assert "which is an input too" in done.stderr
    assert contents(place / "out") == {"a.png": b"precious"}


def test_the_same_pattern_again_does_not_enlarge_outputs(place: Path) -> None:
    save(place / "in" / "c.jpg", seed=3)
    for again in (False, True):
        done = upscale(place / "in" / "*.*", "-s", 2)
        assert done.exit_code == 0, done.stderr
        expected = ["a.png", "a_nearest_2x.png", "c.jpg", "c_nearest_2x.jpg"]
        assert sorted(path.name for path in (place / "in").glob("*.*")) == expected
        words = "a_nearest_2x.png is the output of another input: skipped"
        assert (words in done.stderr) is again


def test_beside_the_root_nothing_lies() -> None:
    done = upscale("/")
    assert done.exit_code == 2
    assert "give a folder with -o" in errors(done)[0]
