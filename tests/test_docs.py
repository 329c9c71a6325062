"""Docs: all commands and Python lines run on tiny runs and data; the site has no broken link.

Fenced blocks of bash and Python run in order, page by page; a training takes one step, unless its
command says how many. A block with a title is only parsed, its commands by the real command line.
With the title "pip install PACKAGE" it runs where the package is installed. Requests of a console's
curl go to the application itself; JSON and TOML are parsed. After a change of recipes,
`PYTHONPATH=.:tests python tests/test_docs.py` rewrites their tables.
"""

import contextlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from eve_vl.cli import parsing, train
from eve_vl.cli.main import main
from eve_vl.cli.recipe_flags import early_flags
from eve_vl.config import Config
from eve_vl.eve import Eve
from eve_vl.recipes.registry import EITHER, get_recipe, recipes
from eve_vl.tasks.retrieval.recipes import CONTRAST_ONLY
from helpers.serving import serving
from helpers.source_files import write_jsonl
from helpers.tiny_runs import TASKS, tiny_run, write_run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RECIPES = DOCS / "recipes.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PAGES_WITH_NUMBERS = ("README", "index", "tour", "search", "features", "systems", "methodology")
FENCE = re.compile(r'^```(\w+)(?: +title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z.-]*[a-z](?![\w-])")
CURL = 'curl() { "$PYTHON" -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"; }\n'
LINK = re.compile(r'<(a|link|script|img)\b[^>]*?\s(?:href|src)="([^"]+)"')
TABLE = re.compile(r"(?<=<!-- table -->\n\n).*(?=\n\n<!-- end -->)", re.S)
# titles of the recipe tables by file
TITLES = {
    "eve_vl.tasks.masked_signal.recipes": "Pre-training",
    "eve_vl.tasks.contrast_match.recipes": "Pre-training with other losses, for comparison",
    "eve_vl.tasks.vqa.recipes": "Questions",
    "eve_vl.tasks.nlvr2.recipes": "Statements about two images",
    "eve_vl.tasks.retrieval.recipes": "Search",
    "eve_vl.tasks.classification.recipes": "Labels",
    "eve_vl.systems.vlmo.recipes": "VLMo",
    "eve_vl.systems.mlim.recipes": "MLIM",
    "eve_vl.systems.medical.m3ae.recipes": "M3AE",
    "eve_vl.systems.medical.medflip.recipes": "MedFLIP",
}
MAX_LETTERS = 88  # per line of code
COLORS = {
    "red": (220, 30, 30),
    "blue": (30, 30, 220),
    "green": (30, 160, 30),
    "white": (250, 250, 250),
}
# flags that make a training tiny, unless the command sets them
SHORT = {
    "--train.steps": "1",
    "--train.batch-size": "8",
    "--data.num-workers": "0",
    "--data.val-samples": "8",
    "--train.dtype": "float32",
    "--train.threads": "1",
}
MOST_ROWS = 200  # that `eve data write` writes here


class Parsed(Exception):  # noqa: N818
    """Raised where a command would start its work."""


def stop_after_parsing(*_: object, **__: object) -> None:
    raise Parsed


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    title: str
    text: str

    @property
    def is_run(self) -> bool:
        """Whether the block runs here, not only where some package or machine is."""
        package = re.fullmatch(r"pip install ([\w-]+)", self.title)
        if package is None:
            return not self.title
        return importlib.util.find_spec(package[1].replace("-", "_")) is not None

    def commands(self) -> list[list[str]]:
        text = re.sub(r"(^|\s)#.*", "", self.text, flags=re.M).replace("\\\n", " ")
        return [shlex.split(line) for line in text.splitlines() if line.strip()]


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of some languages in the order of a page."""
    all_blocks = [Block(*match) for match in FENCE.findall(page.read_text())]
    return [block for block in all_blocks if block.language in languages]


def pages_with_blocks(*, is_run: bool) -> list[Any]:
    pages = []
    for page in PAGES:
        if any(block.is_run == is_run for block in blocks(page, "bash", "python")):
            pages.append(pytest.param(page, id=page.stem))
    return pages


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Write the data and tiny runs that the pages assume."""
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder):
        write_data()
        pretrain = "pretrain tiny --data.train photos --data.val held-out --out runs/demo/pretrain"
        run_command(["eve", *pretrain.split()])
    contrast = replace(CONTRAST_ONLY, projection_dim=8)
    for name, task in {"retrieval": contrast, "vqa": TASKS["vqa"], "nlvr2": TASKS["nlvr2"]}.items():
        write_run(tiny_run(name, task=task), folder / "runs/demo" / name)
    copies = {"tiny": "pretrain", "pretrained": "pretrain", "mine/final": "retrieval"}
    for name, original in copies.items():
        shutil.copytree(folder / "runs/demo" / original, folder / "runs" / name)
    return folder


