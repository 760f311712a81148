"""Convolutions and what follows them in one step, on CPUs, in bf16.

A convolution writes its features to memory; an activation or a sum behind it reads and writes them
again, which takes as long as the convolution itself where they are too many for the caches. oneDNN
does both at once, and PyTorch has that operation for what `torch.compile` makes; here it is called
without compiling anything: a convolution waits for what is done with its result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SUMS = (Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add)


def is_possible() -> bool:
    """Whether this PyTorch has the operation; it is not a part of the documented interface."""
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_convolution_pointwise"
    )


class FusedConvolutions(TorchFunctionMode):
    """Within it, under autocast, a convolution and the activation or the sum after it are one.

    Results differ from those outside by what bf16 rounds: a sum is rounded once and not twice, and
    batch normalisation becomes a part of the convolution's weights.

    Attributes:
        fused: how many there were; a network without any is a little faster outside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return _begun(*args, **kwargs)
        result = _joined(func, args, kwargs)
        if result is None:
            return func(*map(_done, args), **{key: _done(value) for key, value in kwargs.items()})
        self.fused += 1
        return result


def _joined(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A waiting convolution together with `func`; None where they do not go together."""
    if func in _SUMS and len(args) == 2 and not kwargs:
        for one, other in (args, args[::-1]):
            if isinstance(one, _Waiting) and one.may_be_added_to(other):
                return one.added_to(other)
    first = args[0] if args else None
    if not isinstance(first, _Waiting) or first.is_computed:
        return None
    if func is functional.relu:
        return first.activated("relu", [])
    if func is functional.leaky_relu:
        slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
        return first.activated("leaky_relu", [slope])
    if func is torch.prelu and args[1].numel() == 1:
        return first.activated("leaky_relu", [args[1].item()])
    if func is functional.batch_norm and not kwargs.get("training"):
        return first.normalised(*args[1:], **kwargs)
    return None


def _begun(
    x: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    x = _done(x)
    how = (padding, stride, dilation)
    numbers = all(isinstance(n, tuple) for n in how)
    if not numbers or not torch.is_autocast_enabled("cpu"):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    dtype = torch.get_autocast_dtype("cpu")
    return _Waiting(x.to(dtype), weight, bias, (*how, groups))


def _done(value: Any) -> Any:
    """The tensor that a waiting convolution gives; everything else as it is."""
    if isinstance(value, _Waiting):
        return value.tensor
    if isinstance(value, list | tuple):
        return type(value)(map(_done, value))
    return value


class _Waiting:
    """A convolution that is computed when it is known what is done with it."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple) -> None:
        self._given = (x, weight, bias)
        self._how = how
        self._tensor: Tensor | None = None

    def _in_one_dtype(self) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight, bias = self._given
        return x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)

    def dim(self) -> int:
        """Batch normalisation asks, and need not wait for the values."""
        return 4

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # For functions that are called when the mode was left already.
        return func(*map(_done, args), **(kwargs or {}))

    @property
    def tensor(self) -> Tensor:
        """The convolution alone; it is computed once."""
        if self._tensor is not None:
            return self._tensor
        # The plain one: with nothing to fuse it is the faster of the two. By its full name it does
        # not come back to the mode.
        padding, stride, dilation, groups = self._how
        alone: Tensor = torch.ops.aten.conv2d.default(
            *self._in_one_dtype(), stride, padding, dilation, groups
        )
        self._tensor = alone
        return alone

    @property
    def is_computed(self) -> bool:
        """It was used alone: to join it with something now would compute it again."""
        return self._tensor is not None

    def activated(self, name: str, numbers: list[float]) -> Tensor:
        x, weight, bias = self._in_one_dtype()
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, *self._how, name, numbers, ""
        )

    def normalised(
        self,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor,
        bias: Tensor,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> _Waiting:
        """A convolution that gives what batch normalisation makes of this one in eval mode."""
        x, kernel, shift = self._given
        factor = weight * (variance + eps).rsqrt()
        moved = bias - mean * factor if shift is None else (shift - mean) * factor + bias
        scaled = kernel * factor.view(-1, 1, 1, 1)
        return _Waiting(x, scaled, moved, self._how)

    def may_be_added_to(self, other: Any) -> bool:
        x, weight, _ = self._given
        return (
            isinstance(other, Tensor)
            and self._tensor is None
            and other.dtype == x.dtype
            and other.dim() == 4
            and other.shape[:2] == (x.shape[0], weight.shape[0])
        )

    def added_to(self, other: Tensor) -> Tensor:
        x, weight, bias = self._in_one_dtype()
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, other, weight, bias, *self._how, "add", 1.0, None, [], None
        )

    def __add__(self, other: Any) -> Any:
        return torch.add(self, other)  # pyright: ignore[reportArgumentType]  # the mode takes it

    __radd__ = __add__

    def __mul__(self, other: Any) -> Any:
        return self.tensor * other

    __rmul__ = __mul__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)
