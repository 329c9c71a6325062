"""Imports go one way, and the tree in CONTRIBUTING.md equals the disk."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from eve_vl.config import TaskConfig, all_kinds
from eve_vl.tasks import task_class

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "eve_vl"

# Room: the rooms that it imports from, besides its own, and no others. Data and model never meet below the tasks.
MAY_IMPORT = {
    "utils": set(),
    "__init__": {"eve"},
    "builtin": {"utils"},
    "config": {"utils"},
    "recipes": {"utils", "config"},
    "data": {"utils", "config"},
    "synthetic": {"utils", "config", "data"},
    "model": {"utils", "config"},
    "objectives": set(),
    "metrics": set(),
    "train": {"utils", "__init__", "config", "metrics"},
    "tasks": {"utils", "config", "data", "model", "objectives", "metrics", "train"},
    "evaluation": {"utils", "config", "data", "model", "metrics", "train", "tasks"},
    "predict": {"utils", "config", "data", "model", "metrics", "tasks", "evaluation"},
    "run": {
        "utils",
        "builtin",
        "config",
        "data",
        "model",
        "metrics",
        "train",
        "tasks",
        "evaluation",
    },
    "interop": {
        "utils",
        "builtin",
        "config",
        "recipes",
        "data",
        "model",
        "objectives",
        "train",
        "tasks",
        "predict",
        "run",
    },
    "search": {"utils", "__init__", "builtin", "config", "data", "train", "predict", "run"},
    "eve": {"utils", "builtin", "config", "train", "predict", "run", "interop", "search"},
    "serve": {"utils", "__init__", "config", "data", "synthetic", "predict", "search", "eve"},
    "report": {
        "utils",
        "builtin",
        "config",
        "recipes",
        "data",
        "synthetic",
        "model",
        "metrics",
        "train",
        "tasks",
        "evaluation",
        "predict",
        "run",
    },
    "systems": {
        *(
            "utils",
            "config",
            "recipes",
            "data",
            "synthetic",
            "model",
            "objectives",
            "metrics",
            "train",
            "tasks",
            "evaluation",
            "predict",
        ),
        *("interop", "report"),
    },
    "demo": {
        "utils",
        "config",
        "recipes",
        "data",
        "metrics",
        "train",
        "evaluation",
        "run",
        "report",
    },
    "learn": {
        *(
            "utils",
            "builtin",
            "config",
            "recipes",
            "data",
            "metrics",
            "train",
            "evaluation",
            "run",
            "eve",
            "report",
        ),
    },
    "cli": {
        "utils",
        "__init__",
        "builtin",
        "config",
        "recipes",
        "data",
        "synthetic",
        "metrics",
        "train",
        "tasks",
        "evaluation",
        "predict",
        "run",
        "interop",
        "search",
        "eve",
        "serve",
        "report",
        "demo",
        "learn",
    },
    "__main__": {"cli"},
}
INSIDE_A_FUNCTION = {
    ("__init__", "eve"),  # `from eve_vl import Eve` imports torch, `import eve_vl` doesn't
}
HEADING = "## Where things live"

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`eve_vl.data.loader` for eve_vl/data/loader.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """The part after `eve_vl`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache  # each file is asked about by many tests
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, and whether it does so inside a function."""
    return list(found_imports(path))


def found_imports(path: Path) -> Iterator[tuple[str, bool]]:
    tree = parsed(path)
    nested = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in nested
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module), id(node) in nested


def own_imports(path: Path) -> list[tuple[str, bool]]:
    """Those of this package."""
    return [
        (name, is_nested)
        for name, is_nested in imports(path)
        if name == "eve_vl" or name.startswith("eve_vl.")
    ]


def test_every_room_has_its_line_in_the_table():
    assert {room_of(module) for module in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    room = room_of(module)
    for name, is_nested in own_imports(MODULES[module]):
        assert name in MODULES, f"{module} imports {name}, which is not a module of this package"
        other = room_of(name)
        if other == room or other in MAY_IMPORT[room]:
            continue
        assert (room, other) in INSIDE_A_FUNCTION, f"{module} may not import {name}"
        assert is_nested, f"{module} may import {name} inside a function only"


def test_no_room_may_import_what_it_does_not():
    """A permission that nobody uses would hide the first import that should not be."""
    used = {
        (room_of(m), room_of(name)) for m, path in MODULES.items() for name, _ in own_imports(path)
    }
    allowed = {(room, other) for room, others in MAY_IMPORT.items() for other in others}
    assert {(room, other) for room, other in used if room != other} == allowed | INSIDE_A_FUNCTION


def test_files_do_not_import_each_other_in_a_circle():
    """Nor inside functions. A package's __init__ may collect its files; a file that imports the package closes a circle."""
    edges = {
        module: {
            name
            for name, _ in own_imports(path)
            if (room_of(module), room_of(name)) not in INSIDE_A_FUNCTION
        }
        for module, path in MODULES.items()
    }
    finished: set[str] = set()
    while len(finished) < len(edges):
        ready = {
            module
            for module, others in edges.items()
            if module not in finished and others <= finished
        }
        assert ready, f"a circle among {sorted(set(edges) - finished)}"
        finished |= ready


def test_a_system_is_imported_from_its_own_folder_only():
    """EVE can be read without the related systems, and each of them without the others."""
    for module, path in MODULES.items():
        own = ".".join(module.split(".")[:3])
        foreign = [
            name
            for name, _ in own_imports(path)
            if name.startswith("eve_vl.systems") and not f"{name}.".startswith(f"{own}.")
        ]
        assert not foreign, f"{module} imports {foreign}"


