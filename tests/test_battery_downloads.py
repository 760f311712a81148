"""Downloads against bad servers, crowds and kills: what test_weights.py leaves of the battery."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_weights import (
    BEHAVIOURS,
    CONTENT,
    HASTE,
    IMPATIENCE,
    SHA256,
    Handler,
    Server,
    in_catalog,
)
from typer.testing import CliRunner

from waifu4x import weights
from waifu4x.cli.app import app
from waifu4x.errors import DownloadError
from waifu4x.files import partial_path
from waifu4x.weights import downloads_folder

CACHES: dict[str, bytes | None] = {
    "empty": None,
    "partial": CONTENT[:1000],
    "corrupt": b"\0" + CONTENT[1:],
}
PIECES = 30


class MoreHandler(Handler):
    """What `Handler` can, and: more bytes than declared, a body in pieces, the way off TLS."""

    server: MoreServer  # type: ignore[assignment]

    def do_GET(self) -> None:
        behaviour = self.path.split("/")[1]
        if behaviour not in ("declared", "pieces", "downgrade"):
            super().do_GET()
            return
        with self.server.counting:
            self.server.asked.append(behaviour)
        self.close_connection = True
        if behaviour == "declared":
            self._head(200, content_length=len(CONTENT))
            with contextlib.suppress(OSError):  # the client may have hung up by then
                self.wfile.write(CONTENT + b"and what nobody was told of")
        elif behaviour == "downgrade":
            self._head(302, location=self.server.goal)
        else:
            self._give_pieces()

    def _give_pieces(self) -> None:
        at = [len(CONTENT) * number // PIECES for number in range(PIECES + 1)]
        with contextlib.suppress(OSError):
            self.server.before_piece(0)
            self._head(200, content_length=len(CONTENT))
            for number, (start, stop) in enumerate(pairwise(at), start=1):
                self.server.before_piece(number)
                self.wfile.write(CONTENT[start:stop])
            self.server.before_piece(PIECES + 1)


class MoreServer(Server):
    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.RequestHandlerClass = MoreHandler
        self.goal = ""
        self.before_piece: Callable[[int], None] = lambda number: None
        self.tls = tls

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        # Whoever breaks the handshake off means to.
        with (
            contextlib.suppress(ssl.SSLError),
            self.tls.wrap_socket(request, server_side=True) as secure,
        ):
            super().finish_request(secure, client_address)


@contextlib.contextmanager
def serving(server: MoreServer) -> Iterator[MoreServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MoreServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(weights.OFFLINE_VARIABLE, raising=False)
    with serving(MoreServer()) as running:
        yield running


def fill(folder: Path, cache: str) -> Path:
    """Put what the cache holds into `folder`; returns where the file belongs."""
    folder.mkdir(parents=True, exist_ok=True)
    target, content = folder / "toy.pth", CACHES[cache]
    if content is not None:
        target.write_bytes(content)
    return target


# -- 9: the server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody signed but itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the program openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    options = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    options += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    for extension in (
        "subjectAltName=IP:127.0.0.1",
        "keyUsage=critical,keyCertSign,digitalSignature",
    ):
        options += ["-addext", extension]
    files = ["-keyout", str(key), "-out", str(chain)]
    subprocess.run([openssl, *options, *files], check=True, capture_output=True)
    return chain, key


@pytest.fixture
def tls_server(server: MoreServer, certificate: tuple[Path, Path]) -> Iterator[MoreServer]:
    """As `server`, which it leads to, but over https."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    secure = MoreServer(tls=context)
    secure.goal = str(server.row("200").url)
    with serving(secure) as running:
        yield running


def secure_address(server: MoreServer, behaviour: str) -> str:
    return f"https://127.0.0.1:{server.server_port}/{behaviour}/toy.pth"


