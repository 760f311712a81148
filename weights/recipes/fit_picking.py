"""Fit, and measure, what tells photographs from art and sees compression (waifu4x/auto/picking.py).

    python weights/recipes/fit_picking.py DATA [--cache FILE]
    python weights/recipes/fit_picking.py DATA --measure [FOLDER=photo ...] [--errors]

DATA is what prepare.py lays out, with the drawings of synthesise.py among train/art, and others of
another seed in val/drawn. The first command writes weights/picking.json; the second prints how many
are judged right of val/photo, val/art, val/drawn and of every FOLDER (all of whose pictures are
photographs, or art), shrunk to a quarter, to half and not at all, clean and compressed.
B100's own pictures were JPEGs once: unshrunk they are found to be compressed, and rightly so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from waifu4x.auto.picking import LIMIT, WEIGHTS_FILE, features, look
from waifu4x.train.degrading import spoiling
from waifu4x.train.degrading.captions import with_caption

OUT = Path(__file__).resolve().parents[1] / WEIGHTS_FILE
SUFFIXES = (".avif", ".png", ".jpg", ".webp")

# Where the folder's name is wrong, by the eye of whoever looked at every picture.
DRAWN_IN_PHOTO = {"p0524", "p0525", "p0526", "p0527"}
"""Ink drawing of an astronaut at a whale's eye (Encounter_by_Lazardjin.jpg), among photographs."""
NEITHER = {
    # Scans of oil paintings: canvas and cracks like a photograph, strokes like art; no model here
    # is for them, so that none is wrong.
    *(f"a{number:04d}" for number in range(516, 533)),
    # Photographs, or made of them, among the drawn wallpapers: a mountain, rusty stone, fur.
    *("a1419", "a1490", "a1555"),
}
CAPTIONED = "meme-"
"""Captions over photographs: photographs in val/drawn; in train/art left out, since some lie over
plain gradients, and captions are drawn over train/photo here."""

VARIANTS = {"photo": 10, "art": 4}
SCALES = (4, 2, 1)
# Pictures from other sources are judged better with much of both.
NOISE, DECAY = 0.35, 0.1
FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BOX, Image.Resampling.LANCZOS)
CONDITIONS: tuple[tuple[str, int], ...] = (("clean", 0), ("jpeg", 90), ("jpeg", 75), ("jpeg", 40))


