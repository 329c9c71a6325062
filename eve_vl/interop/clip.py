"""Conversion of CLIP, SigLIP and SigLIP 2 into runs of two towers.

Checkpoints are as transformers and open_clip save them. A hub's hf:ORG/NAME is downloaded and converted once.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.builtin.names import HUB_PREFIX
from eve_vl.config import DualEncoderConfig, InputConfig
from eve_vl.data.clip_tokenizers import read_published
from eve_vl.interop import ConvertArgs, convert
from eve_vl.interop.convert import CLIP_MEAN, CLIP_STD, Family, Made, Plan, Table, under
from eve_vl.run.start_folder import hub_cache_folder
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.utils.console import print_line
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import read_json, reporting_write_errors
from eve_vl.utils.file_lock import file_lock

OPEN_CLIP = "open_clip_config.json"
TEXTS = ("*.json", "*.txt", "*.model")  # config, preprocessing, tokenizer
WEIGHTS = (
    r"model(-\d+-of-\d+)?\.safetensors",
    r"open_clip_model\.safetensors",
    r"pytorch_model\.bin",
    r"open_clip_pytorch_model\.bin",
)
"""Names of files with weights, the first kind counts."""
NAMES = {
    r"^vision_model\.|^visual\.(trunk\.)?": "image.",
    r"^text_model\.|^text\.|^(?=(token_embedding|positional_embedding|transformer|ln_final|text_projection)\b)": "text.",
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
_name = partial(convert.renamed, rules=NAMES)
KINDS = ("clip", "siglip", "siglip2")  # of transformers' models
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
RESIZING = {"squash": "squash", "shortest": "crop"}  # of open_clip
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
WIDE_HEADS = 16  # of timm's SigLIP encoders wider than 1024
PLAIN_OPTIONS = re.compile(
    "embed_dim|vision_cfg|text_cfg|quick_gelu|custom_text|init_logit_bias|init_logit_scale|image_size|layers|width|head_width|"
    "mlp_ratio|patch_size|timm_model_name|timm_model_pretrained|timm_pool|timm_proj|context_length|vocab_size|"
    "hf_tokenizer_name|tokenizer_kwargs|heads|no_causal_mask|proj_bias|pool_type|norm_kwargs|act_kwargs"
)
"""Options of open_clip that need nothing besides tensors and what is read here."""


class About(NamedTuple):
    """What a model's tensors do not say."""

    model: dict[str, Any]
    """Fields of its section."""
    sizes: dict[str, Any]
    """Fields of the section of inputs."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_siglip: bool
    cleans: bool = False
    """Whether texts lose punctuation, with any tokenizer."""


def is_published(folder: Path) -> bool:
    """Return whether a folder is one of transformers or open_clip."""
    return (folder / OPEN_CLIP).is_file() or _is_of_transformers(folder)


def _is_of_transformers(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json(config, dict).get("model_type") in KINDS


def weight_files(names: Iterable[str]) -> list[str]:
    """Return the names of files with weights, of the first kind in WEIGHTS."""
    listed = sorted(names)
    found = ([name for name in listed if re.fullmatch(pattern, name)] for pattern in WEIGHTS)
    return next(filter(None, found), [])


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a folder. Raises UserError."""
    if not (names := weight_files(path.name for path in folder.iterdir())):
        raise UserError(
            f"{folder}: holds no weights (model.safetensors, open_clip_model.safetensors or pytorch_model.bin)"
        )
    return {
        name: tensor
        for file in names
        for name, tensor in convert.read_tensors(folder / file).items()
    }


