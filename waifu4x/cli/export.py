"""``waifu4x export``: a model as a file that other programs run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from waifu4x import naming, weights
from waifu4x.catalog import DEFAULT_MODEL
from waifu4x.cli.console import printable
from waifu4x.cli.reporter import Reporter
from waifu4x.errors import UnknownModelError, UsageError

if TYPE_CHECKING:
    from waifu4x.exporting import Exported
    from waifu4x.model_files.checkpoints import Model


def export(
    model: Annotated[
        str, typer.Argument(help="A model, or a file of weights.", show_default=False)
    ],
    to: Annotated[
        Literal["onnx", "openvino", "torchscript", "safetensors"],
        typer.Option("--to", help="What the other program reads.", show_default=False),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", help="A file, or a folder. Default: NAME-x4.onnx and so on, here."
        ),
    ] = None,
    half: Annotated[
        bool,
        typer.Option("--half", help="Store the weights in fp16: half the size. Not TorchScript."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never download the model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say it as one JSON object.")] = False,
) -> None:
    """Write a model for other programs, and check that the file computes the same.

    Example: waifu4x export waifu4x-clean --to onnx

    The file takes pictures of any size: float32, channels first, 0 to 1.
    What one must know about it (scale, licence, …) is written into it.
    --to openvino makes two files, .xml and .bin; --to safetensors has the keys
    with which ESRGAN, Real-ESRGAN and Compact were published.
    """
    from waifu4x import exporting  # it needs torch
    from waifu4x.cli.native import silent_libraries

    exporting.check_format(to, half=half)
    _require_network(model)
    reporter = Reporter(as_json=as_json, quiet=False, verbose=False)
    with silent_libraries(), reporter.job():
        found = weights.resolve(model, offline=offline, on_progress=reporter.downloading)

        from waifu4x.model_files import checkpoints

        licence = found.row.licence if found.row else None
        loaded = checkpoints.load(found.path, name=found.name, licence=licence)
        target = exporting.default_target(loaded, to=to)
        if output is not None:
            target = Path(output) / target if naming.means_folder(output) else Path(output)
        reporter.working_on(f"writing {target}", 0, 1)
        made = exporting.export(loaded, target, to=to, half=half, overwrite=overwrite)
    if as_json:
        reporter.outcome(_facts(made))
        return
    told = {
        **_told(loaded, made),
        "checked": f"run by {exporting.FORMATS[to].runtime} on random pictures, differs from the "
        f"network by {made.difference:.1e} at most",
        "licence": loaded.licence or "unknown",
    }
    for fact, value in told.items():
        # Not through rich: a path must never be wrapped.
        typer.echo(f"{fact:<9} {printable(value)}")


def _require_network(model: str) -> None:
    """Refuse, before it is downloaded, what has a name but is no network."""
    with suppress(UnknownModelError):  # a path, or nothing at all: `weights.resolve` says which
        if weights.find(model).kind in ("features", "resample"):
            raise UsageError(
                f"{model} is no network that could be exported: name another, such as "
                f"{DEFAULT_MODEL}"
            )


def _facts(made: Exported) -> dict[str, Any]:
    return {
        **made.facts,
        "files": [str(file) for file in made.files],
        "size_bytes": made.size_bytes,
        "difference": made.difference,
    }


def _told(model: Model, made: Exported) -> dict[str, str]:
    """What one has to know to use the file."""
    s, channels = model.scale, model.channels_in
    times = "" if s == 1 else f"{s}·"
    color = "RGB" if channels == 3 else "luma (Y of BT.601, studio range)"
    enlarged = ", enlarged (bicubic) beforehand" if model.pre_upsampled else ""
    sizes = "" if model.size_multiple == 1 else f"; h and w multiples of {model.size_multiple}"
    return {
        "wrote": f"{' and '.join(map(str, made.files))}, {made.size_bytes / 1e6:.1f} MB",
        "input": f"(N, {channels}, h, w) float32, {color}, 0 to 1{enlarged}{sizes}",
        "output": f"(N, {channels}, {times}h, {times}w), the same, to be clamped to 0 to 1",
        "tiles": f"an overlap of {model.receptive_radius_px} px (input) leaves no seam",
    }
