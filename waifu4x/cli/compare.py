"""``waifu4x compare``: every model on the same pictures, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from waifu4x.cli import console
from waifu4x.errors import EXIT_SOME_FAILED, UsageError, Waifu4xError

if TYPE_CHECKING:
    from waifu4x.compare.results import Comparison, Outcome, Result
    from waifu4x.compare.subjects import Subject, Wish

_WHAT = "What is compared"
_FILES = "What is written"
_SPEED = "Speed"

# Of the formats in which a grid is of use.
_GRIDS = ("PNG", "WEBP", "JPEG")


def compare(
    inputs: Annotated[
        list[Path], typer.Argument(help="Pictures, and folders of them.", show_default=False)
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "-n",
            "--model",
            help="As often as you like; by default every model that is here. Bicubic comes first.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option("-s", "--scale", help="Times the input; 4 by default.", rich_help_panel=_WHAT),
    ] = None,
    crop: Annotated[
        str,
        typer.Option(
            metavar="X,Y,W,H",
            help="A part of the picture, in px; auto is the most detailed one, all the whole.",
            rich_help_panel=_WHAT,
        ),
    ] = "auto",
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="What the enlarged picture should look like; one for each input.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    downscale: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Shrink the input N times first (MATLAB's bicubic): then it is the reference.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A sharp picture of something similar, for models that take one (crossnet, "
            "srntt): one for all inputs, or one each.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    background: Annotated[
        str,
        typer.Option(help="Colour below transparency: white, #rrggbb …", rich_help_panel=_WHAT),
    ] = "white",
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="The grid: a .png, .webp or .jpg file, or a folder. Default: beside the input.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    html: Annotated[
        bool,
        typer.Option(
            "--html", help="A page with a slider too, in one file.", rich_help_panel=_FILES
        ),
    ] = False,
    gif: Annotated[
        bool,
        typer.Option("--gif", help="An animation that flips too.", rich_help_panel=_FILES),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing files.", rich_help_panel=_FILES),
    ] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu, mps, xpu, cuda or cuda:N.", rich_help_panel=_SPEED)
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16", "int8"],
        typer.Option(help="Of the convolutions.", rich_help_panel=_SPEED),
    ] = "auto",
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Never download a model, not even a named one.",
            rich_help_panel=_SPEED,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per picture and model.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
) -> None:
    """Show what different models make of the same pictures.

    Example: waifu4x compare meme.png

    Example: waifu4x compare photo.png -m waifu4x-clean -m x4plus --crop 40,20,120,90 --html

    Only models that are here are run, unless others are named. The most detailed region is the one
    in which neighbouring pixels differ most.
    """
    from waifu4x.cli.allocator import keep_large_blocks
    from waifu4x.cli.native import silent_libraries
    from waifu4x.cli.upscale_run import parse_color
    from waifu4x.compare import grid, page, results
    from waifu4x.compare.subjects import Wish

    first, inputs = inputs[0], _expanded(inputs)
    here = results.at_hand(with_references=bool(beside))[0]
    count = 1 + len(here if model is None else model)
    large = scale or downscale or 4
    room_px = page.region_px(len(inputs), count + 1, scale=large) if html and large > 0 else None
    wish = Wish(
        scale=scale,
        downscale=downscale,
        crop=crop,
        background=parse_color(background),
        region_px=room_px,
    )
    targets = _targets(first, output, html=html, gif=gif)
    _check_free(targets, inputs, overwrite=overwrite)
    keep_large_blocks()
    with silent_libraries(), _bar(quiet) as bar:
        subjects, failed = _read(inputs, reference, wish)
        grid.check(subjects, count)
        if html:
            page.check(subjects, count)
        outcome = results.run(
            subjects,
            model,
            device=device,
            precision=precision,
            offline=offline,
            on_progress=bar.progress,
            on_download=bar.download,
            references=beside or (),
        )
        bar.progress("writing", 1.0)
        _write(outcome.comparisons, targets)
    _tell(outcome, subjects, targets, as_json=as_json, quiet=quiet)
    if failed or outcome.left_out:
        raise typer.Exit(EXIT_SOME_FAILED)


def _expanded(inputs: Sequence[Path]) -> list[Path]:
    """Instead of a folder the pictures in it."""
    from waifu4x.folders import find_pictures

    found: list[Path] = []
    for path in inputs:
        inside = find_pictures(path) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"no pictures in {path}")
        found += inside
    return found


def _targets(first: Path, output: str | None, *, html: bool, gif: bool) -> dict[str, Path]:
    """The files to write, by their kinds: "grid", "html", "gif".

    By default beside the first input, also beside a folder: in it they would be inputs next time.
    """
    from waifu4x import naming

    if first.is_dir():
        first = first.absolute()
    name = f"{first.stem}_compare.png"
    if output is None:
        grid = first.with_name(name)
    elif naming.means_folder(output):
        grid = Path(output) / name
    else:
        grid = Path(output)
        if naming.format_named(grid.suffix) not in _GRIDS:
            raise UsageError(
                f"-o {output}: the grid is a .png, .webp or .jpg file; --html and --gif put theirs "
                f"beside it"
            )
    targets = {"grid": grid}
    if html:
        targets["html"] = grid.with_suffix(".html")
    if gif:
        targets["gif"] = grid.with_suffix(".gif")
    return targets


def _check_free(targets: dict[str, Path], inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Everything about the targets that can be refused before any work."""
    for target in targets.values():
        if any(target.absolute() == source.absolute() for source in inputs):
            raise UsageError(f"{target} is one of the pictures: give the grid another name with -o")
        if target.exists() and not overwrite:
            raise UsageError(f"{target} exists already: --overwrite replaces it, -o names another")
    folder = targets["grid"].parent
    if not folder.is_dir():
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UsageError(
                f"the folder {folder} cannot be made: {error.strerror or error}"
            ) from error


