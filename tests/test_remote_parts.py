"""What remote files are made of: names, versions, streams, requests, and the journal."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shaky
from command import noise, save
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from shaky import ShakyFileSystem, Shop, failing
from test_layers import MODULES, imported

from waifu4x import archives, headers
from waifu4x.batch import heads, journal, remote_journal, remote_sources, sources, staging
from waifu4x.batch.journal import Line
from waifu4x.batch.remote_journal import RemoteJournal
from waifu4x.batch.remote_outputs import There
from waifu4x.batch.sources import Source
from waifu4x.errors import DiskFullError, PictureReadError, PictureWriteError, UsageError
from waifu4x.remote import ranged, stamps, stores, urls
from waifu4x.remote.ranged import Ranged
from waifu4x.remote.stores import Entry
from waifu4x.remote.urls import Url


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    shaky.empty()
    yield
    shaky.empty()


def url_of(text: str) -> Url:
    url = urls.location(text)
    assert isinstance(url, Url)
    return url


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "parent", "identity"),
    [
        ("s3://bucket/photos/a.png", "a.png", "s3://bucket/photos", "s3://bucket/photos/a.png"),
        ("S3a://bucket/photos/", "photos", "S3a://bucket", "s3://bucket/photos"),
        ("s3://bucket", "bucket", "s3://bucket", "s3://bucket"),
        ("s3://bucket/a//b.png", "b.png", "s3://bucket/a/", "s3://bucket/a//b.png"),
        ("gcs://b/x?y#z", "x?y#z", "gcs://b", "gs://b/x?y#z"),
        ("memory:///x/a.png", "a.png", "memory://x", "memory://x/a.png"),
        ("memory://a.png", "a.png", "memory://", "memory://a.png"),
        ("hdfs:///a/b.png", "b.png", "hdfs:///a", "hdfs:///a/b.png"),
        ("sftp://me:pw@h:22/a.png", "a.png", "sftp://me:***@h:22", "sftp://me@h:22/a.png"),
        ("ssh://h/a/b", "b", "ssh://h/a", "sftp://h/a/b"),
        ("abfs://box@account.net/a", "a", "abfs://box@account.net", "az://box@account.net/a"),
        ("https://h/x/a.png?sig=1/2", "a.png", "https://h/x", "https://h/x/a.png"),
        (
            "github://me:repo@v1/x/a.png",
            "a.png",
            "github://me:repo@v1/x",
            "github://me:repo@v1/x/a.png",
        ),
        ("git://repo:v1@x/a.png", "a.png", "git://repo:v1@x", "git://repo:v1@x/a.png"),
    ],
)
def test_names(text: str, name: str, parent: str, identity: str) -> None:
    url = url_of(text)
    assert (url.name, str(url.parent), url.identity) == (name, parent, identity)
    assert url_of(url.text) == url == pickle.loads(pickle.dumps(url))


def test_names_are_joined_and_taken_apart() -> None:
    folder = url_of("s3://bucket/big/")
    target = folder / Path("deep/er") / "a.b.png"
    assert target.text == "s3://bucket/big/deep/er/a.b.png"
    assert (target.stem, target.suffix) == ("a.b", ".png")
    assert target.below(folder) == "deep/er/a.b.png"
    assert target.below(url_of("s3a://bucket")) == "big/deep/er/a.b.png"
    assert target.below(url_of("s3://bucket/bi")) is None
    assert folder / Path() == folder
    assert (url_of("memory://") / "a.png").text == "memory://a.png"
    assert (url_of("hdfs:///") / "a.png").text == "hdfs:///a.png"
    assert target.with_name("c.png").text == "s3://bucket/big/deep/er/c.png"
    assert url_of("s3://bucket").is_root
    assert not folder.is_root


def test_files_of_two_repositories_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "is_folder", lambda text: False)
    monkeypatch.setattr(remote_sources, "expanded", lambda text: [text])
    texts = [f"github://me:{repo}@main/x.png" for repo in ("one", "two")]
    found, _ = sources.gather(texts, recursive=False)
    assert [source.path for source in found] == [url_of(text) for text in texts]


@pytest.mark.parametrize("text", ["a.png", "/a/b", "C:\\a", "a:b", "@s3://b/list.txt", "-", "x:/y"])
def test_paths_stay_as_they_are(text: str) -> None:
    assert not urls.is_url(text)
    assert urls.location(text) == Path(text)
    assert urls.plain(text) == text


def test_files_of_this_machine_are_paths() -> None:
    assert urls.location("file:///a/b c.png") == Path("/a/b c.png")
    assert urls.location("local:///a/b") == Path("/a/b")
    assert not urls.is_url("FILE:///a")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sftp://me:p:4@s@h/x@y:z", "sftp://me:***@h/x@y:z"),
        ("at 'ftp://a:b@c/d' and ssh://e:f@g", "at 'ftp://a:***@c/d' and ssh://e:***@g"),
        ("get https://h/a?sig=s3cr3t, url='http://x/?k=v'", "get https://h/a?… url='http://x/?…'"),
        ("s3://bucket/a?b=c:d@e", "s3://bucket/a?b=c:d@e"),
        ("sftp://me@h/x", "sftp://me@h/x"),
        (
            "github://me:repo@v1/x or gist://me:t0ken@0a",
            "github://me:repo@v1/x or gist://me:***@0a",
        ),
    ],
)
def test_secrets_are_left_out(text: str, shown: str) -> None:
    assert urls.without_secrets(text) == shown


def test_a_url_is_shown_without_its_password() -> None:
    url = url_of("sftp://me:pw@h/a.png")
    assert "pw" not in f"{url} {url!r} {url.parent} {url / 'b'} {[url]} {url.identity}"
    assert (url.password, url_of("sftp://h/a:b@c").password) == ("pw", "")
    assert url_of("github://me:repo@v1/a.png").password == ""


def test_what_lies_inside() -> None:
    assert urls.is_inside("s3://b/a/c", "s3://b/a")
    assert urls.is_inside("s3://b/a", "s3://b/a")
    assert not urls.is_inside("s3://b/ac", "s3://b/a")
    assert urls.is_inside(os.path.join(os.sep, "a", "b"), os.sep)


# -- versions --------------------------------------------------------------------------------------

_NOON = datetime(2024, 5, 6, 12, 30, 15, 250_000, tzinfo=UTC)
_NOON_NS = 1_714_998_615_250_000_000


@pytest.mark.parametrize(
    "info",
    [
        {"LastModified": _NOON},
        {"last_modified": _NOON.astimezone(timezone(timedelta(hours=5)))},
        {"mtime": _NOON.replace(tzinfo=None)},
        {"mtime": _NOON.timestamp()},
        {"updated": "2024-05-06T12:30:15.250Z"},
        {"modificationTime": 1_714_998_615_250},
        {"created": _NOON, "mtime": None},
    ],
    ids=lambda info: next(iter(info)),
)
def test_when_it_was_written(info: dict[str, Any]) -> None:
    assert stamps.of({"size": 5, **info}) == (5, _NOON_NS)


def test_checksums_count_too() -> None:
    one, other = ({"size": 5, "LastModified": _NOON, "ETag": etag} for etag in ('"a"', '"b"'))
    assert stamps.of(one) != stamps.of(other), "many stores count only seconds"
    assert stamps.of(one)[1] // 1000 == _NOON_NS // 1000
    assert stamps.of(one) == stamps.of({**one, "ETag": "a", "name": "x", "VersionId": None})
    without = {"size": 5, "ETag": '"a"'}
    assert 0 < stamps.version(without) < 2**48
    assert stamps.version(without) == stamps.version(dict(without)) != stamps.version({"md5": "b"})
    assert stamps.of({"size": None}) == (-1, 0)
    assert stamps.time_ns({"modify": "20240506123015"}) == _NOON_NS - 250_000_000
    assert stamps.time_ns({"modify": "yesterday", "mtime": True}) == 0


# -- streams ---------------------------------------------------------------------------------------


def test_a_stream_reads_as_a_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "FIRST_BYTES", 16)
    data = bytes(range(256)) * 4
    stream, file = Ranged(url_of(Shop("memory").put("x", data))), io.BytesIO(data)
    for offset, whence, count in (
        *((0, 0, 10), (5, 1, 3), (-20, 2, 20), (100, 0, 0), (1000, 0, 100), (2000, 0, 5)),
        *((300, 0, 500), (0, 0, -1), (1024, 0, 1), (-1024, 2, None)),
    ):
        assert stream.seek(offset, whence) == file.seek(offset, whence)
        assert stream.read(count) == file.read(count)
        assert stream.tell() == file.tell()
    with pytest.raises(OSError, match="Invalid"):
        stream.seek(-1)
    assert stream.end(7) == data[-7:]
    stream.seek(0)
    assert io.BufferedReader(stream).read() == data


def test_a_stream_asks_seldom() -> None:
    shop, data = Shop("shaky"), os.urandom(3 * ranged.FIRST_BYTES)
    url = url_of(shop.put("x", data))
    stamp = stores.find(url)
    ShakyFileSystem.asked.clear()
    stream = Ranged(url, stamp)
    for at in range(0, len(data), 1000):
        stream.seek(at)
        stream.read(10)
    reads = [path for operation, path in ShakyFileSystem.asked if operation == "cat_file"]
    assert len(reads) == 2
    assert not [path for operation, path in ShakyFileSystem.asked if operation == "ls"]


def test_a_server_that_knows_no_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(2 * ranged.FIRST_BYTES)
    url = url_of(Shop("shaky").put("x", data))
    monkeypatch.setattr(stores, "read", lambda url, *part: data)
    stream = Ranged(url)
    assert stream.read(10) == data[:10]
    assert stream.end(10) == data[-10:]


def test_a_store_that_says_no_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    url = url_of(Shop("shaky").put("x", b"content"))
    monkeypatch.setattr(stores, "find", lambda url: (-1, 5))
    stream = Ranged(url, (-1, 5))
    assert (stream.stamp, stream.read()) == ((7, 5), b"content")


def test_a_file_that_changes_while_it_is_read() -> None:
    shop = Shop("memory")
    stream = Ranged(url_of(shop.put("x", b"123456")), (9, 0))
    with pytest.raises(PictureReadError, match="was changed while it was read"):
        stream.read()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "gif", "bmp", "avif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_headers_are_the_same_from_a_store(tmp_path: Path, suffix: str, mode: str) -> None:
    if (suffix, mode) == ("jpg", "RGBA"):
        pytest.skip("JPEG has no transparency")
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    options: Any = {"exif": exif} if suffix in ("png", "jpg", "tiff", "webp") else {}
    noise(size=(300, 170), mode=mode).save(path, **options)
    url = url_of(Shop("memory").put(path.name, path.read_bytes()))
    assert headers.read(Ranged(url)) == headers.read(path)


def test_archives_are_the_same_from_a_store(tmp_path: Path) -> None:
    path = tmp_path / "a.cbz"
    page = save(tmp_path / "page.png", size=(400, 300)).read_bytes()
    with zipfile.ZipFile(path, "w") as book:
        for k in range(4):
            book.writestr(f"{k}.png", page)
    stream: Any = Ranged(url_of(Shop("memory").put("a.cbz", path.read_bytes())))
    assert archives.member_names(stream) == archives.member_names(path)
    assert list(archives.read_members(stream)) == list(archives.read_members(path))


# -- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["memory", "shaky"])
def test_what_a_store_is_asked(protocol: str, tmp_path: Path) -> None:
    shop = Shop(protocol)
    url = url_of(shop.put("a/b/c.png", b"content"))
    assert (stores.find(url) or (0, 0))[0] == 7
    assert stores.find(url.parent) is None
    assert stores.find(url / "d") is None
    assert stores.is_folder(url.parent)
    assert not stores.is_folder(url)
    assert not stores.is_folder(url.with_name("d"))
    assert [entry.place for entry in stores.list_folder(url.parent.parent)] == ["b"]
    assert stores.read(url, 1, 3) == b"on"
    stores.fetch(url, tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"content"
    with pytest.raises(PictureReadError, match=r"d\.png does not exist: check the name"):
        stores.read(url.with_name("d.png"))
    stores.prepare_folder(url.parent / "e")
    stores.put(tmp_path / "here", url.parent / "e" / "f [1].png")
    assert shop.files["a/b/e/f [1].png"] == b"content"


def test_large_files_are_sent_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_IN_ONE_BYTES", 3)
    (tmp_path / "x").write_bytes(b"content")
    for protocol in ("memory", "shaky"):
        stores.put(tmp_path / "x", url_of(f"{Shop(protocol).root}y"))
        assert Shop(protocol).files == {"y": b"content"}


def test_what_arrives_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop("shaky")
    original = ShakyFileSystem.pipe_file

    def cut(self: ShakyFileSystem, path: str, value: bytes, **options: Any) -> None:
        original(self, path, value[:3])

    monkeypatch.setattr(ShakyFileSystem, "pipe_file", cut)
    with pytest.raises(PictureWriteError, match="only 3 of 7 bytes arrived"):
        stores.put(b"content", url_of(f"{shop.root}y"))
    assert shop.files == {}


def test_a_store_that_replaces_nothing_and_does_not_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As WebHDFS does."""
    shop, mv = Shop("shaky"), ShakyFileSystem.mv
    url = url_of(shop.put("x", b"before"))

    def quiet(self: ShakyFileSystem, path1: str, path2: str, **options: Any) -> None:
        if path2 not in self.files:
            mv(self, path1, path2)

    monkeypatch.setattr(ShakyFileSystem, "mv", quiet)
    stores.put(b"after", url)
    assert shop.files == {"x": b"after"}
    monkeypatch.setattr(ShakyFileSystem, "mv", lambda *whatever: None)
    for name, there in (("x", {"x": b"after"}), ("new", {"x": b"after"})):
        with pytest.raises(PictureWriteError, match="the store did not rename what was sent"):
            stores.put(b"other", url.with_name(name))
        assert shop.files == there


