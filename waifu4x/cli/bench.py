"""``waifu4x bench``: models on pictures of known truth, by the papers' protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from waifu4x import catalog
from waifu4x.errors import UsageError

_WHAT = "What is measured"
_HOW = "How"
_SHOWN = "What is shown"

_SUFFIXES = (".md", ".csv", ".json", ".html")


def bench(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of high-resolution pictures, or sets by name: set5, set14, b100, "
            "urban100, manga109, div2k.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            help="As often as you like; bicubic is always measured, and comes first.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    scale: Annotated[
        str, typer.Option("-s", "--scale", help="One or several: 1.5,2,4.", rich_help_panel=_WHAT)
    ] = "4",
    metrics: Annotated[
        str,
        typer.Option(
            help="psnr, ssim, ms-ssim, gmsd, psnr-rgb, niqe, lpips, lpips-vgg, lpips-squeeze, "
            "dists, separated by commas; all is those that need no file.",
            rich_help_panel=_WHAT,
        ),
    ] = "psnr,ssim",
    metric_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A file of a metric, instead of a download: niqe, lpips-alex, alexnet, dists, …",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="Put beside them what papers report, with the source of each.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed",
            help="Measure how fast a model is here, by what flags it would be faster, and what "
            "INT8 loses: on the sets, or on the example pictures.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    protocol: Annotated[
        str,
        typer.Option(help="What is shrunk and what is rounded; see above.", rich_help_panel=_HOW),
    ] = "rgb8",
    lr: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Low-resolution pictures, under the same names; else they are made.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    jpeg: Annotated[
        str,
        typer.Option(
            metavar="Q[,Q...]",
            help="What was shrunk is compressed, as JPEG of each quality, 1 to 100; clean: not at "
            "all. Papers' figures are of clean pictures.",
            rich_help_panel=_HOW,
        ),
    ] = "clean",
    references: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="For models that take a reference: one for each picture, under the same names; "
            "blank shows them a black one.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Take the metrics beside enlarging; times suffer.", rich_help_panel=_HOW
        ),
    ] = 1,
    device: Annotated[
        str, typer.Option(help="auto, cpu, mps, xpu, cuda or cuda:N.", rich_help_panel=_HOW)
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16", "int8"],
        typer.Option(help="Of the convolutions.", rich_help_panel=_HOW),
    ] = "auto",
    engine: Annotated[
        Literal["auto", "torch", "openvino", "onnxruntime"],
        typer.Option(help="What runs the networks.", rich_help_panel=_HOW),
    ] = "auto",
    offline: Annotated[
        bool, typer.Option("--offline", help="Never download anything.", rich_help_panel=_HOW)
    ] = False,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            help="A .md, .csv, .json or .html file (with a plot); as often as you like.",
            rich_help_panel=_SHOWN,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files.", rich_help_panel=_SHOWN)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="One JSON object per model, set and scale on stdout.",
            rich_help_panel=_SHOWN,
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Every picture's values.", rich_help_panel=_SHOWN),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress, no notes.", rich_help_panel=_SHOWN)
    ] = False,
) -> None:
    """Measure models: pictures are shrunk by MATLAB's bicubic, enlarged, and compared.

    As many pixels as the scale, rounded up, are cut off every border. Protocols:

    rgb8: 8-bit RGB is shrunk, luma is rounded, as in MATLAB scripts.

    rgb8-own-gray: the same, but gray files are measured in their own levels.

    rgb8-float-y: as rgb8, but luma is not rounded (BasicSR).

    luma: luma alone is shrunk, in float (the scripts of SRCNN and VDSR).

    Example: waifu4x bench Set5/ Set14/ -m waifu4x-clean -s 4

    Example: waifu4x bench set5 -s 2,3,4 -m vdsr.pth --metrics all --published -o table.html

    Example: waifu4x bench Set5/ --jpeg clean,75,40

    Example: waifu4x bench --speed -m waifu4x-clean
    """
    from waifu4x.cli.bench_run import Wish, measure_sets

    wish = Wish(
        sets=tuple(sets or ()),
        models=tuple(dict.fromkeys(model or [catalog.DEFAULT_MODEL])),
        scales=_scales(scale),
        metrics=metrics,
        metric_files=_files(metric_file or []),
        protocol=protocol,
        lr_folder=lr,
        jpeg_qualities=_qualities(jpeg),
        workers=workers,
        device=device,
        precision=precision,
        engine=engine,
        offline=offline,
        with_published=published,
        references=references,
        targets=_targets(output or [], overwrite=overwrite),
        as_json=as_json,
        verbose=verbose,
        quiet=quiet,
    )
    if speed:
        if wish.jpeg_qualities != (None,):
            raise UsageError("--speed compresses nothing: leave out --jpeg")
        from waifu4x.cli.bench_speed import measure_speed

        measure_speed(wish)
    else:
        measure_sets(wish)


def _scales(text: str) -> tuple[float, ...]:
    """Whole ones as int, so that they read as such."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"-s {text}: scales are numbers, such as 4 or 1.5,2,4") from None
    return tuple(dict.fromkeys(int(s) if s.is_integer() else s for s in found))


def _qualities(text: str) -> tuple[int | None, ...]:
    """None is what is not compressed."""
    parts = (part.strip().lower() for part in text.split(","))
    try:
        return tuple(dict.fromkeys(None if part == "clean" else int(part) for part in parts))
    except ValueError:
        raise UsageError(
            f"--jpeg {text}: qualities are whole numbers from 1 to 100, or clean, such as clean,75"
        ) from None


def _files(texts: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals:
            raise UsageError(f"--metric-file {text}: write NAME=PATH, such as niqe=prior.npz")
        found[name.strip().lower()] = Path(path)
    return found


def _targets(outputs: Sequence[Path], *, overwrite: bool) -> tuple[Path, ...]:
    """Everything about the targets that can be refused before any work."""
    for target in outputs:
        if target.suffix.lower() not in _SUFFIXES:
            raise UsageError(f"-o {target}: it must end in {', '.join(_SUFFIXES)}")
        if target.exists() and not overwrite:
            raise UsageError(f"{target} exists already: --overwrite replaces it, -o names another")
        if not target.parent.is_dir():
            raise UsageError(f"-o {target}: there is no folder {target.parent}")
    return tuple(outputs)
