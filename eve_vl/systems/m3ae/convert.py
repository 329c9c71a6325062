"""Published checkpoints of M3AE, the medical one (zhjohnchan/M3AE), into run folders: the same numbers under our names.

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
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from eve_vl.config import DualEncoderConfig, HeadlessConfig, InputConfig, TaskConfig
from eve_vl.interop import ConvertArgs, convert
from eve_vl.interop.convert import Family, Plan, classifier, to_tuples, token_head
from eve_vl.model.ffn import NORM
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.utils.errors import UserError

BASE = get_recipe("m3ae_base")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of pixels in [0, 1]
FIRST_PLACE = 2  # RoBERTa's position of the first token; earlier ones are padding
VISUAL, ROBERTA, FUSION = "vision_encoder.visual.", "language_encoder.", "multi_modal_"
BLOCKS, LAYERS = f"{VISUAL}transformer.resblocks.", f"{ROBERTA}encoder.layer."
SIDES = {"image": "vision", "text": "language"}
PATCHES, KINDS = f"{VISUAL}conv1.weight", "modality_type_embeddings.weight"
WORDS, PLACES, SEGMENTS = (f"{ROBERTA}embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
UNUSED = (
    *("mim_head.", "vision_encoder.token_embedding.", "vision_encoder.positional_embedding", "vision_encoder.ln_final."),
    *(f"{ROBERTA}embeddings.position_ids", f"{ROBERTA}embeddings.token_type_ids", f"{ROBERTA}pooler."),
)
"""Prefixes of tensors to leave out."""
SAME = {"encoder.image.embed.cls": f"{VISUAL}class_embedding", "encoder.image.embed.positions": f"{VISUAL}positional_embedding"}
OUTSIDE = {
    "encoder.image.norm_pre": f"{VISUAL}ln_pre",
    "encoder.image.norm": f"{VISUAL}ln_post",
    "encoder.text.embed.norm": f"{ROBERTA}embeddings.LayerNorm",
    **{f"encoder.fusion.{ours}_pooler": f"{FUSION}{theirs}_pooler.dense" for ours, theirs in SIDES.items()},
}
"""Layers with weight and bias outside the blocks; inside them below."""
CLIP_BLOCK = {"attn.proj": "attn.out_proj", "ffn.fc1": "mlp.c_fc", "ffn.fc2": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2"}
BERT_LAYER = {
    "attn.proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "ffn.fc1": "intermediate.dense",
    "ffn.fc2": "output.dense",
}
ROBERTA_LAYER = BERT_LAYER | {"norm2": "output.LayerNorm"}
CO_ATTENTION = BERT_LAYER | {
    "cross.proj": "crossattention.output.dense",
    "norm2": "crossattention.output.LayerNorm",
    "norm3": "output.LayerNorm",
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """A checkpoint's head and its task."""

    section: TaskConfig
    keys: Mapping[str, str] = field(default_factory=dict)
    """Published name of each of our tensors."""
    unused: tuple[str, ...] = UNUSED


def _task(recipe: str) -> TaskConfig:
    return get_finetune_recipe(recipe, BASE).task


def _match_head(theirs: str) -> dict[str, str]:
    return {f"contrast.match_head.{part}": f"{theirs}.{part}" for part in NORM}


HEADS = {
    "vqa_head.": Head(section=_task("m3ae_vqa"), keys=classifier("answer_head", "vqa_head")),
    "cls_head.": Head(section=_task("m3ae_classification"), keys=classifier("class_head", "cls_head")),
    "irtr_head.": Head(section=_task("m3ae_retrieval"), keys=_match_head("irtr_head"), unused=(*UNUSED, "itm_head.")),
    "itm_head.": Head(section=replace(BASE.task, mim_weight=0.0), keys=token_head("mlm_head") | _match_head("itm_head.fc")),
}
"""Heads by the prefix of their tensors; the first match counts."""


