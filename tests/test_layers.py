"""Who may import whom, and what library code never does.

A module imports only from rows above its own:

     0  errors  version  strips  auto  codecs  model_files  references
     0  codecs.plugins  codecs.jxl_header  codecs.ordered
     0  remote.urls
     1  failures  catalog  files  resample  color  sizes  memory  canvas  networks  pages  tiling
     1  auto.traits
     1  codecs.formats  codecs.palettes  codecs.png_stream
     1  engines.openvino_quietly  engines.openvino_gpus
     1  model_files.given_files  model_files.model_facts  model_files.key_shapes
     1  references.matching
     2  devices  download  archives  folders  remote
     2  auto.picking
     2  codecs.metadata  codecs.deep  codecs.gif_writer
     2  model_files.tensor_files  model_files.community  model_files.key_layouts_2019
     2  model_files.key_layouts_later  model_files.key_layouts_meta  model_files.key_layouts_rank
     2  model_files.key_layouts_early
     2  references.reference_inputs
     2  streaming.strip_colors
     3  engines  naming
     3  codecs.decoders  codecs.encoders
     3  model_files.key_layouts  model_files.tensor_values
     4  sequences  pictures
     4  engines.torch  engines.torch_fused  engines.ensemble  engines.openvino  engines.choice
     4  engines.cuda  engines.spread
     4  model_files.checkpoints
     4  tiled.windows  tiled.tile_sizes
     5  weights  provenance  animations  kept_starts  enlarging  headers  onnx_bytes  tiled
     5  references.reference_pictures
     6  upscaler  huge  onnx_files
     6  references.shown
     6  streaming.strip_stages
     7  streaming
     7  auto.automatic
     7  references.reference
     8  batch  models  blending  exporting
     9  bench  cluster
    10  train  compare
    11  the package itself (waifu4x/__init__.py)
    12  cli
    13  __main__

Sub-packages have rows of their own where their parts differ; within one row, and within `batch`,
`networks`, `bench`, `train`, `compare` and `cli`, modules of one package may import each other,
never in a circle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "waifu4x"
MAX_LINES = 400
MAX_FUNCTION_LINES = 60

# Read from the table above, so that the two cannot differ.
ROWS: dict[str, int] = {}
for _line in (__doc__ or "").splitlines():
    _number, _, _names = _line.strip().partition("  ")
    if _number.isdigit() and int(_number) < 11:
        ROWS |= dict.fromkeys(_names.split(), int(_number))
ROWS |= {"": 11, "cli": 12, "__main__": 13}

_WITHOUT_TORCH = """
    errors catalog files resample color tiling sizes memory canvas enlarging folders naming
    download weights strips streaming pictures upscaler models engines tiled devices
    kept_starts headers animations provenance archives
    auto.picking auto.traits
    batch.plan batch.run batch.estimates batch.merging batch.staging batch.heads
    batch.fetching
    bench.metrics bench.datasets bench.protocol bench.measures bench.niqe bench.results
    bench.sets bench.peaks bench.tables bench.run bench.page bench.similarity bench.published
    cli.app cli.upscale_run cli.bench_run
    cluster.worker cluster.driver cluster.ray_cluster cluster.asked
    codecs.formats codecs.metadata codecs.decoders codecs.encoders
    compare.results compare.grid compare.page
    engines.openvino_compiled
    huge.reading huge.writing
    model_files.model_facts model_files.given_files
    remote.urls remote.stores remote.ranged
    tiled.tile_sizes tiled.windows
    train.data train.recipe train.degrading.degrade train.doctor train.options train.tables
"""


def module_of(path: Path) -> str:
    """ "engines.torch" for waifu4x/engines/torch.py; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: dict[str, Path] = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def row_of(module: str) -> int:
    """The row of the module, or of the package that it is in."""
    while module not in ROWS:
        assert "." in module, f"{module} is in no row of the table: where does it belong?"
        module = module.rpartition(".")[0]
    return ROWS[module]


def imported(module: str, *, lazily: bool = True) -> Iterator[tuple[str, int]]:
    """(imported name, line) of every import; with `lazily` also of those within functions, without
    also not of those for type checkers alone."""
    pending: list[ast.AST] = [tree_of(module)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
        elif lazily or not (
            isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and _is_for_typing(node))
        ):
            pending += ast.iter_child_nodes(node)