def test_what_may_be_moved_is_moved_back(monkeypatch: pytest.MonkeyPatch) -> None:
    shop, mv = Shop("shaky"), ShakyFileSystem.mv
    url, moves = url_of(shop.put("x", b"before")), []

    def quiet(self: ShakyFileSystem, path1: str, path2: str, **options: Any) -> None:
        moves.append(path1)
        if len(moves) in (2, 4):
            mv(self, path1, path2)

    monkeypatch.setattr(ShakyFileSystem, "mv", quiet)
    with pytest.raises(PictureWriteError, match="the store did not rename"):
        stores.put(b"after", url)
    assert shop.files == {"x": b"before"}


@pytest.mark.parametrize("others", [1, 2, 3])
def test_folders_that_two_machines_make(monkeypatch: pytest.MonkeyPatch, others: int) -> None:
    """fsspec's SFTP asks for each of them, and fails where another one made it meanwhile."""
    raced: list[str] = []

    def makedirs(self: ShakyFileSystem, path: str, exist_ok: bool = False) -> None:
        above = ""
        for part in path.strip("/").split("/"):
            above = f"{above}/{part}"
            if above not in self.folders:
                self.folders.add(above)
                if len(raced) < others:
                    raced.append(above)
                    raise OSError("Failure")

    monkeypatch.setattr(ShakyFileSystem, "makedirs", makedirs)
    stores.prepare_folder(url_of("shaky://host/a/b/c"))
    assert ShakyFileSystem.folders == {"/a", "/a/b", "/a/b/c"}
    assert len(raced) == others


