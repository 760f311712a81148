"""Workers on a Ray cluster; the only module that imports ray.

Ray starts processes, restarts none, and carries messages of some kilobytes: no picture goes through
its object store. https://docs.ray.io/en/latest/ray-core/actors.html
"""

from __future__ import annotations

import logging
import os
import queue
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from waifu4x.batch.limits import POLL_S
from waifu4x.cluster.links import Handle, WorkerDied
from waifu4x.cluster.messages import Place
from waifu4x.cluster.worker import Worker
from waifu4x.errors import ClusterError, UsageError, Waifu4xError

AUTO, LOCAL = "auto", "local"

_CORES = 4
"""Of a worker: one network keeps so many busy, and leaves memory for the others."""
_CONNECT_S = 120.0
_KNOCK_S = 10.0
_ANSWER_S = 300.0
"""A worker that does not answer for so long is as good as dead: no call of it takes a second."""
_DIES_WITHIN_S = 5.0
_LEAVE_S = 60.0
# What Ray allows at least: nothing is put there.
_STORE_BYTES = 80 * 2**20
# Sockets lie in the folder of a cluster, and their paths are short: unix(7).
_SHORT_FOLDER = Path("/tmp")
# As `cli.allocator` for this process; https://man7.org/linux/man-pages/man3/mallopt.3.html
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(256 << 20), "MALLOC_TRIM_THRESHOLD_": str(512 << 20)}
_OWN_VARIABLES = "WAIFU4X_"


class RayCluster:
    """A cluster that runs already, or one that is started on this machine and ended with the run.

    Ray is called in a thread of its own, and in those of `links`: a signal that arrives in its code
    might be lost there. The processes that it starts live no longer than that thread.
    """

    def __init__(self, address: str, *, cores: int | None, gpus: bool | None) -> None:
        """
        Args:
            address: ``auto``, ``local`` or ``HOST:PORT``; see `connect`.
            cores: of each worker; None is 4. Machines with fewer give one worker all of theirs.
            gpus: one worker for each GPU, and none elsewhere; None is where there are any.
        """
        self._address = address
        self._cores = cores
        self._gpus = gpus
        self._folder: str | None = None
        self._connected = False
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None]
        self._asked = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def connect(self) -> None:
        """Reach the cluster, or start it. Raises UsageError or ClusterError."""
        if not self._connected:
            self._thread = threading.Thread(target=self._serve, name="ray", daemon=True)
            self._thread.start()
            with _own_handlers():
                self._ask(self._connect, within_s=_CONNECT_S)
            self._connected = True

    def places(self) -> list[Place]:
        """Where workers may run, by what machines have in all: what others use they give back."""
        import ray

        return places_of(self._ask(ray.nodes), cores=self._cores, gpus=self._gpus)

    def open(self, place: Place) -> Handle:
        """Call for a worker; Ray starts it when the machine has room."""
        return _RayHandle(place)

    def close(self) -> None:
        """Leave the cluster, or end the one that was started."""
        if self._thread is None:
            return
        self._connected = False
        self._asked.put((_shut_down, queue.SimpleQueue()))
        self._asked.put(None)
        self._thread.join(_LEAVE_S)
        self._thread = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, question: Callable[[], Any], *, within_s: float = _ANSWER_S) -> Any:
        """What the function gives in Ray's thread. Raises what it raises, or ClusterError."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._asked.put((question, answers))
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            with suppress(queue.Empty):
                answer = answers.get(timeout=POLL_S)
                if isinstance(answer, BaseException):
                    raise answer
                return answer
        raise ClusterError(f"Ray does not answer within {within_s:.0f} s: see `ray status`")

    # -- Ray's thread ------------------------------------------------------------------------------

    def _serve(self) -> None:
        while (asked := self._asked.get()) is not None:
            question, answers = asked
            try:
                answers.put(question())
            except BaseException as error:  # whatever it is, it must be heard of
                answers.put(error)

    def _connect(self) -> None:
        _knock(self._address)
        ray = _imported()
        options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
        if self._address == LOCAL:
            if _SHORT_FOLDER.is_dir() and os.access(_SHORT_FOLDER, os.W_OK):
                self._folder = tempfile.mkdtemp(prefix="w4x-", dir=_SHORT_FOLDER)
                options["_temp_dir"] = self._folder
            options |= {
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                # Workers have an environment of their own: those that lie ready would be of no use.
                "_system_config": {
                    "enable_worker_prestart": False,
                    "prestart_worker_first_driver": False,
                },
            }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(self._address, **options)
        except Exception as error:  # Ray has no error of its own for this
            raise _no_cluster(self._address, error) from error


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Meanwhile Ray puts a handler of its own before that of SIGTERM, which must go again.

    It calls the one before it, but three seconds later it ends the process by SIGABRT, however much
    there is to finish: https://github.com/abseil/abseil-cpp/blob/master/absl/debugging/failure_signal_handler.h
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change handlers
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except BaseException:
        if hasattr(signal, "alarm"):
            signal.alarm(0)  # it may have been a signal
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _imported() -> Any:
    """Ray, silenced: what it has to say is in its own log files."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        import ray._private.worker
        import ray.util.scheduling_strategies
    # Only now, because importing it sets the level too.
    logging.getLogger("ray").setLevel(logging.CRITICAL + 1)
    # Deaths of workers are printed to standard output, whatever `log_to_driver` says.
    if hasattr(ray._private.worker, "_worker_logs_enabled"):
        ray._private.worker._worker_logs_enabled = False
    return ray


