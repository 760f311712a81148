"""Enlarging by a reference: windows, what fits and what does not, and the commands."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from training import save_picture, waves
from typer.testing import CliRunner

from waifu4x import pictures, provenance, streaming
from waifu4x.bench import references as bench_references
from waifu4x.cli.app import app
from waifu4x.errors import NumericsError, PictureReadError, UsageError
from waifu4x.exporting import export
from waifu4x.model_files import checkpoints
from waifu4x.model_files.model_facts import Model
from waifu4x.models import open_upscaler
from waifu4x.networks.crossnet import CrossNet, CrossNetConfig
from waifu4x.networks.srntt import SRNTT, SRNTTConfig
from waifu4x.pictures import Picture
from waifu4x.references import matching, reference_inputs
from waifu4x.references.reference import ReferenceRunner, ReferenceUpscaler
from waifu4x.references.reference_pictures import (
    NO_REFERENCES,
    References,
    aligned,
    read_references,
)
from waifu4x.sizes import Target
from waifu4x.strips import Strip, StripSource
from waifu4x.tiled import MemoryFullError

torch.set_num_threads(1)


def saved(network: nn.Module, path: Path) -> Path:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.shape[0] != 2:
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            module.weight.data.mul_(0.5)
    checkpoints.save(network, path, metadata={"scales": "4"})
    return path


@pytest.fixture(scope="module")
def crossnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = CrossNet(CrossNetConfig(channels=2, flow_channels=4, residual=True))
    return saved(network, tmp_path_factory.mktemp("models") / "cross.safetensors")


@pytest.fixture(scope="module")
def srntt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = SRNTT(SRNTTConfig(channels=4, blocks=1, residual=True))
    return saved(network, tmp_path_factory.mktemp("models") / "texture.safetensors")


def picture(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """(height, width, 3) float32 in [0, 1]."""
    return np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)


def of(*images: np.ndarray) -> References:
    return References(images=images, names=tuple(f"{n}.png" for n in range(len(images))))


BLANK_ONE = References(images=(), names=("blank",), is_blank=True)


def held_bytes(subject: object) -> int:
    """Of all tensors of the textures that a runner keeps."""

    def inside(thing: Any) -> int:
        if isinstance(thing, torch.Tensor):
            return thing.untyped_storage().nbytes()
        return sum(map(inside, thing)) if isinstance(thing, tuple) else 0

    return sum(map(inside, vars(vars(vars(subject)["_shown"])["_textures"]).values()))


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def runner(path: Path, references: References, **options: Any) -> ReferenceRunner:
    return ReferenceRunner(checkpoints.load(path), references, device="cpu", **options)


def made_of(path: Path, references: References) -> ReferenceUpscaler:
    upscaler = open_upscaler(path, references=["blank"], device="cpu")
    assert isinstance(upscaler, ReferenceUpscaler)
    upscaler.show(references)
    return upscaler


def command(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


# -- what is shown ---------------------------------------------------------------------------------


@torch.no_grad()
def test_a_small_picture_is_shown_to_crossnet_as_a_whole_mirrored_to_64(crossnet: Path) -> None:
    image, reference = picture(40, 72), picture(40, 72, seed=1)
    made = runner(crossnet, of(reference)).run_all([image])[0]
    x, other = (
        tensor(np.pad(each, ((0, 24), (0, 56), (0, 0)), mode="symmetric"))[None]
        for each in (image, reference)
    )
    wanted = checkpoints.load(crossnet).network(x, other)[0, :, :40, :72].clamp(0.0, 1.0)
    np.testing.assert_allclose(made, wanted.permute(1, 2, 0).numpy(), atol=1e-6)


@torch.no_grad()
def test_srntt_searches_blurred_references_and_pastes_references(srntt: Path) -> None:
    network: Any = checkpoints.load(srntt).network
    reference = tensor(picture(48, 64, seed=1))
    textures = reference_inputs.textures_of(network, [reference])
    small = functional.interpolate(reference[None], size=(12, 16), mode="bicubic", antialias=True)
    blurred = network(small.clamp(0.0, 1.0)).clamp(0.0, 1.0)
    torch.testing.assert_close(textures.keys[0], network.texture(blurred)[0][0])
    sharp = network.texture(reference[None])
    for level, (found, wanted) in enumerate(zip(textures.sharp, sharp, strict=True)):
        cells = matching.cells_of(wanted[0], 2**level).flatten(0, 1)
        torch.testing.assert_close(found, cells)
    # What is looked for is as blurred: the same small picture finds each place itself.
    x = small.clamp(0.0, 1.0)[0]
    matches = reference_inputs.match(network, x, textures)
    assert torch.equal(matches.start, torch.arange(12 * 16).view(12, 16)[:10, :14])
    for found, wanted in zip(reference_inputs.maps_of(textures, matches), sharp, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_srntts_windows_and_large_references_in_pieces(srntt: Path) -> None:
    network: Any = checkpoints.load(srntt).network
    large = tensor(picture(16, 402, seed=1))
    textures = reference_inputs.textures_of(network, [large])
    # 400 of 402 px can be shrunk: two pieces of 200 px, of which nothing is there twice.
    assert [tuple(each.shape) for each in textures.keys] == [(256, 4, 100)]
    assert [each.numel() for each in textures.sharp] == [400 * w for w in (256, 512, 1024)]
    image = picture(6, 40)
    whole = runner(srntt, of(picture(24, 24, seed=2)))
    cut = runner(srntt, of(picture(24, 24, seed=2)), tile_px=20)
    made = whole.run_all([image])[0]
    assert (whole.last_tile_px, whole.last_waste) == (40, 1.0)
    assert np.array_equal(whole.run_all([image])[0], made)
    in_windows = cut.run_all([image])[0]
    assert cut.last_tile_px == 20
    # The halo does not reach as far as the convolutions and the search, so it is another picture,
    # but the same one each time.
    assert in_windows.shape == made.shape == (24, 160, 3)
    assert np.array_equal(cut.run_all([image])[0], in_windows)


@torch.no_grad()
def test_what_is_found_does_not_depend_on_pieces(
    srntt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = checkpoints.load(srntt).network
    several = [tensor(picture(48, 160, seed=1)), tensor(picture(100, 36, seed=2))]
    small = functional.interpolate(several[0][None], size=(12, 40), mode="bicubic", antialias=True)
    x = small.clamp(0.0, 1.0)[0]

    def found() -> tuple[Any, Any]:
        textures = reference_inputs.textures_of(network, several)
        matches = reference_inputs.match(network, x, textures)
        return matches, reference_inputs.maps_of(textures, matches)

    whole_matches, whole = found()
    monkeypatch.setattr(reference_inputs, "_PIECE_PX", 48)
    matches, maps = found()
    # Convolutions pad with zeros at a piece's border: what they make of these is never found.
    assert torch.equal(matches.start, whole_matches.start)
    for one, other in zip(maps, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_what_is_promised_of_textures_is_held(srntt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_inputs, "_PIECE_PX", 48)
    shown = of(picture(160, 160, seed=1), picture(40, 200, seed=2))
    subject, bare = runner(srntt, shown), runner(srntt, NO_REFERENCES)
    subject.run_all([picture(6, 6)])
    held = sum(image.nbytes for image in shown.images) + held_bytes(subject)
    grid = subject.plan(6, 6)
    promised = subject.main_memory_bytes(grid) - bare.main_memory_bytes(grid)
    assert 0.9 * promised <= held <= promised


@torch.no_grad()
def test_of_textures_only_what_was_found_is_copied(
    srntt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = checkpoints.load(srntt).network
    sizes: list[int] = []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                sizes.append(made.untyped_storage().nbytes() if made._base is None else 0)
            return made

    textures = reference_inputs.textures_of(network, [tensor(picture(160, 160, seed=1))])
    matches = reference_inputs.match(network, tensor(picture(4, 4)), textures)
    with Counted():
        maps = reference_inputs.maps_of(textures, matches)
    # The reference has a hundred times as many positions as these maps.
    assert max(sizes) <= 2 * max(each.untyped_storage().nbytes() for each in maps)


def test_the_time_is_foretold_for_each_window_and_each_pixel(
    srntt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = runner(srntt, of(picture(24, 24)), tile_px=32)
    now_s = [0.0]
    costs_s = {"window": 5.0, "px": 0.01}

    def run(window: Any, beside: Any) -> None:
        now_s[0] += costs_s["window"] + costs_s["px"] * window.shape[0] * window.shape[1]

    monkeypatch.setattr(subject, "_run", run)
    monkeypatch.setattr("waifu4x.references.reference.time.perf_counter", lambda: now_s[0])
    grid = subject.plan(40, 70)
    px = len(grid) * grid.window_px[0] * grid.window_px[1]
    assert subject.estimate_s(grid) == pytest.approx(len(grid) * 5.0 + px * 0.01)
    costs_s |= {"window": 1.0}
    # Others may be larger, or smaller.
    subject.show(of(picture(12, 12)))
    assert subject.estimate_s(grid) == pytest.approx(len(grid) * 1.0 + px * 0.01)


def test_without_a_reference_srntt_gives_its_content(srntt: Path) -> None:
    image = picture(5, 7)
    network: Any = checkpoints.load(srntt).network
    with torch.no_grad():
        wanted = network(tensor(image)[None])[0].clamp(0.0, 1.0).permute(1, 2, 0).numpy()
    none = runner(srntt, NO_REFERENCES)
    np.testing.assert_allclose(none.run_all([image])[0], wanted, atol=1e-6)
    helped = runner(srntt, of(picture(24, 24, seed=1))).run_all([image])[0]
    assert not np.allclose(helped, wanted, atol=1e-3)
    # Two pixels hold no patch to look for.
    wanted = none.run_all([picture(2, 5)])[0]
    for references in (of(picture(24, 24)), BLANK_ONE):
        np.testing.assert_array_equal(runner(srntt, references).run_all([picture(2, 5)])[0], wanted)
    # A single pixel is an array that nobody may write into, and has any order in memory.
    pixel = np.broadcast_to(picture(1, 1)[..., :1], (1, 1, 1))
    assert runner(srntt, BLANK_ONE).run_all([pixel])[0].shape == (4, 4, 1)


def test_bands_are_the_whole_picture(crossnet: Path) -> None:
    image, reference = picture(150, 70), picture(150, 70, seed=1)
    subject = runner(crossnet, of(reference), tile_px=64)
    whole = subject.run_all([image])[0]
    told: list[float] = []
    bands = list(
        subject.bands(
            lambda start, stop: image[start:stop],
            (150, 70),
            channels=3,
            dtype=np.float32,
            on_progress=told.append,
        )
    )
    assert [len(band) for band in bands] == [64, 64, 22]
    assert told == pytest.approx([1 / 3, 2 / 3, 1.0])
    np.testing.assert_array_equal(np.concatenate(bands), whole)


def test_gray_pictures_stay_gray(srntt: Path) -> None:
    gray = picture(6, 6)[..., :1]
    subject = runner(srntt, of(picture(24, 24)))
    made = subject.run_all([gray])[0]
    colors = subject._run(np.repeat(gray, 3, axis=2), None)
    assert made.shape == (24, 24, 1)
    wanted = np.clip(colors @ np.array([0.299, 0.587, 0.114]), 0.0, 1.0)
    np.testing.assert_allclose(made[..., 0], wanted, atol=1e-5)


def test_what_is_not_finite_is_an_error(crossnet: Path) -> None:
    model = checkpoints.load(crossnet)
    network: Any = model.network
    network.decoder.last.bias.data[0] = torch.inf
    subject = ReferenceRunner(model, of(picture(8, 8)), device="cpu")
    with pytest.raises(NumericsError, match="cross gave NaN or infinity"):
        subject.run_all([picture(8, 8)])


def test_a_full_memory_makes_windows_smaller(
    crossnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = runner(crossnet, of(picture(300, 64)))
    original, sizes = subject._run, []

    def limited(window: Any, beside: Any) -> Any:
        sizes.append(len(window))
        if len(window) > 256:
            raise MemoryError
        return original(window, beside)

    monkeypatch.setattr(subject, "_run", limited)
    assert subject.run_all([picture(300, 64)])[0].shape == (300, 64, 3)
    assert sizes[0] == 320
    assert max(sizes[1:]) == 256
    assert subject.notes == ["the memory was full: windows of 128 px"]
    # In strips whoever asked begins again.
    monkeypatch.setattr(subject, "_core_px", 256)
    image = picture(300, 64)
    bands = subject.bands(
        lambda start, stop: image[start:stop], (300, 64), channels=3, dtype=np.float32
    )
    with pytest.raises(MemoryFullError):
        next(bands)


# -- what fits -------------------------------------------------------------------------------------


def test_references_lie_upon_the_output() -> None:
    exact, cut = picture(40, 60), picture(43, 61)
    image, note = aligned(of(exact), (40, 60))
    assert (image is exact or np.array_equal(image, exact), note) == (True, None)
    # Pairs are cut to a multiple of the scale at the bottom and on the right.
    np.testing.assert_array_equal(aligned(of(cut), (40, 60))[0], cut[:40, :60])
    image, note = aligned(of(picture(80, 120)), (40, 60))
    assert image.shape == (40, 60, 3)
    assert note == "0.png was resampled from 120×80 px to the output's size"
    with pytest.raises(UsageError, match=r"0.png is 60×80 px, and the output 60×40"):
        aligned(of(picture(80, 60)), (40, 60))
    blank, note = aligned(BLANK_ONE, (4, 6))
    assert (blank.shape, float(blank.max()), note) == ((4, 6, 3), 0.0, None)


def test_references_are_read_as_rgb(tmp_path: Path) -> None:
    gray = np.arange(12 * 13, dtype=np.uint8).reshape(12, 13)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    found = read_references([tmp_path / "gray.png"])
    np.testing.assert_allclose(found.images[0], np.repeat(gray[..., None], 3, axis=2) / 255.0)
    changed = gray.copy()
    changed[5, 5] += 1
    Image.fromarray(changed).save(tmp_path / "gray.png")
    assert read_references([tmp_path / "gray.png"]).told != found.told
    assert len(found.told) == 12
    Image.fromarray(gray[:11]).save(tmp_path / "small.png")
    with pytest.raises(UsageError, match="less than 12 px a side"):
        read_references([tmp_path / "small.png"])
    with pytest.raises(UsageError, match="give it alone"):
        read_references(["blank", tmp_path / "gray.png"])
    with pytest.raises(PictureReadError):
        read_references([tmp_path / "none.png"])


def test_references_that_a_network_cannot_take(
    crossnet: Path, srntt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"cross needs a sharp picture of the same scene: waifu4x"):
        runner(crossnet, NO_REFERENCES)
    with pytest.raises(UsageError, match="cross takes one --reference, not 2"):
        runner(crossnet, of(picture(9, 9), picture(9, 9)))
    with pytest.raises(UsageError, match="has 64 px or more, in steps of 64, not 100"):
        runner(crossnet, of(picture(9, 9)), tile_px=100)
    monkeypatch.setattr("waifu4x.references.shown.LARGEST_TOTAL_PX", 700)
    with pytest.raises(UsageError, match=r"references have 0\.0 megapixels"):
        runner(srntt, of(picture(24, 24), picture(12, 12)))


# -- the upscaler ----------------------------------------------------------------------------------


def test_the_upscaler_gives_any_size_in_one_pass(crossnet: Path, tmp_path: Path) -> None:
    reference = save_picture(tmp_path / "reference.png", seed=1, size=(80, 64))
    subject = open_upscaler(crossnet, references=[reference])
    assert isinstance(subject, ReferenceUpscaler)
    assert subject.passes(16.0) == (4.0,)
    small = Picture(pixels=waves(seed=0, size=(20, 16)), alpha=waves(seed=2, size=(20, 16))[..., 0])
    made, facts = subject.upscale(small, Target(scale=4))
    assert made.pixels.shape == (64, 80, 3)
    assert (facts.engine, facts.precision, facts.passes) == ("torch", "fp32", (4.0,))
    # Of transparency a reference says nothing.
    plain, _ = open_upscaler("bicubic").upscale(small, Target(scale=4))
    assert made.alpha is not None
    assert plain.alpha is not None
    np.testing.assert_array_equal(made.alpha, plain.alpha)
    halved, facts = subject.upscale(small, Target(scale=2))
    assert halved.pixels.shape == (32, 40, 3)
    assert facts.notes == (f"{reference} was resampled from 80×64 px to the output's size",)


@pytest.mark.parametrize(
    ("scale", "passed_px"), [(2.0, (20, 28)), (4.0, (40, 56)), (8.0, (40, 56))]
)
def test_beyond_its_scale_a_picture_is_resampled(
    crossnet: Path, scale: float, passed_px: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory and in strips the network runs at the size that is planned, and no larger one."""
    upscaler = made_of(crossnet, of(picture(40, 56, seed=1)))
    shown: list[tuple[int, int]] = []
    assert upscaler.runner is not None
    original = upscaler.runner.bands

    def noted(rows: Any, size_px: tuple[int, int], **options: Any) -> Any:
        shown.append(size_px)
        return original(rows, size_px, **options)

    monkeypatch.setattr(upscaler.runner, "bands", noted)
    small = Picture(pixels=waves(seed=0, size=(14, 10)))
    target = Target(scale=scale)
    made, facts = upscaler.upscale(small, target)
    assert shown == [passed_px]
    assert made.pixels.shape == (round(10 * scale), round(14 * scale), 3)
    assert facts.passes == (min(scale, 4.0),)
    # Only a smaller output is smaller than the reference.
    assert bool(facts.notes) == (scale < 4.0)

    class Source(StripSource):
        height_px, width_px, channels, has_alpha, dtype = 10, 14, 3, False, np.dtype(np.uint8)

        def open(self) -> Any:
            return nullcontext(lambda start, stop: Strip(small.pixels[start:stop], None))

    shown.clear()
    strips = [strip.pixels for strip in streaming.enlarge(upscaler, Source(), target)]
    assert shown == [passed_px]
    np.testing.assert_array_equal(np.concatenate(strips), made.pixels)


