"""The autoencoder: the published counts and shapes, what its head reaches, and where it looks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from waifu4x.networks.autoencoder import AUTOENCODER_SIZES, Autoencoder, AutoencoderConfig

TINY = (4, 6, 8)


def autoencoder(**numbers: object) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(**{"channels": TINY, **numbers})).eval()  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # 64·3·64 + 64 + 192·64·4 + 192 + 256·192·4 + 256, and as much back: 516,867.
        ("autoencoder", 516_867),
        # 3·3·4 + 3 for every kernel of the head.
        ("autoencoder-x2-plain", 516_906),
        ("autoencoder-literal", 516_945),
        ("autoencoder-x2", 516_984),
        ("autoencoder-x4", 517_023),
    ],
)
def test_published_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = Autoencoder(AUTOENCODER_SIZES[name])
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@torch.inference_mode()
def test_the_shapes_on_the_way_are_the_published_ones() -> None:
    seen: list[tuple[int, ...]] = []
    network = autoencoder(scale=1, head="plain")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(lambda m, x, y: seen.append(tuple(y.shape[1:])))
    network(torch.zeros(1, 3, 224, 224))
    sides = [(4, 56), (6, 59), (8, 62), (6, 59), (4, 56), (3, 224)]
    assert seen == [(channels, side, side) for channels, side in sides]


@pytest.mark.parametrize("head", ["plain", "antialiased"])
@pytest.mark.parametrize("scale", [1, 2, 4])
@torch.inference_mode()
def test_the_head_reaches_the_scale(scale: int, head: str) -> None:
    y = autoencoder(scale=scale, head=head)(torch.rand(2, 3, 8, 12))
    assert y.shape == (2, 3, 8 * scale, 12 * scale)


@torch.inference_mode()
def test_the_halving_convolution_averages_away_a_checkerboard() -> None:
    network = autoencoder(scale=2)
    for layer in network.up:
        assert isinstance(layer, nn.ConvTranspose2d)
        layer.weight.zero_()
        assert layer.bias is not None
        layer.bias.zero_()
        for channel in range(3):
            # Every pixel becomes a board of 0.5 and 1.5 times itself.
            board = torch.tensor([[0.5, 1.5], [1.5, 0.5]])
            layer.weight[channel, channel] = board
    assert network.down is not None
    assert network.down.bias is not None
    network.down.weight.zero_()
    network.down.bias.zero_()
    for channel in range(3):
        network.down.weight[channel, channel] = 0.25
    x = torch.rand(1, 3, 8, 8)
    small = network.picture(network.decoder(network.encoder(x))).relu()
    # The first board is averaged over; the second one's factors are left, and they are the mean 1
    # of four neighbours: so the result is the first board.
    wanted = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = wanted * torch.tensor([[0.5, 1.5], [1.5, 0.5]]).repeat(8, 8)
    torch.testing.assert_close(network(x), wanted)


@torch.inference_mode()
def test_a_final_relu_is_an_option_and_not_the_default() -> None:
    x = torch.rand(1, 3, 16, 16)
    for scale in (1, 2):
        open_ended = autoencoder(scale=scale)
        assert open_ended.down is not None
        assert open_ended.down.bias is not None
        open_ended.down.bias -= 0.2
        closed = autoencoder(scale=scale, final_relu=True)
        closed.load_state_dict(open_ended.state_dict())
        y = open_ended(x)
        assert y.min() < 0.0
        torch.testing.assert_close(closed(x), y.clamp(min=0.0), rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"scale": 3}, "power of two"),
        ({"scale": 0}, "power of two"),
        ({"channels": (4, 4)}, "three positive widths"),
        ({"head": "twice"}, "antialiased or plain"),
    ],
)
def test_nonsense_is_refused(numbers: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AutoencoderConfig(**numbers)  # pyright: ignore[reportArgumentType]
