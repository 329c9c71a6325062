"""Published VLMo checkpoints (microsoft/unilm, vlmo) into run folders: the same numbers under our names.

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
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from eve_vl.config import (
    EveModelConfig,
    HeadlessConfig,
    InputConfig,
    NLVR2Config,
    RetrievalConfig,
    TaskConfig,
    VQAConfig,
)
from eve_vl.interop import ConvertArgs, convert
from eve_vl.interop.convert import Family, Plan, classifier, to_tuples, token_head
from eve_vl.interop.published import BLOCK
from eve_vl.model.ffn import NORM, POLICIES
from eve_vl.recipes import get_recipe
from eve_vl.tasks.task import Task
from eve_vl.utils.errors import UserError

SIZES = {544: "vlmo_base_plus", 1024: "vlmo_large"}  # by width; all others are like vlmo_base
NUM_HEADS = {544: 16}  # of attention, where they are not 64 wide
LONGEST = 196  # tokens of the texts that every table of relative positions is made for
BLOCKS = "transformer.blocks."
TABLE, TYPES = "relative_position_bias_table", "token_type_embeddings.weight"
WORDS, SEGMENTS = "text_embeddings.word_embeddings.weight", "text_embeddings.token_type_embeddings.weight"
PLACES, PATCHES = "text_embeddings.position_embeddings.weight", "transformer.patch_embed.proj.weight"
UNUSED = (
    *("relative_position_index", "text_relative_position_index", "text_imag_relative_position_index"),
    *("text_embeddings.position_ids", "text_embeddings.token_type_ids"),
)
LAYERS = {
    "encoder.norm": "transformer.norm",
    "encoder.text.norm": "text_embeddings.LayerNorm",
    "encoder.pooler": "pooler.dense",
}


@dataclass(frozen=True, kw_only=True)
class Head:
    """A checkpoint's head and its task."""

    section: TaskConfig
    keys: Mapping[str, str] = field(default_factory=dict)
    """Published name of each of our tensors."""
    scales: Mapping[str, str] = field(default_factory=dict)
    """Published log of the scale whose inverse is our temperature."""

    @property
    def has_second_image_type_embedding(self) -> bool:
        """Whether the second of two images has its own type embedding."""
        return getattr(self.section, "second_image_type_embedding", False)


def _contrast(ours: str, theirs: str) -> dict[str, str]:
    return {f"contrast.{ours}.{side}.weight": f"{theirs}_{side}_proj.fc.weight" for side in ("image", "text")}


TOKEN_HEAD = token_head("mlm_score")
MATCH_HEAD = {f"contrast.match_head.{part}": f"itm_score.fc.{part}" for part in NORM}
SCALE = {"contrast.features.temperature": "logit_scale"}
HEADS = {
    "vqa_classifier.": Head(section=VQAConfig(), keys=classifier("answer_head", "vqa_classifier")),
    "nlvr2_classifier.": Head(
        section=NLVR2Config(second_image_type_embedding=True), keys=classifier("concat_head", "nlvr2_classifier")
    ),
    "itm_score.": Head(
        section=get_recipe("vlmo_base").task,
        keys=TOKEN_HEAD | MATCH_HEAD | _contrast("features", "itc") | _contrast("more_features.0", "itc_vl"),
        scales=SCALE | {"contrast.more_features.0.temperature": "logit_vl_scale"},
    ),
    "mlm_score.": Head(section=get_recipe("vlmo_base_texts").task, keys=TOKEN_HEAD),
    "itc_": Head(section=RetrievalConfig(itm_weight=0.0, rerank=0), keys=_contrast("features", "itc"), scales=SCALE),
}
"""Heads by the prefix of their tensors; the first match counts."""