def test_every_picture_is_told_that_its_reference_was_resampled(crossnet: Path) -> None:
    upscaler = made_of(crossnet, of(picture(80, 112, seed=1)))
    small = Picture(pixels=waves(seed=0, size=(14, 10)))
    told = [upscaler.upscale(small, Target(scale=4))[1].notes for _ in range(2)]
    note = "0.png was resampled from 112×80 px to the output's size"
    assert told == [(note,), (note,)]
    # Frames of one picture tell it once.
    assert upscaler.upscale_all([small, small], Target(scale=4))[1].notes == (note,)


def test_the_reference_is_part_of_what_an_output_is_known_by(srntt: Path, tmp_path: Path) -> None:
    one, other = (save_picture(tmp_path / f"{n}.png", seed=n) for n in (1, 2))
    plain = open_upscaler(srntt)
    assert plain.identity == checkpoints.load(srntt).sha256
    identities = {open_upscaler(srntt, references=[path]).identity for path in (one, other)}
    assert len(identities | {plain.identity}) == 3


@pytest.mark.parametrize(
    "options",
    [{"engine": "openvino"}, {"precision": "bf16"}, {"tta": True}, {"compiled": True}],
    ids=str,
)
def test_what_does_not_go_with_references(srntt: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="runs in fp32 by torch alone"):
        open_upscaler(srntt, **options)


