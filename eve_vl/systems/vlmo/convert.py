"""Conversion of published VLMo checkpoints (microsoft/unilm) into run folders.

Tensors that are joined, split or left out:

| theirs | ours |
|---|---|
| words, and the segment that BERT adds to each of them | their sum: one vector per word |
| one table of relative positions for texts of 196 tokens | its three parts, cut to --text-tokens |
| logarithm of a scale of similarities | its temperature, 1 / scale |
| `base_plus` has no LayerScale | ones |
| text positions next to relative positions, tables of rows | none: never used |
| text-only checkpoints have no networks for pairs | random ones, for the next stage |
"""

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

from torch import Tensor

from eve_vl.config import InputConfig, TaskConfig
from eve_vl.interop.checkpoint_shapes import (
    HEAD_WIDTH,
    count_numbered,
    patches_per_side,
    patches_per_side_of_table,
)
from eve_vl.interop.convert import Conversion, Family
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.eve_checkpoints import BLOCK
from eve_vl.interop.foreign_weights import checked_tensors
from eve_vl.interop.weight_table import Computed, WeightTable, token_head, with_prefixes
from eve_vl.recipes import get_recipe
from eve_vl.systems.vlmo.config import VlmoModelConfig
from eve_vl.systems.vlmo.recipes import TASKS
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.vqa.config import VQAConfig

SIZES = {544: "vlmo_base_plus", 1024: "vlmo_large"}  # by width; all others are like vlmo_base
NUM_HEADS = {544: 16}  # of attention, where they are not 64 wide
LONGEST = 196  # tokens of the texts that every table of relative positions is made for
ENDS, TEXTS = (
    2,
    2 * LONGEST,
)  # rows between modalities and between words, after those between patches
BLOCKS, TOP = "transformer.blocks.*.", ".mlp_vl."
TABLE, TYPES = "relative_position_bias_table", "token_type_embeddings.weight"
WORDS, SEGMENTS = (
    "text_embeddings.word_embeddings.weight",
    "text_embeddings.token_type_embeddings.weight",
)
PLACES, PATCHES = (
    "text_embeddings.position_embeddings.weight",
    "transformer.patch_embed.proj.weight",
)
UNUSED = (
    r"(text_|text_imag_)?relative_position_index|text_embeddings\.(position_ids|token_type_ids)"
)
HEADS: dict[str, TaskConfig] = {
    "vqa_classifier.": VQAConfig(),
    "nlvr2_classifier.": NLVR2Config(second_image_type_embedding=True),
    "itm_score.": TASKS["image_text"],
    "mlm_score.": TASKS["text"],
    "itc_": RetrievalConfig(itm_weight=0.0, rerank=0),
}
"""Tasks by the prefix of their head; the first match counts."""
BODY: WeightTable = {
    "encoder.image.proj.weight": Computed(lambda conv: conv.flatten(1), (PATCHES,)),
    "encoder.image.proj.bias": "transformer.patch_embed.proj.bias",
    "encoder.image.cls": Computed(lambda cls: cls.flatten(), ("transformer.cls_token",)),
    "encoder.image.type_embed": Computed(itemgetter(1), (TYPES,)),
    "encoder.image.positions": Computed(
        lambda positions: positions.flatten(0, 1), ("transformer.pos_embed",)
    ),
    "encoder.text.words.weight": Computed(
        lambda words, segments: words + segments[0], (WORDS, SEGMENTS)
    ),
    "encoder.text.type_embed": Computed(itemgetter(0), (TYPES,)),
    "encoder.text.positions": PLACES,
    "encoder.text.norm": "text_embeddings.LayerNorm",
    "encoder.norm": "transformer.norm",
    "encoder.pooler": "pooler.dense",
    "encoder.relative.image_bias": Computed(lambda table: table[: -ENDS - TEXTS], (TABLE,)),
    "encoder.relative.cross_bias": Computed(lambda table: table[-ENDS - TEXTS : -TEXTS], (TABLE,)),
    "encoder.relative.text_bias": Computed(lambda table: table[-TEXTS:], (TABLE,)),
    "right_bias": Computed(lambda types: types[2] - types[1], (TYPES,)),
    "answer_head": "vqa_classifier",
    "concat_head": "nlvr2_classifier",
    "contrast.match_head": "itm_score.fc",
    **token_head("mlm_score"),
}
"""All of our tensors outside the blocks that some checkpoint has."""