def labelled(folder: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """The pictures of a folder that have a label, each with it."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.stem in NEITHER:
            continue
        if path.name.startswith(CAPTIONED):
            if folder.name == "drawn":
                yield path, "photo"
        else:
            yield path, "art" if path.stem in DRAWN_IN_PHOTO else kind


def opened(path: Path) -> np.ndarray:
    """(h, w, 3) uint8."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# -- fitting ---------------------------------------------------------------------------------------


def toned(hr: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Other colours, exposure and saturation: a few hundred photographs have only so many skies."""
    image = hr[..., random.permutation(3)].astype(np.float32) / 255.0
    gray = image.mean(axis=2, keepdims=True)
    image = gray + random.uniform(0.3, 1.5) * (image - gray)
    image = random.uniform(0.8, 1.6) * image - random.uniform(-0.05, 0.1)
    return spoiling.to_uint8(255.0 * np.clip(image, 0.0, 1.0) ** random.uniform(0.6, 1.5))


def variant(hr: np.ndarray, kind: str, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """A picture as users bring it, and whether it is compressed: 0, 1, or NaN where hardly."""
    if kind == "photo" and random.random() < 0.12:
        hr = with_caption(hr, random, height_px=(24.0, 100.0))
    if random.random() < 0.08:
        hr = np.repeat(np.asarray(Image.fromarray(hr).convert("L"))[..., None], 3, axis=2)
    if random.random() < 0.6:
        hr = toned(hr, random)
    scale = int(random.choice([4, 3, 2, 1], p=[0.4, 0.15, 0.28, 0.17]))
    soft_px = scale * random.uniform(0.2, 0.6) if random.random() < 0.15 else 0.0
    small = spoiling.shrunk(hr, scale, soft_px=soft_px, random=random)
    if scale > 2 and random.random() < 0.08:
        size = (small.shape[1] * 2, small.shape[0] * 2)
        small = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
    image = small.astype(np.float32)
    if random.random() < 0.07:
        radius_px, amount = random.uniform(0.5, 1.5), random.uniform(0.3, 1.0)
        image = spoiling.oversharpened(image, radius_px=radius_px, amount=amount)
    if random.random() < 0.1:
        sigma, gray = random.uniform(0.5, 5.0), random.random() < 0.5
        image = spoiling.gaussian_noise(image, sigma, gray=gray, random=random)
    compressed = 0.0
    if random.random() < 0.06:
        picture = Image.fromarray(spoiling.to_uint8(image))
        colours = int(random.integers(32, 257))
        image = np.asarray(picture.quantize(colours).convert("RGB")).astype(np.float32)
    elif random.random() < 0.62:
        quality = int(random.integers(30, 99))
        webp = random.random() < 0.15
        image = spoiling.compressed(
            image,
            codec="WEBP" if webp else "JPEG",
            quality=quality,
            half_chroma=random.random() < 0.7,
            origin_px=spoiling.draw_origin(random) if random.random() < 0.7 else (0, 0),
        )
        # At 90 the models for clean and for compressed pictures do equally well.
        middle = 76 if webp else 90
        compressed = np.nan if abs(quality - middle) <= 2 else float(quality < middle)
    if random.random() < 0.3:
        high, wide = (int(random.integers(min(40, side), side + 1)) for side in image.shape[:2])
        top, left = (
            int(random.integers(side - cut + 1))
            for side, cut in zip(image.shape[:2], (high, wide), strict=True)
        )
        image = image[top : top + high, left : left + wide]
    return spoiling.to_uint8(image), compressed


def measured(data: Path, cache: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, f) and labels (n, 2): art, compressed. Kept in `cache` where one is given."""
    if cache is not None and cache.exists():
        kept = np.load(cache)
        return kept["features"], kept["labels"]
    rows: list[np.ndarray] = []
    labels: list[tuple[float, float]] = []
    for folder in ("photo", "art"):
        for path, kind in labelled(data / "train" / folder, folder):
            seed = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:8], "big")
            random, hr = np.random.default_rng(seed), opened(path)
            for _ in range(VARIANTS[kind]):
                pixels, compressed = variant(hr, kind, random)
                rows.append(features(pixels))
                labels.append((float(kind == "art"), compressed))
    made = np.array(rows), np.array(labels)
    if cache is not None:
        np.savez(cache, features=made[0], labels=made[1])
    return made


def fit(
    rows: np.ndarray, labels: np.ndarray, *, networks: int = 2, units: int = 20, steps: int = 1500
) -> dict[str, np.ndarray]:
    """The numbers of waifu4x/auto/picking.py: a hidden layer of tanh, then the log odds of both.

    Several networks side by side, whose log odds are averaged, are one that errs less.
    """
    mean, deviation = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    scaled = np.clip((rows - mean) / deviation, -LIMIT, LIMIT)
    made = [fit_one(scaled, labels, units=units, steps=steps, seed=k) for k in range(networks)]
    outputs = [output[:-1] for _, output in made]
    bias = sum(output[-1:] for _, output in made)
    return {
        "mean": mean,
        "deviation": deviation,
        "hidden": np.hstack([hidden for hidden, _ in made]),
        "output": np.vstack([*outputs, bias]) / networks,
    }


def fit_one(
    scaled: np.ndarray, labels: np.ndarray, *, units: int, steps: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer (f + 1, units) and the output layer (units + 1, 2), biases last."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(scaled).float(), torch.from_numpy(labels).float()
    known = ~torch.isnan(y)
    y = torch.nan_to_num(y)
    share = (y * known).sum(dim=0) / known.sum(dim=0)
    weight = torch.where(y > 0.5, 0.5 / share, 0.5 / (1.0 - share)) * known
    network = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], units), torch.nn.Tanh(), torch.nn.Linear(units, 2)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(x), (1024,))
        # Sure of nothing: pictures may come that no training picture is like.
        aim = y[batch] * 0.96 + 0.02
        noisy = x[batch] + NOISE * torch.randn(len(batch), x.shape[1])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            network(noisy), aim, weight=weight[batch]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    state = {name: value.double().numpy() for name, value in network.state_dict().items()}
    return (
        np.vstack([state["0.weight"].T, state["0.bias"]]),
        np.vstack([state["2.weight"].T, state["2.bias"]]),
    )


