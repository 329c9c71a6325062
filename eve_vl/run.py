"""From a config to a trained run, and from a run folder back to a model."""

import contextlib
import dataclasses
import gc
import json
import os
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eve_vl.config import (
    HELD_OUT,
    Config,
    DataConfig,
    MaskedSignalConfig,
    NLVR2Config,
    RetrievalConfig,
    VQAConfig,
    from_dict,
    to_dict,
)
from eve_vl.cpu import usable_cores
from eve_vl.data.answers import answers_of, closed_answers, drop_unanswerable, read_answers
from eve_vl.data.dataset import RowDataset
from eve_vl.data.downstream import SearchSet
from eve_vl.data.loader import eval_loader, open_sources, open_train_and_val, train_loader
from eve_vl.data.readers import absolute_spec
from eve_vl.data.records import ImageQuestion, Source
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.errors import BadSampleError, UserError
from eve_vl.files import write_file
from eve_vl.metrics import vqa
from eve_vl.model.transfer import parts, transfer
from eve_vl.tasks import TASKS
from eve_vl.tasks.masked_signal import MaskedSignal
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.tasks.vqa import VQA
from eve_vl.train import checkpoint, distributed
from eve_vl.train.device import pick_device
from eve_vl.train.lock import locked
from eve_vl.train.log import BAD_SAMPLES, BadSamples
from eve_vl.train.trainer import Trainer

ANSWERS_FILE = "answers.json"
ROWS_PER_TOKEN = 20  # a tokenizer of V tokens is trained on the captions of at most 20 · V rows
EVAL_BATCH = 64
LABELS_PROBED = 100
MIN_SCENE_SIZE = 16  # pixels; a tokenizer looks at captions only
OPERATIONAL = {  # fields that may change when a run goes on: they do not change what is learnt
    "out",
    "data.num_workers",
    "data.max_bad_share",
    "train.device",
    "train.threads",
    "train.log_every",
    "train.save_every",
    "train.keep",
}


AnyTask = MaskedSignal | Retrieval | VQA | NLVR2


@dataclass(kw_only=True)
class LoadedRun:
    """A run read back from its folder."""

    config: Config
    tokenizer: Tokenizer
    task: AnyTask
    step: int
    folder: Path


def load_run(path: Path, device: torch.device | None = None) -> LoadedRun:
    """Rebuild the model of a run folder (its best weights, else its newest) or of one of its checkpoints. Raises UserError."""
    folder = checkpoint.chosen_checkpoint(path)
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    task = build_task(config, tokenizer, load_answers(folder))
    checkpoint.load_model(folder, task)
    step = checkpoint.read_state(folder)["step"]
    return LoadedRun(config=config, tokenizer=tokenizer, task=task.to(device or "cpu").eval(), step=step, folder=folder)


def build_task(config: Config, tokenizer: Tokenizer, answers: Sequence[str] = ()) -> AnyTask:
    """Return the untrained task of a config, sized for a tokenizer and, for VQA, an answer list."""
    return build_untrained(config, tokenizer.vocab_size, answers, mask_id=tokenizer.mask_id)


def build_untrained(config: Config, vocab_size: int, answers: Sequence[str] = (), *, mask_id: int = 0) -> AnyTask:
    """Return the untrained task of a config from sizes alone."""
    match config.task:
        case MaskedSignalConfig():
            return MaskedSignal(config, vocab_size=vocab_size, mask_id=mask_id)
        case RetrievalConfig():
            return Retrieval(config, vocab_size=vocab_size)
        case VQAConfig():
            return VQA(config, vocab_size=vocab_size, answers=answers)
        case NLVR2Config():
            return NLVR2(config, vocab_size=vocab_size)


def load_answers(folder: Path) -> list[str]:
    """Return the answer list of a run or checkpoint folder; empty if it has none."""
    path = folder / ANSWERS_FILE
    return read_answers(path) if path.is_file() else []


