"""Classification on tiny models: losses, labels, metrics and calls against slow loops."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.config import Config
from eve_vl.data.kinds.labels import LabeledExample, LabeledRows
from eve_vl.eve import Eve
from eve_vl.run.loading import LoadedRun, build_untrained
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.classification.task import Classification
from eve_vl.tasks.classifier.evaluation import Prediction
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.task import Sizes
from eve_vl.utils.errors import UserError
from helpers.random_weights import randomize
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, noise, tiny_tokenizer
from helpers.tiny_runs import ids_of, image_tokens, tiny_run
from helpers.tiny_tasks import rows_of

TOKENIZER = tiny_tokenizer()
CLASSES = ("blue", "green", "red")
READS = ("image", "text", "both")
IMAGE = noise(3, height=16, width=16).pixels
TEXT = "a circle"


def config_of(reads: Any = "image", **fields: Any) -> Config:
    return tiny_config(task=ClassificationConfig(inputs=reads, **fields))


def build(config: Config) -> Classification:
    sizes = Sizes(
        vocab_size=TOKENIZER.vocab_size,
        mask_id=TOKENIZER.mask_id,
        labels=CLASSES,
    )
    task = build_untrained(config, sizes)
    randomize(task, seed=3, std=0.3)
    assert isinstance(task, Classification)
    return task.eval()


def labeled(count: int, *, several: bool = False) -> ListSource[LabeledExample]:
    """Return rows of one label; if several, every second row has two."""
    rows = []
    for row in range(count):
        labels = [CLASSES[row % 3]]
        if several and row % 2:
            labels.append(CLASSES[(row + 1) % 3])
        image = noise(count, row)
        text = f"a circle {row}"
        rows.append(
            LabeledExample(
                image=image,
                text=text,
                labels=tuple(labels),
                where=f"rows:{row}",
            )
        )
    return ListSource(rows)


def training_rows(config: Config, count: int, *, several: bool = False) -> LabeledRows:
    return LabeledRows([labeled(count, several=several)], config, TOKENIZER, training=True)


# Losses


@pytest.mark.parametrize("reads", READS)
@torch.no_grad()
def test_the_loss_of_one_label_is_the_cross_entropy_of_each_row_alone(reads):
    config = config_of(reads)
    task = build(config)
    dataset = training_rows(config, 5)
    losses = []
    for row in range(5):
        alone = rows_of(dataset, [row])
        weights = task.predict(alone)[0][0].double().exp()
        losses.append(-math.log(weights[row % 3] / weights.sum()))
    loss = task(rows_of(dataset, 5)).terms["classification"]
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


@torch.no_grad()
def test_the_loss_of_several_labels_is_a_sum_of_yes_and_no():
    config = config_of(multilabel=True)
    task = build(config)
    batch: Any = rows_of(training_rows(config, 4, several=True), 4)
    total = 0.0
    for logits, labels in zip(task.predict(batch)[0].tolist(), batch.labels, strict=True):
        for logit, name in zip(logits, CLASSES, strict=True):
            sign = 1 if name in labels else -1
            total += math.log(1 + math.exp(-sign * logit))
    assert task(batch).terms["classification"].item() == pytest.approx(total / 4, rel=1e-5)


# Evaluation


def prediction(
    row: int, probabilities: Sequence[float], labels: tuple[str, ...] = ()
) -> Prediction:
    probability_C = np.array(probabilities, np.float32)
    label = CLASSES[probability_C.argmax()]
    return Prediction(
        probability_C=probability_C,
        label=label,
        labels=labels,
        where=f"rows:{row}",
    )


def test_unknown_labels_are_counted_and_reported():
    evaluator = evaluator_of(build(config_of()))
    predictions = []
    for row, labels in enumerate([("red",), ("rocket",), (), ("rocket", "red")]):
        predictions.append(prediction(row, [0.0, 0.0, 0.1], labels))
    numbers = evaluator.metrics(predictions)
    assert (numbers["num_rows"], numbers["num_unknown"]) == (3, 1)
    assert evaluator.warnings(numbers) == [
        "the rows have 2 of the run's 3 labels: balanced_acc says nothing about the others",
        "of 3 rows, 1 have no label that the run knows (classes.json): always wrong",
    ]
    without_unknown = evaluator.metrics(predictions[:1])
    assert "num_unknown" not in without_unknown


@pytest.mark.parametrize("several", [False, True])
def test_rows_that_lack_a_rare_label_are_reported(several):
    """All of them right: the main metric is 1, whatever the run does with the rare label."""
    evaluator = evaluator_of(build(config_of(multilabel=several)))
    frequent = []
    for row, name in enumerate(CLASSES[:2]):
        frequent.append(
            prediction(
                row,
                np.eye(3)[row].tolist(),
                (name,),
            )
        )
    numbers = evaluator.metrics(frequent)
    assert numbers[evaluator.main_metric or ""] == 1
    assert evaluator.warnings(numbers) == [
        f"the rows have 2 of the run's 3 labels: {evaluator.main_metric} says nothing about the "
        "others"
    ]
    rare = prediction(2, [0.0, 0.0, 1.0], (CLASSES[2],))
    assert evaluator.warnings(evaluator.metrics([*frequent, rare])) == []


@pytest.mark.parametrize(
    ("several", "main_metric", "labels"),
    [
        (False, "balanced_acc", [None, None]),
        (True, "mean_ap", [["green"], ["blue", "red"]]),
    ],
)
def test_the_kind_of_labels_decides_on_main_metric_and_prediction_file(
    several, main_metric, labels
):
    evaluator = evaluator_of(build(config_of(multilabel=several)))
    assert evaluator.main_metric == main_metric
    predictions = [
        prediction(0, [0.1, 0.7, 0.2]),
        prediction(1, [0.6, 0.3, 0.5]),
    ]
    lines = []
    for line in evaluator.prediction_file(predictions).splitlines():
        lines.append(json.loads(line))
    assert [line["row"] for line in lines] == ["rows:0", "rows:1"]
    assert [line["label"] for line in lines] == ["green", "blue"]
    assert [line["probability"] for line in lines] == pytest.approx([0.7, 0.6])
    for line, expected in zip(lines, labels, strict=True):
        assert ("labels" in line) == several
        assert not several or list(line["labels"]) == expected


def test_json_lines_follow_the_rows_of_all_sources():
    """By name, row 10 would come before row 2, and two files of one name would mix."""
    evaluator = evaluator_of(build(config_of()))
    dataset = evaluator.dataset(
        [
            labeled(11),
            labeled(11),
        ],
        config_of(),
        TOKENIZER,
    )
    batches = [
        rows_of(dataset, 11, source=1),
        rows_of(dataset, 11, source=0),
    ]
    text = evaluator.prediction_file(evaluator.predict_all(batches))
    lines = [json.loads(line) for line in text.splitlines()]
    for number, line in enumerate(lines):
        source, row = divmod(number, 11)
        assert (line["source"], line["position"], line["row"]) == (source, row, f"rows:{row}")
    for row, line in enumerate(lines[:3]):
        (alone,) = evaluator.predict_all([rows_of(dataset, [row])])
        assert line["label"] == alone.label
        assert line["probability"] == pytest.approx(float(alone.probability_C.max()))


# Labels


def test_classes_are_those_of_the_rows_of_a_list_or_of_the_resumed_run(tmp_path: Path):
    rows = [labeled(7)]
    assert Classification.prepare(config_of(), rows, None).labels == CLASSES
    assert Classification.prepare(config_of(), rows, ["red", "blue"]).labels == ("red", "blue")
    path = tmp_path / "classes.txt"
    path.write_text("red\ngreen\nblue\n")
    from_list = Classification.prepare(config_of(classes=path), rows, None)
    assert from_list.labels == ("red", "green", "blue")


def test_rows_whose_labels_do_not_fit_are_refused(tmp_path: Path):
    path = tmp_path / "classes.txt"
    path.write_text("reed\ngreen\nblue\n")
    cases = [
        (
            config_of(),
            labeled(1),
            "1 different labels, such as 'blue', expected 2 to 10000; .* --data.label-column",
        ),
        (config_of(), labeled(6, several=True), "a row has 2 labels; give --task.multilabel"),
        (
            config_of(classes=path),
            labeled(7),
            r"1 labels are not in .*classes.txt, such as 'red'; did you mean 'reed'\?",
        ),
    ]
    for config, source, message in cases:
        with pytest.raises(UserError, match=message):
            Classification.prepare(config, [source], None)


def test_a_training_row_with_an_unknown_label_is_refused():
    config = config_of()
    batch: Any = rows_of(training_rows(config, 3), 3)
    batch = replace(batch, labels=(("red",), ("reed",), ("blue",)))
    with pytest.raises(UserError, match=r"^rows:1: the label 'reed'; did you mean 'red'\?"):
        build(config)(batch)


@pytest.mark.parametrize(
    ("multilabel", "several", "num_notes"),
    [
        (True, False, 1),
        (True, True, 0),
        (False, False, 0),
    ],
)
def test_one_label_per_row_with_multilabel_is_reported(multilabel, several, num_notes):
    rows = labeled(7, several=several)
    notes = Classification.prepare(config_of(multilabel=multilabel), [rows], None).notes
    assert len(notes) == num_notes
    assert all("--task.no-multilabel" in note for note in notes)


# Calls


def tiny_eve(reads: str) -> Any:
    config = config_of(reads)
    task = build(config)
    return Eve(
        LoadedRun(
            config=config,
            tokenizer=TOKENIZER,
            task=task,
            step=1,
            folder=Path("tiny"),
        )
    )


@pytest.mark.parametrize("reads", READS)
def test_classify_gives_the_probabilities_of_the_head(reads):
    eve = tiny_eve(reads)
    inputs = {}
    image = None
    text = None
    if reads != "text":
        inputs["image"] = IMAGE
        image = image_tokens(eve.task, IMAGE)
    if reads != "image":
        inputs["text"] = TEXT
        text = eve.task.encoder.text(ids_of(eve, TEXT), None)
    states = eve.task.encoder.encode(image, text).x_BND
    cls = states[:, 17 if reads == "both" else 0]
    expected = eve.task.class_head(cls).softmax(1)[0].tolist()

    labels = eve.classify(**inputs, top=3)
    probabilities = {label.label: label.probability for label in labels}
    assert probabilities == pytest.approx(dict(zip(CLASSES, expected, strict=True)), rel=1e-4)
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)


def test_calls_refuse_what_the_run_does_not_read():
    eve = tiny_eve("image")
    with pytest.raises(UserError, match="classify: this run reads image; give the image"):
        eve.classify()
    with pytest.raises(UserError, match="classify: this run reads image; leave out the text"):
        eve.classify(IMAGE, "red")
    with pytest.raises(UserError, match="explain: this run reads images only; leave out text"):
        eve.explain(IMAGE, TEXT)
    assert "explain" not in tiny_eve("text").calls
    message = "classify: .* allows encode_image, encode_text, answer.*demo_classification --init"
    with pytest.raises(UserError, match=message):
        Eve(tiny_run("vqa")).classify(IMAGE)


def test_a_run_that_reads_images_explains_a_label_without_text():
    eve = tiny_eve("image")
    heatmap = eve.explain(IMAGE, answer="red")
    assert (heatmap.score, heatmap.word, heatmap.block) == ('the label "red"', "[CLS]", 2)
    probabilities = {label.label: label.probability for label in eve.classify(IMAGE)}
    assert heatmap.probability == pytest.approx(probabilities["red"], rel=1e-5)


COLORS = {
    "red": (220, 20, 30),
    "green": (20, 200, 40),
    "blue": (30, 40, 220),
}


def test_a_folder_per_class_is_learnt_from_the_command_line(eve, pretrained, tmp_path: Path):
    """Images of plain colours with a little noise."""
    data = tmp_path / "colors"
    for name, color in COLORS.items():
        (data / name).mkdir(parents=True)
        for number in range(8):
            noise_HW3 = np.random.default_rng(number).normal(0, 15, (16, 16, 3))
            pixels = np.clip(np.array(color) + noise_HW3, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(data / name / f"{number}.png")
    run = tmp_path / "run"
    flags = {
        "init": pretrained,
        "out": run,
        "data.train": data,
        "data.val": data,
        "data.num-workers": 0,
        "train.steps": 60,
        "train.lr": 3e-3,
        "train.val-every": 60,
        "train.batch-size": 12,
        "train.dtype": "float32",
    }
    words = ["finetune", "demo_classification", "--task.no-multilabel"]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    done = eve(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "classes.json").read_text()) == ["blue", "green", "red"]
    assert json.loads((run / "metrics.json").read_text())["acc"] > 0.9

    done = eve("classify", run, data / "red/3.png", "--json", tmp_path / "out.json")
    assert done.stdout.split()[1] == "red"
    assert json.loads((tmp_path / "out.json").read_text())["labels"][0]["label"] == "red"

    page = (run / "report.html").read_text()
    assert "Confusion" in page
    diagonal = re.findall(r'class="own"[^>]*title="(\w+) predicted as \1: (\d+)"', page)
    assert {name for name, _ in diagonal} == COLORS.keys()
    assert sum(int(count) for _, count in diagonal) > 0.9 * 24
