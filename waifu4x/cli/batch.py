"""``waifu4x batch``: what is to be done about folders that several hosts have worked on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from waifu4x.cli.console import say

if TYPE_CHECKING:
    from waifu4x.batch.merging import Merged

app = typer.Typer(
    help="Folders that several hosts work on.",
    epilog="Example: [bold]waifu4x batch merge big/[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.callback()
def _root() -> None:
    """Without it typer would take the only command for the whole."""


@app.command()
def merge(
    folder: Annotated[
        str, typer.Argument(help="The output folder of the shards.", show_default=False)
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output.")
    ] = False,
) -> None:
    """Put the journals of all shards into one.

    Nothing depends on it: every run reads all journals. It says which shards have none.

    Example: waifu4x batch merge big/
    """
    from waifu4x.batch import merging  # it needs Pillow, and --help does not
    from waifu4x.remote import urls

    merged = merging.merge(urls.location(folder))
    if as_json:
        facts = {
            "journal": str(merged.path),
            "done": merged.done,
            "failed": merged.failed,
            "merged": [f"{index}/{count}" for index, count in merged.shards],
            "missing": [
                f"{index}/{count}" for count, rest in merged.missing.items() for index in rest
            ],
            "left": [path.name for path in merged.left],
        }
        typer.echo(json.dumps(facts))
        return
    for line in _in_words(merged):
        say(line)


def _in_words(merged: Merged) -> list[str]:
    journals = f"{len(merged.shards)} journal{'' if len(merged.shards) == 1 else 's'} of shards"
    lines = [f"{merged.path}: {merged.done} done, {merged.failed} failed; {journals} merged"]
    for count, missing in merged.missing.items():
        if missing:
            which = f"shard{'' if len(missing) == 1 else 's'} {_ranges(missing)} of {count}"
            lines.append(f"no journal of {which}: not run yet, or merged before")
    lines += [
        f"{path.name} was written to meanwhile: merge again when its shard has ended"
        for path in merged.left
    ]
    return lines


def _ranges(numbers: list[int]) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    texts: list[str] = []
    start = numbers[0]
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        if following != number + 1:
            texts.append(str(start) if start == number else f"{start}-{number}")
            start = following or number
    return ", ".join(texts)
