"""Names of files in stores, as fsspec has them: ``s3://bucket/photos/meme.png``.

Only names: nothing here asks a store. They are plain text in one frozen object, so a job that holds
them can be sent to another process. What is shown of one never has a password in it, and that is
what `str` gives; only `Url.text` is the whole of it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
# Of this machine: these become paths, and have all that paths have.
_LOCAL = frozenset({"file", "local"})
# Two names of one protocol must not make two files of one.
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "ssh": "sftp"}
_WEB = frozenset({"http", "https"})
# What lies before the first / is a folder like any other there, and no host or bucket.
_WITHOUT_HOST = frozenset({"memory"})
# What stands there in these is the repository, or the version.
_WITHOUT_PASSWORD = frozenset({"github", "git"})
_USER = re.compile(r"(?<!\bgithub)(?<!\bgit)(://[^/\s:@]*):[^/\s]*@")
# A signature in it is as good as a password.
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]+", re.IGNORECASE)


@dataclass(frozen=True)
class Url:
    """A file or folder in a store; made by `location`. Names are joined as those of paths are."""

    text: str
    """All of it, a password and a query included: for fsspec alone. No slash at its end."""

    def __str__(self) -> str:
        return without_secrets(self.text)

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def __truediv__(self, below: str | PurePath) -> Url:
        names = below if isinstance(below, str) else below.as_posix()
        if names in ("", "."):
            return self
        slash = "/" if self._rest or self.protocol not in _WITHOUT_HOST else ""
        return Url(f"{self._scheme}://{self._rest}{slash}{names}")

    @property
    def protocol(self) -> str:
        """``s3``; one name for each, where there are several."""
        scheme = self._scheme.lower()
        return _ALIASES.get(scheme, scheme)

    @property
    def name(self) -> str:
        """The last part; of a bucket its name."""
        return self._rest.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """With the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Url:
        """The folder that it lies in; of a host or bucket that itself."""
        above, slash, _ = self._rest.rpartition("/")
        if not slash and self.protocol not in _WITHOUT_HOST:
            return self
        return Url(f"{self._scheme}://{above}")

    @property
    def is_root(self) -> bool:
        """Nothing lies beside it: it is a host or bucket."""
        return self.parent == self

    @property
    def password(self) -> str:
        """The one that it contains; else empty."""
        if self.protocol in _WITHOUT_PASSWORD:
            return ""
        user, at, _ = self._rest.partition("/")[0].rpartition("@")
        return user.partition(":")[2] if at else ""

    @property
    def identity(self) -> str:
        """The same for all names of one file, as far as they tell; without a password."""
        return _USER.sub(r"\1@", f"{self.protocol}://{self._rest}")

    def with_name(self, name: str) -> Url:
        return self.parent / name

    def below(self, folder: Url) -> str | None:
        """Its place in `folder`, with forward slashes; None where it lies elsewhere."""
        mine, theirs = self.identity, folder.identity
        inside = theirs if theirs.endswith("/") else f"{theirs}/"
        return mine.removeprefix(inside) if mine.startswith(inside) else None

    @property
    def _scheme(self) -> str:
        return self.text.partition("://")[0]

    @property
    def _rest(self) -> str:
        rest = self.text.partition("://")[2]
        return re.split(r"[?#]", rest, maxsplit=1)[0] if self.protocol in _WEB else rest


Location = Path | Url
"""Where a file or folder lies: on this machine, or in a store."""


def is_url(text: str) -> bool:
    """Whether `text` names something in a store; ``file://`` names something on this machine."""
    found = _URL.fullmatch(text)
    return found is not None and found[1].lower() not in _LOCAL


def location(text: str) -> Location:
    """A path or URL, as a user writes it."""
    if not is_url(text):
        return Path(plain(text))
    scheme, _, rest = text.partition("://")
    if scheme.lower() in _WITHOUT_HOST:
        rest = rest.lstrip("/")
    return Url(f"{scheme}://{rest.rstrip('/')}")


def plain(text: str) -> str:
    """A ``file://`` URL as the path that it means; everything else as it is."""
    found = _URL.fullmatch(text)
    if found is None or found[1].lower() not in _LOCAL:
        return text
    path = found[2]
    # file:///C:/photos
    return path[1:] if os.name == "nt" and re.match(r"/[A-Za-z]:", path) else path


def shown(text: str) -> str:
    """What a user wrote as an input or output, without secrets."""
    return without_secrets(text) if is_url(text) else text


def real(where: Location) -> str:
    """A name that is the same for all names of one file or folder, as far as can be told."""
    return where.identity if isinstance(where, Url) else os.path.realpath(where)


def is_inside(folder: str, root: str) -> bool:
    """Whether a folder is `root`, or lies in it; both as `real` names them."""
    slash = "/" if is_url(root) else os.sep
    return f"{folder.rstrip(slash)}{slash}".startswith(f"{root.rstrip(slash)}{slash}")


def without_secrets(text: str) -> str:
    """A text, with URLs in it or not, without passwords, and without queries of web addresses."""
    return _QUERY.sub(r"\1?…", _USER.sub(r"\1:***@", text))
