"""``waifu4x upscale``: pictures in, larger pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from waifu4x import catalog
from waifu4x.errors import UsageError

_SIZE = "Output size (one of these; the aspect ratio is kept)"
_SPEED = "Speed and memory"
_LOOK = "Look"
_FILES = "Files"
_BATCH = "Many files"


def upscale(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Pictures, animations, CBZ and ZIP files, folders, '*.png', @list.txt, or URLs of "
            "these (s3://, gs://, sftp:// …); - is standard input.",
            show_default=False,
        ),
    ] = None,
    more_inputs: Annotated[
        list[str] | None,
        typer.Option("-i", "--input", help="A picture, as other tools want it.", hidden=True),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="A file, a folder, a URL of one, or - for standard output. Default: beside the "
            "input.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option(
            "-r", "--recursive", help="Go into folders in folders.", rich_help_panel=_FILES
        ),
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            "-m",
            "-n",
            "--model",
            help="A name from 'waifu4x models list', or a .pth, .safetensors or .onnx file; auto "
            "looks at each picture.",
        ),
    ] = catalog.AUTO,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A sharp picture of something similar, for models that take one (crossnet, "
            "srntt); as often as you like. The same for all inputs; blank is a black one.",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option("-s", "--scale", help="Times the input; 4 by default.", rich_help_panel=_SIZE),
    ] = None,
    width: Annotated[int | None, typer.Option(help="In px.", rich_help_panel=_SIZE)] = None,
    height: Annotated[int | None, typer.Option(help="In px.", rich_help_panel=_SIZE)] = None,
    long_edge: Annotated[
        int | None, typer.Option(help="The longer side, in px.", rich_help_panel=_SIZE)
    ] = None,
    short_edge: Annotated[
        int | None, typer.Option(help="The shorter side, in px.", rich_help_panel=_SIZE)
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Largest inside this box.", rich_help_panel=_SIZE),
    ] = None,
    minimum: Annotated[
        str | None,
        typer.Option(
            "--min",
            metavar="WxH",
            help="Smallest that covers this box; larger pictures keep their size.",
            rich_help_panel=_SIZE,
        ),
    ] = None,
    strength: Annotated[
        float, typer.Option(help="0 is bicubic, 1 the model.", rich_help_panel=_LOOK)
    ] = 1.0,
    color_fix: Annotated[
        bool,
        typer.Option("--color-fix", help="Keep the input's colours.", rich_help_panel=_LOOK),
    ] = False,
    tta: Annotated[
        bool,
        typer.Option("-x", "--tta", help="Average 8 flips and turns.", rich_help_panel=_LOOK),
    ] = False,
    alpha: Annotated[
        Literal["network", "bicubic"],
        typer.Option(help="What enlarges transparency.", rich_help_panel=_LOOK),
    ] = "network",
    format: Annotated[
        str | None,
        typer.Option(
            "-f",
            "--format",
            help="png, jpg, webp, avif, tiff, bmp or gif. Default: the input's.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option("-q", "--quality", help="1 to 100, if lossy.", rich_help_panel=_FILES),
    ] = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Lose nothing (WebP).", rich_help_panel=_FILES)
    ] = False,
    background: Annotated[
        str | None,
        typer.Option(
            help="Colour below transparency, for formats without it: white, #rrggbb …",
            rich_help_panel=_FILES,
        ),
    ] = None,
    strip_metadata: Annotated[
        bool,
        typer.Option("--strip-metadata", help="Drop EXIF, XMP and DPI.", rich_help_panel=_FILES),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="Of the output: {stem} {model} {scale} {width} {height} {ext} {parent}.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Put it behind the stems of outputs.", rich_help_panel=_FILES
        ),
    ] = None,
    first_frame: Annotated[
        bool,
        typer.Option(
            "--first-frame",
            help="Only the first of animations and pages.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    no_provenance: Annotated[
        bool,
        typer.Option(
            "--no-provenance",
            help="Do not write model and settings into outputs.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing outputs.", rich_help_panel=_FILES),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Only what failed the last time.", rich_help_panel=_BATCH
        ),
    ] = False,
    fail_fast: Annotated[
        bool,
        typer.Option("--fail-fast", help="Stop at the first failure.", rich_help_panel=_BATCH),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only the I-th of N parts of the files, for several hosts; see 'batch merge'.",
            rich_help_panel=_BATCH,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="Let a Ray cluster do it: auto is the one that runs here, HOST:PORT another, "
            "local one for this command alone.",
            rich_help_panel=_BATCH,
        ),
    ] = None,
    ray_cores: Annotated[
        int | None,
        typer.Option(
            "--ray-cores",
            min=1,
            metavar="N",
            help="Of each worker that has no GPU; 4 by default.",
            rich_help_panel=_BATCH,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl", help="A JSON line for every file.", rich_help_panel=_BATCH
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "-j",
            "--jobs",
            min=1,
            help="Threads that encode; by default one a core.",
            rich_help_panel=_BATCH,
        ),
    ] = None,
    no_space_check: Annotated[
        bool,
        typer.Option(
            "--no-space-check", help="Start without enough free disk.", rich_help_panel=_BATCH
        ),
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(help="Refuse inputs with more pixels.", rich_help_panel=_FILES),
    ] = None,
    tiff: Annotated[
        Literal["strips", "tiled", "pyramid"] | None,
        typer.Option(
            help="How TIFF is stored. Default: strips, tiles above 4 GiB.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What it may take of main memory, such as 2G; larger pictures are made in strips. "
            "Default: half of what is free.",
            rich_help_panel=_SPEED,
        ),
    ] = None,
    tile: Annotated[
        int,
        typer.Option(
            "-t", "--tile", help="Tile side in px; 0 is what fits.", rich_help_panel=_SPEED
        ),
    ] = 0,
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, mps, xpu (Intel GPU), xpu:N, cuda, cuda:N or cuda:N,cuda:M.",
            rich_help_panel=_SPEED,
        ),
    ] = "auto",
    gpu: Annotated[
        str | None,
        typer.Option(
            "-g",
            "--gpu",
            metavar="N",
            help="GPU number N, several as 0,1; -1 is the CPU.",
            rich_help_panel=_SPEED,
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16", "int8"],
        typer.Option(
            help="Of the convolutions; int8 is OpenVINO's on CPUs, and changes pictures a little.",
            rich_help_panel=_SPEED,
        ),
    ] = "auto",
    engine: Annotated[
        Literal["auto", "torch", "openvino", "onnxruntime"],
        typer.Option(
            help="What runs the network; auto is OpenVINO on CPUs that have it.",
            rich_help_panel=_SPEED,
        ),
    ] = "auto",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="On CUDA, for many pictures of one size: compile the network first.",
            rich_help_panel=_SPEED,
        ),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Never download a model.", rich_help_panel=_SPEED)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per file on standard output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say how it was done.")] = False,
) -> None:
    """Enlarge pictures by a network, to any size.

    Example: waifu4x upscale meme.png -s 4

    Example: waifu4x upscale photos/ -r -o big/ --fit 3840x2160 -f webp -q 90

    Example: waifu4x upscale s3://bucket/photos/ -r -o s3://bucket/big/

    The same command again does only what is missing.
    """
    from waifu4x import naming  # what they need is of no use to --help
    from waifu4x.batch import shards
    from waifu4x.batch.request import Encoding, Request
    from waifu4x.cli import upscale_run
    from waifu4x.cli.reporter import Reporter
    from waifu4x.sizes import Target, parse_box
    from waifu4x.upscaler import Options

    if model in ("-1", "0", "1", "2", "3"):
        raise UsageError(
            f"-n {model}: -n names the model here; there is no noise level, so choose a model that "
            f"removes noise (waifu4x models list)"
        )
    named = [scale, width, height, long_edge, short_edge, fit, minimum]
    if all(value is None for value in named):
        scale = 4.0
    if name is not None and format is None:
        format = naming.template_format(name)
    if gpu is not None:
        if device != "auto":
            raise UsageError("give --device or -g, not both")
        device = upscale_run.parse_gpus(gpu)
    if ray_cores is not None and ray is None:
        raise UsageError("--ray-cores is about workers of a cluster: give it with --ray")
    request = Request(
        inputs=(*(inputs or ()), *(more_inputs or ())),
        output=output,
        recursive=recursive,
        name=name,
        suffix=suffix,
        target=Target(
            scale=scale,
            width_px=width,
            height_px=height,
            long_edge_px=long_edge,
            short_edge_px=short_edge,
            fit_px=None if fit is None else parse_box(fit),
            minimum_px=None if minimum is None else parse_box(minimum),
        ),
        options=Options(strength=strength, color_fix=color_fix, alpha=alpha),
        encoding=Encoding(
            format=format,
            quality=quality,
            lossless=lossless,
            strip_metadata=strip_metadata,
            background=None if background is None else upscale_run.parse_color(background),
            layout=tiff,
        ),
        overwrite=overwrite,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
        shard=None if shard is None else shards.parse(shard),
        first_frame=first_frame,
        provenance=not no_provenance,
        max_pixels=max_pixels,
        memory_bytes=None if memory is None else upscale_run.parse_memory(memory),
        check_space=not no_space_check,
        tile_px=tile or None,
        precision=precision,
        engine=engine,
        tta=tta,
    )
    start = upscale_run.Start(
        model=model,
        device=device,
        compiled=compiled,
        offline=offline,
        workers=jobs,
        dry_run=dry_run,
        references=tuple(reference or ()),
        ray=ray,
        ray_cores=ray_cores,
    )
    reporter = Reporter(as_json=as_json, quiet=quiet, verbose=verbose, report=report)
    if code := upscale_run.run(request, start, reporter):
        raise typer.Exit(code)
