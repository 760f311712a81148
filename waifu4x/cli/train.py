"""``waifu4x train``: high-resolution pictures in, a model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of high-resolution pictures; several are drawn from equally often.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="What to call the model.")] = "mine",
    recipe: Annotated[
        str, typer.Option(help="The name of a shipped recipe, or a .toml file.")
    ] = "fast",
    validation: Annotated[
        Path | None,
        typer.Option("--val", help="Pictures to measure Y-PSNR on; none of them is trained on."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="How many steps.  [default: the recipe's]")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Train for so long instead; the schedule is fitted to it."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder.  [default: runs/NAME]")
    ] = None,
    licence: Annotated[
        str, typer.Option(help="The licence of the model, written into it.")
    ] = "not stated",
    seed: Annotated[int, typer.Option(help="Where randomness starts.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")] = "auto",
    validate_every: Annotated[int, typer.Option(help="In steps.")] = 1000,
    report_every: Annotated[int, typer.Option(help="In steps.")] = 100,
) -> None:
    """Train a network on your own pictures; running it again goes on where it stopped.

    Only high-resolution pictures are needed: the small ones are made by bicubic downscaling.

    Example: waifu4x train photos/ art/ --name mine --minutes 60 --val Set5/
    """
    from waifu4x.cli import train_run  # imports torch

    train_run.run(
        train_run.Request(
            folders=tuple(folders),
            name=name,
            recipe=recipe,
            validation=validation,
            steps=steps,
            minutes=minutes,
            run_folder=Path("runs") / name if out is None else out,
            licence=licence,
            seed=seed,
            device=device,
            precision=precision,
            validate_every=validate_every,
            report_every=report_every,
        )
    )
