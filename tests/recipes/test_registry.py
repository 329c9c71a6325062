"""Recipes are found by name, by file and by system."""

import ast
import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eve_vl
from eve_vl.recipes.registry import EITHER, find_recipe, recipes, start_of

PREFIXES_OF_SYSTEMS = {
    "vlmo": ("vlmo_",),
    "mlim": ("mlim_",),
    "medical": ("m3ae_", "medflip_"),
}
MODULES = (
    "eve_vl.tasks.masked_signal.recipes",
    "eve_vl.tasks.contrast_match.recipes",
    "eve_vl.tasks.vqa.recipes",
    "eve_vl.tasks.nlvr2.recipes",
    "eve_vl.tasks.retrieval.recipes",
    "eve_vl.tasks.classification.recipes",
    "eve_vl.systems.vlmo.recipes",
    "eve_vl.systems.mlim.recipes",
    "eve_vl.systems.medical.m3ae.recipes",
    "eve_vl.systems.medical.medflip.recipes",
)
LIST_RECIPES = """
from eve_vl.cli.main import main
from eve_vl.recipes.registry import EITHER, recipes
print(*recipes(EITHER))
main(["help"])
"""
LIST_SYSTEMS = """
import sys
from eve_vl.recipes.registry import get_recipe, is_recipe
get_recipe("demo")
is_recipe("finetune", "nothing")
if {recipe!r}:
    get_recipe({recipe!r})
for name in sys.modules:
    if name.startswith("eve_vl.systems."):
        print(name.split(".")[2])
"""


def functions_by_arguments(source: str) -> dict[str, list[str]]:
    """Return the functions of no argument and those of `init`, in the order of the file."""
    functions = {"pretrain": [], "finetune": []}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            arguments = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
            if arguments == []:
                functions["pretrain"].append(node.name)
            elif arguments == ["init"]:
                functions["finetune"].append(node.name)
    return functions


@pytest.mark.parametrize("name", MODULES)
def test_every_recipe_of_a_module_is_registered_and_documented(name):
    module = importlib.import_module(name)
    functions = functions_by_arguments(inspect.getsource(module))
    for verb, expected in functions.items():
        names = []
        for recipe_name, recipe in recipes(verb).items():
            if recipe.__module__ != name:
                continue
            names.append(recipe_name)
            assert recipe is getattr(module, recipe_name)
            text = recipe.__doc__ or ""
            assert f"{verb} {recipe_name}" in text
            assert text.splitlines()[0].endswith(".")  # the list of recipes shows the first line
        assert names == expected


def test_a_recipe_without_its_docstring_starts_from_the_same_run(monkeypatch):
    """As under python -OO."""
    finetuning = recipes("finetune")
    starts = {name: start_of(name, recipe) for name, recipe in finetuning.items()}
    for recipe in finetuning.values():
        monkeypatch.setattr(recipe, "__doc__", None)
    for name, start in starts.items():
        assert start_of(name, find_recipe("finetune", name)) == start
    assert starts["demo_vqa"] == "demo"
    assert starts["vqa"] == "base"
    assert starts["m3ae_tiny_vqa"] == "m3ae_tiny"
    assert set(filter(None, starts.values())) <= recipes("pretrain").keys()


@pytest.mark.parametrize(
    "systems",
    [
        ("vlmo", "mlim"),
        ("medical",),
    ],
)
def test_eve_and_other_systems_work_without_the_folders_of_some(systems, tmp_path):
    shutil.copytree(Path(eve_vl.__file__).parent, tmp_path / "eve_vl")
    prefixes: tuple[str, ...] = ()
    for system in systems:
        shutil.rmtree(tmp_path / "eve_vl" / "systems" / system)
        prefixes += PREFIXES_OF_SYSTEMS[system]
    done = subprocess.run(
        [sys.executable, "-c", LIST_RECIPES],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = [name for name in recipes(EITHER) if not name.startswith(prefixes)]
    assert done.stdout.splitlines()[0].split() == expected


@pytest.mark.parametrize(
    ("recipe", "systems"),
    [
        ("", set()),
        ("mlim_tiny", {"mlim"}),
    ],
)
def test_a_recipe_loads_no_system_but_its_own(recipe, systems):
    code = LIST_SYSTEMS.format(recipe=recipe)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == systems
