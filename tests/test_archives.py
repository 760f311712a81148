"""ZIP and CBZ: hostile ones refused, honest ones in and out."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from waifu4x import archives, files
from waifu4x.archives import member_name, member_names, read_members, write_archive
from waifu4x.errors import PictureReadError, PictureWriteError


def _zip(path: Path, members: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _patched(path: Path, at: int, fmt: str, value: int, *, central: bool = True) -> Path:
    """Overwrite one field of the only member's headers, as no ordinary program would write it."""
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02" if central else b"PK\x03\x04")
    struct.pack_into(fmt, data, start + at, value)
    path.write_bytes(data)
    return path


COMIC = {
    "ComicInfo.xml": b"<ComicInfo/>",
    "chapter 1/02.png": b"two",
    "chapter 1/01.jpg": b"one" * 1000,
    "第一話/表紙.webp": b"cover",
}


def test_round_trip_keeps_names_order_and_bytes(tmp_path: Path) -> None:
    source = _zip(tmp_path / "a.cbz", COMIC)
    assert member_names(source) == tuple(COMIC)
    with write_archive(tmp_path / "b.cbz") as writer:
        for member in read_members(source):
            writer.add(member.name, member.data)
    assert {m.name: m.data for m in read_members(tmp_path / "b.cbz")} == COMIC
    assert member_names(tmp_path / "b.cbz") == tuple(COMIC)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.cbz", "b.cbz"]
    with zipfile.ZipFile(tmp_path / "b.cbz") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert stat.S_IMODE(info.external_attr >> 16) == 0o644


def test_equal_members_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for clock in (1e9, 1.5e9):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        with write_archive(tmp_path / "a.cbz") as writer:
            for name, data in COMIC.items():
                writer.add(name, data)
        written.append((tmp_path / "a.cbz").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/1.PNG", True),
        ("1.heic", True),
        ("ComicInfo.xml", False),
        ("a/.hidden/1.png", False),
        ("__MACOSX/._1.png", False),
        ("a/._1.png", False),
        ("png", False),
    ],
)
def test_which_members_are_pictures(name: str, expected: bool) -> None:
    assert archives.Member(name=name, data=b"").is_picture == expected


def test_is_archive() -> None:
    assert [archives.is_archive(Path(n)) for n in ("a.CBZ", "b.zip", "c.cbr", "zip")] == [
        True,
        True,
        False,
        False,
    ]


def test_folders_are_left_out(tmp_path: Path) -> None:
    _zip(tmp_path / "a.zip", {"folder/": b"", "folder/1.png": b"1"})
    assert member_names(tmp_path / "a.zip") == ("folder/1.png",)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil.png", "leads out"),
        ("a/../../evil.png", "leads out"),
        ("a\\..\\..\\evil.png", "leads out"),
        ("/etc/evil.png", "relative"),
        ("\\evil.png", "relative"),
        ("C:evil.png", "relative"),
        ("C:\\evil.png", "relative"),
        ("a//b.png", "impossible"),
        ("a\nb.png", "impossible"),
    ],
)
def test_names_that_lead_elsewhere_refuse_the_archive(
    tmp_path: Path, name: str, reason: str
) -> None:
    source = _zip(tmp_path / "a.cbz", {"ok.png": b"1", name: b"2"})
    for attempt in (lambda: list(read_members(source)), lambda: member_names(source)):
        with pytest.raises(PictureReadError, match=reason) as caught:
            attempt()
        assert str(caught.value).isprintable()
        assert "a.cbz" in str(caught.value)
    if "\\" not in name:
        with (
            pytest.raises(PictureWriteError, match=reason),
            write_archive(tmp_path / "b.cbz") as writer,
        ):
            writer.add(name, b"")
        assert not (tmp_path / "b.cbz").exists()


def test_links_and_doubles_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link.png")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(PictureReadError, match="symbolic link"):
        list(read_members(tmp_path / "a.zip"))
    data = _zip(tmp_path / "b.zip", {"a.png": b"1", "b.png": b"2"}).read_bytes()
    (tmp_path / "b.zip").write_bytes(data.replace(b"b.png", b"a.png"))
    with pytest.raises(PictureReadError, match="two members"):
        list(read_members(tmp_path / "b.zip"))


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    source = _patched(_zip(tmp_path / "a.cbz", {"1.png": b"x"}), 8, "<H", 1)
    with pytest.raises(PictureReadError, match=r"'1\.png' is encrypted"):
        list(read_members(source))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(tmp_path: Path, method: int) -> None:
    source = _zip(tmp_path / "a.cbz", {"1.png": b"x" * 100}, method=method)
    with pytest.raises(PictureReadError, match="method"):
        list(read_members(source))


