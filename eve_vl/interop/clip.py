"""Conversion of CLIP, SigLIP and SigLIP 2 into runs of two towers.

Checkpoints are as transformers and open_clip save them.

| theirs | ours |
|---|---|
| pixel mean and deviation | in the patch projection and its bias |
| biases of keys | none: softmax ignores a constant added to all scores of a query |
| no LayerScale, no type embeddings | ones, zeros |
| logarithm of a scale of similarities | its temperature, 1 / scale |
| SigLIP projects no image | an identity, which fine-tuning may change |
| the token that fills texts | [PAD] has its embedding |
| SigLIP 2 with patches of any aspect ratio (NaFlex) | refused |
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config import DualEncoderConfig, InputConfig
from eve_vl.data.clip_tokenizers import read_published
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop.checkpoint_shapes import (
    count_numbered,
    patches_per_side,
    width_and_patch_size,
)
from eve_vl.interop.clip_settings import HIGHEST, ClipSettings, read_settings
from eve_vl.interop.convert import Conversion, Family
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.foreign_weights import checked_tensors, read_tensors, rename, renamed
from eve_vl.interop.pixel_scale import bias_of_our_pixels, projection_of_our_pixels
from eve_vl.interop.weight_table import (
    MULTIHEAD,
    Computed,
    WeightTable,
    concatenate,
    with_prefixes,
)
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.utils.errors import UserError

WEIGHT_FILES = (
    r"model\.safetensors",
    r"model-\d+-of-\d+\.safetensors",
    r"open_clip_model\.safetensors",
    r"pytorch_model\.bin",
    r"open_clip_pytorch_model\.bin",
)
"""Names of files with weights, the first kind counts."""
COMMON_NAMES = {
    r"^vision_model\.|^visual\.(trunk\.)?": "image.",
    (
        r"^text_model\.|^text\."
        r"|^(?=(token_embedding|positional_embedding|transformer|ln_final|text_projection)\b)"
    ): "text.",
    r"^visual_projection\.": "image.projection.",
    r"^text\.(text_projection|head)\b": "text.projection",
    r"^image\.proj$": "image.projection",
    r"\.(encoder\.layers|transformer\.resblocks)\.": ".blocks.",
    r"\.embeddings\.": ".",
    r"^image\.class_embedding$": "image.cls",
    r"^image\.(patch_embedding|conv1|patch_embed\.proj)\.": "image.patches.",
    r"\.(position_embedding\.weight|positional_embedding|pos_embed)$": ".positions",
    r"^text\.token_embedding\.weight$": "text.words",
    r"^image\.(pre_layrnorm|ln_pre)\.": "image.norm_pre.",
    r"^(image|text)\.(post_layernorm|ln_post|final_layer_norm|ln_final)\.": r"\1.norm.",
    r"\.(layer_norm|ln_)([12])\.": r".norm\2.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
    r"\.self_attn\.": ".attn.",
    r"\.attn\.qkv\.(weight|bias)$": r".attn.in_proj_\1",
    r"(?<=\d)\.attn\.proj\.": ".attn.out_proj.",
    r"^image\.(head|attn_pool)\.(probe|latent)$": "image.pool.query",
    r"^image\.head\.attention\.": "image.pool.attn.",
    r"^image\.attn_pool\.(q|kv)\.": r"image.pool.attn.\1.",
    r"^image\.attn_pool\.proj\.": "image.pool.attn.out_proj.",
    r"^image\.(head|attn_pool)\.(layernorm|norm)\.": "image.pool.norm.",
    r"^image\.(head|attn_pool)\.mlp\.": "image.pool.mlp.",
}
"""Patterns of the names of transformers, open_clip and timm, and one name for each tensor."""
UNUSED = r".*\.position_ids$|.*\.k_proj\.bias$|.*attn_mask$"
common_name = partial(rename, rules=COMMON_NAMES)


def weight_files(names: Iterable[str]) -> list[str]:
    """Return the names of files with weights, of the first kind in WEIGHT_FILES."""
    names = sorted(names)
    for pattern in WEIGHT_FILES:
        matching = [name for name in names if re.fullmatch(pattern, name)]
        if matching:
            return matching
    return []


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a folder. Raises UserError."""
    names = weight_files(path.name for path in folder.iterdir())
    if not names:
        raise UserError(
            f"{folder}: holds no weights (model.safetensors, open_clip_model.safetensors or "
            "pytorch_model.bin)"
        )
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= read_tensors(folder / name)
    return tensors


