"""Conversion of published M3AE checkpoints (zhjohnchan/M3AE) into run folders.

Tensors that are joined, split or left out:

| theirs | ours |
|---|---|
| CLIP's pixel mean and deviation | in the patch projection and its bias |
| RoBERTa's token type, equal for all words | added to the words |
| RoBERTa's positions, for words from 2 on | positions of words, cut to --text-tokens |
| type of each modality | in the bias of its projection before co-attention |
| biases of keys | none: softmax ignores a constant added to all scores of a query |
| no LayerScale | ones |
| decoder of pixels | none: CLIP's pixels have other means and variances per patch |
| CLIP's text encoder, RoBERTa's pooler, matching head next to a ranking one | none: never used |
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from eve_vl.config import InputConfig, TaskConfig
from eve_vl.interop.checkpoint_shapes import (
    HEAD_WIDTH,
    count_numbered,
    patches_per_side,
    width_and_patch_size,
)
from eve_vl.interop.convert import Conversion, Family
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.foreign_weights import checked_tensors
from eve_vl.interop.pixel_scale import (
    CLIP_MEAN,
    CLIP_STD,
    bias_of_our_pixels,
    projection_of_our_pixels,
)
from eve_vl.interop.weight_table import (
    MULTIHEAD,
    Computed,
    WeightTable,
    concatenate,
    token_head,
    with_prefixes,
)
from eve_vl.recipes import get_finetune_recipe
from eve_vl.systems.medical.m3ae.config import M3aeModelConfig
from eve_vl.systems.medical.m3ae.recipes import m3ae_base
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig

BASE = m3ae_base()
FIRST_POSITION = 2  # RoBERTa's position of the first token; earlier ones are padding
VISUAL = "vision_encoder.visual."
ROBERTA = "language_encoder."
FUSION = "multi_modal_"
BLOCKS = f"{VISUAL}transformer.resblocks.*."
LAYERS = f"{ROBERTA}encoder.layer.*."
SIDES = {"text": "language", "image": "vision"}  # as in the table of types
PATCHES = f"{VISUAL}conv1.weight"
TYPES = "modality_type_embeddings.weight"
WORDS = f"{ROBERTA}embeddings.word_embeddings.weight"
TEXT_POSITIONS = f"{ROBERTA}embeddings.position_embeddings.weight"
SEGMENTS = f"{ROBERTA}embeddings.token_type_embeddings.weight"
UNUSED = (
    r"mim_head\.|vision_encoder\.(token_embedding\.|positional_embedding|ln_final\.)|.*\.self\.key\.bias$"
    r"|language_encoder\.(embeddings\.position_ids|embeddings\.token_type_ids|pooler\.)"
)
"""Tensors to leave out."""
PRETRAINED_MATCHING = r"itm_head\."
"""The matching head, which a retrieval run does not use."""
CLIP: WeightTable = {
    **with_prefixes("attn.", "attn.", MULTIHEAD),
    "ffn.fc1": "mlp.c_fc",
    "ffn.fc2": "mlp.c_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "scale1": 1.0,
    "scale2": 1.0,
}
"""A block of the image tower."""
ATTENTION: WeightTable = {
    "qkv.weight": Computed(
        concatenate, ("self.query.weight", "self.key.weight", "self.value.weight")
    ),
    "q_bias": "self.query.bias",
    "v_bias": "self.value.bias",
    "proj": "output.dense",
}
"""Attention of BERT."""
HEADS: dict[str, TaskConfig] = {
    "vqa_head.": get_finetune_recipe("m3ae_vqa", BASE).task,
    "cls_head.": get_finetune_recipe("m3ae_classification", BASE).task,
    "irtr_head.": get_finetune_recipe("m3ae_retrieval", BASE).task,
    "itm_head.": replace(BASE.task, mim_weight=0.0),
}
"""Tasks by the prefix of their head; the first match counts."""


def plan(tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Conversion:
    """Return the plan of a published M3AE. Raises UserError."""
    tensors = checked_tensors(tensors, args.drop, where)
    sizes, model, section = infer(tensors, where, args.num_heads)
    unused = UNUSED
    if isinstance(section, RetrievalConfig):
        unused += f"|{PRETRAINED_MATCHING}"
    notes = ""
    if any(name.startswith("mim_head.") for name in tensors):
        notes = "; left out the decoder of pixels"
    return Conversion(
        tensors=tensors,
        sizes=sizes,
        model=model,
        section=section,
        table=key_table(section),
        recipe="m3ae_base",
        finetune_prefix="m3ae_",
        unused=unused,
        token_embedding=WORDS,
        text_length=min(args.text_tokens or sizes.text_length, sizes.text_length),
        notes=notes,
    )


def is_m3ae(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these are the tensors of an M3AE: towers with co-attention."""
    return any(name.startswith(f"{FUSION}language_layers.") for name in tensors)


