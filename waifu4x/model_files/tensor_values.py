"""Taking single tensors of known shape out of a file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from waifu4x.model_files.given_files import fail
from waifu4x.model_files.tensor_files import TensorFile


def take_floats(
    file: TensorFile, key: str, *, path: Path, shape: Sequence[int], what: str, cure: str
) -> Tensor:
    """The file's tensor `key`, of `shape`, as float32 and all finite: a copy of its own.

    Args:
        path: the file's, for messages.
        what: what the file should be ("VGG-19"), and `cure`, what its user can do, likewise.

    Raises CheckpointError when the tensor is missing, has another shape, is no plain floats, or
    holds NaN or infinity.
    """
    content = file.content if isinstance(file.content, dict) else {}
    # The class's own methods, here and below: a pickle can set attributes that hide them.
    tensor = dict.get(content, key)
    if not _is_plain(tensor) or tensor.shape != torch.Size(shape):
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else "not there"
        problem = f"is no {what}: {key} is {found}, not floats of {tuple(shape)}; {cure}"
        fail(path, problem, sha256=file.sha256)
    # A copy: a mapped tensor would change, or vanish, with its file.
    values = Tensor.to(Tensor.detach(tensor), torch.float32, copy=True)
    if not bool(torch.isfinite(values).all()):
        fail(path, f"holds NaN or infinity in {key}; {cure}", sha256=file.sha256)
    return values


def _is_plain(tensor: object) -> TypeGuard[Tensor]:
    """Whether it is a dense float tensor, whose values may be looked at."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    )