def plan(tensors: Mapping[str, Tensor], where: str, args: ConvertArgs) -> Plan:
    """Return what a published M3AE becomes. Raises UserError."""
    tensors = convert.without(tensors, args.drop, where)
    sizes, model, head = infer(tensors, where, args.num_heads)
    length = min(args.text_tokens or sizes.text_length, sizes.text_length)
    return Plan(
        tensors={name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
        sizes=replace(sizes, text_length=length),
        model=model,
        section=head.section,
        recipe="m3ae_base",
        prefix="m3ae_",
        table=to_tuples(key_table(model, head)),
        shapes=special_shapes(sizes, model, tensors),
        unused=head.unused,
        words=WORDS,
        positions="image.embed.positions",
        finish=lambda ours, _: to_ours(ours, tensors, model, length),
        notes="; left out the decoder of pixels" * any(name.startswith("mim_head.") for name in tensors),
    )


FAMILY = Family(
    title="an M3AE checkpoint",
    flags=("text_tokens",),
    matches=lambda tensors: any(name.startswith(f"{FUSION}language_layers.") for name in tensors),
    plan=plan,
)


def infer(tensors: Mapping[str, Tensor], where: str, num_heads: int = 0) -> tuple[InputConfig, DualEncoderConfig, Head]:
    """Return a checkpoint's sizes, model and head from its tensors. Raises UserError."""
    try:
        width, _, patch_size, _ = tensors[PATCHES].shape
        ffn_dim = len(tensors[f"{BLOCKS}0.mlp.c_fc.bias"])
        positions = len(tensors[f"{VISUAL}positional_embedding"])
        text_length = len(tensors[PLACES]) - FIRST_PLACE
        blocks = [convert.numbers_after(prefix, tensors) for prefix in (BLOCKS, LAYERS, f"{FUSION}language_layers.")]
    except convert.ODD as error:
        raise UserError(f"{where}: not a published M3AE of CLIP and RoBERTa ({error} is missing or unusual)") from None
    depths = [convert.count_numbered(numbers, "blocks", where) for numbers in blocks]
    assert isinstance(BASE.model, DualEncoderConfig)
    model = replace(
        BASE.model,
        embed_dim=width,
        num_heads=convert.heads_of(width, num_heads, where),
        mlp_ratio=ffn_dim / width,
        towers="clip_roberta",
        **dict(zip(("image_depth", "text_depth", "fusion_depth"), depths, strict=True)),
        pixel_layer=min(BASE.model.pixel_layer, depths[2]),
    )
    image_size = convert.side_of(positions, where) * patch_size
    sizes = InputConfig(image_size=image_size, patch_size=patch_size, text_length=text_length)
    heads = (head for prefix, head in HEADS.items() if any(name.startswith(prefix) for name in tensors))
    return sizes, model, next(heads, Head(section=HeadlessConfig()))


def key_table(model: DualEncoderConfig, head: Head) -> dict[str, str]:
    """Return the published name of each of our tensors with the same numbers."""
    layers, same = dict(OUTSIDE), dict(SAME)
    for number in range(model.image_depth):
        ours, theirs = f"encoder.image.blocks.{number}", f"{BLOCKS}{number}"
        layers |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in CLIP_BLOCK.items()}
        same[f"{ours}.attn.qkv.weight"] = f"{theirs}.attn.in_proj_weight"
    for number in range(model.text_depth):
        layers |= {f"encoder.text.blocks.{number}.{name}": f"{LAYERS}{number}.{it}" for name, it in ROBERTA_LAYER.items()}
    for number in range(model.fusion_depth):
        for ours, theirs in SIDES.items():
            block, layer = f"encoder.fusion.blocks.{number}.{ours}", f"{FUSION}{theirs}_layers.{number}"
            layers |= {f"{block}.{name}": f"{layer}.{other}" for name, other in CO_ATTENTION.items()}
    for ours, theirs in attentions(model).items():
        same |= {f"{ours}.q_bias": f"{theirs}.query.bias", f"{ours}.v_bias": f"{theirs}.value.bias"}
    for ours, theirs in SIDES.items():
        same[f"encoder.fusion.{ours}_proj.weight"] = f"{FUSION}{theirs}_proj.weight"
    return same | {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in NORM} | dict(head.keys)


