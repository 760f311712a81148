"""How a picture was made, written into the picture: tool, model and its sha256, scale, settings.

It stands in the XMP packet (ISO 16684-1) as one property of a namespace of our own, an rdf:Seq
whose first item is the newest generation:

    <waifu4x:History>
      <rdf:Seq>
        <rdf:li rdf:parseType="Resource">
          <waifu4x:Tool>waifu4x</waifu4x:Tool>  …Version, Model, Sha256, Scale, Settings (JSON)
        </rdf:li>
      </rdf:Seq>
    </waifu4x:History>

Nothing of it depends on the time, nor on the machine but for the engine and the precision that ran
there: equal runs give equal bytes. Every format that holds XMP holds it; `pictures.losses` says
which do not. It is metadata like any other, so ``strip_metadata`` leaves it out together with the
rest: who asks for a file that says nothing about itself gets one.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from waifu4x import pictures
from waifu4x.codecs import decoders
from waifu4x.codecs.metadata import PROVENANCE_NAMESPACE
from waifu4x.pictures import Picture

GENERATIONS_MAX = 32
"""A stamped picture keeps this many generations; the oldest go."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP_MAX_BYTES = 16 * 1024 * 1024
_FIELDS = ("Tool", "Version", "Model", "Sha256", "Scale", "Settings")
_FIELD_MAX_CHARACTERS = 64 * 1024
# Everything that XML 1.0 cannot say, not even escaped (section 2.2); lone surrogates among them.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = re.compile(rb"""<[^\s/>]+(?:[^>"']|"[^"]*"|'[^']*')*>""")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """One generation: what made a picture of another one."""

    tool: str
    version: str
    model: str
    sha256: str | None
    """Of the model's file, 64 hexadecimal digits; None for a kernel, which is no file."""
    scale: float
    """Output width over input width."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What else decided the pixels, such as {"engine": "openvino", "precision": "bf16"}; nothing
    that changes between runs. Versions before there were engines named none."""

    def __str__(self) -> str:
        digest = "" if self.sha256 is None else f" (sha256 {self.sha256[:12]}…)"
        return f"{self.scale:g}x by {self.tool} {self.version} with {self.model}{digest}"


def stamp(picture: Picture, provenance: Provenance) -> Picture:
    """The same picture, with `provenance` as its newest generation and the older ones below it.

    Every other byte of the XMP packet stays as it is, but for padding, which shrinks by as much as
    is put in. A packet that is not well-formed XML with an rdf:RDF element cannot be added to: it
    is replaced, with a note. Characters that XML does not have become U+FFFD.
    """
    packet = picture.xmp or b""
    scan = _scan(packet)
    generations = (provenance, *scan.generations)[:GENERATIONS_MAX]
    stamped = _put_in(packet, scan, _property(generations))
    if stamped is not None:
        return dataclasses.replace(picture, xmp=stamped)
    fresh = _fresh_packet(_property((provenance,)))
    notes = picture.notes
    if packet.strip(b"\0 \t\r\n"):
        notes = (*notes, "its XMP data is damaged, or no RDF, and gave way to the provenance")
    return dataclasses.replace(picture, xmp=fresh, notes=notes)


def read(source: Picture | Path) -> tuple[Provenance, ...]:
    """The generations that a picture says it is made of, newest first; () when it says none.

    The pixels of a file are not decoded, so their number is not limited. Whatever the XMP packet
    is, it raises nothing. Raises PictureReadError for a file that is no picture.
    """
    if isinstance(source, Picture):
        packet = source.xmp
    else:
        with pictures.opened(source) as stream:
            packet = decoders.read_xmp(stream)
    return _scan(packet or b"").generations


def warning(picture: Picture) -> str | None:
    """A sentence for one who is about to enlarge what was enlarged before; None for all others."""
    generations = read(picture)
    if not generations:
        return None
    times = "" if len(generations) == 1 else f", after {len(generations) - 1} earlier times"
    return (
        f"it was already enlarged {generations[0]}{times}: enlarging it again enlarges what that "
        "made up; start from the original where you have it"
    )


# ------------------------------------------------------------------------------------------ writing