def _read(
    inputs: Sequence[Path], references: Sequence[Path] | None, wish: Wish
) -> tuple[list[Subject], list[Waifu4xError]]:
    """What can be compared, and why the rest cannot; of one picture the error is raised."""
    from waifu4x.compare import subjects

    if references and len(references) != len(inputs):
        raise UsageError(
            f"give one --reference for each picture: {len(inputs)} and not {len(references)}"
        )
    found: list[Subject] = []
    failed: list[Waifu4xError] = []
    for path, reference in zip(inputs, references or [None] * len(inputs), strict=True):
        try:
            found.append(subjects.read(path, wish, reference=reference))
        except UsageError:
            raise  # a crop or a reference that cannot be meant so
        except Waifu4xError as error:
            failed.append(error)
    if not found:
        for error in failed[:-1]:
            console.fail(str(error))
        raise failed[-1]
    for error in failed:
        console.fail(str(error))
    return found, failed


def _write(comparisons: Sequence[Comparison], targets: dict[str, Path]) -> None:
    from waifu4x import animations, pictures
    from waifu4x.codecs.formats import format_of
    from waifu4x.compare import flip, grid, page

    target = targets["grid"]
    # A grid is looked at for its pixels: where the format can keep them, it does.
    lossless = format_of(target.name) == "WEBP"
    pictures.write(grid.draw(comparisons), target, lossless=lossless)
    if "html" in targets:
        page.write(comparisons, targets["html"])
    if "gif" in targets:
        animations.write(flip.flip(comparisons), targets["gif"])


def _tell(
    outcome: Outcome,
    subjects: Sequence[Subject],
    targets: dict[str, Path],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    for left_out in outcome.left_out:
        console.fail(f"{left_out.model} was left out: {left_out.reason}")
    if as_json:
        for comparison in outcome.comparisons:
            for result in comparison.results:
                typer.echo(json.dumps(_facts(comparison, result)))
    if quiet:
        return
    if not as_json:
        console.stdout.print(_table(outcome.comparisons))
    for note in dict.fromkeys(note for subject in subjects for note in subject.notes):
        console.say(f"note: {note}")
    if targets["grid"].suffix.lower() not in (".png", ".webp"):
        console.say("note: JPEG changes pixels a little: -o grid.png keeps them as they are")
    for target in targets.values():
        console.say(f"wrote {target}")


def _facts(comparison: Comparison, result: Result) -> dict[str, Any]:
    region = comparison.region
    return {
        "input": comparison.name,
        "model": result.model,
        "scale": comparison.scale,
        "region": [region.x, region.y, region.width_px, region.height_px],
        "time_s": round(result.time_s, 6),
        "parameters": result.parameters,
        "device": result.facts.device,
        "precision": result.facts.precision,
        "psnr_db": _finite(result.psnr_db),
        "ssim": result.ssim,
        "notes": list(result.facts.notes),
    }


def _finite(value: float | None) -> float | None:
    """None also for infinity, which JSON cannot say: identical pictures have an SSIM of 1."""
    return None if value is None or value == float("inf") else value


def _table(comparisons: Sequence[Comparison]) -> Table:
    from waifu4x.compare import captions

    measured = any(comparison.truth is not None for comparison in comparisons)
    several = len(comparisons) > 1
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in (*(["picture"] if several else []), "model"):
        table.add_column(name, overflow="fold")
    for name in ("time", "parameters", *(("PSNR", "SSIM") if measured else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for comparison in comparisons:
        for result in comparison.results:
            caption = captions.of_result(result, comparison)
            names = [comparison.name, caption.name] if several else [caption.name]
            cells = [
                *(escape(console.printable(name)) for name in names),
                caption.time,
                caption.parameters.removesuffix(" parameters"),
            ]
            if measured:
                cells += [
                    f"[bold]{caption.psnr}[/]" if caption.psnr_is_best else caption.psnr,
                    f"[bold]{caption.ssim}[/]" if caption.ssim_is_best else caption.ssim,
                ]
            table.add_row(*cells)
    return table


class _Bar:
    """The one bar of a comparison; it moves on a terminal only."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._task = shown.add_task("", total=1.0)

    def progress(self, model: str, share: float) -> None:
        text = escape(console.printable(model))
        self._shown.update(self._task, description=text, completed=share)

    def download(self, done_bytes: int, total_bytes: int) -> None:
        if total_bytes:
            text = f"downloading the model {done_bytes / total_bytes:.0%}"
            self._shown.update(self._task, description=text)


@contextmanager
def _bar(quiet: bool) -> Iterator[_Bar]:
    with console.progress_bar(quiet=quiet) as shown:
        yield _Bar(shown)
