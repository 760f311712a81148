"""The networks of a recipe, with fresh weights, and what is wrong with a recipe before any work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from waifu4x.errors import UsageError
from waifu4x.networks import ALL_NETWORKS
from waifu4x.train import fractional, tables
from waifu4x.train.degrading import degrade
from waifu4x.train.fitting import sparse
from waifu4x.train.objectives.discriminators import build_discriminator
from waifu4x.train.objectives.vgg import LAYERS, VGG19Features
from waifu4x.train.options import unknown
from waifu4x.train.ranked import ranker
from waifu4x.train.recipe import Recipe, StageOptions
from waifu4x.train.references import referencing


def check(recipe: Recipe) -> None:
    """Find out what is wrong with a recipe before any picture is decoded for it.

    Raises:
        UsageError: an unknown network, layer, discriminator or degradation, or numbers that they do
            not take.
    """
    if recipe.ranking is not None:
        ranker.check(recipe)
        return
    sparse.check(recipe)
    # Of numbers alone: nothing is drawn, and no memory is taken.
    with torch.device("meta"):
        network = generator(recipe)
    config: Any = network.config
    fractional.check(recipe, config)
    _check_scales(recipe, config)
    referencing.check(recipe, config)
    multiple = config.size_multiple
    if recipe.data.reference is None and recipe.data.patch_px % multiple:
        raise UsageError(
            f"recipe {recipe.name}: {recipe.generator['network']} takes crops in steps of "
            f"{multiple} px, not {recipe.data.patch_px}: change data.patch_px"
        )
    patch_px = fractional.least_px(recipe.data, recipe.scale)
    for stage in recipe.stages:
        _check_layers(recipe, stage, patch_px)
        if stage.discriminator:
            with torch.device("meta"):
                discriminator(stage, patch_px)
            if len(recipe.data.scales) > 1:
                raise UsageError(
                    f"recipe {recipe.name}: crops of several scales differ in size, and a "
                    f"discriminator takes one: leave one of data.scales"
                )
        _check_rank(recipe, stage, patch_px)
        judged = stage.losses.layers() or stage.losses.rank_weight > 0.0
        needs_rgb = bool(judged) or bool(stage.discriminator)
        if needs_rgb and config.channels_in != 3:
            raise UsageError(
                f"recipe {recipe.name}: {recipe.generator['network']} works on luma, and content, "
                f"rank and adversarial losses need RGB"
            )
    if recipe.data.degradation != "bicubic":
        degrade.build(recipe.data.degradation, scale=recipe.scale, options=recipe.data.degrade)


def _check_scales(recipe: Recipe, config: Any) -> None:
    mixed = set(recipe.data.scales)
    if len(mixed) > 1 and not (config.pre_upsampled or getattr(config, "any_scale", False)):
        raise UsageError(
            f"recipe {recipe.name}: {recipe.generator['network']} is a network of one scale, and "
            f"data.scales mixes {', '.join(map(str, sorted(mixed)))}: give one of them"
        )


def _check_layers(recipe: Recipe, stage: StageOptions, crop_px: int) -> None:
    layers = stage.losses.layers()
    for layer in layers:
        if layer not in LAYERS:
            raise UsageError(
                f"recipe {recipe.name}: VGG-19 has no layer {layer!r}; "
                f"they are called conv1_1, relu2_2, conv5_4 …"
            )
    if layers:
        with torch.device("meta"):
            smallest_px = VGG19Features(layers).smallest_px
        if crop_px < smallest_px:
            raise UsageError(
                f"recipe {recipe.name}: {', '.join(layers)} need crops of {smallest_px} px, and "
                f"these have {crop_px}: raise patch_px"
            )


def _check_rank(recipe: Recipe, stage: StageOptions, crop_px: int) -> None:
    if stage.losses.rank_weight > 0.0 and crop_px < ranker.SMALLEST_PX:
        raise UsageError(
            f"recipe {recipe.name}: a ranker needs crops of {ranker.SMALLEST_PX} px, and these "
            f"have {crop_px}: raise patch_px"
        )


def generator(recipe: Recipe) -> nn.Module:
    """The network that is trained. Raises UsageError as `check` does."""
    numbers = dict(recipe.generator)
    name = numbers.pop("network")
    if name not in ALL_NETWORKS:
        wrong = f"recipe {recipe.name}: no network {name!r}"
        raise UsageError(unknown(wrong, str(name), known=list(ALL_NETWORKS)))
    entry = ALL_NETWORKS[name]
    where = f"recipe {recipe.name} [generator]"
    fields = {field.name for field in dataclasses.fields(entry.config)}
    if "upsamplings" in fields:  # RRDB counts in doublings
        scale = numbers.pop("scale", None)
        if isinstance(scale, int) and scale.bit_count() == 1:
            numbers.setdefault("upsamplings", scale.bit_length() - 1)
    try:
        config = tables.from_table(entry.config, numbers, where)
        if not config.pre_upsampled and config.scale != recipe.scale:
            raise ValueError(f"scale {config.scale} is not that of the data, {recipe.scale}")
        return entry.module(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: {error}") from error


def begin(
    recipe: Recipe,
    initial: Mapping[str, Tensor] | None,
    open_features: Callable[[Sequence[str]], VGG19Features] | None = None,
) -> nn.Module:
    """The generator, with fresh weights or those given.

    Weights of the same network for a multiple of its scale do, too: where the last convolution's
    channels become pixels, those that fall into one pixel are averaged.

    Raises:
        UsageError: these are of another network, or as `check` does.
    """
    network = generator(recipe)
    if initial is not None:
        try:
            network.load_state_dict(_rescaled(initial, network))
        except RuntimeError as error:
            raise UsageError(
                f"--init is of another network than that of recipe {recipe.name}: give a model of "
                f"{recipe.generator['network']} with the same numbers"
            ) from error
    referencing.equip(network, open_features, is_fresh=initial is None)
    return network


def _rescaled(initial: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """`initial` with a last convolution for the network's own, smaller scale."""
    config: Any = network.config
    last: Any = getattr(network, "conv_last", None)
    if getattr(config, "tail", None) != "direct" or last is None:
        return initial
    fitted = dict(initial)
    for name, wanted in (("conv_last.weight", last.weight), ("conv_last.bias", last.bias)):
        given, planes = fitted.get(name), config.channels_in
        if given is None or len(given) == len(wanted) or len(given) % planes:
            continue
        scale = math.isqrt(len(given) // planes)
        if scale % config.scale or planes * scale**2 != len(given):
            continue
        step, rest = scale // config.scale, given.shape[1:]
        blocks = given.reshape(planes, config.scale, step, config.scale, step, *rest)
        fitted[name] = blocks.mean(dim=(2, 4)).reshape(-1, *rest)
    return fitted


def check_share(recipe: Recipe, processes: int) -> None:
    """Raises UsageError unless so many processes can share a batch evenly."""
    referencing.check_processes(recipe, processes)
    if recipe.data.batch % processes:
        raise UsageError(
            f"a batch of {recipe.data.batch} cannot be shared by {processes} processes: give a "
            f"--batch that is a multiple of {processes}"
        )


def discriminator(stage: StageOptions, crop_px: int) -> nn.Module:
    """The discriminator of a stage, for crops of that size. Raises UsageError as `check` does."""
    numbers = dict(stage.discriminator)
    kind = str(numbers.pop("kind", None))
    # A gradient penalty does not go with batch normalisation (see `adversarial.WassersteinGP`).
    if stage.losses.gan == "wgan-gp":
        numbers["norm"] = False
    return build_discriminator(kind, crop_px=crop_px, **numbers)
