"""The key table: which tensors of the published checkpoints each of our tensors is.

Ours are stacks of theirs where there are several, and have theirs' numbers in another shape where shapes differ (the patch
projection is a convolution there). Blocks know the names of their feed-forward part (`model.ffn`), tasks those of their heads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from eve_vl.config import EveModelConfig, InputConfig, TaskConfig
from eve_vl.interop.heads import heads_class
from eve_vl.model.ffn import NORM, POLICIES, Keys

LAYERS = {"image.proj": "patch_embed", "text.norm": "layer_norm_text", "norm_pre": "pre_layrnorm", "norm": "norm"}
"""Of the encoder outside its blocks: those with a weight and a bias."""
EMBEDDING = {
    "encoder.image.cls": "backbone.class_embedding_vision",
    "encoder.image.type_embed": "backbone.type_embed_vision",
    "encoder.image.positions": "backbone.pos_embed_vision",
    "encoder.text.type_embed": "backbone.type_embed_text",
    "encoder.text.positions": "backbone.pos_embed_text",
    "encoder.text.words.weight": "backbone.word_embedding.weight",
    **{f"encoder.{ours}.{part}": f"backbone.{theirs}.{part}" for ours, theirs in LAYERS.items() for part in NORM},
}
SAME = ("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias")
"""Tensors of a block that are called the same in ViT, BEiT, the published checkpoints and here."""
BLOCK = {"scale1": "gamma_1", "scale2": "gamma_2"} | {name: name for name in (*SAME, "attn.q_bias", "attn.v_bias")}


def classifier(ours: str, theirs: str) -> dict[str, str]:
    """Return the published names of a classifier of two layers in VLMo and M3AE."""
    return {f"{ours}.{number}.{part}": f"{theirs}.{number}.{part}" for number in (0, 1, 3) for part in NORM}


def token_head(theirs: str) -> dict[str, str]:
    """Return the published names of the head for tokens, which they call `theirs`, in VLMo and M3AE."""
    layers = {"fc1": "transform.dense", "norm": "transform.LayerNorm"}
    table = {f"token_head.{ours}.{part}": f"{theirs}.{other}.{part}" for ours, other in layers.items() for part in NORM}
    return table | {"token_head.fc2.weight": f"{theirs}.decoder.weight", "token_head.fc2.bias": f"{theirs}.bias"}


def key_table(model: EveModelConfig, task: TaskConfig) -> Keys:
    """Return the published names of each of our tensors, several for a stack. The published models must have such blocks and
    such a head."""
    heads = heads_class(type(task)).published.keys(task)
    assert heads is not None
    table: Keys = {ours: (theirs,) for ours, theirs in (EMBEDDING | dict(heads)).items()}
    for block, policy in enumerate(model.ffn_policies):
        ffn = POLICIES[policy].published(model)
        assert ffn is not None
        for ours, theirs in ({name: (other,) for name, other in BLOCK.items()} | ffn).items():
            table[f"encoder.blocks.{block}.{ours}"] = tuple(f"backbone.encoder.layers.{block}.{name}" for name in theirs)
    return table


def buffers(sizes: InputConfig) -> dict[str, Tensor]:
    """Return what the published models keep beside their weights, and never use."""
    return {
        "backbone.position_ids_vision": torch.arange(1 + sizes.num_patches)[None],
        "backbone.position_ids_text": torch.arange(sizes.text_length),
    }


def to_ours(published: Mapping[str, Tensor], table: Keys) -> dict[str, Tensor]:
    """Return our tensors by name; the numbers stay as they are."""
    ours = {}
    for name, theirs in table.items():
        tensors = [published[each] for each in theirs]
        ours[name] = tensors[0].clone() if len(tensors) == 1 else torch.stack(tensors)  # a file may tie some
    ours["encoder.image.proj.weight"] = ours["encoder.image.proj.weight"].flatten(1)
    return ours


def to_published(ours: Mapping[str, Tensor], table: Keys, sizes: InputConfig) -> dict[str, Tensor]:
    """Undo `to_ours`, and add the buffers."""
    published = buffers(sizes)
    for name, theirs in table.items():
        published |= zip(theirs, ours[name].unbind() if len(theirs) > 1 else (ours[name],), strict=True)
    projection = published["backbone.patch_embed.weight"]
    published["backbone.patch_embed.weight"] = projection.view(len(projection), 3, sizes.patch_size, sizes.patch_size)
    return published
