"""The tokenizer of a run: its own, that of the run it starts from, a file's, or one trained on its
texts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from eve_vl.config import Config, DataConfig
from eve_vl.config.generated_sources import generated
from eve_vl.data.opening import open_sources
from eve_vl.data.records import Source, usable_rows
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.run.loading import read_config
from eve_vl.run.start_folder import settings_folder
from eve_vl.train import checkpoint_folders, processes
from eve_vl.utils.console import pluralize, print_line
from eve_vl.utils.errors import UserError

ROWS_PER_TOKEN = 20  # a tokenizer of V tokens is trained on the captions of at most 20 · V rows
MIN_SCENE_SIZE = 16  # pixels; a tokenizer reads texts only


def obtain_tokenizer(config: Config, sources: Sequence[Source[Any]]) -> Tokenizer:
    """Return the run's tokenizer.

    It is from its folder, the --init run or tokenizer.path, or trained on the captions.
    """
    ends = config.model.reads_text_end
    checkpoints = checkpoint_folders.checkpoint_folders_of_main(config.out)
    if checkpoints:
        return Tokenizer.load(checkpoints[-1] / "tokenizer.json", ends=ends)
    if config.init is not None:
        folder = settings_folder(config.init, config.scratch, config.out)
        return Tokenizer.load(folder / "tokenizer.json", ends=ends)
    if config.tokenizer.path is not None:
        return Tokenizer.load(config.tokenizer.path, ends=ends)
    text = processes.from_main(lambda: _trained_tokenizer(config, sources).to_json())
    return Tokenizer.from_json(text, ends=ends)


def _trained_tokenizer(config: Config, sources: Sequence[Source[Any]]) -> Tokenizer:
    """Train the tokenizer of a config on the texts of its sources."""
    data = config.data
    vocab_size = config.tokenizer.vocab_size
    if data.modality == "image" and all(map(generated, data.train)):
        # these sources leave out the captions that the data has
        return train_tokenizer(data.train, data, vocab_size)
    images_only = data.modality == "image" or getattr(config.task, "inputs", "") == "image"
    return tokenizer_of(sources, vocab_size, needs_texts=not images_only)


def train_tokenizer(specs: Sequence[str], data: DataConfig, vocab_size: int) -> Tokenizer:
    """Train a tokenizer on the texts of any sources. Raises UserError."""
    kind = "auto" if data.text_column is None else "captions"
    sources = open_sources(specs, data, image_size=MIN_SCENE_SIZE, kind=kind)
    return tokenizer_of(sources, vocab_size)


def tokenizer_of(
    sources: Sequence[Source[Any]], vocab_size: int, *, needs_texts: bool = True
) -> Tokenizer:
    """Train a tokenizer on the texts of rows spread evenly over all sources.

    Without a text it knows the 256 bytes and nothing more, if texts are not needed. Raises
    UserError.
    """
    num_rows = sum(map(len, sources))
    stride = max(1, -(-num_rows // (ROWS_PER_TOKEN * vocab_size)))
    texts: list[str] = []
    for source in sources:
        for _, row in usable_rows(source, range(0, len(source), stride)):
            texts += row.texts
    if not texts and needs_texts:
        fix = (
            "name the column of texts with --data.text-column, or a tokenizer with --tokenizer.path"
        )
        raise UserError(f"the sources hold no usable text to train a tokenizer on; {fix}")
    print_line(
        f"training a tokenizer of at most {vocab_size:,} tokens on {pluralize(len(texts), 'text')}"
    )
    return Tokenizer.train(texts, vocab_size)


def with_init_tokenizer(config: Config) -> Config:
    """Return the config with the vocabulary size of an --init run. Raises UserError."""
    if config.init is None:
        return config
    start = read_config(settings_folder(config.init, config.scratch, config.out))
    tokenizer = replace(config.tokenizer, vocab_size=start.tokenizer.vocab_size)
    return replace(config, tokenizer=tokenizer)
