"""Sets of pictures: by the names that papers use, or any folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import save

from waifu4x.bench.sets import KNOWN_SETS, open_set, open_sets, sets_folder
from waifu4x.errors import EXIT_USAGE, UsageError

Cached = Callable[[str], Path]


@pytest.fixture
def cached(own_home: Path) -> Cached:
    """A set of two pictures in the folder of sets, under any name."""

    def put(name: str) -> Path:
        place = own_home / "datasets" / name
        save(place / "b.png")
        save(place / "a.png")
        return place

    return put


def test_where_sets_lie(own_home: Path) -> None:
    assert sets_folder() == own_home / "datasets"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *(("Set5", "Set5"), ("set5", "Set5"), ("SET14", "Set14"), ("set5/", "Set5")),
        *(("b100", "B100"), ("BSD100", "B100"), ("bsds100", "B100"), ("Urban100", "Urban100")),
        *(("manga109", "Manga109"), ("div2k", "DIV2K"), ("DIV2K-VAL", "DIV2K")),
        ("div2k_valid_hr", "DIV2K"),
    ],
)
@pytest.mark.parametrize("folder", [str, str.lower, str.upper])
def test_sets_by_name(text: str, name: str, folder: Callable[[str], str], cached: Cached) -> None:
    place = cached(folder(name))
    found = open_set(text)
    assert (found.name, found.folder) == (name, place)
    assert [path.name for path in found.pictures] == ["a.png", "b.png"]


def test_a_set_that_was_put_there_under_another_of_its_names(cached: Cached) -> None:
    place = cached("DIV2K_valid_HR")
    assert open_set("div2k").folder == place
    place = cached("BSDS100")
    assert open_set("b100").folder == place


@pytest.mark.parametrize("known", KNOWN_SETS, ids=lambda known: known.name)
def test_a_set_that_is_not_here(known, own_home: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_set(known.name.lower())
    message = str(caught.value)
    assert caught.value.exit_code == EXIT_USAGE
    assert message.startswith(f"{known.name} is not here: get its {known.pictures} ")
    assert known.where in message
    assert known.where.startswith(("https://", "http://"))
    assert f"put them into {own_home / 'datasets' / known.name}, or name their folder" in message
    assert "\n" not in message


def test_a_set_without_pictures_in_it(own_home: Path) -> None:
    (own_home / "datasets" / "Set5").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no pictures in .*Set5$"):
        open_set("set5")


def test_a_folder_comes_before_a_name(
    cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached("Set5")
    monkeypatch.chdir(tmp_path)
    save(Path("set5") / "own.png")
    found = open_set("set5")
    assert (found.name, found.folder) == ("Set5", Path("set5"))
    assert [path.name for path in found.pictures] == ["own.png"]


def test_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(tmp_path / "mine" / "deep" / "b.PNG")
    second = save(tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / "notes.txt").write_text("nothing")
    save(tmp_path / "mine" / ".hidden" / "c.png")
    for text in (tmp_path / "mine", f"{tmp_path}/mine/"):
        found = open_set(text)
        assert (found.name, found.folder) == ("mine", tmp_path / "mine")
        assert found.pictures == (second, first)
        assert [found.name_of(path) for path in found.pictures] == ["a", "deep/b"]
    # Those without a name of their own have that of the place where they are.
    monkeypatch.chdir(tmp_path / "mine" / "deep")
    assert [open_set(text).name for text in (".", "..", "../deep")] == ["deep", "mine", "deep"]


def test_what_is_no_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    picture = save(tmp_path / "a.png")
    for place, words in (
        (tmp_path / "absent", "absent: it does not exist$"),
        (tmp_path / "empty", "empty$"),
        (picture, r"a\.png: it is a file: name its folder$"),
    ):
        with pytest.raises(UsageError, match=f"no pictures in .*{words}"):
            open_set(place)


def test_two_sets_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("one/Set5", "two/Set5", "Set14"):
        save(Path(place) / "a.png")
    names = [found.name for found in open_sets(["one/Set5", "Set14", "two/Set5", "one/Set5/"])]
    # The same folder is measured once.
    assert names == ["one/Set5", "Set14", "two/Set5"]
    assert [found.name for found in open_sets(["one/Set5", "Set14"])] == ["Set5", "Set14"]


def test_partners_of_two_sets_of_one_name(tmp_path: Path) -> None:
    """A set that is named by its path, even a whole one, does not lead to its own pictures."""
    large = [save(tmp_path / place / "Set5" / "a.png", size=(8, 8)) for place in ("one", "two")]
    small = save(tmp_path / "lr" / "Set5" / "a.png")
    found = open_sets([path.parent for path in large])
    assert [dataset.name for dataset in found] == [path.parent.as_posix() for path in large]
    for dataset, path in zip(found, large, strict=True):
        assert dataset.partners(tmp_path / "lr", scale=2) == {path: small}


def test_partners_of_a_set_by_its_name(cached: Cached, tmp_path: Path) -> None:
    """DIV2K names the small ones by their scale, and their folder too."""
    place = cached("DIV2K_valid_HR")
    found = open_set("div2k")
    for folder in ("DIV2K_valid_LR_bicubic/X4", "lr/DIV2K", "lr2/DIV2K_valid_HR/x4"):
        small = [save(tmp_path / folder / f"{name}x4.png") for name in "ab"]
        top = tmp_path / Path(folder).parts[0]
        partners = found.partners(top, scale=4)
        assert partners == {place / "a.png": small[0], place / "b.png": small[1]}
    with pytest.raises(UsageError, match="no partners"):
        found.partners(tmp_path / "DIV2K_valid_LR_bicubic", scale=2)
