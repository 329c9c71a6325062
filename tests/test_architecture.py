"""Imports go one way: a file imports from rooms above its own in the list of CONTRIBUTING.md, which
equals the disk."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from eve_vl.config import TaskConfig
from eve_vl.config.kinds import all_kinds
from helpers.source_trees import PACKAGE, ROOT, parsed, refuse

HEADING = "## Where things live"
# `from eve_vl import Eve` imports torch, `import eve_vl` does not
ALLOWED_IN_FUNCTION = ("__init__", "eve")


@dataclass(frozen=True)
class Import:
    """A module that a file imports."""

    module: str
    is_in_function: bool


def module_name(path: Path) -> str:
    """Return `eve_vl.data.loader` for eve_vl/data/loader.py, and `eve_vl.data` for
    eve_vl/data/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TASKS = set(all_kinds(TaskConfig, "tasks"))


def room(module: str) -> str:
    """Return `data` for eve_vl.data.loader: the folder or file of the package that a module belongs
    to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def imports(path: Path) -> list[Import]:
    """Return what a file imports, also inside functions and by a string for import_module."""
    tree = parsed(path)
    in_functions: set[int] = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            in_functions.update(id(node) for node in ast.walk(function))
    file_imports: list[Import] = []
    for node in ast.walk(tree):
        for name in imported_names(node):
            file_imports.append(Import(name, id(node) in in_functions))
    return file_imports


def imported_names(node: ast.AST) -> Iterator[str]:
    """Yield the modules that a node imports."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            yield name if name in FILES else str(node.module)
    elif isinstance(node, ast.Constant) and node.value in FILES and "." in node.value:
        yield node.value


def imports_of_package() -> Iterator[tuple[str, Import]]:
    """Yield each file's module with each import from the package."""
    for module, path in FILES.items():
        for imported in imports(path):
            if imported.module in FILES:
                yield module, imported


def rooms_in_order() -> list[str]:
    """Return the rooms in the order of the list in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(rf"^{HEADING}$.*?^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None, f"CONTRIBUTING.md has no list under {HEADING!r}"
    paths = [line.split()[0] for line in block[1].splitlines() if line.strip()]
    return [Path(path).relative_to("eve_vl").with_suffix("").name for path in paths]


def test_list_of_rooms_equals_disk():
    assert sorted(rooms_in_order()) == sorted({room(module) for module in FILES})


def test_imports_come_from_rooms_above():
    order = rooms_in_order()
    offenders = []
    for module, imported in imports_of_package():
        importing_room = room(module)
        imported_room = room(imported.module)
        if (importing_room, imported_room) == ALLOWED_IN_FUNCTION:
            assert imported.is_in_function
        elif order.index(imported_room) > order.index(importing_room):
            offenders.append(f"{module} imports {imported.module}")
    refuse(offenders)


def test_no_circle_of_files():
    """A folder's __init__ may collect its files; a file that imports the folder then closes a
    circle."""
    remaining: dict[str, set[str]] = {module: set() for module in FILES}
    for module, imported in imports_of_package():
        if (room(module), room(imported.module)) != ALLOWED_IN_FUNCTION:
            remaining[module].add(imported.module)
    while remaining:
        free = {module for module, needs in remaining.items() if not needs & remaining.keys()}
        assert free, f"a circle among {sorted(remaining)}"
        for module in free:
            del remaining[module]


def test_system_is_imported_from_its_own_folder_only():
    """EVE can be read without the related systems, and each of them without the others."""
    offenders = []
    for module, imported in imports_of_package():
        if imported.module.startswith("eve_vl.systems."):
            system = ".".join(module.split(".")[:3])
            if not f"{imported.module}.".startswith(f"{system}."):
                offenders.append(f"{module} imports {imported.module}")
    refuse(offenders)


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("torch.distributed", {"train"}),
        ("tokenizers", {"data"}),
        ("onnxruntime", {"interop"}),
        ("safetensors", {"train"}),
        ("transformers", {"interop"}),
        ("fastapi", {"serve", "cli"}),
        ("pydantic", {"serve"}),
        ("jinja2", {"pages"}),
    ],
)
def test_library_stays_in_its_rooms(library, rooms):
    users = set()
    for module, path in FILES.items():
        for imported in imports(path):
            if f"{imported.module}.".startswith(f"{library}."):
                users.add(room(module))
    assert users == rooms


def test_config_and_recipes_need_no_tensors():
    for module, path in FILES.items():
        if room(module) in ("config", "recipes"):
            libraries = {imported.module.split(".")[0] for imported in imports(path)}
            assert not libraries & {"torch", "numpy", "torchvision"}, module


def test_training_loop_names_no_task():
    assert {"masked_signal", "retrieval"} <= TASKS
    for path in (PACKAGE / "train").glob("*.py"):
        for name in TASKS:
            assert not re.search(rf"\b{name}\b", path.read_text()), path


def test_nothing_outside_compares_names_of_tasks():
    """A room asks a task what it offers, never which task it is."""
    offenders = []
    for module, path in FILES.items():
        if room(module) in ("tasks", "systems"):
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Compare | ast.MatchValue):
                words = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                if words & TASKS:
                    offenders.append(f"{module}:{node.lineno}")
    refuse(offenders)
