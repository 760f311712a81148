"""Networks that are fitted: dictionaries, neighbours and regressors by hand, then the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from training import save_picture
from typer.testing import CliRunner

from waifu4x import pictures, weights
from waifu4x.bench.metrics import luma_8bit
from waifu4x.bench.protocol import PROTOCOLS, enlarge
from waifu4x.cli.app import app
from waifu4x.errors import TrainError, UsageError
from waifu4x.model_files import checkpoints
from waifu4x.models import open_upscaler
from waifu4x.networks.aplus import Aplus, AplusConfig
from waifu4x.resample import imresize
from waifu4x.train import building, recipe
from waifu4x.train.fitting import sparse
from waifu4x.train.fitting.dictionaries import learn_by_ksvd, learn_by_lasso, pursue
from waifu4x.train.fitting.fit_options import AplusFit
from waifu4x.train.fitting.luma_pairs import LumaPair, read_luma_pairs
from waifu4x.train.fitting.neighbours import find_neighbours
from waifu4x.train.recipe import Recipe

APLUS = {
    "generator.anchors": "12",
    "fit.samples": "3000",
    "fit.pictures": "3",
    "fit.levels": "2",
    "fit.dictionary_samples": "1500",
    "fit.rounds": "2",
    "fit.neighbours": "300",
}
SCSR = {
    "generator.atoms": "24",
    "generator.steps": "4",
    "generator.projections": "2",
    "fit.samples": "1200",
    "fit.pictures": "3",
    "fit.steps": "6",
    "fit.rounds": "1",
    "fit.batch": "200",
}
SMALL = {"aplus": APLUS, "scsr": SCSR}


def small(name: str, scale: int = 2, **changes: str) -> Recipe:
    settings = {"generator.scale": str(scale), **SMALL[name], **changes}
    return recipe.load(name, overrides=[*settings.items()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        save_picture(place / f"{number}.png", seed=number, size=(96, 90))
    return place


def orthogonal(count: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(count, count, generator=generator))[0]


# -- dictionaries ----------------------------------------------------------------------------------


def test_pursuit_finds_the_largest_parts_along_orthogonal_atoms() -> None:
    atoms = orthogonal(6)
    amounts = torch.tensor([[3.0, 0.0, -2.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.2, 0.0, 0.0, -4.0]])
    support, found = pursue(amounts @ atoms, atoms, sparsity=2)
    assert support.tolist() == [[0, 2], [5, 1]]
    torch.testing.assert_close(found, torch.tensor([[3.0, -2.0], [-4.0, 1.0]]), atol=1e-5, rtol=0)


def test_pursuit_solves_for_all_its_atoms_again() -> None:
    """Along (1, 0) and (0.6, 0.8) the signal (1, 2) is -0.5 and 2.5."""
    atoms = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    support, found = pursue(torch.tensor([[1.0, 2.0]]), atoms, sparsity=2)
    assert support.tolist() == [[1, 0]]
    torch.testing.assert_close(found, torch.tensor([[2.5, -0.5]]), atol=1e-4, rtol=0)


def _sparse_signals(atoms: Tensor, count: int, *, used: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    order = torch.rand(count, len(atoms), generator=generator).argsort(1)[:, :used]
    amounts = torch.zeros(count, len(atoms)).scatter_(
        1, order, 1.0 + torch.rand(count, used, generator=generator)
    )
    return amounts @ atoms


@pytest.mark.parametrize("way", ["ksvd", "lasso"])
def test_learning_finds_the_atoms_that_signals_are_made_of(way: str) -> None:
    atoms = orthogonal(8)
    signals = _sparse_signals(atoms, 600, used=2)
    generator = torch.Generator().manual_seed(5)
    if way == "ksvd":
        found = learn_by_ksvd(signals, count=8, sparsity=2, rounds=20, generator=generator)
    else:
        how: dict[str, Any] = {"penalty": 0.3, "steps": 20, "rounds": 8, "batch": 50}
        found = learn_by_lasso(signals, count=8, generator=generator, **how)
    assert found.norm(dim=1).max() <= 1.0 + 1e-5
    # Each in turn, in another order and perhaps turned round.
    alike = (functional.normalize(found, dim=1) @ atoms.T).abs()
    assert alike.amax(0).min() > 0.99


def test_an_atom_that_nothing_uses_becomes_what_is_described_worst() -> None:
    # Two signals that are alike many times, and one that is not: of three atoms two are equal.
    generator = torch.Generator().manual_seed(0)
    signals = torch.tensor([[1.0, 0.0, 0.0]] * 50 + [[0.0, 0.0, 2.0]])
    found = learn_by_ksvd(signals, count=3, sparsity=1, rounds=3, generator=generator)
    assert (found @ torch.tensor([0.0, 0.0, 1.0])).abs().max() == pytest.approx(1.0)
    assert torch.isfinite(found).all()


# -- neighbours and regressors ---------------------------------------------------------------------


def test_neighbours_are_those_that_sorting_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waifu4x.train.fitting.neighbours._CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    vectors, anchors = (torch.randn(n, 5, generator=generator) for n in (1000, 7))
    found = find_neighbours(vectors, anchors, count=40)
    wanted = (anchors @ vectors.T).abs().argsort(1, descending=True)[:, :40]
    assert torch.equal(found, wanted)
    # More than lie in a chunk.
    found = find_neighbours(vectors, anchors, count=100)
    wanted = (anchors @ vectors.T).abs().argsort(1, descending=True)[:, :100]
    assert torch.equal(found, wanted)


def test_a_regressor_recovers_a_linear_relation() -> None:
    network = Aplus(AplusConfig(scale=2, anchors=2, features=3))
    network.requires_grad_(False)
    network.anchors.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    generator = torch.Generator().manual_seed(0)
    # None is weak, which would be brought to a length of 1 without its patch.
    features = 20.0 * torch.randn(400, 3, generator=generator)
    # Near the first axis one relation holds, near the second another.
    relations = torch.randn(2, 3, 36, generator=generator)
    features[:200, 1] = 0.0
    features[200:, 0] = 0.0
    patches = torch.cat((features[:200] @ relations[0], features[200:] @ relations[1]))
    # Each patch is a picture of its own, 6 px wide, its cells in the order of the network.
    planes = patches.reshape(400, 3, 3, 2, 2).permute(0, 1, 3, 2, 4)
    windows = sparse._Windows(
        features=features.clone(),
        residuals=planes.flatten(),
        starts=torch.arange(400) * 36,
        widths_px=torch.full((400,), 6, dtype=torch.int32),
    )
    torch.testing.assert_close(windows.patches(torch.arange(400), 2), patches)
    options = AplusFit(neighbours=100, ridge=1e-6)
    sparse._regress(network, windows, options, lambda stage, share: None)
    made = features.reshape(2, 200, 3) @ network.regressors
    torch.testing.assert_close(made, patches.reshape(2, 200, 36), atol=1e-3, rtol=1e-3)


def _save_boards(place: Path, seeds: range) -> Path:
    """Pictures of squares, which bicubic interpolation blurs."""
    place.mkdir()
    for seed in seeds:
        squares = np.random.default_rng(seed).integers(40, 200, (14, 14), dtype=np.uint8)
        Image.fromarray(np.kron(squares, np.ones((7, 7), dtype=np.uint8))).save(
            place / f"{seed}.png"
        )
    return place


@pytest.mark.parametrize(("name", "gain_db"), [("aplus", 2.0), ("scsr", 0.3)])
def test_what_is_fitted_is_better_than_bicubic(name: str, gain_db: float, tmp_path: Path) -> None:
    fitted = sparse.fit(small(name), [_save_boards(tmp_path / "seen", range(3))], seed=1)
    assert (fitted.pictures, fitted.skipped) == (3, ())
    (unseen,), _ = read_luma_pairs(
        [_save_boards(tmp_path / "unseen", range(7, 8))],
        scale=2,
        most=1,
        levels=1,
        shrink=1.0,
        smallest_px=8,
        rng=np.random.default_rng(0),
    )
    with torch.inference_mode():
        made = fitted.network(torch.from_numpy(unseen.lr)[None, None])[0, 0].numpy()
    errors = [np.mean((y - unseen.hr) ** 2) for y in (made, imresize(unseen.lr, 2))]
    assert 10.0 * np.log10(errors[1] / errors[0]) > gain_db


# -- reading ---------------------------------------------------------------------------------------


def test_pairs_are_shrunk_in_float_and_drawn_equally_from_folders(tmp_path: Path) -> None:
    for number in range(4):
        save_picture(tmp_path / "a" / f"{number}.png", seed=number, size=(43, 37))
    save_picture(tmp_path / "b" / "one.png", seed=9, size=(60, 48))
    save_picture(tmp_path / "b" / "tiny.png", seed=9, size=(12, 12))
    (tmp_path / "b" / "broken.png").write_bytes(b"nothing")
    read: dict[str, Any] = {"scale": 3, "levels": 1, "shrink": 0.9, "smallest_px": 6}
    folders = [tmp_path / "a", tmp_path / "b"]
    pairs, skipped = read_luma_pairs(folders, most=9, rng=np.random.default_rng(0), **read)
    assert len(pairs) == 5
    assert len(skipped) == 2
    assert "tiny.png: smaller than 18 px" in " ".join(skipped)
    for pair in pairs:
        assert pair.hr.shape == (3 * pair.lr.shape[0], 3 * pair.lr.shape[1])
        # 8-bit luma, 255 as 1.
        np.testing.assert_allclose(pair.hr * 255.0, np.rint(pair.hr * 255.0), atol=1e-4)
        np.testing.assert_allclose(pair.lr, imresize(pair.hr, 1 / 3))
    twice, _ = read_luma_pairs([*folders, folders[0]], most=4, rng=np.random.default_rng(1), **read)
    assert len({pair.hr.tobytes() for pair in twice}) == 4
    first, _ = read_luma_pairs(folders, most=2, rng=np.random.default_rng(0), **read)
    assert sorted(pair.hr.shape for pair in first) in ([(36, 42), (48, 60)], [(36, 42), (36, 42)])
    read["smallest_px"] = 100
    with pytest.raises(TrainError, match=r"no usable picture in .*b: each side must be at"):
        read_luma_pairs([tmp_path / "b"], most=2, rng=np.random.default_rng(0), **read)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError, match=r"^no pictures in .*empty$"):
        read_luma_pairs([tmp_path / "empty"], most=2, rng=np.random.default_rng(0), **read)


def test_of_pictures_larger_than_their_share_parts_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {}
    for number, (width, height) in enumerate([(90, 70), (400, 12), (12, 400), (20, 21)]):
        path = save_picture(tmp_path / f"{number}.png", seed=number, size=(width, height))
        whole[(width, height)] = luma_8bit(np.asarray(Image.open(path)))
    read: dict[str, Any] = {"scale": 2, "levels": 1, "shrink": 0.9, "smallest_px": 4}

    def kept(seed: int) -> list[LumaPair]:
        rng = np.random.default_rng(seed)
        return read_luma_pairs([tmp_path], most=9, rng=rng, **read)[0]

    assert {pair.hr.shape for pair in kept(0)} == {(70, 90), (12, 400), (400, 12), (20, 20)}
    for all_px, each_px in ((4 * 900, 10**6), (10**6, 900)):
        monkeypatch.setattr("waifu4x.train.fitting.luma_pairs._MOST_PX", all_px)
        monkeypatch.setattr("waifu4x.train.fitting.luma_pairs._MOST_EACH_PX", each_px)
        parts = kept(0)
        assert {pair.hr.shape for pair in parts} == {(30, 30), (12, 74), (74, 12), (20, 20)}
        for pair in parts:
            # Of its own: nothing holds the rest.
            base = pair.hr.base
            assert base is None or base.size <= 900
            np.testing.assert_allclose(pair.lr, imresize(pair.hr, 1 / 2))
            # Where it was cut out, and nowhere else.
            places = [
                np.abs(windows - 255.0 * pair.hr).max((2, 3)).min()
                for plane in whole.values()
                if min(np.subtract(plane.shape, pair.hr.shape)) >= 0
                for windows in [np.lib.stride_tricks.sliding_window_view(plane, pair.hr.shape)]
            ]
            assert min(places) < 1e-3
    assert len({pair.hr.tobytes() for seed in range(4) for pair in kept(seed)}) > 8
    # Never too small to be used.
    monkeypatch.setattr("waifu4x.train.fitting.luma_pairs._MOST_PX", 1)
    assert {pair.hr.shape for pair in kept(0)} == {(8, 8)}


def test_a_picture_is_shrunk_by_one_of_the_levels(tmp_path: Path) -> None:
    save_picture(tmp_path / "one.png", seed=0, size=(100, 100))
    sizes = set()
    for seed in range(12):
        pairs, _ = read_luma_pairs(
            [tmp_path], scale=2, most=1, levels=3, shrink=0.9, smallest_px=5,
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        sizes.add(pairs[0].hr.shape[0])
    # 100, 90 and 81, cut to multiples of 2.
    assert sizes == {100, 90, 80}


# -- recipes and the command -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_recipes_as_they_ship_can_be_fitted(name: str) -> None:
    for scale in (2, 3, 4):
        building.check(recipe.load(name, overrides=[("generator.scale", str(scale))]))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("aplus", {"fit.neighbors": "5"}, "did you mean 'neighbours'"),
        ("aplus", {"fit.samples": "0"}, "counts must be 1 or more"),
        ("aplus", {"fit.energy": "1.5"}, "lie in 0 < x <= 1"),
        ("aplus", {"generator.scale": "1"}, "scale must be 2 to 8"),
        ("scsr", {"fit.steps": "0"}, "counts must be 1 or more"),
        ("aplus", {"generator.network": "srcnn"}, "unknown key|only aplus and scsr"),
        ("aplus", {"generator": '{ network = "edsr", scale = 2 }'}, "only aplus and scsr"),
        ("fast", {"generator": '{ network = "aplus", scale = 4 }'}, "use --recipe aplus"),
        ("fast", {"fit": "{}"}, "with [fit] it has stages = []"),
        ("aplus", {"stages": "[{ steps = 5 }]"}, "with [fit] it has stages = []"),
        ("aplus", {"fit.dictionary_samples": "1023"}, "1024 anchors cannot be learned from fewer"),
        ("aplus", {"generator.anchors": "50_001"}, "50001 anchors cannot be learned from fewer"),
        ("aplus", {"generator.anchors": '"x"'}, "'x' is not of type"),
        ("aplus", {"generator.features": "12"}, "leave out generator.features"),
    ],
)
def test_recipes_that_make_no_sense(name: str, changes: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        building.check(recipe.load(name, overrides=[*changes.items()]))
    assert any(word in str(caught.value) for word in words.split("|"))
    assert "\n" not in str(caught.value)


def test_too_few_windows_are_refused(folder: Path) -> None:
    with pytest.raises(TrainError, match="windows in 3 pictures, and 9000 are needed"):
        sparse.fit(small("aplus", **{"fit.neighbours": "9000"}), [folder])
    with pytest.raises(TrainError, match="needed: give more pictures, or lower"):
        sparse.fit(small("scsr", **{"fit.samples": "20"}), [folder])


def command(folder: Path, out: Path, name: str, *more: str) -> Any:
    settings = [f"--set={place}={value}" for place, value in SMALL[name].items()]
    arguments = ["train", str(folder), "--recipe", name, "--scale", "2", "--out", str(out)]
    return CliRunner().invoke(app, [*arguments, "--name", "own", *settings, *more])


@pytest.mark.parametrize("name", SMALL)
def test_from_pictures_to_a_larger_picture(name: str, folder: Path, tmp_path: Path) -> None:
    held_out = save_picture(tmp_path / "val" / "x.png", seed=8, size=(40, 40)).parent
    done = command(folder, tmp_path / "run", name, "--val", str(held_out), "--licence", "CC0-1.0")
    assert (done.exit_code, done.stdout) == (0, ""), (done.stderr, done.exception)
    for words in ("interrupted, it starts again", "reading pictures", "PSNR", "wrote"):
        assert words in done.stderr
    model = checkpoints.load(tmp_path / "run" / "own.safetensors")
    assert (model.architecture, model.scale, model.licence) == (name, 2, "CC0-1.0")
    assert model.metadata["trained_on"].endswith("patches of 3 pictures of " + folder.name)
    assert float(model.metadata["psnr_db"]) > 20.0
    assert weights.find("own") is not None
    files = {file.name for file in (tmp_path / "run").iterdir()}
    assert files == {"own.safetensors", "own.json", "own.md", "facts.json", "recipe.toml"}
    again = recipe.load(str(tmp_path / "run" / "recipe.toml"))
    assert (again.generator, again.fit) == (small(name).generator, small(name).fit)
    assert json.loads(model.metadata["recipe"])["fit"] == dict(again.fit or {})
    # The same pictures and options, the same bytes.
    kept = (tmp_path / "run" / "own.safetensors").read_bytes()
    twice = sparse.fit(small(name), [folder])
    for key, value in twice.network.state_dict().items():
        assert torch.equal(value.half().float(), model.network.state_dict()[key]), key

    save_picture(tmp_path / "small.png", seed=9, size=(12, 10))
    for scale, size in (("2", (20, 24, 3)), ("3", (30, 36, 3))):
        used = ["upscale", str(tmp_path / "small.png"), "-m", "own", "-s", scale]
        assert CliRunner().invoke(app, used).exit_code == 0
        assert pictures.read(tmp_path / f"small_own_{scale}x.png").pixels.shape == size
    measured = enlarge(
        open_upscaler("own"), held_out / "x.png", scale=2, protocol=PROTOCOLS["luma"]
    )
    assert measured.pair.luma.shape == (36, 36)
    assert len(kept) < 200_000


def test_flags_that_a_fit_has_no_use_for(folder: Path, tmp_path: Path) -> None:
    for more, words in (
        (["--estimate"], "leave out --estimate"),
        (["--minutes", "5"], "leave out --minutes"),
        (["--device", "mps"], "leave out --device"),
        (["--precision", "bf16"], "leave out --precision"),
        (["--degradation", "jpeg"], "leave out --degradation"),
        (["--steps", "5"], "has no steps"),
        (["--pixel-loss", "l1"], "there is no stages"),
    ):
        done = command(folder, tmp_path / "run", "aplus", *more)
        assert done.exit_code == 2, (more, done.stderr)
        assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_what_is_interrupted_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("waifu4x.train.fitting.sparse.find_neighbours", interrupted)
    done = command(folder, tmp_path / "run", "aplus")
    assert done.exit_code == 130
    assert not (tmp_path / "run").exists()
    assert "own" not in [row.name for row in weights.user_rows()]


@pytest.mark.parametrize("weakest", ["0.1", "0.0"])
@pytest.mark.parametrize("level", [0, 90])
def test_flat_pictures_are_refused(level: int, weakest: str, tmp_path: Path) -> None:
    Image.new("L", (40, 40), level).save(tmp_path / "flat.png")
    with pytest.raises(TrainError, match=r"^0 windows in 1 pictures, and 300 are needed"):
        sparse.fit(small("aplus", **{"fit.weakest": weakest}), [tmp_path])


def test_progress_is_told_of_every_part(folder: Path) -> None:
    told: list[tuple[str, float]] = []
    sparse.fit(small("aplus"), [folder], on_progress=lambda *each: told.append(each))
    stages = [stage for stage, _ in itertools.groupby(stage for stage, _ in told)]
    assert stages == [
        "reading pictures",
        "describing windows",
        "learning anchors",
        "finding neighbours",
        "fitting regressors",
    ]
    assert all(0.0 <= share <= 1.0 for _, share in told)
