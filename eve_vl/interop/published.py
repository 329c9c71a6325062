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
from eve_vl.interop import ConvertArgs, convert
from eve_vl.interop.convert import Family, Made, Plan, Table, sources, stack, under
from eve_vl.run.loading import read_config
from eve_vl.run.weight_transfer import model_parts
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.train import checkpoint_files, checkpoint_folders, tensor_files
from eve_vl.utils.errors import UserError

BLOCKS, EXPERTS = "backbone.encoder.layers.*", ".mlp_moe.moe.experts.experts.*"
PATCHES, WORDS = "backbone.patch_embed.weight", "backbone.word_embedding.weight"
BUFFERS = ("backbone.position_ids_vision", "backbone.position_ids_text")
PARTS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
BODY: Table = {
    "encoder.image.cls": "backbone.class_embedding_vision",
    "encoder.image.type_embed": "backbone.type_embed_vision",
    "encoder.image.positions": "backbone.pos_embed_vision",
    "encoder.image.proj.weight": Made(
        lambda weight: weight.flatten(1), (PATCHES,)
    ),  # a convolution there
    "encoder.image.proj": "backbone.patch_embed",
    "encoder.text.type_embed": "backbone.type_embed_text",
    "encoder.text.positions": "backbone.pos_embed_text",
    "encoder.text.words.weight": WORDS,
    "encoder.text.norm": "backbone.layer_norm_text",
    "encoder.norm_pre": "backbone.pre_layrnorm",
    "encoder.norm": "backbone.norm",
}
BLOCK: Table = {name: name for name in ("norm1", "attn")} | {
    "scale1": "gamma_1",
    "scale2": "gamma_2",
    "norm2": "norm2_vl",
    **{
        f"ffn.norm_{ours}": f"norm2_{theirs}"
        for ours, theirs in (("image", "imag"), ("text", "text"), ("vl", "vl"))
    },
    **{
        f"ffn.{ours}": f"mlp_{theirs}"
        for ours, theirs in (("image", "imag"), ("text", "text"), ("vl", "vl"))
    },
    "ffn.router.weight": "mlp_moe.moe.gate.wg.weight",
    "ffn.router.modality_embed": Made(
        stack, ("mlp_moe.moe.vision_embed", "mlp_moe.moe.text_embed")
    ),
}
"""Tensors of a block. VLMo has the same names, except for experts."""
HEADS: dict[str, Table] = {
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
}
MODEL |= {"shallow_ffn": "modality", "deep_ffn": "moe", "top_k": 2}
"""Fields of the model that have one value in all published models."""
OTHER_HEADS: dict[str, dict[str, Any]] = {
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
OLDER_NAMES = {r"m(?=it[cm]_)": "", r"itc_vl_": "itc_"}
"""Beginnings of names in pre-training; the published code lets later ones prevail."""
WORDS_KEPT = {"vqa": 50, "nlvr2": 40}
"""Words that the published evaluation keeps of a text, by our task; 30 in all others."""


def key_table(model: EveModelConfig, section: TaskConfig) -> Table:
    """Return the published name of each of our tensors."""
    names = [EXPERTS[1:].replace("*", str(expert)) for expert in range(model.num_experts)]
    theirs_of = {part: tuple(f"{name}.{part}" for name in names) for part in PARTS}
    experts = {
        f"ffn.experts.{part.replace('.', '_')}": Made(stack, theirs)
        for part, theirs in theirs_of.items()
    }
    blocks = under("encoder.blocks.*.", f"{BLOCKS}.", {**BLOCK, **experts})
    return {**BODY, **blocks, **HEADS.get(section.name, {})}


def plan(tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Plan:
    """Return the plan of a published EVE checkpoint. Raises UserError."""
    tensors = convert.without(tensors, args.drop, where)
    for older, present in OLDER_NAMES.items():
        tensors |= {
            re.sub(older, present, name): tensors.pop(name)
            for name in [*tensors]
            if re.match(older, name)
        }
    sizes, model, section = infer(tensors, where, args.num_heads)
    model = replace(model, routing=args.routing)
    guess = "" if args.num_heads else "; heads are 64 wide, else give --num-heads"
    sizes = replace(sizes, padded_text_length=min(args.text_tokens, sizes.text_length))
    more: dict[str, Any] = {
        "table": key_table(model, section),
        "unused": "|".join(BUFFERS),
        "words": WORDS,
    }
    more |= {"max_words": WORDS_KEPT.get(section.name, 30) if args.clean_text else None}
    return Plan(
        tensors=tensors,
        sizes=sizes,
        model=model,
        section=section,
        notes=f"; routing {args.routing}{guess}",
        **more,
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
    width, _, patch_size, _ = published[PATCHES].shape
    image_size = convert.side_of(len(published["backbone.pos_embed_vision"]), where) * patch_size
    experts = convert.count(BLOCKS + EXPERTS, published)
    hidden = len(next(tensor for name, tensor in published.items() if name.endswith("fc1.bias")))
    shape: dict[str, Any] = {
        "embed_dim": width,
        "num_heads": num_heads or max(width // convert.HEAD_WIDTH, 1),
    }
    shape |= {
        "depth": convert.count(BLOCKS, published),
        "mlp_ratio": hidden / width,
        "num_experts": experts or 1,
    }
    shape |= {
        "num_deep_blocks": convert.count(f"{BLOCKS}.mlp_moe.moe.experts.", published),
        "top_k": min(2, experts or 1),
    }
    model = EveModelConfig(
        **shape, modality_routing=any(name.endswith("moe.text_embed") for name in published)
    )
    text_length = len(published["backbone.pos_embed_text"])
    sizes = InputConfig(image_size=image_size, patch_size=patch_size, text_length=text_length)
    return sizes, model, infer_task(published, width)


def infer_task(published: Mapping[str, Tensor], width: int) -> TaskConfig:
    """Return the task of a checkpoint by its head.

    A fine-tuned one may still have heads of earlier training.
    """
    if "nlvr2_output.weight" in published:
        return NLVR2Config(head="paired")
    if "output.0.weight" in published:  # the head of VQA reads one state, that of NLVR2 two
        return (
            VQAConfig()
            if published["output.0.weight"].shape[1] == width
            else NLVR2Config(head="concat")
        )
    if "itm_head.weight" in published:
        return RetrievalConfig(
            final_norm=False, projection_dim=len(published.get("itc_vision_proj_head.weight", ()))
        )
    return HeadlessConfig()


def to_published(
    ours: Mapping[str, Tensor], made: Mapping[str, Made], sizes: InputConfig
) -> dict[str, Tensor]:
    """Return the published tensors of ours.

    They include buffers that published models keep and never use.
    """
    positions = torch.arange(1 + sizes.num_patches)[None], torch.arange(sizes.text_length)
    published: dict[str, Tensor] = dict(zip(BUFFERS, positions, strict=True))
    for name, each in made.items():
        published |= zip(
            each.sources,
            ours[name].unbind() if each.compute is stack else (ours[name],),
            strict=True,
        )
    return published | {PATCHES: published[PATCHES].view(-1, 3, sizes.patch_size, sizes.patch_size)}


def export_published(run: Path, target: Path) -> str:
    """Write a run's weights under the published names and return a summary.

    The run must be of a published kind. target: .safetensors, or .pth for a torch file. Raises UserError.
    """
    if target.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{target}: name a .safetensors or .pth file")
    if target.exists():
        raise UserError(f"{target}: already exists; name a new file")
    folder = checkpoint_folders.chosen_checkpoint(run)
    config = read_config(folder)
    if problems := _unpublished(config):
        raise UserError(
            f"{run}: the published models have no {', no '.join(problems)}, so they cannot take its weights"
        )
    assert isinstance(config.model, EveModelConfig)
    checkpoint_files.verify(folder, to_resume=False)
    ours = checkpoint_files.read_model(folder)
    made = sources(key_table(config.model, config.task), ours)
    published = to_published(ours, made, config.input)
    tensor_files.save_weights(target, published)
    words = f"{len(published)} tensors"
    if left_out := sorted(ours.keys() - made.keys()):
        words += f"; left out {len(left_out)} that the published models do not have: {model_parts(left_out)}"
    if config.model.routing == "dropless":
        words += "; the published code routes differently (to import it again: --routing dropless --text-tokens 0)"
    return words


def _unpublished(config: Config) -> list[str]:
    """Return the fields of a run whose values the published models do not have."""
    model, task = config.model, config.task
    if not isinstance(model, EveModelConfig):
        return [f"model {model.name}"]
    unused = " ".join(model.unused_fields().values()).split()
    fields = [
        f"model.{name}"
        for name, usual in MODEL.items()
        if name not in unused and getattr(model, name) != usual
    ]
    fields += [
        f"task.{name}"
        for name, other in OTHER_HEADS.get(task.name, {}).items()
        if getattr(task, name) == other
    ]
    return [f"{name} {attrgetter(name)(config)}" for name in fields]
