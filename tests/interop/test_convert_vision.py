"""Image encoders under the names of transformers, their image sizes, damaged files."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BeitConfig,
    BeitModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from eve_vl.run.loading import load_run
from tests.interop.test_convert import timm_model, tiny, tokenizer_of_500  # noqa: F401

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
FLAGS = ("--num-deep-blocks", 1, "--num-experts", 4, "--num-heads", 2)


def of_transformers(kind: str) -> Any:
    """A tiny image encoder of transformers with weights that are nowhere 0 or 1."""
    torch.manual_seed(3)
    sizes = SIZES | {
        "intermediate_size": 256,
        "layer_norm_eps": 1e-6,
    }  # theirs, 1e-12, differs in the fifth decimal
    match kind:
        case "vit":
            model = ViTModel(ViTConfig(**sizes))
        case "vit with a head":
            model = ViTForImageClassification(ViTConfig(**sizes))
        case "beit":
            model = BeitModel(
                BeitConfig(**sizes, use_absolute_position_embeddings=True, use_mean_pooling=False)
            )
        case _:
            model = Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("names", ["as saved", "as in memory"])
@pytest.mark.parametrize("kind", ["vit", "vit with a head", "beit", "dinov2"])
def test_states_are_those_of_transformers(eve, tmp_path: Path, words, kind, names):
    source = of_transformers(kind)
    source.save_pretrained(tmp_path / "hub")  # under the names that files have had for years
    if names == "as in memory":
        save_file(source.state_dict(), tmp_path / "hub/model.safetensors")
    done = eve(
        "convert",
        "hub/model.safetensors",
        "run",
        "--tokenizer",
        words,
        *FLAGS,
        "--architecture",
        "source",
    )
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    assert (run.config.input.image_size, run.config.input.patch_size) == (32, 8)
    pixels = torch.randn(3, 3, 32, 32)
    encoder, theirs = run.task.encoder, getattr(source, "vit", source)
    with torch.no_grad():
        embedded = encoder.image(pixels).x_BND
        torch.testing.assert_close(embedded, theirs.embeddings(pixels))
        ours = encoder.encode(encoder.image(pixels), None).x_BND
        torch.testing.assert_close(ours, theirs(pixels).last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["beit with relative positions", "shared table"])
def test_dropped_relative_positions_still_tell_the_size(eve, tmp_path: Path, words, kind):
    tensors = timm_model("beit with relative positions").state_dict()
    if kind == "shared table":  # as in BEiT's pre-training
        tables = [name for name in tensors if "relative_position" in name]
        kept = {
            name.replace("blocks.0.attn", "rel_pos_bias"): tensors[name]
            for name in tables
            if "blocks.0" in name
        }
        tensors = {name: tensor for name, tensor in tensors.items() if name not in tables} | kept
    torch.save(tensors, tmp_path / "image.pth")
    flags = ("--tokenizer", words, *FLAGS, "--drop", "relative_position")
    assert eve("convert", "image.pth", "run", *flags).returncode == 0
    assert load_run(tmp_path / "run").config.input.image_size == 32
    assert eve("convert", "image.pth", "larger", *flags, "--image-size", 48).returncode == 0
    assert load_run(tmp_path / "larger").config.input.image_size == 48
    torch.save(
        {name: tensor for name, tensor in tensors.items() if "relative" not in name},
        tmp_path / "image.pth",
    )
    done = eve("convert", "image.pth", "other", *flags)
    assert done.returncode == 2
    assert (
        done.stderr
        == "eve: image.pth: has no positions, so the image size is unknown; give --image-size\n"
    )
    assert eve("convert", "image.pth", "other", *flags, "--image-size", 64).returncode == 0
    assert load_run(tmp_path / "other").config.input.image_size == 64


def test_positions_of_an_image_encoder_are_resized_on_request(eve, tmp_path: Path, words):
    torch.save(timm_model("vit").state_dict(), tmp_path / "image.pth")
    assert (
        eve(
            "convert", "image.pth", "run", "--tokenizer", words, *FLAGS, "--image-size", 48
        ).returncode
        == 0
    )
    assert load_run(tmp_path / "run").task.get_parameter("encoder.image.positions").shape == (
        37,
        64,
    )
    done = eve("convert", "image.pth", "other", "--tokenizer", words, *FLAGS, "--image-size", 49)
    assert done.returncode == 2 and "image_size 49 is not divisible by patch_size 8" in done.stderr


LAYER = "backbone.encoder.layers"
ODD = {  # what is done to a tensor, to some of each file, and what is said then
    "int": (lambda tensor: tensor.long(), "of whole numbers, "),
    "double": (lambda tensor: tensor.double(), "is float64, expected dense numbers"),
    "complex": (lambda tensor: tensor.cfloat(), "is complex64, expected dense numbers"),
    "float8": (
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        "is float8_e4m3fn, expected dense numbers",
    ),
    "quantised": (
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "is qint8, expected dense numbers",
    ),
    "sparse": (lambda tensor: tensor.to_sparse(), "is sparse_coo, expected dense numbers"),
    "meta": (lambda tensor: tensor.to("meta"), "expected dense numbers"),
    "NaN": (lambda tensor: torch.full_like(tensor, float("nan")), "holds NaN or infinity"),
    "infinity": (lambda tensor: torch.full_like(tensor, float("-inf")), "holds NaN or infinity"),
    "one": (lambda tensor: tensor.flatten()[:1].clone(), "has shape ("),
    "none": (lambda tensor: tensor[:0].clone(), ""),
    "scalar": (lambda tensor: torch.tensor(1.0), ""),
    "endless": (lambda tensor: torch.ones(1).expand(tensor.shape), "but the file holds less"),
}
FILES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "published": (
        lambda: tiny("retrieval"),
        (
            f"{LAYER}.0.mlp_imag.fc1.bias",
            f"{LAYER}.3.mlp_moe.moe.gate.wg.weight",
            "backbone.patch_embed.weight",
        ),
    ),
    "timm": (
        lambda: timm_model("vit").state_dict(),
        ("blocks.0.attn.qkv.bias", "blocks.1.norm1.weight", "pos_embed", "cls_token"),
    ),
    "transformers": (
        lambda: of_transformers("vit").state_dict(),
        (
            "layers.0.attention.k_proj.weight",
            "layers.2.attention.q_proj.bias",
            "embeddings.patch_embeddings.projection.weight",
        ),
    ),
}


def refused(eve, tmp_path: Path, words: Path, tensors: Any) -> str:
    """Convert a file, which must end in one line; return it."""
    torch.save(tensors, tmp_path / "odd.pth")
    vit = () if isinstance(tensors, dict) and "backbone.norm.weight" in tensors else FLAGS[:4]
    done = eve("convert", "odd.pth", "run", "--tokenizer", words, "--num-heads", 2, *vit)
    assert (
        done.returncode == 2
        and done.stderr.startswith("eve: odd.pth: ")
        and done.stderr.count("\n") == 1
    ), done.stderr
    assert not (tmp_path / "run").exists()
    return done.stderr


@pytest.mark.filterwarnings("ignore")  # of torch, about what it is asked for here
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", ODD)
def test_a_tensor_of_another_kind_is_named(eve, tmp_path: Path, words, file, change):
    make, names = FILES[file]
    edit, message = ODD[change]
    for name in names:
        tensors = dict(make())
        if (change == "one" and tensors[name].ndim > 1) or (change == "int" and "k_proj" in name):
            continue  # keys are joined with queries, which makes them float
        tensors[name] = edit(tensors[name])
        line = refused(eve, tmp_path, words, tensors)
        assert message in line, (name, line)


def test_numbers_of_blocks_are_not_believed(eve, tmp_path: Path, words):
    for tensors, name in (
        (tiny("retrieval"), f"{LAYER}.99999999.norm1.weight"),
        (tiny("retrieval"), f"{LAYER}.-1.norm1.weight"),
        (tiny("retrieval"), f"{LAYER}.3.mlp_moe.moe.experts.experts.99999999.fc1.bias"),
        (timm_model("vit").state_dict(), "blocks.99999999.norm1.weight"),
    ):
        line = refused(eve, tmp_path, words, tensors | {name: torch.ones(64)})
        assert " unknown: " in line and " missing: " in line, line


def test_a_file_that_unpacks_to_more_than_it_is_is_refused(eve, tmp_path: Path, words):
    torch.save(timm_model("vit").state_dict(), tmp_path / "image.pth")
    with (
        zipfile.ZipFile(tmp_path / "image.pth") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in whole.infolist():
            bomb.writestr(
                part.filename, whole.read(part) if "data/0" not in part.filename else bytes(10**7)
            )
    done = eve("convert", "bomb.pth", "run", "--tokenizer", words, *FLAGS)
    assert done.returncode == 2 and "bomb.pth: refused: it is compressed" in done.stderr


@pytest.mark.parametrize(
    "content",
    [[torch.ones(2)], torch.ones(2), "text", {"model": {"a": 1}}, {"a": {"b": torch.ones(1)}}, {}],
)
def test_what_holds_no_weights_by_name_is_refused(eve, tmp_path: Path, words, content: Any):
    assert "holds no weights by name" in refused(eve, tmp_path, words, content)
