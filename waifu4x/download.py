"""One file of the catalogue over HTTP: whole, with the promised sha256, or not at all.

requests does the transfer, `waifu4x.files` decides when the file gets its name. Not pooch: its
`HTTPDownloader` leaves the connection open when the server refuses or sends too much, and its
temporaries are neither synced nor recognisable when a process died. Nothing is resumed and no range
is asked for: the files are tens of megabytes, and half a file is never kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from waifu4x.catalog import CatalogRow
from waifu4x.errors import DownloadError, HashMismatchError
from waifu4x.files import atomic_path

CHUNK_BYTES = 256 * 1024

Progress = Callable[[int, int], None]
"""Called as (done_bytes, total_bytes); starts over when a download is tried again."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a download waits for a server, and how often it asks again.

    The three numbers together bound a server that accepts and then says nothing: 3 tries of 15 s,
    and 1 s and 2 s between them, are 48 s.
    """

    connect_s: float = 10.0
    read_s: float = 15.0
    tries: int = 3
    pause_s: float = 1.0
    """Before the second try; doubles before each further one."""


PATIENCE = Patience()


def download(
    row: CatalogRow,
    target: Path,
    *,
    on_progress: Progress | None = None,
    patience: Patience = PATIENCE,
) -> None:
    """Make `target` the file that `row` promises; its folder exists.

    `target` is guaranteed to be untouched unless the whole file has come and has the promised
    sha256. Raises DownloadError (no answer, a refusal, a redirect from https to http, more bytes
    than promised), HashMismatchError (other bytes than promised) and OSError (the disk: it is not
    tried again). What ends well with the wrong bytes is not tried again either: a server that holds
    another file, or a web page, will give it again.
    """
    import requests

    for trial in range(1, patience.tries + 1):
        try:
            with atomic_path(target) as temporary, temporary.open("xb") as file:
                _transfer(row, file, on_progress=on_progress, patience=patience)
            return
        except requests.RequestException as error:
            if trial < patience.tries and _may_pass(error):
                time.sleep(patience.pause_s * 2 ** (trial - 1))
                continue
            raise DownloadError(
                f"cannot download {row.name} from {row.url}: {_in_short(error, patience)} "
                f"(try {trial} of {patience.tries}); try again later, or bring the file to {target}"
            ) from error


def _transfer(
    row: CatalogRow, file: IO[bytes], *, on_progress: Progress | None, patience: Patience
) -> None:
    """One request for `row`, written to `file`; raises requests' errors as they come."""
    import requests

    total_bytes = row.size_bytes or 0
    done_bytes, digest = 0, hashlib.sha256()
    with (
        requests.Session() as session,
        session.get(
            str(row.url),
            stream=True,
            timeout=(patience.connect_s, patience.read_s),
            headers={"Accept-Encoding": "identity", "User-Agent": "waifu4x"},
            hooks={"response": _refuse_downgrade},
        ) as response,
    ):
        response.raise_for_status()
        for chunk in response.iter_content(CHUNK_BYTES):
            done_bytes += len(chunk)
            if done_bytes > total_bytes:
                raise DownloadError(
                    f"{row.url} sends more than the {total_bytes} bytes of {row.name}: expected "
                    f"sha256 {row.sha256}, got another file; it was thrown away unread"
                )
            file.write(chunk)
            digest.update(chunk)
            if on_progress is not None:
                on_progress(done_bytes, total_bytes)
    if digest.hexdigest() != row.sha256:
        raise HashMismatchError(
            f"{row.url} did not give {row.name}: expected sha256 {row.sha256} ({total_bytes} "
            f"bytes), got {digest.hexdigest()} ({done_bytes} bytes); it was thrown away unread"
        )


def _refuse_downgrade(response: Any, **_: Any) -> None:
    """A hook on each response: an https address must not lead to one that anybody can forge."""
    goal = urljoin(response.url, response.headers.get("location", ""))
    if response.is_redirect and urlsplit(response.url).scheme == "https" != urlsplit(goal).scheme:
        # Nobody else will: the response never leaves `session.get`, and closing the session
        # closes only connections that were handed back.
        response.close()
        raise DownloadError(f"{response.url} redirects to {goal}, which is not https; not followed")


def _may_pass(error: Exception) -> bool:
    """Whether asking again may help: the network or the server stumbled, rather than refused."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError):
        return error.response is not None and error.response.status_code >= 500
    if isinstance(error, exceptions.SSLError):
        return False
    passing = (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError)
    return isinstance(error, passing)


def _in_short(error: Exception, patience: Patience) -> str:
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, exceptions.ConnectTimeout):
        return f"no connection within {patience.connect_s:g} s"
    # A stall in the middle of the body arrives as a ConnectionError around urllib3's timeout.
    if isinstance(_innermost(error), TimeoutError) or isinstance(error, exceptions.Timeout):
        return f"the server sent nothing for {patience.read_s:g} s"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection broke before the file was complete"
    if isinstance(error, exceptions.SSLError):
        return f"the server's certificate cannot be trusted ({_reason(error)})"
    return _reason(error)


def _reason(error: BaseException) -> str:
    inner = _innermost(error)
    return " ".join(str(inner).split()) or type(inner).__name__


def _innermost(error: BaseException) -> BaseException:
    """What it began with: requests wraps urllib3, which wraps the operating system's error."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