def _property(generations: tuple[Provenance, ...]) -> bytes:
    """The element; pure ASCII, so it fits into a packet of any encoding that contains ASCII."""
    items = "".join(_item(generation) for generation in generations)
    element = (
        f'<waifu4x:History xmlns:waifu4x="{PROVENANCE_NAMESPACE}" xmlns:rdf="{_RDF}"><rdf:Seq>'
        f"{items}</rdf:Seq></waifu4x:History>"
    )
    return element.encode("ascii", "xmlcharrefreplace")


def _item(generation: Provenance) -> str:
    settings = {_clean(key): _clean(value) for key, value in generation.settings.items()}
    texts = {
        "Tool": generation.tool,
        "Version": generation.version,
        "Model": generation.model,
        "Sha256": generation.sha256,
        "Scale": repr(float(generation.scale)),
        "Settings": json.dumps(settings, sort_keys=True, ensure_ascii=False) if settings else None,
    }
    inner = "".join(
        f"<waifu4x:{name}>{_escaped(_clean(text))}</waifu4x:{name}>"
        for name, text in texts.items()
        if text is not None
    )
    return f'<rdf:li rdf:parseType="Resource">{inner}</rdf:li>'


def _escaped(text: str) -> str:
    # Not by xml.sax.saxutils, which imports http and ssl.
    return html.escape(text, quote=False).replace("\r", "&#13;")


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _description(element: bytes) -> bytes:
    return b'<rdf:Description xmlns:rdf="%s" rdf:about="">%s</rdf:Description>' % (
        _RDF.encode(),
        element,
    )


def _fresh_packet(element: bytes) -> bytes:
    return (
        b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="%s">%s</rdf:RDF></x:xmpmeta>'
        b'<?xpacket end="w"?>' % (_RDF.encode(), _description(element))
    )


def _put_in(packet: bytes, scan: _Scan, element: bytes) -> bytes | None:
    """The packet with the element in the old one's place, or last in rdf:RDF; None: impossible."""
    if scan.damaged:
        return None
    if scan.property_span is not None:
        start, end = scan.property_span
        grown = packet[:start] + element + packet[end:]
    elif scan.rdf_span is not None:
        start, end = scan.rdf_span
        opening = _TAG.match(packet, start)
        assert opening is not None, "expat found a tag there"
        if opening[0].endswith(b"/>"):
            name = opening[0][1:-2].split(None, 1)[0]
            inside = opening[0][:-2] + b">" + _description(element) + b"</" + name + b">"
            grown = packet[:start] + inside + packet[opening.end() :]
        else:
            grown = packet[:end] + _description(element) + packet[end:]
    else:
        return None
    # A packet carries white space at its end to be edited in place (ISO 16684-1, 7.3.2).
    head, trailer, rest = grown.rpartition(b"<?xpacket end=")
    padding_bytes = len(head) - len(head.rstrip())
    spare = min(max(0, padding_bytes - 1), max(0, len(grown) - len(packet)))
    return head[: len(head) - spare] + trailer + rest


# ------------------------------------------------------------------------------------------ reading


@dataclass(kw_only=True)
class _Scan:
    """What one pass over a packet finds; byte positions in it."""

    generations: tuple[Provenance, ...] = ()
    property_span: tuple[int, int] | None = None
    """Of our element, its tags included."""
    rdf_span: tuple[int, int] | None = None
    """From the start tag of rdf:RDF to its end tag (which is the same one where it is empty)."""
    damaged: bool = False
    """Not well-formed, with a DTD, or too large: nothing of it is believed."""


class _RefusedXmlError(Exception):
    pass


def _scan(packet: bytes) -> _Scan:
    body = packet.rstrip(b"\0")
    # A zero byte within means UTF-16, in which nothing of ours could be put.
    if len(body) > _XMP_MAX_BYTES or b"\0" in body:
        return _Scan(damaged=True)
    scanner = _Scanner()
    try:
        scanner.run(body)
    except (expat.ExpatError, _RefusedXmlError, ValueError, LookupError):
        # ValueError and LookupError: an encoding that is declared and unknown.
        return _Scan(damaged=True)
    scan = scanner.scan
    if scan.property_span is not None:
        # Expat tells where a tag begins, not where it ends; an empty element is one tag only.
        start, end = scan.property_span
        opening = _TAG.match(body, start)
        assert opening is not None, "expat found a tag there"
        is_empty = opening[0].endswith(b"/>")
        end = opening.end() if is_empty else body.index(b">", end) + 1
        scan.property_span = (start, end)
    found = (_generation(fields) for fields in scanner.items)
    scan.generations = tuple(generation for generation in found if generation is not None)
    return scan


