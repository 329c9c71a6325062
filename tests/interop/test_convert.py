"""Published checkpoints to run folders and back, BEiT and ViT encoders, and what is refused."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit
from torch import Tensor

from eve_vl.config import EveModelConfig, config_to_json
from eve_vl.config.model import FFNPolicy
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.interop import eve_checkpoints, image_encoders
from eve_vl.interop.convert import Conversion, config_for
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.eve_checkpoints import key_table, to_published
from eve_vl.interop.foreign_weights import read_tensors
from eve_vl.interop.weight_table import convert_tensor, resolve
from eve_vl.model.block import Block
from eve_vl.run.loading import build_task, build_untrained, load_run
from eve_vl.run.writing import write_run
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import Sizes
from eve_vl.tasks.vqa.config import VQAConfig
from helpers.twins import tiny_config, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_report")

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = {"vqa": "vqa", "nlvr": "nlvr2", "nlvr_biattn": "nlvr2", "retrieval": "retrieval"}
HEADS = {
    "vqa": VQAConfig(),
    "nlvr_biattn": NLVR2Config(head="paired"),
    "nlvr_no_biattn": NLVR2Config(head="concat"),
}


@pytest.fixture(name="words", scope="module")
def tokenizer_of_500(tmp_path_factory) -> Path:
    """A tokenizer of exactly 500 tokens, which is what the tiny checkpoints have."""
    captions = [
        f"word{number:03} stands beside thing{number * 7 % 1000:03}" for number in range(1000)
    ]
    tokenizer = Tokenizer.train(captions, 500)
    assert tokenizer.vocab_size == 500
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    return path


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("answers") / "answers.txt"
    path.write_text("\n".join(f"answer {number}" for number in range(37)))
    return path


def tiny(head: str = "vqa") -> dict[str, Tensor]:
    heads = load_file(GOLDEN / "tiny" / f"state_head_{head}.safetensors") if head else {}
    return load_file(GOLDEN / "tiny" / "state_backbone.safetensors") | heads


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("head", KINDS)
def test_there_and_back_is_exact(eve, tmp_path, words, answers, head, suffix):
    tensors = tiny(head)
    source = tmp_path / f"published{suffix}"
    nested = {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}, "epoch": 3}
    save_file(tensors, source) if suffix == ".safetensors" else torch.save(nested, source)
    flags = [
        "--tokenizer",
        words,
        "--num-heads",
        4,
        *(["--answers", answers] if head == "vqa" else []),
    ]
    done = eve("convert", source, "run", *flags)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    assert run.config.task.name == KINDS[head]
    assert (vars(run.config.model)["routing"], run.config.input.padded_text_length) == (
        "reference-dropless",
        40,
    )
    done = eve("convert", "run", f"back{suffix}")
    assert done.returncode == 0, done.stderr
    back = read_tensors(tmp_path / f"back{suffix}")
    assert back.keys() == tensors.keys()
    assert all(
        torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )


def test_a_bare_encoder_is_a_start_for_fine_tuning(eve, tmp_path, words):
    torch.save(tiny(""), tmp_path / "eve.pth")
    done = eve(
        "convert", "eve.pth", "run", "--tokenizer", words, "--num-heads", 4, "--text-tokens", 12
    )
    assert done.returncode == 0, done.stderr
    assert "an encoder without heads, a start for other runs (--init)" in done.stdout
    assert load_run(tmp_path / "run").config.task.name == "headless"
    flags = [
        "--train.steps",
        2,
        "--train.batch-size",
        2,
        "--data.val-samples",
        4,
        "--data.num-workers",
        0,
    ]
    done = eve("finetune", "demo_retrieval", "--init", "run", "--out", "tuned", *flags)
    assert done.returncode == 0, done.stderr
    tuned, start = (
        load_run(tmp_path / "tuned").config.model,
        load_run(tmp_path / "run").config.model,
    )
    assert tuned == start
    done = eve("pretrain", "tiny", "--out", "more", "--task.mim-weight", 0, "--task.mlm-weight", 0)
    assert done.returncode == 2 and "nothing to learn" in done.stderr


def test_weights_answer_through_the_python_face(tmp_path, words, answers, eve):
    from eve_vl import Eve

    save_file(tiny(), tmp_path / "eve.safetensors")
    done = eve(
        "convert",
        "eve.safetensors",
        "run",
        "--tokenizer",
        words,
        "--answers",
        answers,
        "--num-heads",
        4,
    )
    assert done.returncode == 0, done.stderr
    found = Eve.load(tmp_path / "run").answer(torch.zeros(3, 70, 50), "What is it?", top=37)
    assert len(found) == 37 and all(0 < answer.probability < 1 for answer in found)


def test_positions_are_resized_on_request(eve, tmp_path, words, answers):
    save_file(tiny(), tmp_path / "eve.safetensors")
    flags = ["--tokenizer", words, "--answers", answers, "--num-heads", 4]
    done = eve("convert", "eve.safetensors", "run", *flags, "--image-size", 96)
    assert done.returncode == 0, done.stderr
    found = load_file(GOLDEN / "extras" / "pos_embed_interp.safetensors")
    assert (
        load_run(tmp_path / "run").task.get_parameter("encoder.image.positions").shape
        == found["a_dst_6x6"].shape
    )


class Runs:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path("ran").touch, ()


def damaged(tmp_path: Path, name: str) -> None:
    """Write eve.pth with one thing wrong."""
    tensors = tiny("retrieval" if name in ("older names", "extra") else "vqa")
    match name:
        case "code":
            (tmp_path / "eve.pth").write_bytes(pickle.dumps({"model": Runs()}))
            return
        case "code beside weights":
            torch.save({"model": tensors, "args": Runs()}, tmp_path / "eve.pth")
            return
        case "garbage":
            (tmp_path / "eve.pth").write_bytes(b"not a checkpoint")
            return
        case "missing":
            del (
                tensors["backbone.norm.bias"],
                tensors["backbone.encoder.layers.2.mlp_moe.moe.experts.experts.1.fc2.bias"],
            )
        case "extra":
            tensors |= {f"mask_embed_vision.{number}": torch.zeros(1) for number in range(30)}
        case "relative":
            tensors["backbone.relative_position_bias_table"] = torch.zeros(3, 4)
        case "other":
            tensors = {"features.weight": torch.zeros(2, 2)}
        case "positions":
            tensors["backbone.pos_embed_vision"] = torch.zeros(11, 64)
        case "flat":
            tensors["backbone.pos_embed_vision"] = torch.tensor(1.0)
        case "expert":
            tensors["backbone.encoder.layers.3.mlp_moe.moe.experts.experts.2.fc1.weight"] = (
                torch.zeros(128, 32)
            )
        case "numbers":
            torch.save({1: torch.zeros(1)}, tmp_path / "eve.pth")
            return
        case "shape":
            tensors["backbone.encoder.layers.1.attn.proj.weight"] = torch.zeros(64, 63)
    torch.save(tensors, tmp_path / "eve.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("code", "eve.pth: refused: no torch checkpoint, or it holds more than tensors"),
        (
            "code beside weights",
            "eve.pth: refused: no torch checkpoint, or it holds more than tensors",
        ),
        ("garbage", "eve.pth: refused: no torch checkpoint"),
        (
            "missing",
            "2 missing: backbone.encoder.layers.2.mlp_moe.moe.experts.experts.1.fc2.bias, backbone.norm.bias",
        ),
        ("extra", "30 unknown: mask_embed_vision.0, mask_embed_vision.1,"),
        (
            "relative",
            "1 unknown: backbone.relative_position_bias_table; leave unknown ones out with --drop",
        ),
        (
            "other",
            "not an EVE checkpoint ('backbone.patch_embed.weight' is missing or unusual); it holds features.weight",
        ),
        ("positions", "11 image positions are no [CLS] and a square of patches"),
        ("flat", "not an EVE checkpoint"),
        (
            "expert",
            "experts.2.fc1.weight has shape (128, 32), but the other tensors ask for (128, 64)",
        ),
        ("numbers", "holds no weights by name"),
        (
            "shape",
            "backbone.encoder.layers.1.attn.proj.weight has shape (64, 63), but the other tensors ask for (64, 64)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(eve, tmp_path, words, answers, name, message):
    damaged(tmp_path, name)
    done = eve(
        "convert", "eve.pth", "run", "--tokenizer", words, "--answers", answers, "--num-heads", 4
    )
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists() and not (tmp_path / "ran").exists()


def test_unknown_keys_can_be_left_out_and_older_names_are_known(eve, tmp_path, words):
    tensors = tiny("retrieval")
    for name in [name for name in tensors if name.startswith(("itc_", "itm_"))]:
        tensors[f"m{name}"] = tensors.pop(name)
    torch.save(tensors | {"decoder.weight": torch.zeros(1)}, tmp_path / "eve.pth")
    done = eve(
        "convert", "eve.pth", "run", "--tokenizer", words, "--num-heads", 4, "--drop", "decoder."
    )
    assert done.returncode == 0, done.stderr
    assert "retrieval" in done.stdout


def test_tokenizer_and_answers_must_fit(eve, tmp_path, words, answers):
    save_file(tiny(), tmp_path / "eve.safetensors")
    (tmp_path / "small.json").write_text(Tokenizer.train(["a man"], 261).to_json())
    (tmp_path / "few.txt").write_text("yes\nno\n")
    for flags, message in (
        ([], "name the file with --tokenizer"),
        (
            ["--tokenizer", "small.json", "--answers", answers],
            "has 261 tokens, but the checkpoint has embeddings for 500",
        ),
        (["--tokenizer", words], "has a head for 37 answers, but --answers names 0"),
        (
            ["--tokenizer", words, "--answers", "few.txt"],
            "has a head for 37 answers, but --answers names 2",
        ),
        (
            ["--tokenizer", words, "--answers", answers, "--num-heads", 5],
            "model.embed_dim 64 is not divisible by num_heads 5",
        ),
    ):
        done = eve("convert", "eve.safetensors", "run", "--num-heads", 4, *flags)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    done = eve(
        "convert",
        "eve.safetensors",
        "run",
        "--tokenizer",
        words,
        "--answers",
        answers,
        "--num-heads",
        4,
    )
    assert done.returncode == 2 and "already exists" in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "eve.txt: name a .safetensors or .pth file"),
        ({"shallow_ffn": "shared"}, "have no model.shallow_ffn shared"),
        ({"deep_ffn": "modality"}, "have no model.deep_ffn modality"),
        ({"activation": "gelu"}, "have no model.activation gelu"),
        ({"text_embedding": "bert"}, "have no model.text_embedding bert"),
        ({"norm_pre": False}, "have no model.norm_pre False"),
        ({"top_k": 1}, "have no model.top_k 1"),
    ],
)
def test_a_run_of_another_kind_cannot_be_turned_back(eve, pretrained, tmp_path, change, words):
    shutil.copytree(pretrained, tmp_path / "run")
    for path in (tmp_path / "run").rglob("config.json"):
        values = json.loads(path.read_text())
        values["model"] |= change
        path.write_text(json.dumps(values))
    done = eve("convert", "run", "eve.pth" if change else "eve.txt")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "eve.pth").exists()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (NLVR2Config(head="compare"), "have no task.head compare, so"),
        (RetrievalConfig(itm_batchnorm=True), "have no task.itm_batchnorm True, so"),
        (RetrievalConfig(itm_weight=0.0, rerank=0), "have no task.itm_weight 0.0, so"),
    ],
)
def test_heads_that_were_not_published_are_named(eve, tmp_path, task, message):
    config = tiny_config(task=task)
    write_run(tmp_path / "run", config, tiny_tokenizer(), build_task(config, tiny_tokenizer()))
    done = eve("convert", "run", "eve.pth")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_pretrained_run_leaves_its_heads_behind(eve, tmp_path):
    config = tiny_config()
    write_run(tmp_path / "run", config, tiny_tokenizer(), build_task(config, tiny_tokenizer()))
    done = eve("convert", "run", "eve.pth")
    assert (
        done.returncode == 0
        and "that the published models do not have: pixel_decoder, token_head" in done.stdout
    )
    assert (tmp_path / "run" / "config.json").read_text() == config_to_json(
        load_run(tmp_path / "run").config
    )


def test_flags_that_mean_nothing_are_refused(eve, tmp_path, words, answers):
    save_file(tiny("retrieval"), tmp_path / "eve.safetensors")
    torch.save(timm_model("vit").state_dict(), tmp_path / "image.pth")
    eve("convert", "eve.safetensors", "run", "--tokenizer", words, "--num-heads", 4)
    for arguments, message in (
        ((tmp_path, "back.pth", "--image-size", 96), "holds no checkpoint"),
        (("run", "back.pth", "--image-size", 96), "--image-size has no effect on a run folder"),
        (
            ("eve.safetensors", "other", "--tokenizer", words, "--copy", "none"),
            "eve.safetensors: --copy has no effect on an EVE checkpoint",
        ),
        (
            ("image.pth", "other", "--tokenizer", words, "--text-tokens", 7),
            "image.pth: --text-tokens has no effect on an image encoder",
        ),
        (("image.pth", "other", "--tokenizer", words, "--num-deep-blocks", 5), "num_deep_blocks 5"),
        (
            (
                "eve.safetensors",
                "other",
                "--tokenizer",
                words,
                "--num-heads",
                4,
                "--answers",
                answers,
            ),
            "has a head for 0 answers, but --answers names 37",
        ),
        (
            ("eve.safetensors", words / "run", "--tokenizer", words, "--num-heads", 4),
            "cannot be written",
        ),
    ):
        done = eve("convert", *arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )
    assert not (tmp_path / "other").exists() and not (tmp_path / "back.pth").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_no_file_is_overwritten_or_half_written(eve, tmp_path, words, suffix, monkeypatch):
    save_file(tiny("retrieval"), tmp_path / "eve.safetensors")
    assert (
        eve("convert", "eve.safetensors", "run", "--tokenizer", words, "--num-heads", 4).returncode
        == 0
    )
    (tmp_path / f"old{suffix}").write_text("precious")
    done = eve("convert", "run", f"old{suffix}")
    assert done.returncode == 2 and "already exists" in done.stderr
    assert (tmp_path / f"old{suffix}").read_text() == "precious"

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "torch.save" if suffix == ".pth" else "eve_vl.train.tensor_files.save_file", full
    )
    done = eve("convert", "run", f"new{suffix}")
    assert done.returncode == 2 and "cannot be written (No space left on device)" in done.stderr
    assert not list(tmp_path.glob("*new*"))


# All published sizes, on the meta device


def meta(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def large(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The same model at the sizes of Large, by rule: 24 blocks of width 1024, experts in the last
    three."""
    size = {768: 1024, 1536: 2048, 2304: 3072, 3072: 4096}
    found = {}
    for name, shape in shapes.items():
        wide = [size.get(number, number) for number in shape]
        if ".layers." not in name:
            found[name] = wide
        elif ".layers.0." in name:
            found |= {name.replace(".layers.0.", f".layers.{block}."): wide for block in range(21)}
        elif ".layers.11." in name:
            found |= {
                name.replace(".layers.11.", f".layers.{block}."): wide for block in (21, 22, 23)
            }
    return found


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("name", ["vqa", "nlvr_biattn", "nlvr_no_biattn", "retrieval"])
def test_the_key_table_covers_every_key(name, size):
    models = json.loads((GOLDEN / "official_base_state_dict.json").read_text())["models"]
    shapes = models[name]["state_dict"]
    tensors = meta(shapes if size == "base" else large(shapes))
    sizes, model, section = eve_checkpoints.infer(tensors, name)
    wanted = (12, 768, 12, 2) if size == "base" else (24, 1024, 16, 3)
    assert (model.depth, model.embed_dim, model.num_heads, model.num_deep_blocks) == wanted
    assert (model.num_experts, sizes.image_size, sizes.text_length, model.mlp_ratio) == (
        32,
        384,
        196,
        4,
    )
    assert section == HEADS.get(
        name, RetrievalConfig(final_norm=False, projection_dim=model.embed_dim)
    )
    plan = Conversion(tensors=tensors, sizes=sizes, model=model, section=section, unused="")
    config = config_for(plan, Path("run"), name)
    with torch.device("meta"):
        task = build_untrained(
            config, Sizes(vocab_size=64_000, labels=tuple(str(number) for number in range(3128)))
        )
    own = task.state_dict()
    made = resolve(key_table(model, section), own)
    assert made.keys() == own.keys()
    assert sorted(
        [key for each in made.values() for key in each.sources] + [*eve_checkpoints.BUFFERS]
    ) == sorted(tensors)  # each once
    ours = {key: convert_tensor(key, each, tensors, own[key], name) for key, each in made.items()}
    assert {key: tensor.shape for key, tensor in own.items()} == {
        key: t.shape for key, t in ours.items()
    }
    back = to_published(ours, made, sizes)
    assert {key: tensor.shape for key, tensor in back.items()} == {
        key: tensor.shape for key, tensor in tensors.items()
    }


