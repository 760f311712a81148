"""``waifu4x devices``: what this machine can do, and what will be picked."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def devices(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per device.")] = False,
) -> None:
    """Show the devices that can be used; the first is the one that is picked.

    The number of a GPU is what 'upscale -g' takes: 1 for cuda:1, 0,1 for both; -1 is the CPU.

    Example: waifu4x devices
    """
    from waifu4x import devices as library  # imports torch

    for info in library.available():
        if as_json:
            typer.echo(json.dumps(asdict(info)))
        else:
            free_gib = info.free_bytes / 2**30
            typer.echo(
                f"{info.name:<8} {info.precision}  {info.engine:<11}  {free_gib:6.1f} GiB free  "
                f"{info.description}"
            )
