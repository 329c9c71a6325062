"""Conversion between EVE's published checkpoints and run folders, bit for bit."""

import re
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import Config, EveModelConfig, InputConfig, TaskConfig
from eve_vl.interop.checkpoint_shapes import (
    HEAD_WIDTH,
    count_numbered,
    patches_per_side,
    width_and_patch_size,
)
from eve_vl.interop.convert import Conversion, Family
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.foreign_weights import checked_tensors
from eve_vl.interop.weight_table import Computed, WeightTable, resolve, stack, with_prefixes
from eve_vl.run.loading import read_config
from eve_vl.run.weight_transfer import model_parts
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.train import checkpoint_files, checkpoint_folders, tensor_files
from eve_vl.utils.errors import UserError

BLOCKS = "backbone.encoder.layers.*"
EXPERTS = "mlp_moe.moe.experts.experts.*"
PATCHES = "backbone.patch_embed.weight"
WORDS = "backbone.word_embedding.weight"
BUFFERS = ("backbone.position_ids_vision", "backbone.position_ids_text")
LAYERS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
"""Tensors of an expert."""
BODY: WeightTable = {
    "encoder.image.cls": "backbone.class_embedding_vision",
    "encoder.image.type_embed": "backbone.type_embed_vision",
    "encoder.image.positions": "backbone.pos_embed_vision",
    # a convolution there
    "encoder.image.proj.weight": Computed(lambda weight: weight.flatten(1), (PATCHES,)),
    "encoder.image.proj": "backbone.patch_embed",
    "encoder.text.type_embed": "backbone.type_embed_text",
    "encoder.text.positions": "backbone.pos_embed_text",
    "encoder.text.words.weight": WORDS,
    "encoder.text.norm": "backbone.layer_norm_text",
    "encoder.norm_pre": "backbone.pre_layrnorm",
    "encoder.norm": "backbone.norm",
}
BLOCK: WeightTable = {
    "norm1": "norm1",
    "attn": "attn",
    "scale1": "gamma_1",
    "scale2": "gamma_2",
    "norm2": "norm2_vl",
    "ffn.norm_image": "norm2_imag",
    "ffn.norm_text": "norm2_text",
    "ffn.norm_vl": "norm2_vl",
    "ffn.image": "mlp_imag",
    "ffn.text": "mlp_text",
    "ffn.vl": "mlp_vl",
    "ffn.router.weight": "mlp_moe.moe.gate.wg.weight",
    "ffn.router.modality_embed": Computed(
        stack, ("mlp_moe.moe.vision_embed", "mlp_moe.moe.text_embed")
    ),
}
"""Tensors of a block. VLMo has the same names, except for experts."""
HEADS: dict[str, WeightTable] = {
    "retrieval": {
        "contrast.features.temperature": "itc_temp",
        "contrast.features.image": "itc_vision_proj_head",
        "contrast.features.text": "itc_text_proj_head",
        "contrast.match_head": "itm_head",
    },
    "vqa": {"answer_head": "output"},
    "nlvr2": {
        "concat_head": "output",
        "paired_head.attend_right": "attn1",
        "paired_head.attend_left": "attn2",
        "paired_head.fuse.0": "fc.0",
        "paired_head.score": "attn_pool.fc.0",
        "paired_head.classify": "nlvr2_output",
    },
}
"""Heads of fine-tuned checkpoints, by our task."""
MODEL = {
    "activation": "quick_gelu",
    "norm_pre": True,
    "stem": "linear",
    "text_embedding": "eve",
    "shallow_ffn": "modality",
    "deep_ffn": "moe",
    "top_k": 2,
}
"""Fields of the model that have one value in all published models."""
UNPUBLISHED_HEADS: dict[str, dict[str, Any]] = {
    "retrieval": {
        "itc_weight": 0.0,
        "itm_weight": 0.0,
        "itm_loss": "ranking",
        "itm_batchnorm": True,
        "pooling": "mean",
    },
    "nlvr2": {"head": "compare", "second_image_type_embedding": True},
}
"""Values of fields that give our task another head than the published one."""
PRETRAINING_NAMES = {r"m(?=it[cm]_)": "", r"itc_vl_": "itc_"}
"""Beginnings of names in pre-training; the published code lets later ones prevail."""
MAX_WORDS = {"vqa": 50, "nlvr2": 40}
"""Words that the published evaluation keeps of a text, by our task."""
MAX_WORDS_OF_OTHERS = 30


def key_table(model: EveModelConfig, section: TaskConfig) -> WeightTable:
    """Return the published name of each of our tensors."""
    expert_names = [EXPERTS.replace("*", str(index)) for index in range(model.num_experts)]
    experts: dict[str, Computed] = {}
    for layer in LAYERS:
        published_names = tuple(f"{name}.{layer}" for name in expert_names)
        experts[f"ffn.experts.{layer.replace('.', '_')}"] = Computed(stack, published_names)
    blocks = with_prefixes("encoder.blocks.*.", f"{BLOCKS}.", {**BLOCK, **experts})
    return {**BODY, **blocks, **HEADS.get(section.name, {})}


