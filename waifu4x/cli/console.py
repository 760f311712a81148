"""The two streams of the command line: data on stdout, everything else on stderr."""

from __future__ import annotations

from rich.console import Console

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)
