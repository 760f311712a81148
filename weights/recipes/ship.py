"""Put a model that was trained into `weights/`, in half precision, under its name in the catalogue.

    python weights/recipes/ship.py runs/art-x4/art-x4.safetensors waifu4x-art

What the file says of its training is kept. Weights are stored in float16, which changes no picture
by more than rounding does; sha256 and size in `weights/catalog.toml` are set, where the model has a
table already.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path

from waifu4x.model_files import checkpoints

WEIGHTS = Path(__file__).resolve().parents[1]


def ship(trained: Path, name: str) -> None:
    """Write ``weights/NAME.safetensors`` and its row's hash."""
    model = checkpoints.load(trained)
    target = WEIGHTS / f"{name}.safetensors"
    checkpoints.save(model.network.half(), target, metadata={**model.metadata, "name": name})
    data = target.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    print(f'sha256 = "{digest}"\nsize_bytes = {len(data)}')
    catalog = WEIGHTS / "catalog.toml"
    text = catalog.read_text(encoding="utf-8")
    row = re.compile(
        rf'(file = "{re.escape(target.name)}"\nsha256 = ")\w+("\nsize_bytes = )\d+', re.MULTILINE
    )
    catalog.write_text(row.sub(rf"\g<1>{digest}\g<2>{len(data)}", text), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trained", type=Path)
    parser.add_argument("name")
    given = parser.parse_args()
    ship(given.trained, given.name)
