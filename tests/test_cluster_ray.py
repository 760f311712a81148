"""Ray itself, on this machine: two workers of one core each."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, contents, counted, errors, names, program, save

pytest.importorskip("ray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

FILES = 200
DAY_S = 24 * 3600
PATIENCE_S = 240.0
"""Ray takes seconds, and on a busy machine more; for ever is longer."""


def _sensitive() -> None:
    # A shell's background job inherits a SIGINT that is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment() -> dict[str, str]:
    # Tokens would lie in the user's own folder.
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start --block` with these, from when it is ready; ended by its number alone."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    options = [
        *("--disable-usage-stats", "--num-cpus=1", f"--object-store-memory={80 * 2**20}"),
        *map(str, arguments),
    ]
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [*command, *options], stdout=told, stderr=told, env=environment()
        )
        try:
            until_s = time.monotonic() + PATIENCE_S
            while True:
                told.seek(0)
                text = told.read()
                if b"Ray runtime started" in text:
                    break
                assert process.poll() is None, text
                assert time.monotonic() < until_s, text
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two machines, both of which are this one."""
    port = _free_port()
    address = f"127.0.0.1:{port}"
    # Short: sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="w4x-", dir="/tmp", ignore_cleanup_errors=True) as at:
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={at}")
        with (
            started(*head, "--node-ip-address=127.0.0.1"),
            started(f"--address={address}", "--node-ip-address=127.0.0.1"),
        ):
            yield address


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "in"
    for k in range(FILES):
        save(folder / "ab"[k % 2] / f"{k:03}.png", seed=k, size=(40 + k % 60, 30 + k % 40))
    return folder


@pytest.fixture(scope="module")
def expected(inputs: Path) -> Path:
    """What one process makes of them."""
    out = inputs.with_name("alone")
    done = program(inputs, "-r", "-o", out)
    assert done.returncode == 0, done.stderr
    return out


def lines(out: Path) -> list[dict[str, Any]]:
    rows = (out / ".waifu4x/journal.jsonl").read_text().splitlines()
    return sorted(map(json.loads, rows), key=lambda line: line["output"])


def facts_of(line: dict[str, Any]) -> dict[str, Any]:
    """Without which of the runs into this folder it was."""
    return {name: value for name, value in line.items() if name != "run"}


def check(out: Path, expected: Path) -> None:
    """All is there, byte for byte, noted once each, and nothing else is."""
    assert contents(out) == contents(expected)
    assert [facts_of(line) for line in lines(out)] == [facts_of(line) for line in lines(expected)]
    assert [path.name for path in (out / ".waifu4x").iterdir()] == ["journal.jsonl"]


