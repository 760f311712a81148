"""What made a picture, in the picture: round trips, other people's XMP, hostile XMP."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waifu4x import pictures, provenance
from waifu4x.codecs.metadata import PROVENANCE_NAMESPACE as NAMESPACE
from waifu4x.errors import PictureReadError
from waifu4x.pictures import Picture, encode
from waifu4x.provenance import GENERATIONS_MAX, Provenance, read, stamp, warning

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
HOLDING = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")

FIRST = Provenance(
    tool="waifu4x",
    version="0.3.0",
    model='realesr "animé" <v3> & co',
    sha256="0123456789abcdef" * 4,
    scale=4.0,
    settings={"precision": "fp16", "tile": "256", "名": "値 \"'<&>\n"},
)
SECOND = Provenance(tool="waifu4x", version="0.4.0", model="lanczos3", sha256=None, scale=1 / 3)


def _picture(*, xmp: bytes | None = None, depth: int = 8) -> Picture:
    pixels = np.arange(12 * 16 * 3, dtype=np.uint16).reshape(12, 16, 3) * (1 if depth == 16 else 0)
    return Picture(pixels=pixels.astype(f"uint{depth}"), xmp=xmp)


def _packet(inside: str, *, rdf: str = "", before: str = "", after: str = "") -> bytes:
    return (
        f'{before}<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"{rdf}>{inside}'
        f"</rdf:RDF></x:xmpmeta>{after}"
    ).encode()


FOREIGN = _packet(
    "\n <rdf:Description rdf:about='' xmlns:dc=\"http://purl.org/dc/elements/1.1/\">"
    "<dc:creator>J\u00fcrgen &amp; \u6f22\u5b57</dc:creator><!-- kept --></rdf:Description>\n",
    before='<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n',
    after="\n" + (" " * 99 + "\n") * 20 + '<?xpacket end="w"?>',
)


@pytest.mark.parametrize("format", HOLDING)
@pytest.mark.parametrize("xmp", [None, FOREIGN], ids=["bare", "foreign"])
def test_round_trip_through_files(tmp_path: Path, format: str, xmp: bytes | None) -> None:
    path = tmp_path / "a.bin"
    picture = stamp(_picture(xmp=xmp), FIRST)
    assert picture.notes == ()
    assert pictures.losses(picture, format) == ()
    path.write_bytes(encode(picture, format=format))
    assert read(path) == (FIRST,)
    again = pictures.read(path)
    assert read(again) == (FIRST,)
    path.write_bytes(encode(stamp(again, SECOND), format=format))
    assert read(path) == (SECOND, FIRST)
    if xmp is not None:
        held = pictures.read(path).xmp
        assert held is not None
        assert "J\u00fcrgen &amp; \u6f22\u5b57</dc:creator><!-- kept -->".encode() in held
    path.write_bytes(encode(picture, format=format, strip_metadata=True))
    assert read(path) == ()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(encode(stamp(_picture(depth=16), FIRST), format=format))
    assert read(path) == (FIRST,)


def test_equal_runs_give_equal_bytes() -> None:
    # Another order of settings is no other provenance; another process has other hashes.
    turned = dataclasses.replace(FIRST, settings=dict(reversed(FIRST.settings.items())))
    assert stamp(_picture(), turned).xmp == stamp(_picture(), FIRST).xmp
    code = (
        "import sys, numpy as np\n"
        "from waifu4x.provenance import Provenance, stamp\n"
        "from waifu4x.pictures import Picture\n"
        "p = Picture(pixels=np.zeros((1, 1, 3), np.uint8))\n"
        "q = Provenance(tool='t', version='1', model='m', sha256=None, scale=2,"
        " settings=dict.fromkeys(sorted({'a', 'b', 'c', 'd'}, key=hash), 'x'))\n"
        "sys.stdout.buffer.write(stamp(p, q).xmp)\n"
        "assert 'torch' not in sys.modules\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


@pytest.mark.parametrize("format", ["BMP", "GIF"])
def test_formats_that_hold_none_say_so(tmp_path: Path, format: str) -> None:
    picture = stamp(_picture(), FIRST)
    assert any("provenance" in loss for loss in pictures.losses(picture, format))
    assert not any("provenance" in s for s in pictures.losses(_picture(xmp=FOREIGN), format))
    assert not any("provenance" in s for s in pictures.losses(picture, format, strip_metadata=True))
    (tmp_path / "a").write_bytes(encode(picture, format=format))
    assert read(tmp_path / "a") == ()


# ------------------------------------------------------------------------- what the packet held


def test_every_other_byte_of_the_packet_stays() -> None:
    once = stamp(_picture(xmp=FOREIGN), FIRST).xmp
    assert once is not None
    head, tail = FOREIGN.split(b"</rdf:RDF>")
    assert once.startswith(head)
    assert once.split(b"</rdf:RDF>")[1].split() == tail.split()
    # The padding made room for it.
    assert len(once) == len(FOREIGN)
    twice = stamp(_picture(xmp=once), SECOND).xmp
    assert twice is not None
    assert twice.startswith(head)
    assert twice.count(NAMESPACE.encode()) == 1
    assert len(twice) == len(FOREIGN)
    ElementTree.fromstring(twice)


@pytest.mark.parametrize(
    "packet",
    [
        _packet(""),
        _packet("", before="\ufeff"),
        _packet("", after="\0\0"),
        _packet("", before='<?xml version="1.0" encoding="ISO-8859-1"?>'),
        f'<rdf:RDF xmlns:rdf="{RDF}"/>'.encode(),
        f"<rdf:RDF\n xmlns:rdf = '{RDF}' a='>/>' />".encode(),
        f'<RDF xmlns="{RDF}"></RDF>'.encode(),
        f'<x:a xmlns:x="y"><q:RDF xmlns:q="{RDF}"/></x:a>'.encode(),
        _packet("<a:undeclared tiff:Orientation='1'/>"),
        _packet("<r:Description xmlns:r='x'>&#xe9;\u00e9\u6f22</r:Description>"),
    ],
)
def test_packets_of_every_make_are_added_to(packet: bytes) -> None:
    once = stamp(_picture(xmp=packet), FIRST)
    assert once.notes == ()
    assert read(once) == (FIRST,)
    twice = stamp(once, SECOND)
    assert read(twice) == (SECOND, FIRST)
    assert twice.xmp is not None
    # Nothing was taken away: the packet's characters are all there, in their order.
    left = iter(twice.xmp)
    assert all(byte in left for byte in packet.replace(b"/>", b">").rstrip(b"\0"))
    if b"undeclared" not in packet:
        ElementTree.fromstring(twice.xmp.decode("utf-8-sig").rstrip("\0").encode())


@pytest.mark.parametrize(
    "packet",
    [
        b"junk",
        b"<x/>",
        b"<a><b></a>",
        FOREIGN[:200],
        FOREIGN + b"<more/>",
        FOREIGN.decode().encode("utf-16"),
        b'<?xml version="1.0" encoding="klingon"?>' + _packet(""),
        b'<!DOCTYPE x [<!ENTITY a "b">]>' + _packet("&a;"),
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd">' + _packet(""),
    ],
)
def test_what_cannot_be_added_to_is_replaced_with_a_note(packet: bytes) -> None:
    stamped = stamp(_picture(xmp=packet), FIRST)
    assert read(stamped) == (FIRST,)
    assert any("XMP" in note for note in stamped.notes)
    assert read(_picture(xmp=packet)) == ()
    assert stamp(_picture(xmp=b"\0\0 "), FIRST).notes == ()


# ------------------------------------------------------------------------------------ generations


def test_old_generations_go_one_day() -> None:
    picture = _picture()
    for k in range(GENERATIONS_MAX + 3):
        picture = stamp(picture, dataclasses.replace(SECOND, version=str(k)))
    versions = [generation.version for generation in read(picture)]
    assert versions == [str(k) for k in range(GENERATIONS_MAX + 2, 2, -1)]


def test_the_warning() -> None:
    assert warning(_picture()) is None
    assert warning(_picture(xmp=FOREIGN)) is None
    once = stamp(_picture(), dataclasses.replace(FIRST, model="anime"))
    said = warning(once)
    assert said is not None
    assert "already enlarged 4x by waifu4x 0.3.0 with anime" in said
    assert "earlier" not in said
    assert "after 1 earlier" in str(warning(stamp(once, SECOND)))


# ------------------------------------------------------------ other programs, and hostile content


def _history(items: str, *, prefix: str = "w") -> bytes:
    return _packet(
        f'<rdf:Description rdf:about="" xmlns:{prefix}="{NAMESPACE}"><{prefix}:History><rdf:Seq>'
        f"{items}</rdf:Seq></{prefix}:History></rdf:Description>"
    )


def test_as_other_programs_rewrite_it() -> None:
    fields = 'w:Tool="t" w:Version="1" w:Model="m" w:Scale="2"'
    plain = Provenance(tool="t", version="1", model="m", sha256=None, scale=2.0)
    as_attributes = _history(f"<rdf:li {fields}/>")
    as_description = _history(f"<rdf:li><rdf:Description {fields}/></rdf:li>")
    spaced = _history(
        "\n <rdf:li rdf:parseType='Resource'>\n  <w:Tool>t</w:Tool>\n  <w:Version>1</w:Version>"
        "\n  <w:Model>m</w:Model>\n  <w:Scale>2</w:Scale>\n </rdf:li>\n"
    )
    for packet in (as_attributes, as_description, spaced):
        assert read(_picture(xmp=packet)) == (plain,)
        assert read(stamp(_picture(xmp=packet), SECOND)) == (SECOND, plain)


@pytest.mark.parametrize(
    "item",
    [
        "",
        'w:Tool="t"',
        'w:Tool="t" w:Version="1" w:Model="m" w:Scale="much"',
        'w:Tool="t" w:Version="1" w:Model="m" w:Scale="nan"',
        'w:Tool="t" w:Version="1" w:Model="m" w:Scale="-1"',
        'w:Tool="t" w:Version="1" w:Model="m" w:Scale="1e999"',
        'w:Tool="t" w:Version="1" w:Model="m" w:Scale="2" w:Sha256="abc"',
        'w:Tool="t" w:Version="1" w:Model="m" w:Scale="2" w:Settings="[]"',
        'w:Tool="t" w:Version="1" w:Model="m" w:Scale="2" w:Settings="{"',
        'w:Tool="t" w:Version="1" w:Model="m" w:Scale="2" w:Settings="{&quot;a&quot;: 1}"',
        f'w:Tool="t" w:Version="1" w:Model="m" w:Scale="2" w:Settings="{"[" * 60_000}"',
        f'w:Tool="t" w:Version="1" w:Model="m" w:Scale="{"9" * 50_000}"',
        f'w:Tool="{"t" * 70_000}" w:Version="1" w:Model="m" w:Scale="2"',
    ],
)
def test_items_that_say_nonsense_are_passed_over(item: str) -> None:
    good = 'w:Tool="t" w:Version="1" w:Model="m" w:Scale="2"'
    picture = _picture(xmp=_history(f"<rdf:li {item}/><rdf:li {good}/>"))
    assert [generation.scale for generation in read(picture)] == [2.0]


def test_a_history_that_is_no_property_is_not_ours() -> None:
    li = '<rdf:li w:Tool="t" w:Version="1" w:Model="m" w:Scale="2"/>'
    history = f'<w:History xmlns:w="{NAMESPACE}"><rdf:Seq>{li}</rdf:Seq></w:History>'
    outside = f'<a xmlns:rdf="{RDF}">{history}</a>'.encode()
    assert read(_picture(xmp=outside)) == ()
    deep = _packet(f"<rdf:Description><dc:a xmlns:dc='b'>{history}</dc:a></rdf:Description>")
    assert read(_picture(xmp=deep)) == ()
    empty = _packet(f'<rdf:Description><w:History xmlns:w="{NAMESPACE}"/></rdf:Description>')
    assert read(stamp(_picture(xmp=empty), FIRST)) == (FIRST,)


def test_large_and_deep_packets_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b"<a xmlns:b='c'>" * 100_000 + b"</a>" * 100_000
    assert read(_picture(xmp=deep)) == ()
    blank = _packet("", after=" " * 1_000_000)
    assert read(stamp(_picture(xmp=blank), FIRST)) == (FIRST,)
    monkeypatch.setattr(provenance, "_XMP_MAX_BYTES", 1000)
    assert read(_picture(xmp=_packet(" " * 1000))) == ()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_broken_packets_never_raise(data: st.DataObject) -> None:
    whole = stamp(_picture(xmp=FOREIGN.replace(b" " * 99 + b"\n", b"")), FIRST).xmp
    assert whole is not None
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(broken) - 1))
        cut = data.draw(st.integers(0, 30))
        broken[at : at + cut] = data.draw(st.binary(max_size=8))
    picture = _picture(xmp=bytes(broken))
    found = read(picture)
    assert read(stamp(picture, SECOND))[0] == SECOND
    assert len(found) <= 1


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")), max_size=20)


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        Provenance,
        tool=_TEXT,
        version=_TEXT,
        model=_TEXT,
        sha256=st.none() | st.from_regex("[0-9a-f]{64}", fullmatch=True),
        scale=st.floats(1e-3, 1e3),
        settings=st.dictionaries(_TEXT, _TEXT, max_size=4),
    )
)
def test_whatever_is_written_is_read_back(made: Provenance) -> None:
    assert read(stamp(_picture(xmp=FOREIGN), made)) == (made,)


def test_characters_that_xml_does_not_have(tmp_path: Path) -> None:
    odd = dataclasses.replace(SECOND, model="a\0b\x1b\udcff\uffff", settings={"\x01": "\r\n\t"})
    (back,) = read(stamp(_picture(), odd))
    assert back.model == "a\ufffdb\ufffd\ufffd\ufffd"
    assert dict(back.settings) == {"\ufffd": "\r\n\t"}


def test_a_file_that_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"<html>")
    with pytest.raises(PictureReadError, match="not a picture"):
        read(tmp_path / "a.png")
    with pytest.raises(PictureReadError, match="does not exist"):
        read(tmp_path / "b.png")


def test_no_limit_of_pixels_for_reading_it(tmp_path: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    packet = stamp(_picture(), FIRST).xmp
    assert packet is not None
    text.add_itxt("XML:com.adobe.xmp", packet.decode())
    Image.new("1", (18_000, 18_000)).save(tmp_path / "huge.png", pnginfo=text)
    assert read(tmp_path / "huge.png") == (FIRST,)
