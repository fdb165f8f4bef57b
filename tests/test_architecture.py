"""The house as docs/architecture.md describes it: what may import what, and how large a room may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("runtime", "images", "copymove", "forgery", "report", "benchmarks")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))])
TESTS = sorted((ROOT / "tests").glob("*.py"))
SCRIPTS = ("train", "tuning", "test", "predict", "synthesis", "pretrain", "benchmark", "demo")
# What a room or a file at the top may import; `config`, `runtime` and itself always.
MAY_IMPORT = {
    "config": set(),
    "runtime": set(),
    "distributed": set(),
    "metrics": set(),
    "losses": set(),
    "images": set(),
    "copymove": set(),
    "forgery": set(),
    "report": {"metrics"},
    "correlation": set(),
    "clustering": set(),
    "backbones": set(),
    "model": {"correlation", "backbones"},
    "checkpoints": {"backbones", "model"},
    "views": {"images"},
    "dataset": {"images", "forgery"},
    "training_run": {"distributed", "images", "checkpoints"},
    "detector": {"images", "copymove", "model", "checkpoints", "clustering"},
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Modules of the project that a file imports, also inside functions; not those for annotations only."""
    known = {module_of(source) for source in SOURCES}
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & known - {module_of(path)}


def room_of(module: str) -> str:
    return module.split(".")[0]


def functions_of(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def test_imports_form_no_circle():
    """Follow every import to its end; coming back to a module that is still open is a circle."""
    graph, done = {module_of(path): imports_of(path) for path in SOURCES}, set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for needed in sorted(graph[module]):
                visit(needed, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_rooms_import_downwards_only(path):
    """A room knows nothing of what is above it; scripts and benchmarks may use every room."""
    room = room_of(module_of(path))
    if room not in MAY_IMPORT:
        assert room in SCRIPTS or room == "benchmarks", f"{room} has no place in docs/architecture.md"
        scripts = {room_of(needed) for needed in imports_of(path)} & set(SCRIPTS)
        assert room in ("benchmarks", "benchmark") or not scripts, f"a script imports {scripts}"
        return
    allowed = MAY_IMPORT[room] | {room, "config", "runtime"}
    assert {room_of(needed) for needed in imports_of(path)} <= allowed


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=module_of)
def test_sizes_stay_readable(path):
    """No function over 60 lines, no script over 350, no other file over 500."""
    lines = len(path.read_text().splitlines())
    script = path.parent == ROOT and path.stem in SCRIPTS
    assert lines <= (350 if script else 500), f"{path.name} has {lines} lines"
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions_of(path) if f.end_lineno - f.lineno + 1 > 60}
    assert not long


def private_uses(path: Path) -> list[str]:
    """Private names of other files that a file imports or reaches through a module."""
    tree, used, modules = ast.parse(path.read_text()), [], set()
    known = {module_of(source) for source in SOURCES}
    rooms = {room_of(module) for module in known}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and room_of(node.module or "") in rooms:
            used += [f"{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_")]
            modules |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name in known}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            used += [f"{node.value.id}.{node.attr}"] if private else []
    return used


def test_private_names_stay_in_their_file():
    """None is used by another file, and fewer than ten by the tests."""
    assert {module_of(path): used for path in SOURCES if (used := private_uses(path))} == {}
    assert len([name for path in TESTS for name in private_uses(path)]) < 10


@pytest.mark.parametrize("path", TESTS, ids=module_of)
def test_test_names_are_short(path):
    """At most six words; the sentence stands in the docstring."""
    long = [f.name for f in functions_of(path) if f.name.startswith("test_") and len(f.name.split("_")) > 7]
    assert not long
