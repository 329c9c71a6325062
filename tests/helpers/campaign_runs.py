"""Runs for campaign.py: valid ones, ways to damage them, and what reads them."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from eve_vl.cli.main import dispatch as eve_command
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.eve import Eve
from eve_vl.interop.eve_checkpoints import export_published
from eve_vl.report.page import write_report
from eve_vl.run.flops import inspect_run
from eve_vl.run.loading import load_run, read_config
from eve_vl.run.training import train
from eve_vl.train.checkpoint_files import checksum
from eve_vl.train.checkpoint_folders import CHECKPOINTS, checkpoint_folders
from helpers.campaign_actions import ASKED
from helpers.campaign_images import big_images, encode
from helpers.campaign_reader import Action, Reader, files_in, lines
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import CAPTIONS

RUNS = ("masked", "vqa")
TRAIN = {
    "steps": 3,
    "batch_size": 4,
    "save_every": 1,
    "val_every": 2,
    "log_every": 1,
    "keep_checkpoints": 2,
}


def make_base(base: Path) -> None:
    """Make what takes long: images near the limit, and runs, one of pre-training, one of
    fine-tuning with best weights."""
    torch.set_num_threads(1)
    (base / "data").mkdir(parents=True)
    rows = []
    for number in range(8):
        image = encode("PNG", size=(20, 20 + number)) if number < 7 else b"no image"
        (base / f"data/{number}.png").write_bytes(image)
        row = {"image": f"{number}.png", "caption": CAPTIONS[number % 4]}
        row["question"] = "what is it"
        row["answer"] = ("cat", "dog")[number % 2]
        rows.append(row)
    (base / "data/rows.jsonl").write_bytes(lines(rows))
    (base / "data/val.jsonl").write_bytes(lines(rows[:7]))
    data = {
        "train": (str(base / "data/rows.jsonl"),),
        "val": (str(base / "data/val.jsonl"),),
        "max_invalid_fraction": 0.5,
        "crop_scale": (1, 1),
        "flip": False,
    }
    config = tiny_config(data=data, train=TRAIN)
    train(replace(config, out=base / "masked"))
    train(
        replace(
            config,
            task=ASKED,
            init=base / "masked",
            out=base / "vqa",
        )
    )
    for name in RUNS:
        write_report(base / name)
        export_published(base / name, base / f"{name}.pth")
    (base / "big").mkdir()
    for name, image in big_images().items():
        (base / "big" / name).write_bytes(image)


def run_readers(base: Path) -> dict[str, Reader]:
    """Return the readers of run folders that `make_base` has made."""
    readers = {}
    for name in RUNS:
        files = {}
        for path, data in files_in(base / name).items():
            if not path.startswith(("tensorboard", "report", ".")):
                files[path] = data
        newest = max(path for path in files if path.startswith(CHECKPOINTS)).split("/")[1]
        targets = list(files)  # those that are listed again are damaged more often
        targets += [path for path in files if not path.endswith("safetensors")]
        targets += [path for path in files if newest in path]
        targets += [path for path in files if path.startswith("best/")]
        readers[f"run {name}"] = Reader(
            files=files,
            actions=run_actions(base, name),
            num_actions=2,
            targets=targets,
            afterwards=mend_checksums,
            weight=4,
        )
    return readers


def run_actions(base: Path, name: str) -> dict[str, Action]:
    """Return all that a run folder may be given to."""
    config = read_config(base / name)
    tuned = read_config(base / "vqa")
    one_step = replace(tuned, train=replace(tuned.train, steps=1))
    image = base / "data/0.png"

    def ask(folder: Path) -> None:
        eve = Eve.load(folder)
        eve.encode_image(image)
        if name == "vqa":
            eve.answer(image, "what is it")
        else:
            eve.fill_mask(image, "a [MASK]")

    def resume(folder: Path) -> None:
        train(replace(config, out=folder))

    def resume_without_the_newest(folder: Path) -> None:
        for path in checkpoint_folders(folder)[-1:]:
            path.rename(folder.parent / "removed")
        train(replace(config, out=folder))

    def start_from(folder: Path) -> None:
        train(replace(one_step, init=folder, out=folder.parent / "new"))

    def start_from_scratch(folder: Path) -> None:
        train(
            replace(
                one_step,
                init=folder,
                out=folder.parent / "new",
                scratch=True,
            )
        )

    def export(folder: Path) -> None:
        eve_command(["convert", str(folder), str(folder.parent / "out.pth")])

    return {
        "Eve.load": ask,
        "load_run": load_run,
        "resume": resume,
        "go on": resume_without_the_newest,
        "report": write_report,
        "init": start_from,
        "scratch": start_from_scratch,
        "inspect": inspect_run,
        "evaluate": lambda folder: evaluated(load_run(folder), 4).numbers,
        "export": export,
    }


def mend_checksums(rng: Random, folder: Path) -> None:
    """Mostly let the checksums be those of the damaged files, or be absent as in older versions, so
    that more is read."""
    for path in (*folder.glob(f"{CHECKPOINTS}/*/state.json"), folder / "best/state.json"):
        if rng.random() < 0.3 or not path.is_file() or path.is_symlink():
            continue
        try:
            state = json.loads(path.read_bytes())
            names = list(state.pop("sha256"))
            if rng.random() < 0.7:
                files = [path.with_name(name) for name in names]
                state["sha256"] = {file.name: checksum(file) for file in files if file.is_file()}
            path.write_text(json.dumps(state))
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError, OSError):
            continue