def write(numbers: dict[str, np.ndarray]) -> None:
    lines = []
    for name, values in numbers.items():
        rounded = np.vectorize(lambda value: float(f"{value:.4g}"))(values).tolist()
        lines.append(f' "{name}": {json.dumps(rounded, separators=(",", ":"))}')
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


# -- measuring -------------------------------------------------------------------------------------


def under(hr: np.ndarray, *, scale: int, codec: str, quality: int, number: int) -> np.ndarray:
    """Picture `number` of a set under one condition; filters, chroma and grids take turns."""
    picture = Image.fromarray(hr)
    size = (picture.width // scale, picture.height // scale)
    small = np.asarray(picture.resize(size, FILTERS[number % 3])) if scale > 1 else hr
    if codec == "clean":
        return small
    origin = (0, 0) if number % 2 == 0 else (1 + number * 5 % 15, 1 + number * 11 % 15)
    done = spoiling.compressed(
        small.astype(np.float32),
        codec="JPEG",
        quality=quality,
        half_chroma=number % 4 < 2,
        origin_px=origin,
    )
    return spoiling.to_uint8(done)


def measure(data: Path, more: list[str], *, errors: bool) -> None:
    sets = [("val/photo", data / "val/photo", "photo"), ("val/art", data / "val/art", "art")]
    sets.append(("val/drawn", data / "val/drawn", "art"))
    for given in more:
        folder, _, kind = given.rpartition("=")
        if kind not in ("photo", "art") or not Path(folder).is_dir():
            raise SystemExit(f"{given}: say FOLDER=photo or FOLDER=art, of a folder that exists")
        sets.append((Path(folder).name, Path(folder), kind))
    print(
        f"{'right on (kind, compressed) in %':32}"
        + "".join(f"{f'{codec} {quality or str()}':>14}" for codec, quality in CONDITIONS)
    )
    whole: dict[tuple[int, str, int], list[tuple[bool, bool]]] = {}
    for name, folder, kind in sets:
        pictures = [(path, truth, opened(path)) for path, truth in labelled(folder, kind)]
        for scale in SCALES:
            cells = []
            for codec, quality in CONDITIONS:
                right = []
                for number, (path, truth, hr) in enumerate(pictures):
                    seen = look(under(hr, scale=scale, codec=codec, quality=quality, number=number))
                    right.append((seen.kind == truth, seen.compressed == (codec != "clean")))
                    if errors and seen.kind != truth:
                        print(f"    {path} /{scale} {codec} {quality}: art {seen.art_share:.2f}")
                whole.setdefault((scale, codec, quality), []).extend(right)
                cells.append(_cell(right))
            print(f"{f'{name} ({len(pictures)}) 1/{scale}':32}" + "".join(cells))
    for scale in SCALES:
        cells = [whole[scale, codec, quality] for codec, quality in CONDITIONS]
        print(f"{f'all ({len(cells[0])}) 1/{scale}':32}" + "".join(map(_cell, cells)))


def _cell(right: list[tuple[bool, bool]]) -> str:
    kind, compressed = (100.0 * float(np.mean(column)) for column in zip(*right, strict=True))
    return f"{kind:8.1f}{compressed:6.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--measure", nargs="*", metavar="FOLDER=KIND", help="measure, do not fit")
    parser.add_argument("--errors", action="store_true", help="print what was judged wrong")
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps the features")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.measure is not None:
        measure(given.data, given.measure, errors=given.errors)
    else:
        rows, labels = measured(given.data, given.cache)
        write(fit(rows, labels))
        print(f"{OUT}: {OUT.stat().st_size} bytes, fitted on {len(rows)} pictures")


if __name__ == "__main__":
    main()
