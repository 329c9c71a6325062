"""ViT, BEiT and DINOv2 under the names of timm and transformers become encoders of runs."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eve_vl.interop import image_encoders
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.weight_table import resolve
from eve_vl.run.loading import load_run
from helpers.complaints import complaint
from helpers.first_block import first_block
from helpers.published import timm_model, tiny_published, transformers_model

pytestmark = pytest.mark.usefixtures("no_report")

HEADS = ("--num-heads", 2)
EXPERTS = ("--num-deep-blocks", 1, "--num-experts", 4)
RELATIVE = "beit with relative positions"


@pytest.mark.parametrize("policy", ["shared", "modality", "modality_vl", "moe"])
@pytest.mark.parametrize("copies", ["all", "text", "none"])
def test_copies_are_all_tensors_that_an_image_encoder_has(policy, copies):
    config, state = first_block(policy)
    args = ConvertArgs(source=Path("image.pth"), target=Path("run"), copy=copies)
    table = resolve(image_encoders.key_table({}, config, args), state)
    uncopied = ["router"]  # image encoders have none
    if copies != "all":
        uncopied += [".experts", "vl"]
    if copies == "none":
        uncopied.append("text")
    assert table.keys() == {name for name in state if not any(part in name for part in uncopied)}
    _, shared = first_block("shared")
    shapes = {name.replace("ffn.", "mlp."): tensor.shape for name, tensor in shared.items()}
    for name, computed in table.items():
        (source,) = computed.sources
        shape = state[name].shape
        if "experts" in name:
            shape = shape[1:]
        assert shape == shapes[f"encoder.{source}"], name


@pytest.mark.parametrize("copy", ["all", "text", "none"])
@pytest.mark.parametrize("kind", ["vit", "vit with layer scale", "beit"])
def test_features_are_those_of_timm(convert, tmp_path, kind, copy):
    source = timm_model(kind)
    torch.save(source.state_dict(), tmp_path / "image.pth")
    # copied experts give what the one network gives, whichever are chosen
    num_deep = 2 if copy == "all" else 0
    experts = ("--num-deep-blocks", num_deep, "--num-experts", 4, "--copy", copy)
    convert("image.pth", "run", *HEADS, *experts, "--architecture", "source")
    encoder = load_run(tmp_path / "run").task.encoder
    pixels = torch.randn(3, 3, 32, 32)
    assert_close_features(encoder, pixels, source.forward_features(pixels))
    weights = encoder.state_dict()
    for block in range(3 - num_deep):
        text = weights[f"blocks.{block}.ffn.text.fc1.weight"]
        image = weights[f"blocks.{block}.ffn.image.fc1.weight"]
        assert torch.equal(text, image) is (copy != "none")


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


def test_relative_positions_are_refused_with_the_reason(eve, tmp_path, words):
    torch.save(timm_model(RELATIVE).state_dict(), tmp_path / "image.pth")
    line = complaint(eve("convert", "image.pth", "run", "--tokenizer", words, *HEADS, *EXPERTS))
    assert "relative position bias" in line


@pytest.mark.parametrize("kind", ["table per block", "shared table"])
def test_dropped_relative_positions_still_tell_the_size(eve, convert, tmp_path, words, kind):
    tensors = timm_model(RELATIVE).state_dict()
    without = {name: tensor for name, tensor in tensors.items() if "relative" not in name}
    if kind == "shared table":  # as in BEiT's pre-training
        shared = dict(without)
        for name, tensor in tensors.items():
            if "relative_position" in name and "blocks.0" in name:
                shared[name.replace("blocks.0.attn", "rel_pos_bias")] = tensor
        tensors = shared
    torch.save(tensors, tmp_path / "image.pth")
    flags = (*HEADS, *EXPERTS, "--drop", "relative_position")

    def converted_size(target: str, *size: object) -> int:
        convert("image.pth", target, *flags, *size)
        return load_run(tmp_path / target).config.input.image_size

    assert converted_size("run") == 32
    assert converted_size("larger", "--image-size", 48) == 48
    torch.save(without, tmp_path / "image.pth")
    line = complaint(eve("convert", "image.pth", "new", "--tokenizer", words, *flags))
    problem = "has no positions, so the image size is unknown; give --image-size"
    assert line == f"eve: image.pth: {problem}"
    assert converted_size("new", "--image-size", 64) == 64


def test_positions_of_an_image_encoder_are_resized_on_request(eve, convert, tmp_path, words):
    torch.save(timm_model("vit").state_dict(), tmp_path / "image.pth")
    convert("image.pth", "run", *HEADS, *EXPERTS, "--image-size", 48)
    positions = load_run(tmp_path / "run").task.get_parameter("encoder.image.positions")
    assert positions.shape == (37, 64)
    flags = ("--tokenizer", words, *HEADS, *EXPERTS, "--image-size", 49)
    line = complaint(eve("convert", "image.pth", "new", *flags))
    assert "image_size 49 is not divisible by patch_size 8" in line


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


@pytest.mark.parametrize(("architecture", "kind"), [("vlmo", RELATIVE), ("eve", "beit")])
def test_of_24_blocks_three_are_deep_as_published(convert, tmp_path, architecture, kind):
    torch.save(timm_model(kind, depth=24).state_dict(), tmp_path / "image.pth")
    convert("image.pth", "run", *HEADS, "--architecture", architecture)
    model: Any = load_run(tmp_path / "run").config.model
    assert (model.depth, model.num_deep_blocks) == (24, 3)


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("beit", ("--architecture", "vlmo"), "takes relative positions only"),
        (
            RELATIVE,
            ("--architecture", "vlmo", "--image-size", 48),
            "leave out --image-size",
        ),
        (
            RELATIVE,
            ("--architecture", "vlmo", "--num-experts", 4),
            "--num-experts has no effect with --architecture vlmo",
        ),
        ("vit", ("--text-tokens", 7), "--text-tokens has no effect on an image encoder"),
        ("vit", ("--num-deep-blocks", 5), "num_deep_blocks 5"),
    ],
)
def test_flags_without_effect_are_refused(eve, tmp_path, words, kind, flags, message):
    torch.save(timm_model(kind).state_dict(), tmp_path / "image.pth")
    line = complaint(eve("convert", "image.pth", "run", "--tokenizer", words, *HEADS, *flags))
    assert message in line
    assert not (tmp_path / "run").exists()


def refusal(eve, tmp_path: Path, words: Path, tensors: Any) -> str:
    """Convert a file, which must end in one line; return it."""
    torch.save(tensors, tmp_path / "odd.pth")
    is_eve = isinstance(tensors, dict) and "backbone.norm.weight" in tensors
    experts = () if is_eve else EXPERTS
    done = eve("convert", "odd.pth", "run", "--tokenizer", words, *HEADS, *experts)
    line = complaint(done)
    assert line.startswith("eve: odd.pth: ")
    assert not (tmp_path / "run").exists()
    return line


def quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


BLOCK = "backbone.encoder.layers"
CHANGES = {
    "int": (lambda tensor: tensor.long(), "of whole numbers, "),
    "double": (lambda tensor: tensor.double(), "is float64, expected dense numbers"),
    "complex": (lambda tensor: tensor.cfloat(), "is complex64, expected dense numbers"),
    "float8": (
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        "is float8_e4m3fn, expected dense numbers",
    ),
    "quantized": (quantized, "is qint8, expected dense numbers"),
    "sparse": (lambda tensor: tensor.to_sparse(), "is sparse_coo, expected dense numbers"),
    "meta": (lambda tensor: tensor.to("meta"), "expected dense numbers"),
    "NaN": (lambda tensor: torch.full_like(tensor, float("nan")), "holds NaN or infinity"),
    "infinity": (lambda tensor: torch.full_like(tensor, float("-inf")), "holds NaN or infinity"),
    "one number": (lambda tensor: tensor.flatten()[:1].clone(), "has shape ("),
    "no number": (lambda tensor: tensor[:0].clone(), ""),
    "scalar": (lambda tensor: torch.tensor(1.0), ""),
    "expanded": (lambda tensor: torch.ones(1).expand(tensor.shape), "but the file holds less"),
}
TENSORS = {
    "published": (
        f"{BLOCK}.0.mlp_imag.fc1.bias",
        f"{BLOCK}.3.mlp_moe.moe.gate.wg.weight",
        "backbone.patch_embed.weight",
    ),
    "timm": ("blocks.0.attn.qkv.bias", "blocks.1.norm1.weight", "pos_embed", "cls_token"),
    "transformers": (
        "layers.0.attention.k_proj.weight",
        "layers.2.attention.q_proj.bias",
        "embeddings.patch_embeddings.projection.weight",
    ),
}


def tensors_of(file: str) -> dict[str, Tensor]:
    if file == "published":
        return tiny_published("retrieval")
    model = timm_model("vit") if file == "timm" else transformers_model("vit")
    return dict(model.state_dict())


@pytest.mark.filterwarnings("ignore")  # of torch, about what it is asked for here
@pytest.mark.parametrize("file", TENSORS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_of_another_kind_is_named(eve, tmp_path: Path, words, file, change):
    edit, message = CHANGES[change]
    for name in TENSORS[file]:
        tensors = tensors_of(file)
        if change == "one number" and tensors[name].ndim > 1:
            continue
        if change == "int" and "k_proj" in name:
            continue  # keys are joined with queries, which makes them float
        tensors[name] = edit(tensors[name])
        assert message in refusal(eve, tmp_path, words, tensors), name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("published", f"{BLOCK}.99999999.norm1.weight"),
        ("published", f"{BLOCK}.-1.norm1.weight"),
        ("published", f"{BLOCK}.3.mlp_moe.moe.experts.experts.99999999.fc1.bias"),
        ("timm", "blocks.99999999.norm1.weight"),
    ],
)
def test_numbers_of_blocks_are_not_believed(eve, tmp_path: Path, words, file, name):
    line = refusal(eve, tmp_path, words, tensors_of(file) | {name: torch.ones(64)})
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
        torch.ones(2),
        "text",
        {"model": {"a": 1}},
        {"a": {"b": torch.ones(1)}},
        {1: torch.zeros(1)},
        {},
    ],
)
def test_what_holds_no_weights_by_name_is_refused(eve, tmp_path: Path, words, content: Any):
    assert "holds no weights by name" in refusal(eve, tmp_path, words, content)
