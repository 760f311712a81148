"""What the self-contained HTML pages have in common."""

from __future__ import annotations

import base64
import hashlib
import math


def content_policy(style: str, script: str) -> str:
    """A Content-Security-Policy under which nothing is loaded, and nothing runs but this script.

    Pictures may be in the page itself (``data:``). `style` and `script` are the texts between the
    tags, to the byte.
    """
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )


def nice_ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers in low..high; `low` alone where there is no room between."""
    raw = (high - low) / count
    if raw <= 0.0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    pitches = (power * m for m in (1, 2, 2.5, 5, 10))
    pitch = min(pitches, key=lambda pitch: abs(math.log(pitch / raw)))
    first = math.ceil(low / pitch - 1e-9)
    ticks = [n * pitch for n in range(first, math.floor(high / pitch + 1e-9) + 1)]
    return [float(f"{tick:.10g}") for tick in ticks]


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
