"""The page about a folder of runs: one pre-trained run, and each task fine-tuned from it and from random weights."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eve_vl.config import Config, MaskedSignalConfig
from eve_vl.errors import UserError
from eve_vl.files import write_file
from eve_vl.report.evidence import gather
from eve_vl.report.example_cards import examples_section, searches_section
from eve_vl.report.examples import gather_examples
from eve_vl.report.markup import esc, missing, section
from eve_vl.report.overview import card_group, pixel_cards, token_cards
from eve_vl.report.page import document, navigation
from eve_vl.report.results import learning_section, results_section
from eve_vl.report.routing import Routing, routing_charts
from eve_vl.report.run_config import command_line
from eve_vl.report.search import gather_searches
from eve_vl.report.sections import captions_section, pictures_section
from eve_vl.run import LoadedRun, load_run, read_config

PRETRAIN = "pretrain"
SCRATCH = "_scratch"
TASKS = {"vqa": "Questions", "nlvr2": "Statements", "retrieval": "Search"}
PARTS = {
    "results": "Results",
    "learning": "Learning",
    "pretraining": "Pre-training",
    "pictures": "Pictures",
    "captions": "Captions",
    **TASKS,
    "routing": "Routing",
    "commands": "Commands",
}
NUM_PAIRS = 6
NUM_EACH = 4  # right examples, and wrong ones, of each task
NUM_SEEN = 96


def write_story(folder: Path, out: Path | None = None) -> Path:
    """Write the page about a folder that holds `pretrain`, `TASK` and `TASK_scratch` runs and their numbers, metrics.json.

    Returns its path; default: report.html in the folder. What is not there is left out with a sentence. The page holds
    everything that it shows and refers to nothing outside. Raises UserError if `folder` holds none of the runs.
    """
    path = out or folder / "report.html"
    text = story(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)
    return path


def story(folder: Path) -> str:
    """Return the HTML of the page."""
    numbers, configs = _numbers(folder), _configs(folder)
    if not configs:
        raise UserError(f"{folder}: holds none of the runs {', '.join(_names())}")
    parts = [_pretraining(folder, numbers), *(_task(folder, name) for name in TASKS)]
    sections = [
        results_section(numbers),
        learning_section(folder),
        *(html for part in parts for html in part.sections),
        _routing_section([(name, part) for name, part in zip([PRETRAIN, *TASKS], parts, strict=True)]),
        _commands_section(configs),
    ]
    return document("the whole story", "\n".join([_header(configs), navigation(PARTS, sections), *sections]))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The sections about one run and, unless it is missing, what its routers chose."""

    sections: Sequence[str]
    config: Config | None = None
    routing: Routing | None = None


def _pretraining(folder: Path, numbers: Mapping[str, float]) -> _Part:
    def show(run: LoadedRun) -> _Part:
        task = run.config.task
        if not isinstance(task, MaskedSignalConfig):
            raise UserError(f"{run.folder}: a {task.name} run, not a pre-trained one")
        evidence = gather(run, num_shown=NUM_PAIRS)
        cards = ""
        if "mlm_acc" in numbers:
            cards += card_group("Masked tokens", "", token_cards(dict(numbers)))
        if "mim_mse" in numbers:
            cards += card_group("Masked pixels", "Lower is better.", pixel_cards(dict(numbers), task))
        intro = (
            "Before it saw a question, the model learnt one thing: to fill in what is hidden, patches of a picture with the "
            "help of its caption, and words of a caption with the help of its picture."
        )
        return _Part(
            sections=[
                section("pretraining", "Pre-training", intro, cards or missing("There are no numbers of validation.")),
                pictures_section(evidence.pairs, task),
                captions_section(evidence.pairs[: NUM_PAIRS // 2 + 1], task),
            ],
            config=run.config,
            routing=evidence.routing,
        )

    return _shown(folder / PRETRAIN, "pretraining", "Pre-training", show)


def _task(folder: Path, name: str) -> _Part:
    def show(run: LoadedRun) -> _Part:
        if run.config.task.name != name:
            raise UserError(f"{run.folder}: a {run.config.task.name} run, expected {name}")
        if name == "retrieval":
            searches = gather_searches(run, num_each=NUM_EACH // 2)
            return _Part(sections=[searches_section(searches, name, title)], config=run.config, routing=searches.routing)
        examples = gather_examples(run, num_each=NUM_EACH, num_seen=NUM_SEEN)
        return _Part(sections=[examples_section(examples, name, title)], config=run.config, routing=examples.routing)

    title = TASKS[name]
    return _shown(folder / name, name, title, show)


def _shown(run: Path, name: str, title: str, show: Callable[[LoadedRun], _Part]) -> _Part:
    """Return what is shown of a run, or the section that says why it is left out."""
    try:
        return show(load_run(run))
    except UserError as error:
        return _Part(sections=[section(name, title, "", missing(f"Left out: {esc(error)}."))])


def _routing_section(parts: Sequence[tuple[str, _Part]]) -> str:
    body = "".join(
        f"<h3>{TASKS.get(name, 'Pre-training')}</h3>{routing_charts(part.routing, part.config)}"
        for name, part in parts
        if part.routing is not None and part.config is not None and part.routing.shares_ME
    )
    intro = (
        "In the last blocks each token chooses its experts. Bars: how the choices of all image tokens, and of all text "
        "tokens, of some validation rows spread over them; each modality sums to 100 %. No expert is told which to serve."
    )
    return section("routing", "Routing", intro, body or missing("No run with a <code>moe</code> block is there."))


def _commands_section(configs: Mapping[str, Config]) -> str:
    lines = []
    for config in configs.values():
        try:
            lines.append(command_line(replace(config, train=replace(config.train, threads=0))))
        except UserError:  # the recipe of another version
            continue
    commands = "\n".join(map(esc, lines))
    return section("commands", "Commands", "What makes each run.", f"<pre><code>{commands}</code></pre>")


def _header(configs: Mapping[str, Config]) -> str:
    first = configs.get(PRETRAIN) or next(iter(configs.values()))
    model = first.model
    facts = {
        "encoder": f"{model.depth} blocks × {model.embed_dim}, {model.image_size}² pixels in {model.num_patches} patches",
        "experts": f"{model.top_k} of {model.num_experts} per token, in {model.ffn_policies.count('moe')} blocks",
        "training": ", ".join(
            f"{_title(name)} {config.train.steps:,} steps × {config.train.batch_size}"
            for name, config in configs.items()
            if not name.endswith(SCRATCH)
        ),
        "training data": esc(", ".join(first.data.train)),
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        '<header><p class="kicker">EVE · the whole story</p><h1>One pre-training, three tasks</h1>'
        f'<dl class="facts">{rows}</dl></header>'
    )


def _title(name: str) -> str:
    return TASKS.get(name, "Pre-training").lower()


def _names() -> list[str]:
    return [PRETRAIN, *TASKS, *(name + SCRATCH for name in TASKS)]


def _configs(folder: Path) -> dict[str, Config]:
    """Return the configs of the runs that are there."""
    return {name: read_config(folder / name) for name in _names() if (folder / name / "config.json").is_file()}


def _numbers(folder: Path) -> dict[str, float]:
    """Return metrics.json; empty if it is not there. Raises UserError if it cannot be read."""
    path = folder / "metrics.json"
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
