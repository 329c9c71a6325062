"""The key table: which tensors of the published checkpoints each of our tensors is.

Ours are stacks of theirs where there are several, and have theirs' numbers in another shape where shapes differ (the patch
projection is a convolution there).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from eve_vl.config import Config, EveModelConfig, MaskedSignalConfig, NLVR2Config, RetrievalConfig, VQAConfig

EMBEDDING = {
    "encoder.image.cls": "backbone.class_embedding_vision",
    "encoder.image.type_embed": "backbone.type_embed_vision",
    "encoder.image.positions": "backbone.pos_embed_vision",
    "encoder.image.proj.weight": "backbone.patch_embed.weight",
    "encoder.image.proj.bias": "backbone.patch_embed.bias",
    "encoder.text.type_embed": "backbone.type_embed_text",
    "encoder.text.positions": "backbone.pos_embed_text",
    "encoder.text.words.weight": "backbone.word_embedding.weight",
    "encoder.text.norm.weight": "backbone.layer_norm_text.weight",
    "encoder.text.norm.bias": "backbone.layer_norm_text.bias",
    "encoder.norm_pre.weight": "backbone.pre_layrnorm.weight",
    "encoder.norm_pre.bias": "backbone.pre_layrnorm.bias",
    "encoder.norm.weight": "backbone.norm.weight",
    "encoder.norm.bias": "backbone.norm.bias",
}
BLOCK = {
    "scale1": "gamma_1",
    "scale2": "gamma_2",
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.qkv.weight": "attn.qkv.weight",
    "attn.q_bias": "attn.q_bias",
    "attn.v_bias": "attn.v_bias",
    "attn.proj.weight": "attn.proj.weight",
    "attn.proj.bias": "attn.proj.bias",
}
FEED_FORWARD = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
MODALITIES = {"image": "imag", "text": "text"}
HEADS = {
    "vqa": {
        f"answer_head.{part}": f"output.{part}" for part in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    },
    "nlvr2 concat": {
        f"concat_head.{part}": f"output.{part}" for part in ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    },
    "nlvr2 paired": {
        f"paired_head.{ours}.{part}": f"{theirs}.{part}"
        for ours, theirs, parts in (
            ("attend_right", "attn1", ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")),
            ("attend_left", "attn2", ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")),
            ("fuse.0", "fc.0", ("weight", "bias")),
            ("score", "attn_pool.fc.0", ("weight", "bias")),
            ("classify", "nlvr2_output", ("weight", "bias")),
        )
        for part in parts
    },
    "retrieval": {
        "contrast.features.temperature": "itc_temp",
        "contrast.features.image.weight": "itc_vision_proj_head.weight",
        "contrast.features.text.weight": "itc_text_proj_head.weight",
        "contrast.match_head.weight": "itm_head.weight",
        "contrast.match_head.bias": "itm_head.bias",
    },
    "": {},
}
OLDER_NAMES = {  # of the same heads in pre-training; the published code lets the later ones of these prevail
    "mitc_temp": "itc_temp",
    "mitc_vision_proj_head.weight": "itc_vision_proj_head.weight",
    "mitc_text_proj_head.weight": "itc_text_proj_head.weight",
    "itc_vl_vision_proj_head.weight": "itc_vision_proj_head.weight",
    "itc_vl_text_proj_head.weight": "itc_text_proj_head.weight",
    "mitm_head.weight": "itm_head.weight",
    "mitm_head.bias": "itm_head.bias",
}


def head_of(config: Config) -> str:
    """Return the key of HEADS for a run's task."""
    match config.task:
        case NLVR2Config(head=head):
            return f"nlvr2 {head}"
        case VQAConfig() | RetrievalConfig():
            return config.task.name
        case MaskedSignalConfig():
            return ""


def key_table(model: EveModelConfig, head: str) -> dict[str, tuple[str, ...]]:
    """Return the published names of each of our tensors, several for a stack."""
    table: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in (EMBEDDING | HEADS[head]).items()}
    for block, policy in enumerate(model.ffn_policies):
        ours, theirs = f"encoder.blocks.{block}", f"backbone.encoder.layers.{block}"
        table |= {f"{ours}.{name}": (f"{theirs}.{other}",) for name, other in BLOCK.items()}
        if policy == "modality":
            for modality, name in MODALITIES.items():
                table |= {
                    f"{ours}.ffn.norm_{modality}.{part}": (f"{theirs}.norm2_{name}.{part}",) for part in ("weight", "bias")
                }
                table |= {f"{ours}.ffn.{modality}.{part}": (f"{theirs}.mlp_{name}.{part}",) for part in FEED_FORWARD}
        else:
            moe = f"{theirs}.mlp_moe.moe"
            table |= {f"{ours}.norm2.{part}": (f"{theirs}.norm2_vl.{part}",) for part in ("weight", "bias")}
            table[f"{ours}.ffn.router.weight"] = (f"{moe}.gate.wg.weight",)
            if model.modality_routing:
                table[f"{ours}.ffn.router.modality_embed"] = f"{moe}.vision_embed", f"{moe}.text_embed"
            for part in FEED_FORWARD:
                names = (f"{moe}.experts.experts.{expert}.{part}" for expert in range(model.num_experts))
                table[f"{ours}.ffn.experts.{part.replace('.', '_')}"] = tuple(names)
    return table


def buffers(model: EveModelConfig) -> dict[str, Tensor]:
    """Return what the published models keep beside their weights, and never use."""
    return {
        "backbone.position_ids_vision": torch.arange(1 + model.num_patches)[None],
        "backbone.position_ids_text": torch.arange(model.text_length),
    }


def to_ours(published: Mapping[str, Tensor], table: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """Return our tensors by name; the numbers stay as they are."""
    found = {}
    for ours, theirs in table.items():
        tensors = [published[name] for name in theirs]
        found[ours] = tensors[0].clone() if len(tensors) == 1 else torch.stack(tensors)  # a file may tie some
    found["encoder.image.proj.weight"] = found["encoder.image.proj.weight"].flatten(1)
    return found


def to_published(ours: Mapping[str, Tensor], table: Mapping[str, tuple[str, ...]], model: EveModelConfig) -> dict[str, Tensor]:
    """Undo `to_ours`, and add the buffers."""
    found = buffers(model)
    for name, theirs in table.items():
        found |= zip(theirs, ours[name].unbind() if len(theirs) > 1 else (ours[name],), strict=True)
    projection = found["backbone.patch_embed.weight"]
    found["backbone.patch_embed.weight"] = projection.view(len(projection), 3, model.patch_size, model.patch_size)
    return found