def test_a_folder_that_cannot_be_made() -> None:
    with (
        failing("makedirs", "a", OSError("Failure")),
        pytest.raises(PictureWriteError, match="a/b cannot be written: Failure"),
    ):
        stores.prepare_folder(url_of("shaky://host/a/b"))


@pytest.mark.parametrize(
    ("start", "above", "pattern", "names"),
    [
        ("abfss://box@account.net/in/", "box/in/", "*.png", ["a.png", "b.png"]),
        ("abfss://box@account.net/in/", "box/in/", "*/x?.png", ["a/x1.png"]),
        ("s3://box/in/", "box/in/", "[ab].png", ["a.png"]),
        ("s3://box/in//", "box/in//", "*.png", ["a.png"]),
        ("s3://", "", "bo*/a.png", ["box/a.png"]),
        ("memory://", "/", "*.png", ["a.png"]),
        ("memory://in/", "/in/", "*.png", ["a.png"]),
        ("hdfs:///", "/", "*.png", ["a.png"]),
        ("sftp://me:p*[@h/", "/", "*.png", ["a.png"]),
    ],
)
def test_patterns_become_urls(
    monkeypatch: pytest.MonkeyPatch, start: str, above: str, pattern: str, names: list[str]
) -> None:
    """above: what the paths of a store have in the place of what its URLs begin with."""
    store = SimpleNamespace(
        _strip_protocol={start: above.rstrip("/")}.__getitem__,
        glob={above + pattern: [above + name for name in reversed(names)]}.__getitem__,
    )
    monkeypatch.setattr(stores, "_opened", lambda url: (store, above + pattern))
    found = stores.glob(url_of(start + pattern))
    assert [url.text for url in found] == [start + name for name in names]