FAMILY = Family("an M3AE checkpoint", ("text_tokens",), is_m3ae, plan)


def infer(
    tensors: Mapping[str, Tensor], where: str, num_heads: int = 0
) -> tuple[InputConfig, M3aeModelConfig, TaskConfig]:
    """Return a checkpoint's sizes, model and task from its tensors. Raises UserError."""
    width, patch_size = width_and_patch_size(tensors[PATCHES], where)
    image_size = patches_per_side(len(tensors[f"{VISUAL}positional_embedding"]), where) * patch_size
    hidden = len(tensors[f"{BLOCKS}mlp.c_fc.bias".replace("*", "0")])
    fusion_depth = count_numbered(f"{FUSION}language_layers.*.", tensors)
    assert isinstance(BASE.model, M3aeModelConfig)
    model = replace(
        BASE.model,
        towers="clip_roberta",
        embed_dim=width,
        image_depth=count_numbered(BLOCKS, tensors),
        text_depth=count_numbered(LAYERS, tensors),
        fusion_depth=fusion_depth,
        num_heads=num_heads or max(width // HEAD_WIDTH, 1),
        mlp_ratio=hidden / width,
        pixel_layer=min(BASE.model.pixel_layer, fusion_depth),
    )
    text_length = len(tensors[TEXT_POSITIONS]) - FIRST_POSITION
    sizes = InputConfig(image_size=image_size, patch_size=patch_size, text_length=text_length)
    return sizes, model, _task_of_head(tensors)


def _task_of_head(tensors: Mapping[str, Tensor]) -> TaskConfig:
    """Return the task of the first known head."""
    for prefix, task in HEADS.items():
        if any(name.startswith(prefix) for name in tensors):
            return task
    return HeadlessConfig()


def key_table(section: TaskConfig) -> WeightTable:
    """Return the source of each of our tensors."""
    bert = {
        "norm1": "attention.output.LayerNorm",
        "ffn.fc1": "intermediate.dense",
        "ffn.fc2": "output.dense",
    }
    bert = with_prefixes("attn.", "attention.", ATTENTION) | bert
    roberta = bert | {"norm2": "output.LayerNorm"}
    joint = bert | with_prefixes("cross.", "crossattention.", ATTENTION)
    joint |= {"norm2": "crossattention.output.LayerNorm", "norm3": "output.LayerNorm"}
    is_retrieval = isinstance(section, RetrievalConfig)
    table = {
        "encoder.image.embed.cls": f"{VISUAL}class_embedding",
        "encoder.image.embed.positions": f"{VISUAL}positional_embedding",
        "encoder.image.embed.proj.weight": Computed(
            lambda conv: projection_of_our_pixels(conv, CLIP_STD).flatten(1), (PATCHES,)
        ),
        "encoder.image.embed.proj.bias": Computed(
            partial(bias_of_our_pixels, mean=CLIP_MEAN, std=CLIP_STD), (PATCHES,)
        ),
        "encoder.image.norm_pre": f"{VISUAL}ln_pre",
        "encoder.image.norm": f"{VISUAL}ln_post",
        "encoder.text.embed.words.weight": Computed(torch.add, (WORDS, SEGMENTS)),
        "encoder.text.embed.positions": Computed(
            lambda positions: positions[FIRST_POSITION:], (TEXT_POSITIONS,)
        ),
        "encoder.text.embed.norm": f"{ROBERTA}embeddings.LayerNorm",
        **with_prefixes("encoder.image.blocks.*.", BLOCKS, CLIP),
        **with_prefixes("encoder.text.blocks.*.", LAYERS, roberta),
        "answer_head": "vqa_head",
        "class_head": "cls_head",
        "contrast.match_head": "irtr_head" if is_retrieval else "itm_head.fc",
        **token_head("mlm_head"),
    }
    for kind, (ours, theirs) in enumerate(SIDES.items()):
        proj = f"{FUSION}{theirs}_proj"
        table |= with_prefixes(
            f"encoder.fusion.blocks.*.{ours}.", f"{FUSION}{theirs}_layers.*.", joint
        )
        table |= {
            f"encoder.{ours}.embed.type_embed": 0.0,
            f"encoder.fusion.{ours}_pooler": f"{FUSION}{theirs}_pooler.dense",
            f"encoder.fusion.{ours}_proj.weight": f"{proj}.weight",
            f"encoder.fusion.{ours}_proj.bias": Computed(
                lambda bias, types, row=kind: bias + types[row], (f"{proj}.bias", TYPES)
            ),
        }
    return table
