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
from eve_vl.data.row_dataset import eval_positions
from eve_vl.metrics.intervals import from_json, to_json
from eve_vl.run.loading import load_run
from eve_vl.synthetic.scenes.rows import SceneStatements
from eve_vl.tasks.evaluator import evaluator_of
from helpers.complaints import complaint

pytestmark = pytest.mark.usefixtures("no_report")

# scenes:val has a thousand rows, which the baseline without the image reads quickly
SHORT = (
    *("--train.steps", 4, "--train.batch-size", 8, "--train.val-every", 2),
    *("--train.save-every", 2, "--train.log-every", 1, "--train.dtype", "float32"),
    *("--data.val-samples", 24, "--data.num-workers", 0, "--data.train", "scenes:val"),
    *("--train.head-lr-multiplier", 3),
)
TASKS = {"vqa": "vqa_acc", "nlvr2": "nlvr2_acc", "retrieval": "r_mean"}


def rows(run: Path, kind: str) -> list[dict]:
    """Return the rows of a kind as they are written, without intervals made of them."""
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def share_judged_right(run: Path, split: str, num_samples: int) -> float:
    """One statement at a time."""
    eve = Eve.load(run, device="cpu")
    source = SceneStatements(split=split, image_size=eve.run.config.input.image_size)
    num_right = 0
    for _, _, number in eval_positions([len(source)], num_samples):
        row = source[number]
        answer = eve.verify(row.left, row.right, row.statement)
        num_right += answer.is_true == row.label
    return num_right / num_samples


def comparison_of(run: Path) -> str:
    """Return what the run's task says about its numbers of record."""
    numbers = from_json(json.loads((run / "metrics.json").read_text()))
    return evaluator_of(load_run(run).task).comparison(numbers)


