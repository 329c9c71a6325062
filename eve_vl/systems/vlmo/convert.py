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

from torch import Tensor

from eve_vl.config import InputConfig, TaskConfig
from eve_vl.interop.checkpoint_shapes import (
    HEAD_WIDTH,
    count_numbered,
    patches_per_side,
    patches_per_side_of_table,
    width_and_patch_size,
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
# rows of such a table after those between patches
CROSS_ROWS = 2  # between modalities
TEXT_ROWS = 2 * LONGEST  # between words

BLOCKS = "transformer.blocks.*."
PAIR_NETWORK = ".mlp_vl."
PATCHES = "transformer.patch_embed.proj.weight"
RELATIVE_TABLE = "relative_position_bias_table"
TYPES = "token_type_embeddings.weight"
WORDS = "text_embeddings.word_embeddings.weight"
SEGMENTS = "text_embeddings.token_type_embeddings.weight"
TEXT_POSITIONS = "text_embeddings.position_embeddings.weight"
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
    "encoder.text.positions": TEXT_POSITIONS,
    "encoder.text.norm": "text_embeddings.LayerNorm",
    "encoder.norm": "transformer.norm",
    "encoder.pooler": "pooler.dense",
    "encoder.relative.image_bias": Computed(
        lambda table: table[: -CROSS_ROWS - TEXT_ROWS], (RELATIVE_TABLE,)
    ),
    "encoder.relative.cross_bias": Computed(
        lambda table: table[-CROSS_ROWS - TEXT_ROWS : -TEXT_ROWS], (RELATIVE_TABLE,)
    ),
    "encoder.relative.text_bias": Computed(lambda table: table[-TEXT_ROWS:], (RELATIVE_TABLE,)),
    "right_bias": Computed(lambda types: types[2] - types[1], (TYPES,)),
    "answer_head": "vqa_classifier",
    "concat_head": "nlvr2_classifier",
    "contrast.match_head": "itm_score.fc",
    **token_head("mlm_score"),
}
"""All of our tensors outside the blocks that some checkpoint has."""


def key_table(tensors: Mapping[str, Tensor]) -> WeightTable:
    """Return the source of each of our tensors."""
    block = dict(BLOCK)
    if is_of_texts(tensors):
        block = {name: source for name, source in BLOCK.items() if "vl" not in name}
    if f"{BLOCKS}gamma_1".replace("*", "0") not in tensors:
        block["scale1"] = 1.0
        block["scale2"] = 1.0
    return {
        **BODY,
        **with_prefixes("encoder.blocks.*.", BLOCKS, block),
        **_contrast_table("contrast.features.", "itc", "logit_scale"),
        **_contrast_table("contrast.more_features.0.", "itc_vl", "logit_vl_scale"),
    }


def _contrast_table(our_prefix: str, foreign_prefix: str, scale: str) -> WeightTable:
    """Return the sources of one of VLMo's two contrasts. scale: name of its logarithm."""
    return {
        f"{our_prefix}temperature": Computed(lambda log_scale: (-log_scale).exp(), (scale,)),
        f"{our_prefix}image.weight": f"{foreign_prefix}_image_proj.fc.weight",
        f"{our_prefix}text.weight": f"{foreign_prefix}_text_proj.fc.weight",
    }


def plan(tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Conversion:
    """Return the plan of a published VLMo. Raises UserError.

    num_heads 0: as the table of relative positions says, else those of the published size.
    """
    tensors = checked_tensors(tensors, args.drop, where)
    sizes, model, section, recipe = infer(tensors, where, args.num_heads)
    unused = UNUSED
    if model.positions == "relative":
        unused += f"|{TEXT_POSITIONS}"
    notes = ""
    if is_of_texts(tensors):
        notes = "; networks for pairs are random, which text-only checkpoints lack"
    return Conversion(
        tensors=tensors,
        sizes=sizes,
        model=model,
        section=section,
        recipe=recipe,
        finetune_prefix="vlmo_",
        table=key_table(tensors),
        token_embedding=WORDS,
        text_length=min(args.text_tokens or sizes.text_length, sizes.text_length),
        unused=unused,
        is_partial=is_of_texts(tensors),
        notes=notes,
    )


def is_vlmo(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file holds VLMo's names."""
    return PATCHES in tensors and any(name.startswith("transformer.blocks.") for name in tensors)


FAMILY = Family("a VLMo checkpoint", ("text_tokens",), is_vlmo, plan)


def is_of_texts(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are of the text stage, which has no networks for pairs."""
    return not any(PAIR_NETWORK in name for name in tensors)


def infer(
    tensors: Mapping[str, Tensor], where: str, num_heads: int = 0
) -> tuple[InputConfig, VlmoModelConfig, TaskConfig, str]:
    """Return a checkpoint's sizes, model, task and nearest recipe. Raises UserError."""
    width, patch_size = width_and_patch_size(tensors[PATCHES], where)
    depth = count_numbered(BLOCKS, tensors)
    num_heads_of_table = 0
    if RELATIVE_TABLE in tensors:
        positions = "relative"
        num_rows, num_columns = tensors[RELATIVE_TABLE].shape
        side = patches_per_side_of_table(num_rows, 3 + CROSS_ROWS + TEXT_ROWS, where)
        text_length = LONGEST
        num_heads_of_table = num_columns // depth
    else:
        positions = "learned"
        side = patches_per_side(tensors["transformer.pos_embed"].shape[:-1].numel(), where)
        text_length = len(tensors[TEXT_POSITIONS])

    recipe = SIZES.get(width, "vlmo_base")
    if is_of_texts(tensors):
        recipe += "_texts"
    published = get_recipe(recipe).model
    assert isinstance(published, VlmoModelConfig)
    usual_num_heads = NUM_HEADS.get(width) or max(width // HEAD_WIDTH, 1)
    hidden = len(tensors[f"{BLOCKS}mlp_imag.fc1.bias".replace("*", "0")])
    num_deep = count_numbered(BLOCKS, [name for name in tensors if PAIR_NETWORK in name])
    model = replace(
        published,
        embed_dim=width,
        depth=depth,
        num_heads=num_heads or num_heads_of_table or usual_num_heads,
        mlp_ratio=hidden / width,
        num_deep_blocks=num_deep or min(published.num_deep_blocks, depth),
        positions=positions,
        text_embedding="bert",
    )
    sizes = InputConfig(
        image_size=side * patch_size, patch_size=patch_size, text_length=text_length
    )
    return sizes, model, _task_of_head(tensors), recipe


def _task_of_head(tensors: Mapping[str, Tensor]) -> TaskConfig:
    """Return the task of the first known head."""
    for prefix, task in HEADS.items():
        if any(name.startswith(prefix) for name in tensors):
            return task
    return HeadlessConfig()