def plan(tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Conversion:
    """Return what a published EVE checkpoint becomes. Raises UserError."""
    tensors = checked_tensors(tensors, args.drop, where)
    for beginning, replacement in PRETRAINING_NAMES.items():
        for name in [name for name in tensors if re.match(beginning, name)]:
            tensors[re.sub(beginning, replacement, name)] = tensors.pop(name)
    sizes, model, section = infer(tensors, where, args.num_heads)
    model = replace(model, routing=args.routing)
    notes = f"; routing {args.routing}"
    if not args.num_heads:
        notes += "; heads are 64 wide, else give --num-heads"
    max_words = MAX_WORDS.get(section.name, MAX_WORDS_OF_OTHERS) if args.clean_text else None
    return Conversion(
        tensors=tensors,
        sizes=replace(sizes, padded_text_length=min(args.text_tokens, sizes.text_length)),
        model=model,
        section=section,
        table=key_table(model, section),
        unused="|".join(BUFFERS),
        token_embedding=WORDS,
        max_words=max_words,
        notes=notes,
    )


EVE = Family(
    title="an EVE checkpoint",
    flags=("routing", "text_tokens", "clean_text"),
    matches=lambda _: True,
    plan=plan,
)


def infer(
    published: Mapping[str, Tensor], where: str, num_heads: int = 0
) -> tuple[InputConfig, EveModelConfig, TaskConfig]:
    """Return the sizes, model and task of a published checkpoint.

    Raises UserError.
    """
    width, patch_size = width_and_patch_size(published[PATCHES], where)
    num_positions = len(published["backbone.pos_embed_vision"])
    first_bias = next(name for name in published if name.endswith("fc1.bias"))
    num_experts = count_numbered(f"{BLOCKS}.{EXPERTS}", published) or 1
    model = EveModelConfig(
        embed_dim=width,
        num_heads=num_heads or max(width // HEAD_WIDTH, 1),
        depth=count_numbered(BLOCKS, published),
        mlp_ratio=len(published[first_bias]) / width,
        num_experts=num_experts,
        num_deep_blocks=count_numbered(f"{BLOCKS}.mlp_moe.moe.experts.", published),
        top_k=min(2, num_experts),
        modality_routing=any(name.endswith("moe.text_embed") for name in published),
    )
    sizes = InputConfig(
        image_size=patches_per_side(num_positions, where) * patch_size,
        patch_size=patch_size,
        text_length=len(published["backbone.pos_embed_text"]),
    )
    return sizes, model, infer_task(published, width)


def infer_task(published: Mapping[str, Tensor], width: int) -> TaskConfig:
    """Return the task of a checkpoint by its head.

    A fine-tuned one may still have heads of earlier training.
    """
    if "nlvr2_output.weight" in published:
        return NLVR2Config(head="paired")
    if "output.0.weight" in published:  # the head of VQA reads one state, that of NLVR2 two
        if published["output.0.weight"].shape[1] == width:
            return VQAConfig()
        return NLVR2Config(head="concat")
    if "itm_head.weight" in published:
        projection = published.get("itc_vision_proj_head.weight", ())
        return RetrievalConfig(final_norm=False, projection_dim=len(projection))
    return HeadlessConfig()


def to_published(
    weights: Mapping[str, Tensor], sources: Mapping[str, Computed], sizes: InputConfig
) -> dict[str, Tensor]:
    """Return the published tensors of our weights.

    They include buffers that published models keep and never use.
    """
    vision_buffer, text_buffer = BUFFERS
    published: dict[str, Tensor] = {
        vision_buffer: torch.arange(1 + sizes.num_patches)[None],
        text_buffer: torch.arange(sizes.text_length),
    }
    for name, source in sources.items():
        weight = weights[name]
        parts = weight.unbind() if source.compute is stack else (weight,)
        published |= zip(source.sources, parts, strict=True)
    published[PATCHES] = published[PATCHES].view(-1, 3, sizes.patch_size, sizes.patch_size)
    return published


def export_published(run: Path, target: Path) -> str:
    """Write a run's weights under the published names and return a summary.

    The run must be of a published kind. target: .safetensors, or .pth for a torch file. Raises
    UserError.
    """
    if target.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{target}: name a .safetensors or .pth file")
    if target.exists():
        raise UserError(f"{target}: already exists; name a new file")
    folder = checkpoint_folders.chosen_checkpoint(run)
    config = read_config(folder)
    problems = _unpublished_fields(config)
    if problems:
        raise UserError(
            f"{run}: the published models have no {', no '.join(problems)}, so they cannot take "
            "its weights"
        )
    assert isinstance(config.model, EveModelConfig)
    checkpoint_files.verify(folder, to_resume=False)
    weights = checkpoint_files.read_model(folder)
    sources = resolve(key_table(config.model, config.task), weights)
    published = to_published(weights, sources, config.input)
    tensor_files.save_weights(target, published)

    summary = f"{len(published)} tensors"
    left_out = sorted(weights.keys() - sources.keys())
    if left_out:
        parts = model_parts(left_out)
        summary += f"; left out {len(left_out)} that the published models do not have: {parts}"
    if config.model.routing == "dropless":
        summary += (
            "; the published code routes differently "
            "(to import it again: --routing dropless --text-tokens 0)"
        )
    return summary


def _unpublished_fields(config: Config) -> list[str]:
    """Return the fields of a run whose values the published models do not have."""
    model = config.model
    if not isinstance(model, EveModelConfig):
        return [f"model {model.name}"]
    unused = " ".join(model.unused_fields().values()).split()
    names = []
    for name, published_value in MODEL.items():
        if name not in unused and getattr(model, name) != published_value:
            names.append(f"model.{name}")
    for name, unpublished_value in UNPUBLISHED_HEADS.get(config.task.name, {}).items():
        if getattr(config.task, name) == unpublished_value:
            names.append(f"task.{name}")
    return [f"{name} {attrgetter(name)(config)}" for name in names]
