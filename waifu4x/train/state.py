"""What a training run is made of, and how it survives being killed."""

from __future__ import annotations

import copy
import io
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from waifu4x import files
from waifu4x.errors import TrainError, UsageError
from waifu4x.train.recipe import Recipe, StageOptions, from_facts

CHECKPOINT_NAME = "last.pth"
PREVIOUS_NAME = "previous.pth"
_FORMAT = 2

MakeDiscriminator = Callable[[StageOptions], nn.Module]


def ema_decay_at(step: int, limit: float) -> float:
    """The decay of the moving average at `step`: ramped, so that the random start is forgotten."""
    return min(limit, (1.0 + step) / (10.0 + step))


@dataclass(kw_only=True)
class TrainState:
    """Everything that changes while training; `save` and `load` carry all of it.

    `ema` is the moving average of `generator`: it is what is measured and what becomes the model.
    """

    generator: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    discriminator: nn.Module | None = None
    discriminator_optimizer: torch.optim.Optimizer | None = None
    stage: int = 0
    step: int = 0
    """Of the whole run; batches are numbered by it."""
    stage_start: int = 0
    """The step at which the stage began."""
    stage_started_s: float = 0.0
    elapsed_s: float = 0.0
    """Of training, in all; the time between two runs does not count."""
    rate_factor: float = 1.0
    """Lowered after a loss that was not finite."""
    parts: int = 1
    """In how many parts a batch goes through the networks; more after the memory was full."""
    history: list[float] = field(default_factory=list)
    """Validation PSNR of the stage, in dB."""
    scaler: torch.amp.GradScaler | None = None
    """Of the losses of fp16."""

    @property
    def stage_step(self) -> int:
        return self.step - self.stage_start

    @classmethod
    def start(
        cls,
        generator: nn.Module,
        recipe: Recipe,
        *,
        make_discriminator: MakeDiscriminator,
        scaler: torch.amp.GradScaler | None = None,
    ) -> TrainState:
        """The state before the first step."""
        stage = recipe.stages[0]
        state = cls(
            generator=generator,
            ema=copy.deepcopy(generator).requires_grad_(False).eval(),
            optimizer=_optimizer(generator, stage, fused=scaler is None),
            scaler=scaler,
        )
        state._equip(stage, make_discriminator)
        return state

    def enter(self, number: int, recipe: Recipe, *, make_discriminator: MakeDiscriminator) -> None:
        """Begin a stage from the averaged weights, with new optimizers."""
        stage = recipe.stages[number]
        self.generator.load_state_dict(self.ema.state_dict())
        self.optimizer = _optimizer(self.generator, stage, fused=self.scaler is None)
        self._equip(stage, make_discriminator)
        self.stage, self.stage_start, self.stage_started_s = number, self.step, self.elapsed_s
        self.history = []

    def _equip(self, stage: StageOptions, make_discriminator: MakeDiscriminator) -> None:
        self.discriminator = self.discriminator_optimizer = None
        if stage.discriminator:
            self.discriminator = make_discriminator(stage)
            rate = stage.discriminator_rate or stage.learning_rate
            self.discriminator_optimizer = _optimizer(
                self.discriminator, stage, fused=self.scaler is None, rate=rate
            )

    @torch.no_grad()
    def average(self, limit: float) -> None:
        """Move the averaged network one step towards the trained one, buffers included."""
        decay = ema_decay_at(self.stage_step, limit) if self.stage == 0 else limit
        ema, now = self.ema.state_dict(), self.generator.state_dict()
        for name, value in ema.items():
            if value.is_floating_point():
                value.lerp_(now[name], 1.0 - decay)
            else:
                value.copy_(now[name])

    def payload(self, recipe: Recipe) -> dict[str, Any]:
        """All of it, as `restore` takes it."""
        nets = {"generator": self.generator, "ema": self.ema, "optimizer": self.optimizer}
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            nets |= {
                "discriminator": self.discriminator,
                "discriminator_optimizer": self.discriminator_optimizer,
            }
        return {
            "format": _FORMAT,
            "recipe": recipe.facts(),
            **{name: each.state_dict() for name, each in nets.items()},
            "torch_rng": torch.get_rng_state(),
            **{name: getattr(self, name) for name in _NUMBERS},
            "history": list(self.history),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
        }

    def restore(
        self, payload: dict[str, Any], recipe: Recipe, *, make_discriminator: MakeDiscriminator
    ) -> None:
        """Take over what `payload` gave. Raises KeyError and its like where it is damaged."""
        if payload["stage"] != self.stage:
            self.stage = payload["stage"]
            stage = recipe.stages[self.stage]
            self.optimizer = _optimizer(self.generator, stage, fused=self.scaler is None)
            self._equip(stage, make_discriminator)
        self.generator.load_state_dict(payload["generator"])
        self.ema.load_state_dict(payload["ema"])
        self.optimizer.load_state_dict(payload["optimizer"])
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            self.discriminator.load_state_dict(payload["discriminator"])
            self.discriminator_optimizer.load_state_dict(payload["discriminator_optimizer"])
        # There is none yet where a run was in another number format until now.
        if self.scaler is not None and payload["scaler"]:
            self.scaler.load_state_dict(payload["scaler"])
        torch.set_rng_state(payload["torch_rng"])
        for name, kind in _NUMBERS.items():
            setattr(self, name, kind(payload[name]))
        self.history = [float(value) for value in payload["history"]]

    def save(self, folder: Path, recipe: Recipe) -> None:
        """Write the whole state, atomically; the one before it is kept. OSError as it comes."""
        last = folder / CHECKPOINT_NAME
        # In memory first: of a disk that is full, torch speaks in other errors than OSError.
        content = io.BytesIO()
        torch.save(self.payload(recipe), content)
        with files.atomic_path(last) as temporary:
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            # Not before it is known that the new one is whole and has its room on the disk. A kill
            # between the two renames leaves the previous one, which `load` takes then.
            with suppress(FileNotFoundError):
                os.replace(last, folder / PREVIOUS_NAME)

    def load(
        self,
        folder: Path,
        recipe: Recipe,
        *,
        make_discriminator: MakeDiscriminator,
        older: bool = False,
    ) -> str | None:
        """Take over the newest state that can be read; a sentence when that is not the last one.

        older: rather the one before it, where there is one.

        Raises:
            TrainError: none can be read, or it belongs to another recipe.
        """
        damaged: list[TrainError] = []
        names = (CHECKPOINT_NAME, PREVIOUS_NAME)
        for name in reversed(names) if older else names:
            path = folder / name
            if not path.is_file():
                continue
            try:
                payload = _read(path, recipe)
                self.restore(payload, recipe, make_discriminator=make_discriminator)
            except _ForeignError:
                raise
            except (TrainError, LookupError, TypeError, ValueError, RuntimeError) as error:
                damaged.append(
                    error if isinstance(error, TrainError) else TrainError(_damaged(path, error))
                )
                continue
            return f"{damaged[0]}: going on from {name}" if damaged else None
        if damaged:
            raise TrainError(f"{damaged[0]}; remove it to start anew")
        return None