@pytest.mark.parametrize("name", ["bicubic", "auto"])
def test_other_models_take_no_reference(name: str, tmp_path: Path) -> None:
    reference = save_picture(tmp_path / "reference.png", seed=1)
    with pytest.raises(UsageError, match=f"{name} takes no reference: leave --reference out"):
        open_upscaler(name, references=[reference])
    # A blank one is none.
    assert open_upscaler(name, references=["blank"]).beside == ""


def test_they_cannot_be_exported(srntt: Path, tmp_path: Path) -> None:
    model: Model = checkpoints.load(srntt)
    with pytest.raises(UsageError, match="takes references, as no graph does"):
        export(model, tmp_path / "out.safetensors", to="safetensors")


# -- the commands ----------------------------------------------------------------------------------


def test_upscale_with_a_reference(crossnet: Path, tmp_path: Path) -> None:
    small = save_picture(tmp_path / "small.png", seed=0, size=(20, 16))
    reference = save_picture(tmp_path / "reference.png", seed=1, size=(80, 64))
    arguments = ("upscale", small, "-m", crossnet, "-s", "4")
    missing = command(*arguments)
    assert missing.exit_code == 2
    assert "cross needs a sharp picture of the same scene" in missing.stderr
    assert not (tmp_path / "small_cross_4x.png").exists()
    done = command(*arguments, "--reference", reference)
    assert done.exit_code == 0, done.stderr
    made = pictures.read(tmp_path / "small_cross_4x.png")
    assert made.pixels.shape == (64, 80, 3)
    (generation,) = provenance.read(made)
    told = read_references([reference]).told
    assert generation.settings["references"] == told
    assert generation.sha256 == checkpoints.load(crossnet).sha256
    again = command(*arguments, "--reference", reference)
    assert again.exit_code == 0
    assert "exists" in again.stderr
    blank = command(*arguments, "--reference", "blank", "-o", tmp_path / "blank.png")
    assert blank.exit_code == 0, blank.stderr
    assert (pictures.read(tmp_path / "blank.png").pixels != made.pixels).any()


