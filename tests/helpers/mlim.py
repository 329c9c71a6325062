"""Tiny runs of MLIM: nine patches of 16 × 16 pixels, texts of up to twelve tokens."""

from typing import Any

from eve_vl.config import Config
from eve_vl.systems.mlim.pair.item_rows import ItemPair
from eve_vl.systems.mlim.pretraining.config import MlimConfig
from eve_vl.systems.mlim.pretraining.dataset import AwareMasks
from eve_vl.systems.mlim.pretraining.task import Mlim
from eve_vl.tasks.task import Sizes
from helpers.random_weights import randomize
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import CAPTIONS, ListSource, noise, pairs, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SIZES = Sizes(vocab_size=TOKENIZER.vocab_size, mask_id=TOKENIZER.mask_id)


def mlim_config(task: MlimConfig | None = None, **model: Any) -> Config:
    """The config of a pre-training run. model: changed fields of its section."""
    fields = {"stem": "patch_conv", "shallow_ffn": "shared", "num_deep_blocks": 0}
    return tiny_config(
        input={"image_size": 48, "patch_size": 16},
        model=fields | model,
        task=task or MlimConfig(),
        data={"flip": False, "crop_scale": (1.0, 1.0)},
    )


def build_mlim(config: Config) -> Mlim:
    """A task in evaluation mode whose every weight matters."""
    task = Mlim(config, SIZES)
    randomize(task, 1, std=0.3)
    return task.eval()


def mlim_rows(config: Config, *, training: bool = True, count: int = 60) -> AwareMasks:
    """Masked pairs of noise images with captions."""
    return AwareMasks([pairs(count, captions=1)], config, TOKENIZER, training=training)


def item_pairs(count: int) -> ListSource[ItemPair]:
    """Pairs of items; some texts are cut at twelve tokens, every seventh pair has no label."""
    rows = []
    for row in range(count):
        captions = (f"{row} {CAPTIONS[row % 6]}", CAPTIONS[(row + 1) % 6])
        rows.append(
            ItemPair(
                left=noise(row, 0),
                right=noise(row, 1),
                captions=captions,
                label=None if row % 7 == 6 else row % 3 == 0,
                where=f"items:{row}",
            )
        )
    return ListSource(rows)
