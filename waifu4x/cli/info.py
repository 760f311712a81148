"""``waifu4x info``: what a picture file holds, and what it says about how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from waifu4x.cli import console
from waifu4x.errors import EXIT_SOME_FAILED, Waifu4xError

if TYPE_CHECKING:
    from waifu4x.headers import Header
    from waifu4x.provenance import Provenance


def info(
    files: Annotated[list[Path], typer.Argument(help="Pictures.", show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per file on standard output.")
    ] = False,
) -> None:
    """Show a picture's size and format, and which model enlarged it.

    Example: waifu4x info meme_waifu4x-clean_4x.png
    """
    from waifu4x import (
        headers,
        provenance,  # what these need is of no use to --help
    )

    failed: list[Waifu4xError] = []
    for path in files:
        try:
            header = headers.read(path)
            generations = provenance.read(path)
        except Waifu4xError as error:
            console.fail(str(error))
            failed.append(error)
            continue
        if as_json:
            typer.echo(json.dumps(_facts(path, header, generations)))
        else:
            _say(path, header, generations)
    if failed:
        raise typer.Exit(failed[0].exit_code if len(files) == 1 else EXIT_SOME_FAILED)


def _facts(path: Path, header: Header, generations: tuple[Provenance, ...]) -> dict[str, Any]:
    return {
        "input": str(path),
        "format": header.format,
        "size": [header.width_px, header.height_px],
        "channels": header.channels,
        "alpha": header.has_alpha,
        "depth": header.depth_bits,
        "frames": header.frames,
        "kind": header.kind,
        "provenance": [
            {
                "tool": made.tool,
                "version": made.version,
                "model": made.model,
                "sha256": made.sha256,
                "scale": made.scale,
                "settings": dict(made.settings),
            }
            for made in generations
        ],
    }


def _say(path: Path, header: Header, generations: tuple[Provenance, ...]) -> None:
    colors = "gray" if header.channels == 1 else "colour"
    alpha = " with alpha" if header.has_alpha else ""
    several = "" if header.frames == 1 else f", {header.frames} {_FRAMES[header.kind]}"
    name = console.printable(str(path))
    typer.echo(
        f"{name}: {header.format}, {header.width_px}×{header.height_px} px, "
        f"{header.depth_bits}-bit {colors}{alpha}{several}"
    )
    for made in generations:
        typer.echo(f"  enlarged {made.scale:g}x by {made.tool} {made.version}")
        typer.echo(f"    model     {console.printable(made.model)}")
        if made.sha256 is not None:
            typer.echo(f"    sha256    {made.sha256}")
        for key, value in made.settings.items():
            typer.echo(f"    {console.printable(f'{key:<9} {value}')}")
    if not generations:
        typer.echo("  it does not say that it was enlarged")


_FRAMES = {"picture": "pictures", "animation": "frames", "pages": "pages"}
