"""The tasks that paper Table 1 compares, as variations of one recipe, and the made-up pairs that they are timed on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from eve_vl.config import Config, MaskedSignalConfig
from eve_vl.data.batch import MaskedSample, PairBatch
from eve_vl.data.masking import generator, mask_patches, mask_tokens
from eve_vl.errors import UserError
from eve_vl.inspect import step_flops

Texts = Literal["captions", "full"]
CAPTION_TOKENS = (14.0, 4.0)  # mean and standard deviation of lengths, [CLS] included: COCO's captions have 10.5 words
MIN_TOKENS = 6


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table."""

    name: str
    config: Config
    is_eve: bool
    paper_hours: float
    """Per epoch, on 8 A100, at the largest batch that fits (paper Table 1)."""

    @property
    def task(self) -> MaskedSignalConfig:
        """The task's section."""
        assert isinstance(self.config.task, MaskedSignalConfig)
        return self.config.task

    @property
    def decoder_depth(self) -> int:
        """Blocks of its pixel decoder; 0 without one."""
        return self.task.decoder_depth if self.task.mim_weight else 0


def variants(config: Config, decoder_depths: Sequence[int]) -> list[Variant]:
    """Return EVE at each decoder depth, then its rivals; those that rebuild pixels have the recipe's own decoder.

    Raises UserError if the recipe is no pre-training or a depth is not positive.
    """
    task = config.task
    if not isinstance(task, MaskedSignalConfig):
        raise UserError(f"recipe {config.recipe!r} is no pre-training")
    if not decoder_depths or min(decoder_depths) < 1:
        raise UserError(f"decoder depths {' '.join(map(str, decoder_depths))}: give at least one, each at least 1")
    depths = list(dict.fromkeys(decoder_depths))

    def variant(name: str, hours: float, *, mim: float = 1.0, itc: float = 0.0, itm: float = 0.0, depth: int = 0) -> Variant:
        changed = dataclasses.replace(
            task,
            mim_weight=mim,
            mlm_weight=1.0,
            itc_weight=itc,
            itm_weight=itm,
            joint_masking=False,
            decoder_depth=depth or task.decoder_depth,
            projection_dim=task.projection_dim if itc else 0,
        )
        return Variant(name=name, config=dataclasses.replace(config, task=changed), is_eve=not itc, paper_hours=hours)

    return [
        *(variant(f"MLM+MIM, decoder {depth}", 2.14, depth=depth) for depth in depths),
        variant("MLM+ITC+MIM", 3.26, itc=1.0),
        variant("MLM+ITC+ITM", 6.88, mim=0.0, itc=1.0, itm=1.0),
        variant("MLM+ITC+ITM+MIM", 7.73, itc=1.0, itm=1.0),
    ]


def with_all_heads(rows: Sequence[Variant]) -> Config:
    """Return the config of a model that has what every row needs."""
    everything = next(row for row in rows if row.task.mim_weight and row.task.itm_weight)
    depth = max(row.task.decoder_depth for row in rows)
    return dataclasses.replace(everything.config, task=dataclasses.replace(everything.task, decoder_depth=depth))


def gflop_per_sample(variant: Variant, text_length: int) -> float:
    """Return forward and backward GFLOP of one pair with a text of that many tokens; backward costs twice the forward."""
    config = variant.config
    model = dataclasses.replace(config.model, text_length=text_length)
    flops = step_flops(dataclasses.replace(config, model=model), config.tokenizer.vocab_size)
    return 3 * sum(flops.values()) / 1e9


def made_up_batch(config: Config, batch_size: int, texts: Texts) -> PairBatch:
    """Return random pictures, all different, with random texts: of full length, or as long as captions usually are and padded
    to the longest of the batch."""
    model, task = config.model, config.task
    assert isinstance(task, MaskedSignalConfig)
    samples = []
    for row in range(batch_size):
        rng = generator(row)
        length = model.text_length
        if texts == "captions":
            length = int(np.clip(round(rng.normal(*CAPTION_TOKENS)), min(MIN_TOKENS, length), length))
        keep_K, hidden_M = mask_patches(model.num_patches, task.image_mask_ratio, rng)
        samples.append(
            MaskedSample(
                image=torch.from_numpy(rng.integers(0, 256, (3, model.image_size, model.image_size), dtype=np.uint8)),
                ids_T=rng.integers(3, config.tokenizer.vocab_size, length),
                is_masked_T=mask_tokens(np.arange(length) == 0, task.text_mask_ratio, rng),
                keep_K=keep_K,
                hidden_M=hidden_M,
                picture=row,
                where=f"random[{row}]",
            )
        )
    return PairBatch.collate(samples, pad_id=0)
