"""The key layouts of the autoencoder, A+ and ScSR, as `key_layouts` knows those of others.

All are this project's own; nobody has published weights of them.
"""

from __future__ import annotations

from waifu4x.model_files.key_shapes import Found, Metadata, State, as_colors, count_of, root_of
from waifu4x.networks.aplus import WINDOW, AplusConfig
from waifu4x.networks.autoencoder import AutoencoderConfig
from waifu4x.networks.scsr import ScSRConfig


def autoencoder(state: State, metadata: Metadata) -> Found | None:
    """encoder, decoder, picture, up and perhaps down; whether a ReLU ends it, no key tells."""
    if not {"encoder.0.weight", "decoder.0.weight", "picture.weight"} <= set(state):
        return None
    widths = [int(state[f"encoder.{place}.weight"].shape[0]) for place in (0, 2, 4)]
    halved = "down.weight" in state
    config = AutoencoderConfig(
        scale=2 ** count_of(state, r"up\.(\d)\.weight") // (2 if halved else 1),
        channels=(widths[0], widths[1], widths[2]),
        head="antialiased" if halved else "plain",
        channels_in=as_colors(state["picture.weight"].shape[1]),
    )
    return "autoencoder", config, dict(state)


def aplus(state: State, metadata: Metadata) -> Found | None:
    """components, anchors, regressors."""
    if set(state) != {"components.weight", "anchors", "regressors"}:
        return None
    anchors, features, numbers = state["regressors"].shape
    config = AplusConfig(scale=root_of(numbers) // WINDOW, anchors=anchors, features=features)
    return "aplus", config, dict(state)


def scsr(state: State, metadata: Metadata) -> Found | None:
    """atoms and patches; the scale is what the file states, else the default one."""
    if set(state) != {"atoms", "patches"}:
        return None
    stated = metadata.get("scale", "")
    scale = int(stated) if stated in ("2", "3", "4") else ScSRConfig.scale
    return "scsr", ScSRConfig(scale=scale, atoms=state["atoms"].shape[0]), dict(state)