def is_clip(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are those of a CLIP or SigLIP."""
    return {"image.patches.weight", "text.words"} <= {common_name(name) for name in tensors}


def plan(tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Conversion:
    """Return what a published CLIP or SigLIP becomes. Raises UserError."""
    folder = args.source if args.source.is_dir() else args.source.parent
    settings = read_settings(folder)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("attn_mask")}
    tensors = renamed(tensors, common_name, where)
    tensors = checked_tensors(tensors, args.drop, where)
    sizes = _sizes(tensors, settings, where)
    _check_stated_sizes(tensors, sizes, settings)
    tokenizer_path = args.tokenizer or folder
    tokenizer, filling_token = read_published(
        tokenizer_path, is_siglip=settings.is_siglip, cleans=settings.strips_punctuation
    )
    num_tokens = tokenizer.vocab_size - len(tokenizer.added)
    num_embeddings = len(tensors["text.words"])
    if num_embeddings < num_tokens:
        raise UserError(
            f"{tokenizer_path}: has {num_tokens} tokens, but the checkpoint has embeddings for "
            f"{num_embeddings}"
        )
    if not settings.is_siglip:
        _check_end_of_texts(tokenizer, num_tokens, settings)
    table = key_table(tensors, settings)
    table["encoder.text.embed.words.weight"] = Computed(
        partial(_with_padding, tokenizer, filling_token), ("text.words",)
    )
    return Conversion(
        tensors=tensors,
        sizes=sizes,
        model=_model(tensors, settings, args.num_heads),
        section=RetrievalConfig(itm_weight=0.0, rerank=0, projection_dim=_feature_dim(tensors)),
        table=table,
        recipe_name=settings.towers,
        tokenizer=tokenizer,
        unused=UNUSED,
        notes=settings.notes,
    )


CLIP = Family("a CLIP or SigLIP checkpoint", (), is_clip, plan)


def _sizes(tensors: Mapping[str, Tensor], settings: ClipSettings, where: str) -> InputConfig:
    num_positions = tensors["image.positions"].shape[:-1].numel()
    if settings.is_siglip:  # it has no [CLS]
        num_positions += 1
    _, patch_size = width_and_patch_size(tensors["image.patches.weight"], where)
    text_length = len(tensors["text.positions"])
    sizes: dict[str, Any] = {
        "resize": settings.images.resize,
        "interpolation": settings.images.interpolation,
    }
    return InputConfig(
        **sizes,
        image_size=patches_per_side(num_positions, where) * patch_size,
        patch_size=patch_size,
        text_length=text_length,
        padded_text_length=text_length if settings.is_siglip else 0,
    )


def _model(
    tensors: Mapping[str, Tensor], settings: ClipSettings, num_heads: int
) -> DualEncoderConfig:
    image_dim = tensors["image.norm.weight"].numel()
    text_dim = tensors["text.norm.weight"].numel()
    names: dict[str, Any] = {"towers": settings.towers, "activation": settings.activation}
    return DualEncoderConfig(
        **names,
        dropout=0.0,
        num_heads=num_heads or settings.num_heads,
        text_num_heads=settings.text_num_heads,
        embed_dim=image_dim,
        mlp_ratio=tensors["image.blocks.0.mlp.fc1.bias"].numel() / image_dim,
        image_depth=count_numbered("image.blocks.*.", tensors),
        text_dim=text_dim,
        text_mlp_ratio=tensors["text.blocks.0.mlp.fc1.bias"].numel() / text_dim,
        text_depth=count_numbered("text.blocks.*.", tensors),
    )


def _feature_dim(tensors: Mapping[str, Tensor]) -> int:
    """Return the width of features."""
    if "text.projection" in tensors:  # open_clip multiplies from the right
        return tensors["text.projection"].shape[1]
    return len(tensors["text.projection.weight"])


def sizes_of(tensors: Mapping[str, Tensor], sizes: InputConfig) -> dict[str, int]:
    """Return the sizes of weights that a config may state, by names for messages."""
    numbers = {
        "vision channels": tensors["image.patches.weight"].shape[1],
        "vision patch size": sizes.patch_size,
        "vision image size": sizes.image_size,
        "text positions": sizes.text_length,
        "text tokens": len(tensors["text.words"]),
        "features": _feature_dim(tensors),
    }
    for name, tower in (("vision", "image"), ("text", "text")):
        numbers[f"{name} width"] = tensors[f"{tower}.norm.weight"].numel()
        numbers[f"{name} hidden width"] = tensors[f"{tower}.blocks.0.mlp.fc1.bias"].numel()
        numbers[f"{name} layers"] = count_numbered(f"{tower}.blocks.*.", tensors)
    return numbers


def _check_stated_sizes(
    tensors: Mapping[str, Tensor], sizes: InputConfig, settings: ClipSettings
) -> None:
    """Raise UserError if the config states another size than the weights have."""
    numbers = sizes_of(tensors, sizes)
    for stated in settings.stated_sizes:
        if numbers[stated.size] != stated.value:
            raise UserError(
                f"{settings.path}: {stated.field} is {stated.value}, but the weights have "
                f"{stated.size} {numbers[stated.size]}; take config and weights of one model"
            )


def _check_end_of_texts(tokenizer: Tokenizer, num_tokens: int, settings: ClipSettings) -> None:
    """Raise UserError if CLIP's features are of another token than the last of each text."""
    end_id = settings.end_id
    if end_id == HIGHEST:
        end_id = num_tokens - 1
    if tokenizer.end_id != end_id:
        raise UserError(
            f"{settings.path}: reads texts at token {end_id}, but those of {tokenizer.where} end "
            f"with token {tokenizer.end_id}; take config and tokenizer of one model"
        )


def key_table(tensors: Mapping[str, Tensor], settings: ClipSettings) -> dict[str, Any]:
    """Return the source of each of our tensors outside the tokens' embeddings."""
    patches = ["image.patches.weight"]
    if settings.is_siglip:
        patches.append("image.patches.bias")
    mean = settings.images.mean
    std = settings.images.std
    table: dict[str, Any] = {
        "encoder.image.embed.proj.weight": Computed(
            partial(_patch_projection, std=std), ("image.patches.weight",)
        ),
        "encoder.image.embed.proj.bias": Computed(
            partial(bias_of_our_pixels, mean=mean, std=std), tuple(patches)
        ),
        "encoder.image.embed.cls": "image.cls",
        "encoder.image.norm_pre": "image.norm_pre",
        "contrast.features.temperature": Computed(
            lambda log_scale: (-log_scale).exp().squeeze(), ("logit_scale",)
        ),
        "contrast.features.logit_bias": Computed(torch.squeeze, ("logit_bias",)),
        "contrast.features.text.bias": "text.projection.bias",
    }
    for tower in ("image", "text"):
        block = _block_table(tower, tensors)
        table |= with_prefixes(f"encoder.{tower}.blocks.*.", f"{tower}.blocks.*.", block)
        table[f"encoder.{tower}.embed.positions"] = Computed(
            lambda positions: positions.flatten(0, -2), (f"{tower}.positions",)
        )
        table[f"encoder.{tower}.embed.type_embed"] = 0.0
        table[f"encoder.{tower}.norm"] = f"{tower}.norm"
        table[f"contrast.features.{tower}.weight"] = _projection(tower, tensors, settings)
    if settings.is_siglip:
        table |= with_prefixes("encoder.image.pool.", "image.pool.", _pool_table(tensors))
    return table


def _block_table(tower: str, tensors: Mapping[str, Tensor]) -> WeightTable:
    return {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attn.out_proj",
        "scale1": 1.0,
        "scale2": 1.0,
        "ffn.fc1": "mlp.fc1",
        "ffn.fc2": "mlp.fc2",
        **with_prefixes("attn.", "attn.", _attention(f"{tower}.blocks.0.attn.", tensors)),
    }


def _pool_table(tensors: Mapping[str, Tensor]) -> WeightTable:
    """Return the sources of SigLIP's attention pooling."""
    return {
        "norm": "norm",
        "attn.proj": "attn.out_proj",
        "ffn.fc1": "mlp.fc1",
        "ffn.fc2": "mlp.fc2",
        "query": Computed(torch.flatten, ("query",)),
        **with_prefixes("attn.", "attn.", _attention("image.pool.attn.", tensors)),
    }


def _attention(prefix: str, tensors: Mapping[str, Tensor]) -> WeightTable:
    """Return the sources of queries, keys and values: one, two or three tensors."""
    if f"{prefix}in_proj_weight" in tensors:
        return MULTIHEAD
    if f"{prefix}kv.weight" in tensors:
        return {
            "qkv.weight": Computed(concatenate, ("q.weight", "kv.weight")),
            "q_bias": "q.bias",
            "v_bias": Computed(lambda bias: bias.chunk(2)[1], ("kv.bias",)),
        }
    return {
        "qkv.weight": Computed(concatenate, ("q_proj.weight", "k_proj.weight", "v_proj.weight")),
        "q_bias": "q_proj.bias",
        "v_bias": "v_proj.bias",
    }


def _projection(
    tower: str, tensors: Mapping[str, Tensor], settings: ClipSettings
) -> str | Computed:
    """Return the source of the projection of a tower's features.

    It is an identity for SigLIP's images, which have none.
    """
    name = f"{tower}.projection"
    if settings.is_siglip and tower == "image":
        width = tensors["image.norm.weight"].numel()
        return Computed(lambda: torch.eye(width), ())
    if name in tensors:  # open_clip multiplies from the right
        return Computed(torch.t, (name,))
    return f"{name}.weight"


def _patch_projection(conv_DCPP: Tensor, std: tuple[float, ...]) -> Tensor:
    return projection_of_our_pixels(conv_DCPP, std).flatten(1)


def _with_padding(tokenizer: Tokenizer, filling_token: int, words: Tensor) -> Tensor:
    """Return embeddings of all tokens; the token that fills texts has that of `filling_token`."""
    num = tokenizer.vocab_size
    words = F.pad(words[:num], (0, 0, 0, num - min(num, len(words))))
    words[tokenizer.pad_id] = words[filling_token]
    return words
