"""A model that has run here before starts again without torch.

Importing torch takes a second, more than enlarging a meme does. What it is needed for is to convert
a network, and that is done once: when OpenVINO runs it, the facts of the model are kept beside what
was compiled. Where anything that they depend on is another now, they do not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from importlib import metadata
from pathlib import Path
from typing import Any

from waifu4x import catalog, devices
from waifu4x.engines import Opened, openvino_cache, openvino_compiled
from waifu4x.engines.openvino_compiled import (
    CALIBRATION_PICTURE,
    CompiledNetwork,
    runtime,
    settings,
)
from waifu4x.errors import DeviceError
from waifu4x.model_files.model_facts import Model
from waifu4x.version import __version__

FORMAT = 2
"""To be raised when something else is kept."""

_FACTS = (
    *("architecture", "scale", "channels_in", "pre_upsampled", "scales", "size_multiple"),
    *("receptive_radius_px", "global_context", "parameters", "metadata"),
)
# What decides how many threads torch takes, and OpenVINO with it.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class KeptModel(Model):
    """A model whose network is loaded when it is asked for, which needs torch."""

    def __getattr__(self, name: str) -> Any:
        if name != "network":
            raise AttributeError(f"a model has no {name}")
        from waifu4x.model_files import checkpoints

        network = checkpoints.load(self.path).network
        object.__setattr__(self, "network", network)
        return network


@dataclass(frozen=True)
class _CPU:
    """As much of a `torch.device` as is asked of one."""

    type: str = "cpu"
    index: int | None = None

    def __str__(self) -> str:
        return self.type


def keep(model: Model, opened: Opened, folder: Path, *, precision: str) -> None:
    """Let `recall` find a model that OpenVINO runs on the CPU; nothing for every other one.

    Args:
        folder: where the engine kept what it compiled.
        precision: as the user wished it.
    """
    engine = opened.engine
    if engine.name != "openvino" or opened.devices[0].type != "cpu":
        return
    import torch

    from waifu4x.engines.openvino import OpenVINOEngine

    if not isinstance(engine, OpenVINOEngine):
        return

    with suppress(OSError):
        kept = {
            "facts": {name: getattr(model, name) for name in _FACTS},
            "compiled": engine.key(runtime()),
            "precision": engine.precision,
            "bytes_per_px": engine.bytes_per_px(),
            "threads": torch.get_num_threads(),
        }
        openvino_cache.write(folder, _key(model.sha256, precision), json.dumps(kept).encode())


def recall(
    path: Path,
    *,
    name: str,
    sha256: str,
    licence: str | None,
    folder: Path,
    engine: str,
    device: str,
    precision: str,
) -> tuple[Model, Opened] | None:
    """The model and its engine; None where torch must be asked, for whatever reason.

    Args:
        path, name, sha256, licence: of the weights' file, whose bytes were just hashed.
        folder: as in `keep`.
        engine, device, precision: as the user wished them.

    Raises:
        UsageError: the environment names an engine that there is not.
    """
    if devices.wished_engine(engine) not in ("auto", "openvino") or not devices.has_openvino():
        return None
    if device != "cpu" and (device != "auto" or devices.may_have_accelerator()):
        return None
    data = openvino_cache.read(folder, _key(sha256, precision))
    if data is None:
        return None
    kept = json.loads(data)
    compiled = _compiled(kept, folder)
    if compiled is None:
        return None
    facts: dict[str, Any] = kept["facts"]
    scales = facts["scales"]
    facts |= {"scales": None if scales is None else tuple(scales)}
    facts |= {"name": name, "path": path, "sha256": sha256}
    facts |= {"licence": facts["metadata"].get("licence") if licence is None else licence}
    model = object.__new__(KeptModel)
    for fact, value in facts.items():
        object.__setattr__(model, fact, value)
    return model, Opened(compiled, (_CPU(),))  # pyright: ignore[reportArgumentType]


def _compiled(kept: dict[str, Any], folder: Path) -> CompiledNetwork | None:
    """None when the compiled network is gone, or of another processor, or spoiled."""
    try:
        core = runtime()
        if not _is_of_this_machine(kept["compiled"], core):
            return None
        open_request = _opener(core, kept, folder)
        return CompiledNetwork(
            open_request,
            scale=kept["facts"]["scale"],
            channels=kept["facts"]["channels_in"],
            precision=kept["precision"],
            bytes_per_px=lambda: kept["bytes_per_px"],
        )
    except DeviceError:
        return None


def _opener(core: Any, kept: dict[str, Any], folder: Path) -> Callable[[], Any]:
    def open_request() -> Any:
        content = openvino_cache.read(folder, kept["compiled"])
        if content is None:
            raise DeviceError("what was compiled is gone")
        how = settings(kept["precision"], threads=kept["threads"])
        try:
            return core.import_model(content, "CPU", how).create_infer_request()
        except RuntimeError as error:
            raise DeviceError(str(error)) from error

    return open_request


def _is_of_this_machine(key: str, core: Any) -> bool:
    """Whether the processor is what it was when the network was compiled."""
    facts = json.loads(key)
    return (
        facts["openvino"] == core.get_versions("CPU")["CPU"].build_number
        and facts["processor"] == core.get_property("CPU", "FULL_DEVICE_NAME")
        and facts["capabilities"] == sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    )


def _key(sha256: str, precision: str) -> str:
    """Everything that what is kept depends on, but for what only OpenVINO can tell."""
    facts = {
        "start": [FORMAT, openvino_compiled.FORMAT],
        "waifu4x": __version__,
        "torch": metadata.version("torch"),
        "openvino": metadata.version("openvino"),
        "weights": sha256,
        "precision": precision,
        "cores": os.cpu_count(),
        "threads": [os.environ.get(name) for name in _THREADS],
    }
    if precision == "int8":
        picture = catalog.shipped_folder() / CALIBRATION_PICTURE
        with suppress(OSError, metadata.PackageNotFoundError):
            facts["int8"] = [metadata.version("nncf"), sha256_of(picture.read_bytes()).hexdigest()]
    return json.dumps(facts, sort_keys=True)
