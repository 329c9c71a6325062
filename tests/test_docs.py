"""Docs: all commands and Python lines run on tiny runs and data; the site has no broken link.

Fenced blocks of bash and Python run in order, page by page. A block with a title is only parsed,
its commands by the real command line. With the title "pip install PACKAGE" it runs where the
package is installed. Requests of a console's curl go to the application itself; JSON and TOML are
parsed. After a change of recipes, `PYTHONPATH=.:tests python tests/test_docs.py` rewrites their
tables.
"""

import contextlib
import importlib.util
import inspect
import itertools
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
from helpers.tiny_runs import TASKS, tiny_run, write_run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RECIPES = DOCS / "recipes.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
MEASURED = [
    ROOT / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in ("index", "tour", "search", "features", "systems", "methodology")
    ),
]
FENCE = re.compile(r"^```(bash|python)(?: +title=(\"[^\"]+\"))?\n(.*?)^```$", re.M | re.S)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z.-]*[a-z](?![\w-])")
OTHER = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
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
MAX_PROSE = 100  # per line of prose, without the targets of links
PROSE = [
    *PAGES,
    *DOCS.glob("api/*.md"),
    *ROOT.glob("*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("examples/*/*.md"),
]
# words that these pages avoid, and the field's terms
GLOSSARY = {
    r"pictures?": "image",
    r"rivals?": "baseline",
    r"(?<!visible )neighbours?": "related system",
    r"anew|begins? again": "again, restart",
    r"goes on|go on": "resume, continue",
    r"held out from": "validation split",
    r"beside": "next to",
    r"rebuilds?|rebuilt": "reconstruct",
    r"told so|is told": "reported",
    r"so many": "N, this many",
    r"almost the same": "near-duplicate",
    r"blind": "image-ablated",
    r"is of no use": "has no effect",
}
COLORS = {
    "red": (220, 30, 30),
    "blue": (30, 30, 220),
    "green": (30, 160, 30),
    "white": (250, 250, 250),
}
# flags that make a recipe tiny, unless the command sets them
SHORT = {
    "--train.steps": "1",
    "--train.batch-size": "8",
    "--data.num-workers": "0",
    "--data.val-samples": "8",
    "--train.dtype": "float32",
    "--train.threads": "1",
}


class Parsed(Exception):  # noqa: N818
    """Raised where a command would start its work."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    is_run: bool
    text: str

    def commands(self) -> list[list[str]]:
        lines = re.sub(r"(^|\s)#.*", "", self.text, flags=re.M).replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line))]


def blocks(page: Path) -> list[Block]:
    return [
        Block(language, runs_here(title), text)
        for language, title, text in FENCE.findall(page.read_text())
    ]


def runs_here(title: str) -> bool:
    """Whether a block of this title, in quotes, runs."""
    package = re.fullmatch(r'"pip install ([\w-]+)"', title)
    return not title or (
        package is not None and importlib.util.find_spec(package[1].replace("-", "_")) is not None
    )


def with_blocks(*, is_run: bool) -> list[Any]:
    pages = [page for page in PAGES if any(block.is_run == is_run for block in blocks(page))]
    return [pytest.param(page, id=page.stem) for page in pages]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Write the data and tiny runs that the pages assume."""
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder):
        _write_data()
        pretrain = "pretrain tiny --data.train photos --data.val held-out --out runs/demo/pretrain"
        run_command(shlex.split(f"eve {pretrain}"))
    contrast = replace(CONTRAST_ONLY, projection_dim=8)
    for name, task in {"retrieval": contrast, "vqa": TASKS["vqa"], "nlvr2": TASKS["nlvr2"]}.items():
        write_run(tiny_run(name, task=task), folder / "runs/demo" / name)
    copies = {"tiny": "pretrain", "pretrained": "pretrain", "mine/final": "retrieval"}
    for name, original in copies.items():
        shutil.copytree(folder / "runs/demo" / original, folder / "runs" / name)
    return folder


def _write_data() -> None:
    sizes = {"photos": 24, "more": 4, "drawings": 4, "labelled/red": 4, "labelled/blue": 4}
    captions = {}
    for folder, count in sizes.items():
        Path(folder).mkdir(parents=True)
        for number in range(count):
            color = folder.partition("/")[2] or list(COLORS)[number % len(COLORS)]
            path = Path(folder, f"{number}.png")
            _write_image(path, color, seed=number + 1)
            captions[str(path)] = f"a {color} thing number {number}"
    for path, caption in captions.items():
        if path.startswith("photos"):
            Path(path).with_suffix(".txt").write_text(caption + "\n")
    for name in ("image", "left", "right"):
        shutil.copy("photos/1.png", f"{name}.png")
    photos = [path for path in captions if path.startswith("photos")]
    _write_rows("pairs", [{"image": path, "caption": captions[path]} for path in photos])
    questions = [
        {"image": path, "question": "what color is it", "answer": captions[path].split()[1]}
        for path in photos * 3
    ]
    _write_rows("questions", questions)
    _write_rows("test_questions", questions[:8])
    pairs = itertools.pairwise(photos)
    _write_rows(
        "statements",
        [{"left": a, "right": b, "sentence": "both are red", "label": a < b} for a, b in pairs],
    )
    Path("texts.txt").write_text("\n".join(captions.values()))
    Path("prompts.json").write_text(json.dumps({"red": ["a red thing"], "blue": ["a blue thing"]}))


def _write_image(path: Path, color: str, *, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 40, (24, 32, 3))
    pixels = (noise + COLORS[color]).clip(0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_command(words: list[str]) -> None:
    """Run a command of the docs; training takes one step unless the command sets the steps."""
    if words[0] != "eve":
        check_other(words)
        return
    argv = words[1:]
    if argv[:2] == ["bench", "base"]:  # twelve blocks take seconds
        argv += ["--model.depth", "2", "--model.num-deep-blocks", "1"]
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


def check_other(words: list[str]) -> None:
    """Check another program's command as far as possible without a network."""
    program, *rest = words
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.M), words
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "optional-dependencies"
        ]
        assert rest[0] == "install" and set(re.findall(r"\[(\w+)\]", rest[-1])) <= {*extras}, words
    elif program == "python3":
        assert rest == ["-m", "venv", ".venv"], words
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), words
        source = "".join(path.read_text() for path in (ROOT / rest[0]).parents[0].rglob("*.py"))
        shared = "".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
        flags = [word for word in rest if word.startswith("--")]
        assert all(f'"{flag}"' in source + shared or f'"{flag[2:]}"' in source for flag in flags), (
            words
        )
    else:
        assert words == ["source", ".venv/bin/activate"], words


@pytest.mark.parametrize("page", with_blocks(is_run=True))
def test_blocks_run(page: Path, world: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "world"))
    run_blocks = [block for block in blocks(page) if block.is_run]
    for block in run_blocks:  # outputs of a page do not exist before
        for words in block.commands() if block.language == "bash" else []:
            if "--out" in words and words[1] in ("pretrain", "finetune"):
                shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    names: dict[str, Any] = {}
    for block in run_blocks:
        if block.language == "python":
            exec(compile(block.text, page.name, "exec"), names)
            continue
        for words in block.commands():
            run_command(words)


@pytest.mark.parametrize("page", with_blocks(is_run=False))
def test_other_blocks_parse(page: Path, monkeypatch):
    def stop_after_parsing(_args: object) -> None:
        raise Parsed

    def start(_verb: str, argv: list[str], _out: Path) -> Config | None:
        init = early_flags(argv).init
        return init and get_recipe(init.name if init.name in recipes("pretrain") else "base")

    monkeypatch.setattr(train, "_start_config", start)
    monkeypatch.setattr(parsing, "refuse_missing_paths", stop_after_parsing)
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, page.name, "exec")
            continue
        for words in [] if block.is_run else block.commands():
            if words[0] == "torchrun":
                arguments = words[words.index("eve_vl") + 1 :]
            elif words[0] == "eve":
                arguments = words[1:]
            else:
                check_other(words)
                continue
            with pytest.raises(Parsed):
                main(arguments)


def test_what_curl_sends_is_answered(world: Path, tmp_path: Path, monkeypatch):
    """Run the block in a shell whose curl prints its arguments; serve the runs of the page's
    command."""
    monkeypatch.chdir(shutil.copytree(world, tmp_path / "world"))
    (script,) = (
        text
        for language, text in OTHER.findall((DOCS / "serve.md").read_text())
        if language == "console"
    )
    env = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "-euc", CURL + script],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    runs = [Eve.load(f"runs/demo/{name}") for name in ("retrieval", "vqa")]
    with serving(*runs, index=runs[0].index("photos", "photos.index")) as client:
        answers = {}
        for *flags, url in map(json.loads, done.stdout.splitlines()):
            options = dict(zip(flags[::2], flags[1::2], strict=True))
            body = options["-d"]
            if body.startswith("@"):
                body = Path(body[1:]).read_text()
            header, value = options["-H"].split(": ")
            path = urlsplit(url).path
            answers[path] = client.post(path, content=body, headers={header: value}).status_code
    assert answers == {"/v1/search": 200, "/v1/runs/vqa/answer": 200}


def test_rows_and_settings_parse():
    """Parse JSON blocks (one row per line) and TOML blocks; blocks of text are output; no other
    language is left untested."""
    data_languages = set()
    for page in [*PAGES, *ROOT.glob("examples/*/README.md")]:
        for language, text in OTHER.findall(page.read_text()):
            if language in ("bash", "python", "console", "text"):
                continue
            data_languages.add(language)
            if language == "json":
                assert all(isinstance(json.loads(line), dict) for line in text.splitlines()), page
            else:
                assert tomllib.loads(text), page
    assert data_languages == {"json", "toml"}


def test_code_fits_on_a_page_without_scrolling():
    lines = {
        line: page.name
        for page in DOCS.glob("*.md")
        for block in blocks(page)
        for line in block.text.splitlines()
    }
    assert not {line: page for line, page in lines.items() if len(line) > MAX_LETTERS}


def prose(page: Path) -> list[str]:
    """Return the lines of a page without fenced code, tables, commands, images and the targets of
    links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    lines = re.sub(r"\]\([^)]*\)", "]", text).splitlines()
    return [line for line in lines if not line.startswith(("|", "    ", "![", "--8<--"))]


def test_lines_of_prose_are_short():
    assert not {line: page.name for page in PROSE for line in prose(page) if len(line) > MAX_PROSE}


@pytest.mark.parametrize("words", GLOSSARY)
def test_pages_use_the_terms_of_the_field(words: str):
    avoided = re.compile(rf"\b({words})\b", re.I)
    quoted = re.compile(r"`[^`]*`|\"[^\"]*\"")
    offenders = {
        line: page.name
        for page in PROSE
        for line in prose(page)
        if avoided.search(quoted.sub("", line))
    }
    assert not offenders, f"write {GLOSSARY[words]}"


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
    sources = [ROOT / "benchmarks/RESULTS.md", ROOT / "LOG.md", ROOT / "pyproject.toml"]
    measured = {number for path in sources for number in re.findall(r"\d+\.\d+", path.read_text())}
    for page in MEASURED:
        text = re.sub(
            r"```.*?```|`[^`]*`|arXiv\s[\d.]+|\]\([^)]*\)", "", page.read_text(), flags=re.S
        )
        assert set(re.findall(r"\d+\.\d+", text)) <= measured, page.name


def recipe_table() -> str:
    """Return the tables of recipes.md: the first paragraphs of the recipes' docstrings."""
    parts = []
    for module, title in TITLES.items():
        rows = [f"## {title}", "", "| recipe | what, how long, how good |", "|---|---|"]
        for name, recipe in recipes(EITHER).items():
            if recipe.__module__ == module:
                text = " ".join((inspect.getdoc(recipe) or "").split("\n\n")[0].split())
                rows.append(f"| [`{name}`](api/recipes.md#{recipe.__module__}.{name}) | {text} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def test_the_tables_of_recipes_are_what_the_recipes_say():
    assert {*TITLES} == {recipe.__module__ for recipe in recipes(EITHER).values()}
    assert TABLE.findall(RECIPES.read_text()) == [recipe_table()]


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install 'eve-vl[docs]'")
def test_the_site_has_no_broken_link_and_loads_nothing_from_elsewhere(tmp_path: Path):
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {path: path.read_text() for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    assert len(pages) >= len(PAGES)
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
