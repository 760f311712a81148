"""``waifu4x train``: high-resolution pictures in, a model out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from waifu4x.errors import UsageError

_WHAT = "What is trained (over the recipe's own)"
_LOSSES = "Losses of the last stage (over the recipe's own)"
_RUN = "The run"
_WATCH = "What is shown"


def train(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of high-resolution pictures; several are drawn from equally often. "
            "'check FOLDER' says whether one is fit to train on.",
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
    lr_folder: Annotated[
        Path | None,
        typer.Option(
            "--lr",
            metavar="DIR",
            help="Low-resolution pictures, under the same names; else they are made.",
        ),
    ] = None,
    scale: Annotated[int | None, typer.Option("-s", "--scale", rich_help_panel=_WHAT)] = None,
    generator: Annotated[
        str | None, typer.Option(help="The network.", rich_help_panel=_WHAT)
    ] = None,
    degradation: Annotated[
        str | None,
        typer.Option(
            help="bicubic, jpeg, web or real: how small pictures are made.", rich_help_panel=_WHAT
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(rich_help_panel=_WHAT)] = None,
    patch: Annotated[
        int | None, typer.Option(help="Side of the small crops, in px.", rich_help_panel=_WHAT)
    ] = None,
    pixel_loss: Annotated[
        str | None,
        typer.Option(
            metavar="LOSS:WEIGHT", help="l1, mse, charbonnier, none.", rich_help_panel=_LOSSES
        ),
    ] = None,
    content_loss: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER:WEIGHT,…",
            help="Of VGG-19: relu5_4 is after the activation, conv5_4 before.",
            rich_help_panel=_LOSSES,
        ),
    ] = None,
    content_criterion: Annotated[
        str | None, typer.Option(help="l1 or mse.", rich_help_panel=_LOSSES)
    ] = None,
    content_weight: Annotated[float | None, typer.Option(rich_help_panel=_LOSSES)] = None,
    gan: Annotated[
        str | None,
        typer.Option(
            metavar="LOSS:WEIGHT",
            help="vanilla, ragan, lsgan, hinge, wgan-gp, none.",
            rich_help_panel=_LOSSES,
        ),
    ] = None,
    discriminator: Annotated[
        str | None,
        typer.Option(
            help="srgan, srgan-gap, vgg128, srntt, unet-sn or patchgan.", rich_help_panel=_LOSSES
        ),
    ] = None,
    extra_loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOSS:WEIGHT",
            help="tv, fft, gradient, magnitude, rank; obb:1,1,1 is SROBB's.",
            rich_help_panel=_LOSSES,
        ),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(rich_help_panel=_LOSSES)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any option of the recipe, such as stages.0.ema_decay=0.9995.",
            rich_help_panel=_LOSSES,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="How many steps, of all stages together.  [default: the recipe's]",
            rich_help_panel=_RUN,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Train for so long instead; the schedule is fitted to it.", rich_help_panel=_RUN
        ),
    ] = None,
    accumulate: Annotated[
        int,
        typer.Option(
            min=1,
            help="In how many parts a batch goes through the networks, to need less memory.",
            rich_help_panel=_RUN,
        ),
    ] = 1,
    initial: Annotated[
        str | None,
        typer.Option(
            "--init", help="Start from this model, of the same network.", rich_help_panel=_RUN
        ),
    ] = None,
    vgg: Annotated[
        Path | None,
        typer.Option(
            help="A VGG-19 file in torchvision's layout.  [default: downloaded]",
            rich_help_panel=_RUN,
        ),
    ] = None,
    ranker: Annotated[
        Path | None,
        typer.Option(
            help="What --recipe ranker made: the judge of recipe ranksrgan.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    niqe: Annotated[
        Path | None,
        typer.Option(
            help="For --recipe ranker: the model of NIQE.  [default: downloaded]",
            rich_help_panel=_RUN,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For recipe srobb: PNGs of class indices, under the pictures' names; else "
            "regions are guessed.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For recipes crossnet and srntt: pictures of something similar, under the same "
            "names; else they are made.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder.  [default: runs/NAME]", rich_help_panel=_RUN),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="The licence of the model, written into it.", rich_help_panel=_RUN)
    ] = "not stated",
    seed: Annotated[int, typer.Option(help="Where randomness starts.", rich_help_panel=_RUN)] = 0,
    device: Annotated[
        str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.", rich_help_panel=_RUN)
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, fp32, fp16 or bf16.", rich_help_panel=_RUN)
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that prepare batches; 0 does it between steps.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile.", rich_help_panel=_RUN)
    ] = False,
    patience: Annotated[
        int,
        typer.Option(
            min=0,
            help="End a stage after so many validations without a better one; 0 never does.",
            rich_help_panel=_RUN,
        ),
    ] = 0,
    paths: Annotated[
        str | None,
        typer.Option(
            metavar="LOSS,LOSS",
            help="Train the last stage by each of these from one start, and film them side by "
            "side: mse, l1, charbonnier, vgg22, vgg54, recipe.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Say how long it takes, and train nothing.", rich_help_panel=_RUN
        ),
    ] = False,
    validate_every: Annotated[int, typer.Option(help="In steps.", rich_help_panel=_WATCH)] = 1000,
    report_every: Annotated[int, typer.Option(help="In steps.", rich_help_panel=_WATCH)] = 100,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="Write reports for TensorBoard, too.", rich_help_panel=_WATCH
        ),
    ] = False,
) -> None:
    """Train a network on your own pictures; running it again goes on where it stopped.

    Only high-resolution pictures are needed: the small ones are made from them, as the recipe says.

    Example: waifu4x train photos/ --recipe srgan --name mine --val Set5/

    Example: waifu4x train check photos/
    """
    from waifu4x.cli import train_flags, train_run  # imports torch
    from waifu4x.cli.train_request import Request

    if folders[0] == Path("check") and not folders[0].exists():
        from waifu4x.cli import train_check

        if len(folders) == 1:
            raise UsageError("give the folders to check: waifu4x train check photos/")
        train_check.run(tuple(folders[1:]), recipe_name=recipe, seed=seed, out=out)
        return
    chosen = train_flags.recipe_of(
        recipe,
        scale=scale,
        generator=generator,
        degradation=degradation,
        batch=batch,
        patch=patch,
        pixel_loss=pixel_loss,
        content_loss=content_loss,
        content_criterion=content_criterion,
        content_weight=content_weight,
        gan=gan,
        discriminator=discriminator,
        extra_loss=tuple(extra_loss or ()),
        learning_rate=learning_rate,
        settings=(*(settings or ()), *train_flags.of_references(references)),
        steps=steps,
        minutes=minutes,
    )
    request = Request(
        folders=tuple(folders),
        name=name,
        recipe=chosen,
        validation=validation,
        lr_folder=lr_folder,
        minutes=minutes,
        initial=initial,
        vgg=vgg,
        ranker=ranker,
        niqe=niqe,
        labels=labels,
        references=references,
        run_folder=Path("runs") / name if out is None else out,
        licence=licence,
        seed=seed,
        device=device,
        precision=precision,
        workers=workers,
        compile=compile,
        accumulate=accumulate,
        patience=patience,
        validate_every=validate_every,
        report_every=report_every,
        tensorboard=tensorboard,
    )
    if paths is None:
        train_run.run(request, estimate=estimate)
        return
    if estimate:
        raise UsageError("--estimate is for one run: leave --paths out")
    if chosen.ranking is not None:
        raise UsageError("--paths compares losses of generators, and this recipe makes a ranker")
    from waifu4x.cli import train_paths

    train_paths.run(request, [each.strip() for each in paths.split(",")])