def key_table(tensors: Mapping[str, Tensor]) -> WeightTable:
    """Return the source of each of our tensors."""
    block = {
        ours: theirs
        for ours, theirs in BLOCK.items()
        if "vl" not in ours or not is_of_texts(tensors)
    }
    if f"{BLOCKS}gamma_1".replace("*", "0") not in tensors:
        block |= {"scale1": 1.0, "scale2": 1.0}
    table = {**BODY, **with_prefixes("encoder.blocks.*.", BLOCKS, block)}
    for ours, theirs, scale in (
        ("features", "itc", "logit_scale"),
        ("more_features.0", "itc_vl", "logit_vl_scale"),
    ):
        table[f"contrast.{ours}.temperature"] = Computed(
            lambda log_scale: (-log_scale).exp(), (scale,)
        )
        table |= {
            f"contrast.{ours}.{side}.weight": f"{theirs}_{side}_proj.fc.weight"
            for side in ("image", "text")
        }
    return table


def plan(tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Conversion:
    """Return the plan of a published VLMo. Raises UserError.

    num_heads 0: as the table of relative positions says, else those of the published size.
    """
    tensors = checked_tensors(tensors, args.drop, where)
    sizes, model, section, start = infer(tensors, where, args.num_heads)
    is_partial, length = (
        is_of_texts(tensors),
        min(args.text_tokens or sizes.text_length, sizes.text_length),
    )
    more: dict[str, Any] = {
        "recipe": start,
        "finetune_prefix": "vlmo_",
        "table": key_table(tensors),
        "token_embedding": WORDS,
    }
    more |= {
        "unused": f"{UNUSED}|{PLACES}" if model.positions == "relative" else UNUSED,
        "text_length": length,
    }
    notes = "; networks for pairs are random, which text-only checkpoints lack" * is_partial
    return Conversion(
        tensors=tensors,
        sizes=sizes,
        model=model,
        section=section,
        is_partial=is_partial,
        notes=notes,
        **more,
    )


def is_vlmo(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file holds VLMo's names."""
    return PATCHES in tensors and any(name.startswith("transformer.blocks.") for name in tensors)


FAMILY = Family("a VLMo checkpoint", ("text_tokens",), is_vlmo, plan)


def is_of_texts(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are of the text stage, which has no networks for pairs."""
    return not any(TOP in name for name in tensors)


def infer(
    tensors: Mapping[str, Tensor], where: str, num_heads: int = 0
) -> tuple[InputConfig, VlmoModelConfig, TaskConfig, str]:
    """Return a checkpoint's sizes, model, task and nearest recipe.

    Raises UserError.
    """
    width, _, patch_size, _ = tensors[PATCHES].shape
    if is_relative := TABLE in tensors:
        rows, columns = tensors[TABLE].shape
        side, text_length = patches_per_side_of_table(rows, 3 + ENDS + TEXTS, where), LONGEST
    else:
        side = patches_per_side(tensors["transformer.pos_embed"].shape[:-1].numel(), where)
        text_length, columns = len(tensors[PLACES]), 0
    depth = count_numbered(BLOCKS, tensors)
    start = SIZES.get(width, "vlmo_base") + "_texts" * is_of_texts(tensors)
    like = get_recipe(start).model
    assert isinstance(like, VlmoModelConfig)
    heads = num_heads or columns // depth or NUM_HEADS.get(width) or max(width // HEAD_WIDTH, 1)
    ratio = len(tensors[f"{BLOCKS}mlp_imag.fc1.bias".replace("*", "0")]) / width
    deep = count_numbered(BLOCKS, [name for name in tensors if TOP in name]) or min(
        like.num_deep_blocks, depth
    )
    how: dict[str, Any] = {
        "positions": "relative" if is_relative else "learned",
        "text_embedding": "bert",
    }
    model = replace(
        like,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=ratio,
        num_deep_blocks=deep,
        **how,
    )
    sizes = InputConfig(
        image_size=side * patch_size, patch_size=patch_size, text_length=text_length
    )
    found = (
        task for prefix, task in HEADS.items() if any(name.startswith(prefix) for name in tensors)
    )
    return sizes, model, next(found, HeadlessConfig()), start
