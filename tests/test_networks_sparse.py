"""A+ and ScSR as networks: their parts by hand, whole results by plain loops, tiles, precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toys import as_model

from waifu4x.engines import choice
from waifu4x.networks import aplus as aplus_file
from waifu4x.networks import scsr as scsr_file
from waifu4x.networks.aplus import APLUS_SIZES, Aplus, AplusConfig
from waifu4x.networks.scsr import PENALTY, ScSR, ScSRConfig, lasso
from waifu4x.resample import imresize
from waifu4x.tiled import MAX_HALO_PX, TiledRunner

Plane = npt.NDArray[np.float32]


def noise(height: int, width: int, *, seed: int = 0) -> Plane:
    return np.random.default_rng(seed).random((height, width), dtype=np.float32)


def as_batch(*planes: Plane) -> Tensor:
    return torch.from_numpy(np.stack(planes))[:, None]


def aplus(**numbers: Any) -> Aplus:
    torch.manual_seed(0)
    network = Aplus(AplusConfig(**{"scale": 2, "anchors": 7, "features": 5, **numbers}))
    # As strong as regressors are that were fitted to noise: else nothing would show.
    network.regressors.data.mul_(10.0)
    return network.eval()


def scsr(**numbers: Any) -> ScSR:
    torch.manual_seed(0)
    small = {"scale": 2, "atoms": 24, "steps": 4, "projections": 2}
    return ScSR(ScSRConfig(**{**small, **numbers})).eval()


@torch.inference_mode()
def run(network: nn.Module, plane: Plane) -> Plane:
    return network(as_batch(plane))[0, 0].numpy()


# -- their parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4, 5])
@pytest.mark.parametrize("size_px", [(1, 1), (2, 9), (7, 5)])
@torch.inference_mode()
def test_resampling_is_matlabs(scale: int, size_px: tuple[int, int]) -> None:
    small = noise(*size_px)
    large = noise(size_px[0] * scale, size_px[1] * scale)
    network = scsr(scale=scale)
    enlarged = network._enlarged(scsr_file._continued(as_batch(small), 2))[0, 0].numpy()
    np.testing.assert_allclose(enlarged, imresize(small, scale), atol=1e-6)
    around = scsr_file._continued(as_batch(large), 2 * scale)
    shrunk = scsr_file._separable(around, network.shrinking, stride=scale)[0, 0].numpy()
    np.testing.assert_allclose(shrunk, imresize(large, 1 / scale), atol=1e-6)


both = pytest.mark.parametrize("file", [aplus_file, scsr_file], ids=["aplus", "scsr"])


@both
def test_a_picture_is_continued_by_its_mirror_image_again_and_again(file: Any) -> None:
    row = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    assert file._continued(row, 2)[0, 0, 0].tolist() == [2, 1, 1, 2, 3, 3, 2]
    assert file._continued(row, 4)[0, 0, 2].tolist() == [3, 3, 2, 1, 1, 2, 3, 3, 2, 1, 1]
    assert file._continued(row, 2).shape == (1, 1, 5, 7)


@both
@pytest.mark.parametrize("step_px", [2, 3, 4])
def test_derivatives_of_a_ramp_and_of_a_parabola(file: Any, step_px: int) -> None:
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(14.0), indexing="ij")
    ramp = file._derivatives((2.0 * x + 3.0 * y)[None, None], step_px)
    assert ramp.shape == (1, 4, 12 - 2 * step_px, 14 - 2 * step_px)
    for plane, value in zip(ramp[0], (2.0 * step_px, 3.0 * step_px, 0.0, 0.0), strict=True):
        assert (plane == value).all()
    # ((x + s)² + (x - s)²) / 2 - x² = s²
    parabola = file._derivatives((x**2)[None, None], step_px)[0]
    assert (parabola[1] == 0.0).all()
    assert (parabola[2] == step_px**2).all()
    assert (parabola[3] == 0.0).all()


def test_the_middle_of_an_odd_step_lies_where_matlab_has_it() -> None:
    """`conv2([0 0 0 0 1 0 0 0 0], [1 0 0 -1], 'same')` is [0 0 1 0 0 -1 0 0 0]."""
    impulse = torch.zeros(1, 1, 7, 15)
    impulse[0, 0, 3, 7] = 1.0
    assert aplus_file._derivatives(impulse, 3)[0, 0, 0].tolist() == [0, 0, 1, 0, 0, -1, 0, 0, 0]


# -- A+ --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_without_regressors_it_is_bicubic_interpolation(scale: int) -> None:
    network = aplus(scale=scale)
    nn.init.zeros_(network.regressors)
    plane = noise(6, 9)
    np.testing.assert_allclose(run(network, plane), imresize(plane, scale), atol=1e-6)


def _aplus_by_hand(network: Aplus, plane: Plane) -> npt.NDArray[np.float64]:
    """Window by window, as the paper has it, with a picture that is large enough around it."""
    s = network.config.scale
    wide = np.pad(plane.astype(np.float64), 8, mode="symmetric")
    base = imresize(wide, s)
    planes = aplus_file._derivatives(torch.from_numpy(base)[None, None], s)[0].numpy()
    total, count = np.zeros_like(base), np.zeros_like(base)
    components = network.components.weight.detach().double().numpy()
    anchors, regressors = network.anchors.double().numpy(), network.regressors.detach().double()
    for row in range(3, wide.shape[0] - 6):
        for column in range(3, wide.shape[1] - 6):
            top, left, side = row * s, column * s, 3 * s
            # The derivatives begin one step later than the picture.
            window = planes[:, top - s : top - s + side, left - s : left - s + side]
            features = np.einsum("dcij,cij->d", components, window)
            best = int(np.abs(anchors @ features).argmax())
            patch = features @ regressors[best].numpy()
            patch = patch.reshape(3, 3, s, s).transpose(0, 2, 1, 3).reshape(side, side)
            total[top : top + side, left : left + side] += patch
            count[top : top + side, left : left + side] += 1.0
    made = base + total / np.maximum(count, 1.0)
    return made[8 * s : -8 * s, 8 * s : -8 * s]


@pytest.mark.parametrize("scale", [2, 3])
def test_aplus_is_what_plain_loops_give(scale: int) -> None:
    network, plane = aplus(scale=scale), noise(5, 8)
    made = run(network, plane)
    np.testing.assert_allclose(made, _aplus_by_hand(network, plane), atol=2e-6)
    assert np.abs(made - imresize(plane, scale)).max() > 0.05


def test_an_anchor_is_picked_whatever_the_sign() -> None:
    network = aplus(anchors=2, features=2)
    network.anchors.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    seen = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [1.0, -3.0], [0.5, 2.0]])
    assert network.nearest(seen).tolist() == [0, 0, 1, 1]


def test_more_windows_than_are_matched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, plane = aplus(), noise(9, 10)
    whole = run(network, plane)
    monkeypatch.setattr("waifu4x.networks.aplus._CHUNK", 16)
    np.testing.assert_allclose(run(network, plane), whole, atol=1e-6)


# -- sparse codes ----------------------------------------------------------------------------------


def test_codes_of_orthogonal_atoms_are_shrunk_products() -> None:
    """min ½|y - Σ a·d|² + λ|a| has the solution a = shrink(d·y, λ) there."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0][:6]
    signals = torch.randn(5, 8, generator=generator)
    codes = lasso(signals, atoms, penalty=0.3, steps=1)
    torch.testing.assert_close(codes, functional.softshrink(signals @ atoms.T, 0.3))
    assert (codes == 0.0).any()