def attentions(model: DualEncoderConfig) -> dict[str, str]:
    """Return our name and theirs of each attention with separate query, key and value weights there."""
    found = {f"encoder.text.blocks.{number}.attn": f"{LAYERS}{number}.attention.self" for number in range(model.text_depth)}
    for number in range(model.fusion_depth):
        for side, other in SIDES.items():
            ours, theirs = f"encoder.fusion.blocks.{number}.{side}", f"{FUSION}{other}_layers.{number}"
            found |= {f"{ours}.attn": f"{theirs}.attention.self", f"{ours}.cross": f"{theirs}.crossattention.self"}
    return found


def special_shapes(sizes: InputConfig, model: DualEncoderConfig, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of published tensors that `to_ours` transforms."""
    D, patch = model.embed_dim, sizes.patch_size
    num_words = tensors[WORDS].shape[:1].numel() if WORDS in tensors else 0
    shapes: dict[str, tuple[int, ...]] = {PATCHES: (D, 3, patch, patch), WORDS: (num_words, D), SEGMENTS: (1, D), KINDS: (2, D)}
    shapes[PLACES] = sizes.text_length + FIRST_PLACE, D
    shapes |= {f"{FUSION}{theirs}_proj.bias": (D,) for theirs in SIDES.values()}
    shapes |= {f"{BLOCKS}{number}.attn.in_proj_bias": (3 * D,) for number in range(model.image_depth)}
    for theirs in attentions(model).values():
        shapes |= {f"{theirs}.{part}.weight": (D, D) for part in ("query", "key", "value")} | {f"{theirs}.key.bias": (D,)}
    return shapes


def to_ours(
    ours: dict[str, Tensor], tensors: Mapping[str, Tensor], model: DualEncoderConfig, text_length: int
) -> dict[str, Tensor]:
    """Return our tensors from those of the key table, float32, with positions for texts of text_length tokens."""
    given = {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
    mean_3, std_3 = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    projection = given[PATCHES] / (2 * std_3[:, None, None])  # theirs are (p / 2 + 1 / 2 - mean) / std of our pixels p
    ours["encoder.image.embed.proj.weight"] = projection.flatten(1)
    ours["encoder.image.embed.proj.bias"] = (projection * (1 - 2 * mean_3)[:, None, None]).sum((1, 2, 3))
    ours["encoder.text.embed.words.weight"] = given[WORDS] + given[SEGMENTS]
    ours["encoder.text.embed.positions"] = given[PLACES][FIRST_PLACE:][:text_length].clone()
    for kind, side in enumerate(("text", "image")):
        ours[f"encoder.{side}.embed.type_embed"] = torch.zeros(model.embed_dim)
        ours[f"encoder.fusion.{side}_proj.bias"] = given[f"{FUSION}{SIDES[side]}_proj.bias"] + given[KINDS][kind]
    for number in range(model.image_depth):
        name = f"encoder.image.blocks.{number}"
        q_bias, _, v_bias = given[f"{BLOCKS}{number}.attn.in_proj_bias"].chunk(3)
        ours |= {f"{name}.attn.q_bias": q_bias.clone(), f"{name}.attn.v_bias": v_bias.clone()}
        ours |= {f"{name}.scale{part}": torch.ones(model.embed_dim) for part in (1, 2)}
    for name, theirs in attentions(model).items():
        ours[f"{name}.qkv.weight"] = torch.cat([given[f"{theirs}.{part}.weight"] for part in ("query", "key", "value")])
    return ours