def test_upscale_by_several_references(srntt: Path, tmp_path: Path) -> None:
    small = save_picture(tmp_path / "small.png", seed=0, size=(10, 8))
    several = [save_picture(tmp_path / f"{n}.png", seed=n, size=(40, 32)) for n in (1, 2)]
    flags = [flag for path in several for flag in ("--reference", path)]
    done = command("upscale", small, "-m", srntt, "-s", "4", *flags, "--json")
    assert done.exit_code == 0, done.stderr
    assert pictures.read(tmp_path / "small_texture_4x.png").pixels.shape == (32, 40, 3)
    planned = command("upscale", small, "-m", srntt, "-s", "4", "--dry-run", "--overwrite", *flags)
    assert planned.exit_code == 0, planned.stderr
    assert "passes 4x" in planned.stderr


def test_a_folder_is_done_again_when_its_reference_is_another(srntt: Path, tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "a.png", seed=0, size=(10, 8))
    one, other = (save_picture(tmp_path / f"{n}.png", seed=n) for n in (1, 2))
    arguments = ("upscale", tmp_path / "in", "-m", srntt, "-s", "4", "-o", tmp_path / "out")
    for reference, words in ((one, "done "), (one, "done before"), (other, "done ")):
        done = command(*arguments, "--reference", reference)
        assert done.exit_code == 0, done.stderr
        assert words in done.stderr


