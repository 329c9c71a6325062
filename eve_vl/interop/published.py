"""EVE's published checkpoints into run folders, and run folders back; bit for bit both ways.

Ours are stacks of theirs where they have several. The patch projection is a convolution there. Blocks know the names of their
feed-forward part (`model.ffn`), tasks those of their heads.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from eve_vl.config import Config, EveModelConfig, HeadlessConfig, InputConfig, TaskConfig, kinds_of
from eve_vl.interop import ConvertArgs, convert
from eve_vl.interop.convert import Family, Plan
from eve_vl.interop.heads import heads_class
from eve_vl.model.ffn import NORM, POLICIES, Keys
from eve_vl.model.init_from import parts
from eve_vl.run.loading import read_config
from eve_vl.train import checkpoint
from eve_vl.utils.errors import UserError

BLOCKS = "backbone.encoder.layers."
EXPERTS = "mlp_moe.moe.experts.experts."
PATCHES, WORDS = "backbone.patch_embed.weight", "backbone.word_embedding.weight"
UNUSED = ("backbone.position_ids_vision", "backbone.position_ids_text")
LAYERS = {"image.proj": "patch_embed", "text.norm": "layer_norm_text", "norm_pre": "pre_layrnorm", "norm": "norm"}
"""Layers outside the blocks, with a weight and a bias."""
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
"""Tensors of a block with one name in ViT, BEiT, the published checkpoints and here."""
BLOCK = {"scale1": "gamma_1", "scale2": "gamma_2"} | {name: name for name in (*SAME, "attn.q_bias", "attn.v_bias")}


def plan(tensors: Mapping[str, Tensor], where: str, args: ConvertArgs) -> Plan:
    """Return what a published EVE checkpoint becomes. Raises UserError."""
    tensors = with_present_names(convert.without(tensors, args.drop, where))
    sizes, model, section = infer(tensors, where, args.num_heads)
    model = replace(model, routing=args.routing)
    guess = "" if args.num_heads else "; heads are 64 wide, else give --num-heads"
    return Plan(
        tensors=tensors,
        sizes=replace(sizes, padded_text_length=min(args.text_tokens, sizes.text_length)),
        model=model,
        section=section,
        table=key_table(model, section),
        shapes={PATCHES: (model.embed_dim, 3, sizes.patch_size, sizes.patch_size)},
        unused=UNUSED,
        relative_hint="; attention here has no relative positions",
        words=WORDS,
        max_words=heads_class(type(section)).published.words if args.clean_text else None,
        positions="image.positions",
        finish=lambda ours, _: flatten_patches(ours),
        notes=f"; routing {args.routing}{guess}",
    )


EVE = Family(title="an EVE checkpoint", flags=("routing", "text_tokens", "clean_text"), matches=lambda _: True, plan=plan)


def with_present_names(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of the key table."""
    for kind in kinds_of(TaskConfig).values():
        for older, name in heads_class(kind).published.older_names.items():
            if older in published:
                published[name] = published.pop(older)
    return published


def infer(published: Mapping[str, Tensor], where: str, num_heads: int = 0) -> tuple[InputConfig, EveModelConfig, TaskConfig]:
    """Return a published checkpoint's sizes, model and task from its tensors. Raises UserError."""
    try:
        width, _, patch_size, _ = published[PATCHES].shape
        positions = len(published["backbone.pos_embed_vision"])
        text_length = len(published["backbone.pos_embed_text"])
        blocks = convert.numbers_after(BLOCKS, published)
        deep = convert.numbers_after(BLOCKS, [name for name in published if EXPERTS in name])
        experts = {int(name.partition(EXPERTS)[2].split(".")[0]) for name in published if EXPERTS in name}
        ffn_dim = len(next(tensor for name, tensor in published.items() if name.endswith("fc1.bias")))
        # last task first: a fine-tuned checkpoint may still have heads of earlier training
        heads = (heads_class(kind).published for kind in reversed(kinds_of(TaskConfig).values()))
        section = next(filter(None, (head.settings(published, width) for head in heads)), HeadlessConfig())
    except convert.ODD as error:
        first = ", ".join(sorted(published)[:3])
        raise UserError(
            f"{where}: not a published EVE checkpoint ({error or 'a feed-forward network'} is missing or unusual), nor a BEiT "
            f"or ViT image encoder (patch_embed.proj.weight, blocks.0…); it holds {first} …"
        ) from None
    depth = convert.count_numbered(blocks, "blocks", where)
    if deep != set(range(depth - len(deep), depth)):
        raise UserError(f"{where}: experts in blocks {sorted(deep)} of {depth}; only the last blocks may have them")
    sizes = InputConfig(
        image_size=convert.side_of(positions, where) * patch_size, patch_size=patch_size, text_length=text_length
    )
    model = EveModelConfig(
        embed_dim=width,
        depth=depth,
        num_heads=convert.heads_of(width, num_heads, where),
        mlp_ratio=ffn_dim / width,
        num_deep_blocks=len(deep),
        num_experts=convert.count_numbered(experts, "experts", where) or 1,
        top_k=min(2, len(experts) or 1),
        modality_routing=any(name.endswith("moe.text_embed") for name in published),
    )
    return sizes, model, section


