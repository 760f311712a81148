"""One step of the generator, then one of the discriminator, by one batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from waifu4x import devices
from waifu4x.train.batches import Batch
from waifu4x.train.objectives.objective import Objective
from waifu4x.train.recipe import StageOptions
from waifu4x.train.references.referencing import Showing
from waifu4x.train.state import TrainState

Terms = dict[str, Tensor]


class NotFiniteError(Exception):
    """A loss or a gradient is NaN or infinite; the weights that it is of were not changed by it."""


class Updates:
    """How a batch changes the networks of one stage.

    Batches go through the networks in `state.parts` parts, one after the other; their gradients are
    summed up to those of the whole (but for batch normalisation and averages over a batch, which
    see a part). When the memory is full there are more parts from then on: what had been computed
    of that network's step is done anew, and no network is guaranteed to step twice by one batch.

    Args:
        generator: that of `state` as Fabric wrapped it.
        on_note: told, in a sentence, what was decided.
    """

    def __init__(
        self,
        state: TrainState,
        objective: Objective,
        *,
        generator: Any,
        fabric: Fabric,
        stage: StageOptions,
        on_note: Callable[[str], None],
    ) -> None:
        self._state = state
        self._objective = objective
        self._fabric = fabric
        self._clip_norm = stage.clip_norm
        self._discriminator_steps = stage.discriminator_steps
        self._on_note = on_note
        self._generator = generator
        # Asked of the bare network: a wrapped one has no config.
        config: Any = getattr(state.generator, "config", None)
        self._outputs: int = getattr(config, "outputs_in_training", 1)
        self._show = Showing(state.generator, with_reference=stage.reference)
        self._optimizer: Any = fabric.setup_optimizers(state.optimizer)
        self._bare_discriminator = state.discriminator
        self._discriminator: Any = None
        self._discriminator_optimizer: Any = None
        if state.discriminator is not None and state.discriminator_optimizer is not None:
            bare: Any = state.discriminator.train()
            self._discriminator, self._discriminator_optimizer = fabric.setup(
                bare.to(memory_format=torch.channels_last), state.discriminator_optimizer
            )

    def fit(self, state: TrainState) -> bool:
        """Whether these are still the networks and optimizers of `state`."""
        return (
            self._optimizer.optimizer is state.optimizer
            and self._bare_discriminator is state.discriminator
        )

    def run(self, batch: Batch) -> Terms:
        """Both steps; the terms of the losses, without gradients.

        Raises:
            NotFiniteError: in every process of a distributed run alike.
        """
        terms, made = self._in_parts(batch, self._generator_gradients)
        self._finish(self._generator, self._optimizer, terms)
        for _ in range(0 if self._discriminator is None else self._discriminator_steps):
            found, _made = self._in_parts(
                batch, lambda whole, size: self._discriminator_gradients(whole, size, made=made)
            )
            self._finish(self._discriminator, self._discriminator_optimizer, found)
            terms |= found
        return terms

    def _in_parts(
        self, batch: Batch, compute: Callable[[Batch, int], tuple[Terms, Tensor]]
    ) -> tuple[Terms, Tensor]:
        """`compute`, in smaller parts until the memory holds them."""
        state = self._state
        while True:
            try:
                return compute(batch, math.ceil(len(batch) / state.parts))
            except (RuntimeError, MemoryError) as error:
                # Other processes, which had room, are in the midst of summing up gradients.
                alone = self._fabric.world_size == 1
                if not (devices.is_out_of_memory(error) and alone and state.parts < len(batch)):
                    raise
            # Outside of the block: the traceback holds the tensors alive.
            state.parts = min(len(batch), 2 * state.parts)
            devices.release_memory(self._fabric.device)
            self._on_note(f"the memory was full: batches in {state.parts} parts from now on")

    def _generator_gradients(self, batch: Batch, size: int) -> tuple[Terms, Tensor]:
        self._optimizer.zero_grad(set_to_none=True)
        # The bare module: a wrapped one would wait for gradients of its own.
        frozen = self._bare_discriminator
        if frozen is not None:
            frozen.requires_grad_(False)
        terms: Terms = {}
        made: list[Tensor] = []
        for start in range(0, len(batch), size):
            piece = batch.part(start, start + size)
            with self._unsynced(self._generator, start + size < len(batch)):
                shown = self._show(piece)
                output = self._generator(*shown.inputs).float()
                with self._fabric.autocast():
                    loss, found = self._objective.generator(
                        output,
                        target=piece.target,
                        truth=piece.truth,
                        discriminator=frozen,
                        regions=piece.regions,
                        outputs=self._outputs,
                        shown=shown,
                    )
                share = len(piece) / len(batch)
                self._fabric.backward(loss * share)
            made.append(output[-len(piece) :].detach())
            _accumulate(terms, found, share)
        return terms, torch.cat(made)

    def _discriminator_gradients(
        self, batch: Batch, size: int, *, made: Tensor
    ) -> tuple[Terms, Tensor]:
        bare = self._bare_discriminator
        assert bare is not None, "only a stage with a discriminator comes here"
        bare.requires_grad_(True)
        self._discriminator_optimizer.zero_grad(set_to_none=True)
        terms: Terms = {}
        for start in range(0, len(batch), size):
            piece = batch.part(start, start + size)
            with self._unsynced(self._discriminator, start + size < len(batch)):
                loss, found = self._objective.discriminator(
                    self._discriminator,
                    bare=bare,
                    truth=piece.truth,
                    made=made[start : start + size],
                )
                share = len(piece) / len(batch)
                self._fabric.backward(loss * share)
            _accumulate(terms, found, share)
        return terms, made

    def _unsynced(self, module: Any, more_follow: bool) -> AbstractContextManager[object]:
        """Gradients of all parts but the last stay in this process."""
        if self._fabric.world_size == 1:
            return contextlib.nullcontext()
        return self._fabric.no_backward_sync(module, enabled=more_follow)

    def _finish(self, module: Any, optimizer: Any, terms: Mapping[str, Tensor]) -> None:
        """Clip and step, when all terms are finite in every process."""
        seen = dict(terms)
        # A scaler multiplies gradients on purpose until they overflow, and then leaves out a step.
        if self._state.scaler is None:
            seen["gradient"] = self._clip(module, optimizer, self._clip_norm or math.inf)
        bad = torch.stack([(~torch.isfinite(value)).float() for value in seen.values()]).sum()
        if self._fabric.world_size > 1:
            reduced = self._fabric.all_reduce(bad, reduce_op="sum")
            assert isinstance(reduced, Tensor)
            bad = reduced
        if float(bad) > 0.0:
            named = ", ".join(f"{name} {float(value):g}" for name, value in seen.items())
            raise NotFiniteError(f"the loss became NaN or infinite ({named})")
        if self._state.scaler is not None and self._clip_norm > 0.0:
            self._clip(module, optimizer, self._clip_norm)
        optimizer.step()

    def _clip(self, module: Any, optimizer: Any, max_norm: float) -> Tensor:
        """The norm of all gradients, which is `max_norm` at most afterwards."""
        norm = self._fabric.clip_gradients(
            module, optimizer, max_norm=max_norm, error_if_nonfinite=False
        )
        assert norm is not None
        return norm


def _accumulate(terms: Terms, found: Mapping[str, Tensor], share: float) -> None:
    for name, value in found.items():
        terms[name] = terms.get(name, value.new_zeros(())) + share * value