def write_data() -> None:
    """Write folders of images, and tables of photos, into the working directory."""
    sizes = {
        "photos": 24,
        "more": 4,
        "drawings": 4,
        "labelled/red": 4,
        "labelled/blue": 4,
    }
    captions = []
    for folder, count in sizes.items():
        Path(folder).mkdir(parents=True)
        for number in range(count):
            color = folder.partition("/")[2] or list(COLORS)[number % len(COLORS)]
            noise = np.random.default_rng(number + 1).integers(0, 40, (24, 32, 3))
            pixels = (noise + COLORS[color]).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{number}.png")
            captions.append(f"a {color} thing number {number}")
            if folder == "photos":
                Path(folder, f"{number}.txt").write_text(captions[-1] + "\n")
    for name in ("image", "left", "right"):
        shutil.copy("photos/1.png", f"{name}.png")

    pairs = []
    questions = []
    statements = []
    for number, caption in enumerate(captions[: sizes["photos"]]):
        image = f"photos/{number}.png"
        pairs.append({"image": image, "caption": caption})
        color = caption.split()[1]
        questions += [{"image": image, "question": "what color is it", "answer": color}] * 3
        next_image = f"photos/{(number + 1) % sizes['photos']}.png"
        statement = {"left": image, "right": next_image, "sentence": "both are red"}
        statements.append(statement | {"label": number % 2 == 0})
    write_jsonl(Path("pairs.jsonl"), pairs)
    write_jsonl(Path("questions.jsonl"), questions)
    write_jsonl(Path("test_questions.jsonl"), questions[::9])
    write_jsonl(Path("statements.jsonl"), statements)
    Path("texts.txt").write_text("\n".join(captions))
    Path("prompts.json").write_text(json.dumps({"red": ["a red thing"], "blue": ["a blue thing"]}))


def run_command(words: list[str]) -> None:
    """Run a command of the docs on few rows; training takes one step unless the command sets the
    steps."""
    if words[0] != "eve":
        check_command_of_another_program(words)
        return
    argv = words[1:]
    if argv[:2] == ["bench", "base"]:  # twelve blocks take seconds
        argv += ["--model.depth", "2", "--model.num-deep-blocks", "1"]
    if "--rows" in argv:
        argv[argv.index("--rows") + 1] = str(MOST_ROWS)
    if argv[0] not in ("pretrain", "finetune"):
        main(argv)
        return

    defaults = dict(SHORT)
    if "held-out" in argv:
        defaults["--data.val-fraction"] = "0.25"
    for flag, value in defaults.items():
        if flag not in words:
            argv += [flag, value]
    # a report takes longer than the step; pages that need one write it
    with mock.patch("eve_vl.report.page.write_report", str):
        main(argv)


def check_command_of_another_program(words: list[str]) -> None:
    """Check as much as is possible without a network."""
    program, *arguments = words
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = set(re.findall(r"\[(\w+)\]", arguments[-1]))
        assert arguments[0] == "install", words
        assert extras <= project["optional-dependencies"].keys(), words
    elif program == "python":
        script = ROOT / arguments[0]
        files = [*script.parent.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
        source = "".join(path.read_text() for path in files)
        for flag in FLAG.findall(" ".join(arguments)):
            assert f'"{flag}"' in source or f'"{flag[2:]}"' in source, words
    else:
        assert shlex.join(words) in ("python3 -m venv .venv", "source .venv/bin/activate")


@pytest.mark.parametrize("page", pages_with_blocks(is_run=True))
def test_blocks_run(
    page: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch,
):
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "world"))
    steps: list[list[str] | str] = []  # commands and Python code
    for block in blocks(page, "bash", "python"):
        if block.is_run:
            steps += [block.text] if block.language == "python" else block.commands()
    for step in steps:
        if step[1] in ("pretrain", "finetune") and "--out" in step:
            # what the page trains does not exist before
            shutil.rmtree(step[step.index("--out") + 1], ignore_errors=True)
    names: dict[str, Any] = {}
    for step in steps:
        if isinstance(step, str):
            exec(compile(step, page.name, "exec"), names)
        else:
            run_command(step)


@pytest.mark.parametrize("page", pages_with_blocks(is_run=False))
def test_other_blocks_parse(page: Path, monkeypatch):
    def start(_verb: str, argv: list[str], _out: Path) -> Config | None:
        init = early_flags(argv).init
        return init and get_recipe(init.name if init.name in recipes("pretrain") else "base")

    monkeypatch.setattr(train, "_start_config", start)
    monkeypatch.setattr(parsing, "refuse_missing_paths", stop_after_parsing)
    for block in blocks(page, "bash", "python"):
        if block.language == "python":
            compile(block.text, page.name, "exec")
            continue
        if block.is_run:
            continue
        for words in block.commands():
            if words[0] == "torchrun":
                words = ["eve", *words[words.index("eve_vl") + 1 :]]  # noqa: PLW2901
            if words[0] != "eve":
                check_command_of_another_program(words)
                continue
            with pytest.raises(Parsed):
                main(words[1:])


