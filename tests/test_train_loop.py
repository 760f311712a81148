"""The training loop: what it learns, how it goes on, and what it does when something fails."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from training import (
    GAN,
    PIXEL,
    assert_equal,
    contents,
    rows,
    save_picture,
    train,
    trainer,
    with_losses,
    with_stage,
)

from waifu4x.errors import TrainError, UsageError
from waifu4x.train import building, estimate, loop, validation
from waifu4x.train.data import PairCache, open_cache
from waifu4x.train.loop import Trainer
from waifu4x.train.machine import Autocast, processes
from waifu4x.train.metering import Report
from waifu4x.train.objectives.balance import BalanceWatch
from waifu4x.train.objectives.objective import Objective
from waifu4x.train.schedule import rate_at
from waifu4x.train.state import TrainState, ema_decay_at
from waifu4x.train.updates import Updates
from waifu4x.train.validation import ValidationPair

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data") / "photos"
    for number in range(3):
        save_picture(place / f"{number}.png", seed=number, size=(40 + 2 * number, 32))
    return place


@pytest.fixture(scope="module")
def cache(folder: Path) -> PairCache:
    return open_cache([folder], folder.parent / "cache", scale=2, patch_px=8)


@pytest.fixture(scope="module")
def pairs(folder: Path) -> list[ValidationPair]:
    return validation.validation_pairs(folder, 2)


def test_it_learns(cache: PairCache, pairs: list[ValidationPair], tmp_path: Path) -> None:
    subject = trainer(cache, with_stage(PIXEL, steps=300), tmp_path, validation=pairs)
    before = subject.validate()
    losses = [each["l1"] for each in train(subject, validate_every=150)]
    assert len(losses) == 300
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:10])
    assert subject.validate() > before + 1.0
    told = rows(tmp_path)
    assert [row["step"] for row in told] == list(range(1, 301))
    assert [row["step"] for row in told if "psnr_db" in row] == [150, 300]
    assert told[-1]["psnr_db"] == subject.validate()
    assert told[-1]["progress"] == 1.0
    wanted = 5e-3 * rate_at(subject.stage, step=149, progress=149 / 300)
    assert told[149]["learning_rate"] == pytest.approx(wanted)
    elapsed = [row["elapsed_s"] for row in told]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] > 0.0


def test_equal_seeds_give_equal_runs_and_others_do_not(cache: PairCache, tmp_path: Path) -> None:
    one, again, other = (
        trainer(cache, GAN, tmp_path / name, seed=seed)
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    losses = train(one)
    assert train(again) == losses
    assert_equal(again, one)
    assert train(other) != losses


# Going on.


@pytest.mark.parametrize(
    ("points", "gan"),
    [
        *(((2,), "vanilla"), ((4,), "vanilla"), ((5,), "vanilla"), ((9,), "wgan-gp")),
        *(((1, 4, 6, 7), "ragan"), ((1, 4, 6, 7), "wgan-gp")),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    *, cache: PairCache, tmp_path: Path, points: tuple[int, ...], gan: str
) -> None:
    """Within the stages and on the border between them; wgan-gp draws random numbers, too."""
    chosen = with_losses(GAN, gan=gan)
    whole = trainer(cache, chosen, tmp_path / "whole")
    wanted = train(whole)
    losses: list[dict[str, float]] = []
    for point in points:
        subject = trainer(cache, chosen, tmp_path / "run")
        state = subject.state
        losses += train(subject, stop=lambda state=state, point=point: state.step >= point)
        assert state.step == point
    last = trainer(cache, chosen, tmp_path / "run")
    assert last.state.step == points[-1]
    losses += train(last)
    assert losses == wanted
    assert_equal(last, whole)
    assert [row["losses"] for row in rows(tmp_path / "run")] == wanted
    done = (tmp_path / "run" / "previous.pth").read_bytes()
    assert train(trainer(cache, chosen, tmp_path / "run")) == []  # it is done
    assert (tmp_path / "run" / "previous.pth").read_bytes() == done


def test_how_often_it_is_saved_changes_nothing(cache: PairCache, tmp_path: Path) -> None:
    chosen = with_losses(GAN, gan="wgan-gp")
    one, other = (trainer(cache, chosen, tmp_path / name) for name in ("one", "other"))
    assert train(one, save_every_s=0.0) == train(other)
    assert_equal(one, other)


class Cut(BaseException):
    """What a signal's handler may raise anywhere."""


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Updates, "_generator_gradients", 6),  # before anything changed
        (Updates, "_discriminator_gradients", 2),  # the generator has stepped
        (TrainState, "average", 6),  # all has changed, and the step is counted
    ],
)
def test_a_step_cut_in_two_is_never_gone_on_from(
    *,
    cache: PairCache,
    tmp_path: Path,
    owner: type,
    name: str,
    call: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = trainer(cache, GAN, tmp_path / "whole")
    wanted = train(whole)
    done: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def cut(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Cut
        return done(*arguments, **options)

    subject = trainer(cache, GAN, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, cut)
        with pytest.raises(Cut):
            train(subject, save_every_s=0.0)
    again = trainer(cache, GAN, tmp_path / "run")
    assert again.state.step == 5
    assert train(again) == wanted[5:]
    assert_equal(again, whole)


def test_an_error_between_steps_saves_what_is_done(cache: PairCache, tmp_path: Path) -> None:
    def fail(report: Report) -> None:
        if report.step == 4:
            raise Cut

    with pytest.raises(Cut):
        trainer(cache, GAN, tmp_path / "run").run(on_report=fail, report_every=1)
    again = trainer(cache, GAN, tmp_path / "run")
    assert again.state.step == 4
    whole = train(trainer(cache, GAN, tmp_path / "whole"))
    assert train(again) == whole[4:]


def test_another_number_of_workers_changes_nothing(cache: PairCache, tmp_path: Path) -> None:
    """They map the pictures' files anew, as processes that were not forked must."""
    one = trainer(cache, GAN, tmp_path / "one")
    other = trainer(cache, GAN, tmp_path / "other", workers=2)
    assert train(other) == train(one)
    assert_equal(other, one)


# What is saved.


def test_a_failing_save_keeps_the_states_before(
    cache: PairCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    subject = trainer(cache, PIXEL, run)
    train(subject, stop=lambda: subject.state.step >= 3)
    before = {name: (run / name).read_bytes() for name in ("last.pth", "previous.pth")}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            train(trainer(cache, PIXEL, run))
    assert {name: (run / name).read_bytes() for name in before} == before
    assert {path.name for path in run.iterdir()} == {*before, "metrics.jsonl"}
    again = trainer(cache, PIXEL, run)
    assert again.state.step == 3
    train(again)
    whole = trainer(cache, PIXEL, tmp_path / "whole")
    train(whole)
    assert_equal(again, whole)


def test_a_kill_between_the_two_renames(cache: PairCache, tmp_path: Path) -> None:
    subject = trainer(cache, PIXEL, tmp_path)
    train(subject, stop=lambda: subject.state.step >= 3)
    os.replace(tmp_path / "last.pth", tmp_path / "previous.pth")
    (tmp_path / ".last.pth.1234-deadbeef.partial").write_bytes(b"half")
    again = trainer(cache, PIXEL, tmp_path)
    assert again.state.step == 3
    assert again.take_notes() == []


def test_what_a_killed_process_left_is_swept(cache: PairCache, tmp_path: Path) -> None:
    left, young, foreign = (
        tmp_path / name
        for name in (
            *(".last.pth.1234-deadbeef.partial", ".last.pth.1235-deadbeef.partial"),
            "x.partial",
        )
    )
    for path in (left, young, foreign):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    train(trainer(cache, with_stage(PIXEL, steps=1), tmp_path))
    assert (left.exists(), young.exists(), foreign.exists()) == (False, True, True)


def _odd_states(path: Path) -> list[bytes]:
    content, payload = path.read_bytes(), torch.load(path, weights_only=True)
    found = [b"", b"junk", content[: len(content) // 2]]
    for odd in (
        {"a": 1},
        [1],
        {**payload, "format": 99},
        {**payload, "stage": 99},
        {key: each for key, each in payload.items() if key != "ema"},
        {**payload, "generator": {}},
        {**payload, "optimizer": {}},
        {**payload, "torch_rng": torch.zeros(3)},
        {**payload, "history": 3},
    ):
        torch.save(odd, path)
        found.append(path.read_bytes())
    path.write_bytes(content)
    return found


def test_a_damaged_state_gives_way_to_the_one_before(cache: PairCache, tmp_path: Path) -> None:
    whole = trainer(cache, GAN, tmp_path / "whole")
    train(whole)
    run = tmp_path / "run"
    for point in (3, 6):  # in either stage
        subject = trainer(cache, GAN, run)
        train(subject, stop=lambda subject=subject, point=point: subject.state.step >= point)
    last, previous = (run / name for name in ("last.pth", "previous.pth"))
    good, before = last.read_bytes(), previous.read_bytes()
    assert torch.load(previous, weights_only=True)["step"] == 4  # the border
    for odd in _odd_states(last):
        last.write_bytes(odd)
        subject = trainer(cache, GAN, run)
        assert subject.state.step == 4
        (note,) = subject.take_notes()
        assert "last.pth is " in note
        assert note.endswith(": going on from previous.pth")
    train(subject)
    assert_equal(subject, whole)
    for odd in (b"junk", None):
        last.write_bytes(b"junk")
        previous.unlink(missing_ok=True) if odd is None else previous.write_bytes(odd)
        with pytest.raises(TrainError, match=r"last\.pth is .*remove it to start anew") as caught:
            trainer(cache, GAN, run)
        assert "\n" not in str(caught.value)
    last.write_bytes(good)
    previous.write_bytes(before)
    assert trainer(cache, GAN, run).state.step == 6


def test_states_of_other_recipes(cache: PairCache, tmp_path: Path) -> None:
    subject = trainer(cache, GAN, tmp_path)
    train(subject, stop=lambda: subject.state.step >= 5)
    for chosen, words in (
        (with_losses(GAN, gan_weight=0.5), r"another recipe \(stages differ\)"),
        (dataclasses.replace(GAN, data=dataclasses.replace(GAN.data, batch=1)), r"\(data differ\)"),
        (dataclasses.replace(GAN, stages=GAN.stages[:1]), r"\(stages differ\)"),
    ):
        with pytest.raises(TrainError, match=words):
            trainer(cache, chosen, tmp_path)
    longer = trainer(cache, with_stage(GAN, steps=8), tmp_path)
    assert longer.state.step == 5
    assert len(train(longer)) == 7
    payload = torch.load(tmp_path / "last.pth", weights_only=True)
    for odd in (None, {"stages": 3}):
        torch.save({**payload, "recipe": odd}, tmp_path / "last.pth")
        with pytest.raises(TrainError, match="another recipe"):
            trainer(cache, GAN, tmp_path)


def test_a_state_that_would_execute_something_is_refused(cache: PairCache, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(canary),)

    torch.save({"format": 2, "x": Evil()}, tmp_path / "last.pth")
    with pytest.raises(TrainError, match="is damaged"):
        trainer(cache, PIXEL, tmp_path)
    assert not canary.exists()


def test_it_holds_everything(cache: PairCache, tmp_path: Path) -> None:
    subject = trainer(cache, GAN, tmp_path)
    train(subject)
    kinds = {name.split("/")[1] for name in contents(subject)}
    assert kinds >= {
        *("generator", "ema", "optimizer", "discriminator", "discriminator_optimizer"),
        *("torch_rng", "stage", "step", "stage_start", "rate_factor", "parts"),
    }
    assert {path.name for path in tmp_path.glob("*.pth")} == {"last.pth", "previous.pth"}


# The average.


def test_the_average_starts_quickly_and_ends_slowly() -> None:
    assert [ema_decay_at(step, 0.999) for step in (0, 8)] == [0.1, 0.5]
    assert ema_decay_at(10**6, 0.999) == 0.999
    ramp = [ema_decay_at(step, 0.999) for step in range(20_000)]
    assert ramp == sorted(ramp)

    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    state = TrainState.start(network, PIXEL, make_discriminator=lambda stage: nn.Identity())
    start = {name: value.clone() for name, value in state.ema.state_dict().items()}
    with torch.no_grad():
        for value in network.state_dict().values():
            value += 1
    state.step = 8
    state.average(0.999)
    for name, value in state.ema.state_dict().items():
        moved = 1 if name.endswith("num_batches_tracked") else 0.5
        torch.testing.assert_close(value, start[name] + torch.tensor(moved, dtype=value.dtype))
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())


def test_a_stage_begins_from_the_average_with_all_else_fresh(
    cache: PairCache, tmp_path: Path
) -> None:
    subject = trainer(cache, GAN, tmp_path)
    train(subject, stop=lambda: subject.state.step >= 4)
    ema = {name: value.clone() for name, value in subject.state.ema.state_dict().items()}
    trained = subject.state.generator.state_dict()
    assert not all(torch.equal(value, ema[name]) for name, value in trained.items())
    assert subject.state.discriminator is None
    subject.next_stage()
    state = subject.state
    for name, value in state.generator.state_dict().items():
        assert torch.equal(value, ema[name])
    assert (state.stage, state.stage_step, state.step) == (1, 0, 4)
    assert state.optimizer.state_dict()["state"] == {}
    assert state.discriminator is not None
    assert state.discriminator_optimizer is not None
    assert state.discriminator_optimizer.param_groups[0]["base_rate"] == 2e-3
    assert state.optimizer.param_groups[0]["base_rate"] == 1e-3


# What it takes care of.


def _when(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor, Tensor], Tensor | None]
) -> None:
    """Let `spoil(loss, made)` change the generator's loss."""
    whole = Objective.generator

    def changed(self: Objective, made: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = whole(self, made, **options)
        other = spoil(loss, made)
        if other is None:
            return loss, terms
        return other, {**terms, "l1": other.detach()}

    monkeypatch.setattr(Objective, "generator", changed)


@pytest.mark.parametrize("how", ["nan", "infinite", "gradient"])
def test_a_loss_that_is_not_finite(
    cache: PairCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Back to what was saved, with half of the rate; also when only gradients are not finite."""
    subject = trainer(cache, PIXEL, tmp_path / "run")
    train(subject, stop=lambda: subject.state.step >= 5)
    saved = contents(subject)
    subject = trainer(cache, PIXEL, tmp_path / "run")
    state = subject.state
    seen: list[int] = []

    def spoil(loss: Tensor, made: Tensor) -> Tensor | None:
        if state.step == 5 and len(seen) == 1:  # just restored
            now = contents(subject)
            assert all(
                torch.equal(now[name], each) if torch.is_tensor(each) else now[name] == each
                for name, each in saved.items()
                if not name.endswith(("/lr", "rate_factor"))
            )
        if state.step != 8 or seen:
            return None
        seen.append(1)
        if how == "gradient":  # of a finite value, the root's is infinite
            return loss + (0.0 * made).sum().sqrt()
        return loss * (math.nan if how == "nan" else math.inf)

    with monkeypatch.context() as patched:
        _when(patched, spoil)
        train(subject)
    assert state.step == 12
    assert state.rate_factor == 0.5
    (note,) = subject.take_notes()
    assert "NaN or infinite" in note
    assert "at step 8: back to step 5, with 0.5 of the rate" in note
    told = rows(tmp_path / "run")
    assert [row["step"] for row in told] == [*range(1, 9), *range(6, 13)]
    wanted = 0.5 * 5e-3 * rate_at(subject.stage, step=5, progress=5 / 12)
    assert told[8]["learning_rate"] == pytest.approx(wanted)
    assert all(torch.isfinite(value).all() for value in state.ema.state_dict().values())
    assert trainer(cache, PIXEL, tmp_path / "run").state.rate_factor == 0.5


def test_a_loss_that_stays_not_finite(
    cache: PairCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two tries it goes back further; in the end it gives up, and keeps the good state."""
    for point in (3, 5):
        subject = trainer(cache, PIXEL, tmp_path)
        train(subject, stop=lambda subject=subject, point=point: subject.state.step >= point)
    kept = (tmp_path / "last.pth").read_bytes()
    subject = trainer(cache, PIXEL, tmp_path)
    _when(monkeypatch, lambda loss, made: loss * math.nan if subject.state.step == 6 else None)
    with pytest.raises(TrainError, match=r"at step 6, 6 times over.*lower the learning rate"):
        train(subject)
    notes = subject.take_notes()
    assert [note.partition("back to ")[2].partition(",")[0] for note in notes] == [
        *("step 5", "step 5", "step 3", "step 3", "step 3")
    ]
    assert notes[-1].endswith("with 0.03125 of the rate")
    assert (tmp_path / "last.pth").read_bytes() == kept
    assert trainer(cache, PIXEL, tmp_path).state.step == 5


def test_a_discriminator_whose_loss_is_not_finite(
    cache: PairCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator has stepped by then: it goes back, too."""
    whole, calls = Objective.discriminator, []

    def spoiled(*arguments: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(1)
        loss, terms = whole(*arguments, **options)
        if len(calls) != 3:
            return loss, terms
        return loss * math.nan, {**terms, "d": loss.detach() * math.nan}

    monkeypatch.setattr(Objective, "discriminator", spoiled)
    subject = trainer(cache, GAN, tmp_path)
    train(subject)
    assert "back to step 4" in subject.take_notes()[0]
    assert subject.state.step == 10


def _full(monkeypatch: pytest.MonkeyPatch, *, most: dict[str, int]) -> None:
    """The memory holds so many samples: of the generator's half of a step, and the other's."""
    for name, limit in most.items():
        half = getattr(Objective, name)

        def limited(
            self: Objective, first: Any, *, half: Any = half, limit: int = limit, **options: Any
        ) -> Any:
            size = len(options["truth"])
            if size > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
            return half(self, first, **options)

        monkeypatch.setattr(Objective, name, limited)


# Batch normalisation cannot learn from a single value.
WIDE = dataclasses.replace(
    with_stage(GAN, discriminator={"kind": "srgan", "channels": 2, "hidden": 8, "norm": False}),
    data=dataclasses.replace(GAN.data, batch=8),
)


@pytest.mark.parametrize(
    ("most", "parts"),
    [
        ({"generator": 8, "discriminator": 2}, 4),
        ({"generator": 1, "discriminator": 8}, 8),
        ({"generator": 3, "discriminator": 1}, 8),
    ],
)
def test_a_full_memory_means_smaller_parts(
    *,
    cache: PairCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: dict[str, int],
    parts: int,
) -> None:
    steps: list[Any] = []
    step = torch.optim.Adam.step

    def count(self: torch.optim.Adam, *arguments: Any) -> Any:
        steps.append(self)
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        _full(patched, most=most)
        patched.setattr(torch.optim.Adam, "step", count)
        subject = trainer(cache, WIDE, tmp_path / "run")
        losses = train(subject)
    assert subject.state.parts == parts
    notes = [note for note in subject.take_notes() if "memory" in note]
    assert notes[-1] == f"the memory was full: batches in {parts} parts from now on"
    # 10 steps of the generator, by two optimizers, and 6 of the discriminator: none twice.
    assert [steps.count(each) for each in dict.fromkeys(steps)] == [4, 6, 6]
    again = trainer(cache, WIDE, tmp_path / "run")
    assert again.state.parts == parts  # what was learned is kept
    whole = train(trainer(cache, WIDE, tmp_path / "whole"))
    for mine, wanted in zip(losses, whole, strict=True):
        assert mine == pytest.approx(wanted, rel=1e-4)


def test_a_memory_that_cannot_hold_one_sample(
    cache: PairCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _full(monkeypatch, most={"generator": 0})
    with pytest.raises(torch.OutOfMemoryError):
        train(trainer(cache, WIDE, tmp_path))


def test_other_errors_are_not_taken_for_a_full_memory(
    cache: PairCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fail(loss: Tensor, made: Tensor) -> Tensor:
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    _when(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="illegal"):
        train(trainer(cache, WIDE, tmp_path))
    assert len(calls) == 1


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_give_the_gradient_of_the_whole(cache: PairCache, tmp_path: Path, parts: int) -> None:
    """By plain SGD without clipping the weights move by the gradient."""
    chosen = with_stage(
        dataclasses.replace(PIXEL, data=dataclasses.replace(PIXEL.data, batch=8)),
        optimizer="sgd",
        momentum=0.0,
        learning_rate=1.0,
        clip_norm=0.0,
        warmup_steps=0,
        decay="constant",
    )
    moved: list[list[Tensor]] = []
    for accumulate in (1, parts):
        subject = trainer(cache, chosen, tmp_path / str(accumulate), accumulate=accumulate)
        before = [each.detach().clone() for each in subject.state.generator.parameters()]
        subject.take_steps(1)
        after = subject.state.generator.parameters()
        moved.append([now.detach() - then for now, then in zip(after, before, strict=True)])
    assert max(float(each.abs().max()) for each in moved[0]) > 1e-3
    for mine, wanted in zip(moved[1], moved[0], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-7)


def test_gradients_are_clipped(cache: PairCache, tmp_path: Path) -> None:
    for clip_norm in (1e-3, 1e-4):
        chosen = with_stage(
            PIXEL,
            optimizer="sgd",
            momentum=0.0,
            learning_rate=1.0,
            clip_norm=clip_norm,
            warmup_steps=0,
            decay="constant",
        )
        subject = trainer(cache, chosen, tmp_path / str(clip_norm))
        before = [each.detach().clone() for each in subject.state.generator.parameters()]
        subject.take_steps(1)
        after = subject.state.generator.parameters()
        moved = [now.detach() - then for now, then in zip(after, before, strict=True)]
        length = math.sqrt(sum(float(each.square().sum()) for each in moved))
        assert length == pytest.approx(clip_norm, rel=1e-2)


def test_a_stage_without_progress_ends(
    cache: PairCache, pairs: list[ValidationPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([20.0, 21.0, 21.0, 20.5, 10.0, 9.0, 8.0])
    monkeypatch.setattr(loop, "validate", lambda *arguments, **options: next(measured))
    chosen = dataclasses.replace(
        GAN, stages=tuple(dataclasses.replace(stage, steps=50) for stage in GAN.stages)
    )
    subject = trainer(cache, chosen, tmp_path, validation=pairs)
    subject.run(on_report=lambda report: None, patience=2, validate_every=3)
    assert [row["step"] for row in rows(tmp_path)] == [3, 6, 9, 12, 15, 18, 21]
    assert [row["stage"] for row in rows(tmp_path)] == ["pixel"] * 4 + ["gan"] * 3
    assert subject.take_notes() == [
        "stage pixel ends at step 12: 2 validations without more than 21.000 dB",
        "stage gan ends at step 21: 2 validations without more than 10.000 dB",
    ]
    again = trainer(cache, chosen, tmp_path, validation=pairs)
    assert (again.state.step, again.state.history) == (21, [10.0, 9.0, 8.0])
    again.run(on_report=lambda report: pytest.fail("it is done"), patience=2)


class Clock:
    """Time that passes only while batches are computed: 0.1 s each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        whole = Updates.run

        def run(updates: Updates, batch: Any) -> Any:
            self.now_s += 0.1
            return whole(updates, batch)

        monkeypatch.setattr(Updates, "run", run)
        monkeypatch.setattr(loop.time, "monotonic", lambda: self.now_s)


def test_minutes_instead_of_steps(
    cache: PairCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages share the time as they share the steps, in one go or in several."""
    Clock(monkeypatch)
    chosen = with_stage(with_stage(GAN, steps=6), warmup_steps=500)
    whole = trainer(cache, chosen, tmp_path / "whole", minutes=5.0 / 60.0)
    train(whole)
    told = rows(tmp_path / "whole")
    assert [row["stage"] for row in told] == ["pixel"] * 20 + ["gan"] * 30
    assert (told[-1]["progress"], whole.progress) == (1.0, 1.0)
    assert whole.state.elapsed_s == pytest.approx(5.0)
    assert told[-1]["learning_rate"] < 0.02e-3  # the cosine ends with the time …
    # … and the warm-up, though of more steps than there are, within a quarter of it.
    assert max(row["learning_rate"] for row in told if row["stage"] == "gan") > 0.8e-3
    for point in (7, 20, 33, 999):
        subject = trainer(cache, chosen, tmp_path / "run", minutes=5.0 / 60.0)
        train(subject, stop=lambda subject=subject, point=point: subject.state.step >= point)
    assert_equal(subject, whole)


def test_reports_are_means_since_the_last(cache: PairCache, tmp_path: Path) -> None:
    every = [each["l1"] for each in train(trainer(cache, PIXEL, tmp_path / "one"))]
    third = [each["l1"] for each in train(trainer(cache, PIXEL, tmp_path / "two"), report_every=3)]
    assert third == pytest.approx([np.mean(every[k : k + 3]) for k in range(0, 12, 3)], rel=1e-6)


def test_metrics_that_were_torn(cache: PairCache, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    train(trainer(cache, with_stage(PIXEL, steps=2), tmp_path))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[1] == '{"step": 2, "lo'
    assert [json.loads(line)["step"] for line in lines[2:]] == [1, 2]


def test_previews_come_first_at_validations_and_at_the_end(
    cache: PairCache, tmp_path: Path
) -> None:
    seen: list[int] = []
    subject = trainer(cache, PIXEL, tmp_path)
    subject.run(
        on_report=lambda report: None,
        on_preview=lambda trainer: seen.append(trainer.state.step),
        validate_every=5,
    )
    assert seen == [0, 5, 10, 12, 12]


# Number formats and processes.


def _half(cache: PairCache, folder: Path) -> Trainer:
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[Autocast("16-mixed", "cpu")])
    return trainer(cache, GAN, folder, fabric=fabric)


def test_fp16_scales_its_losses(cache: PairCache, tmp_path: Path) -> None:
    """Clipped after unscaling, skipped when it overflows, and gone on from bit for bit."""
    whole = _half(cache, tmp_path / "whole")
    scaler = whole.state.scaler
    assert scaler is not None
    losses = train(whole)
    assert all(math.isfinite(value) for each in losses for value in each.values())
    full = [each["l1"] for each in train(trainer(cache, GAN, tmp_path / "full"))[:4]]
    assert [each["l1"] for each in losses[:4]] == pytest.approx(full, rel=0.02)
    for point in (3, 7, 99):
        subject = _half(cache, tmp_path / "run")
        train(subject, stop=lambda subject=subject, point=point: subject.state.step >= point)
    assert_equal(subject, whole)
    payload = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
    assert payload["scaler"]["scale"] == scaler.get_scale() < 2.0**16  # found by overflowing
    # The same run, from now on in another format.
    assert trainer(cache, with_stage(GAN, steps=8), tmp_path / "run").state.step == 10

    overflowing = _half(cache, tmp_path / "overflow")
    assert overflowing.state.scaler is not None
    overflowing.state.scaler.load_state_dict(
        {**overflowing.state.scaler.state_dict(), "scale": 2.0**60}
    )
    before = [each.detach().clone() for each in overflowing.state.generator.parameters()]
    overflowing.take_steps(1)
    after = overflowing.state.generator.parameters()
    assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))
    assert overflowing.state.scaler.get_scale() == 2.0**59


def test_bf16_leaves_pictures_and_residual_sums_alone(cache: PairCache) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[Autocast("bf16-mixed", "cpu")])
    seen: list[torch.dtype] = []

    class Shown(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(input.dtype)
            return input + 1e-4 * super().forward(input)

    module: Any = fabric.setup_module(Shown(3, 3, 1))
    x = torch.full((1, 3, 2, 2), 0.5 + 2.0**-12)
    output = module(x)
    assert seen == [torch.float32]
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, x, rtol=0.0, atol=5e-4)
    assert float((x.bfloat16().float() - x).abs().max()) > 1e-4


def test_who_started_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_JOB_NAME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert processes() == (1, 1)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert processes() == (4, 2)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a shell on a node: nothing was started by srun
    assert processes() == (1, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert processes() == (2, 3)


def test_a_batch_is_shared_evenly() -> None:
    building.check_share(PIXEL, 2)
    with pytest.raises(UsageError, match="batch of 2 cannot be shared by 3 processes"):
        building.check_share(PIXEL, 3)


@pytest.mark.slow
# Its own, while it compiles.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_it_learns_the_same(cache: PairCache, tmp_path: Path) -> None:
    plain = [each["l1"] for each in train(trainer(cache, PIXEL, tmp_path / "plain"))]
    try:
        compiled = train(trainer(cache, PIXEL, tmp_path / "compiled", compile=True))
    except torch._dynamo.exc.BackendCompilerFailed:
        pytest.skip("needs a C++ compiler")
    assert [each["l1"] for each in compiled] == pytest.approx(plain, rel=1e-3)


# What it says beforehand, and on the way.


def test_the_estimate_touches_nothing(cache: PairCache, tmp_path: Path) -> None:
    subject = trainer(cache, GAN, tmp_path)
    train(subject, stop=lambda: subject.state.step >= 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    told = estimate.estimate(trainer(cache, GAN, tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert list(told.seconds) == ["pixel", "gan"]
    for name, left in (("pixel", 2), ("gan", 6)):
        assert told.seconds[name] * told.steps_per_s[name] == pytest.approx(left)
    assert told.peak_bytes is None or 2**26 < told.peak_bytes < 2**40
    assert "pixel 0.00 h at" in str(told)
    timed = estimate.estimate(trainer(cache, GAN, tmp_path / "new", minutes=1.0))
    assert timed.seconds == pytest.approx({"pixel": 24.0, "gan": 36.0})


def _report(real: float, fake: float) -> Report:
    return Report(
        step=1,
        stage="gan",
        progress=0.0,
        elapsed_s=0.0,
        learning_rate=0.0,
        steps_per_s=1.0,
        data_share=0.0,
        losses={},
        d_real=real,
        d_fake=fake,
    )


def _watch(real: float, fake: float, reports: int, **options: Any) -> list[str]:
    stage = GAN.stages[1]
    if "gan" in options:
        stage = with_losses(GAN, gan=options.pop("gan")).stages[1]
    watch = BalanceWatch(stage, number=1, **{"from_start": True, **options})
    report = _report(real, fake)
    return [note for _ in range(reports) if (note := watch.see(report)) is not None]


def test_the_balance_of_the_two_networks_is_watched() -> None:
    (note,) = _watch(0.98, 0.02, 20)
    assert "never deceived (D(real) 0.98, D(fake) 0.02 for 5 reports)" in note
    assert "--set stages.1.discriminator_rate=0.0005" in note
    assert "--set stages.1.losses.gan_weight=0.02" in note
    assert _watch(0.98, 0.02, 4) == []
    assert _watch(0.98, 0.06, 20) == []
    assert _watch(0.94, 0.02, 20) == []
    (note,) = _watch(0.51, 0.49, 20)
    assert "has learned nothing yet" in note
    assert "--set stages.1.discriminator_rate=0.008" in note
    assert _watch(0.51, 0.49, 20, from_start=False) == []
    assert _watch(0.7, 0.4, 20) == []
    # Their logits are no probabilities.
    for gan in ("lsgan", "hinge", "wgan-gp"):
        assert _watch(0.98, 0.02, 20, gan=gan) == _watch(0.5, 0.5, 20, gan=gan) == []
    assert len(_watch(0.98, 0.02, 20, gan="ragan")) == 1


def test_five_in_a_row_are_in_a_row() -> None:
    watch = BalanceWatch(GAN.stages[1], number=1, from_start=True)
    report = _report(0.99, 0.01)
    fakes = [0.01] * 3 + [0.5] + [0.01] * 6
    told = [watch.see(dataclasses.replace(report, d_fake=fake)) for fake in fakes]
    assert [k for k, note in enumerate(told) if note is not None] == [8]


def test_notes_of_the_watch_reach_the_trainer(
    cache: PairCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Objective.discriminator

    def certain(*arguments: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = whole(*arguments, **options)
        return loss, {**terms, "d_real": torch.tensor(0.99), "d_fake": torch.tensor(0.01)}

    monkeypatch.setattr(Objective, "discriminator", certain)
    subject = trainer(cache, GAN, tmp_path)
    train(subject)
    (note,) = subject.take_notes()
    assert "never deceived" in note
    assert rows(tmp_path)[-1]["d_real"] == pytest.approx(0.99)
