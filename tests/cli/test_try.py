"""The pages and lines of `eve try`, with the package's own runs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from eve_vl.builtin.icons import unpack_icons
from eve_vl.builtin.names import FOLDER
from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.serve.application import application
from eve_vl.synthetic.scenes.rows import ScenePairs, SceneQuestions, SceneStatements

NUM = 5


@pytest.fixture
def tried(eve, few_icons, tmp_path, monkeypatch) -> Any:
    """Runs `eve try` up to the server, and returns the output and the application."""
    apps = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def serve(runs, index, limits, *, with_page, **_) -> None:
        apps.append(application(runs, index, limits, with_page=with_page))

    monkeypatch.setattr("eve_vl.serve.server.serve", serve)

    def run(*words: Any) -> tuple[str, Any]:
        done = eve("try", *words, "--port", "0", "--no-browser")
        assert done.returncode == 0, done.stderr
        return done.stdout, apps[-1]

    return run


def post_all(client: TestClient, path: str, bodies: list[dict]) -> list[Any]:
    answers = [client.post(path, json=body) for body in bodies]
    assert [answer.status_code for answer in answers] == [200] * NUM
    return [answer.json()["result"] for answer in answers]


def num_equal(answers: list, accepted: list) -> int:
    """Return how many answers are among those that their row accepts."""
    return sum(answer in row for answer, row in zip(answers, accepted, strict=True))


def test_every_tab_answers_its_own_examples(tried, few_icons):
    """Most answers are those that the generator knows."""
    _, app = tried()
    examples: dict[str, list[dict]] = {}
    results: dict[str, list[Any]] = {}
    tabs = {"reconstruct", "experts"}
    captions_of_best = []
    with TestClient(app, base_url="http://localhost") as client:
        facts = client.get("/v1/runs").json()
        for run in facts["runs"]:
            tabs |= {*run["forms"]}
            examples |= run["examples"]
            for call, bodies in run["examples"].items():
                results[call] = post_all(client, f"/v1/runs/{run['name']}/{call}", bodies)
        queries = facts["index"]["examples"]
        for text in queries:
            hits = client.post("/v1/search", json={"query": text}).json()["hits"]
            captions_of_best.append(hits[0]["captions"])
    assert tabs == examples.keys()
    assert tabs > {"answer", "verify", "fill_mask", "zero_shot"}
    assert {*queries} <= {*few_icons}
    assert num_equal(queries, captions_of_best) >= NUM

    questions = [SceneQuestions(split="val")[row] for row in range(NUM)]
    statements = [SceneStatements(split="val")[row] for row in range(NUM)]
    captions = [ScenePairs(split="val")[row].captions[0] for row in range(NUM)]
    asked = [body["question"] for body in examples["answer"]]
    assert asked == [question.question for question in questions]
    answers = [result[0]["answer"] for result in results["answer"]]
    assert num_equal(answers, [question.answers for question in questions]) >= NUM - 1
    judgements = [result["is_true"] for result in results["verify"]]
    assert num_equal(judgements, [[statement.label] for statement in statements]) >= NUM - 1
    for caption, body in zip(captions, examples["fill_mask"], strict=True):
        assert body["text"].split() == [*caption.split()[:-1], "[MASK]"]
    filled = [result["text"] for result in results["fill_mask"]]
    assert num_equal(filled, [[caption] for caption in captions]) >= NUM - 2
    labels = [result[0]["label"] for result in results["zero_shot"]]
    names = []
    for row, body in enumerate(examples["zero_shot"]):
        names.append([[*body["prompts"]][row]])
    assert num_equal(labels, names) >= NUM - 1
    for result in results["experts"]:
        assert {len(block["colors"]) for block in result["blocks"]} == {4}
    for result in results["reconstruct"]:
        assert {*result} >= {"original", "masked", "reconstructed"}


def test_own_captions_are_measured(tried, few_icons, tmp_path):
    """As a loop over searches measures them; without captions nothing is printed."""
    captions = few_icons[:12]
    mine = tmp_path / "mine"
    mine.mkdir()
    icons = unpack_icons(tmp_path / "icons").parent
    for caption in captions:
        with Image.open(icons / f"{caption.replace(' ', '-')}.png") as image:
            image.rotate(10, fillcolor="white").save(mine / f"{caption}.png")
    output, _ = tried("mine")
    assert "your captions" not in output
    for caption in captions:
        (mine / f"{caption}.txt").write_text(caption)
    output, _ = tried("mine")
    (folder,) = (tmp_path / "cache/eve-vl/try").glob("index-*")
    index = Index.open(folder, Eve.load("builtin:drawings", "cpu"))
    ranks = []
    for caption in captions:
        hits = index.search(
            caption,
            folder=mine,
            top=12,
            by="vectors",
        )
        ranks.append([Path(hit.name).stem for hit in hits].index(caption))
    first = 100 * np.mean(np.array(ranks) < 1)
    ten = 100 * np.mean(np.array(ranks) < 10)
    line = f"your captions: {first:.1f}% (chance 8.3%) find their image first among 12 of yours, "
    assert f"{line}{ten:.1f}% in the first 10" in output


def test_card_of_bundled_scenes_names_their_numbers():
    """Numbers of validation in the card are those that are shipped with the weights."""
    card = (FOLDER / "scenes" / "README.md").read_text()
    for name, metric in (
        ("scenes", "mlm_acc"),
        ("scenes", "mim_mse"),
        ("scenes_vqa", "vqa_acc"),
        ("scenes_nlvr2", "nlvr2_acc"),
    ):
        numbers = json.loads((FOLDER / name / "metrics.json").read_text())
        assert re.search(rf"\b{numbers[metric]:.3f}\b", card), (name, metric)


def test_bundled_scenes_are_small_and_whole():
    """Masked pixels, masked tokens and experts with a router that knows the modality; no path of a
    machine."""
    num_bytes = 0
    for name in ("scenes", "scenes_vqa", "scenes_nlvr2"):
        assert b'"/' not in (FOLDER / name / "best" / "config.json").read_bytes()
        for path in (FOLDER / name).rglob("*"):
            num_bytes += path.stat().st_size
    assert num_bytes < 8e6
    eve = Eve.load("builtin:scenes", "cpu")
    config: Any = eve.run.config
    assert config.task.mim_weight > 0
    assert config.task.mlm_weight > 0
    assert config.model.deep_ffn == "moe"
    assert config.model.modality_routing