class Run:
    """The program, while it runs."""

    def __init__(self, *arguments: object) -> None:
        command = ["-W", "error", "-m", "waifu4x", "upscale", "-m", "nearest", "-r"]
        # Not a pipe: one that nobody reads from would stop it.
        self._stdout = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(
            [sys.executable, *command, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
            preexec_fn=_sensitive,
            start_new_session=True,
        )
        # What hangs is an error.
        self._timer = threading.Timer(PATIENCE_S, self.process.kill)
        self.told = ""

    def __enter__(self) -> Run:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self.process.kill()
        self.process.communicate()
        self._stdout.close()

    def await_files(self, count: int) -> None:
        """Read what it says until it has done so many."""
        assert self.process.stderr is not None
        while self.told.count(" → ") < count:
            line = self.process.stderr.readline()
            assert line, self.told
            self.told += line

    def end(self) -> int:
        """Its exit code; afterwards `told` is all that it said."""
        assert self.process.stderr is not None
        self.told += self.process.stderr.read()
        self.process.wait(PATIENCE_S)
        self._stdout.seek(0)
        self.out = self._stdout.read()
        assert "Traceback" not in self.told
        return self.process.returncode


def workers_of(pid: int | None = None) -> list[int]:
    """Processes of this machine that are workers; with `pid` those that it started."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            title = (entry / "cmdline").read_bytes()
            is_worker = entry.name.isdecimal() and title.startswith(b"ray::Worker")
            if is_worker and (pid is None or pid in _ancestors(int(entry.name))):
                found.append(int(entry.name))
    return found


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        # The name may hold anything, so the fields are counted from its end: proc_pid_stat(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pid = int(fields[1])
        yield pid


def await_true(question: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not question():
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_two_workers_make_what_one_process_makes(
    cluster: str, inputs: Path, expected: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with Run(inputs, "-o", out, "--ray", cluster, "--json") as run:
        assert run.end() == 0, run.told
    check(out, expected)
    assert run.told.count(" → ") == FILES
    rest = [line for line in run.told.splitlines() if " → " not in line]
    assert [line.split() for line in rest] == [
        ["2", "workers", "of", "1", "core", "on", "2", "machines"],
        ["done", f"{FILES}"],
    ]
    rows = [json.loads(line) for line in run.out.splitlines()]
    assert {row["status"] for row in rows} == {"done"}
    with Run(inputs, "-o", out, "--ray", cluster) as again:
        assert again.end() == 0
    assert "done before" in again.told
    assert workers_of() == []


def test_a_worker_that_is_killed(
    cluster: str, inputs: Path, expected: Path, tmp_path: Path
) -> None:
    """Nothing is lost and nothing is done twice; and whoever reads the JSON sees nothing of it."""
    out = tmp_path / "out"
    with Run(inputs, "-o", out, "--ray", cluster, "--json") as run:
        run.await_files(20)
        os.kill(workers_of()[0], signal.SIGKILL)
        assert run.end() == 0, run.told
    assert "died" in run.told
    assert counted_in(run.told) == FILES
    check(out, expected)
    rows = [json.loads(line) for line in run.out.splitlines()]
    told = Counter(row["input"] for row in rows)
    assert len(told) == FILES
    assert set(told.values()) == {1}


def counted_in(told: str) -> int:
    (row,) = [line.split() for line in told.splitlines() if line.startswith("done ")]
    return int(row[1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_and_the_same_command_again(
    cluster: str, inputs: Path, expected: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "out"
    with Run(inputs, "-o", out, "--ray", cluster) as run:
        run.await_files(20)
        run.process.send_signal(number)
        assert run.end() == code, run.told
    there = contents(out)
    assert there.items() < contents(expected).items()
    assert {line["output"] for line in lines(out)} == set(there), "what is there is noted"
    assert workers_of() == []
    with Run(inputs, "-o", out, "--ray", cluster) as again:
        assert again.end() == 0, again.told
    assert counted_in(again.told) == FILES - len(there)
    check(out, expected)


def test_the_program_is_killed(cluster: str, inputs: Path, expected: Path, tmp_path: Path) -> None:
    """Its workers end with it, and the same command does the rest."""
    out = tmp_path / "out"
    with Run(inputs, "-o", out, "--ray", cluster) as run:
        run.await_files(20)
        run.process.kill()
    await_true(lambda: workers_of() == [])
    # What killed processes leave is kept for a day: it might be of others.
    for orphan in out.rglob("*.partial"):
        old_s = time.time() - 2 * DAY_S
        os.utime(orphan, (old_s, old_s))
    with Run(inputs, "-o", out, "--ray", cluster) as again:
        assert again.end() == 0, again.told
    assert contents(out) == contents(expected)


def test_a_machine_that_is_lost(inputs: Path, expected: Path, tmp_path: Path) -> None:
    port = _free_port()
    address = f"127.0.0.1:{port}"
    out = tmp_path / "out"
    with tempfile.TemporaryDirectory(prefix="w4x-", dir="/tmp", ignore_cleanup_errors=True) as at:
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={at}")
        with (
            started(*head, "--node-ip-address=127.0.0.1"),
            started(f"--address={address}", "--node-ip-address=127.0.0.1") as other,
            Run(inputs, "-o", out, "--ray", address) as run,
        ):
            await_true(lambda: len(workers_of()) == 2)
            run.await_files(20)
            for pid in [*descendants(other.pid), other.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert run.end() == 0, run.told
    check(out, expected)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if pid in _ancestors(int(entry.name)):
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_cluster_for_this_command_alone(
    inputs: Path, expected: Path, tmp_path: Path, number: int
) -> None:
    """A signal as a terminal sends it, to Ray's processes too."""
    few = tmp_path / "in"
    few.mkdir()
    for name in names(inputs)[::20]:
        (few / Path(name).name).write_bytes((inputs / name).read_bytes())
    out, before = tmp_path / "out", ray_folders()
    with Run(few, "-o", out, "--ray", "local", "--ray-cores", 1) as run:
        run.await_files(1)
        os.killpg(run.process.pid, number)
        assert run.end() in (128 + number, 0), run.told
    assert [*out.rglob("*.partial")] == []
    assert [path.name for path in (out / ".waifu4x").iterdir()] == ["journal.jsonl"]
    with Run(few, "-o", out, "--ray", "local", "--ray-cores", 1) as again:
        assert again.end() == 0, again.told
    wanted = {Path(name).name: data for name, data in contents(expected).items()}
    assert contents(out).items() <= wanted.items()
    assert len(contents(out)) == len(names(few))
    assert ray_folders() == before


def ray_folders() -> set[Path]:
    return set(Path("/tmp").glob("w4x-*"))


def test_nobody_at_this_address(inputs: Path, tmp_path: Path) -> None:
    done = program(inputs, "-r", "-o", tmp_path, "--ray", f"127.0.0.1:{_free_port()}")
    assert done.returncode == 1
    assert "no Ray cluster answers at 127.0.0.1:" in errors(done)[0]
    assert counted(done, "done") == 0


def test_the_example(cluster: str, inputs: Path, expected: Path, tmp_path: Path) -> None:
    """examples/cluster/ray-job.sh, as it stands."""
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", str(ROOT / "examples/cluster/ray-job.sh"), str(inputs), str(out), "-m", "nearest"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=ROOT,
        env={
            **environment(),
            "RAY_ADDRESS": cluster,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
    )
    assert done.returncode == 0, done.stderr
    check(out, expected)
