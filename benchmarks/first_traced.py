"""The command line, with a note of where its time goes: `first` runs this under -X importtime.

    python -X importtime benchmarks/first_traced.py ARGUMENTS OF waifu4x

Each line of Python's own on standard error is an import; those in between, which begin with @, say
that a part begins, how many seconds it took, and when all of it began and ended.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import io
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

_PARTS = {
    "waifu4x.model_files.checkpoints": {"load": "weights"},
    "waifu4x.engines.choice": {"open_engine": "engine"},
    "waifu4x.batch.stages": {"decode": "decoding", "enlarge": "inference", "encode": "encoding"},
}
"""Functions whose time is taken, by module; what they import is taken off later."""


class _Noting(importlib.abc.MetaPathFinder):
    """Wraps functions once their module is imported: to import it here would change the order."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _PARTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            for function, part in _PARTS[name].items():
                setattr(module, function, _noted(getattr(module, function), part))

        spec.loader.exec_module = execute_and_wrap
        return spec


def _noted(work: Callable[..., Any], part: str) -> Callable[..., Any]:
    @functools.wraps(work)
    def noted(*arguments: Any, **named: Any) -> Any:
        _say(f"@begin {part}")
        began = time.perf_counter()
        try:
            return work(*arguments, **named)
        finally:
            _say(f"@end {part} {time.perf_counter() - began}")

    return noted


def _say(line: str) -> None:
    # Not by sys.stderr: Python writes its lines about imports to the descriptor.
    os.write(2, f"{line}\n".encode())


def main() -> None:
    sys.meta_path.insert(0, _Noting())
    _say(f"@started {time.time()}")
    # Else the command would keep everything but its own messages from standard error.
    sys.stderr = io.StringIO()
    # Here lie modules of other names only, but those of the program should come first.
    sys.path.pop(0)
    from waifu4x.cli.app import main as command

    try:
        command()
    finally:
        _say(f"@ended {time.time()}")


if __name__ == "__main__":
    main()
