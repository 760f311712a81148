"""The work of ``waifu4x train`` for networks that are fitted and not trained: A+ and ScSR."""

from __future__ import annotations

import copy
import json
import platform
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from waifu4x import devices, files, weights
from waifu4x.cli.console import say, stderr
from waifu4x.errors import TrainError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.train import tables
from waifu4x.train.fitting import sparse
from waifu4x.train.reports import card
from waifu4x.train.validation import validate, validation_pairs
from waifu4x.version import __version__

if TYPE_CHECKING:
    from waifu4x.cli.train_request import Request
    from waifu4x.train.fitting.sparse import Fitted
    from waifu4x.train.validation import ValidationPair

_CPU = torch.device("cpu")


def run(request: Request, *, estimate: bool) -> None:
    """Fit a network, and write the model and its card; nothing is written before the end.

    Raises:
        UsageError: flags that a fit has no use for, or options that the network does not take.
        TrainError: no usable pictures, or the disk refuses.
    """
    _check(request, estimate=estimate)
    recipe = request.recipe
    pairs = []
    if request.validation is not None:
        pairs = validation_pairs(request.validation, recipe.scale)
    say(
        f"{recipe.generator['network']} x{recipe.scale} is fitted on the CPU, in some minutes; "
        f"interrupted, it starts again"
    )
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("reading pictures", total=1.0)
        told: list[str] = []

        def show(stage: str, share: float) -> None:
            bar.update(task, description=stage, completed=share)
            if stage not in told:
                told.append(stage)
                say(f"{time.perf_counter() - started:6.1f} s  {stage}")

        fitted = sparse.fit(recipe, request.folders, seed=request.seed, on_progress=show)
    for reason, count in Counter(s.rsplit(": ", 1)[-1] for s in fitted.skipped).items():
        say(f"skipped {count}: {reason}")
    _write(request, fitted, pairs, minutes=(time.perf_counter() - started) / 60.0)


def _check(request: Request, *, estimate: bool) -> None:
    """Raises UsageError for flags that would do nothing here."""
    name = request.recipe.generator["network"]
    useless = {
        "--estimate": estimate,
        "--minutes": request.minutes is not None,
        "--init": request.initial is not None,
        "--lr": request.lr_folder is not None,
        "--compile": request.compile,
        "--device": request.device not in ("auto", "cpu"),
        "--precision": request.precision not in ("auto", "fp32"),
        "--degradation": request.recipe.data.degradation != "bicubic",
    }
    for flag, given in useless.items():
        if given:
            raise UsageError(
                f"{name} is fitted to bicubic pairs, in fp32 on the CPU and in one go: leave out "
                f"{flag}"
            )


def _write(
    request: Request, fitted: Fitted, pairs: list[ValidationPair], *, minutes: float
) -> None:
    """The model, its facts, its card and its recipe, each whole or not at all."""
    facts = _facts(request, fitted, minutes=minutes)
    if pairs:
        facts["psnr_db"] = f"{_measured(fitted, pairs):.3f}"
        say(f"PSNR {facts['psnr_db']} dB")
    folder, name = request.run_folder, request.name
    target = folder / f"{name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A regressor's numbers are sums over thousands of patches: 11 bits of them are enough.
        checkpoints.save(copy.deepcopy(fitted.network).half(), target, metadata=facts)
        for file in ("facts.json", f"{name}.json"):
            files.write_bytes(folder / file, json.dumps(facts, indent=2).encode())
        files.write_bytes(folder / f"{name}.md", card.text(facts).encode())
        recipe = tables.to_toml(request.recipe.facts())
        files.write_bytes(folder / "recipe.toml", recipe.encode())
    except OSError as error:
        raise TrainError(
            f"{folder} cannot be written ({error.strerror}): give another --out, and fit again"
        ) from error
    row = weights.add(target, name=name, licence=request.licence, overwrite=True)
    say(f"wrote {target} ({_megabytes(target)}) and {name}.md")
    say(f"use it with: waifu4x upscale meme.png -m {row.name}")


def _facts(request: Request, fitted: Fitted, *, minutes: float) -> dict[str, str]:
    recipe = request.recipe
    folders = ", ".join(folder.name for folder in request.folders)
    return {
        "name": request.name,
        "licence": request.licence,
        "trained_on": f"{fitted.samples} patches of {fitted.pictures} pictures of {folders}",
        "trained_by": f"waifu4x {__version__}, torch {torch.__version__}",
        "machine": f"{platform.machine()}, {devices.describe(_CPU)}",
        "precision": "fp32",
        "seed": str(request.seed),
        "minutes": f"{minutes:.1f}",
        "architecture": str(recipe.generator["network"]),
        "scale": str(recipe.scale),
        "scales": str(recipe.scale),
        "recipe": json.dumps(recipe.facts(), sort_keys=True),
    }


def _measured(fitted: Fitted, pairs: list[ValidationPair]) -> float:
    """Mean Y-PSNR in dB, as trained networks are measured."""
    try:
        from waifu4x.train import machine
    except ModuleNotFoundError as error:
        raise UsageError(f"--val needs {error.name}: pip install 'waifu4x[train]'") from error
    fabric = machine.open_fabric(_CPU, torch.float32)
    return validate(fitted.network, pairs, fabric=fabric)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