def key_table(model: EveModelConfig, task: TaskConfig) -> Keys:
    """Return the published names of each of our tensors, several for a stack.

    The published models must have these blocks and this head.
    """
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
    """Return the buffers that the published models keep and never use."""
    return dict(zip(UNUSED, (torch.arange(1 + sizes.num_patches)[None], torch.arange(sizes.text_length)), strict=True))


def flatten_patches(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors of the key table with the convolution over patches as a matrix."""
    return ours | {"encoder.image.proj.weight": ours["encoder.image.proj.weight"].flatten(1)}


def to_published(ours: Mapping[str, Tensor], table: Keys, sizes: InputConfig) -> dict[str, Tensor]:
    """Return the published tensors of ours, with the buffers."""
    published = buffers(sizes)
    for name, theirs in table.items():
        published |= zip(theirs, ours[name].unbind() if len(theirs) > 1 else (ours[name],), strict=True)
    return published | {PATCHES: published[PATCHES].view(-1, 3, sizes.patch_size, sizes.patch_size)}


def export_published(run: Path, target: Path) -> str:
    """Write a run's weights under the published names and return a summary.

    The run must be of a published kind. target: .safetensors, or .pth for a torch file. Raises UserError.
    """
    if target.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{target}: name a .safetensors or .pth file")
    if target.exists():
        raise UserError(f"{target}: already exists; name a new file")
    folder = checkpoint.chosen_checkpoint(run)
    config = read_config(folder)
    if problems := _unpublished(config):
        raise UserError(f"{run}: the published models have no {', no '.join(problems)}, so they cannot take its weights")
    assert isinstance(config.model, EveModelConfig)
    checkpoint.verify(folder, "model.safetensors")
    table, ours = key_table(config.model, config.task), checkpoint.read_model(folder)
    left_out = sorted(ours.keys() - table.keys())
    if missing := sorted(table.keys() - ours.keys()):
        raise UserError(f"{run}: lacks {', '.join(missing[: convert.MAX_LISTED])}")
    published = to_published(ours, table, config.input)
    checkpoint.save_weights(target, published)
    words = f"{len(published)} tensors"
    if left_out:
        words += f"; left out {len(left_out)} that the published models do not have: {parts(left_out)}"
    if config.model.routing == "dropless":
        words += "; the published code routes differently (to import it again: --routing dropless --text-tokens 0)"
    return words


def _unpublished(config: Config) -> list[str]:
    """Return the parts of a run that the published models lack."""
    model, task = config.model, config.task
    if not isinstance(model, EveModelConfig):
        return [f"model {model.name}"]
    unusual = [
        f"{policy} feed-forward part in block {block}"
        for block, policy in enumerate(model.ffn_policies)
        if policy != ("moe" if block >= model.depth - model.num_deep_blocks else "modality")
    ]
    others = {
        f"activation {model.activation}": model.activation != "quick_gelu",
        "model without a norm before the first block": not model.norm_pre,
        f"stem of {model.stem}": model.stem != "linear",
        f"{model.positions} positions": model.positions != "learned",
        f"text embedding of {model.text_embedding}": model.text_embedding != "eve",
        "pooler": model.pooler,
        f"top {model.top_k} routing": model.top_k != 2 and model.num_deep_blocks > 0,
    }
    unusual += [words for words, has_it in others.items() if has_it]
    if heads_class(type(task)).published.keys(task) is None:
        own = [each.name for each in fields(task) if getattr(task, each.name) != each.default]
        unusual.append(f"{task.name} head with {' and '.join(f'{name} {getattr(task, name)}' for name in own)}")
    return unusual
