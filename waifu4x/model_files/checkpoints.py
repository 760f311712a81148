"""A file becomes a network: read safely, unwrapped, recognised, and checked before it is used.

A file that loads is guaranteed to hold exactly the tensors of the network it is said to be, each
with the right shape, all of them finite. Whether it is the *right* file only its sha256 can tell,
and that is compared by `waifu4x.weights` before anything here looks at it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from waifu4x.errors import CheckpointError, UnknownNetworkError
from waifu4x.model_files import community
from waifu4x.model_files.given_files import fail, printable
from waifu4x.model_files.key_layouts import ARCHITECTURE_KEY, CONFIG_KEY, recognise
from waifu4x.model_files.model_facts import Model
from waifu4x.model_files.tensor_files import MAX_TENSORS, read_tensor_file, write_safetensors
from waifu4x.networks import ALL_NETWORKS, NetworkConfig

__all__ = ["Model", "load", "read_state", "recognise", "save", "stated_scales"]

# 400 MB of float32; the largest network known here has 44 million parameters.
MAX_PARAMETERS = 100_000_000

# Averaged weights come first: they are what the authors publish figures for.
_WRAPPERS = (
    *("params_ema", "g_ema", "net_g_ema", "ema", "model_ema", "ema_state_dict"),
    *("params", "state_dict", "model_state_dict", "generator_state_dict"),
    *("generator", "net_g", "netG", "G", "model", "network", "net", "weights"),
)
_MAX_WRAPPING = 4
# What DataParallel, torch.compile and training classes put before every key …
_PREFIXES = ("module.", "_orig_mod.", "net.", "network.")
# … and what marks the generator where a discriminator lies in the same dict.
_GENERATOR_PREFIXES = ("generator.", "netG.", "net_g.")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_BATCH_COUNTER = "num_batches_tracked"


def load(path: Path, *, name: str | None = None, licence: str | None = None) -> Model:
    """Load a ``.safetensors`` or ``.pth`` file of any known network and key layout.

    A network that is not known here is built by spandrel where that is installed (`community`).
    `name` is by default the file's name without suffix, `licence` what the file's metadata say.
    Raises UnsafeCheckpointError when the file would have to execute something (it was not),
    UnknownNetworkError when its network is not known, CheckpointError for everything else that is
    wrong with it; every message is one line with the path and, once it is known, the sha256.
    """
    file = read_tensor_file(path)
    state = _state(path, file.content, sha256=file.sha256, tables=True)
    try:
        architecture, config, state = recognise(state, file.metadata)
    except UnknownNetworkError as error:
        network = _of_others(path, state, problem=str(error), sha256=file.sha256)
        config: NetworkConfig = network.config
        architecture = community.PREFIX + network.config.architecture
    except CheckpointError as error:
        fail(path, str(error), sha256=file.sha256, kind=type(error))
    else:
        network = _build(path, architecture, config, state=state, sha256=file.sha256)
    return Model(
        name=path.stem if name is None else name,
        architecture=architecture,
        network=network,
        scale=config.scale,
        channels_in=config.channels_in,
        pre_upsampled=config.pre_upsampled,
        scales=stated_scales(file.metadata) if config.pre_upsampled else (config.scale,),
        size_multiple=config.size_multiple,
        any_scale=getattr(config, "any_scale", False),
        receptive_radius_px=config.receptive_radius_px,
        global_context=config.global_context,
        reference=getattr(config, "reference", "none"),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        sha256=file.sha256,
        licence=file.metadata.get("licence") if licence is None else licence,
        metadata=file.metadata,
        path=path,
    )


def save(network: nn.Module, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a network as ``.safetensors``, atomically; `load` gives it back without guessing.

    `metadata` are further facts (``licence``, ``scales`` as "2,3,4", …), kept as they are. Equal
    networks and metadata give equal bytes. Raises CheckpointError when `path` has another suffix,
    when the network is none of ALL_NETWORKS, when a weight is not finite, or when the disk refuses.
    """
    if path.suffix.lower() != ".safetensors":
        fail(path, "models are saved as .safetensors; change the suffix")
    names = [key for key, entry in ALL_NETWORKS.items() if type(network) is entry.module]
    if not names:
        fail(path, f"a {type(network).__name__} is none of the networks that can be loaded again")
    config = dataclasses.asdict(network.config)  # pyright: ignore[reportArgumentType]
    # The counter is of use to training alone, and the only integer.
    state = {k: v for k, v in network.state_dict().items() if not k.endswith(_BATCH_COUNTER)}
    _require_finite(path, state, sha256=None)
    facts = {ARCHITECTURE_KEY: names[0], CONFIG_KEY: json.dumps(config, sort_keys=True)}
    write_safetensors(state, path, metadata={**metadata, **facts})


