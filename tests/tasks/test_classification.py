"""Classification on tiny models: losses, targets, metrics and calls against slow loops."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.config import Config
from eve_vl.data.kinds.labels import LabeledExample, LabeledRows
from eve_vl.data.loader import eval_loader
from eve_vl.eve import Eve
from eve_vl.run.loading import LoadedRun, build_untrained
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.tasks.classification.evaluation import ClassificationEvaluator
from eve_vl.tasks.classification.task import Classification
from eve_vl.tasks.classifier.evaluation import Prediction
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.task import Sizes
from eve_vl.utils.errors import BadSampleError, UserError
from helpers.twins import ListSource, noise, randomize, tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CLASSES = ("blue", "green", "red")
READS = ("image", "text", "both")


def config_of(reads: Any = "image", *, several: bool = False, **fields) -> Config:
    return tiny_config(task=ClassificationConfig(inputs=reads, multilabel=several, **fields))


def build(config: Config, seed: int = 3) -> Classification:
    task = build_untrained(
        config, Sizes(vocab_size=TOKENIZER.vocab_size, mask_id=TOKENIZER.mask_id, labels=CLASSES)
    )
    randomize(task, seed, std=0.3)
    assert isinstance(task, Classification)
    return task.eval()


def rows(count: int, *, several: bool = False) -> ListSource[LabeledExample]:
    labels = [
        (CLASSES[row % 3], CLASSES[(row + 1) % 3])[: 1 + several * (row % 2)]
        for row in range(count)
    ]
    return ListSource(
        [
            LabeledExample(
                image=noise(count, row),
                text=f"a circle {row}",
                labels=labels[row],
                where=f"rows:{row}",
            )
            for row in range(count)
        ]
    )


def is_multilabel(config: Config) -> bool:
    assert isinstance(config.task, ClassificationConfig)
    return config.task.multilabel


def batch_of(config: Config, count: int, *, training: bool = True) -> Any:
    dataset = LabeledRows(
        [rows(count, several=is_multilabel(config))], config, TOKENIZER, training=training
    )
    return dataset.collate([dataset[(0, 0, row)] for row in range(count)])


@pytest.mark.parametrize("reads", READS)
def test_the_loss_of_one_label_is_the_cross_entropy_of_each_row_alone(reads):
    config = config_of(reads)
    task, batch = build(config), batch_of(config, 5)
    expected = []
    for row in range(5):
        alone = type(batch).collate([sample_of(config, row)], TOKENIZER.pad_id, 0)
        logits = task.predict(alone)[0][0].tolist()
        total = sum(np.exp(logit) for logit in logits)
        expected.append(-np.log(np.exp(logits[CLASSES.index(batch.labels[row][0])]) / total))
    found = task(batch).terms
    assert found["classification"].item() == pytest.approx(np.mean(expected), rel=1e-5)


def sample_of(config: Config, row: int):
    dataset = LabeledRows(
        [rows(5, several=is_multilabel(config))], config, TOKENIZER, training=True
    )
    return dataset[(0, 0, row)]  # pyright: ignore


def test_the_loss_of_several_labels_is_a_sum_of_yes_and_no():
    config = config_of(several=True)
    task, batch = build(config), batch_of(config, 4)
    logits = task.predict(batch)[0]
    total = 0.0
    for row in range(4):
        for c, name in enumerate(CLASSES):
            probability = 1 / (1 + np.exp(-logits[row, c].item()))
            total -= np.log(probability if name in batch.labels[row] else 1 - probability)
    assert task(batch).terms["classification"].item() == pytest.approx(total / 4, rel=1e-5)


@pytest.mark.parametrize("reads", READS)
def test_evaluation_depends_neither_on_batch_size_nor_on_process(reads):
    config = config_of(reads)
    task = build(config)
    dataset = LabeledRows([rows(11)], config, TOKENIZER, training=False)
    numbers = [
        evaluator_of(task).evaluate(eval_loader(dataset, batch_size=size, rank=0, world=1))
        for size in (1, 4, 11)
    ]
    assert numbers[0] == numbers[1] == numbers[2]
    predicted = [
        CLASSES[int(task.predict(batch)[0].argmax())]
        for batch in eval_loader(dataset, batch_size=1, rank=0, world=1)
    ]
    assert numbers[0]["acc"] == np.mean(
        [guess == CLASSES[row % 3] for row, guess in enumerate(predicted)]
    )


def test_the_best_weights_are_chosen_by_what_fits():
    assert evaluator_of(build(config_of())).main_metric == "balanced_acc"
    assert evaluator_of(build(config_of(several=True))).main_metric == "mean_ap"


def test_classes_are_those_of_the_rows_and_stay_when_a_run_goes_on(tmp_path):
    config = config_of()
    assert Classification.prepare(config, [rows(7)], None).labels == CLASSES
    assert Classification.prepare(config, [rows(7)], ["red", "blue"]).labels == ("red", "blue")
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    listed = replace(config, task=ClassificationConfig(classes=tmp_path / "classes.txt"))
    assert Classification.prepare(listed, [rows(7)], None).labels == ("red", "green", "blue")


def test_labels_that_do_not_fit_are_told_in_one_line(tmp_path):
    with pytest.raises(
        UserError,
        match=r"1 different labels, such as 'blue', expected 2 to 10000; .* --data.label-column",
    ):
        Classification.prepare(config_of(), [rows(1)], None)
    with pytest.raises(UserError, match=r"a row has 2 labels; give --task.multilabel"):
        Classification.prepare(config_of(), [rows(6, several=True)], None)
    (tmp_path / "classes.txt").write_text("reed\ngreen\nblue\n")
    with pytest.raises(
        UserError, match=r"1 labels are not in .*classes.txt, such as 'red'; did you mean 'reed'\?"
    ):
        Classification.prepare(config_of(classes=tmp_path / "classes.txt"), [rows(7)], None)
    batch = replace(batch_of(config_of(), 3), labels=(("red",), ("reed",), ("blue",)))
    with pytest.raises(UserError, match=r"^rows:1: the label 'reed'; did you mean 'red'\?"):
        build(config_of())(batch)
    source = ListSource([LabeledExample(image=None, text="x", labels=("red",), where="rows:0")])
    with pytest.raises(BadSampleError, match=r"rows:0: no image, but task.inputs is image"):
        LabeledRows([source], config_of(), TOKENIZER, training=True).load(0, 0, 0)


def test_labels_that_a_run_does_not_know_are_counted_and_told():
    task, probability_C = build(config_of()), np.zeros(len(CLASSES))
    examples = [
        Prediction(probability_C=probability_C, label="red", labels=labels, where=f"rows:{row}")
        for row, labels in enumerate([("red",), ("rocket",), (), ("rocket", "red")])
    ]
    numbers = evaluator_of(task).metrics(examples)
    assert (numbers["num_rows"], numbers["num_unknown"]) == (3, 1)
    assert evaluator_of(task).warnings(numbers) == [
        "of 3 rows, 1 have no label that the run knows (classes.json): always wrong"
    ]
    known = evaluator_of(task).metrics(examples[:1])
    assert "num_unknown" not in known and evaluator_of(task).warnings(known) == []


def test_one_label_a_row_learnt_as_several_is_told():
    (note,) = Classification.prepare(config_of(several=True), [rows(7)], None).notes
    assert "--task.no-multilabel" in note
    assert not Classification.prepare(config_of(several=True), [rows(7, several=True)], None).notes
    assert not Classification.prepare(config_of(), [rows(7)], None).notes


def tiny_eve(reads: str, *, several: bool = False, tmp_path) -> Eve:
    config = config_of(reads, several=several)
    return Eve(
        LoadedRun(config=config, tokenizer=TOKENIZER, task=build(config), step=1, folder=tmp_path)
    )


@pytest.mark.parametrize("reads", READS)
def test_classify_gives_the_probabilities_of_the_head(reads, tmp_path):
    eve: Any = tiny_eve(reads, tmp_path=tmp_path)
    source_image = noise(1, 2, height=16, width=16).pixels
    given = (
        {"image": source_image}
        if reads == "image"
        else {"text": "a circle"}
        if reads == "text"
        else None
    )
    given = given or {"image": source_image, "text": "a circle"}
    labels = eve.classify(**given, top=3)
    assert sum(each.probability for each in labels) == pytest.approx(1, abs=1e-5)
    pixels = torch.from_numpy(source_image).permute(2, 0, 1)[None].float() / 127.5 - 1
    ids = torch.tensor([TOKENIZER.backend.encode("a circle").ids])
    image = eve.task.encoder.image(pixels) if "image" in given else None
    text = eve.task.encoder.text(ids, None) if "text" in given else None
    states = eve.task.encoder.encode(image, text)
    cls = states.x_BND[:, 17 if reads == "both" else 0]
    expected = eve.task.class_head(cls).softmax(1)[0]
    assert {each.label: each.probability for each in labels} == pytest.approx(
        {name: expected[c].item() for c, name in enumerate(CLASSES)}, rel=1e-4
    )
    assert [each.probability for each in labels] == sorted(
        (each.probability for each in labels), reverse=True
    )


def test_classify_says_what_it_reads(tmp_path):
    eve = tiny_eve("image", tmp_path=tmp_path)
    with pytest.raises(UserError, match=r"classify: this run reads image; give the image"):
        eve.classify()
    with pytest.raises(UserError, match=r"classify: this run reads image; leave out the text"):
        eve.classify(noise(1).pixels, "red")
    with pytest.raises(
        UserError,
        match=r"classify: .* allows encode_image, encode_text, answer.*demo_classification --init",
    ):
        from helpers.tiny_runs import tiny_run

        Eve(tiny_run("vqa")).classify(noise(1).pixels)


def test_where_a_run_that_reads_both_looks(tmp_path):
    eve = tiny_eve("both", tmp_path=tmp_path)
    heat = eve.explain(noise(3, height=16, width=16).pixels, "a circle", answer="red")
    assert heat.score == 'the label "red"'
    assert heat.heat[0].shape == (16, 16)
    with pytest.raises(UserError, match=r"no label 'rad'; did you mean 'red'"):
        eve.explain(noise(3).pixels, "a circle", answer="rad")


def test_where_a_run_that_reads_images_looks(tmp_path):
    eve = tiny_eve("image", tmp_path=tmp_path)
    image = noise(3, height=16, width=16).pixels
    heat = eve.explain(image, answer="red")
    assert (heat.score, heat.word, heat.block) == ('the label "red"', "[CLS]", 2)
    assert heat.probability == pytest.approx(
        next(each.probability for each in eve.classify(image) if each.label == "red"), rel=1e-5
    )
    with pytest.raises(
        UserError, match="explain: this run reads images only; leave out text, word and right"
    ):
        eve.explain(image, "a circle")
    assert "explain" not in tiny_eve("text", tmp_path=tmp_path).calls


def test_a_folder_per_class_is_learnt_from_the_command_line(eve, pretrained, tmp_path):
    """Plain colours: what a folder is called is what its images show."""
    for name, color in (("red", (220, 20, 30)), ("green", (20, 200, 40)), ("blue", (30, 40, 220))):
        (tmp_path / "colors" / name).mkdir(parents=True)
        for number in range(24):
            image = np.clip(
                np.array(color) + np.random.default_rng(number).normal(0, 15, (16, 16, 3)), 0, 255
            )
            Image.fromarray(image.astype(np.uint8)).save(
                tmp_path / "colors" / name / f"{number}.png"
            )
    run = tmp_path / "run"
    done = eve(
        *(
            "finetune",
            "demo_classification",
            "--task.no-multilabel",
            "--init",
            pretrained,
            "--out",
            run,
        ),
        *(
            "--data.train",
            tmp_path / "colors",
            "--data.val",
            tmp_path / "colors",
            "--train.steps",
            60,
            "--train.lr",
            3e-3,
        ),
        *(
            "--train.val-every",
            60,
            "--train.batch-size",
            24,
            "--data.num-workers",
            0,
            "--train.dtype",
            "float32",
        ),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "classes.json").read_text()) == ["blue", "green", "red"]
    assert json.loads((run / "metrics.json").read_text())["acc"] > 0.9
    done = eve(
        "classify", run, tmp_path / "colors" / "red" / "3.png", "--json", tmp_path / "out.json"
    )
    assert done.stdout.split()[1] == "red"
    assert json.loads((tmp_path / "out.json").read_text())["labels"][0]["label"] == "red"
    page = (run / "report.html").read_text()
    assert "Confusion" in page
    own = [
        re.search(rf'<td class="own"[^>]*title="{name} predicted as {name}: (\d+)"', page)
        for name in ("red", "green", "blue")
    ]
    assert sum(int(found[1]) for found in own if found) > 0.9 * 72
    assert page.count('class="own"') == 3
    assert eve("evaluate", "classification", run, "--data", tmp_path / "colors").returncode == 0


@pytest.mark.parametrize("several", [False, True])
def test_predictions_are_json_lines(several):
    task = build(config_of(several=several))
    values = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.5]], np.float32)
    examples = [
        Prediction(
            probability_C=row_C, label=CLASSES[row_C.argmax()], labels=(), where=f"rows:{row}"
        )
        for row, row_C in enumerate(values)
    ]
    found = [json.loads(line) for line in evaluator_of(task).prediction_file(examples).splitlines()]
    assert [(each["row"], each["label"]) for each in found] == [
        ("rows:0", "green"),
        ("rows:1", "blue"),
    ]
    assert [each["probability"] for each in found] == pytest.approx([0.7, 0.6])
    assert [list(each.get("labels", "-")) for each in found] == (
        [["green"], ["blue", "red"]] if several else [["-"], ["-"]]
    )


def test_json_lines_follow_the_rows_of_all_sources():
    """Two files of one name with eleven rows each: sorted by name, row 10 would come before row 2,
    and files would mix."""
    task, sources = build(config_of()), [rows(11), rows(11)]
    evaluator, batches = ClassificationEvaluator(task), []
    dataset = evaluator.dataset(sources, task.config, TOKENIZER)
    for start in (11, 0):
        positions = [(0, (start + row) // 11 % 2, row) for row in range(11)]
        batches.append(dataset.collate([dataset[position] for position in positions]))
    lines = [
        json.loads(line)
        for line in evaluator.prediction_file(evaluator.predict_all(batches)).splitlines()
    ]
    assert [(line["source"], line["position"]) for line in lines] == [
        (source, row) for source in (0, 1) for row in range(11)
    ]
    assert [line["row"] for line in lines] == [f"rows:{row}" for row in range(11)] * 2
    for line in lines[:3]:
        (alone,) = evaluator.predict_all(
            [dataset.collate([dataset[0, line["source"], line["position"]]])]
        )
        assert (line["label"], line["probability"]) == (
            alone.label,
            pytest.approx(float(alone.probability_C.max())),
        )
