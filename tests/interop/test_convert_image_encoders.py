"""ViT, BEiT and DINOv2 under the names of timm and transformers become encoders of runs."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eve_vl.run.loading import load_run
from helpers.complaints import complaint
from helpers.published import timm_model, tiny_published, transformers_model

pytestmark = pytest.mark.usefixtures("no_report")

HEADS = ("--num-heads", 2)
EXPERTS = ("--num-deep-blocks", 1, "--num-experts", 4)
VLMO = ("--architecture", "vlmo")
BLOCK = "backbone.encoder.layers"
RELATIVE = "beit with relative positions"


@pytest.mark.parametrize(
    ("kind", "copies", "num_deep"),
    [
        # copied experts give what the one network gives, whichever are chosen
        ("vit", "all", 2),
        ("beit", "all", 2),
        ("vit with layer scale", "text", 0),
        ("beit", "none", 0),
    ],
)
def test_features_are_those_of_timm(convert, tmp_path, kind, copies, num_deep):
    source = timm_model(kind)
    torch.save(source.state_dict(), tmp_path / "image.pth")
    experts = ("--num-deep-blocks", num_deep, "--num-experts", 4, "--copy", copies)
    convert("image.pth", "run", *HEADS, *experts, "--architecture", "source")
    encoder = load_run(tmp_path / "run").task.encoder
    pixels = torch.randn(3, 3, 32, 32)
    assert_close_features(encoder, pixels, source.forward_features(pixels))
    weights = encoder.state_dict()
    for block in range(3 - num_deep):
        text = weights[f"blocks.{block}.ffn.text.fc1.weight"]
        image = weights[f"blocks.{block}.ffn.image.fc1.weight"]
        assert torch.equal(text, image) is (copies != "none")


@torch.no_grad()
def assert_close_features(encoder: Any, pixels: Tensor, expected: Tensor) -> None:
    features = encoder.encode(encoder.image(pixels), None).x_BND
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", ["as saved", "as in memory"])
@pytest.mark.parametrize("kind", ["vit", "vit with a head", "beit", "dinov2"])
def test_states_are_those_of_transformers(convert, tmp_path: Path, kind, names):
    model = transformers_model(kind)
    model.save_pretrained(tmp_path / "hub")  # under the names that files have had for years
    if names == "as in memory":
        save_file(model.state_dict(), tmp_path / "hub/model.safetensors")
    convert("hub/model.safetensors", "run", *HEADS, *EXPERTS, "--architecture", "source")
    run = load_run(tmp_path / "run")
    assert (run.config.input.image_size, run.config.input.patch_size) == (32, 8)
    pixels = torch.randn(3, 3, 32, 32)
    encoder = run.task.encoder
    vit = getattr(model, "vit", model)
    torch.testing.assert_close(encoder.image(pixels).x_BND, vit.embeddings(pixels))
    assert_close_features(encoder, pixels, vit(pixels).last_hidden_state)


def test_pretraining_starts_from_an_image_encoder(eve, convert, tmp_path):
    torch.save({"model": timm_model("beit").state_dict()}, tmp_path / "image.pth")
    done = convert("image.pth", "run", *HEADS, *EXPERTS)
    assert "next: eve pretrain RECIPE --init run" in done.stdout
    few = ("--train.steps", 2, "--train.batch-size", 4, "--data.val-samples", 4)
    done = eve("pretrain", "tiny", "--init", "run", "--out", "more", *few)
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path / "more").config.model == load_run(tmp_path / "run").config.model
    assert "weights from" in (tmp_path / "more" / "log.jsonl").read_text() + done.stdout


@pytest.mark.parametrize("kind", ["table per block", "shared table"])
def test_dropped_relative_positions_still_tell_the_size(convert, tmp_path, kind):
    tensors = timm_model(RELATIVE).state_dict()
    if kind == "shared table":  # as in BEiT's pre-training
        for name in list(tensors):
            if "relative_position" in name:
                tensor = tensors.pop(name)
                if "blocks.0" in name:
                    tensors[name.replace("blocks.0.attn", "rel_pos_bias")] = tensor
    torch.save(tensors, tmp_path / "image.pth")
    flags = (*HEADS, *EXPERTS, "--drop", "relative_position")
    convert("image.pth", "run", *flags)
    assert load_run(tmp_path / "run").config.input.image_size == 32
    convert("image.pth", "larger", *flags, "--image-size", 48)
    assert load_run(tmp_path / "larger").config.input.image_size == 48


def test_an_image_encoder_without_positions_needs_the_image_size(eve, convert, tmp_path, words):
    tensors = timm_model(RELATIVE).state_dict()
    for name in list(tensors):
        if "relative" in name:
            del tensors[name]
    torch.save(tensors, tmp_path / "image.pth")
    line = complaint(eve("convert", "image.pth", "run", "--tokenizer", words, *HEADS, *EXPERTS))
    problem = "has no positions, so the image size is unknown; give --image-size"
    assert line == f"eve: image.pth: {problem}"
    convert("image.pth", "run", *HEADS, *EXPERTS, "--image-size", 64)
    assert load_run(tmp_path / "run").config.input.image_size == 64


@pytest.mark.parametrize("names", ["timm", "transformers"])
@torch.no_grad()
def test_vlmo_keeps_the_relative_positions_of_beit(convert, tmp_path, names):
    """And so its features, except the type of images, which BEiT lacks; texts and pairs get
    nothing of it."""
    source = timm_model(RELATIVE)
    tensors = source.state_dict()
    if names == "transformers":
        table = "attn.relative_position_bias_table"
        hub = "attention.attention.relative_position_bias.relative_position_bias_table"
        tensors = {name.replace(table, hub): tensor for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "image.pth")
    convert("image.pth", "run", *HEADS, "--architecture", "vlmo", "--num-deep-blocks", 1)
    run = load_run(tmp_path / "run")
    model: Any = run.config.model
    assert model.ffn_policies == ("modality", "modality", "modality_vl")
    encoder = run.task.encoder
    encoder.get_parameter("image.type_embed").zero_()
    pixels = torch.randn(3, 3, 32, 32)
    assert_close_features(encoder, pixels, source.forward_features(pixels))

    text_bias = encoder.get_parameter("relative.text_bias")
    assert len(text_bias) == 2 * 196
    assert not text_bias.any()
    of_beit = [tensor for name, tensor in source.state_dict().items() if ".mlp." in name]
    num_new = 0
    for name, tensor in encoder.state_dict().items():
        if ".ffn.text.fc" in name or ".ffn.vl.fc" in name:
            assert not any(torch.equal(tensor, copied) for copied in of_beit), name
            num_new += 1
    assert num_new == 4 * (3 + 1)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("vlmo", RELATIVE),
        ("eve", "beit"),
    ],
)
def test_of_24_blocks_three_are_deep_as_published(convert, tmp_path, architecture, kind):
    torch.save(timm_model(kind, depth=24).state_dict(), tmp_path / "image.pth")
    convert("image.pth", "run", *HEADS, "--architecture", architecture)
    model: Any = load_run(tmp_path / "run").config.model
    assert (model.depth, model.num_deep_blocks) == (24, 3)


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        (RELATIVE, EXPERTS, "relative position bias"),
        ("beit", VLMO, "takes relative positions only"),
        (RELATIVE, (*VLMO, "--image-size", 48), "leave out --image-size"),
        (RELATIVE, (*VLMO, *EXPERTS[2:]), "--num-experts has no effect with --architecture vlmo"),
        ("vit", ("--text-tokens", 7), "--text-tokens has no effect on an image encoder"),
        ("vit", ("--num-deep-blocks", 5), "num_deep_blocks 5"),
        ("vit", ("--image-size", 49), "image_size 49 is not divisible by patch_size 8"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    eve,
    tmp_path,
    words,
    kind,
    flags,
    message,
):
    torch.save(timm_model(kind).state_dict(), tmp_path / "image.pth")
    line = complaint(eve("convert", "image.pth", "run", "--tokenizer", words, *HEADS, *flags))
    assert message in line
    assert not (tmp_path / "run").exists()


# Damaged files


@pytest.fixture
def refusal(eve, tmp_path: Path, words: Path) -> Callable[..., str]:
    """Return a function that converts a file, which must fail, and returns the message."""

    def convert(content: object, *flags: object) -> str:
        torch.save(content, tmp_path / "odd.pth")
        done = eve("convert", "odd.pth", "run", "--tokenizer", words, *HEADS, *flags)
        assert not (tmp_path / "run").exists()
        line = complaint(done)
        assert line.startswith("eve: odd.pth: ")
        return line

    return convert


def tensors_of(maker: str) -> dict[str, Tensor]:
    if maker == "published":
        return tiny_published("retrieval")
    model = timm_model("vit") if maker == "timm" else transformers_model("vit")
    return dict(model.state_dict())


def quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")  # of torch, about quantized and sparse tensors
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Tensor.long, "of whole numbers, "),
        (Tensor.double, "is float64, expected dense numbers"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is float8_e4m3fn, expected dense"),
        (quantized, "is qint8, expected dense numbers"),
        (Tensor.to_sparse, "is sparse_coo, expected dense numbers"),
        (lambda tensor: tensor - float("inf"), "holds NaN or infinity"),
    ],
)
def test_a_tensor_that_is_not_dense_and_finite_is_refused(refusal, change, message):
    for maker, name, flags in (
        ("timm", "blocks.1.norm1.weight", EXPERTS),
        ("published", f"{BLOCK}.3.mlp_moe.moe.gate.wg.weight", ()),
    ):
        tensors = tensors_of(maker)
        assert message in refusal(tensors | {name: change(tensors[name])}, *flags)


@pytest.mark.parametrize(
    ("maker", "name", "flags"),
    [
        ("published", f"{BLOCK}.0.mlp_imag.fc1.bias", ()),
        ("published", "backbone.patch_embed.weight", ()),
        ("timm", "blocks.0.attn.qkv.bias", EXPERTS),
        ("timm", "pos_embed", EXPERTS),
        ("transformers", "layers.2.attention.q_proj.bias", EXPERTS),
    ],
)
def test_a_tensor_of_another_shape_is_refused(refusal, maker, name, flags):
    tensors = tensors_of(maker)
    refusal(tensors | {name: tensors[name][:0].clone()}, *flags)
    refusal(tensors | {name: torch.tensor(1.0)}, *flags)
    if tensors[name].ndim == 1:
        assert "has shape (" in refusal(tensors | {name: torch.ones(1)}, *flags)


@pytest.mark.parametrize(
    ("maker", "name", "flags"),
    [
        ("published", f"{BLOCK}.99999999.norm1.weight", ()),
        ("published", f"{BLOCK}.-1.norm1.weight", ()),
        ("published", f"{BLOCK}.3.mlp_moe.moe.experts.experts.99999999.fc1.bias", ()),
        ("timm", "blocks.99999999.norm1.weight", EXPERTS),
    ],
)
def test_numbers_of_blocks_are_not_believed(refusal, maker, name, flags):
    line = refusal(tensors_of(maker) | {name: torch.ones(64)}, *flags)
    assert " unknown: " in line
    assert " missing: " in line


def test_a_file_that_unpacks_to_more_than_it_is_is_refused(eve, tmp_path: Path, words):
    torch.save(timm_model("vit").state_dict(), tmp_path / "image.pth")
    with (
        zipfile.ZipFile(tmp_path / "image.pth") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in whole.infolist():
            content = whole.read(part)
            if "data/0" in part.filename:
                content = bytes(10**7)
            bomb.writestr(part.filename, content)
    done = eve("convert", "bomb.pth", "run", "--tokenizer", words, *HEADS, *EXPERTS)
    assert "bomb.pth: refused: it is compressed" in complaint(done)


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(2)],
        "text",
        {"model": {"a": 1}},
        {1: torch.zeros(1)},
        {},
    ],
)
def test_a_file_without_weights_by_name_is_refused(refusal, content: Any):
    assert "holds no weights by name" in refusal(content, *EXPERTS)
