"""The real command line on CPU: pre-train → fine-tune for each task → evaluate."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from eve_vl import Eve
from eve_vl.config import EveModelConfig
from eve_vl.data.row_dataset import eval_positions
from eve_vl.metrics.intervals import from_json, to_json
from eve_vl.run.loading import load_run
from eve_vl.synthetic.scenes.rows import SceneStatements
from eve_vl.tasks.evaluator import evaluator_of
from helpers.complaints import complaint

pytestmark = pytest.mark.usefixtures("no_report")

# scenes:val has a thousand rows, which the baseline without the image reads quickly
SHORT = (
    *("--train.steps", 2, "--train.batch-size", 8, "--train.val-every", 1),
    *("--train.save-every", 1, "--train.log-every", 1, "--train.dtype", "float32"),
    *("--data.val-samples", 24, "--data.num-workers", 0, "--data.train", "scenes:val"),
    *("--train.head-lr-multiplier", 3),
)
MAIN_METRICS = {"vqa": "vqa_acc", "nlvr2": "nlvr2_acc", "retrieval": "r_mean"}


def rows(run: Path, kind: str) -> list[dict]:
    """Return the rows of a kind as they are written, without intervals made of them."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def first_note(run: Path) -> str:
    return rows(run, "note")[0]["text"]


def read_numbers(path: Path) -> dict:
    return json.loads(path.read_text())


def share_judged_right(run: Path, split: str, num_samples: int) -> float:
    """Judge one statement at a time."""
    eve = Eve.load(run, device="cpu")
    source = SceneStatements(split=split, image_size=eve.run.config.input.image_size)
    num_right = 0
    for _, _, number in eval_positions([len(source)], num_samples):
        row = source[number]
        answer = eve.verify(row.left, row.right, row.statement)
        num_right += answer.is_true == row.label
    return num_right / num_samples