def names_of_block(policy: FFNPolicy, **changes: Any) -> tuple[EveModelConfig, dict[str, Tensor]]:
    """A model section and the feed-forward tensors of its first block, by their names in a run."""
    config = replace(tiny_config().model, num_experts=3, **changes)
    assert isinstance(config, EveModelConfig)
    block = Block(config, policy, sizes=tiny_config().input).state_dict()
    return config, {
        f"encoder.blocks.0.{name}": each
        for name, each in block.items()
        if name.startswith(("ffn.", "norm2."))
    }


@pytest.mark.parametrize("routing", ["dropless", "reference", "reference-dropless"])
@pytest.mark.parametrize("modality_routing", [True, False])
@pytest.mark.parametrize("policy", ["modality", "modality_vl", "moe"])
def test_each_tensor_of_a_block_has_a_published_name(policy, modality_routing, routing):
    config, own = names_of_block(policy, modality_routing=modality_routing, routing=routing)
    made = resolve(key_table(config, HeadlessConfig()), own)
    assert made.keys() == own.keys()
    theirs = [name for each in made.values() for name in each.sources]
    assert len(theirs) == len(set(theirs))
    for name, each in made.items():  # a stack: experts, or the embeddings of the two modalities
        assert len(each.sources) == (
            len(own[name]) if "expert" in name or "modality" in name else 1
        ), name


