"""Shards: each file is one shard's own, and all of them together do what one run does."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter, defaultdict
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import pytest
from command import contents, counted, errors, names, save, upscale

from waifu4x import headers
from waifu4x.batch import plan, shards
from waifu4x.batch.request import Encoding, Request
from waifu4x.errors import PictureReadError, UsageError
from waifu4x.models import open_upscaler
from waifu4x.sizes import Target
from waifu4x.upscaler import Upscaler


@pytest.fixture(scope="module")
def nearest() -> Upscaler:
    return open_upscaler("nearest")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """19 files, of which several want the name of one WebP."""
    place = tmp_path / "in"
    for k in range(12):
        save(place / ("", "sub", "sub/deep")[k % 3] / f"{k:02}.{('png', 'bmp')[k % 2]}", seed=k)
    for name in ("a.png", "a.jpg", "a.jpg.png", "a.png.jpg", "sub/A.PNG", "sub/b.jpg", "b.jpg"):
        save(place / name, seed=len(name))
    return place


def request(*inputs: object, **options: Any) -> Request:
    return Request(inputs=tuple(map(str, inputs)), target=Target(scale=2.0), **options)


def owner(place: str, count: int) -> int:
    """The shard that it is of; there is one."""
    (found,) = [k for k in range(1, count + 1) if shards.holds(place, (k, count))]
    return found


def apart(folder: Path, stems: tuple[str, str], count: int = 2) -> tuple[int, int]:
    """The shards of two names, which are to be two."""
    one, other = (owner(f"{stem}.png", count) for stem in stems)
    assert one != other
    return one, other


# Which files are whose.


@pytest.mark.parametrize(
    ("text", "shard"), [("1/1", (1, 1)), ("3/8", (3, 8)), (" 08/10 ", (8, 10)), ("9/9", (9, 9))]
)
def test_shards_are_counted_from_one(text: str, shard: tuple[int, int]) -> None:
    assert shards.parse(text) == shard


@pytest.mark.parametrize(
    "text", ["", "1", "0/4", "5/4", "1/0", "-1/4", "1/-4", "1.5/4", "a/b", "1/4/2", "¹/4", "1/"]
)
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--shard") as caught:
        shards.parse(text)
    assert "\n" not in str(caught.value)


def test_every_run_on_every_machine_splits_alike() -> None:
    """Pinned: a change would make hosts of two versions work on one file, or on none."""
    places = ("a.png", "sub/b.jpg", "Größe/é.webp", "x.tar.zip", "caf\udce9.png", "shot.0001.png")
    assert [owner(place, 1000) for place in places] == [251, 27, 93, 722, 488, 417]


def test_shards_are_about_of_one_size() -> None:
    sizes = Counter(owner(f"{k % 50}/IMG_{k:05}.jpg", 7) for k in range(7000))
    assert sorted(sizes) == [1, 2, 3, 4, 5, 6, 7]
    assert min(sizes.values()) > 900


def test_paths_and_texts_are_one() -> None:
    for path in (PurePath("a/b.png"), PureWindowsPath("a\\b.png")):
        assert [shards.holds(path, (k, 9)) for k in range(1, 10)] == [
            shards.holds("a/b.png", (k, 9)) for k in range(1, 10)
        ]


@pytest.mark.parametrize(
    "places",
    [
        ("a.png", "a.jpg", "a.jpg.png", "a.png.jpg.webp", "a", "A.PNG", "a.cbz", "a.pic", "a.."),
        ("x/caf\u00e9.png", "x/cafe\u0301.png", "X/CAFE\u0301.jpg"),
        ("shot.0001.png", "shot.0001.jpg.png", "Shot.0001.TIFF"),
    ],
)
def test_what_could_become_one_file_has_one_key(places: tuple[str, ...]) -> None:
    assert len({shards.key_of(place) for place in places}) == 1


@pytest.mark.parametrize(
    "places",
    [
        ("shot.0001.png", "shot.0002.png", "shot.png"),
        ("x/a.png", "y/a.png", "a.png"),
        ("v1.2.png", "v1.3.png"),
        (".a.png", "a.png"),
    ],
)
def test_what_could_not_has_keys_of_its_own(places: tuple[str, ...]) -> None:
    assert len({shards.key_of(place) for place in places}) == len(places)


@pytest.mark.parametrize("addition", ["", "_x", ".big", ".png"])
def test_no_two_shards_can_have_one_output(addition: str) -> None:
    """All names of up to four parts, by the rules of the plan."""
    parts = ("a", "B", "png", "PNG", "jpg", "zip", "pic", "0001", "")
    keys: defaultdict[str, set[str]] = defaultdict(set)
    for count in range(1, 5):
        for chosen in itertools.product(parts, repeat=count):
            name = ".".join(chosen)
            path = PurePath(name)
            if not name.strip(".") or path.name != name:
                continue
            stems = [path.stem, *([path.name] if shards.keeps_longer_name(name) else [])]
            for stem, suffix in itertools.product(stems, (".png", ".webp", path.suffix)):
                keys[f"{stem}{addition}{suffix}".casefold()].add(shards.key_of(name))
    assert len(keys) > 1000
    assert {output: found for output, found in keys.items() if len(found) > 1} == {}


# The plan.


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoding": Encoding(format="webp")},
        {"suffix": ".png"},
        {"name": "{stem}_{width}.{ext}"},
    ],
    ids=str,
)
def test_together_they_plan_what_one_run_does(
    tree: Path, nearest: Upscaler, count: int, options: dict[str, Any]
) -> None:
    asked = {"recursive": True, "output": str(tree.parent / "out"), **options}
    whole = plan.make(request(tree, **asked), nearest)
    made = [
        plan.make(request(tree, shard=(k, count), **asked), nearest) for k in range(1, count + 1)
    ]
    assert Counter((job.source.path, job.target) for each in made for job in each.jobs) == Counter(
        (job.source.path, job.target) for job in whole.jobs
    )
    assert [each.settled for each in made] == [[]] * count
    assert all(each.elsewhere == 19 - len(each.jobs) for each in made)
    assert whole.elsewhere == 0


def test_nothing_is_read_of_what_others_do(
    tree: Path, nearest: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    read = headers.read
    monkeypatch.setattr(headers, "read", lambda path, **o: seen.append(path) or read(path, **o))
    made = plan.make(request(tree, recursive=True, shard=(2, 3)), nearest)
    assert seen == [job.source.path for job in made.jobs]
    assert 0 < len(seen) < 19


def test_files_that_are_named_are_split_too(tree: Path, nearest: Upscaler) -> None:
    listed = tree.parent / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in sorted(tree.rglob("*.bmp"))))
    done: list[str] = []
    for k in (1, 2):
        asked = request(f"@{listed}", output=str(tree.parent / "out"), shard=(k, 2))
        done += [job.source.path.name for job in plan.make(asked, nearest).jobs]
    assert sorted(done) == sorted(path.name for path in tree.rglob("*.bmp"))


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        (["in/a.png"], {"output": "out"}, "give a folder, or several files"),
        (["in/a.png"], {}, "give a folder, or several files"),
        (["in/a.png", "in/b.jpg"], {}, "give it with -o"),
        (["in", "-"], {"output": "out"}, "give files or folders"),
        (["in"], {"name": "x.{ext}"}, "must contain {stem}"),
        (["in"], {"name": "{stem}{stem}"}, "must contain {stem}, and once"),
        (["in"], {"name": "{stem:.3}"}, "take no formats"),
        (["in"], {"name": "{stem!r}"}, "take no formats"),
        (["in"], {"name": "{stem}{width}"}, "parted from {width}"),
        (["in"], {"name": "{height}{stem}"}, "parted from {height}"),
        (["in"], {"name": "{stem}.{scale}.{ext}"}, "parted from {ext}"),
        (["in"], {"name": "{stem}x{height}"}, "parted from {height}"),
        (["in/*.png"], {"output": "out", "name": "{parent}-{stem}"}, "needs folders"),
    ],
)
def test_what_cannot_be_split(
    tree: Path,
    nearest: Upscaler,
    monkeypatch: pytest.MonkeyPatch,
    inputs: list[str],
    options: dict[str, str],
    words: str,
) -> None:
    monkeypatch.chdir(tree.parent)
    with pytest.raises(UsageError) as caught:
        plan.make(request(*inputs, shard=(1, 2), **options), nearest)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("{stem}", "{stem}.{ext}", "{stem}.webp", "{stem}_{scale}x.{ext}", "{width}-{stem}"),
        *("x{stem}y", "{parent}{stem}", "{model}{stem}{model}"),
    ],
)
def test_names_that_tell_files_apart(tree: Path, nearest: Upscaler, name: str) -> None:
    made = [
        plan.make(request(tree, recursive=True, shard=(k, 2), name=name), nearest) for k in (1, 2)
    ]
    targets = [{str(job.target).casefold() for job in each.jobs} for each in made]
    assert all(targets)
    assert not targets[0] & targets[1]


def test_a_picture_with_an_unknown_ending_waits_for_no_longer_name(
    tmp_path: Path, nearest: Upscaler
) -> None:
    """In another shard ``a.pic.png`` may be the name of another output."""
    place = tmp_path / "in"
    save(place / "a.png")
    save(place / "a.bmp", seed=1)
    save(place / "b.png", seed=2).rename(place / "a.pic")
    asked = {"output": str(tmp_path / "out"), "encoding": Encoding(format="png")}
    alone = plan.make(request(place, **asked), nearest)
    assert len(alone.jobs) == 3
    made = plan.make(request(place, shard=(owner("a.png", 5), 5), **asked), nearest)
    assert {job.target and job.target.name for job in made.jobs} == {"a.png", "a.bmp.png"}
    (failed,) = made.settled
    assert failed.source.name == "a.pic"
    assert "would both become" in failed.reason


def test_no_input_of_another_shard_is_replaced(tmp_path: Path, nearest: Upscaler) -> None:
    one, _ = apart(tmp_path, ("a", "a_x"))
    files = [save(tmp_path / name) for name in ("a.png", "a_x.png")]
    asked = {"output": str(tmp_path), "suffix": "_x", "overwrite": True}
    made = plan.make(request(*files, shard=(one, 2), **asked), nearest)
    assert (made.jobs, made.elsewhere) == ([], 1)
    assert "which is an input too" in made.settled[0].reason


def test_a_shard_with_nothing_to_do(tmp_path: Path, nearest: Upscaler) -> None:
    save(tmp_path / "in" / "a.png")
    other = 3 - owner("a.png", 2)
    done = upscale(tmp_path / "in", "-o", tmp_path / "out", "--shard", f"{other}/2")
    assert (done.exit_code, names(tmp_path / "out")) == (0, [])
    assert "holds none of the files" in done.stderr
    assert counted(done, "left out", "belongs to other shards") == 1
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / "a.txt").write_text("no picture")
    with pytest.raises(PictureReadError, match="there is no picture in"):
        plan.make(request(tmp_path / "in", shard=(1, 2)), nearest)


def test_what_others_do_is_counted_and_no_more(tree: Path) -> None:
    done = upscale(tree, "-r", "-o", tree.parent / "out", "--shard", "1/2", "--json", "-v")
    assert done.exit_code == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    mine = [path for path in tree.rglob("*.*") if shards.holds(path.relative_to(tree), (1, 2))]
    assert {line["input"] for line in lines} == set(map(str, mine))
    assert counted(done, "left out", "belongs to other shards") == 19 - len(mine)
    assert done.stderr.count("other shards") == 1
    planned = upscale(tree, "-r", "-o", tree.parent / "new", "--shard", "2/2", "--dry-run")
    assert counted(planned, "left out", "belongs to other shards") == len(mine)
    assert not (tree.parent / "new").exists()
    refused = upscale(tree, "--shard", "3/2")
    assert (refused.exit_code, len(errors(refused))) == (2, 1)


# The runs.


@pytest.fixture
def whole(tree: Path) -> dict[str, bytes]:
    """What one run makes of it."""
    assert upscale(tree, "-r", "-f", "webp", "-o", tree.parent / "whole").exit_code == 0
    made = contents(tree.parent / "whole")
    assert len(made) == 19
    return made


def shard(tree: Path, k: int, count: int, *options: object) -> Any:
    out = tree.parent / "out"
    return upscale(tree, "-r", "-f", "webp", "-o", out, "--shard", f"{k}/{count}", *options)


def test_together_they_make_what_one_run_does(tree: Path, whole: dict[str, bytes]) -> None:
    order = [1, 2, 3]
    random.Random(0).shuffle(order)
    for k in order:
        assert shard(tree, k, 3).exit_code == 0
    out = tree.parent / "out"
    assert contents(out) == whole
    assert sorted(path.name for path in (out / ".waifu4x").iterdir()) == [
        f"journal-{k}-of-3.jsonl" for k in (1, 2, 3)
    ]


def test_any_run_goes_on_where_shards_stopped(tree: Path, whole: dict[str, bytes]) -> None:
    """With another number of shards, and with none."""
    first = counted(shard(tree, 1, 2), "done")
    rest = [shard(tree, k, 3) for k in (1, 2, 3)]
    assert first + sum(counted(each, "done") for each in rest) == 19
    assert sum(counted(each, "skipped", "done before") for each in rest) == first
    alone = upscale(tree, "-r", "-f", "webp", "-o", tree.parent / "out")
    assert counted(alone, "skipped", "done before") == 19
    assert contents(tree.parent / "out") == whole
    (tree.parent / "out" / "00.webp").unlink()
    again = upscale(tree, "-r", "-f", "webp", "-o", tree.parent / "out")
    assert counted(again, "done") == 1
    assert counted(shard(tree, owner("00.png", 5), 5), "done") == 0
    assert contents(tree.parent / "out") == whole


def test_what_failed_in_a_shard_is_tried_again_by_any(tree: Path, whole: dict[str, bytes]) -> None:
    damaged = tree / "sub" / "b.jpg"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:100])
    codes = [shard(tree, k, 2).exit_code for k in (1, 2)]
    assert sorted(codes) == [0, 3]
    damaged.write_bytes(good)
    mine = owner("sub/b.jpg", 3)
    for k in (1, 2, 3):
        done = counted(shard(tree, k, 3, "--retry-failed"), "done")
        assert done == (k == mine)
    assert contents(tree.parent / "out") == whole
    alone = upscale(tree, "-r", "-f", "webp", "-o", tree.parent / "out", "--retry-failed")
    assert counted(alone, "done") == 0


def test_the_later_run_counts_whatever_the_clocks_say(tree: Path) -> None:
    """The journal that was written to last may hold the older line about an output."""
    out = tree.parent / "out"
    mine = owner("a.png", 2)
    first = (tree, "-o", out, "-f", "bmp", "--shard", f"{mine}/2")
    assert upscale(*first).exit_code == 0
    made = (out / "a.bmp").read_bytes()
    assert upscale(tree, "-o", out, "-f", "bmp", "-m", "bicubic").exit_code == 0
    assert (out / "a.bmp").read_bytes() != made
    assert len((out / "a.bmp").read_bytes()) == len(made)
    journals = out / ".waifu4x"
    os.utime(journals / "journal.jsonl", ns=(1, 1))
    done = upscale(*first)
    assert counted(done, "skipped", "done before") == 0
    assert (out / "a.bmp").read_bytes() == made
