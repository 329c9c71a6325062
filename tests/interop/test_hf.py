"""The transformers interface against our own data path and tasks.

Letters: B batch, T text tokens, A answers, D width.
"""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

from eve_vl.config import DualEncoderConfig, InputConfig, to_dict
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from eve_vl.interop import hf
from eve_vl.interop.hf_processing import EveTokenizerFast
from eve_vl.run.loading import load_run
from eve_vl.run.writing import write_run
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.nlvr2.task import NLVR2
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.task import Task
from eve_vl.tasks.vqa.task import VQA
from eve_vl.utils.errors import UserError
from helpers.hf_runs import noise_image, tiny, write
from helpers.tiny_tasks import (
    ANSWER_LIST,
    TOKENIZER,
    build,
    eval_set,
    rows_of,
    train_set,
)
from helpers.twins import CAPTIONS, pairs, tiny_config

KINDS = {
    "masked": hf.EveForMaskedModeling,
    "vqa": hf.EveForVisualQuestionAnswering,
    "nlvr2": hf.EveForNLVR2,
    "nlvr2_paired": hf.EveForNLVR2,
    "nlvr2_compare": hf.EveForNLVR2,
    "retrieval": hf.EveForRetrieval,
    "retrieval_merged": hf.EveForRetrieval,
    "retrieval_itc": hf.EveForRetrieval,
}
MEDFLIP = DualEncoderConfig(
    embed_dim=16,
    image_depth=1,
    text_depth=1,
    num_heads=2,
    mlp_ratio=2.0,
    init_std=0.3,
)


def batch_of(task: Task[Any], count: int = 5) -> Any:
    """A batch of rows from our own data path."""
    if isinstance(task, MaskedSignal):
        return rows_of(MaskedPairs([pairs(count)], task.config, TOKENIZER, training=True), count)
    return rows_of(
        train_set(task.config, count)
        if isinstance(task, Retrieval)
        else eval_set(task.config, count),
        count,
    )


def inputs_of(task: Task[Any], batch: Any) -> dict[str, torch.Tensor]:
    """The same batch by the names of transformers, pixels in plain arithmetic."""
    ids_BT = batch.ids_BT
    if isinstance(task, MaskedSignal):
        ids_BT = ids_BT.masked_fill(batch.is_masked_BT, TOKENIZER.mask_id)
    inputs = {
        "pixel_values": batch.images_BCHW / 127.5 - 1,
        "input_ids": ids_BT,
        "attention_mask": (~batch.is_padding_BT).long(),
    }
    return inputs | (
        {"pixel_values_right": batch.right_BCHW / 127.5 - 1} if isinstance(task, NLVR2) else {}
    )


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, tmp_path_factory) -> tuple[Task[Any], Any, Any, Path]:
    """A task, its model and processor by way of a run folder, and the folder that they were saved
    in."""
    folder = tmp_path_factory.mktemp(request.param)
    task = write(request.param, folder / "run")
    model, processor = hf.from_run(folder / "run")
    assert type(model) is KINDS[request.param]
    model.save_pretrained(folder / "hub")
    processor.save_pretrained(folder / "hub")
    return task, model, processor, folder / "hub"


# Models