class _Scanner:
    """Expat's events to positions and fields.

    Expat itself and not ElementTree, for it tells byte positions. Entities cannot be declared
    without a DTD, and a DTD is refused: nothing can expand, nothing outside is ever read. Prefixes
    are resolved here because expat's own resolving refuses packets that forgot to declare one of
    theirs, which is no reason to throw them away.
    """

    def __init__(self) -> None:
        self.scan = _Scan()
        self.items: list[dict[str, str]] = []
        self._prefixes: dict[str, list[str]] = {}
        self._open: list[tuple[str, list[str], int]] = []
        self._text: list[str] | None = None
        self._property_depth: int | None = None
        self._item_depth: int | None = None
        self._parser = expat.ParserCreate()

    def run(self, body: bytes) -> None:
        parser = self._parser
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.Parse(body, True)

    def _refuse(self, *_: object) -> None:
        raise _RefusedXmlError

    def _resolved(self, name: str) -> str:
        prefix, colon, local = name.rpartition(":")
        spaces = self._prefixes.get(prefix)
        if spaces:
            return spaces[-1] + local
        return f"{prefix}{colon}{local}"

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        declared = []
        for key, value in attributes.items():
            if key == "xmlns" or key.startswith("xmlns:"):
                prefix = key[6:]
                self._prefixes.setdefault(prefix, []).append(value)
                declared.append(prefix)
        full, depth, at = self._resolved(name), len(self._open), self._parser.CurrentByteIndex
        self._open.append((full, declared, at))
        if full == _RDF + "RDF" and self.scan.rdf_span is None and self._property_depth is None:
            self.scan.rdf_span = (at, at)
        elif full == PROVENANCE_NAMESPACE + "History":
            # Only as a property of a description, and the first one counts.
            if depth >= 2 and self._open[-3][0] == _RDF + "RDF" and self.scan.property_span is None:
                self._property_depth = depth
        elif self._property_depth is not None:
            if full == _RDF + "li" and self._item_depth is None:
                self._item_depth = depth
                self.items.append({})
            if self._item_depth is not None:
                self._field_start(full, attributes)

    def _field_start(self, full: str, attributes: dict[str, str]) -> None:
        # Other programs may write a field as an attribute of rdf:li or of a description in it.
        for key, value in attributes.items():
            self._keep(self._resolved(key), value)
        self._text = [] if full.startswith(PROVENANCE_NAMESPACE) else None

    def _keep(self, full: str, value: str) -> None:
        local = full.removeprefix(PROVENANCE_NAMESPACE)
        if local != full and local in _FIELDS and len(value) <= _FIELD_MAX_CHARACTERS:
            self.items[-1].setdefault(local, value)

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _end(self, name: str) -> None:
        full, declared, start = self._open.pop()
        depth, at = len(self._open), self._parser.CurrentByteIndex
        if self._item_depth is not None and self._text is not None:
            self._keep(full, "".join(self._text))
            self._text = None
        if depth == self._item_depth:
            self._item_depth = None
        if depth == self._property_depth:
            self._property_depth = None
            self.scan.property_span = (start, at)
        rdf = self.scan.rdf_span
        if rdf is not None and rdf[0] == start:
            self.scan.rdf_span = (start, at)
        for prefix in declared:
            self._prefixes[prefix].pop()


def _generation(fields: dict[str, str]) -> Provenance | None:
    """None where a field is missing or is not what it has to be."""
    try:
        scale = float(fields["Scale"])
        sha256 = fields.get("Sha256")
        settings = json.loads(fields.get("Settings", "{}"))
        tool, version, model = (fields[name] for name in ("Tool", "Version", "Model"))
    except (KeyError, ValueError, RecursionError):
        return None
    if not (math.isfinite(scale) and scale > 0):
        return None
    if sha256 is not None and re.fullmatch("[0-9a-f]{64}", sha256) is None:
        return None
    if not isinstance(settings, dict):
        return None
    if not all(isinstance(value, str) for value in settings.values()):
        return None
    return Provenance(
        tool=tool, version=version, model=model, sha256=sha256, scale=scale, settings=settings
    )