def test_bench_with_references_blank_ones_and_none(
    crossnet: Path, srntt: Path, tmp_path: Path
) -> None:
    save_picture(tmp_path / "set" / "a.png", seed=0, size=(42, 36))
    save_picture(tmp_path / "beside" / "a.png", seed=1, size=(42, 36))
    arguments = ("bench", tmp_path / "set", "-s", "4", "--json", "-m", srntt)
    values: set[str] = set()
    for references, words in (
        ((), "was shown none"),
        (("--references", "blank"), "was shown a black one"),
        (("--references", tmp_path / "beside"), f"was shown those of {tmp_path / 'beside'}"),
    ):
        done = command(*arguments, *references)
        assert done.exit_code == 0, done.stderr
        assert words in " ".join(done.stderr.split())
        bicubic, found = done.stdout.splitlines()
        assert '"bicubic"' in bicubic
        values.add(found.partition('"psnr":')[2].partition(",")[0])
    assert len(values) == 3
    both = command(*arguments, "-m", crossnet, "--references", tmp_path / "beside")
    assert both.exit_code == 0, both.stderr
    wrong = command(*arguments, "--references", tmp_path / "none")
    assert wrong.exit_code == 2
    assert "no such folder" in wrong.stderr


def test_every_picture_of_a_set_needs_its_reference(tmp_path: Path) -> None:
    from waifu4x.bench.sets import open_set

    save_picture(tmp_path / "set" / "a.png", seed=0)
    save_picture(tmp_path / "beside" / "b.png", seed=1)
    with pytest.raises(UsageError, match="has no partners"):
        bench_references.find(str(tmp_path / "beside"), [open_set(tmp_path / "set")])