def test_logits_are_those_of_our_tasks(loaded):
    task, model, _, _ = loaded
    batch = batch_of(task)
    with torch.no_grad():
        output = model(**inputs_of(task, batch))
        if isinstance(task, VQA | NLVR2):
            torch.testing.assert_close(output.logits, task.predict(batch)[0], rtol=1e-5, atol=1e-6)
            assert output.logits.std(0).min() > 1e-3
        elif isinstance(task, MaskedSignal):
            encoded = task.encode(batch, mask=True)
            expected_MV = task.predict_tokens(encoded, batch)
            assert output.logits.shape == (5, batch.ids_BT.shape[1], TOKENIZER.vocab_size)
            torch.testing.assert_close(
                output.logits[batch.is_masked_BT], expected_MV, rtol=1e-5, atol=1e-5
            )
        else:
            image_Id = task.image_features(batch.images_BCHW)
            text_Cd = task.text_features(batch.ids_BT, batch.is_padding_BT)
            torch.testing.assert_close(output.image_embeds, image_Id, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(output.text_embeds, text_Cd, rtol=1e-5, atol=1e-6)
            for i, image in enumerate(image_Id):
                for c, text in enumerate(text_Cd):
                    expected = (image @ text).item() / task.contrast.features.temperature.item()
                    assert output.logits_per_image[i, c].item() == pytest.approx(
                        expected, rel=1e-4, abs=1e-4
                    )
            assert torch.equal(output.logits_per_text, output.logits_per_image.T)
            if task.contrast.match_head is None:
                assert output.match_logits is None
            else:
                text = task.encoder.text(batch.ids_BT, batch.is_padding_BT)
                states_BTD = task.encoder.encode(
                    task.encoder.image(batch.images_BCHW / 127.5 - 1), text
                ).text_BTD
                expected_B2 = task.contrast.match_head(states_BTD[:, 0])
                torch.testing.assert_close(output.match_logits, expected_B2, rtol=1e-4, atol=1e-5)


def test_loss_is_that_of_our_tasks(loaded):
    task, model, _, _ = loaded
    batch = batch_of(task)
    if isinstance(task, VQA):
        labels = task.targets(batch)
        assert labels.sum() > 0
    elif isinstance(task, NLVR2):
        labels = torch.tensor(batch.labels).long()
    elif isinstance(task, MaskedSignal):
        labels = batch.ids_BT.masked_fill(~batch.is_masked_BT, -100)
    else:
        labels = batch.image_id_B
    torch.manual_seed(0)  # hard negatives are drawn
    expected = task(batch).loss
    torch.manual_seed(0)
    loss = model(**inputs_of(task, batch), labels=labels).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert loss.requires_grad
    assert model.config.run.model.balance_weight > 0


def test_balance_is_part_of_the_loss():
    loss = {}
    for weight in (0.0, 10.0):
        _, task = tiny("vqa", model={"balance_weight": weight})
        assert isinstance(task, VQA)
        labels: dict[int, str] = dict(enumerate(ANSWER_LIST))
        config = hf.EveConfig(**hf_sections(task), vocab_size=TOKENIZER.vocab_size, id2label=labels)
        model = hf.EveForVisualQuestionAnswering(config).eval()
        model.task.load_state_dict(task.state_dict())
        batch = batch_of(task)
        loss[weight] = model(**inputs_of(task, batch), labels=task.targets(batch)).loss.item()
    assert loss[10.0] > loss[0.0] + 5  # balance is at least near 1


def hf_sections(task: Task[Any]) -> dict[str, Any]:
    return {name: to_dict(getattr(task.config, name)) for name in ("input", "model", "task")}


def test_retrieval_in_training_computes_only_the_loss(tmp_path):
    task = write("retrieval", tmp_path / "run")
    model, _ = hf.from_run(tmp_path / "run")
    batch = batch_of(task)
    output = model.train()(**inputs_of(task, batch), labels=batch.image_id_B)
    assert set(output) == {"loss"}
    assert set(model(**inputs_of(task, batch))) >= {"image_embeds", "match_logits"}
    inputs = inputs_of(task, batch)
    assert set(model(pixel_values=inputs["pixel_values"])) == {"image_embeds"}
    assert set(model(input_ids=inputs["input_ids"])) == {"text_embeds"}
    inputs["pixel_values"] = inputs["pixel_values"][:2]
    output = model.eval()(**inputs)
    assert output.match_logits is None
    assert output.logits_per_image.shape == (2, 5)
    with pytest.raises(UserError, match="labels need as many"):
        model(**inputs, labels=batch.image_id_B)


def test_the_encoder_without_heads(loaded):
    task, _, _, folder = loaded
    model = AutoModel.from_pretrained(folder)
    assert type(model) is hf.EveModel
    assert {name.split(".")[1] for name in model.state_dict()} == {"encoder"}
    batch = batch_of(task)
    inputs = inputs_of(task, batch)
    inputs.pop("pixel_values_right", None)
    image = task.encoder.image(inputs["pixel_values"])
    text = task.encoder.text(inputs["input_ids"], batch.is_padding_BT)
    for names, tokens, cls in (
        (["pixel_values"], (image, None), 0),
        (["input_ids", "attention_mask"], (None, text), 0),
        (inputs, (image, text), 17),
    ):
        with torch.no_grad():
            output = model(**{name: inputs[name] for name in names})
            x_BND = task.encoder.encode(*tokens).x_BND
        torch.testing.assert_close(output.last_hidden_state, x_BND, rtol=1e-5, atol=1e-6)
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, cls])
    with pytest.raises(UserError, match="give pixel_values, input_ids or both"):
        model()
    with pytest.raises(UserError, match="leave out labels"):
        model(**inputs, labels=torch.zeros(5))


def test_no_attention_mask_means_no_padding(loaded):
    task, model, _, _ = loaded
    inputs = {name: value[:1] for name, value in inputs_of(task, batch_of(task)).items()}
    inputs["input_ids"] = inputs["input_ids"][:, : int(inputs["attention_mask"].sum())]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        with_mask = model(**inputs).to_tuple()
        without = model(**inputs | {"attention_mask": None}).to_tuple()
    assert all(
        torch.equal(masked, unmasked) for masked, unmasked in zip(with_mask, without, strict=True)
    )