TOKENIZER_FILES = {
    f"eve_vl.data.{name}"
    for name in ("tokenizer", "byte_level_bpe", "bert_vocabulary", "clip_tokenizers")
}


@pytest.mark.parametrize(
    ("library", "only"),
    [
        ("torch.distributed", {"eve_vl.train.processes", "eve_vl.train.shard"}),
        ("torch.distributed.fsdp", {"eve_vl.train.shard"}),
        ("torch.distributed.tensor", {"eve_vl.train.shard"}),
        ("torch.distributed.device_mesh", {"eve_vl.train.shard"}),
        ("torch.nn.parallel", {"eve_vl.train.processes"}),
        ("tokenizers", TOKENIZER_FILES),
        ("onnxruntime", {"eve_vl.interop.onnx"}),
        ("safetensors", {"eve_vl.train.checkpoint"}),
    ],
)
def test_one_owner_per_library(library, only):
    users = {
        m
        for m, path in MODULES.items()
        for name, _ in imports(path)
        if name == library or name.startswith(f"{library}.")
    }
    assert users == only


def test_libraries_that_stay_in_their_rooms():
    rooms = {"transformers": {"interop"}, "fastapi": {"serve", "cli"}, "pydantic": {"serve"}}
    users = {
        (name.split(".")[0], room_of(m)) for m, path in MODULES.items() for name, _ in imports(path)
    }
    assert {
        library: {room for name, room in users if name == library} for library in rooms
    } == rooms


def test_configs_and_recipes_know_no_tensors():
    for module, path in MODULES.items():
        if room_of(module) in ("config", "recipes"):
            assert not {name.split(".")[0] for name, _ in imports(path)} & {
                "torch",
                "numpy",
                "torchvision",
            }, module


TASKS = list(all_kinds(TaskConfig, "tasks"))


def test_the_training_loop_knows_no_tasks_name():
    assert TASKS
    for path in (PACKAGE / "train").glob("*.py"):
        assert not [name for name in TASKS if re.search(rf"\b{name}\b", path.read_text())], path


def test_no_room_compares_a_name_with_a_tasks():
    """But the tasks, the forms of earlier versions and each task's own page."""
    for module, path in MODULES.items():
        if room_of(module) in ("tasks", "config", "systems") or (
            room_of(module) == "report" and path.stem in TASKS
        ):
            continue
        compared = [
            node
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Compare | ast.MatchValue)
        ]
        words = {
            word.value
            for node in compared
            for word in ast.walk(node)
            if isinstance(word, ast.Constant)
        }
        assert not words & {*TASKS}, f"{module} compares a name with {words & {*TASKS}}"


def test_rooms_ask_a_task_what_it_has_and_never_which_it_is():
    classes = [task_class(kind).__name__ for kind in all_kinds(TaskConfig, "tasks").values()]
    assert {"MaskedSignal", "Retrieval", "VQA", "NLVR2", "Classification"} <= {*classes}
    asks = re.compile(rf"isinstance\([^)]*({'|'.join(classes)})")
    for module, path in MODULES.items():
        if room_of(module) in ("tasks", "config", "recipes", "predict", "systems"):
            continue
        assert not asks.search(path.read_text()), f"{module} asks a task which it is"
        own = path.stem if room_of(module) in ("report", "evaluation") else None
        concrete = {f"eve_vl.tasks.{name}" for name in TASKS if name != own}
        if own is None or own in TASKS:  # what report files share is theirs
            found = [
                name
                for name, _ in own_imports(path)
                if name.rpartition(".")[0] in concrete or name in concrete
            ]
            assert not found, f"{module} imports {found}"


def test_a_task_has_few_members():
    """Its section, dataset, training and raw outputs; metrics, calls and other formats have rooms of their own."""
    body = next(
        node
        for node in parsed(PACKAGE / "tasks/task.py").body
        if getattr(node, "name", None) == "Task"
    )
    assert isinstance(body, ast.ClassDef)
    functions = [node.name for node in body.body if isinstance(node, ast.FunctionDef)]
    attributes = [node.target for node in body.body if isinstance(node, ast.AnnAssign)]
    attributes += [
        target for node in body.body if isinstance(node, ast.Assign) for target in node.targets
    ]
    names = {*functions, *(name.id for name in attributes if isinstance(name, ast.Name))}
    assert len([name for name in names if not name.startswith("_")]) <= 15, sorted(names)


def tree() -> dict[str, Path]:
    """The paths of the tree, as written and on disk."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(
        rf"^{HEADING}$(?:(?!^## ).)*?^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"CONTRIBUTING.md has no fenced block under {HEADING!r}"
    written = [line.split()[0] for line in found[1].splitlines() if line.strip()]
    assert len(written) == len(set(written)), "a path is listed twice"
    return {name.rstrip("/"): ROOT / name for name in written}


def test_the_tree_exists_on_disk():
    missing = [name for name, path in tree().items() if not path.exists()]
    assert not missing, f"CONTRIBUTING.md lists {missing}"


def test_the_tree_lists_every_room():
    """Files of a folder are covered by the folder's line; the folders' own files may be listed too."""
    listed = set(tree())
    rooms = [
        path
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))
    ]
    missing = sorted(
        str(path.relative_to(ROOT)) for path in rooms if str(path.relative_to(ROOT)) not in listed
    )
    assert not missing, f"CONTRIBUTING.md does not list {missing}"
