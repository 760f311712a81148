"""What ``--ray`` asks for: whether it can be, and the cluster for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from waifu4x import weights
from waifu4x.batch import outputs
from waifu4x.batch.request import STREAM, Request
from waifu4x.cluster.driver import Distribution
from waifu4x.cluster.messages import Order
from waifu4x.cluster.ray_cluster import AUTO, LOCAL, RayCluster
from waifu4x.errors import UnknownModelError, UsageError

_CLIENT = "ray://"
_GPUS = {"auto": None, "cpu": False, "cuda": True}


def check(request: Request, *, address: str, device: str) -> None:
    """Refuse what no cluster can do, before any work. Raises UsageError."""
    if find_spec("ray") is None:
        raise UsageError(
            "--ray needs Ray: pip install 'waifu4x[ray]', on all machines of a cluster"
        )
    given = f"--ray {address!r}"
    if address == AUTO and (named := os.environ.get("RAY_ADDRESS")):
        address, given = named, f"RAY_ADDRESS={named}"
    if address.startswith(_CLIENT):
        raise UsageError(
            f"{address} is for Ray's client, which does not tell of workers that die: run this on "
            f"a machine of the cluster with --ray auto, or by `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if address not in (AUTO, LOCAL) and (not host or "/" in host or not port.isdecimal()):
        raise UsageError(f"{given} is no cluster: give auto, local or HOST:PORT")
    if STREAM in request.inputs or request.output == STREAM:
        raise UsageError("--ray works on files: - is none, so give files or folders, and -o")
    if outputs.folder_for(request, "") is None:
        raise UsageError("--ray needs one folder for all outputs: give it with -o")
    if device not in _GPUS:
        raise UsageError(
            f"--ray gives every worker a GPU of its own, or cores: --device {device} is not for "
            f"it; auto, cpu and cuda are"
        )


@contextmanager
def distributed(
    request: Request,
    *,
    address: str,
    cores: int | None,
    model: str,
    wishes: dict[str, Any],
    connect: bool,
    on_note: Callable[[str], None],
) -> Iterator[Distribution]:
    """The cluster, for as long as the block lasts.

    Args:
        address: ``auto``, ``local`` or ``HOST:PORT``.
        cores: of each worker that has no GPU; None is 4, or what the machine has.
        model, wishes: what a worker gives `models.open_upscaler`.
        connect: reach a cluster that runs now, and not only when there is something to do: planning
            may take long, and a wrong address should not wait for it.

    Raises:
        UsageError, ClusterError.
    """
    cluster = RayCluster(address, cores=cores, gpus=_GPUS[wishes["device"]])
    try:
        if connect and address != LOCAL:
            cluster.connect()
        order = Order(request=request, model=model, wishes=wishes, filters=_is_filter(model))
        yield Distribution(cluster=cluster, order=order, on_note=on_note)
    finally:
        cluster.close()


def planning_wishes(model: str, wishes: dict[str, Any]) -> dict[str, Any]:
    """How the model is opened where the plan is made: it enlarges nothing there.

    So it takes no GPU from a worker, and asks for nothing that only a GPU can.
    """
    if _is_filter(model):
        return wishes
    return {**wishes, "device": "cpu", "precision": "auto", "compiled": False}


def _is_filter(model: str) -> bool:
    """Whether it is a resampling filter; those run on no device."""
    try:
        return weights.find(model).kind == "resample"
    except UnknownModelError:
        return False  # a path, or nothing at all: who opens it says which