# There and back


def test_saved_and_loaded_models_are_the_same_to_the_bit(loaded):
    task, model, _, folder = loaded
    assert not list(folder.glob("*.bin"))
    again = type(model).from_pretrained(folder)
    assert not again.training
    tensors = again.state_dict()
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {
        "_name_or_path": ""
    }
    inputs = inputs_of(task, batch_of(task))
    with torch.no_grad():
        first = model(**inputs)
        second = again(**inputs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], first[next(iter(first))])


def test_a_run_folder_comes_back(loaded, tmp_path):
    task, model, processor, _ = loaded
    hf.to_run(model, processor, tmp_path / "back")
    run = load_run(tmp_path / "back")
    assert (run.config.model, run.config.task.name) == (task.config.model, task.config.task.name)
    tensors = run.task.state_dict()
    assert tensors.keys() == task.state_dict().keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in task.state_dict().items())
    assert (
        run.tokenizer.encode(CAPTIONS[0], 12)[0].tolist()
        == TOKENIZER.encode(CAPTIONS[0], 12)[0].tolist()
    )
    if isinstance(run.task, VQA):
        assert run.task.answers == ANSWER_LIST
        assert (
            Eve.load(tmp_path / "back", device="cpu").answer(noise_image(0), "which?")[0].answer
            in ANSWER_LIST
        )
    with pytest.raises(UserError, match="already exists"):
        hf.to_run(model, processor, tmp_path / "back")
    processor = hf.EveProcessor.from_eve(
        Tokenizer.train(["many other words"] * 9, 900), InputConfig()
    )
    size = model.config.vocab_size
    model.config.vocab_size = 100
    with pytest.raises(UserError, match="but the model has 100"):
        hf.to_run(model, processor, tmp_path / "new")
    model.config.vocab_size = size


def test_what_goes_to_the_hub_names_no_folder(loaded, tmp_path):
    _, _, _, folder = loaded
    assert str(folder.parent) in (folder.parent / "run" / "config.json").read_text()
    for path in folder.glob("*.json"):
        assert str(folder.parent) not in path.read_text(), path


def test_auto_classes(loaded):
    task, model, _, folder = loaded
    assert type(AutoConfig.from_pretrained(folder)) is hf.EveConfig
    assert type(AutoTokenizer.from_pretrained(folder)) is EveTokenizerFast
    assert type(AutoImageProcessor.from_pretrained(folder)) is hf.EveImageProcessor
    assert type(AutoProcessor.from_pretrained(folder)) is hf.EveProcessor
    auto = {
        MaskedSignal: AutoModelForMaskedLM,
        VQA: AutoModelForVisualQuestionAnswering,
        Retrieval: AutoModelForZeroShotImageClassification,
    }.get(type(task))
    assert auto is None or type(auto.from_pretrained(folder)) is type(model)


def test_labels(loaded):
    task, model, _, _ = loaded
    if isinstance(task, VQA):
        assert model.config.id2label == dict(enumerate(ANSWER_LIST))
        assert model.config.label2id["3"] == ANSWER_LIST.index("3")
    elif isinstance(task, NLVR2):
        assert model.config.id2label == {0: "False", 1: "True"}
    assert (
        model.config.hidden_size,
        model.config.num_hidden_layers,
        model.config.num_attention_heads,
    ) == (16, 3, 2)


def test_a_run_without_a_head_for_tokens_gives_its_encoder(tmp_path):
    config = tiny_config(task={"mlm_weight": 0.0})
    task = build(config)
    write_run(tmp_path / "run", config, TOKENIZER, task)
    model, _ = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveModel
    encoder = {
        name: tensor for name, tensor in task.state_dict().items() if name.startswith("encoder.")
    }
    assert all(
        torch.equal(tensor, model.task.state_dict()[name]) for name, tensor in encoder.items()
    )
    with pytest.raises(UserError, match=r"needs the head for tokens, but task.mlm_weight is 0"):
        hf.EveForMaskedModeling(hf.EveConfig(**hf_sections(task), vocab_size=300))