_NUMBERS: dict[str, type[int] | type[float]] = {
    "stage": int,
    "step": int,
    "stage_start": int,
    "stage_started_s": float,
    "elapsed_s": float,
    "rate_factor": float,
    "parts": int,
}


class _ForeignError(TrainError):
    """It belongs to another run: an older one would do so too."""


def has_checkpoint(folder: Path) -> bool:
    """Whether a run in this folder could be gone on with."""
    return any((folder / name).is_file() for name in (CHECKPOINT_NAME, PREVIOUS_NAME))


def _optimizer(
    module: nn.Module, stage: StageOptions, *, fused: bool, rate: float | None = None
) -> torch.optim.Optimizer:
    """The rate is kept in each group as "base_rate": schedules multiply it.

    Args:
        fused: not together with a gradient scaler: a fused optimizer undoes the scaling by itself,
            too late for the gradients to be clipped.
        rate: the discriminator's; by default the generator's, with the last layer's own.
    """
    base = stage.learning_rate if rate is None else rate
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters, "lr": base, "base_rate": base}]
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    if stage.last_layer_rate != 1.0 and rate is None and convolutions:
        last = list(convolutions[-1].parameters())
        slow = base * stage.last_layer_rate
        kept = {id(p) for p in last}
        groups[0]["params"] = [p for p in parameters if id(p) not in kept]
        groups.append({"params": last, "lr": slow, "base_rate": slow})
    if stage.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=base, momentum=stage.momentum, weight_decay=stage.weight_decay
        )
    return torch.optim.Adam(
        groups, lr=base, betas=stage.betas, weight_decay=stage.weight_decay, fused=fused
    )


def _read(path: Path, recipe: Recipe) -> dict[str, Any]:
    try:
        # torch does not look at the sums that it wrote: a flipped bit would be another weight.
        with zipfile.ZipFile(path) as archive:
            spoiled = archive.testzip()
        if spoiled is not None:
            raise TrainError(f"{path} is damaged ({spoiled} in it has another checksum)")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except TrainError:
        raise
    except Exception as error:  # torch raises six unrelated types for damaged files
        raise TrainError(_damaged(path, error)) from error
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise TrainError(f"{path} is no saved training")
    changed = _differences(payload.get("recipe"), recipe.facts())
    if changed:
        raise _ForeignError(
            f"{path} was made by another recipe ({', '.join(changed)} differ); choose another "
            f"--name, or remove that file to start anew"
        )
    return payload


def _damaged(path: Path, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{path} is damaged ({reason})"


def _differences(old: Any, new: dict[str, Any]) -> list[str]:
    """The parts in which two recipes' facts differ; the lengths of stages may be changed."""

    def comparable(facts: dict[str, Any]) -> dict[str, Any]:
        stages = [
            {k: v for k, v in stage.items() if k not in ("steps", "warmup_steps")}
            for stage in facts["stages"]
        ]
        return {**facts, "name": None, "stages": stages}

    try:
        # As it is read today: options that there were not yet have their defaults.
        before, after = comparable(from_facts(old).facts()), comparable(new)
    except (KeyError, TypeError, AttributeError, UsageError):
        return list(new)
    return [key for key in after if before.get(key) != after[key]]