def test_bombs_are_refused_before_anything_is_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _zip(tmp_path / "a.cbz", {f"{k}.bmp": bytes(300_000) for k in range(3)})
    assert len(list(read_members(source))) == 3
    opened: list[str] = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: opened.append("opened"))
    for limit, value, reason in (
        ("MEMBER_MAX_BYTES", 299_999, "limit of 299,999"),
        ("TOTAL_MAX_BYTES", 899_999, "900,000 bytes"),
        ("MEMBERS_MAX", 2, "3 members"),
        ("_RATIO_FREE_BYTES", 200_000, "200 times"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(archives, limit, value)
            with pytest.raises(PictureReadError, match=reason):
                next(read_members(source))
    assert opened == []


def test_a_member_that_is_larger_than_it_claims_is_cut_there_and_refused(tmp_path: Path) -> None:
    source = _zip(tmp_path / "a.cbz", {"1.bmp": bytes(50_000_000)})
    _patched(_patched(source, 24, "<I", 10), 22, "<I", 10, central=False)
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(PictureReadError, match="damaged"):
        list(read_members(source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_member_that_is_smaller_than_it_claims_is_refused(tmp_path: Path) -> None:
    source = _patched(_zip(tmp_path / "a.cbz", {"1.png": b"abc"}), 24, "<I", 100)
    with pytest.raises(PictureReadError, match="damaged"):
        list(read_members(source))


def test_damage_is_refused_or_survived(tmp_path: Path) -> None:
    import random

    whole = _zip(tmp_path / "a.cbz", COMIC).read_bytes()
    source = tmp_path / "broken.cbz"
    randomly = random.Random(0)
    refused = []
    for case in range(300):
        data = bytearray(whole)
        if case < 100:
            del data[len(data) * case // 100 :]
        else:
            data[randomly.randrange(len(data))] = randomly.randrange(256)
        source.write_bytes(data)
        try:
            list(read_members(source))
        except PictureReadError as error:
            refused.append(str(error))
    assert len(refused) > 150
    assert all(line.isprintable() for line in refused)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "not a ZIP"),
        (lambda path: path.write_bytes(b"Rar!\x1a\x07\0"), "not a ZIP"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, make: object, reason: str) -> None:
    path = tmp_path / "odd\nname.cbz"
    make(path)  # type: ignore[operator]
    with pytest.raises(PictureReadError, match=reason) as caught:
        next(read_members(path))
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.cbz")
    with pytest.raises(PictureReadError, match="no regular file"):
        member_names(tmp_path / "a.cbz")


def test_names_without_the_flag_for_utf_8(tmp_path: Path) -> None:
    # zipfile sets the flag by itself, so the name's bytes are put in afterwards.
    for stored, expected in (("é1.png".encode(), "é1.png"), (b"\x82aa.png", "éaa.png")):
        placeholder = b"x" * len(stored)
        data = _zip(tmp_path / "a.zip", {placeholder.decode(): b"1"}).read_bytes()
        (tmp_path / "a.zip").write_bytes(data.replace(placeholder, stored))
        assert member_names(tmp_path / "a.zip") == (expected,)


def test_member_name() -> None:
    assert member_name("a/1.jpg", ".webp", taken=()) == "a/1.webp"
    assert member_name("a/1.png", ".webp", taken={"a/1.webp"}) == "a/1.png.webp"
    assert member_name("v1.2/1.png", ".png", taken=()) == "v1.2/1.png"
    with pytest.raises(PictureWriteError, match="two members"):
        member_name("1.png", ".webp", taken={"1.webp", "1.png.webp"})


def test_a_failure_leaves_the_old_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.cbz"
    target.write_bytes(b"precious")

    def twice(*, error: type[BaseException] | None = None) -> None:
        with write_archive(target) as writer:
            writer.add("1.png", b"1")
            assert writer.names == {"1.png"}
            if error is not None:
                raise error
            writer.add("1.png", b"2")

    with pytest.raises(PictureWriteError, match="two members"):
        twice()
    with pytest.raises(KeyboardInterrupt):
        twice(error=KeyboardInterrupt)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(PictureWriteError, match="disk is full"), write_archive(target) as writer:
        writer.add("1.png", b"1")
    assert target.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["a.cbz"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_really_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(target: Path) -> Path:
        link = target.with_name(".full.partial")
        link.symlink_to("/dev/full")
        return link

    monkeypatch.setattr(files, "partial_path", full)
    with (
        pytest.raises(PictureWriteError, match="disk is full"),
        write_archive(tmp_path / "a.cbz") as writer,
    ):
        writer.add("1.png", os.urandom(1_000_000))
    assert list(tmp_path.iterdir()) == []


def test_a_written_archive_is_one_for_others_too(tmp_path: Path) -> None:
    with write_archive(tmp_path / "a.cbz") as writer:
        writer.add("第一話/1.png", b"1")
    with zipfile.ZipFile(io.BytesIO((tmp_path / "a.cbz").read_bytes())) as archive:
        (info,) = archive.infolist()
        assert (info.filename, info.flag_bits & 0x800) == ("第一話/1.png", 0x800)
        assert info.date_time == (1980, 1, 1, 0, 0, 0)
