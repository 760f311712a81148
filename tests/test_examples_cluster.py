"""The scripts of examples/cluster, with Slurm's variables set by hand and two processes at once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, contents, counted, save, upscale
from training import PIXEL, rows, save_picture

from waifu4x.train import tables

SCRIPTS = ROOT / "examples" / "cluster"

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("bash") is None, reason="needs bash"
)

_WAIFU4X = 'exec "$PYTHON" -W error -m waifu4x "$@"'
_TORCHRUN = 'exec "$PYTHON" -m torch.distributed.run "$@"'
# As many processes as tasks, all on this host; its own options are not for the command.
_SRUN = """
while [ "${1#--}" != "$1" ]; do shift; done
pids=()
for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 "$@" &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where the commands that scripts call are those of this checkout, and Slurm's a few lines."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in (("waifu4x", _WAIFU4X), ("torchrun", _TORCHRUN), ("srun", _SRUN)):
        (commands / name).write_text(f"#!/bin/bash\nset -e\n{body}\n")
        (commands / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC_"))}
    return kept | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


def start(script: str, *arguments: object, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPTS / script), *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(*processes: subprocess.Popen[str]) -> list[tuple[str, str]]:
    """What they said; all have to end well."""
    try:
        done = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), done
    return done


@pytest.mark.parametrize(
    "script", ["ray-job.sh", "slurm-array.sh", "slurm-train.sh", "torchrun.sh"]
)
def test_scripts_are_programs_that_say_how_they_are_called(
    script: str, environment: dict[str, str]
) -> None:
    assert os.access(SCRIPTS / script, os.X_OK)
    process = start(script, environment=environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("usage: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("big", ["/shared/big", "/shared/big/", "s3://bucket/big"])
@pytest.mark.parametrize("code", [0, 3])
def test_a_ray_job_asks_for_no_more_than_was_given(
    tmp_path: Path, environment: dict[str, str], big: str, code: int
) -> None:
    """A report beside the output folder could not be written where that is a URL."""
    (tmp_path / "bin/waifu4x").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@"\nexit {code}\n')
    process = start("ray-job.sh", "in put", big, "-m", "own model", environment=environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    given = ["upscale", "in put", "-r", "-o", big, "--ray", "auto", "-m", "own model"]
    assert out.splitlines() == given
    assert ("--retry-failed" in err) == (code == 3)


def test_an_array_of_two_makes_what_one_run_does(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    source, big = tmp_path / "in", tmp_path / "big"
    for k in range(40):
        save(source / ("", "sub")[k % 2] / f"{k:02}.{('png', 'jpg')[k % 3 == 0]}", seed=k)
    save(source / "00.bmp", seed=99)
    tasks = [
        start(
            *("slurm-array.sh", source, big, "-m", "nearest", "-s", "2", "-f", "webp"),
            environment=environment
            | {
                "SLURM_ARRAY_TASK_ID": str(k),
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_CPUS_PER_TASK": "1",
            },
        )
        for k in (1, 2)
    ]
    assert ended(*tasks) == [("", "")] * 2
    whole = tmp_path / "whole"
    options = ("-r", "-s", 2, "-f", "webp")
    assert upscale(source, "-o", whole, *options).exit_code == 0
    assert contents(big) == contents(whole)
    assert len(contents(big)) == 41
    merging = subprocess.run(
        ["waifu4x", "batch", "merge", str(big), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(merging.stdout)
    assert (told["done"], told["failed"]) == (41, 0)
    assert (told["merged"], told["missing"], told["left"]) == (["1/2", "2/2"], [], [])
    again = upscale(source, "-o", big, *options)
    assert counted(again, "skipped", "done before") == 41


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["torchrun.sh", "slurm-train.sh"])
def test_two_processes_train_one_model(
    tmp_path: Path, environment: dict[str, str], script: str
) -> None:
    """They take the steps together, and one of them writes what comes of it."""
    for number in range(3):
        save_picture(tmp_path / "in" / f"{number}.png", seed=number)
    (tmp_path / "tiny.toml").write_text(tables.to_toml(PIXEL.facts()))
    run = tmp_path / "run"
    slurm = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    process = start(
        *(script, tmp_path / "in", "--recipe", tmp_path / "tiny.toml", "--name", "two"),
        *("--out", run, "--device", "cpu", "--precision", "fp32", "--workers", 0),
        *("--report-every", 1),
        environment=environment | ({"PROCESSES": "2"} if script == "torchrun.sh" else slurm),
    )
    ((out, err),) = ended(process)
    assert out == ""
    assert err.count("use it with: waifu4x upscale meme.png -m two") == 1, err
    assert err.count("starting at step 0") == 1
    assert [row["step"] for row in rows(run)] == list(range(1, 13))
    assert (run / "two.safetensors").is_file()
    assert json.loads((run / "two.json").read_text())["name"] == "two"
