"""From one of our run folders to a model and processor, and back."""

import dataclasses
from pathlib import Path

from eve_vl.config import RetrievalConfig, to_dict
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop.convert.published import write_run
from eve_vl.interop.heads import heads_of
from eve_vl.interop.hf.configuration import EveConfig, portable
from eve_vl.interop.hf.modeling import EveModel, EvePreTrainedModel, model_class
from eve_vl.interop.hf.processing import EveProcessor
from eve_vl.run.loading import load_run
from eve_vl.utils.errors import UserError
from eve_vl.utils.safe_io import expand_user


def from_run(path: str | Path) -> tuple[EvePreTrainedModel, EveProcessor]:
    """Return the model of a run folder (its best weights, else its newest) or of one of its checkpoints, in evaluation mode,
    and its processor.

    A pre-trained run without a head for tokens gives its contrast and matching as retrieval, without these its encoder alone.
    Raises UserError.
    """
    run = load_run(path)
    found = run.task if heads_of(run.task).missing is None else run.task.as_task(RetrievalConfig.name)
    task, kind = (run.task, EveModel) if found is None else (found, model_class(type(found.settings)))
    labels = task.sizes.labels or heads_of(task).class_names
    config = EveConfig(
        input=to_dict(run.config.input),
        model=portable(run.config.model),
        task=portable(task.settings),
        vocab_size=run.tokenizer.vocab_size,
        mask_token_id=run.tokenizer.mask_id,
        id2label=dict(enumerate(labels)) if labels else None,
    )
    model = kind(config).eval()
    tensors = task.state_dict()
    model.task.load_state_dict({name: tensors[name] for name in model.task.state_dict()})
    return model, EveProcessor.from_eve(run.tokenizer, run.config.input)


def to_run(model: EvePreTrainedModel, processor: EveProcessor, path: str | Path) -> Path:
    """Write a run folder that `eve`, `Eve` and --init take, and return its path. Raises UserError."""
    folder = expand_user(path)
    tokenizer = Tokenizer.from_json(processor.tokenizer.backend_tokenizer.to_str())
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, but the model has {model.config.vocab_size}")
    write_run(folder, dataclasses.replace(model.config.run, out=folder), tokenizer, model.task)
    return folder