# BEiT and ViT


@pytest.mark.parametrize("policy", ["shared", "modality", "modality_vl", "moe"])
@pytest.mark.parametrize("copies", ["all", "text", "none"])
def test_copies_are_all_tensors_that_an_image_encoder_has(policy, copies):
    config, own = names_of_block(policy)
    args = ConvertArgs(source=Path("image.pth"), target=Path("run"), copy=copies)
    made = resolve(image_encoders.key_table({}, config, args), own)
    assert made.keys() <= own.keys()
    experts, text = (
        {name for name in own if any(part in name for part in new)}
        for new in ((".experts", "vl"), ("text",))
    )
    router = {name for name in own if "router" in name}  # image encoders have none
    assert (
        made.keys()
        == own.keys()
        - {"all": router, "text": router | experts, "none": router | experts | text}[copies]
    )
    shapes = {
        name.replace("ffn.", "mlp."): tensor.shape
        for name, tensor in names_of_block("shared")[1].items()
    }
    for name, each in made.items():
        (theirs,) = each.sources
        shape = own[name].shape
        assert (shape[1:] if "experts" in name else shape) == shapes[f"encoder.{theirs}"], name


def timm_model(kind: str, depth: int = 3) -> Any:
    """A tiny image encoder of timm's with weights that are nowhere 0 or 1."""
    sizes: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 64,
        "depth": depth,
        "num_heads": 2,
        "num_classes": 5,
    }
    torch.manual_seed(3)
    if kind == "vit":
        model = timm.models.vision_transformer.VisionTransformer(**sizes)
    elif kind == "vit with layer scale":
        model = timm.models.vision_transformer.VisionTransformer(**sizes, init_values=0.5)
    else:
        relative = kind == "beit with relative positions"
        model = Beit(
            **sizes,
            use_abs_pos_emb=not relative,
            use_rel_pos_bias=relative,
            init_values=0.3,
            global_pool="token",
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("copy", ["all", "text", "none"])
@pytest.mark.parametrize("kind", ["vit", "vit with layer scale", "beit"])
def test_features_are_those_of_timm(eve, tmp_path, words, kind, copy):
    source = timm_model(kind)
    torch.save(source.state_dict(), tmp_path / "image.pth")
    deep = (
        2 if copy == "all" else 0
    )  # copied experts give what the one network gives, whichever are chosen
    flags = [
        "--num-deep-blocks",
        deep,
        "--num-experts",
        4,
        "--copy",
        copy,
        "--architecture",
        "source",
        "--num-heads",
        2,
    ]
    done = eve("convert", "image.pth", "run", "--tokenizer", words, *flags)
    assert done.returncode == 0, done.stderr
    encoder = load_run(tmp_path / "run").task.encoder
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        ours = encoder.encode(encoder.image(pixels), None).x_BND
        torch.testing.assert_close(ours, source.forward_features(pixels), rtol=0, atol=1e-5)
    weights = encoder.state_dict()
    for block in range(3 - deep):
        text, image = (
            weights[f"blocks.{block}.ffn.{modality}.fc1.weight"] for modality in ("text", "image")
        )
        assert torch.equal(text, image) is (copy != "none")


def test_pretraining_starts_from_an_image_encoder(eve, tmp_path, words):
    torch.save({"model": timm_model("beit").state_dict()}, tmp_path / "image.pth")
    flags = ["--num-deep-blocks", 1, "--num-experts", 4, "--num-heads", 2]
    done = eve("convert", "image.pth", "run", "--tokenizer", words, *flags)
    assert done.returncode == 0, done.stderr
    assert "next: eve pretrain RECIPE --init run" in done.stdout
    short = ["--train.steps", 2, "--train.batch-size", 4, "--data.val-samples", 4]
    done = eve("pretrain", "tiny", "--init", "run", "--out", "more", *short)
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path / "more").config.model == load_run(tmp_path / "run").config.model
    assert "weights from" in (tmp_path / "more" / "log.jsonl").read_text() + done.stdout


