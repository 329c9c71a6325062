"""What `eve try` serves and prints, with the package's own runs."""

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


def test_every_tab_answers_its_own_examples(tried, few_icons):
    """Most answers are those that the generator knows."""
    _, app = tried()
    with TestClient(app, base_url="http://localhost") as client:
        runs, index = (client.get("/v1/runs").json()[name] for name in ("runs", "index"))
        examples = {
            call: (run["name"], bodies) for run in runs for call, bodies in run["examples"].items()
        }
        tabs = {call for run in runs for call in run["forms"]} | {"reconstruct", "experts"}
        assert {"answer", "verify", "fill_mask", "zero_shot"} < tabs == {*examples}
        results = {}
        for call, (run, bodies) in examples.items():
            assert len(bodies) == NUM
            answers = [client.post(f"/v1/runs/{run}/{call}", json=body) for body in bodies]
            assert {answer.status_code for answer in answers} == {200}
            results[call] = [answer.json()["result"] for answer in answers]
        captions_of_best = []
        for text in index["examples"]:
            found_images = client.post("/v1/search", json={"query": text}).json()["hits"]
            captions_of_best.append(found_images[0]["captions"])
        heat = client.post(
            "/v1/runs/scenes_vqa/explain",
            json={"image": examples["answer"][1][0]["image"], "text": "how many"},
        )
    assert len(heat.json()["result"]["images"]) == 1
    assert {*index["examples"]} <= {*few_icons}
    assert num_equal(index["examples"], captions_of_best) >= NUM
    questions = SceneQuestions(split="val")
    statements = SceneStatements(split="val")
    pairs = ScenePairs(split="val")
    assert [body["question"] for body in examples["answer"][1]] == [
        questions[row].question for row in range(NUM)
    ]
    answers = [result[0]["answer"] for result in results["answer"]]
    assert num_equal(answers, [questions[row].answers for row in range(NUM)]) >= NUM - 1
    judgements = [result["is_true"] for result in results["verify"]]
    assert num_equal(judgements, [[statements[row].label] for row in range(NUM)]) >= NUM - 1
    for row, body in enumerate(examples["fill_mask"][1]):
        assert body["text"].split() == [*pairs[row].captions[0].split()[:-1], "[MASK]"]
    filled = [result["text"] for result in results["fill_mask"]]
    assert num_equal(filled, [pairs[row].captions[:1] for row in range(NUM)]) >= NUM - 2
    labels = [result[0]["label"] for result in results["zero_shot"]]
    names = [[*body["prompts"]][row] for row, body in enumerate(examples["zero_shot"][1])]
    assert num_equal(labels, [[name] for name in names]) >= NUM - 1
    for result in results["experts"]:
        assert {len(block["colors"]) for block in result["blocks"]} == {4}
    for result in results["reconstruct"]:
        assert {*result} >= {"original", "masked", "reconstructed"}


def num_equal(answers: list, accepted: list) -> int:
    """Return how many answers are among those that their row accepts."""
    return sum(answer in row for answer, row in zip(answers, accepted, strict=True))


def test_own_captions_are_measured(tried, few_icons, tmp_path):
    """As a loop over searches measures them; without captions nothing is printed."""
    captions = few_icons[:12]
    (tmp_path / "mine").mkdir()
    icons = unpack_icons(tmp_path / "icons").parent
    for caption in captions:
        with Image.open(icons / f"{caption.replace(' ', '-')}.png") as image:
            image.rotate(10, fillcolor="white").save(tmp_path / "mine" / f"{caption}.png")
    bare, _ = tried("mine")
    assert "your captions" not in bare
    for caption in captions:
        (tmp_path / "mine" / f"{caption}.txt").write_text(caption)
    printed, _ = tried("mine")
    (folder,) = (tmp_path / "cache/eve-vl/try").glob("index-*")
    index = Index.open(folder, Eve.load("builtin:drawings", "cpu"))
    ranks = []
    for caption in captions:
        hits = index.search(caption, folder=tmp_path / "mine", top=12, by="vectors")
        ranks.append([Path(hit.name).stem for hit in hits].index(caption))
    first, ten = (f"{100 * np.mean([rank < k for rank in ranks]):.1f}" for k in (1, 10))
    assert (
        f"your captions: {first}% (chance 8.3%) find their image first among 12 of yours, "
        f"{ten}% in the first 10" in printed
    )


def test_the_card_names_what_its_runs_reach():
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
    folders = [FOLDER / name for name in ("scenes", "scenes_vqa", "scenes_nlvr2")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert not any(b'"/' in (folder / "best" / "config.json").read_bytes() for folder in folders)
    eve = Eve.load("builtin:scenes", "cpu")
    config: Any = eve.run.config
    assert config.task.mim_weight > 0 and config.task.mlm_weight > 0
    assert config.model.deep_ffn == "moe" and config.model.modality_routing
