"""A name becomes a verified file, whatever the server, the cache and the neighbours do."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from requests.adapters import HTTPAdapter
from typer.testing import CliRunner

from waifu4x import catalog, pictures, weights
from waifu4x.catalog import CatalogRow
from waifu4x.cli.app import app
from waifu4x.download import Patience
from waifu4x.errors import (
    DownloadError,
    HashMismatchError,
    OfflineError,
    UnknownModelError,
    UsageError,
    Waifu4xError,
    WeightsError,
)
from waifu4x.models import open_upscaler
from waifu4x.pictures import Picture
from waifu4x.sizes import Target

CONTENT = random.Random(0).randbytes(600_000)  # three chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HASTE = Patience(pause_s=0.01)
# For servers that do stall; the others must not be hurried, or a busy machine fails the test.
IMPATIENCE = Patience(read_s=0.25, pause_s=0.01)


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT in the way that the address names."""

    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        behaviour = self.path.split("/")[1]
        with self.server.counting:
            self.server.asked.append(behaviour)
            first = self.server.asked.count(behaviour) == 1
        self.close_connection = True
        if behaviour.isdigit() and behaviour != "200":
            self.send_error(int(behaviour))
        elif behaviour == "loop":
            self._head(302, location=self.path)
        elif behaviour == "flaky" and first:
            self.send_error(503)
        elif behaviour == "html":
            self._give(b"<html>please log in</html>", content_type="text/html")
        elif behaviour == "wrong":
            self._give(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        elif behaviour == "short":  # ends well, and is not all
            self._give(CONTENT[:-1000])
        elif behaviour == "drop":
            self._give(CONTENT[: len(CONTENT) // 2], content_length=len(CONTENT))
        elif behaviour == "stall":
            self._give(CONTENT[: len(CONTENT) // 2], content_length=len(CONTENT))
            self.server.released.wait(20)
        elif behaviour == "silent":
            self.server.released.wait(20)
        elif behaviour == "gzip":
            self._give(gzip.compress(CONTENT, 1), content_encoding="gzip")
        elif behaviour == "gzipbomb":
            self._give(gzip.compress(bytes(50_000_000), 9), content_encoding="gzip")
        elif behaviour == "longer":  # more than the row says, without saying so itself
            self._give(CONTENT + CONTENT, content_length=None)
        elif behaviour == "partial":  # a range, which nobody asked for
            self._head(206, content_length=1000)
            self.wfile.write(CONTENT[:1000])
        else:
            assert behaviour in ("200", "flaky")
            assert "Range" not in self.headers
            self._give(CONTENT)

    def _give(self, body: bytes, **headers: Any) -> None:
        self._head(200, **{"content_length": len(body), **headers})
        try:
            self.wfile.write(body)
        except OSError:
            assert len(body) > len(CONTENT)  # only whoever sends too much is hung up on

    def _head(self, code: int, **headers: Any) -> None:
        self.send_response(code)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output clean."""


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.counting = threading.Lock()
        self.released = threading.Event()

    def row(self, behaviour: str, **changes: Any) -> CatalogRow:
        """A row whose address makes this server behave like that."""
        facts: dict[str, Any] = {
            "name": "toy",
            "kind": "download",
            "architecture": "srvggnetcompact",
            "scale": 4,
            "licence": "MIT",
            "good_for": "tests",
            "url": f"http://127.0.0.1:{self.server_port}/{behaviour}/toy.pth",
            "file": "toy.pth",
            "sha256": SHA256,
            "size_bytes": len(CONTENT),
        }
        return CatalogRow(**{**facts, **changes})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(weights.OFFLINE_VARIABLE, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cataloged(server: Server, monkeypatch: pytest.MonkeyPatch) -> CatalogRow:
    """A model called toy in the catalogue, served well."""
    return in_catalog(server.row("200"), monkeypatch)


def in_catalog(row: CatalogRow, monkeypatch: pytest.MonkeyPatch) -> CatalogRow:
    rows = (row, *catalog.rows())
    monkeypatch.setattr(catalog, "rows", lambda: rows)
    return row


BEHAVIOURS: list[tuple[str, int, type[Waifu4xError] | None, list[str]]] = [
    # what the server does, how often it is asked, the error, and what its message names
    ("200", 1, None, []),
    ("flaky", 2, None, []),
    ("gzip", 1, None, []),
    ("404", 1, DownloadError, ["404 Not Found"]),
    ("403", 1, DownloadError, ["403 Forbidden"]),
    ("500", 3, DownloadError, ["500 Internal Server Error", "try 3 of 3"]),
    ("loop", 31, DownloadError, ["30 redirects"]),  # one try: requests follows 30
    ("short", 1, HashMismatchError, [SHA256, "got", "599000 bytes"]),
    ("drop", 3, DownloadError, ["connection broke", "try 3 of 3"]),
    ("stall", 3, DownloadError, ["sent nothing for 0.25 s", "try 3 of 3"]),
    ("silent", 3, DownloadError, ["sent nothing for 0.25 s", "try 3 of 3"]),
    ("wrong", 1, HashMismatchError, [SHA256, "got"]),
    ("html", 1, HashMismatchError, [SHA256, "26 bytes"]),
    ("longer", 1, DownloadError, ["more than the 600000 bytes", SHA256]),
    ("gzipbomb", 1, DownloadError, ["more than the 600000 bytes"]),
    ("partial", 1, HashMismatchError, [SHA256, "1000 bytes"]),
]


@pytest.mark.parametrize("cache", ["empty", "partial", "corrupt"])
@pytest.mark.parametrize(
    ("behaviour", "times", "error", "named"), BEHAVIOURS, ids=[case[0] for case in BEHAVIOURS]
)
def test_the_file_appears_only_with_the_promised_hash(
    server: Server,
    tmp_path: Path,
    cache: str,
    behaviour: str,
    times: int,
    error: type[Waifu4xError] | None,
    named: list[str],
) -> None:
    row, target = server.row(behaviour), tmp_path / "toy.pth"
    patience = IMPATIENCE if behaviour in ("stall", "silent") else HASTE
    if cache == "partial":
        target.write_bytes(CONTENT[:1000])
    elif cache == "corrupt":
        target.write_bytes(b"\0" + CONTENT[1:])
    if error is None:
        assert weights.fetch(row, folder=tmp_path, patience=patience) == target
        assert target.read_bytes() == CONTENT
    else:
        with pytest.raises(error) as caught:
            weights.fetch(row, folder=tmp_path, patience=patience)
        assert type(caught.value) is error
        message = str(caught.value)
        assert "\n" not in message
        for text in (str(row.url), *named):
            assert text in message
        assert not target.exists()
    assert server.asked == [behaviour] * times
    assert list(tmp_path.iterdir()) == ([target] if error is None else [])


def test_what_is_cached_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    row = server.row("200")
    weights.fetch(row, folder=tmp_path)
    weights.fetch(row, folder=tmp_path)
    assert server.asked == ["200"]


def test_a_server_that_nobody_listens_at(tmp_path: Path) -> None:
    stopped = Server()
    stopped.server_close()
    with pytest.raises(DownloadError, match=r"refused.*try 3 of 3"):
        weights.fetch(stopped.row("200"), folder=tmp_path, patience=HASTE)


def test_the_defaults_give_up_on_a_silent_server_within_a_minute() -> None:
    patience = Patience()
    pauses_s = sum(patience.pause_s * 2**trial for trial in range(patience.tries - 1))
    assert patience.tries <= 3
    assert patience.tries * max(patience.read_s, patience.connect_s) + pauses_s < 60


@pytest.mark.parametrize(
    ("goal", "followed"),
    [("http://models.example/b", False), ("//models.example/b", True), ("/b", True)],
)
def test_https_never_becomes_http(
    goal: str, followed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(adapter: Any, request: Any, **_: Any) -> requests.Response:
        asked.append(request.url)
        response = requests.Response()
        response.url, response.request = request.url, request
        response.status_code, response.reason = (302, "Found") if len(asked) == 1 else (404, "Gone")
        response.headers["location"] = goal
        response.raw = SimpleNamespace(
            release_conn=lambda: None, close=lambda: None, stream=lambda *_, **__: iter(()),
            _original_response=None, headers={},
        )  # fmt: skip
        return response

    monkeypatch.setattr(HTTPAdapter, "send", answer)
    row = Server.row(SimpleNamespace(server_port=1), "200", url="https://models.example/a")  # type: ignore[arg-type]
    message = "404 Gone" if followed else "redirects to http://models.example/b, which is not https"
    with pytest.raises(DownloadError, match=message):
        weights.fetch(row, folder=tmp_path, patience=HASTE)
    followed_to = ["https://models.example/b"] if followed else []
    assert asked == ["https://models.example/a", *followed_to]


def test_a_full_disk_is_not_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(WeightsError, match=r"toy\.pth: No space left.*600000 bytes") as caught:
        weights.fetch(server.row("200"), folder=tmp_path, patience=HASTE)
    assert not isinstance(caught.value, DownloadError)
    assert server.asked == ["200"]
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="WAIFU4X_HOME"):
        weights.fetch(server.row("200"), folder=tmp_path / "file" / "weights")
    assert server.asked == []


def test_a_file_that_a_neighbour_brought_meanwhile_is_good_enough(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def occupied(source: Path, target: Path) -> None:  # as Windows does
        Path(target).write_bytes(CONTENT)
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(os, "replace", occupied)
    target = weights.fetch(server.row("200"), folder=tmp_path)
    assert target.read_bytes() == CONTENT


def test_progress_counts_bytes_up_to_the_promised_total(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    weights.fetch(server.row("200"), folder=tmp_path, on_progress=lambda *at: seen.append(at))
    done = [at[0] for at in seen]
    assert done == sorted(done)
    assert len(done) == 3
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_sixteen_threads_on_a_cold_cache(server: Server, tmp_path: Path) -> None:
    row = server.row("200")
    for round_number in range(5):
        folder = tmp_path / str(round_number)
        with ThreadPoolExecutor(16) as pool:
            runs = [pool.submit(weights.fetch, row, folder=folder) for _ in range(16)]
            assert {run.result().read_bytes() == CONTENT for run in runs} == {True}
        assert [path.name for path in folder.iterdir()] == ["toy.pth"]


FETCH = """
import json, sys
from pathlib import Path
from waifu4x import weights
from waifu4x.catalog import CatalogRow
row = CatalogRow(**json.loads(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(weights.fetch(row, folder=Path(sys.argv[2])), flush=True)
"""


def start_fetching(row: CatalogRow, folder: Path) -> subprocess.Popen[str]:
    facts = {**vars(row), "aliases": []}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FETCH, json.dumps(facts), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_several_processes_on_a_cold_cache(server: Server, tmp_path: Path) -> None:
    running = [start_fetching(server.row("200"), tmp_path) for _ in range(6)]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=60)[0] for process in running]
    assert told == [f"{tmp_path / 'toy.pth'}\n"] * 6
    assert [path.name for path in tmp_path.iterdir()] == ["toy.pth"]
    assert (tmp_path / "toy.pth").read_bytes() == CONTENT


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_download_holds_nobody_up_and_is_swept(server: Server, tmp_path: Path) -> None:
    killed = start_fetching(server.row("stall"), tmp_path)
    assert killed.stdin is not None
    assert killed.stdout is not None
    killed.stdin.write("go\n")
    killed.stdin.flush()
    deadline = time.monotonic() + 30
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    (orphan,) = tmp_path.iterdir()
    assert orphan.name.endswith(".partial")

    target = weights.fetch(server.row("200"), folder=tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([orphan, target])  # too young: may be at work
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(orphan, (long_ago, long_ago))
    target.unlink()
    weights.fetch(server.row("200"), folder=tmp_path)
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_is_downloaded_once_and_then_works_offline(
    server: Server, cataloged: CatalogRow, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = weights.resolve("TOY")
    assert found.path == own_home / "weights" / "toy.pth"
    assert (found.name, found.sha256, found.row) == ("toy", SHA256, cataloged)
    monkeypatch.setenv(weights.OFFLINE_VARIABLE, "1")
    assert weights.resolve("toy") == found
    assert weights.resolve("toy", offline=True) == found
    assert server.asked == ["200"]


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_offline_says_what_to_run_and_where_to_copy(
    by: str, server: Server, cataloged: CatalogRow, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "variable":
        monkeypatch.setenv(weights.OFFLINE_VARIABLE, "true")
    with pytest.raises(OfflineError, match="waifu4x models download toy") as caught:
        weights.resolve("toy", offline=by == "argument")
    assert str(own_home / "weights" / "toy.pth") in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize("value", ["", "0", "false", "No"])
def test_the_offline_variable_can_say_no(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.OFFLINE_VARIABLE, value)
    assert not weights.is_offline()


def test_a_damaged_cached_file_is_refused_offline_and_replaced_online(
    server: Server, cataloged: CatalogRow, own_home: Path
) -> None:
    path = own_home / "weights" / "toy.pth"
    path.parent.mkdir()
    damaged = b"\0" + CONTENT[1:]
    path.write_bytes(damaged)
    with pytest.raises(HashMismatchError) as caught:
        weights.resolve("toy", offline=True)
    for text in (str(path), SHA256, hashlib.sha256(damaged).hexdigest(), "models download toy"):
        assert text in str(caught.value)
    assert path.read_bytes() == damaged
    assert weights.resolve("toy").path.read_bytes() == CONTENT


def test_shipped_weights_are_hashed_before_use(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = server.row("200", name="boxed", kind="shipped", url=None, file="boxed.safetensors")
    in_catalog(row, monkeypatch)
    monkeypatch.setattr(catalog, "shipped_folder", lambda: tmp_path)
    with pytest.raises(WeightsError, match=r"boxed\.safetensors; reinstall"):
        weights.resolve("boxed")
    (tmp_path / "boxed.safetensors").write_bytes(CONTENT)
    assert weights.resolve("boxed").path == tmp_path / "boxed.safetensors"
    (tmp_path / "boxed.safetensors").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(HashMismatchError, match="reinstall"):
        weights.resolve("boxed")
    assert server.asked == []


def test_a_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.pth").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    for given in ("mine.pth", "./mine.pth", tmp_path / "mine.pth", Path("mine.pth")):
        found = weights.resolve(given)
        assert found.path.read_bytes() == b"mine"
        assert (found.name, found.row) == ("mine", None)
        assert found.sha256 == hashlib.sha256(b"mine").hexdigest()


def test_a_file_with_a_models_name_is_not_loaded_from_the_current_directory(
    cataloged: CatalogRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for planted in ("toy", "planted"):
        (tmp_path / planted).write_bytes(b"planted")
    monkeypatch.chdir(tmp_path)
    assert weights.resolve("toy").path.parent != tmp_path
    with pytest.raises(UnknownModelError):
        weights.resolve("planted")


def test_a_missing_file_offers_the_model_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"no file.*say RealESRGAN_x4plus$"):
        weights.resolve("RealESRGAN_x4plus.pth")
    with pytest.raises(UnknownModelError, match="no file"):
        weights.resolve(tmp_path)


def test_a_filter_has_no_file() -> None:
    with pytest.raises(UsageError, match="bicubic is a resampling filter"):
        weights.resolve("bicubic")


# The user's own models


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the loader, which has tests of its own: anything is a 2x checkpoint."""
    loaded: list[Path] = []

    def fake(path: Path, *, name: str | None = None, licence: str | None = None) -> Any:
        loaded.append(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return SimpleNamespace(
            architecture="srresnet",
            scale=2,
            pre_upsampled=False,
            any_scale=False,
            sha256=sha256,
            licence=licence,
        )

    module = ModuleType("waifu4x.model_files.checkpoints")
    module.load = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "waifu4x.model_files.checkpoints", module)
    return loaded


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "my net (v2).PTH"
    path.write_bytes(CONTENT)
    return path


def test_an_added_model_is_found_by_name_from_a_copy(
    load: list[Path], checkpoint: Path, own_home: Path
) -> None:
    row = weights.add(checkpoint, name="Mine", licence="CC-BY-4.0")
    assert load == [checkpoint]
    checkpoint.unlink()
    found = weights.resolve("mine", offline=True)
    assert found.row == row == weights.find("MINE")
    assert found.path.parent == own_home / "models"
    assert found.path.read_bytes() == CONTENT
    assert found.path.suffix == ".pth"
    assert (row.name, row.kind, row.architecture, row.scale) == ("Mine", "user", "srresnet", 2)
    assert (row.licence, row.sha256, row.size_bytes) == ("CC-BY-4.0", SHA256, len(CONTENT))
    with pytest.raises(UnknownModelError, match="did you mean Mine"):
        weights.find("minee")


def test_the_name_defaults_to_the_files(load: list[Path], checkpoint: Path) -> None:
    assert weights.add(checkpoint).name == "my-net-v2"
    assert weights.resolve("my-net-v2").path.read_bytes() == CONTENT


def test_a_name_is_taken_only_once_unless_overwritten(
    load: list[Path], checkpoint: Path, own_home: Path
) -> None:
    weights.add(checkpoint, name="mine")
    checkpoint.write_bytes(b"another")
    with pytest.raises(UsageError, match=r"a model called mine already.*--overwrite"):
        weights.add(checkpoint, name="MINE")
    assert weights.resolve("mine").path.read_bytes() == CONTENT
    weights.add(checkpoint, name="Mine", overwrite=True)
    assert weights.resolve("mine").path.read_bytes() == b"another"
    assert len(list((own_home / "models").iterdir())) == 2  # one file, one row
    weights.add(checkpoint, name="Mine", overwrite=True)
    assert weights.resolve("mine").path.read_bytes() == b"another"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../a", "a\\b", ".hidden", "-m", "a b", "a\nb", "[bold]", "é", "NUL",
     "com1.x", "a" * 65, "a.", "mine.pth", "x4plus", "BICUBIC", "realesrgan_x4plus"],
)  # fmt: skip
def test_names_that_cannot_be_given(
    name: str, load: list[Path], checkpoint: Path, own_home: Path
) -> None:
    with pytest.raises(UsageError):
        weights.add(checkpoint, name=name, overwrite=True)
    assert load == []
    assert not (own_home / "models").exists()


def test_what_the_loader_refuses_is_not_added(
    load: list[Path], checkpoint: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise WeightsError("not a checkpoint")

    monkeypatch.setattr(sys.modules["waifu4x.model_files.checkpoints"], "load", refuse)
    with pytest.raises(WeightsError, match="not a checkpoint"):
        weights.add(checkpoint)
    assert not (own_home / "models").exists()
    with pytest.raises(UnknownModelError, match="no file"):
        weights.add(checkpoint.with_name("absent.pth"))


def test_a_file_that_changes_under_the_hand_is_not_added(
    load: list[Path], checkpoint: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"swapped")

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(HashMismatchError, match="was changed"):
        weights.add(checkpoint)
    assert list((own_home / "models").iterdir()) == []


def test_a_damaged_or_lost_model_of_ones_own_is_refused(load: list[Path], checkpoint: Path) -> None:
    weights.add(checkpoint, name="mine")
    path = weights.resolve("mine").path
    path.write_bytes(b"\0" + CONTENT[1:])
    with pytest.raises(HashMismatchError, match=r"add FILE --name mine --overwrite"):
        weights.resolve("mine")
    path.unlink()
    with pytest.raises(WeightsError, match=r"missing.*models remove mine"):
        weights.resolve("mine")
    weights.remove("mine")
    with pytest.raises(UnknownModelError):
        weights.find("mine")


@pytest.mark.parametrize(
    "row",
    [b"", b"[]", b"{}", b'{"name": "x"}', b"\xff", b'{"file": "../../secret"}', "elsewhere"],
)
def test_a_damaged_row_is_named(
    row: bytes | str, load: list[Path], checkpoint: Path, own_home: Path
) -> None:
    weights.add(checkpoint, name="mine")
    path = own_home / "models" / "mine.json"
    if isinstance(row, str):
        facts = json.loads(path.read_bytes())
        row = json.dumps({**facts, "file": f"../{row}.pth"}).encode()
    path.write_bytes(row)
    with pytest.raises(WeightsError, match=r"mine\.json is damaged"):
        weights.find("mine")
    assert weights.find("bicubic").kind == "resample"  # the catalogue needs no row of the user's


def test_a_row_of_another_version_is_read(
    load: list[Path], checkpoint: Path, own_home: Path
) -> None:
    row = weights.add(checkpoint, name="mine")
    path = own_home / "models" / "mine.json"
    facts = json.loads(path.read_bytes())
    del facts["up_to"]
    path.write_text(json.dumps({**facts, "up_to_2x": None}), encoding="utf-8")
    assert weights.find("mine") == row


def test_remove(
    server: Server, cataloged: CatalogRow, load: list[Path], checkpoint: Path, own_home: Path
) -> None:
    weights.add(checkpoint, name="mine")
    gone = weights.remove("mine")
    assert not gone.exists()
    assert list((own_home / "models").iterdir()) == []
    with pytest.raises(UsageError, match="toy is not downloaded"):
        weights.remove("toy")
    path = weights.resolve("toy").path
    assert weights.remove("toy") == path
    assert not path.exists()
    for kept in (catalog.DEFAULT_MODEL, "bicubic"):
        with pytest.raises(UsageError, match="cannot be removed"):
            weights.remove(kept)


def states(listed: tuple[weights.Available, ...]) -> dict[str, str]:
    return {each.row.name: each.state for each in listed}


def test_listing_and_verifying(
    server: Server, cataloged: CatalogRow, load: list[Path], checkpoint: Path
) -> None:
    weights.add(checkpoint, name="mine")
    listed = states(weights.list_available())
    assert listed["toy"] == listed["RealESRGAN_x4plus"] == "not downloaded"
    assert listed["bicubic"] == "built in"
    assert listed["mine"] == "yours"
    assert "toy" not in states(weights.verify())

    path = weights.resolve("toy").path
    assert states(weights.list_available())["toy"] == "downloaded"
    checked = {each.row.name: each for each in weights.verify()}
    assert (checked["toy"].state, checked["toy"].got_sha256) == ("downloaded", SHA256)
    assert checked["mine"].state == "yours"

    path.write_bytes(b"\0" + CONTENT[1:])  # the same size: only hashing tells
    assert states(weights.list_available())["toy"] == "downloaded"
    assert states(weights.verify())["toy"] == "damaged"
    path.write_bytes(CONTENT[1:])
    assert states(weights.list_available())["toy"] == "damaged"
    weights.resolve("mine").path.unlink()
    assert states(weights.verify())["mine"] == "missing"


def test_the_folders_without_the_variable_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(weights.HOME_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("XDG_DATA_HOME", "/d")
    assert weights.downloads_folder().parts[-2:] != weights.models_folder().parts[-2:]
    assert "waifu4x" in weights.downloads_folder().parts
    assert "waifu4x" in weights.models_folder().parts
    assert Path.cwd() not in weights.downloads_folder().parents


# The published file


@pytest.fixture
def published(shared: Path) -> Path:
    return shared / "weights" / "realesrgan" / "realesr-animevideov3.pth"


def test_from_the_address_to_the_network(
    server: Server, published: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from waifu4x.model_files.checkpoints import load

    row = catalog.find("realesr-animevideov3")
    monkeypatch.setattr(f"{__name__}.CONTENT", published.read_bytes())
    served = CatalogRow(**{**vars(row), "url": server.row("200").url, "name": "served"})
    in_catalog(served, monkeypatch)
    found = weights.resolve("served")
    assert found.path == own_home / "weights" / "realesr-animevideov3.pth"
    model = load(found.path)
    assert (model.architecture, model.scale, model.parameters) == ("srvggnetcompact", 4, 621_424)
    assert model.sha256 == row.sha256


def test_a_published_model_runs_from_its_address_alone_and_then_offline(
    server: Server, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.CONTENT", published.read_bytes())
    row = catalog.find("realesr-animevideov3")
    in_catalog(
        CatalogRow(**{**vars(row), "url": server.row("200").url, "name": "served"}), monkeypatch
    )
    source = tmp_path / "tiny.png"
    pictures.write(Picture(pixels=np.full((9, 7, 3), 200, dtype=np.uint8)), source)
    arguments = ["upscale", str(source), "-m", "served", "--precision", "fp32", "--overwrite"]
    assert CliRunner().invoke(app, [*arguments, "--offline"]).exit_code == 1
    assert CliRunner().invoke(app, arguments).exit_code == 0
    upscaler = open_upscaler(published, precision="fp32")
    expected, _ = upscaler.upscale(pictures.read(source), Target(scale=4))
    large = pictures.read(tmp_path / "tiny_served_4x.png")
    np.testing.assert_array_equal(large.pixels, expected.pixels)
    assert CliRunner().invoke(app, [*arguments, "--offline"]).exit_code == 0


def test_adding_a_published_file_with_the_real_loader(published: Path) -> None:
    row = weights.add(published, name="av3", licence="BSD-3-Clause")
    assert (row.architecture, row.scale) == ("srvggnetcompact", 4)
    assert weights.resolve("av3").sha256 == catalog.find("animevideov3").sha256


def test_a_network_that_is_given_an_upscaled_picture_has_no_scale_of_its_own(shared: Path) -> None:
    row = weights.add(shared / "weights" / "vdsr" / "vdsr_twtygqyy.safetensors", name="deep")
    assert (row.architecture, row.scale, row.licence) == ("vdsr", None, "unknown")