def test_what_curl_sends_is_answered(world: Path, tmp_path: Path, monkeypatch):
    """Run the block in a shell whose curl prints its arguments; serve the runs of the page's
    command."""
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "world"))
    (console,) = blocks(DOCS / "serve.md", "console")
    done = subprocess.run(
        ["bash", "-euc", CURL + console.text],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    runs = [Eve.load(f"runs/demo/{name}") for name in ("retrieval", "vqa")]
    with serving(*runs, index=runs[0].index("photos", "photos.index")) as client:
        statuses = {}
        for *flags, url in map(json.loads, done.stdout.splitlines()):
            options = dict(zip(flags[::2], flags[1::2], strict=True))
            body = options["-d"]
            if body.startswith("@"):
                body = Path(body[1:]).read_text()
            header, value = options["-H"].split(": ")
            path = urlsplit(url).path
            statuses[path] = client.post(path, content=body, headers={header: value}).status_code
    assert statuses == {"/v1/search": 200, "/v1/runs/vqa/answer": 200}


def test_rows_and_settings_parse():
    """JSON has a row per line; blocks of text are output; no other language is left untested."""
    languages = set()
    for page in [*PAGES, *ROOT.glob("examples/*/README.md")]:
        for language, _, text in FENCE.findall(page.read_text()):
            languages.add(language)
            if language == "json":
                assert all(isinstance(json.loads(line), dict) for line in text.splitlines()), page
            elif language == "toml":
                assert tomllib.loads(text), page
    assert languages == {"bash", "python", "console", "text", "json", "toml"}


def test_code_fits_on_a_page_without_scrolling():
    for page in DOCS.glob("*.md"):
        for block in blocks(page, "bash", "python"):
            long_lines = [line for line in block.text.splitlines() if len(line) > MAX_LETTERS]
            assert not long_lines, page.name


def test_flags_in_the_text_exist():
    sources = [
        ROOT / "tests/cli/test_command_line.py",
        *ROOT.glob("benchmarks/**/*.py"),
        *ROOT.glob("examples/*/*.py"),
    ]
    flags = {"--help", "--code"}
    for path in sources:
        flags.update(FLAG.findall(path.read_text()))
    of_torchrun = re.compile("nproc|node|master|restarts|rdzv|standalone|array")
    for page in PAGES:
        for flag in FLAG.findall(page.read_text()):
            positive = flag.replace("--no-", "--").replace(".no-", ".")
            assert {flag, positive} & flags or of_torchrun.search(flag), (page.name, flag)


def test_numbers_in_the_text_were_measured():
    measured: set[str] = set()
    for name in ("benchmarks/RESULTS.md", "LOG.md", "pyproject.toml"):
        measured.update(re.findall(r"\d+\.\d+", (ROOT / name).read_text()))
    code_and_targets = re.compile(r"```.*?```|`[^`]*`|arXiv\s[\d.]+|\]\([^)]*\)", re.S)
    for page in PAGES:
        if page.stem in PAGES_WITH_NUMBERS:
            text = code_and_targets.sub("", page.read_text())
            assert set(re.findall(r"\d+\.\d+", text)) <= measured, page.name


def recipe_table() -> str:
    """Return the tables of recipes.md: the first paragraphs of the recipes' docstrings."""
    tables = []
    for module, title in TITLES.items():
        rows = [f"## {title}", "", "| recipe | what, how long, how good |", "|---|---|"]
        for name, recipe in recipes(EITHER).items():
            if recipe.__module__ == module:
                paragraph = (inspect.getdoc(recipe) or "").split("\n\n")[0]
                text = " ".join(paragraph.split())
                rows.append(f"| [`{name}`](api/recipes.md#{module}.{name}) | {text} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def test_the_tables_of_recipes_are_what_the_recipes_say():
    assert {*TITLES} == {recipe.__module__ for recipe in recipes(EITHER).values()}
    assert TABLE.findall(RECIPES.read_text()) == [recipe_table()]


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install 'eve-vl[docs]'")
def test_the_site_has_no_broken_link_and_loads_nothing_from_elsewhere(tmp_path: Path):
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    pages = {path: path.read_text() for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= len(PAGES)
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    for path, text in pages.items():
        for tag, link in set(LINK.findall(text)):
            url = urlsplit(link)
            where = f"{path.name}: {link}"
            if url.scheme or url.netloc:
                assert tag == "a", where
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert target.exists(), where
            if url.fragment and not url.fragment.startswith("__"):
                assert unquote(url.fragment) in ids[target], where


if __name__ == "__main__":
    RECIPES.write_text(TABLE.sub(lambda _: recipe_table(), RECIPES.read_text()))