def test_relative_positions_are_refused_with_the_reason(eve, tmp_path, words):
    torch.save(timm_model("beit with relative positions").state_dict(), tmp_path / "image.pth")
    flags = ["--tokenizer", words, "--num-heads", 2, "--num-deep-blocks", 1, "--num-experts", 4]
    done = eve("convert", "image.pth", "run", *flags)
    assert done.returncode == 2
    assert "relative position bias" in done.stderr and done.stderr.count("\n") == 1
    done = eve("convert", "image.pth", "run", *flags, "--drop", "relative_position")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("names", ["timm", "transformers"])
@torch.no_grad()
def test_vlmo_keeps_the_relative_positions_of_beit(eve, tmp_path, words, names):
    """And so its features, but for the type of images, which BEiT has not; texts and pairs get
    nothing of it."""
    source = timm_model("beit with relative positions")
    tensors = source.state_dict()
    if names == "transformers":
        table, hub = (
            "attn.relative_position_bias_table",
            "attention.attention.relative_position_bias.relative_position_bias_table",
        )
        tensors = {name.replace(table, hub): tensor for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "image.pth")
    flags = ["--tokenizer", words, "--num-heads", 2, "--architecture", "vlmo"]
    done = eve("convert", "image.pth", "run", *flags, "--num-deep-blocks", 1)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    assert run.config.model.ffn_policies == ("modality", "modality", "modality_vl")  # pyright: ignore[reportAttributeAccessIssue]
    encoder, pixels = run.task.encoder, torch.randn(3, 3, 32, 32)
    encoder.get_parameter("image.type_embed").zero_()
    ours = encoder.encode(encoder.image(pixels), None).x_BND
    torch.testing.assert_close(ours, source.forward_features(pixels), rtol=0, atol=1e-5)
    assert (
        not encoder.get_parameter("relative.text_bias").any()
        and len(encoder.get_parameter("relative.text_bias")) == 2 * 196
    )
    theirs, weights = (
        [tensor for name, tensor in source.state_dict().items() if ".mlp." in name],
        encoder.state_dict(),
    )
    own = [weights[name] for name in weights if ".ffn.text.fc" in name or ".ffn.vl.fc" in name]
    assert len(own) == 4 * (3 + 1) and not any(
        torch.equal(one, other) for one in own for other in theirs
    )


