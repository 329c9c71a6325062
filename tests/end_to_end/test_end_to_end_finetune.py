"""The real command line on CPU: pre-train → fine-tune for each task → evaluate."""

import json  # noqa: I001
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.cli.test_bad_input import complaint
from eve_vl import Eve
from eve_vl.data.row_dataset import eval_positions
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.metrics.intervals import from_json, to_json
from eve_vl.run.loading import load_run
from eve_vl.synthetic.scenes.rows import SceneStatements

pytestmark = pytest.mark.usefixtures("no_report")

SHORT = (
    *(
        "--train.steps",
        4,
        "--train.batch-size",
        8,
        "--train.val-every",
        2,
        "--train.save-every",
        2,
        "--train.log-every",
        1,
    ),
    *("--data.val-samples", 24, "--data.num-workers", 0, "--train.dtype", "float32"),
    *(
        "--train.head-lr-multiplier",
        3,
        "--data.train",
        "scenes:val",
    ),  # a thousand rows, quickly gone through for the blind baseline
)
TASKS = {"vqa": "vqa_acc", "nlvr2": "nlvr2_acc", "retrieval": "r_mean"}


def rows(run: Path, kind: str) -> list[dict]:
    found = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [row for row in found if row["kind"] == kind]


def share_judged_right(run: Path, split: str, num_samples: int) -> float:
    """One statement at a time."""
    eve = Eve.load(run, device="cpu")
    source = SceneStatements(split=split, image_size=eve.run.config.input.image_size)
    found = [source[row] for _, _, row in eval_positions([len(source)], num_samples)]
    right = [eve.verify(row.left, row.right, row.statement).is_true == row.label for row in found]
    return sum(right) / num_samples


def loaded_verdict(run: Path) -> str:
    """What the run's task says of its numbers of record."""
    return evaluator_of(load_run(run).task).comparison(
        from_json(json.loads((run / "metrics.json").read_text()))
    )


@pytest.mark.parametrize("task", TASKS)
def test_finetune_evaluate(eve, pretrained, tmp_path: Path, task: str):
    main_metric, run = TASKS[task], tmp_path / "run"
    done = eve("finetune", f"scenes_{task}", "--init", pretrained, "--out", "run", *SHORT)
    assert done.returncode == 0, done.stderr
    note, *chosen, verdict, seen, kept = rows(run, "note")
    assert len(chosen) == (task == "retrieval")  # what validation chose to re-rank
    assert loaded_verdict(run) == verdict["text"]
    assert " on training rows, " in seen["text"]
    (step,) = re.findall(r"^best/ holds step (\d)", kept["text"])
    assert (
        f"weights from {pretrained}/checkpoints/step_00000004; new, at 3 × the learning rate: "
        in note["text"]
    )
    assert "not used: pixel_decoder, token_head" in note["text"]
    validations = rows(run, "val")
    assert [row["step"] for row in validations] == [2, 4]
    best = next(row for row in validations if row["step"] == int(step))
    assert best["step"] == 4 or best[main_metric] > validations[-1][main_metric]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics == {name: value for name, value in best.items() if name not in ("kind", "step")}
    loaded = load_run(run)
    assert (loaded.step, loaded.folder, loaded.config.task.name) == (
        best["step"],
        run / "best",
        task,
    )
    expected = load_file(run / f"checkpoints/step_{best['step']:08d}/model.safetensors")
    assert all(
        torch.equal(tensor, expected[name]) for name, tensor in loaded.task.state_dict().items()
    )
    assert loaded.tokenizer.to_json() == (pretrained / "tokenizer.json").read_text()

    again = eve("evaluate", task, "run", "--samples", 24, "--json", "own.json")
    assert again.returncode == 0, again.stderr
    own, metrics = from_json(json.loads((tmp_path / "own.json").read_text())), from_json(metrics)
    # what validation has tried is not tried again
    metrics = {name: value for name, value in metrics.items() if not name.startswith("r_mean_k")}
    assert {name: own[name] for name in metrics} == pytest.approx(metrics, abs=1e-6)
    assert (
        to_json(metrics)["certainty"]
        and to_json(metrics)["certainty"].keys() <= to_json(own)["certainty"].keys()
    )
    done = eve(
        "evaluate", task, "run", "--data", "scenes:test", "--samples", 24, "--json", "test.json"
    )
    assert done.returncode == 0, done.stderr
    test = json.loads((tmp_path / "test.json").read_text())
    assert main_metric in test and main_metric in done.stdout
    if task == "nlvr2":  # two dozen verdicts may be right as often by chance
        assert test[main_metric] == share_judged_right(run, "test", 24) and own[
            main_metric
        ] == share_judged_right(run, "val", 24)
    else:
        assert test != own
    other = next(name for name in TASKS if name != task)
    assert task in complaint(eve("evaluate", other, "run"))


