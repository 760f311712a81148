"""Training with references: what is drawn, what is shown, what is compared, and the commands."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from training import assert_equal, features, rows, save_picture, train, trainer, waves
from typer.testing import CliRunner

from waifu4x import pictures
from waifu4x.cli.app import app
from waifu4x.errors import UsageError
from waifu4x.model_files import checkpoints
from waifu4x.networks.srntt import SRNTT, SRNTTConfig
from waifu4x.references import matching
from waifu4x.references.reference_inputs import maps_of, match, textures_of
from waifu4x.references.reference_pictures import aligned, read_references
from waifu4x.train import building, recipe
from waifu4x.train.batches import Batches
from waifu4x.train.data import PairCache, open_cache
from waifu4x.train.objectives.textures import TextureLoss, gram
from waifu4x.train.objectives.vgg import VGG19Features
from waifu4x.train.recipe import DataOptions, LossOptions, Recipe, StageOptions
from waifu4x.train.references import referencing, warping
from waifu4x.train.references.reference_batches import (
    ReferenceBatch,
    ReferenceBatches,
    open_batches,
)
from waifu4x.train.references.reference_options import ReferenceOptions
from waifu4x.train.references.reference_pictures import with_references
from waifu4x.train.references.referencing import Showing
from waifu4x.train.references.warping import Warp

torch.set_num_threads(1)

STILL = ReferenceOptions(shift_px=0.0, rotation_deg=0.0, zoom=0.0, brightness=0.0)
LAYERS = ("relu1_1", "relu2_1", "relu3_1")

CROSSNET = Recipe(
    name="tiny-crossnet",
    generator={"network": "crossnet", "channels": 2, "flow_channels": 4, "residual": True},
    data=DataOptions(
        batch=2,
        patch_px=16,
        scales=(4,),
        reference=ReferenceOptions(shift_px=3.0, blank_share=0.25),
    ),
    stages=(
        StageOptions(
            steps=4, learning_rate=1e-3, warmup_steps=0, losses=LossOptions(pixel="charbonnier")
        ),
    ),
)
SRNTT_ALL = Recipe(
    name="tiny-srntt",
    generator={"network": "srntt", "channels": 4, "blocks": 1, "residual": True},
    data=DataOptions(
        batch=2,
        patch_px=8,
        scales=(4,),
        reference=ReferenceOptions(shift_px=6.0, pairs=3, own_maps=True),
    ),
    stages=(
        StageOptions(name="content", steps=2, warmup_steps=0, reference=False),
        StageOptions(
            name="gan",
            steps=4,
            learning_rate=1e-3,
            warmup_steps=0,
            discriminator={"kind": "srntt", "channels": 2, "hidden": 4},
            discriminator_steps=2,
            losses=LossOptions(gan="wgan-gp", gan_weight=1e-3, texture_weight=1.0),
        ),
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        save_picture(place / f"{number}.png", seed=number, size=(84 + 8 * number, 72))
    return place


@pytest.fixture(scope="module")
def cache(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PairCache:
    return open_cache([folder], tmp_path_factory.mktemp("pairs"), scale=4, patch_px=16)


def batches(
    cache: PairCache, *, seed: int = 0, rank: int = 0, world: int = 1, **options: Any
) -> Any:
    data = DataOptions(
        batch=4, patch_px=8, scales=(4,), reference=dataclasses.replace(STILL, **options)
    )
    return open_batches([cache], data, seed=seed, rank=rank, world=world)


def equal(one: ReferenceBatch, other: ReferenceBatch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("x", "truth", "reference")
    )


# -- warps -----------------------------------------------------------------------------------------

PLACE = (slice(10, 30), slice(20, 52))


def test_no_warp_is_the_crop_and_a_whole_shift_the_crop_beside() -> None:
    image = waves(seed=1, size=(80, 60))
    assert np.array_equal(warping.warped(image, PLACE, Warp()), image[10:30, 20:52])
    moved = warping.warped(image, PLACE, Warp(down_px=3.0, right_px=-5.0))
    assert np.array_equal(moved, image[13:33, 15:47])


def test_a_quarter_turn_and_a_doubling_by_hand() -> None:
    image = np.random.default_rng(0).integers(0, 256, (21, 21, 3), dtype=np.uint8)
    place = (slice(5, 16), slice(5, 16))
    turned = warping.warped(image, place, Warp(rotation_deg=90.0))
    assert np.array_equal(turned, np.rot90(image[5:16, 5:16]))
    # Twice as near: every second pixel is one of the picture, around the middle.
    nearer = warping.warped(image, place, Warp(zoom=2.0))
    assert np.array_equal(nearer[1::2, 1::2], image[8:13, 8:13])


def test_brightness_and_borders() -> None:
    image = np.full((12, 12, 3), 200, dtype=np.uint8)
    image[0] = 10
    whole = (slice(0, 12), slice(0, 12))
    brighter = warping.warped(image, whole, Warp(brightness=1.5, down_px=-4.0))
    # Above the picture its first row continues; what is too bright is white.
    assert (brighter[:5] == 15).all()
    assert (brighter[5:] == 255).all()


def test_a_warp_stays_within_its_limits() -> None:
    options = ReferenceOptions(shift_px=4.0, rotation_deg=3.0, zoom=0.1, brightness=0.2)
    drawn = [warping.draw(options, np.random.default_rng(seed)) for seed in range(200)]
    for name, middle, limit in (
        ("down_px", 0.0, 4.0),
        ("right_px", 0.0, 4.0),
        ("rotation_deg", 0.0, 3.0),
        ("zoom", 1.0, 0.1),
        ("brightness", 1.0, 0.2),
    ):
        values = np.array([getattr(warp, name) for warp in drawn]) - middle
        assert np.abs(values).max() <= limit
        assert values.max() > 0.8 * limit
        assert values.min() < -0.8 * limit


@pytest.mark.parametrize(
    "options", [{"shift_px": -1.0}, {"zoom": 1.0}, {"blank_share": 1.5}, {"pairs": -1}], ids=str
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"must|are 0 or more"):
        ReferenceOptions(**options)


# -- batches ---------------------------------------------------------------------------------------


def test_only_recipes_with_references_get_them(cache: PairCache) -> None:
    assert type(open_batches([cache], DataOptions(batch=2, patch_px=8))) is Batches
    assert isinstance(batches(cache), ReferenceBatches)


def test_a_reference_that_is_not_moved_is_the_truth_however_it_is_turned(cache: PairCache) -> None:
    turns = set()
    for step in range(6):
        batch = batches(cache)[step]
        assert torch.equal(batch.reference, batch.truth)
        assert batch.x.shape == (4, 3, 8, 8)
        turns.add(batch.samples)
    assert len(turns) == 6


def test_a_batch_depends_on_seed_and_step_alone(cache: PairCache) -> None:
    options = {"shift_px": 5.0, "rotation_deg": 3.0, "brightness": 0.1, "blank_share": 0.3}
    one, other = batches(cache, **options), batches(cache, **options)
    assert equal(one[7], other[7])
    assert equal(one[3], other[3])
    assert not equal(one[7], one[8])
    assert not equal(one[7], batches(cache, seed=1, **options)[7])
    # Two processes cut out what one does.
    parts = [batches(cache, rank=rank, world=2, **options)[7] for rank in range(2)]
    assert parts[0].samples + parts[1].samples == (28, 30, 29, 31)
    assert torch.equal(parts[1].reference, one[7].reference[1::2])


def test_samples_come_again_only_where_there_are_so_many(cache: PairCache) -> None:
    assert not batches(cache)[0].comes_again
    batch = batches(cache, pairs=6)[0].to(torch.device("cpu")).part(1, 3)
    assert batch.comes_again


def test_some_references_are_blank(cache: PairCache) -> None:
    blank = [
        not bool(r.any())
        for step in range(25)
        for r in batches(cache, blank_share=0.3)[step].reference
    ]
    assert 0.15 < np.mean(blank) < 0.45


def test_pairs_come_again_each_once_before_any_twice(cache: PairCache) -> None:
    subject = batches(cache, shift_px=4.0, pairs=6)
    taken = [sample for step in range(6) for sample in subject[step].samples]
    for start in range(0, 24, 6):
        assert sorted(taken[start : start + 6]) == list(range(6))
    assert taken[:6] != taken[6:12]
    seen: dict[int, torch.Tensor] = {}
    for step in range(6):
        batch = subject[step]
        for number, sample in enumerate(batch.samples):
            first = seen.setdefault(sample, batch.reference[number])
            assert torch.equal(first, batch.reference[number])


def test_with_own_maps_every_batch_comes_twice(cache: PairCache) -> None:
    subject = batches(cache, shift_px=4.0, own_maps=True)
    assert [subject[step].is_own for step in range(4)] == [False, True, False, True]
    assert equal(subject[0], subject[1])
    assert not equal(subject[1], subject[2])


def test_parts_of_a_batch_and_its_way_to_a_device(cache: PairCache) -> None:
    whole = batches(cache, shift_px=4.0)[0]
    part = whole.part(1, 3)
    assert part.samples == whole.samples[1:3]
    assert torch.equal(part.reference, whole.reference[1:3])
    placed = whole.to(torch.device("cpu"))
    assert isinstance(placed, ReferenceBatch)
    torch.testing.assert_close(placed.reference, whole.reference.float() / 255.0)
    assert placed.target is placed.truth


@pytest.fixture
def beside(folder: Path, tmp_path: Path) -> Path:
    """References of another size: the second picture is twice as large, the first as it is."""
    for number, size in enumerate(((84, 72), (184, 144))):
        save_picture(tmp_path / "beside" / f"{number}.png", seed=10 + number, size=size)
    return tmp_path / "beside"


def test_references_of_a_folder(
    cache: PairCache, folder: Path, beside: Path, tmp_path: Path
) -> None:
    given = with_references(cache, (folder,), beside, tmp_path / "cache")
    for number in range(2):
        wanted = pictures.read(beside / f"{number}.png").pixels
        assert np.array_equal(given.reference(number), wanted)
        assert np.array_equal(given.pair(number)[1], cache.pair(number)[1])
    # For the processes that prepare batches.
    sent = pickle.loads(pickle.dumps(given))
    assert np.array_equal(sent.reference(1), given.reference(1))
    made = sorted(path.name for path in (tmp_path / "cache").iterdir())
    with_references(cache, (folder,), beside, tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == made
    (beside / "1.png").unlink()
    with pytest.raises(UsageError, match="has no partners"):
        with_references(cache, (folder,), beside, tmp_path / "cache")


def test_references_of_folders_by_any_spelling(
    cache: PairCache,
    folder: Path,
    beside: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    (tmp_path / "link").symlink_to(folder)
    for spelled in (Path(folder.name), tmp_path / "link"):
        given = with_references(cache, (spelled,), beside, tmp_path / "cache")
        wanted = pictures.read(beside / "1.png").pixels
        assert np.array_equal(given.reference(1), wanted)


def test_references_that_must_lie_upon_their_pictures(
    cache: PairCache, folder: Path, beside: Path, tmp_path: Path
) -> None:
    given = with_references(cache, (folder,), beside, tmp_path / "cache", upon=True)
    # As `upscale` shows it: as large as the picture, whichever its own size is.
    read = read_references([beside / "1.png"])
    wanted, _ = aligned(read, cache.pair(1)[1].shape[:2])
    assert given.reference(1).shape == cache.pair(1)[1].shape
    assert np.abs(given.reference(1) / 255.0 - wanted).max() < 0.51 / 255.0
    place = (slice(40, 72), slice(12, 44))
    part = batches(given, source="folder")._reference(given, 1, place, np.random.default_rng(0))
    assert np.array_equal(part, given.reference(1)[place])
    # The same files as they are have a cache of their own.
    bare = with_references(cache, (folder,), beside, tmp_path / "cache")
    assert bare.reference(1).shape == (144, 184, 3)
    save_picture(beside / "1.png", seed=3, size=(90, 180))
    with pytest.raises(UsageError, match=r"1.png is 90×180 px.*the output's shape"):
        with_references(cache, (folder,), beside, tmp_path / "cache", upon=True)


def test_crops_of_a_folder_lie_where_the_picture_does(
    cache: PairCache, folder: Path, beside: Path, tmp_path: Path
) -> None:
    given = with_references(cache, (folder,), beside, tmp_path / "cache")
    subject = batches(given, source="folder")
    random = np.random.default_rng(0)
    place = (slice(20, 52), slice(12, 44))
    same = subject._reference(given, 0, place, random)
    assert np.array_equal(same, given.reference(0)[place])
    # Of the one that is twice as large, from twice as far.
    larger = subject._reference(given, 1, place, random)
    assert np.array_equal(larger, given.reference(1)[40:72, 24:56])
    # Too small a one is continued.
    small = np.arange(20 * 40 * 3).reshape(20, 40, 3).astype(np.uint8)
    from waifu4x.train.references import reference_batches

    part = reference_batches._cut(small, (72, 84), place, Warp())
    assert part.shape == (32, 32, 3)
    assert np.array_equal(part[:20], small[:, 6:38])
    assert np.array_equal(part[20:], small[::-1][:12, 6:38])


# -- losses, and what is shown ---------------------------------------------------------------------


def test_the_texture_loss_by_hand() -> None:
    vgg = features(LAYERS)
    prediction = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    found = vgg(prediction)
    wanted = [torch.rand_like(found[layer]) for layer in ("relu3_1", "relu2_1", "relu1_1")]
    total = 0.0
    for layer, maps in zip(("relu3_1", "relu2_1", "relu1_1"), wanted, strict=True):
        channels, height, width = found[layer].shape[1:]
        differences = [
            np.einsum("chw,dhw->cd", *2 * [a.double().numpy()])
            - np.einsum("chw,dhw->cd", *2 * [b.double().numpy()])
            for a, b in zip(found[layer], maps, strict=True)
        ]
        total += np.mean(np.square(differences)) / (4.0 * (height * width * channels) ** 2)
    loss = TextureLoss(vgg)(prediction, wanted)
    assert float(loss) == pytest.approx(total / 3.0, rel=1e-4)
    assert float(TextureLoss(vgg)(prediction, [found[each] for each in LAYERS[::-1]])) == 0.0
    with pytest.raises(ValueError, match="without"):
        TextureLoss(features(("relu1_1",)))


def test_where_nothing_was_found_textures_count_more() -> None:
    vgg = features(LAYERS)
    prediction = torch.rand(1, 3, 16, 16)
    found = vgg(prediction)
    wanted = [torch.rand_like(found[layer]) for layer in LAYERS[::-1]]
    loss = TextureLoss(vgg, by_similarity=True)
    values = [float(loss(prediction, wanted, torch.full((1, 1, 4, 4), s))) for s in (0.0, 0.1, 1.0)]
    plain = float(TextureLoss(vgg)(prediction, wanted))
    # Features are multiplied, so their products are by the square, and the loss by its square.
    for value, similarity in zip(values, (0.0, 0.1, 1.0), strict=True):
        share = 1.0 / (1.0 + np.exp(20.0 * similarity - 0.65))
        assert value == pytest.approx(plain * share**4, rel=1e-3)
    torch.testing.assert_close(
        gram(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]))[0],
        torch.tensor([[5.0, 3.0], [3.0, 9.0]]),
    )


def piece(**changes: Any) -> ReferenceBatch:
    values = {
        "x": torch.rand(2, 3, 6, 6),
        "truth": torch.rand(2, 3, 24, 24),
        "reference": torch.rand(2, 3, 24, 24),
        "samples": (4, 9),
    }
    values["target"] = values["truth"]
    return ReferenceBatch(**{**values, **changes})


def small_srntt() -> SRNTT:
    torch.manual_seed(0)
    return SRNTT(SRNTTConfig(channels=4, blocks=1, residual=True)).train()


@torch.no_grad()
def test_what_srntt_is_shown_of_a_batch() -> None:
    network, batch = small_srntt(), piece()
    show = Showing(network, with_reference=True)
    shown = show(batch)
    assert shown.inputs[0] is batch.x
    assert shown.inputs[1] is shown.maps
    assert shown.maps is not None
    for number in range(2):
        textures = textures_of(network, [batch.reference[number]])
        matches = match(network, batch.x[number], textures)
        for found, wanted in zip(shown.maps, maps_of(textures, matches), strict=True):
            assert torch.equal(found[number], wanted[0])
        assert shown.similarity is not None
        assert torch.equal(shown.similarity[number, 0], matching.similarity_map(matches))
    assert network.training
    assert int(network.content.bn_mid.num_batches_tracked or 0) == 0
    own = show(dataclasses.replace(batch, is_own=True))
    assert own.maps is not None
    for found, wanted in zip(own.maps, network.texture(batch.truth), strict=True):
        assert torch.equal(found, wanted)
    assert own.similarity is not None
    assert bool((own.similarity == 1.0).all())
    assert Showing(network, with_reference=False)(batch).inputs == (batch.x,)


def test_a_reference_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    original = referencing.reference_inputs.match

    def counted(*arguments: Any) -> Any:
        searched.append(1)
        return original(*arguments)

    monkeypatch.setattr(referencing.reference_inputs, "match", counted)
    show = Showing(small_srntt(), with_reference=True)
    batch = piece(comes_again=True)
    first, again = show(batch), show(batch.part(1, 2))
    assert len(searched) == 2
    assert first.maps is not None
    assert again.maps is not None
    assert torch.equal(first.maps[2][1:], again.maps[2])
    show(dataclasses.replace(batch, samples=(4, 10)))
    assert len(searched) == 3


def test_only_what_is_asked_for_again_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    show = Showing(small_srntt(), with_reference=True)
    for number in range(3):
        show(piece(samples=(2 * number, 2 * number + 1)))
    assert kept_bytes(show) == 0
    show(piece(samples=(0, 1), comes_again=True))
    # Of 6 x 6 positions 4 x 4 patches: where each was found, and how similar it is.
    assert kept_bytes(show) == 2 * 16 * (4 + 4)
    monkeypatch.setattr(referencing, "_MOST_KEPT_BYTES", 3 * 128)
    for number in range(1, 4):
        show(piece(samples=(2 * number, 2 * number + 1), comes_again=True))
    assert kept_bytes(show) == 3 * 128


def kept_bytes(show: Showing) -> int:
    kept = vars(show)["_kept"].values()
    tensors = [each for one in kept for each in vars(one).values() if torch.is_tensor(each)]
    return sum(each.untyped_storage().nbytes() for each in tensors)


def test_srntt_begins_with_the_vgg_that_is_given() -> None:
    def other(layers: Sequence[str]) -> VGG19Features:
        return VGG19Features(layers)

    network: Any = building.begin(SRNTT_ALL, None, features)
    for key, value in features(LAYERS).state_dict().items():
        assert torch.equal(network.texture.state_dict()[key], value)
    again: Any = building.begin(SRNTT_ALL, network.state_dict(), features)
    assert torch.equal(again.content.conv_in.weight, network.content.conv_in.weight)
    with pytest.raises(UsageError, match="--init was trained with another VGG-19"):
        building.begin(SRNTT_ALL, network.state_dict(), other)


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [CROSSNET, SRNTT_ALL], ids=lambda chosen: chosen.name)
def test_a_run_goes_on_bit_for_bit(chosen: Recipe, cache: PairCache, tmp_path: Path) -> None:
    whole = trainer(cache, chosen, tmp_path / "whole")
    losses = train(whole)
    assert len(losses) == chosen.steps
    assert all(np.isfinite(list(each.values())).all() for each in losses)
    part = trainer(cache, chosen, tmp_path / "part")
    stop_at = 3
    train(part, stop=lambda: int(part.state.step >= stop_at))
    later = trainer(cache, chosen, tmp_path / "part")
    assert later.state.step == stop_at
    train(later)
    assert_equal(later, whole)


def test_each_stage_trains_its_part(cache: PairCache, tmp_path: Path) -> None:
    subject = trainer(cache, SRNTT_ALL, tmp_path)
    network: Any = subject.state.generator
    before = {name: value.clone() for name, value in network.state_dict().items()}
    changed: list[set[str]] = []

    def note(_: Any) -> None:
        now = network.state_dict()
        names = {
            name.partition(".")[0]
            for name, value in before.items()
            if not torch.equal(now[name], value)
        }
        changed.append(names)

    subject.run(on_report=note, report_every=1, stop=lambda: int(subject.state.step >= 2))
    assert changed[-1] == {"content"}
    subject.next_stage()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses: list[dict[str, float]] = []
    subject.run(
        on_report=lambda report: (note(report), losses.append(report.losses)), report_every=1
    )
    assert changed[-1] == {"transfer"}
    assert losses[0].keys() == {"l1", "texture", "gan", "d"}
    for part in ("content", "texture"):
        own = getattr(network, part).state_dict()
        averaged = getattr(subject.state.ema, part).state_dict()
        assert all(torch.equal(own[key], averaged[key]) for key in own)


def test_the_discriminator_may_take_more_steps(cache: PairCache, tmp_path: Path) -> None:
    subject = trainer(cache, SRNTT_ALL, tmp_path)
    subject.next_stage()
    subject.take_steps(1)
    steps = [
        {int(each["step"]) for each in optimizer.state.values()}
        for optimizer in (subject.state.optimizer, subject.state.discriminator_optimizer)
        if optimizer is not None
    ]
    assert steps == [{1}, {2}]


@torch.no_grad()
def test_validation_shows_the_truth_from_beside(cache: PairCache, tmp_path: Path) -> None:
    from waifu4x.train.validation import ValidationPair, enlarge

    subject = trainer(cache, CROSSNET, tmp_path)
    hr = waves(seed=3, size=(72, 40))
    reference = referencing.reference_for(hr, CROSSNET.data.reference)
    assert reference is not None
    assert reference.shape == hr.shape
    assert (reference != hr).any()
    assert np.array_equal(reference, referencing.reference_for(hr, CROSSNET.data.reference))
    assert referencing.reference_for(hr, None) is None
    lr = hr[::4, ::4]
    made = enlarge(subject.state.ema, lr, scale=4, fabric=subject.fabric, reference=reference)
    assert made.shape == hr.shape
    blank = np.zeros_like(reference)
    other = enlarge(subject.state.ema, lr, scale=4, fabric=subject.fabric, reference=blank)
    assert (made != other).any()
    subject.validation = (ValidationPair(name="a", scale=4, lr=lr, hr=hr),)
    assert 5.0 < subject.validate() < 60.0


# -- recipes and the command -----------------------------------------------------------------------


def changed(chosen: Recipe, **data: Any) -> Recipe:
    return dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, **data))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (changed(CROSSNET, reference=None), "needs references"),
        (changed(CROSSNET, patch_px=12), "crops of 64 px or more, in steps of 64, not 48"),
        (changed(CROSSNET, scales=(2, 4)), "is trained for one scale"),
        (changed(SRNTT_ALL, patch_px=2), "crops of 3 px or more"),
        (changed(CROSSNET, reference=ReferenceOptions(own_maps=True)), "own_maps is for srntt"),
        (
            dataclasses.replace(CROSSNET, stages=(StageOptions(reference=False),)),
            "needs its reference in every stage",
        ),
        (
            dataclasses.replace(
                CROSSNET, stages=(StageOptions(losses=LossOptions(texture_weight=1.0)),)
            ),
            "a texture loss is for srntt",
        ),
        (
            dataclasses.replace(
                SRNTT_ALL,
                stages=(StageOptions(reference=False, losses=LossOptions(texture_weight=1.0)),),
            ),
            "a texture loss needs the reference",
        ),
        (changed(recipe.load("fast"), reference=STILL), "takes no references"),
    ],
)
def test_recipes_that_make_no_sense(chosen: Recipe, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        building.check(chosen)


def test_several_processes_cannot_train_srntt() -> None:
    building.check_share(CROSSNET, 2)
    with pytest.raises(UsageError, match="srntt is trained by one process"):
        building.check_share(SRNTT_ALL, 2)


@pytest.mark.parametrize("name", ["crossnet", "srntt", "srntt-l2"])
def test_recipes_as_they_ship_can_be_built(name: str) -> None:
    chosen = recipe.load(name)
    building.check(chosen)
    assert recipe.from_facts(chosen.facts()) == chosen


@pytest.fixture(scope="module")
def vgg_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = VGG19Features(["relu3_1"])
        for layer in network.features.values():
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight)
    path = tmp_path_factory.mktemp("vgg") / "vgg19.safetensors"
    save_file({key: value.half() for key, value in network.state_dict().items()}, path)
    return path


_SMALL = {
    "crossnet": {"generator.channels": "2", "generator.flow_channels": "4", "data.patch_px": "16"},
    "srntt": {
        "generator.channels": "4",
        "generator.blocks": "1",
        "data.patch_px": "8",
        "stages.2.losses.content": "{ relu2_2 = 1.0 }",
        "stages.2.discriminator.channels": "2",
        "stages.2.discriminator.hidden": "4",
    },
}


@pytest.mark.parametrize("name", _SMALL)
def test_end_to_end(
    name: str, folder: Path, vgg_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    for number in range(2):
        size = (84 + 8 * number, 72)
        save_picture(tmp_path / "beside" / f"{number}.png", seed=10 + number, size=size)
    settings = {"data.batch": "2", **_SMALL[name]}
    arguments = [
        *("train", folder.name, "--recipe", name, "--name", "own"),
        *(f"--set={place}={value}" for place, value in settings.items()),
        *("--references", str(tmp_path / "beside"), "--vgg", str(vgg_path)),
        *("--steps", "4", "--report-every", "1", "--precision", "fp32", "--device", "cpu"),
        *("--out", str(tmp_path / "run")),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]
    model = checkpoints.load(tmp_path / "run" / "own.safetensors")
    assert model.architecture == name
    assert model.reference != "none"
    small = save_picture(tmp_path / "small.png", seed=9, size=(12, 10))
    reference = save_picture(tmp_path / "reference.png", seed=9, size=(48, 40))
    used = CliRunner().invoke(
        app,
        ["upscale", str(small), "-m", "own", "-s", "4", "--reference", str(reference)],
    )
    assert used.exit_code == 0, used.stderr
    assert pictures.read(tmp_path / "small_own_4x.png").pixels.shape == (40, 48, 3)
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "fast", "--references", "."], "takes no references"),
        (["--recipe", "crossnet", "--references", "nowhere"], "no such folder of pictures"),
        (
            ["--recipe", "crossnet", "--set", "data.reference.source=folder"],
            "takes references from a folder: give it by --references",
        ),
    ],
)
def test_commands_that_make_no_sense(folder: Path, arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["train", str(folder), *arguments])
    assert done.exit_code == 2
    assert words in done.stderr


def test_the_references_of_shown_pictures_are_bicubic_ones_twice_interpolated() -> None:
    """A shift by a half pixel is by the kernel of `resample`: -1, 9, 9, -1 sixteenths."""
    row = np.array([0, 0, 160, 80, 0, 0, 0, 0], dtype=np.uint8)
    image = np.repeat(np.repeat(row[None, :, None], 6, axis=0), 3, axis=2)
    half = warping.warped(image, (slice(0, 6), slice(0, 8)), Warp(right_px=0.5))
    wanted = functional.conv1d(
        torch.from_numpy(np.pad(row, (1, 2), mode="edge")).view(1, 1, -1).float(),
        torch.tensor([[[-1.0, 9.0, 9.0, -1.0]]]) / 16.0,
    )
    assert np.array_equal(half[3, :, 0], wanted.round().clamp(0, 255).numpy()[0, 0])