def test_a_full_disk_is_no_fault_of_a_file(tmp_path: Path) -> None:
    shop = Shop("shaky")
    url = url_of(shop.put("x", b"content"))
    with (
        failing("cat_file", "x", OSError(28, "No space left on device")),
        pytest.raises(DiskFullError, match="let TMPDIR name another folder"),
    ):
        stores.fetch(url, tmp_path / "a" / "b")
    with (
        failing("half", "", OSError(28, "No space left on device")),
        pytest.raises(DiskFullError),
    ):
        stores.put(b"content", url)


def test_few_files_are_asked_for_and_many_are_listed() -> None:
    shop = Shop("shaky")
    folder = url_of(f"{shop.root}out")
    for k in range(50):
        shop.put(f"out/deep/{k}.png", bytes(k))
    ShakyFileSystem.asked.clear()
    there = There(folder)
    found = [there.find(folder / f"deep/{k}.png") for k in range(100)]
    assert [None if stamp is None else stamp[0] for stamp in found] == [*range(50), *[None] * 50]
    assert sum(operation == "ls" for operation, _ in ShakyFileSystem.asked) == 2
    elsewhere = There(None)
    assert elsewhere.find(folder / "deep/1.png") is not None
    empty = There(url_of(f"{shop.root}new"))
    assert {empty.find(empty_url) for empty_url in [folder.with_name("new") / "a"] * 50} == {None}