def test_a_fine_tuned_run_can_be_fine_tuned_again(eve, pretrained, tmp_path: Path):
    """The same task takes its head, another one only the encoder; the best weights, not the
    last."""
    assert (
        eve("finetune", "scenes_vqa", "--init", pretrained, "--out", "first", *SHORT).returncode
        == 0
    )
    assert (
        eve("finetune", "scenes_vqa", "--init", "first", "--out", "second", *SHORT).returncode == 0
    )
    note, *_ = rows(tmp_path / "second", "note")
    assert note["text"] == f"weights from {tmp_path}/first/best"
    assert (
        eve("finetune", "scenes_nlvr2", "--init", "first", "--out", "third", *SHORT).returncode == 0
    )
    note, *_ = rows(tmp_path / "third", "note")
    assert "new, at 3 × the learning rate: compare_head; not used: answer_head" in note["text"]
    answers = json.loads((tmp_path / "first/answers.json").read_text())
    assert answers == json.loads((tmp_path / "first/best/answers.json").read_text())
    assert answers == list(load_run(tmp_path / "first").task.sizes.labels)
    (tmp_path / "answers.json").write_text(json.dumps(answers[::-1]))  # as many, in another order
    other = ("--task.answers", "answers.json")
    assert (
        eve(
            "finetune", "scenes_vqa", "--init", "first", "--out", "fourth", *SHORT, *other
        ).returncode
        == 0
    )
    note, *_ = rows(tmp_path / "fourth", "note")
    assert (
        note["text"]
        == f"weights from {tmp_path}/first/best; new, at 3 × the learning rate: answer_head"
    )
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
    use = (
        "evaluate masked_signal init",
        "fill-mask init x.png text",
        "features x.png --run init --out f.npz",
        "export init onnx",
        "report init",
    )
    for damaged in (
        *map(str.split, use),
        ("convert", "init", "x.pth"),
        (*command[: -len(SHORT)], "--out", "other"),
    ):
        assert "model.safetensors is not what was written, by its checksum" in complaint(
            eve(*damaged)
        )
    for folder in (end, tmp_path / "run/best", tmp_path / "init"):
        shutil.rmtree(folder)
    done = eve(*command)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 2" in done.stdout + done.stderr
    assert all(map(torch.equal, load_file(end / "model.safetensors").values(), expected.values()))


def test_scratch_takes_the_shape_and_the_tokenizer_only(eve, pretrained, tmp_path: Path):
    flags = (*SHORT, "--train.lr", 1e-12, "--train.warmup", 0)
    done = eve(
        "finetune", "scenes_vqa", "--init", pretrained, "--scratch", "--out", "scratch", *flags
    )
    assert done.returncode == 0, done.stderr
    note, *_ = rows(tmp_path / "scratch", "note")
    assert note["text"] == f"random weights, in the shape of {pretrained}"
    assert (
        eve("finetune", "scenes_vqa", "--init", pretrained, "--out", "warm", *flags).returncode == 0
    )
    start = load_run(pretrained).task.state_dict()
    scratch, warm = (load_run(tmp_path / name).task.state_dict() for name in ("scratch", "warm"))
    for name in (
        "encoder.text.words.weight",
        "encoder.image.proj.weight",
        "encoder.blocks.0.attn.qkv.weight",
    ):
        torch.testing.assert_close(warm[name], start[name], rtol=0, atol=1e-6)
        assert scratch[name].shape == start[name].shape
        assert not torch.allclose(scratch[name], start[name], atol=1e-3)
    assert (tmp_path / "scratch/tokenizer.json").read_text() == (
        pretrained / "tokenizer.json"
    ).read_text()


def test_larger_images_than_in_pretraining(eve, pretrained, tmp_path: Path):
    done = eve(
        "finetune",
        "scenes_nlvr2",
        "--init",
        pretrained,
        "--out",
        "run",
        *SHORT,
        "--input.image-size",
        48,
    )
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
    done = eve(
        "finetune",
        "scenes_vqa",
        "--init",
        pretrained,
        "--out",
        "run",
        *SHORT,
        "--task.answers",
        "answers.txt",
    )
    assert done.returncode == 0, done.stderr
    told, _, outside, *_ = rows(tmp_path / "run", "note")
    assert "not among the run's 2 answers: always wrong" in outside["text"]
    assert (
        told["text"].startswith("the answer list lacks the answers of ")
        and " of 1000 training questions" in told["text"]
    )
    assert json.loads((tmp_path / "run/best/answers.json").read_text()) == ["yes", "no"]
    assert eve("evaluate", "vqa", "run", "--samples", 8).returncode == 0