@pytest.mark.parametrize(
    ("architecture", "kind"), [("vlmo", "beit with relative positions"), ("eve", "beit")]
)
def test_of_24_blocks_three_are_deep_as_published(eve, tmp_path, words, architecture, kind):
    torch.save(timm_model(kind, depth=24).state_dict(), tmp_path / "image.pth")
    done = eve(
        "convert",
        "image.pth",
        "run",
        "--tokenizer",
        words,
        "--num-heads",
        2,
        "--architecture",
        architecture,
    )
    assert done.returncode == 0, done.stderr
    model: Any = load_run(tmp_path / "run").config.model
    assert (model.depth, model.num_deep_blocks) == (24, 3)


def test_what_vlmo_does_not_take_is_refused(eve, tmp_path, words):
    torch.save(timm_model("beit").state_dict(), tmp_path / "absolute.pth")
    torch.save(timm_model("beit with relative positions").state_dict(), tmp_path / "relative.pth")
    for arguments, message in (
        (("absolute.pth",), "takes relative positions only"),
        (("relative.pth", "--image-size", 48), "leave out --image-size"),
        (
            ("relative.pth", "--num-experts", 4),
            "--num-experts has no effect with --architecture vlmo",
        ),
    ):
        source, *more = arguments
        flags = ["--tokenizer", words, "--num-heads", 2, "--architecture", "vlmo"]
        done = eve("convert", source, "run", *flags, *more)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )


def test_stable_routing_takes_the_same_weights(eve, tmp_path, words, answers):
    save_file(tiny(), tmp_path / "eve.safetensors")
    flags = [
        "--tokenizer",
        words,
        "--answers",
        answers,
        "--num-heads",
        4,
        "--routing",
        "dropless",
        "--text-tokens",
        0,
    ]
    assert eve("convert", "eve.safetensors", "run", *flags).returncode == 0
    assert eve("convert", "eve.safetensors", "other", *flags[:6]).returncode == 0
    stable, other = load_run(tmp_path / "run"), load_run(tmp_path / "other")
    assert (vars(stable.config.model)["routing"], stable.config.input.padded_text_length) == (
        "dropless",
        0,
    )
    weights = other.task.state_dict()
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in stable.task.state_dict().items()
    )