def read_state(path: Path) -> dict[str, Tensor]:
    """The flat dict of floating-point tensors in a file, whatever network they are of.

    Unwrapped (``params_ema`` wins over ``params``) and without prefixes; values are not converted.
    Raises as `load` does, but for UnknownNetworkError.
    """
    file = read_tensor_file(path)
    state = _state(path, file.content, sha256=file.sha256)
    _require_finite(path, state, sha256=file.sha256)
    return state


def _state(path: Path, content: object, *, sha256: str, tables: bool = False) -> dict[str, Tensor]:
    """Unwrap, strip prefixes, and make sure that it is a flat dict of plain float tensors.

    With `tables` also of whole numbers: which of them belong together is kept in files of networks
    with attention, as are their weights.
    """
    for _ in range(_MAX_WRAPPING):
        inner = _unwrapped(content)
        if inner is content:
            break
        content = inner
    if not isinstance(content, dict) or not content:
        fail(path, "holds no weights (no dict of tensors); get its state dict", sha256=sha256)
    if len(content) > MAX_TENSORS:
        fail(path, f"holds {len(content)} values, which no known network does", sha256=sha256)
    state: dict[str, Tensor] = {}
    total = 0
    # Methods are the classes' own: a pickle can set attributes that hide those of its objects.
    for key, tensor in dict.items(content):
        problem = _tensor_problem(key, tensor, tables=tables)
        if problem is not None:
            fail(path, problem, sha256=sha256)
        # Before anything touches the values: a stride of 0 makes a small file claim any size.
        total += Tensor.numel(tensor)
        if total > MAX_PARAMETERS:
            fail(path, f"has over {MAX_PARAMETERS:,} parameters, which is too many", sha256=sha256)
        if not key.endswith(_BATCH_COUNTER):
            state[key] = Tensor.detach(tensor)
    return _without_prefixes(state)


def _unwrapped(content: object) -> object:
    """The dict inside a wrapper such as {"params_ema": …, "epoch": 3}; `content` if none."""
    if isinstance(content, dict):
        for key in _WRAPPERS:
            inner = dict.get(content, key)
            if isinstance(inner, dict) and inner:
                return inner
    return content