@pytest.mark.parametrize("model", [MEDFLIP, tiny_config().model], ids=["towers", "eve"])
def test_contrast_without_a_head_for_tokens_is_retrieval(model, tmp_path):
    """As in MedFLIP's pre-training, and EVE's with ITC only: features have the width of the
    projection, not of the states."""
    config = tiny_config(task=ContrastMatchConfig(mlm_weight=0.0, itm_weight=0.0, projection_dim=6))
    config = dataclasses.replace(config, model=model)
    task = build(config)
    write_run(tmp_path / "run", config, TOKENIZER, task)
    model, processor = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveForRetrieval
    model.save_pretrained(tmp_path / "hub")
    source_images = [noise_image(seed) for seed in range(3)]
    texts = [*CAPTIONS[:2], "a"]
    inputs = processor(images=source_images, text=texts)
    eve = Eve.load(tmp_path / "run", device="cpu")
    contrast: Any = eve.task.contrast
    for loaded in (model, hf.EveForRetrieval.from_pretrained(tmp_path / "hub")):
        with torch.no_grad():
            images: Any = loaded.get_image_features(inputs["pixel_values"]).pooler_output
            words: Any = loaded.get_text_features(
                inputs["input_ids"], inputs["attention_mask"]
            ).pooler_output
            outputs = loaded(**inputs)
        assert images.shape == (3, 6)
        np.testing.assert_allclose(images, eve.encode_image(source_images), atol=1e-5)
        np.testing.assert_allclose(words, eve.encode_text(texts), atol=1e-5)
        expected = (
            eve.encode_image(source_images)
            @ eve.encode_text(texts).T
            / contrast.features.temperature.item()
        )
        np.testing.assert_allclose(outputs.logits_per_image, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(outputs.text_embeds, words)


def test_inputs_that_do_not_fit_are_named(loaded):
    task, model, _, _ = loaded
    inputs = inputs_of(task, batch_of(task))
    with pytest.raises(
        UserError, match=r"are torch.float32 \(5, 3, 8, 8\), expected float \(B, 3, 16, 16\)"
    ):
        model(**inputs | {"pixel_values": inputs["pixel_values"][:, :, :8, :8]})
    with pytest.raises(UserError, match=r"are torch.uint8 \(5, 3, 16, 16\)"):
        model(**inputs | {"pixel_values": inputs["pixel_values"].byte()})
    with pytest.raises(UserError, match=r"text of 13 tokens, but input.text_length is 12"):
        model(
            **inputs | {"input_ids": torch.ones(5, 13, dtype=torch.int64), "attention_mask": None}
        )
    if not isinstance(task, Retrieval):
        for name in inputs.keys() - {"attention_mask"}:
            with pytest.raises(UserError, match=f"^{name} is missing"):
                model(**inputs | {name: None})
    if not isinstance(task, NLVR2):
        with pytest.raises(UserError, match="reads one image; leave out pixel_values_right"):
            model(**inputs, pixel_values_right=inputs["pixel_values"])
    if isinstance(task, VQA):
        with pytest.raises(ValueError, match="Target size"):
            model(**inputs, labels=torch.zeros(5))


def test_without_transformers_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "eve_vl.interop.hf")
    with pytest.raises(
        ImportError, match=r"^eve_vl.interop.hf needs transformers: pip install 'eve-vl\[hf\]'$"
    ):
        importlib.import_module("eve_vl.interop.hf")


def test_features_are_those_of_eve(loaded):
    _, model, processor, folder = loaded
    source_images = [noise_image(seed) for seed in range(3)]
    texts = [*CAPTIONS[:2], "a"]
    inputs = processor(images=source_images, text=texts)
    eve = Eve.load(folder.parent / "run", device="cpu")
    with torch.no_grad():
        images = model.get_image_features(inputs["pixel_values"]).pooler_output
        words = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        features = model.get_text_features(processor(text=texts[1])["input_ids"]).pooler_output
    np.testing.assert_allclose(images, eve.encode_image(source_images), atol=1e-5)
    np.testing.assert_allclose(words, eve.encode_text(texts), atol=1e-5)
    np.testing.assert_allclose(features, words[1:2], atol=1e-5)
    with pytest.raises(UserError, match=r"are torch.float32 \(3, 3, 8, 8\)"):
        model.get_image_features(inputs["pixel_values"][:, :, :8, :8])


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # dynamo instantiates it
def test_a_compiled_model_gives_the_same(tmp_path):
    """Float32 on CPU, where torch.compile does not know that grouped_mm takes it."""
    task = write("vqa", tmp_path / "run", model={"depth": 1, "num_deep_blocks": 1})
    model, _ = hf.from_run(tmp_path / "run")
    inputs = inputs_of(task, batch_of(task))
    with torch.no_grad():
        expected = model(**inputs).logits
        logits = torch.compile(model, backend="eager")(**inputs).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_what_is_no_run_folder_says_how_to_make_one(loaded, tmp_path):
    _, _, _, folder = loaded
    with pytest.raises(
        UserError,
        match=r"hub: was saved by transformers; .*: hf\.to_run\(model, processor, FOLDER\)$",
    ):
        Eve.load(folder)
    (tmp_path / "eve.pth").write_bytes(b"weights")
    with pytest.raises(
        UserError, match=r"is a file, not a run folder; .*: eve convert .*eve\.pth FOLDER$"
    ):
        Eve.load(tmp_path / "eve.pth")