def test_a_store_that_fails_is_not_asked_again() -> None:
    shop = Shop("shaky")
    folder = url_of(f"{shop.root}out")
    there = There(folder)
    with failing("info", "out", ConnectionError("nobody")):
        for _ in range(3):
            with pytest.raises(PictureWriteError, match="nobody"):
                there.find(folder / "a.png")
        assert sum(operation == "info" for operation, _ in ShakyFileSystem.asked) == 1


def test_folders_come_in_the_order_of_paths() -> None:
    names = ("b.png", "a/z.png", "c/d/e.png", "a.png", "c/a.png", "B.png", ".h/x.png", "x.txt")
    listed = []
    for protocol in ("memory", "shaky"):
        shop = Shop(protocol)
        for name in names:
            shop.put(f"in/{name}", b"x")
        folder = url_of(f"{shop.root}in")
        found = list(remote_sources.walk(folder, recursive=True, barred=None))
        listed.append([(each.place, each.fault) for each in found])
    assert listed[0] == listed[1]
    assert [place for place, fault in listed[0] if fault is None] == [
        *("B.png", "a.png", "b.png", "c/a.png", "c/d/e.png", "a/z.png")
    ]


def test_empty_names_in_paths_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets have them; no folder could keep `in//a.png` apart from `in/a.png`."""
    names = ("x", "a.png", "/a.png", "//a.png", "/only.png", "x/c.png", "x//c.png", "x//d/e.png")
    entries = [Entry(name, "file", (k, 0)) for k, name in enumerate(names)]
    monkeypatch.setattr(stores, "list_all", lambda folder: entries)
    found = list(remote_sources.walk(url_of("s3://b/in"), recursive=True, barred=None))
    assert len(found) == len(names)
    good = {each.place: each.stamp[0] for each in found if each.fault is None}
    assert good == {"a.png": 1, "x/c.png": 5}
    odd = {each.url.text for each in found if each.fault == "an empty name is in its path (//)"}
    assert odd == {f"s3://b/in/{name}" for name in names if "//" in f"/{name}"}


def test_objects_that_stand_for_folders() -> None:
    shop = Shop("memory")
    shop.put("in/a.png", b"x")
    MemoryFileSystem().pipe_file("/in/a.png.d/b.png", b"x")
    entries = stores._entries(
        [
            {"name": "bucket/in", "size": 0, "type": "directory"},
            {"name": "bucket/in/", "size": 0, "type": "file"},
            {"name": "bucket/in/deep/", "size": 0, "type": "file"},
            {"name": "bucket/in/a.png", "size": 1, "type": "file"},
            {"name": "bucket/inside.png", "size": 1, "type": "file"},
            {"name": "bucket/in/link", "size": 1, "type": "link"},
        ],
        "bucket/in",
    )
    assert [(entry.place, entry.kind) for entry in entries] == [
        ("a.png", "file"),
        ("link", "other"),
    ]
    found = remote_sources.walk(url_of("memory://in"), recursive=True, barred=None)
    assert [each.place for each in found] == ["a.png", "a.png.d/b.png"]


def test_few_files_without_a_suffix_are_looked_into() -> None:
    shop = Shop("memory")
    picture = io.BytesIO()
    noise().save(picture, "PNG")
    for k in range(40):
        shop.put(f"in/{k:02}", picture.getvalue())
    shop.put("in/readme", b"text")
    found = list(remote_sources.walk(url_of("memory://in"), recursive=True, barred=None))
    faults = [each.fault for each in found]
    assert faults[:32] == [None] * 32
    assert set(faults[32:]) == {"has no suffix, and 32 others were looked into: name it"}


# -- staging ---------------------------------------------------------------------------------------


def test_what_killed_runs_left_here_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(staging, "_swept", [])
    folders = {name: tmp_path / f"waifu4x-staging-{name}" for name in ("old", "new", "used")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "file.png").write_bytes(b"x")
        if name != "used":
            os.utime(folder / "file.png", (0, 0))
        if name != "new":
            os.utime(folder, (0, 0))
    with staging.written(url_of("memory://a.png")) as here:
        here.write_bytes(b"content")
    assert Shop("memory").files == {"a.png": b"content"}
    assert sorted(tmp_path.iterdir()) == [folders["new"], folders["used"]]


def test_no_room_for_what_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with (
        pytest.raises(PictureWriteError, match="let TMPDIR name a folder with room"),
        staging.written(url_of("memory://a.png")),
    ):
        pass


def test_heads_are_fetched_once(tmp_path: Path) -> None:
    shop = Shop("shaky")
    found = []
    for k in range(5):
        url = url_of(shop.put(f"{k}.png", save(tmp_path / "a.png", seed=k).read_bytes()))
        found.append(Source(path=url, relative=Path(url.name), stamp=stores.find(url)))
    found.append(Source(path=tmp_path / "a.png", relative=Path("a.png")))
    ShakyFileSystem.asked.clear()
    with heads.Heads(found) as ahead:
        ahead.is_wanted = lambda source: source.relative.name != "3.png"
        for source in [found[0], *found[:3], *found[4:]]:
            assert headers.read(ahead.of(source)).width_px == 6
    read = sorted(path for operation, path in ShakyFileSystem.asked if operation == "cat_file")
    assert read == ["/0.png", "/1.png", "/2.png", "/4.png"]


# -- the journal -----------------------------------------------------------------------------------


def line(name: str, **changes: Any) -> Line:
    return Line(**{"source": name, "output": name, "status": "done", "settings": "s", **changes})


def test_the_journal_is_put_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(remote_journal.time, "monotonic", lambda: clock[0])
    shop = Shop("memory")
    kept = RemoteJournal(url_of("memory://out"))
    lines_put: list[int] = []
    original = stores.put

    def put(content: bytes | Path, url: Url) -> None:
        original(content, url)
        lines_put.append(shop.journal().count(b"\n"))

    monkeypatch.setattr(stores, "put", put)
    kept.begin()
    for k in range(3000):
        kept.append(line(f"{k}.png"))
    assert lines_put[:4] == [0, 100, 200, 300]
    assert len(lines_put) < 30, "of a long one a tenth has to be new"
    clock[0] += 61
    kept.append(line("late.png"))
    assert lines_put[-1] == 3001
    kept.flush()
    assert lines_put[-1] == 3001
    count = len(lines_put)
    kept.flush()
    assert len(lines_put) == count, "nothing was noted since"
    assert kept.find("late.png") is not None
    assert kept.path.read_bytes() == shop.journal()


def test_a_journal_that_cannot_be_put_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = RemoteJournal(url_of("shaky://host/out"))
    kept.begin()
    with failing("pipe_file", "journal", ConnectionError("nobody")):
        for k in range(150):
            kept.append(line(f"{k}.png"))
        with pytest.raises(PictureWriteError, match="nobody"):
            kept.flush()
    assert Shop("shaky").journal() == b""
    again = RemoteJournal(url_of("shaky://host/out/"))
    assert again.find("149.png") is not None
    again.flush()
    assert Shop("shaky").journal().count(b"\n") == 150


def test_the_mark_of_a_long_run_stays() -> None:
    """A run on a cluster has one beside its journal, by which workers know the folder."""
    kept = RemoteJournal(url_of("shaky://host/out"))
    kept.begin()
    names = [f"/out/.waifu4x/.{name}.12-0123abcd.partial" for name in ("cluster", "journal.jsonl")]
    for name in names:
        ShakyFileSystem.files[name] = b""
        ShakyFileSystem.written[name] = datetime(2001, 1, 1, tzinfo=UTC)
    kept.append(line("a.png"))
    kept.flush()
    assert [name in ShakyFileSystem.files for name in names] == [True, False]


def test_both_journals_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two machines took turns, and the first was killed before it could put its last lines."""
    folder = url_of("memory://out")
    homes = [tmp_path / "one", tmp_path / "two"]

    def on(machine: int) -> RemoteJournal:
        monkeypatch.setenv("WAIFU4X_HOME", str(homes[machine]))
        return RemoteJournal(folder)

    first = on(0)
    first.append(line("a.png"))
    first.flush()
    first.append(line("b.png"))
    second = on(1)
    assert second.find("a.png") is not None
    assert second.find("b.png") is None
    second.append(line("a.png", settings="newer"))
    second.append(line("c.png", status="failed", output="", reason="damaged"))
    second.flush()
    third = on(0)
    assert {name: third.find(name) is not None for name in ("a.png", "b.png")} == {
        "a.png": True,
        "b.png": True,
    }
    assert (third.find("a.png") or line("")).settings == "newer", "it is of a later run"
    assert third.has_failed("c.png")
    third.flush()
    assert len(Shop("memory").journal().splitlines()) == 4
    assert on(1).find("b.png") is not None


