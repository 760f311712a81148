"""What the documentation says exists: commands, options, files, links."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import waifu4x
from waifu4x import catalog
from waifu4x.cli.app import app
from waifu4x.train import recipe

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")
PROGRAM = typer.main.get_command(app)
# A pipeline's or a list's next command begins after one of these.
_ENDS = {"|", "||", "&&", ";", ">", ">>", "<"}


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The contents of the page's fenced blocks in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def _invocations(words: list[str]) -> Iterator[list[str]]:
    """Every call of the program in a shell line, from the word after its name on."""
    calls: list[list[str]] = []
    here: list[str] | None = None
    for number, word in enumerate(words):
        starts = number == 0 or words[number - 1] in _ENDS
        if word in _ENDS:
            here = None
        elif starts and word.rpartition("/")[2] == "waifu4x":
            here = []
            calls.append(here)
        elif here is not None:
            here.append(word)
    yield from calls


def _shell_words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def documented() -> list[tuple[str, list[str]]]:
    """Every call in a block of shell commands, and every call in backquotes."""
    found: list[tuple[str, list[str]]] = []
    for page in PAGES:
        lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]*\bwaifu4x [a-z][^`\n]*)`", text_of(page))
        for line in lines:
            if "waifu4x" in line and not line.startswith("rsvg"):
                found += [(page, call) for call in _invocations(_shell_words(line))]
    return found


def parse(call: list[str]) -> dict[str, Any]:
    """Let the real program read the words, up to the point where it would begin to work.

    Fails where a command or an option does not exist, or a value is of the wrong type.
    """
    command: Any = PROGRAM
    words = list(call)
    while hasattr(command, "commands") and words:
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    if hasattr(command, "commands") or not words:
        return {}  # the name of a command or of a group alone
    return command.make_context(command.name, words, resilient_parsing=False).params


CALLS = documented()


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_there(page: str) -> None:
    assert text_of(page).startswith("# ")
    assert text_of(page).endswith("\n")


def test_there_is_something_to_check() -> None:
    commands = {call[0] for _, call in CALLS if call}
    assert commands >= {"upscale", "models", "train", "bench", "devices"}
    assert sum(page == "README.md" for page, _ in CALLS) > 10


@pytest.mark.parametrize(("page", "call"), CALLS, ids=lambda value: str(value)[:60])
def test_every_call_is_understood(page: str, call: list[str]) -> None:
    parse(call)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("upscal a.png", "no command"),
        ("models go", "no command"),
        ("upscale a.png --colour-fix", "--colour-fix"),
        ("upscale a.png -s much", "much|number"),
    ],
)
def test_wrong_calls_would_be_noticed(wrong: str, words: str) -> None:
    with pytest.raises(Exception, match=words):
        parse(wrong.split())


def _option_names(command: Any) -> set[str]:
    names = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    for sub in getattr(command, "commands", {}).values():
        names |= _option_names(sub)
    return names | {"--help", "-h"}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_in_running_text_exists(page: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", prose)
    known = _option_names(PROGRAM)
    for span in spans:
        if span.startswith("-") or "waifu4x " in span:
            for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", span):
                assert option in known, f"{option} in `{span}`"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_lead_somewhere(page: str) -> None:
    text = text_of(page)
    here = (ROOT / page).parent
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    paths = re.findall(r"`((?:waifu4x|weights|tests|examples|benchmarks|\.ci)/[\w./-]+)`", text)
    missing = [name for name in targets if not (here / name).exists()]
    missing += [name for name in paths if not (ROOT / name).exists()]
    assert missing == []


def test_examples_named_in_commands_exist_and_are_all_described() -> None:
    for page, call in CALLS:
        for word in call:
            if word.startswith("examples/"):
                assert (ROOT / word).is_file(), f"{page}: {word}"
    described = text_of("examples/README.md")
    for path in (ROOT / "examples").iterdir():
        if path.suffix in (".png", ".jpg"):
            assert f"`{path.name}`" in described


def test_modules_named_in_contributing_exist() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", text_of("CONTRIBUTING.md"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w/.]+)`", row)}
    assert len(named) > 15
    for name in named:
        assert (ROOT / "waifu4x" / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_models_and_recipes_that_are_named_exist(page: str) -> None:
    for _, call in [each for each in CALLS if each[0] == page and each[1][:1] == ["upscale"]]:
        model = parse(call).get("model")
        if model and "/" not in model and model not in ("mine", "NAME", "my-model", catalog.AUTO):
            assert catalog.find(model)
    for name in re.findall(r"--recipe (\w+)", text_of(page)):
        assert name in recipe.preset_names()


def test_python_in_the_readme_uses_what_is_public(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run it, with a filter for the model and a small picture."""
    (block,) = blocks("README.md", "python")
    used = {
        node.attr
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "waifu4x"
    }
    assert used
    assert used <= set(waifu4x.__all__)
    code = block.replace("open_upscaler()", 'open_upscaler("bicubic")')
    assert code != block
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "meme.png").write_bytes((ROOT / "examples/emoji.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    made = waifu4x.read(tmp_path / "meme_4x.png")
    assert (made.width_px, made.height_px) == (288, 288)


def test_the_example_of_the_package_is_that_of_the_readme() -> None:
    (block,) = blocks("README.md", "python")
    doc = waifu4x.__doc__ or ""
    for call in ("open_upscaler", "read", "upscaler.upscale", "waifu4x.write"):
        assert f"{call}(" in block
        assert f"{call}(" in doc


def test_the_version_is_in_the_changelog_once_it_is_released() -> None:
    headings = re.findall(r"^## (.+)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert headings[0].startswith(("Unreleased", waifu4x.__version__, f"[{waifu4x.__version__}]"))


def test_the_readme_has_no_placeholders() -> None:
    for page in PAGES:
        assert not re.search(r"@@|TODO|FIXME|XXX|TBD", text_of(page)), page
