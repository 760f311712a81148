"""``waifu4x bench``: models on pictures of known truth, by the papers' protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from waifu4x import catalog


def bench(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of high-resolution pictures.", show_default=False),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("-m", "--model", help="As often as you like; bicubic is always measured."),
    ] = None,
    scale: Annotated[int, typer.Option("-s", "--scale", help="Times the input.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")] = "auto",
    protocol: Annotated[
        str, typer.Option(help="What is shrunk and what is rounded; see below.")
    ] = "rgb8",
    niqe: Annotated[
        Path | None,
        typer.Option(
            metavar="PRIOR.npz",
            help="Measure NIQE too, by the authors' model of pristine pictures.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per model and folder.")
    ] = False,
) -> None:
    """Measure Y-PSNR: pictures are shrunk by MATLAB's bicubic, enlarged, and compared.

    The protocols: rgb8 shrinks 8-bit RGB and rounds luma, as MATLAB scripts do; rgb8-float-y does
    not round luma (BasicSR); luma shrinks unrounded luma (the scripts of SRCNN and VDSR).

    Example: waifu4x bench Set5/ Set14/ -m waifu4x-fast -s 4
    """
    from waifu4x.bench import niqe as natural
    from waifu4x.bench import protocol as protocols
    from waifu4x.cli.allocator import keep_large_blocks
    from waifu4x.models import open_upscaler

    keep_large_blocks()
    prior = None if niqe is None else natural.load_prior(niqe)
    names = list(dict.fromkeys(["bicubic", *(model or [catalog.DEFAULT_MODEL])]))
    for name in names:
        # The baseline is no network, and has neither device nor precision.
        if name == "bicubic":
            upscaler = open_upscaler(name)
        else:
            upscaler = open_upscaler(name, device=device, precision=precision)
        for folder in folders:
            measured = protocols.measure(
                upscaler, folder, scale=scale, protocol=protocol, prior=prior
            )
            also = "" if measured.mean_niqe is None else f"NIQE {measured.mean_niqe:.3f}  "
            if as_json:
                typer.echo(json.dumps(measured.facts()))
            else:
                typer.echo(
                    f"{measured.model:<28}  {folder.name}  x{scale}  {measured.psnr_db:.3f} dB  "
                    f"{also}({len(measured.pictures)} pictures, {protocol}, {measured.precision})"
                )