def plan(tensors: dict[str, Tensor], where: str, args: ConvertArgs) -> Plan:
    """Return the plan of a published CLIP or SigLIP. Raises UserError."""
    folder = args.source if args.source.is_dir() else args.source.parent
    is_open_clip = (folder / OPEN_CLIP).is_file() and not _is_of_transformers(folder)
    about = _of_open_clip(folder) if is_open_clip else _of_transformers(folder)
    named = {
        _name(name): tensor for name, tensor in tensors.items() if not name.endswith("attn_mask")
    }
    named = convert.without(named, args.drop, where)
    tokenizer, fill = read_published(
        args.tokenizer or folder, is_siglip=about.is_siglip, cleans=about.cleans
    )
    least, words = tokenizer.vocab_size - len(tokenizer.added), len(named["text.words"])
    if words < least:
        raise UserError(
            f"{args.tokenizer or folder}: has {least} tokens, but the checkpoint has embeddings for {words}"
        )
    num_positions, text_length = (
        named["image.positions"].shape[:-1].numel(),
        len(named["text.positions"]),
    )
    patch_size, side = (
        named["image.patches.weight"].shape[-1],
        convert.side_of(num_positions + about.is_siglip, where),
    )
    shape: dict[str, Any] = {"num_heads": args.num_heads} if args.num_heads else {}
    for tower, dim_name, ratio in (
        ("image", "embed_dim", "mlp_ratio"),
        ("text", "text_dim", "text_mlp_ratio"),
    ):
        dim, hidden = (
            named[f"{tower}.{name}"].numel() for name in ("norm.weight", "blocks.0.mlp.fc1.bias")
        )
        shape |= {
            dim_name: dim,
            ratio: hidden / dim,
            f"{tower}_depth": convert.count(f"{tower}.blocks.*.", named),
        }
    sizes: dict[str, Any] = {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "text_length": text_length,
    }
    sizes |= {"padded_text_length": text_length * about.is_siglip}
    embed = partial(_with_padding, tokenizer.vocab_size, tokenizer.pad_id, fill)
    of_text = named.get("text.projection.weight", named.get("text.projection", torch.empty(0, 0)).T)
    model = DualEncoderConfig(fusion_depth=0, pixel_layer=0, dropout=0.0, **about.model | shape)
    section = RetrievalConfig(itm_weight=0.0, rerank=0, projection_dim=len(of_text))
    table = key_table(named, about) | {
        "encoder.text.embed.words.weight": Made(embed, ("text.words",))
    }
    more: dict[str, Any] = {
        "section": section,
        "table": table,
        "name": about.model["towers"],
        "tokenizer": tokenizer,
    }
    return Plan(
        tensors=named,
        sizes=InputConfig(**(about.sizes | sizes)),
        model=model,
        unused=UNUSED,
        **more,
    )


FAMILY = Family(
    "a CLIP or SigLIP checkpoint",
    (),
    lambda tensors: {"image.patches.weight", "text.words"} <= {*map(_name, tensors)},
    plan,
)


def key_table(tensors: Mapping[str, Tensor], about: About) -> dict[str, Any]:
    """Return the source of each of our tensors outside the tokens' embeddings."""
    copied = {name: name for name in ("norm1", "norm2")} | {
        "attn.proj": "attn.out_proj",
        "scale1": 1.0,
        "scale2": 1.0,
    }
    copied |= {f"ffn.{layer}": f"mlp.{layer}" for layer in ("fc1", "fc2")}
    mean, std = about.mean, about.std
    patches = (
        "image.patches.weight",
        *(["image.patches.bias"] if "image.patches.bias" in tensors else []),
    )
    table: dict[str, Any] = {
        "encoder.image.embed.proj.weight": Made(
            lambda conv: convert.of_our_pixels(conv, std).flatten(1), patches[:1]
        ),
        "encoder.image.embed.proj.bias": Made(
            partial(convert.bias_of_our_pixels, mean=mean, std=std), patches
        ),
        "encoder.image.embed.cls": "image.cls",
        "encoder.image.norm_pre": "image.norm_pre",
        "contrast.features.temperature": Made(
            lambda log_scale: (-log_scale).exp().squeeze(), ("logit_scale",)
        ),
        "contrast.features.logit_bias": Made(torch.squeeze, ("logit_bias",)),
        "contrast.features.text.bias": "text.projection.bias",
    }
    for side in ("image", "text"):
        block = copied | under("attn.", "attn.", _attention(f"{side}.blocks.0.attn.", tensors))
        table |= under(f"encoder.{side}.blocks.*.", f"{side}.blocks.*.", block)
        table[f"encoder.{side}.embed.positions"] = Made(
            lambda positions: positions.flatten(0, -2), (f"{side}.positions",)
        )
        table |= {f"encoder.{side}.embed.type_embed": 0.0, f"encoder.{side}.norm": f"{side}.norm"}
        table[f"contrast.features.{side}.weight"] = _projection(f"{side}.projection", tensors)
    if about.is_siglip:
        pool = {
            "norm": "norm",
            "attn.proj": "attn.out_proj",
            "ffn.fc1": "mlp.fc1",
            "ffn.fc2": "mlp.fc2",
        }
        pool |= {"query": Made(torch.flatten, ("query",))} | under(
            "attn.", "attn.", _attention("image.pool.attn.", tensors)
        )
        table |= under("encoder.image.pool.", "image.pool.", pool)
    return table


