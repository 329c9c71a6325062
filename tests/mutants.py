"""Mutation testing with mutmut: the share of small changes to the core that fast tests notice.

    .venv/bin/pip install 'mutmut>=3.8'
    .venv/bin/python tests/mutants.py --sample 80  # resumes; to restart, delete mutants/

`[tool.mutmut]` in pyproject.toml names the mutated files and their tests. The same seed samples the
same mutants of the same code. Mutants that only change `strict` of `zip`, an assertion, are left
out. mutmut leaves out code outside functions and decorated functions; texts of raised errors are
left out, too.
"""

import argparse
import ast
import difflib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random

FOLDER = Path("mutants")  # mutmut's
NOTICED = (1, 3, 24, 36, 152, 255, -24, -9, -11)  # exit codes: a failed test, a hang, a crash


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change and what the tests said."""

    change: str
    code: int | None
    """Exit code of the tests; None: not run yet."""


class Plain(ast.NodeTransformer):
    """Removes what no test can notice."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "strict"]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = "_"
        return self.generic_visit(node)


def mutants_of(meta: Path) -> dict[str, Mutant]:
    """Return the mutants of a file by name; meta: mutmut's record next to the file."""
    lines_by_function = {}
    for node in ast.walk(ast.parse(meta.with_suffix("").read_text())):
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
            name = node.name
            lines_by_function[name] = ast.unparse(Plain().visit(node)).splitlines()
    mutants = {}
    for key, code in json.loads(meta.read_text())["exit_code_by_key"].items():
        name = key.rpartition(".")[2]
        original = lines_by_function[f"{name.rpartition('_')[0]}_orig"]
        difference = difflib.unified_diff(original, lines_by_function[name], lineterm="", n=0)
        header = ("---", "+++", "@@")
        change = "\n".join(line for line in difference if not line.startswith(header))
        if change:
            mutants[key] = Mutant(change=change, code=code)
    return mutants


def print_survivors(meta: Path, sample: Sequence[str]) -> None:
    """Print the share of sampled mutants of a file that tests notice, and the other ones."""
    mutants = mutants_of(meta)
    survivors = [name for name in sorted(sample) if mutants[name].code not in NOTICED]
    share = 1 - len(survivors) / len(sample)
    file = meta.with_suffix("").relative_to(FOLDER)
    print(f"{file}: {share:.3f} of {len(sample)} noticed, of {len(mutants)} mutants")
    for name in survivors:
        print(f"  {name}\n{mutants[name].change}")


def main() -> None:
    """Test a sample of mutants of each file; print shares and survivors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=80,
        help="mutants per file",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--children",
        type=int,
        default=1,
        help="processes",
    )
    options = parser.parse_args()
    run = (sys.executable, "-m", "mutmut", "run", "--max-children", str(options.children))
    if not FOLDER.exists():
        print("making mutants and recording which tests reach them, some minutes", flush=True)
        subprocess.run([*run, "no such mutant"], check=False, capture_output=True)
    samples = {}
    for meta in sorted(FOLDER.rglob("*.meta")):
        names = sorted(mutants_of(meta))
        if names:
            size = min(options.sample, len(names))
            samples[meta] = Random(options.seed).sample(names, size)
    if not samples:
        parser.error("mutmut made no mutants: see what `python -m mutmut run` says")
    subprocess.run([*run, *chain.from_iterable(samples.values())], check=True)
    for meta, sample in samples.items():
        print_survivors(meta, sample)


if __name__ == "__main__":
    main()
