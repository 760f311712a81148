"""``waifu4x models``: what can be asked for by name, and the files behind the names."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from waifu4x import weights
from waifu4x.cli.console import stderr, stdout
from waifu4x.errors import HashMismatchError, WeightsError
from waifu4x.weights import Available

app = typer.Typer(
    help="List, fetch, check, add and remove models.",
    epilog="Example: [bold]waifu4x models list[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Name = Annotated[str, typer.Argument(help="A model's name or alias.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per model, one per line.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show every model that -m understands, then what `train` needs, and whether each is here.

    Example: waifu4x models list
    """
    everything = weights.list_available()
    if as_json:
        for available in everything:
            typer.echo(json.dumps(_facts(available)))
        return
    # Two lines for each: with the descriptions in a column, nothing fits into 80 characters.
    for available in everything:
        row = available.row
        scale = f"{row.scale}x" if row.scale else "-" if row.kind == "features" else "any"
        facts = f"{row.name:<30} {scale:>4}  {_in_words(row.size_bytes):>8}  {available.state}"
        stdout.print(escape(facts), soft_wrap=True, style="bold")
        stdout.print(f"   {escape(row.good_for)}", soft_wrap=True)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show everything that is known about one model.

    Example: waifu4x models show x4plus
    """
    row = weights.find(name)
    available = next(each for each in weights.list_available() if each.row == row)
    facts = _facts(available)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for fact, value in facts.items():
        if value is not None and value != []:
            text = ", ".join(value) if isinstance(value, list) else str(value)
            # Not through rich: a path or a hash must never be wrapped.
            typer.echo(f"{fact:<13} {text}")


@app.command()
def download(
    names: Annotated[
        list[str], typer.Argument(help="Models' names or aliases.", show_default=False)
    ],
    offline: Annotated[
        bool, typer.Option("--offline", help="Only check that the files are here already.")
    ] = False,
) -> None:
    """Fetch models ahead of time, and print where their files lie.

    Example: waifu4x models download x4plus anime6b
    """
    rows = [weights.find(name) for name in names]  # a misspelt name costs no download
    for row in rows:
        if row.kind == "resample":
            stderr.print(f"{row.name} is a resampling filter: it needs no file")
            continue
        with _progress(row.name) as on_progress:
            found = weights.resolve(row.name, offline=offline, on_progress=on_progress)
        typer.echo(str(found.path))


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Hash every file of weights on this machine and compare it with what was promised.

    Example: waifu4x models verify
    """
    checked = weights.verify()
    bad = [each for each in checked if each.got_sha256 != each.row.sha256]
    for each in checked:
        if as_json:
            typer.echo(json.dumps(_facts(each)))
        else:
            verdict = each.state if each in bad else "ok"
            typer.echo(f"{verdict:<8} {each.row.name}  {each.path}")
    if bad:
        names = ", ".join(each.row.name for each in bad)
        kind = HashMismatchError if any(each.got_sha256 for each in bad) else WeightsError
        raise kind(
            f"{len(bad)} of {len(checked)} files cannot be used: {names}; "
            "get them again with `waifu4x models download NAME`, `add FILE --overwrite`, "
            "or, for those that ship, by installing waifu4x again"
        )


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A .pth or .safetensors file.", show_default=False)],
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it (the file's name if not given).")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Under which terms you have it.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace your model of that name.")
    ] = False,
) -> None:
    """Copy a checkpoint of your own, so that -m NAME uses it from anywhere.

    Example: waifu4x models add 4x-UltraSharp.pth --name ultrasharp
    """
    row = weights.add(file, name=name, licence=licence, overwrite=overwrite)
    scale = f"{row.scale}x" if row.scale else "any scale"
    stderr.print(
        f"added: {escape(row.name)} ({row.architecture}, {scale}, "
        f"sha256 {row.sha256}); use it with -m {escape(row.name)}",
        soft_wrap=True,
    )


@app.command()
def remove(name: Name) -> None:
    """Remove a model that you added, or the cached file of a download.

    Example: waifu4x models remove ultrasharp
    """
    stderr.print(f"removed: {escape(str(weights.remove(name)))}", soft_wrap=True)


@app.command()
def blend(
    a: Annotated[str, typer.Argument(help="A model, or a file of weights.", show_default=False)],
    b: Annotated[str, typer.Argument(help="Another of the same network, such as its start.")],
    name: Annotated[str, typer.Option("--name", help="What to call the blend.")],
    alpha: Annotated[
        float, typer.Option("--alpha", help="How much of A there is in it: 0 is B, 1 is A.")
    ] = 0.8,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace your model of that name.")
    ] = False,
) -> None:
    """Mix a sharp model and the smooth one it was trained from, weight by weight.

    Example: waifu4x models blend mine-gan mine-psnr --alpha 0.8 --name mine-mixed
    """
    # Before anything is fetched or loaded.
    old = [row for row in weights.user_rows() if row.name.casefold() == name.casefold()]
    weights.check_name(name, old=old[0] if old and not overwrite else None)

    from waifu4x import blending  # these two need torch
    from waifu4x.model_files import checkpoints

    models = []
    for each in (a, b):
        with _progress(each) as on_progress:
            found = weights.resolve(each, on_progress=on_progress)
        licence = found.row.licence if found.row else None
        models.append(checkpoints.load(found.path, name=found.name, licence=licence))
    made = blending.blend(*models, alpha=alpha)
    with tempfile.TemporaryDirectory(prefix="waifu4x-") as folder:
        file = Path(folder) / f"{name}.safetensors"
        checkpoints.save(made.network, file, metadata={"name": name, **made.metadata})
        row = weights.add(file, name=name, overwrite=overwrite)
    for note in made.notes:
        stderr.print(f"note: {escape(note)}", soft_wrap=True)
    parts = f"{alpha:g} of {models[0].name}, {1.0 - alpha:g} of {models[1].name}"
    stderr.print(
        f"added: {escape(row.name)} ({escape(parts)}, licence {escape(row.licence)}); "
        f"use it with -m {escape(row.name)}",
        soft_wrap=True,
    )


@app.command()
def path(name: Name) -> None:
    """Print where a model's verified file lies; an error when it is not here.

    Example: waifu4x models path waifu4x-clean
    """
    typer.echo(str(weights.resolve(weights.find(name).name, offline=True).path))


def _facts(available: Available) -> dict[str, Any]:
    facts = asdict(available.row)
    facts["aliases"] = list(available.row.aliases)
    facts["state"] = available.state
    facts["path"] = None if available.path is None else str(available.path)
    if available.got_sha256 is not None:
        facts["got_sha256"] = available.got_sha256
    return facts


def _in_words(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
    with bar:
        # Not shown before the first bytes: a file that is here already needs no bar.
        task = bar.add_task(escape(name), total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