def _attention(start: str, tensors: Mapping[str, Tensor]) -> Table:
    """Return the sources of queries, keys and values: one, two or three tensors."""
    if f"{start}in_proj_weight" in tensors:
        return convert.MULTIHEAD
    own = ("q", "kv") if f"{start}kv.weight" in tensors else ("q_proj", "k_proj", "v_proj")
    last = Made(lambda bias: bias.chunk(2)[1], ("kv.bias",)) if len(own) == 2 else "v_proj.bias"
    weight = Made(convert.joined, tuple(f"{name}.weight" for name in own))
    return {"qkv.weight": weight, "q_bias": f"{own[0]}.bias", "v_bias": last}


def _projection(name: str, tensors: Mapping[str, Tensor]) -> str | Made:
    if name in tensors:  # open_clip multiplies from the right
        return Made(torch.t, (name,))
    width = tensors["image.norm.weight"].numel()
    return f"{name}.weight" if f"{name}.weight" in tensors else Made(lambda: torch.eye(width), ())


def _with_padding(num: int, pad_id: int, fill: int, words: Tensor) -> Tensor:
    """Return embeddings of num tokens; the token that fills texts has that of `fill`."""
    words = F.pad(words[:num], (0, 0, 0, num - min(num, len(words))))
    words[pad_id] = words[fill]
    return words


def _of_transformers(folder: Path) -> About:
    """Return what transformers' files say. Raises UserError."""
    where = folder / "config.json"
    config = read_json(where, dict)
    kind = config.get("model_type")
    if kind == "siglip2":
        raise UserError(
            f"{where}: SigLIP 2 with images of any aspect ratio (NaFlex) is not supported; take a fixed resolution"
        )
    if kind not in ("clip", "siglip"):
        raise UserError(
            f"{where}: is a {kind} model; CLIP, SigLIP and SigLIP 2 of fixed resolution can be read"
        )
    is_clip = kind == "clip"
    act, eps = ("quick_gelu", 1e-5) if is_clip else ("gelu_pytorch_tanh", 1e-6)
    usual = {"hidden_act": act, "layer_norm_eps": eps, "image_size": 224}
    image, text = (
        usual
        | {"num_attention_heads": heads}
        | config.get(f"{side}_config", {})
        | (config.get(f"{side}_config_dict") or {})
        for side, heads in (("vision", 12), ("text", 8 if is_clip else 12))
    )
    found = {(each["hidden_act"], each["layer_norm_eps"]) for each in (image, text)}
    if len(found) > 1 or image["hidden_act"] not in ACTIVATIONS or image["layer_norm_eps"] != eps:
        raise UserError(
            f"{where}: towers with hidden_act and layer_norm_eps {sorted(found)} are not supported"
        )
    files = [
        path
        for name in ("preprocessor_config.json", "processor_config.json")
        if (path := folder / name).is_file()
    ]
    images = read_json(files[0], dict) if files else {}
    images = images.get("image_processor", images)
    size, resample = (
        images.get("size", {"shortest_edge": image["image_size"]} if is_clip else {}),
        images.get("resample", 3),
    )
    sides = {size} if isinstance(size, int) else {*size.values()}
    if resample not in RESAMPLING or not sides <= {image["image_size"]}:
        wanted = f"2 (bilinear) or 3 (bicubic), and size {image['image_size']}"
        raise UserError(
            f"{files[0]}: has resample {resample} and size {size}; only resample {wanted} can be read"
        )
    half = (0.5, 0.5, 0.5)
    heads = {
        "num_heads": image["num_attention_heads"],
        "text_num_heads": text["num_attention_heads"],
    }
    resize = "crop" if isinstance(size, int) or "shortest_edge" in size else "squash"
    return About(
        {"towers": kind, "activation": ACTIVATIONS[image["hidden_act"]], **heads},
        {"resize": resize, "interpolation": RESAMPLING[resample]},
        tuple(images.get("image_mean", CLIP_MEAN if is_clip else half)),
        tuple(images.get("image_std", CLIP_STD if is_clip else half)),
        not is_clip,
    )