def plan(tensors: Mapping[str, Tensor], where: str, args: ConvertArgs) -> Plan:
    """Return what a published VLMo becomes. Raises UserError.

    num_heads 0: as the table of relative positions says, else those of the published size.
    """
    tensors = convert.without(tensors, args.drop, where)
    sizes, model, head, start = infer(tensors, where, args.num_heads)
    length, is_partial = min(args.text_tokens or sizes.text_length, sizes.text_length), is_of_texts(tensors)

    def finish(ours: dict[str, Tensor], task: Task[Any]) -> dict[str, Tensor]:
        ours = to_ours(ours, tensors, model, head)
        encoder = {name.removeprefix("encoder."): tensor for name, tensor in ours.items() if name.startswith("encoder.")}
        ours |= {f"encoder.{name}": tensor for name, tensor in task.encoder.resized(encoder)[0].items()}
        if model.positions == "learned":
            ours["encoder.text.positions"] = ours["encoder.text.positions"][:length].clone()
        return ours

    return Plan(
        tensors={name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
        sizes=replace(sizes, text_length=length, image_size=args.image_size or sizes.image_size),
        model=model,
        section=head.section,
        recipe=start,
        prefix="vlmo_",
        table=to_tuples(key_table(model, head, tensors)),
        shapes=special_shapes(sizes, model, head, tensors),
        unused=(*UNUSED, *[PLACES] * (model.positions == "relative")),
        words=WORDS,
        is_partial=is_partial,
        finish=finish,
        notes="; networks for pairs are random, which text-only checkpoints lack" * is_partial,
    )


FAMILY = Family(
    title="a VLMo checkpoint",
    flags=("text_tokens",),
    matches=lambda tensors: PATCHES in tensors and any(name.startswith(BLOCKS) for name in tensors),
    plan=plan,
)


def is_of_texts(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are of the text stage, which has no networks for pairs."""
    return not any(".mlp_vl." in name for name in tensors)


def infer(tensors: Mapping[str, Tensor], where: str, num_heads: int = 0) -> tuple[InputConfig, EveModelConfig, Head, str]:
    """Return a checkpoint's sizes, model, head and nearest recipe from its tensors. Raises UserError."""
    try:
        width, _, patch_size, _ = tensors[PATCHES].shape
        ffn_dim = len(tensors[f"{BLOCKS}0.mlp_imag.fc1.bias"])
        top = convert.numbers_after(BLOCKS, [name for name in tensors if ".mlp_vl." in name])
        depth = convert.count_numbered(convert.numbers_after(BLOCKS, tensors), "blocks", where)
        start = SIZES.get(width, "vlmo_base") + "_texts" * is_of_texts(tensors)
        like = get_recipe(start)
        if is_relative := TABLE in tensors:
            rows, columns = tensors[TABLE].shape
            num_patches, text_length, num_heads = _patches(rows, where), LONGEST, num_heads or columns // depth
        else:
            num_patches = convert.side_of(tensors["transformer.pos_embed"].shape[:-1].numel(), where) ** 2
            text_length = len(tensors[PLACES])
    except convert.ODD as error:
        raise UserError(f"{where}: not a published VLMo ({error} is missing or unusual)") from None
    assert isinstance(like.model, EveModelConfig)
    num_top = len(top) or min(like.model.num_deep_blocks, depth)
    if top and top != set(range(depth - num_top, depth)):
        raise UserError(f"{where}: networks for pairs in blocks {sorted(top)} of {depth}; only the last blocks may have them")
    model = replace(
        like.model,
        embed_dim=width,
        depth=depth,
        num_heads=convert.heads_of(width, num_heads or NUM_HEADS.get(width, 0), where),
        mlp_ratio=ffn_dim / width,
        num_deep_blocks=num_top,
        positions="relative" if is_relative else "learned",
        text_embedding="bert",
    )
    sizes = InputConfig(image_size=round(num_patches**0.5) * patch_size, patch_size=patch_size, text_length=text_length)
    heads = (head for prefix, head in HEADS.items() if any(name.startswith(prefix) for name in tensors))
    return sizes, model, next(heads, Head(section=HeadlessConfig())), start


def _patches(rows: int, where: str) -> int:
    """Return the patches per image from the rows of the table of relative positions. Raises UserError."""
    square = rows - 3 - 2 - 2 * LONGEST
    side = round((max(square, 0) ** 0.5 + 1) / 2)
    if side < 2 or (2 * side - 1) ** 2 != square:
        raise UserError(
            f"{where}: {TABLE} has {rows} rows, expected (2g - 1)² + 397 for images of g × g patches and texts of {LONGEST} "
            "tokens"
        )
    return side**2


def key_table(model: EveModelConfig, head: Head, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the published name of each of our tensors with the same numbers."""
    table = {"encoder.image.proj.bias": "transformer.patch_embed.proj.bias", **head.keys}
    table |= {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in LAYERS.items() for part in NORM}
    for block, policy in enumerate(model.ffn_policies):
        keys = POLICIES["modality" if is_of_texts(tensors) else policy].published(model)
        assert keys is not None
        names = {ours: theirs for ours, theirs in BLOCK.items() if not ours.startswith("scale") or _has_scales(tensors)}
        names |= {ours: theirs for ours, (theirs,) in keys.items()}
        table |= {f"encoder.blocks.{block}.{ours}": f"{BLOCKS}{block}.{theirs}" for ours, theirs in names.items()}
    return table


def _has_scales(tensors: Mapping[str, Tensor]) -> bool:
    return f"{BLOCKS}0.gamma_1" in tensors


def special_shapes(
    sizes: InputConfig, model: EveModelConfig, head: Head, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of published tensors that `to_ours` transforms."""
    D, patch, side = model.embed_dim, sizes.patch_size, sizes.image_size // sizes.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        PATCHES: (D, 3, patch, patch),
        "transformer.cls_token": (1, 1, D),
        WORDS: (_rows(tensors, WORDS), D),
        SEGMENTS: (2, D),
        TYPES: (
            max(2 + head.has_second_image_type_embedding, min(_rows(tensors, TYPES), 3)),
            D,
        ),  # without its head, the third is not used
    }
    if model.positions == "relative":
        shapes[TABLE] = (2 * side - 1) ** 2 + 5 + 2 * LONGEST, model.depth * model.num_heads
    else:
        shapes |= {"transformer.pos_embed": (1, 1 + side**2, D), PLACES: (sizes.text_length, D)}
    return shapes | dict.fromkeys(head.scales.values(), ())


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    return tensors[name].shape[:1].numel() if name in tensors else 0


def to_ours(ours: dict[str, Tensor], tensors: Mapping[str, Tensor], model: EveModelConfig, head: Head) -> dict[str, Tensor]:
    """Return our tensors from those of the key table, float32, with positions for the checkpoint's sizes."""
    given = {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
    ours["encoder.image.proj.weight"] = given[PATCHES].flatten(1)
    ours["encoder.image.cls"] = given["transformer.cls_token"].flatten()
    ours["encoder.text.type_embed"], ours["encoder.image.type_embed"] = (row.clone() for row in given[TYPES][:2])
    ours["encoder.text.words.weight"] = given[WORDS] + given[SEGMENTS][0]
    if head.has_second_image_type_embedding:
        ours["right_bias"] = given[TYPES][2] - given[TYPES][1]
    if not _has_scales(tensors):
        names = (f"encoder.blocks.{block}.scale{part}" for block in range(model.depth) for part in (1, 2))
        ours |= {name: torch.ones(model.embed_dim) for name in names}
    ours |= {name: (-given[theirs]).exp() for name, theirs in head.scales.items()}
    if model.positions == "relative":
        parts = given[TABLE].split([len(given[TABLE]) - 2 - 2 * LONGEST, 2, 2 * LONGEST])
        names = (f"encoder.relative.{part}_bias" for part in ("image", "cross", "text"))
        return ours | {name: part.clone() for name, part in zip(names, parts, strict=True)}
    ours["encoder.image.positions"] = given["transformer.pos_embed"].flatten(0, 1)
    return ours | {"encoder.text.positions": given[PLACES]}