def _is_for_typing(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def own_imports(module: str, *, lazily: bool = True) -> set[str]:
    """The modules of this package that `module` imports."""
    found: set[str] = set()
    for name, _ in imported(module, lazily=lazily):
        if name.partition(".")[0] == "waifu4x":
            inner = name.partition(".")[2]
            found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found - {module}


def _package_of(module: str) -> str:
    return module.partition(".")[0]


def test_the_table_knows_every_module() -> None:
    assert {row_of(module) for module in MODULES} == set(range(14))
    stale = [name for name in ROWS if name not in MODULES]
    assert stale == []


@pytest.mark.parametrize("module", [module for module in MODULES if module != ""])
def test_imports_go_upwards(module: str) -> None:
    for other in own_imports(module):
        if other == "":  # `from waifu4x import __version__`: only for those below the package
            assert row_of(module) > ROWS[""]
        elif _package_of(other) == _package_of(module):
            assert row_of(other) <= row_of(module)
        else:
            assert row_of(other) < row_of(module), f"{module} imports {other}"


def test_there_are_no_circles() -> None:
    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join((*trail, module))
        if module not in done:
            for other in own_imports(module, lazily=False):
                visit(other, (*trail, module))
            done.add(module)

    done: set[str] = set()
    for module in MODULES:
        visit(module, ())


TIES = {("devices", "engines.openvino_gpus"), ("failures", "remote.urls")}
"""What is so small that whoever needs it takes it from a room above."""


def test_packages_import_each_other_one_way() -> None:
    """Seen from afar, a package being one thing, there are no circles either."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        others = {other for other in own_imports(module) if (module, other) not in TIES}
        graph.setdefault(_package_of(module), set()).update(map(_package_of, others))
    del graph[""]

    def visit(package: str, trail: tuple[str, ...]) -> None:
        assert package not in trail, " → ".join((*trail, package))
        if package not in done:
            for other in graph.get(package, set()) - {package}:
                visit(other, (*trail, package))
            done.add(package)

    done: set[str] = set()
    for package in graph:
        visit(package, ())


def test_only_the_command_line_imports_typer_and_rich() -> None:
    for module in MODULES:
        roots = {name.partition(".")[0] for name, _ in imported(module)}
        assert module.startswith("cli") or not roots & {"typer", "rich", "click"}, module


def test_networks_can_be_copied_out_alone() -> None:
    for module in MODULES:
        if module.startswith("networks."):
            roots = {name.partition(".")[0] for name, _ in imported(module)}
            standard = {"__future__", "dataclasses", "fractions", "itertools", "math", "typing"}
            assert roots <= {*standard, "torch"}


def test_what_never_imports_torch() -> None:
    script = "import sys\n" + "".join(
        f"import waifu4x.{module}\nassert 'torch' not in sys.modules, {module!r}\n"
        for module in _WITHOUT_TORCH.split()
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "waifu4x")
def test_what_is_never_done(module: str) -> None:
    library = not module.startswith(("cli", "__main__"))
    for node in ast.walk(tree_of(module)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.keyword):
            assert node.arg != "pickle_module", line
            assert node.arg != "weights_only" or _is_true(node.value), line
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            assert not dotted.startswith(("torch.hub", "pickle.load")), line
            # Only what it has just written itself, in a folder of its own.
            assert module == "exporting" or not dotted.startswith("torch.jit.load"), line
            assert not (library and dotted in ("sys.exit", "sys.argv", "os._exit")), line
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), line
            assert not (library and node.func.id in ("print", "exit", "quit")), line
        elif isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{line}: a bare except hides KeyboardInterrupt"
    for name, line in imported(module):
        banned = ("torch.hub", "torch.jit", "dill", "cloudpickle", "joblib", "cv2", "basicsr")
        assert not name.startswith(banned), line


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_torch_load_always_says_weights_only() -> None:
    calls = [
        node
        for module in MODULES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    assert all("weights_only" in {keyword.arg for keyword in call.keywords} for call in calls)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "waifu4x")
def test_sizes(module: str) -> None:
    text = MODULES[module].read_text("utf-8")
    assert text.count("\n") < MAX_LINES
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef) and not _is_command(module, node):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length < MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def _is_command(module: str, node: ast.FunctionDef) -> bool:
    """A command's signature is its options, each with its help."""
    return module.startswith("cli.") and any(
        argument.annotation is not None and "typer." in ast.unparse(argument.annotation)
        for argument in (*node.args.args, *node.args.kwonlyargs)
    )


@pytest.mark.parametrize("module", [m for m in MODULES if MODULES[m].stat().st_size])
def test_modules_say_what_they_are_and_postpone_annotations(module: str) -> None:
    tree = tree_of(module)
    assert ast.get_docstring(tree)
    if len(tree.body) > 1 and module != "__main__":
        text = MODULES[module].read_text("utf-8")
        assert "from __future__ import annotations" in text
