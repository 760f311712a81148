"""Which engines and precisions there are to choose from here, and how each is opened."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from waifu4x.upscaler import Upscaler

# A filter needs no torch.
if TYPE_CHECKING:
    from waifu4x.engines import Opened
    from waifu4x.model_files.model_facts import Model
    from waifu4x.resample import Kernel
    from waifu4x.tiled import TiledRunner

PRECISIONS: dict[str, tuple[str, ...]] = {
    "torch": ("fp32", "fp16", "bf16"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32",),
}
"""Of each engine; what a device does not have fails, and says so in its row."""
ON_INTEL_GPUS: dict[str, tuple[str, ...]] = {"torch": ("fp32",), "openvino": ("fp32", "fp16")}
"""There, which torch does not know: its fp32 is the CPU's."""


@dataclass(frozen=True, kw_only=True)
class Opener:
    """Makes upscalers of one model, as the flags of the command would."""

    model: Model | Kernel
    device: str
    """As the user said it, so that each engine makes of it what it would."""
    folder: Path | None
    """Where conversions are kept."""

    def engine(self, engine: str = "auto", precision: str = "auto") -> Opened | None:
        """None for a filter. Raises UsageError, DeviceError: the choice cannot be met here."""
        model = self.model
        if isinstance(model, str):
            return None

        from waifu4x.engines import choice  # it needs torch

        network = model.network
        if engine == "onnxruntime" and self.device not in ("auto", "cpu"):
            # It takes the network to the CPU, and torch has it on the device.
            network = copy.deepcopy(network)
        return choice.open_engine(
            network,
            engine="onnxruntime" if is_graph(model) else engine,
            device=self.device,
            precision=precision,
            sha256=model.sha256,
            folder=self.folder,
        )

    def upscaler(
        self, opened: Opened | None, *, precision: str = "auto", tile_px: int | None = None
    ) -> Upscaler:
        """What `engine` gave for `precision` as an upscaler."""
        if isinstance(self.model, str):
            return Upscaler(model=self.model)

        from waifu4x.tiled import TiledRunner  # it needs torch

        runner = TiledRunner(
            self.model,
            precision=precision,
            engines_folder=self.folder,
            tile_px=tile_px,
            opened=opened,
        )
        return Upscaler(model=self.model, runner=runner)


def is_graph(model: Model | Kernel) -> bool:
    """Whether it is what an .onnx file holds, which one engine runs in one precision."""
    return not isinstance(model, str) and model.architecture == "onnx"


def choices(opener: Opener, runner: TiledRunner) -> Iterator[tuple[str, str]]:
    """Engines that are installed and could run here, with each of their precisions; first of all
    torch's fp32, by which the others are judged, where torch can run the model at all.

    `runner` is that of the automatic choice.
    """
    from waifu4x import devices  # it needs torch

    if is_graph(opener.model):
        yield runner.engine, runner.precision
        return
    kind, is_named = runner.device.type, opener.device != "auto"
    # Where a GPU is taken, an engine for the CPU is none to choose; but torch's fp32 is needed.
    has = {
        "torch": kind != "xpu" or not is_named,
        "openvino": kind in ("cpu", "xpu") and devices.has_openvino(),
        "onnxruntime": (kind == "cpu" or (is_named and kind != "xpu"))
        and devices.has_onnxruntime(),
    }
    precisions = PRECISIONS | (ON_INTEL_GPUS if kind == "xpu" else {})
    for engine in (engine for engine in devices.ENGINES if engine != "auto"):
        for precision in precisions[engine] if has[engine] else ():
            if precision != "int8" or devices.has_nncf():
                yield engine, precision