def test_codes_of_any_atoms_meet_the_conditions_of_the_minimum() -> None:
    """What is left, times an atom, is λ·sign(a) where a is not 0, and λ at most elsewhere."""
    generator = torch.Generator().manual_seed(1)
    atoms = functional.normalize(torch.randn(30, 10, generator=generator).double(), dim=1)
    signals = functional.normalize(torch.randn(6, 10, generator=generator).double(), dim=1)
    codes = lasso(signals, atoms, penalty=0.2, steps=2000)
    products = (signals - codes @ atoms) @ atoms.T
    used = codes.abs() > 1e-9
    assert 6 < used.sum() < 60
    torch.testing.assert_close(products[used], 0.2 * codes[used].sign(), atol=1e-6, rtol=0.0)
    assert products.abs().max() <= 0.2 + 1e-6
    alone = torch.cat([lasso(y[None], atoms, penalty=0.2, steps=20) for y in signals])
    torch.testing.assert_close(lasso(signals, atoms, penalty=0.2, steps=20), alone)


# -- ScSR ------------------------------------------------------------------------------------------


def _scsr_by_hand(network: ScSR, plane: Plane) -> npt.NDArray[np.float64]:
    """Patch by patch in levels 0..255, without projections; the codes of orthogonal atoms."""
    s = network.config.scale
    base = imresize(np.pad(plane.astype(np.float64) * 255.0, 8, mode="symmetric"), s)
    planes = np.zeros((4, *base.shape))
    planes[0, :, 1:-1] = base[:, 2:] - base[:, :-2]
    planes[1, 1:-1] = base[2:] - base[:-2]
    planes[2, :, 2:-2] = base[:, 4:] - 2.0 * base[:, 2:-2] + base[:, :-4]
    planes[3, 2:-2] = base[4:] - 2.0 * base[2:-2] + base[:-4]
    atoms, patches = (p.detach().double().numpy() for p in (network.atoms, network.patches))
    total, count = np.zeros_like(base), np.zeros_like(base)
    for top in range(4, base.shape[0] - 9):
        for left in range(4, base.shape[1] - 9):
            place = slice(top, top + 5), slice(left, left + 5)
            bare = base[place]
            features = planes[:, place[0], place[1]].flatten()
            features = features / max(1.0, float(np.linalg.norm(features)))
            products = atoms @ features
            codes = np.sign(products) * np.maximum(np.abs(products) - PENALTY, 0.0)
            sharp = codes @ patches
            length = np.linalg.norm(sharp)
            if length > 0.0:
                sharp = sharp * (1.2 * np.linalg.norm(bare - bare.mean()) / length)
            total[place] += bare.mean() + sharp.reshape(5, 5)
            count[place] += 1.0
    return (total / np.maximum(count, 1.0))[8 * s : -8 * s, 8 * s : -8 * s] / 255.0