def test_foreign_lines_harm_nothing() -> None:
    shop = Shop("memory")
    shop.put("out/.waifu4x/journal.jsonl", b'\xff\n[]\n{"run": "x"}\n{"run": 3')
    shop.put("out/.waifu4x/other.txt", b"text")
    kept = RemoteJournal(url_of("memory://out"))
    kept.append(line("a.png"))
    kept.flush()
    shop.put("out/.waifu4x/journal.jsonl", b"\xfe\n5\n")
    again = RemoteJournal(url_of("memory://out"))
    assert again.find("a.png") is not None
    assert not (again.path.parent / "other.txt").exists()


def test_shards_put_journals_of_their_own() -> None:
    folder = url_of("memory://out")
    one, two = (RemoteJournal(folder, shard=(k, 2)) for k in (1, 2))
    for k in range(10):
        one.append(line(f"{k}.png"))
    one.begin()
    two.begin()
    names = {name for name in MemoryFileSystem.store if "/.waifu4x/" in name}
    assert {name.rpartition("/")[2] for name in names} == {
        journal.path_of(Path(), (k, 2)).name for k in (1, 2)
    }
    assert RemoteJournal(folder).find("7.png") is not None


def test_the_journal_lies_where_the_identity_says(own_home: Path) -> None:
    named = [url_of(text) for text in ("sftp://me:a@h/x", "ssh://me:b@h/x/", "sftp://me@h/y")]
    here = [remote_journal.folder_here(url) for url in named]
    assert here[0] == here[1] != here[2]
    assert here[0].parent == own_home / "journals"


def test_fsspec_is_imported_in_one_place_and_late() -> None:
    importing = {
        module
        for module in MODULES
        if any(name.partition(".")[0] == "fsspec" for name, _ in imported(module))
    }
    assert importing == {"remote.stores"}
    at_once = [name for name, _ in imported("remote.stores", lazily=False)]
    assert not any(name.startswith("fsspec") for name in at_once)


def test_protocols_are_checked() -> None:
    stores.check(url_of("memory://a"), writing=True)
    for text in ("https://h/a", "http://h/a"):
        with pytest.raises(UsageError, match="nothing can be written"):
            stores.check(url_of(text), writing=True)