@pytest.mark.parametrize("task", MAIN_METRICS)
def test_finetune_evaluate(
    eve,
    pretrained,
    tmp_path: Path,
    task: str,
):
    run = tmp_path / "run"
    done = eve("finetune", f"scenes_{task}", "--init", pretrained, "--out", "run", *SHORT)
    assert done.returncode == 0, done.stderr
    metrics = read_numbers(run / "metrics.json")
    check_notes(run, pretrained, task, metrics)
    check_best_weights(run, task, metrics)
    assert load_run(run).tokenizer.to_json() == (pretrained / "tokenizer.json").read_text()

    done = eve("evaluate", task, "run", "--samples", 24, "--json", "again.json")
    assert done.returncode == 0, done.stderr
    again = from_json(read_numbers(tmp_path / "again.json"))
    expected = from_json(metrics)
    for name in list(expected):
        if name.startswith("r_mean_k"):  # what validation has tried is not tried again
            del expected[name]
    assert {name: again[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    certain = to_json(expected)["certainty"].keys()
    assert certain
    assert certain <= to_json(again)["certainty"].keys()

    test_data = ("--data", "scenes:test", "--samples", 24)
    done = eve("evaluate", task, "run", *test_data, "--json", "test.json")
    assert done.returncode == 0, done.stderr
    test_numbers = read_numbers(tmp_path / "test.json")
    main_metric = MAIN_METRICS[task]
    assert main_metric in done.stdout
    assert test_numbers["data"] != again["data"]  # the fingerprint of the rows
    if task == "nlvr2":  # of two dozen statements, as many may be right by chance
        assert test_numbers[main_metric] == share_judged_right(run, "test", 24)
    wrong_task = "vqa" if task == "nlvr2" else "nlvr2"
    assert task in complaint(eve("evaluate", wrong_task, "run"))


def check_notes(
    run: Path,
    pretrained: Path,
    task: str,
    metrics: dict,
) -> None:
    """The log says where the weights come from, and what the numbers of record mean."""
    start, *choice, comparison, memory, _ = [row["text"] for row in rows(run, "note")]
    assert len(choice) == (task == "retrieval")  # what validation chose to re-rank
    assert comparison == evaluator_of(load_run(run).task).comparison(from_json(metrics))
    assert " on training rows, " in memory
    source = f"weights from {pretrained}/checkpoints/step_00000004"
    assert f"{source}; new, at 3 × the learning rate: " in start
    assert "not used: pixel_decoder, token_head" in start


def check_best_weights(run: Path, task: str, metrics: dict) -> None:
    """`best/` holds the weights of the best validation, whose numbers are those of record."""
    (step,) = re.findall(r"^best/ holds step (\d)", rows(run, "note")[-1]["text"])
    first, last = rows(run, "val")
    assert (first["step"], last["step"]) == (1, 2)
    best = first if step == "1" else last
    assert best is last or first[MAIN_METRICS[task]] > last[MAIN_METRICS[task]]
    assert {**metrics, "kind": "val", "step": int(step)} == best
    loaded = load_run(run)
    assert (loaded.step, loaded.folder) == (int(step), run / "best")
    weights = load_file(run / f"checkpoints/step_{int(step):08d}/model.safetensors")
    for name, tensor in loaded.task.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_a_fine_tuned_run_can_be_fine_tuned_again(eve, pretrained, tmp_path: Path):
    """The same task takes its head, another one only the encoder; the best weights, not the
    last."""
    vqa = ("finetune", "scenes_vqa", *SHORT)
    assert eve(*vqa, "--init", pretrained, "--out", "first").returncode == 0
    answers = read_numbers(tmp_path / "first/answers.json")
    assert answers == read_numbers(tmp_path / "first/best/answers.json")
    assert answers == list(load_run(tmp_path / "first").task.sizes.labels)

    assert eve(*vqa, "--init", "first", "--out", "second").returncode == 0
    source = f"weights from {tmp_path}/first/best"
    assert first_note(tmp_path / "second") == source
    done = eve("finetune", "scenes_nlvr2", "--init", "first", "--out", "third", *SHORT)
    assert done.returncode == 0, done.stderr
    heads = "new, at 3 × the learning rate: compare_head; not used: answer_head"
    assert heads in first_note(tmp_path / "third")

    (tmp_path / "answers.json").write_text(json.dumps(answers[::-1]))  # as many, in another order
    done = eve(*vqa, "--init", "first", "--out", "fourth", "--task.answers", "answers.json")
    assert done.returncode == 0, done.stderr
    note = f"{source}; new, at 3 × the learning rate: answer_head"
    assert first_note(tmp_path / "fourth") == note
    assert read_numbers(tmp_path / "fourth/answers.json") == answers[::-1]


def test_a_run_goes_on_as_it_began_without_the_run_it_started_from(eve, pretrained, tmp_path: Path):
    """Neither the shape of the model nor which parameters are new, and learn faster, is asked of
    --init again."""
    shutil.copytree(pretrained, tmp_path / "init")
    command = ("finetune", "scenes_vqa", "--init", "init", "--out", "run", *SHORT)
    assert eve(*command).returncode == 0
    end = tmp_path / "run/checkpoints/step_00000002"
    expected = load_file(end / "model.safetensors")
    with (tmp_path / "init/checkpoints/step_00000004/model.safetensors").open("r+b") as weights:
        weights.seek(-3, 2)
        weights.write(b"xyz")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for words in (
        "evaluate masked_signal init",
        "fill-mask init x.png text",
        "features init x.png --out f.npz",
        "export init onnx",
        "report init",
        "convert init x.pth",
        "finetune scenes_vqa --init init --out other",
    ):
        line = complaint(eve(*words.split()))
        assert "model.safetensors is not what was written, by its checksum" in line
    for folder in (end, tmp_path / "run/best", tmp_path / "init"):
        shutil.rmtree(folder)
    done = eve(*command)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 1" in done.stdout + done.stderr
    for name, tensor in load_file(end / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_scratch_takes_the_shape_and_the_tokenizer_only(eve, pretrained, tmp_path: Path):
    flags = (*SHORT, "--train.lr", 1e-12, "--train.warmup", 0)
    start = ("finetune", "scenes_vqa", "--init", pretrained)
    for out, scratch in (("scratch", ["--scratch"]), ("warm", [])):
        done = eve(*start, *scratch, "--out", out, *flags)
        assert done.returncode == 0, done.stderr
    note = f"random weights, in the shape of {pretrained}"
    assert first_note(tmp_path / "scratch") == note
    before = load_run(pretrained).task.state_dict()
    scratch = load_run(tmp_path / "scratch").task.state_dict()
    warm = load_run(tmp_path / "warm").task.state_dict()
    for name in ("text.words", "image.proj", "blocks.0.attn.qkv"):
        weight = f"encoder.{name}.weight"
        torch.testing.assert_close(warm[weight], before[weight], rtol=0, atol=1e-6)
        assert scratch[weight].shape == before[weight].shape
        assert not torch.allclose(scratch[weight], before[weight], atol=1e-3)
    tokenizer = (tmp_path / "scratch/tokenizer.json").read_text()
    assert tokenizer == (pretrained / "tokenizer.json").read_text()


def test_scratch_without_a_run_takes_the_shape_of_the_recipe(eve, tmp_path: Path):
    shape = ("--input.image-size", 32, "--model.embed-dim", 48, "--tokenizer.vocab-size", 300)
    command = ("finetune", "photos_search", "--scratch", *shape, *SHORT, "--out", "run")
    done = eve(*command, "--data.val", "scenes:val")
    assert done.returncode == 0, done.stderr
    assert first_note(tmp_path / "run") == "random weights"
    run = load_run(tmp_path / "run")
    assert run.config.init is None
    assert run.config.scratch
    assert isinstance(run.config.model, EveModelConfig)
    assert run.config.model.stem == "residual_conv"
    assert run.tokenizer.vocab_size <= 300  # made for the data


def test_mistakes_of_fine_tuning_are_one_line(eve, pretrained, tmp_path: Path):
    line = complaint(eve("finetune", "scenes_vqa"))
    assert line.endswith("or --scratch to start from random weights")
    start = ("finetune", "scenes_vqa", "--init", pretrained, *SHORT)
    shallow = ("--model.depth", 2, "--model.num-deep-blocks", 1, "--model.no-norm-pre")
    line = complaint(eve(*start, *shallow, "--model.dropout", 0.5))
    assert "its encoder does not fit" in line
    fix = "--model.depth 3 --model.num-deep-blocks 2 --model.norm-pre"
    assert line.endswith(f"give {fix} as there")
    line = complaint(eve(*start, "--tokenizer.vocab-size", 300))
    assert "the run keeps the tokenizer of --init" in line
    (tmp_path / "answers.txt").write_text("perhaps\nnever\n")
    line = complaint(eve(*start, "--task.answers", "answers.txt"))
    assert "answers none of these 1000 training questions" in line
    assert not list(tmp_path.glob("runs/*/checkpoints"))