def _knock(address: str) -> None:
    """Whether anybody is there: Ray would ask again for minutes. Raises ClusterError."""
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", AUTO)
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): check the address, "
            f"and that it runs (`ray status --address={address}`)"
        ) from error


def _shut_down() -> None:
    import ray

    with suppress(Exception):  # it is left in any case
        ray.shutdown()


def _no_cluster(address: str, error: Exception) -> Waifu4xError:
    reason = _first_sentence(error)
    if address == LOCAL:
        return ClusterError(f"Ray does not start on this machine: {reason}")
    if address == AUTO and isinstance(error, ConnectionError):
        return UsageError(
            "no Ray cluster runs on this machine, and RAY_ADDRESS names none: start one by `ray "
            "start --head`, or give --ray local for one that lasts as long as this command"
        )
    return ClusterError(
        f"the Ray cluster at {address} cannot be reached: {reason}; this machine must be one of "
        f"it (`ray start --address=HOST:PORT`)"
    )


def places_of(
    nodes: Iterable[dict[str, Any]], *, cores: int | None, gpus: bool | None
) -> list[Place]:
    """One worker for each GPU, or for each share of cores.

    Results of GPUs and of CPUs differ in their last bit, so one run is done by one kind: by GPUs
    where there is any, unless `gpus` says otherwise.

    nodes: as `ray.nodes()` gives them.
    """
    alive = [(node, node.get("Resources", {})) for node in nodes if node.get("Alive")]
    if gpus is None:
        gpus = any(has.get("GPU", 0) >= 1 for _, has in alive)
    places: list[Place] = []
    for node, has in alive:
        there = int(has.get("CPU", 0))
        each = min(cores or _CORES, there)
        count = int(has.get("GPU", 0)) if gpus else there // max(1, each)
        if gpus and count:
            each = min(each, there // count)
        if count and (gpus or each):
            name = str(node.get("NodeManagerHostname") or node.get("NodeManagerAddress"))
            key = str(node["NodeID"])
            place = Place(node=name, key=key, cores=each, gpu=gpus, share=1.0 / count)
            places += [place] * count
    return places


class _RayHandle:
    """One actor."""

    def __init__(self, place: Place) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray: Any = ray
        self._node = place.node
        threads = str(max(1, place.cores))
        variables = {name: os.environ[name] for name in os.environ if _OWN_VARIABLES in name}
        # Read when torch, OpenVINO and the allocator are loaded, so before any code of ours.
        variables |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if sys.platform == "linux":
            variables |= _ALLOCATOR
        self._actor: Any = (
            ray.remote(Worker)
            .options(
                num_cpus=place.cores,
                num_gpus=int(place.gpu),
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": variables},
                # Where that machine is gone, another one will do.
                scheduling_strategy=NodeAffinitySchedulingStrategy(place.key, soft=True),
            )
            .remote()
        )
        self._has_answered = False

    def call(self, method: str, *arguments: Any, wanted: Callable[[], bool]) -> Any:
        """See `links.Handle`. How long Ray looks for room is up to whoever calls."""
        errors = self._ray.exceptions
        until_s = time.monotonic() + _ANSWER_S
        try:
            answer = getattr(self._actor, method).remote(*arguments)
            while wanted():
                with suppress(errors.GetTimeoutError):
                    told = self._ray.get(answer, timeout=POLL_S)
                    self._has_answered = True
                    return told
                if self._has_answered and time.monotonic() > until_s:
                    raise WorkerDied(f"it did not answer for {_ANSWER_S:.0f} s")
        except errors.RayActorError as error:
            if getattr(error, "actor_init_failed", False):
                raise ClusterError(_cannot_begin(self._node, error)) from error
            raise WorkerDied(_first_sentence(error)) from error
        except errors.RayTaskError as error:
            raise ClusterError(_cannot_begin(self._node, error)) from error
        except errors.RayError as error:
            raise WorkerDied(_first_sentence(error)) from error
        raise WorkerDied("it was let go of")

    def kill(self) -> None:
        """End the actor, and wait a moment until it has ended: then nothing is written any more."""
        with suppress(Exception):  # it is dead already, or the cluster is
            self._ray.kill(self._actor)
            if self._has_answered:
                self._ray.get(self._actor.facts.remote(), timeout=_DIES_WITHIN_S)


def _cannot_begin(node: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"{node} cannot run a worker ({lines[-1] if lines else error}): install the same "
        f"waifu4x[ray] on all machines of the cluster"
    )


def _first_sentence(error: Exception) -> str:
    """The reason within what Ray says, which is a page with advice."""
    text = " ".join(str(error).split())
    if found := re.search(r"Worker exit detail: (.*)", text) or re.search(
        r"The actor (?:is dead|died) because (.*)", text
    ):
        text = found[1]
    return re.split(r"\.(?: (?=[A-Z])|$)", text, maxsplit=1)[0][:300]