def _tensor_problem(key: object, tensor: object, *, tables: bool) -> str | None:
    """What is wrong with one entry of a state dict, as a clause; None when nothing is."""
    if not isinstance(key, str):
        # Not the key itself: the text of nested tuples takes recursion, that of tensors computing.
        kind = printable(type(key).__name__, limit=40)
        return f"is no flat dict of tensors: one of its keys is a {kind}; get its state dict"
    shown = printable(repr(key), limit=60)
    if not isinstance(tensor, Tensor):
        kind = printable(type(tensor).__name__, limit=40)
        return f"is no flat dict of tensors: {shown} is a {kind}; get its state dict"
    dense = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
    if not dense or tensor.device.type != "cpu":
        return f"holds a tensor that is not plain numbers: {shown}; save it dense and in float32"
    is_table = tables and tensor.dtype == torch.int64 and not key.endswith((".weight", ".bias"))
    if tensor.dtype not in _FLOATS and not is_table and not key.endswith(_BATCH_COUNTER):
        dtype = str(tensor.dtype).removeprefix("torch.")
        return f"holds numbers that are not floats: {shown} is {dtype}; save it in float32"
    return None


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip what wrappers put before every key, however often; keep the generator of a GAN."""
    for _ in range(_MAX_WRAPPING):
        for prefix in _GENERATOR_PREFIXES:
            if any(key.startswith(prefix) for key in state):
                state = {key: tensor for key, tensor in state.items() if key.startswith(prefix)}
        # "model." is also how the oldest ESRGAN keys begin, but with a number after it.
        prefixes = (*_PREFIXES, *_GENERATOR_PREFIXES, "model.")
        common = [p for p in prefixes if all(key.startswith(p) for key in state)]
        if not common or any(re.match(r"model\.\d", key) for key in state):
            break
        state = {key.removeprefix(common[0]): tensor for key, tensor in state.items()}
    return state


# Those of nn.init stand for themselves: within them the mode is not asked again.
_RANDOM = frozenset(
    {
        *(Tensor.normal_, Tensor.uniform_),
        *(nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_),
        *(nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
    }
)


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves out random initialisation, whose values would be thrown away.

    Not only to save time: on "meta", `normal_` imports torch._dynamo, which takes over a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _build(
    path: Path, architecture: str, config: NetworkConfig, *, state: dict[str, Tensor], sha256: str
) -> nn.Module:
    """A network of `config` with exactly the tensors of `state`."""
    # On "meta" nothing is allocated: it costs nothing to find out that the state does not fit.
    with torch.device("meta"), _NoRandomNumbers():
        network = ALL_NETWORKS[architecture].module(config)
    wanted = {
        key: tensor.shape
        for key, tensor in network.state_dict().items()
        if not key.endswith(_BATCH_COUNTER)
    }
    problem = _misfit(wanted, state)
    if problem is not None:
        fail(path, f"looks like {architecture}, but {problem}", sha256=sha256)
    # A copy in every case: a mapped tensor would change, or vanish, with its file.
    owned = {key: tensor.to(torch.float32, copy=True).contiguous() for key, tensor in state.items()}
    # Only now: float64 values beyond float32 become infinite.
    _require_finite(path, owned, sha256=sha256)
    for key in network.state_dict():
        if key.endswith(_BATCH_COUNTER):
            owned[key] = torch.zeros((), dtype=torch.long)
    network.load_state_dict(owned, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _of_others(
    path: Path, state: Mapping[str, Tensor], *, problem: str, sha256: str
) -> community.CommunityNetwork:
    """What spandrel makes of it. `problem` is why it is not known here."""
    try:
        network = community.build(state)
    except UnknownNetworkError as error:
        fail(path, f"{problem}; {error}", sha256=sha256, kind=UnknownNetworkError)
    _require_finite(path, network.state_dict(), sha256=sha256)
    return network


def _misfit(wanted: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> str | None:
    """How the state differs from the network, as a clause; None when it fits."""
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    if missing:
        return f"lacks {len(missing)} tensors, first {missing[0]}"
    if extra:
        return f"has {len(extra)} tensors too many, first {printable(extra[0], limit=60)}"
    for key, shape in wanted.items():
        if state[key].shape != shape:
            got = tuple(state[key].shape)
            return f"{key} has shape {got} where {tuple(shape)} is needed"
    return None


def _require_finite(path: Path, state: Mapping[str, Tensor], *, sha256: str | None) -> None:
    for key, tensor in state.items():
        # By numpy: torch would start its threads anew for each of hundreds of small tensors, which
        # took most of the time of loading.
        if not np.isfinite(tensor.float().numpy()).all():
            shown = printable(key, limit=60)
            fail(path, f"holds NaN or infinity in {shown}; the file is damaged", sha256=sha256)


def stated_scales(metadata: Mapping[str, str]) -> tuple[int, ...] | None:
    """The factors in ``scales`` or ``scale`` ("2,3,4"); None when absent or no numbers."""
    stated = metadata.get("scales", metadata.get("scale", ""))
    numbers = stated.replace(" ", "").split(",")
    if not all(re.fullmatch(r"[1-9]\d?", number) for number in numbers):
        return None
    return tuple(sorted({int(number) for number in numbers}))