@pytest.mark.parametrize("cache", CACHES)
def test_https_leading_to_http_is_not_followed(
    server: MoreServer,
    tls_server: MoreServer,
    certificate: tuple[Path, Path],
    tmp_path: Path,
    cache: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    target = fill(tmp_path, cache)
    address = secure_address(tls_server, "downgrade")
    with pytest.raises(DownloadError, match="which is not https") as caught:
        weights.fetch(server.row("200", url=address), folder=tmp_path, patience=HASTE)
    assert address in str(caught.value)
    assert (tls_server.asked, server.asked) == (["downgrade"], [])
    assert list(tmp_path.iterdir()) == []
    # So that the test can fail: this server is trusted, and what it gives itself is taken.
    good = server.row("200", url=secure_address(tls_server, "200"))
    assert weights.fetch(good, folder=tmp_path, patience=HASTE) == target


@pytest.mark.parametrize("cache", CACHES)
def test_a_certificate_that_nobody_vouches_for(
    server: MoreServer, tls_server: MoreServer, tmp_path: Path, cache: str
) -> None:
    fill(tmp_path, cache)
    row = server.row("200", url=secure_address(tls_server, "200"))
    with pytest.raises(DownloadError, match=r"cannot be trusted.*try 1 of 3") as caught:
        weights.fetch(row, folder=tmp_path, patience=HASTE)
    assert str(row.url) in str(caught.value)
    assert tls_server.asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cache", CACHES)
def test_bytes_beyond_the_declared_length_do_not_get_in(
    server: MoreServer, tmp_path: Path, cache: str
) -> None:
    target = fill(tmp_path, cache)
    weights.fetch(server.row("declared"), folder=tmp_path, patience=HASTE)
    assert target.read_bytes() == CONTENT
    assert server.asked == ["declared"]


@pytest.mark.parametrize("cache", CACHES)
def test_the_rest_of_a_dead_run_is_not_continued(
    server: MoreServer, tmp_path: Path, cache: str
) -> None:
    """So a server that ignores ranges does no harm: none is asked for (`Handler` asserts it)."""
    target = fill(tmp_path, cache)
    left_behind = partial_path(target)
    left_behind.write_bytes(CONTENT[: len(CONTENT) // 2])
    weights.fetch(server.row("200"), folder=tmp_path, patience=HASTE)
    assert target.read_bytes() == CONTENT
    assert sorted(tmp_path.iterdir()) == sorted([left_behind, target])


@pytest.mark.parametrize("behaviour", [case[0] for case in BEHAVIOURS])
def test_what_is_cached_needs_no_server(
    server: MoreServer, own_home: Path, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_catalog(server.row(behaviour), monkeypatch)
    target = own_home / "weights" / "toy.pth"
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    for offline in (False, True):
        assert weights.resolve("toy", offline=offline).path == target
    assert server.asked == []


@pytest.mark.parametrize(
    "cache", [pytest.param(c, marks=[pytest.mark.slow] if c == "empty" else []) for c in CACHES]
)
@pytest.mark.parametrize("behaviour", [case[0] for case in BEHAVIOURS if case[2] is not None])
def test_the_command_line_says_one_line_and_keeps_nothing(
    server: MoreServer,
    tmp_path: Path,
    cache: str,
    behaviour: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = in_catalog(server.row(behaviour), monkeypatch)
    patience = IMPATIENCE if behaviour in ("stall", "silent") else HASTE
    monkeypatch.setattr(weights, "fetch", partial(weights.fetch, patience=patience))
    target = fill(downloads_folder(), cache)
    done = CliRunner().invoke(app, ["upscale", str(tmp_path / "x.png"), "-m", "toy"])
    assert isinstance(done.exception, SystemExit)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(row.url) in line
    assert "Error" not in line.replace("500 Internal Server Error", "")
    assert list(target.parent.iterdir()) == []


@pytest.mark.slow
def test_a_silent_server_is_given_up_within_a_minute(server: MoreServer, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"sent nothing for 15 s.*try 3 of 3"):
        weights.fetch(server.row("silent"), folder=tmp_path)
    assert time.monotonic() - started < 60


# -- 10: the crowd ---------------------------------------------------------------------------------

# Reads one order after the other, so that sixteen processes start once and not in every round.
MEMBER = """
import contextlib, hashlib, json, sys
from pathlib import Path
from unittest import mock
import requests
from waifu4x import weights
from waifu4x.catalog import CatalogRow

def taken(*arguments, **options):
    raise AssertionError("a lock was taken")

@contextlib.contextmanager
def no_locks():
    with contextlib.ExitStack() as stack:
        for module, name in LOCKS:
            stack.enter_context(mock.patch.object(module, name, taken))
        yield

try:
    import fcntl, os
    LOCKS = [(fcntl, "flock"), (fcntl, "lockf"), (os, "lockf")]
    LOCKS = [(module, name) for module, name in LOCKS if hasattr(module, name)]
except ImportError:
    import msvcrt
    LOCKS = [(msvcrt, "locking")]

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    row = CatalogRow(**order["row"])
    with no_locks() if order["no_locks"] else contextlib.nullcontext():
        path = weights.fetch(row, folder=Path(order["folder"]))
    print(hashlib.sha256(path.read_bytes()).hexdigest(), flush=True)
"""


class Member:
    """A process that fetches when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", MEMBER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
        )

    def wait_until_ready(self) -> Member:
        assert self.line() == "ready"
        return self

    def order(self, row: Any, folder: Path, *, no_locks: bool = False) -> None:
        assert self.process.stdin is not None
        facts = {"row": {**vars(row), "aliases": []}, "folder": str(folder), "no_locks": no_locks}
        self.process.stdin.write(json.dumps(facts) + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def crowd() -> Iterator[list[Member]]:
    members = [Member() for _ in range(16)]
    try:
        yield [member.wait_until_ready() for member in members]
    finally:
        for member in members:
            member.kill()


class Watcher(threading.Thread):
    """Reads the file as often as it can while others bring it; keeps what it was."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.target = target
        self.seen: set[str] = set()
        self.reads = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.0005):
            with contextlib.suppress(FileNotFoundError):
                self.seen.add(hashlib.sha256(self.target.read_bytes()).hexdigest())
                self.reads += 1


ROUNDS = [
    pytest.param(number, marks=[pytest.mark.slow] if number >= 2 else []) for number in range(20)
]


@pytest.mark.parametrize("number", ROUNDS)
@pytest.mark.parametrize("no_locks", [False, True], ids=["plain", "no locks"])
def test_sixteen_processes_on_a_cold_cache(
    server: MoreServer, crowd: list[Member], tmp_path: Path, no_locks: bool, number: int
) -> None:
    """waifu4x takes no lock, so the rounds without locks are the same, and prove that it takes
    none: there every lock raises. What is right rests on the rename alone."""
    watcher = Watcher(tmp_path / "toy.pth")
    watcher.start()
    for member in crowd:
        member.order(server.row("200"), tmp_path, no_locks=no_locks)
    told = [member.line() for member in crowd]
    deadline = time.monotonic() + 10
    while not watcher.reads and time.monotonic() < deadline:
        time.sleep(0.001)
    watcher.done.set()
    watcher.join()
    assert told == [SHA256] * 16
    assert watcher.seen == {SHA256}
    assert [path.name for path in tmp_path.iterdir()] == ["toy.pth"]
    assert 1 <= len(server.asked) <= 16


needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


@needs_sigkill
@pytest.mark.parametrize(
    "piece", [0, 1, 2, PIECES // 2, PIECES, pytest.param(PIECES + 1, id="all sent")]
)
def test_a_download_killed_at_any_piece_holds_up_nobody(
    server: MoreServer, tmp_path: Path, piece: int
) -> None:
    reached = threading.Event()

    def hold(number: int) -> None:
        if number == piece:
            reached.set()
            server.released.wait(20 if number <= PIECES else 0.0)

    server.before_piece = hold
    holder = Member().wait_until_ready()
    holder.order(server.row("pieces"), tmp_path)
    assert reached.wait(20)
    holder.kill()
    target = tmp_path / "toy.pth"
    if piece <= PIECES:
        assert not target.exists()
    else:  # renamed or not: whole or not there
        assert not target.exists() or target.read_bytes() == CONTENT
    started = time.monotonic()
    weights.fetch(server.row("200"), folder=tmp_path)
    assert time.monotonic() - started < 30
    assert target.read_bytes() == CONTENT
    others = [path.name for path in tmp_path.iterdir() if path != target]
    assert all(name.startswith(".toy.pth.") and name.endswith(".partial") for name in others)
    assert len(others) <= 1


@needs_sigkill
def test_a_holder_that_hangs_and_then_dies_holds_up_nobody(
    server: MoreServer, crowd: list[Member], tmp_path: Path
) -> None:
    reached = threading.Event()

    def hold(number: int) -> None:
        if number == PIECES // 2:
            reached.set()
            server.released.wait(30)

    server.before_piece = hold
    holder = Member().wait_until_ready()
    try:
        holder.order(server.row("pieces"), tmp_path)
        assert reached.wait(20)
        holder.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        for member in crowd[:8]:
            member.order(server.row("200"), tmp_path)
        assert [member.line() for member in crowd[:8]] == [SHA256] * 8
    finally:
        holder.kill()
    (tmp_path / "toy.pth").unlink()
    for member in crowd:
        member.order(server.row("200"), tmp_path)
    assert [member.line() for member in crowd] == [SHA256] * 16
    assert time.monotonic() - started < 30
