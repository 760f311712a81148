"""Network interpolation: two models of one network become a third, parameter by parameter.

Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks" (2018), section
3.4, https://arxiv.org/abs/1809.00219: between the network trained for PSNR and the one fine-tuned
from it by a GAN lies a range from smooth to sharp, and unlike mixed pictures it has few artefacts.
It works because the two started from each other; networks trained apart do not mix.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from waifu4x.errors import UsageError
from waifu4x.model_files.checkpoints import Model
from waifu4x.version import __version__

# A fine-tuned network still points where its start did. Of the published SRCNNs, trained apart,
# no two of one shape have a cosine above 0.28.
_RELATED_COSINE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Blend:
    """What `blend` made."""

    network: nn.Module
    """On the CPU, float32, in eval mode, without gradients, as `Model.network` is."""
    metadata: dict[str, str]
    """Where it comes from: for `waifu4x.model_files.checkpoints.save`."""
    notes: tuple[str, ...]
    """What should be known about it, one sentence each."""


@torch.no_grad()
def blend(a: Model, b: Model, *, alpha: float) -> Blend:
    """alpha · A + (1 - alpha) · B for every parameter and every statistic; both stay as they are.

    alpha: 0 is B, 1 is A, guaranteed bit for bit; the paper has A trained by a GAN, B for PSNR, and
    0.8. Whole numbers among the buffers (counters) are A's.

    Raises:
        UsageError: the networks are not the same in kind and numbers, or `alpha` is not in 0..1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(f"alpha is 0 (all of {b.name}) to 1 (all of {a.name}), not {alpha}")
    _require_alike(a, b)
    own, other = a.network.state_dict(), b.network.state_dict()
    mixed = {
        # lerp gives its ends exactly, which the formula as it is written would not.
        key: other[key].lerp(value, alpha) if value.is_floating_point() else value.clone()
        for key, value in own.items()
    }
    network = copy.deepcopy(a.network)
    network.load_state_dict(mixed, strict=True)
    return Blend(
        network=network.eval().requires_grad_(False),
        metadata=_metadata(a, b, alpha=alpha),
        notes=_notes(a, b),
    )


def _require_alike(a: Model, b: Model) -> None:
    cure = "only a model and one that was trained on from it can be blended"
    if a.architecture != b.architecture:
        raise UsageError(f"{a.name} is {a.architecture} and {b.name} {b.architecture}: {cure}")
    ours, theirs = _numbers(a.network), _numbers(b.network)
    changed = [
        f"{key} {ours[key]} and {theirs.get(key)}" for key in ours if ours[key] != theirs[key]
    ]
    if changed:
        raise UsageError(f"{a.name} and {b.name} differ in {', '.join(changed)}: {cure}")
    shapes = [
        {key: tuple(value.shape) for key, value in model.network.state_dict().items()}
        for model in (a, b)
    ]
    if shapes[0] != shapes[1]:
        key = next(k for k in shapes[0] | shapes[1] if shapes[0].get(k) != shapes[1].get(k))
        raise UsageError(f"{a.name} and {b.name} differ in the shape of {key}: {cure}")


def _numbers(network: nn.Module) -> dict[str, Any]:
    return dataclasses.asdict(network.config)  # pyright: ignore[reportArgumentType]


def _metadata(a: Model, b: Model, *, alpha: float) -> dict[str, str]:
    facts = {
        "blend": "alpha * A + (1 - alpha) * B",
        "alpha": repr(float(alpha)),
        "licence": _licence(a.licence, b.licence),
        "made_by": f"waifu4x {__version__}",
    }
    for letter, model in (("a", a), ("b", b)):
        facts |= {f"parent_{letter}": model.name, f"parent_{letter}_sha256": model.sha256}
        if "trained_on" in model.metadata:
            facts[f"parent_{letter}_trained_on"] = model.metadata["trained_on"]
    common = sorted({*(a.scales or ())} & {*(b.scales or ())})
    if a.pre_upsampled and common:
        facts["scales"] = ",".join(map(str, common))
    return facts


def _licence(a: str | None, b: str | None) -> str:
    """Both licences bind: "A AND B", as SPDX has it."""
    told = [licence or "unknown" for licence in (a, b)]
    return " AND ".join(dict.fromkeys(told))


def _notes(a: Model, b: Model) -> tuple[str, ...]:
    notes = []
    if any(isinstance(module, nn.BatchNorm2d) for module in a.network.modules()):
        notes.append(
            "the running statistics of batch normalisation were blended too, which is not what the "
            "blended network would measure: look at its pictures before you rely on it"
        )
    if _cosine(a, b) < _RELATED_COSINE:
        notes.append(
            f"{a.name} and {b.name} have little in common: unless one was trained on from the "
            "other, the blend is worse than both"
        )
    return tuple(notes)


def _cosine(a: Model, b: Model) -> float:
    """Of the angle between the convolutions of the two, taken as one long vector each.

    Slopes, biases and normalisation's weights are left out: they start alike in every network.
    """
    inner = norm_a = norm_b = 0.0
    for own, other in zip(a.network.parameters(), b.network.parameters(), strict=True):
        if own.dim() > 1:
            x, y = own.detach().double().flatten(), other.detach().double().flatten()
            inner += float(x @ y)
            norm_a += float(x @ x)
            norm_b += float(y @ y)
    return inner / math.sqrt(norm_a * norm_b) if norm_a * norm_b > 0.0 else 1.0