def _of_open_clip(folder: Path) -> About:
    """Return what open_clip's file says. Raises UserError."""
    where = folder / OPEN_CLIP
    config = read_json(where, dict)
    model, images = config["model_cfg"], config.get("preprocess_cfg", {})
    image, text = model["vision_cfg"], model["text_cfg"]
    is_siglip = "timm_model_name" in image
    given = {name for part in (model, image, text) for name, value in part.items() if value}
    if odd := sorted(name for name in given if not PLAIN_OPTIONS.fullmatch(name)):
        raise UserError(f"{where}: {', '.join(odd)} of open_clip is not supported")
    pool_type, resize = text.get("pool_type", "argmax"), images.get("resize_mode", "shortest")
    if pool_type != ("last" if is_siglip else "argmax") or resize not in RESIZING:
        raise UserError(
            f"{where}: pool_type {pool_type} with resize_mode {resize} is not supported"
        )
    width = model["embed_dim"] if is_siglip else image["width"]
    wide = WIDE_HEADS if width > 1024 else width // convert.HEAD_WIDTH
    heads = {
        "num_heads": wide if is_siglip else width // image.get("head_width", convert.HEAD_WIDTH)
    }
    kind, act = (
        ("siglip", "gelu_tanh")
        if is_siglip
        else ("clip", "quick_gelu" if model.get("quick_gelu") else "gelu")
    )
    return About(
        {"towers": kind, "activation": act, "text_num_heads": text["heads"], **heads},
        {"resize": RESIZING[resize], "interpolation": images.get("interpolation", "bicubic")},
        tuple(images.get("mean", CLIP_MEAN)),
        tuple(images.get("std", CLIP_STD)),
        is_siglip,
        text.get("tokenizer_kwargs", {}).get("clean") == "canonicalize",
    )


def download_as_run(name: str) -> Path:
    """Return the run folder of hf:ORG/NAME in the cache, after its first download.

    Raises UserError.
    """
    run = hub_cache_folder(name)
    repository = name.removeprefix(HUB_PREFIX)
    if (run / "best").is_dir():
        return run
    with reporting_write_errors(run.parent):
        run.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(run.with_name(f"{run.name}.lock"), waits=True):  # for another download
        if not (run / "best").is_dir():
            folder = download(repository)
            args = ConvertArgs(source=folder, target=run)
            summary = convert.import_weights([FAMILY], read_folder(folder), args)
            print_line(f"{name}: {summary}, kept in {run}")
    return run


def download(repository: str) -> Path:
    """Return the folder of a model's files.

    Raises UserError, before the weights if they are of another kind.
    """
    where = HUB_PREFIX + repository
    try:
        import huggingface_hub

        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*TEXTS]))
        if is_published(folder):
            names = weight_files(huggingface_hub.list_repo_files(repository))
            return Path(
                huggingface_hub.snapshot_download(repository, allow_patterns=[*TEXTS, *names])
            )
    except UserError:  # of a damaged config
        raise
    except Exception as error:  # of the network, in the library's and other libraries' classes
        is_missing = isinstance(error, ModuleNotFoundError)
        fix = (
            "pip install 'eve-vl[hf]'"
            if is_missing
            else "check the name and the internet connection"
        )
        raise UserError(f"{where}: cannot be downloaded ({type(error).__name__}); {fix}") from None
    raise UserError(
        f"{where}: is none of CLIP, SigLIP and SigLIP 2, of transformers or open_clip; name another model"
    )