@pytest.mark.parametrize("scale", [2, 3])
def test_scsr_is_what_plain_loops_give(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, plane = scsr(scale=scale, steps=1, projections=0), noise(4, 6)
    # Flat at one side, where no patch has a code.
    plane[:, :3] = 0.4
    with torch.no_grad():
        network.atoms.copy_(torch.linalg.qr(torch.randn(100, 24))[0].T)
    made = run(network, plane)
    np.testing.assert_allclose(made, _scsr_by_hand(network, plane), atol=2e-6)
    assert np.abs(made - imresize(plane, scale)).max() > 0.02
    monkeypatch.setattr("waifu4x.networks.scsr._CHUNK_CPU", 1)
    np.testing.assert_allclose(run(network, plane), made, atol=1e-6)


def test_a_flat_picture_stays_flat() -> None:
    flat = np.full((6, 7), 0.3, dtype=np.float32)
    for network in (aplus(), scsr()):
        np.testing.assert_allclose(run(network, flat), 0.3, atol=1e-6)


def test_projections_bring_the_result_back_to_its_input() -> None:
    plane = noise(8, 9)
    lacking = [
        np.abs(imresize(run(scsr(projections=count), plane), 0.5) - plane).max()
        for count in (0, 5, 20)
    ]
    assert lacking[0] > 0.1
    assert lacking[0] > 2.0 * lacking[1] > 4.0 * lacking[2]


# -- where they look -------------------------------------------------------------------------------


def test_the_radii_by_hand() -> None:
    assert {config.receptive_radius_px for config in APLUS_SIZES.values()} == {5}
    # 6 px of the output to the left of a pixel's first one, and two or one input pixels more.
    for scale, radius_px in ((2, 5), (3, 4), (4, 3), (6, 3)):
        assert ScSRConfig(scale=scale, projections=0).receptive_radius_px == radius_px
    # At x2: 2 px to the left is the cell -1, phase 0, which sees -3; what that shrinks begins 3 px
    # before it, at the pixel -9, and 6 px beyond that is the cell -8, phase 1, which sees -9.
    assert ScSRConfig(scale=2, projections=1).receptive_radius_px == 9


@pytest.mark.parametrize("make", [aplus, scsr])
@pytest.mark.parametrize("scale", [2, 3])
@torch.inference_mode()
def test_nothing_beyond_the_radius_counts(make: Any, scale: int) -> None:
    network = make(scale=scale).double()
    radius_px = network.config.receptive_radius_px
    x = torch.from_numpy(noise(3, 2 * radius_px + 10)).double()[None, None]
    other = x.clone()
    at_px = radius_px + 4
    other[..., at_px] = 1.0 - other[..., at_px]
    seen = (network(x) != network(other))[0, 0].any(0).nonzero().flatten() // scale
    assert (seen - at_px).abs().max() <= radius_px
    # At the stated radius itself the influence may be too small to be seen; nearby it is not.
    assert (seen - at_px).abs().max() >= 3


@pytest.mark.parametrize("scale", [2, 3])
def test_tiles_equal_the_whole(scale: int) -> None:
    for network in (aplus(scale=scale), scsr(scale=scale, steps=2, projections=1)):
        assert network.config.receptive_radius_px <= MAX_HALO_PX
        model, image = as_model(network), noise(18, 36)[..., None]
        whole, tiles = (
            TiledRunner(model, device="cpu", precision="fp32", tile_px=tile_px).run(image)
            for tile_px in (4096, 16)
        )
        assert np.abs(whole - tiles).max() <= 1e-5


def test_all_projections_in_tiles_are_far_within_one_grey_level() -> None:
    """Their radius is 85 px, and tiles overlap by 32: what is lost is 1e-6."""
    network = scsr(projections=20, atoms=8, steps=1)
    assert network.config.receptive_radius_px > 2 * MAX_HALO_PX
    model, image = as_model(network), noise(4, 120)[..., None]
    whole, tiles = (
        TiledRunner(model, device="cpu", precision="fp32", tile_px=tile_px).run(image)
        for tile_px in (4096, 40)
    )
    assert np.abs(whole - tiles).max() <= 1e-5


# -- precision and other programs ------------------------------------------------------------------


@pytest.mark.parametrize("make", [aplus, scsr])
@torch.inference_mode()
def test_bf16_is_fp32(make: Any) -> None:
    network, x = make(), as_batch(noise(8, 9), noise(8, 9, seed=1))
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), exact)
    torch.testing.assert_close(network(x[1:])[0], exact[1])


@pytest.mark.parametrize("make", [aplus, scsr])
def test_openvino_leaves_it_to_torch(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("WAIFU4X_ENGINE", "auto")
    opened = choice.open_engine(make(), device="cpu")
    assert opened.engine.name == "torch"
    assert "no traced graph can" in opened.note


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (AplusConfig, {"scale": 1}),
        (AplusConfig, {"scale": 9}),
        (AplusConfig, {"anchors": 0}),
        (AplusConfig, {"scale": 2, "features": 145}),
        (ScSRConfig, {"scale": 1}),
        (ScSRConfig, {"steps": 0}),
        (ScSRConfig, {"projections": -1}),
        (ScSRConfig, {"projections": 4096}),
    ],
)
def test_a_config_of_nonsense_is_refused(kind: Any, numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        kind(**numbers)