@pytest.mark.parametrize("task", TASKS)
def test_finetune_evaluate(eve, pretrained, tmp_path: Path, task: str):
    main_metric = TASKS[task]
    run = tmp_path / "run"
    done = eve("finetune", f"scenes_{task}", "--init", pretrained, "--out", "run", *SHORT)
    assert done.returncode == 0, done.stderr
    start, *choice, comparison, memory, best = [row["text"] for row in rows(run, "note")]
    assert len(choice) == (task == "retrieval")  # what validation chose to re-rank
    assert comparison_of(run) == comparison
    assert " on training rows, " in memory
    (step,) = re.findall(r"^best/ holds step (\d)", best)
    source = f"weights from {pretrained}/checkpoints/step_00000004"
    assert f"{source}; new, at 3 × the learning rate: " in start
    assert "not used: pixel_decoder, token_head" in start
    validations = rows(run, "val")
    assert [row["step"] for row in validations] == [2, 4]
    best = next(row for row in validations if row["step"] == int(step))
    assert best["step"] == 4 or best[main_metric] > validations[-1][main_metric]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics == {name: value for name, value in best.items() if name not in ("kind", "step")}
    loaded = load_run(run)
    assert loaded.step == best["step"]
    assert loaded.folder == run / "best"
    assert loaded.config.task.name == task
    expected = load_file(run / f"checkpoints/step_{best['step']:08d}/model.safetensors")
    for name, tensor in loaded.task.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert loaded.tokenizer.to_json() == (pretrained / "tokenizer.json").read_text()

    done = eve("evaluate", task, "run", "--samples", 24, "--json", "again.json")
    assert done.returncode == 0, done.stderr
    again = from_json(json.loads((tmp_path / "again.json").read_text()))
    # what validation has tried is not tried again
    expected = {
        name: value for name, value in from_json(metrics).items() if not name.startswith("r_mean_k")
    }
    assert {name: again[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    certain = to_json(expected)["certainty"].keys()
    assert certain and certain <= to_json(again)["certainty"].keys()

    test_data = ("--data", "scenes:test", "--samples", 24)
    done = eve("evaluate", task, "run", *test_data, "--json", "test.json")
    assert done.returncode == 0, done.stderr
    test = json.loads((tmp_path / "test.json").read_text())
    assert main_metric in test and main_metric in done.stdout
    if task == "nlvr2":  # of two dozen statements, as many may be right by chance
        assert test[main_metric] == share_judged_right(run, "test", 24)
        assert again[main_metric] == share_judged_right(run, "val", 24)
    else:
        assert test != again
    wrong_task = next(name for name in TASKS if name != task)
    assert task in complaint(eve("evaluate", wrong_task, "run"))


def test_a_fine_tuned_run_can_be_fine_tuned_again(eve, pretrained, tmp_path: Path):
    """The same task takes its head, another one only the encoder; the best weights, not the
    last."""
    vqa = ("finetune", "scenes_vqa", *SHORT)
    assert eve(*vqa, "--init", pretrained, "--out", "first").returncode == 0
    assert eve(*vqa, "--init", "first", "--out", "second").returncode == 0
    note, *_ = rows(tmp_path / "second", "note")
    assert note["text"] == f"weights from {tmp_path}/first/best"
    done = eve("finetune", "scenes_nlvr2", "--init", "first", "--out", "third", *SHORT)
    assert done.returncode == 0, done.stderr
    note, *_ = rows(tmp_path / "third", "note")
    assert "new, at 3 × the learning rate: compare_head; not used: answer_head" in note["text"]
    answers = json.loads((tmp_path / "first/answers.json").read_text())
    assert answers == json.loads((tmp_path / "first/best/answers.json").read_text())
    assert answers == list(load_run(tmp_path / "first").task.sizes.labels)
    (tmp_path / "answers.json").write_text(json.dumps(answers[::-1]))  # as many, in another order
    done = eve(*vqa, "--init", "first", "--out", "fourth", "--task.answers", "answers.json")
    assert done.returncode == 0, done.stderr
    note, *_ = rows(tmp_path / "fourth", "note")
    source = f"weights from {tmp_path}/first/best"
    assert note["text"] == f"{source}; new, at 3 × the learning rate: answer_head"
    assert json.loads((tmp_path / "fourth/answers.json").read_text()) == answers[::-1]


def test_a_run_goes_on_as_it_began_without_the_run_it_started_from(eve, pretrained, tmp_path: Path):
    """Neither the shape of the model nor which parameters are new, and learn faster, is asked of
    --init again."""
    shutil.copytree(pretrained, tmp_path / "init")
    command = ("finetune", "scenes_vqa", "--init", "init", "--out", "run", *SHORT)
    assert eve(*command).returncode == 0
    end = tmp_path / "run/checkpoints/step_00000004"
    expected = load_file(end / "model.safetensors")
    with (tmp_path / "init/checkpoints/step_00000004/model.safetensors").open("r+b") as weights:
        weights.seek(-3, 2)
        weights.write(b"xyz")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    uses = (
        "evaluate masked_signal init",
        "fill-mask init x.png text",
        "features x.png --run init --out f.npz",
        "export init onnx",
        "report init",
        "convert init x.pth",
        "finetune scenes_vqa --init init --out other",
    )
    for words in uses:
        line = complaint(eve(*words.split()))
        assert "model.safetensors is not what was written, by its checksum" in line
    for folder in (end, tmp_path / "run/best", tmp_path / "init"):
        shutil.rmtree(folder)
    done = eve(*command)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 2" in done.stdout + done.stderr
    assert all(map(torch.equal, load_file(end / "model.safetensors").values(), expected.values()))


def test_scratch_takes_the_shape_and_the_tokenizer_only(eve, pretrained, tmp_path: Path):
    flags = (*SHORT, "--train.lr", 1e-12, "--train.warmup", 0)
    start = ("finetune", "scenes_vqa", "--init", pretrained)
    done = eve(*start, "--scratch", "--out", "scratch", *flags)
    assert done.returncode == 0, done.stderr
    note, *_ = rows(tmp_path / "scratch", "note")
    assert note["text"] == f"random weights, in the shape of {pretrained}"
    done = eve(*start, "--out", "warm", *flags)
    assert done.returncode == 0, done.stderr
    before = load_run(pretrained).task.state_dict()
    scratch = load_run(tmp_path / "scratch").task.state_dict()
    warm = load_run(tmp_path / "warm").task.state_dict()
    for name in (
        "encoder.text.words.weight",
        "encoder.image.proj.weight",
        "encoder.blocks.0.attn.qkv.weight",
    ):
        torch.testing.assert_close(warm[name], before[name], rtol=0, atol=1e-6)
        assert scratch[name].shape == before[name].shape
        assert not torch.allclose(scratch[name], before[name], atol=1e-3)
    tokenizer = (tmp_path / "scratch/tokenizer.json").read_text()
    assert tokenizer == (pretrained / "tokenizer.json").read_text()


def test_larger_images_than_in_pretraining(eve, pretrained, tmp_path: Path):
    start = ("finetune", "scenes_nlvr2", "--init", pretrained, "--out", "run")
    done = eve(*start, *SHORT, "--input.image-size", 48)
    assert done.returncode == 0, done.stderr
    note, *_ = rows(tmp_path / "run", "note")
    assert "positions resized from 16 to 36 patches" in note["text"]


def test_mistakes_of_fine_tuning_are_one_line(eve, pretrained, tmp_path: Path):
    assert "needs --init RUN" in complaint(eve("finetune", "scenes_vqa"))
    assert "nowhere: no such run folder" in complaint(
        eve("finetune", "scenes_vqa", "--init", "nowhere")
    )
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in complaint(eve("finetune", "scenes_vqa", "--init=empty"))
    start = ("finetune", "scenes_vqa", "--init", pretrained, *SHORT)
    line = complaint(eve(*start, "--model.depth", 2, "--model.num-deep-blocks", 1))
    assert "its encoder does not fit" in line and "--init-allow-missing" in line
    assert "its encoder does not fit" in complaint(eve(*start, "--model.embed-dim", 24))
    assert "the run keeps the tokenizer of --init" in complaint(
        eve(*start, "--tokenizer.vocab-size", 300)
    )
    assert "Unrecognized options: --task.rerank, 3" in complaint(eve(*start, "--task.rerank", 3))
    assert "rerank 16 needs the matching head" in complaint(
        eve("finetune", "scenes_retrieval", "--init", pretrained, "--task.itm-weight", 0)
    )
    (tmp_path / "answers.txt").write_text("perhaps\nnever\n")
    line = complaint(eve(*start, "--task.answers", "answers.txt"))
    assert "answers none of these 1000 training questions" in line
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/checkpoints"))


def test_an_answer_list_of_ones_own(eve, pretrained, tmp_path: Path):
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    start = ("finetune", "scenes_vqa", "--init", pretrained, "--out", "run")
    done = eve(*start, *SHORT, "--task.answers", "answers.txt")
    assert done.returncode == 0, done.stderr
    training, _, validation, *_ = [row["text"] for row in rows(tmp_path / "run", "note")]
    assert "not among the run's 2 answers: always wrong" in validation
    assert training.startswith("the answer list lacks the answers of ")
    assert " of 1000 training questions" in training
    assert json.loads((tmp_path / "run/best/answers.json").read_text()) == ["yes", "no"]
    assert eve("evaluate", "vqa", "run", "--samples", 8).returncode == 0