def read_config(folder: Path) -> Config:
    """Read the config.json of a run or checkpoint folder. Raises UserError."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return from_dict(Config, values, str(path))


def set_threads(config: Config) -> None:
    """Give this process the threads of train.threads, else of OMP_NUM_THREADS, else its share of the cores."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = usable_cores() // local
    asked = config.train.threads or int(os.environ.get("OMP_NUM_THREADS", "0"))
    torch.set_num_threads(asked or max(1, cores))


def train_captions(sources: Sequence[Source[Any]], limit: int) -> list[str]:
    """Return the captions of at most `limit` rows, spread evenly over all sources."""
    total = sum(len(source) for source in sources)
    stride = max(1, -(-total // limit))
    captions = []
    for source in sources:
        for row in range(0, len(source), stride):
            try:
                captions += source[row].captions
            except BadSampleError:
                continue  # training counts it when it meets it
    return captions


def train_tokenizer(specs: Sequence[str], data: DataConfig, vocab_size: int) -> Tokenizer:
    """Train a tokenizer on the captions of any sources. Raises UserError."""
    return _train_tokenizer(open_sources(specs, data, image_size=MIN_SCENE_SIZE), vocab_size)


def _train_tokenizer(sources: Sequence[Source[Any]], vocab_size: int) -> Tokenizer:
    captions = train_captions(sources, ROWS_PER_TOKEN * vocab_size)
    if not captions:
        raise UserError("the sources hold no usable caption to train a tokenizer on")
    return Tokenizer.train(captions, vocab_size)


def obtain_tokenizer(config: Config, sources: Sequence[Source[Any]]) -> Tokenizer:
    """Return the run's tokenizer: that in its folder, else the --init run's, else the given file, else one trained on the
    captions."""
    if checkpoint.checkpoint_folders(config.out):
        return Tokenizer.load(config.out / "tokenizer.json")
    if config.init is not None:
        return Tokenizer.load(settings_folder(config.init, config.scratch) / "tokenizer.json")
    if config.tokenizer.path is not None:
        return Tokenizer.load(config.tokenizer.path)
    # one process trains it for all, so that all have the same
    text = _train_tokenizer(sources, config.tokenizer.vocab_size).to_json() if distributed.is_main() else None
    return Tokenizer.from_json(distributed.gather_objects(text)[0])


def obtain_answers(config: Config, sources: Sequence[Source[Any]]) -> list[str]:
    """Return the run's answer list: that in its folder, else the given file, else the frequent answers of its questions.

    Raises UserError if no answer is frequent enough.
    """
    assert isinstance(config.task, VQAConfig)
    if checkpoint.checkpoint_folders(config.out):
        return load_answers(config.out)
    if config.task.answers is not None:
        return read_answers(config.task.answers)
    closed = closed_answers(sources)
    if closed is not None:
        return closed
    answers = vqa.build_answers((given for _, _, given in answers_of(sources)), config.task.min_answer_count)
    if not answers:
        raise UserError(
            f"no answer is given to {config.task.min_answer_count} training questions; give a lower "
            "--task.min-answer-count or an answer list with --task.answers"
        )
    return answers


def train(config: Config, *, must_resume: bool = False, with_report: bool = True) -> Path | None:
    """Train a run, or go on with the one in config.out; write metrics.json and the report, and return the report's path.

    must_resume: refuse to start anew. Only the main process returns a path, with with_report. Raises UserError.
    """
    config = with_init_tokenizer(with_absolute_paths(config))
    if isinstance(config.task, MaskedSignalConfig) and config.task.is_bare:
        raise UserError("task.mim_weight, mlm_weight, itc_weight and itm_weight are all 0: nothing to learn")
    device = pick_device(config.train.device)
    distributed.setup(device)
    set_threads(config)
    with locked(config.out):
        numbers = _fit(config, device, must_resume)  # in a call of its own: the model must be gone before the group is
    gc.collect()
    distributed.barrier()
    is_main = distributed.is_main()
    distributed.shutdown()
    if not is_main:
        return None
    write_file(config.out / "metrics.json", json.dumps(numbers, indent=1) + "\n")
    if not with_report:
        return None
    from eve_vl.report import write_report  # an edge of the house, needed only here

    return write_report(config.out)


def _fit(config: Config, device: torch.device, must_resume: bool) -> dict[str, float]:
    """Set up and train; return the numbers of the last validation."""
    check_out_folder(config, must_resume)
    rank, world = distributed.rank(), distributed.world_size()
    if config.train.batch_size % (config.train.accumulation * world):
        raise UserError(
            f"train.batch_size {config.train.batch_size} is not divisible by train.accumulation "
            f"{config.train.accumulation} × {world} processes"
        )
    task_class = TASKS[config.task.name]
    sources, val_sources = open_train_and_val(config, task_class.dataset.kind)
    tokenizer = obtain_tokenizer(config, sources)
    texts = {"config.json": json.dumps(to_dict(config), indent=1), "tokenizer.json": tokenizer.to_json()}
    require_labels(config, val_sources)
    notes, answers = [], []
    if isinstance(config.task, VQAConfig):
        answers = obtain_answers(config, sources)
        sources, missing = drop_unanswerable(sources, answers, vqa.normalize)
        texts[ANSWERS_FILE] = json.dumps(answers, indent=1)
        notes += [str(missing)] if missing else []
    distributed.barrier()
    if distributed.is_main():
        config.out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_file(config.out / name, text)
    seed_everything(config.train.seed)
    task = build_task(config, tokenizer, answers)
    new: Collection[str] = ()
    if config.init is not None:
        new, note = start_from(config, task)
        notes.append(note)
    trainer = Trainer(config.train, config.out, task, device=device, texts=texts, new=new, notes=notes)
    seed_everything(config.train.seed + rank)  # dropout differs between processes, weights do not
    if not trainer.resume() and rank == 0:
        (config.out / BAD_SAMPLES).unlink(missing_ok=True)  # of a start that came to nothing
    distributed.barrier()
    dataset = task_class.dataset(sources, config, tokenizer, training=True)
    loader = train_loader(dataset, consumed=trainer.samples_consumed, rank=rank, world=world)
    val_loader = eval_loader(eval_dataset(config, val_sources, tokenizer), batch_size=EVAL_BATCH, rank=rank, world=world)
    bad_samples = BadSamples(
        config.out,
        num_rows=sum(len(source) for source in sources),
        max_share=config.data.max_bad_share,
        writes=distributed.is_main(),
    )
    return trainer.fit(loader, val_loader, bad_samples)


def require_labels(config: Config, sources: Sequence[Source[Any]]) -> None:
    """Raise UserError if the best weights could not be chosen: no answer or label among the first validation rows."""
    if not isinstance(config.task, VQAConfig | NLVR2Config):
        return
    for source in sources:
        for row in range(min(len(source), LABELS_PROBED)):
            with contextlib.suppress(BadSampleError):
                record = source[row]
                if record.answers if isinstance(record, ImageQuestion) else record.label is not None:
                    return
    missing = "answer" if isinstance(config.task, VQAConfig) else "label"
    if config.data.val == (HELD_OUT,):
        raise UserError(
            f"data.train {' '.join(config.data.train)}: no {missing} among the first {LABELS_PROBED} rows held out; if a "
            "column of another name has them, give --data.label-column"
        )
    raise UserError(
        f"data.val {' '.join(config.data.val)}: no {missing} among its first {LABELS_PROBED} rows, so the best weights cannot "
        f"be chosen; name validation data that has them, or {HELD_OUT}"
    )


def eval_dataset(config: Config, sources: Sequence[Source[Any]], tokenizer: Tokenizer) -> RowDataset:
    """Return what a task's evaluation goes through."""
    if isinstance(config.task, RetrievalConfig):
        return SearchSet(sources, config, tokenizer)
    return TASKS[config.task.name].dataset(sources, config, tokenizer, training=False)


def settings_folder(init: Path, scratch: bool) -> Path:
    """Return where config and tokenizer of an --init run lie: its chosen checkpoint, or, if its weights are not wanted, the
    run folder itself, which has them from its first minute. Raises UserError."""
    if scratch and all((init / name).is_file() for name in ("config.json", "tokenizer.json")):
        return init
    return checkpoint.chosen_checkpoint(init)


def start_from(config: Config, task: AnyTask) -> tuple[Collection[str], str]:
    """Copy the weights of config.init unless config.scratch; return the parameters that are new, and words about it.

    Raises UserError if the encoders differ.
    """
    assert config.init is not None
    names = [name for name, _ in task.named_parameters()]
    if config.scratch:  # heads alone count as new, so that both sides of a comparison train at the same rates
        return [name for name in names if not name.startswith("encoder.")], f"random weights, in the shape of {config.init}"
    folder = checkpoint.chosen_checkpoint(config.init)
    checkpoint.verify(folder)
    tensors = checkpoint.read_model(folder)
    if isinstance(task, VQA) and load_answers(folder) != list(task.answers):
        last = f"answer_head.{len(task.answer_head) - 1}."  # its rows stand for other answers, even if they are as many
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(last)}
    done = transfer(tensors, task, str(folder))
    text = f"weights from {folder}"
    if done.resized:
        text += f"; positions resized from {done.resized[0]} to {done.resized[1]} patches"
    if done.new:
        text += f"; new, at {config.train.new_lr_multiplier:g} × the learning rate: {parts(done.new)}"
    if done.unused:
        text += f"; not used: {parts(done.unused)}"
    return done.new, text


def with_absolute_paths(config: Config) -> Config:
    """Return the config with paths that still hold when the run is used from another folder."""

    def absolute(spec: str) -> str:
        return spec if spec == HELD_OUT or spec.partition(":")[0] == "scenes" else absolute_spec(spec)

    def absolute_path(path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    data = config.data
    data = dataclasses.replace(
        data,
        train=tuple(map(absolute, data.train)),
        val=tuple(map(absolute, data.val)),
        image_root=absolute_path(data.image_root),
    )
    tokenizer = dataclasses.replace(config.tokenizer, path=absolute_path(config.tokenizer.path))
    task = config.task
    if isinstance(task, VQAConfig):
        task = dataclasses.replace(task, answers=absolute_path(task.answers))
    return dataclasses.replace(config, data=data, tokenizer=tokenizer, task=task, init=absolute_path(config.init))


def with_init_tokenizer(config: Config) -> Config:
    """Return the config with the vocabulary that comes along from an --init run. Raises UserError."""
    if config.init is None:
        return config
    vocab_size = read_config(settings_folder(config.init, config.scratch)).tokenizer.vocab_size
    return dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, vocab_size=vocab_size))


def seed_everything(seed: int) -> None:
    """Seed every generator of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def check_out_folder(config: Config, must_resume: bool) -> None:
    """Refuse to go on in a folder that holds another run. Raises UserError that names what differs."""
    if not checkpoint.checkpoint_folders(config.out):
        if must_resume:
            raise UserError(f"{config.out}: nothing to resume, it holds no checkpoint; leave --resume out to start")
        return
    old = read_config(config.out)
    if old.recipe != config.recipe:
        raise UserError(
            f"{config.out}: holds a run of recipe {old.recipe!r}, not {config.recipe!r}; choose another folder with --out"
        )
    changed = [name for name in _differences(to_dict(old), to_dict(config)) if name not in OPERATIONAL]
    if changed:
        raise UserError(
            f"{config.out}: holds a run with other values of {', '.join(changed)}; "
            "give the same flags to go on, or choose another folder with --out"
        )


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    names = []
    for key in old.keys() | new.keys():
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(prefix + key)
    return sorted(names)
