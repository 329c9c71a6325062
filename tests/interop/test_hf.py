"""The transformers interface against our own data path and tasks.

Letters: B batch, T text tokens, D width, I images, C captions, V vocabulary, M masked tokens,
d width of features.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
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
from helpers.hf_runs import noise_image, write
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import CAPTIONS, pairs
from helpers.tiny_tasks import ANSWER_LIST, TOKENIZER, build, eval_set, rows_of, train_set

CLASSES = {
    "masked": hf.EveForMaskedModeling,
    "vqa": hf.EveForVisualQuestionAnswering,
    "nlvr2": hf.EveForNLVR2,
    "nlvr2_paired": hf.EveForNLVR2,
    "nlvr2_compare": hf.EveForNLVR2,
    "retrieval": hf.EveForRetrieval,
    "retrieval_merged": hf.EveForRetrieval,
    "retrieval_itc": hf.EveForRetrieval,
}
AUTO_CLASSES = {
    "masked": AutoModelForMaskedLM,
    "vqa": AutoModelForVisualQuestionAnswering,
    "retrieval": AutoModelForZeroShotImageClassification,
}
MEDFLIP = DualEncoderConfig(
    embed_dim=16,
    image_depth=1,
    text_depth=1,
    num_heads=2,
    mlp_ratio=2.0,
    init_std=0.3,
)
IMAGES = [noise_image(seed) for seed in range(3)]
TEXTS = [*CAPTIONS[:2], "a"]


@dataclass
class Hub:
    """A task, its model and processor by way of a run folder, and where they were saved."""

    kind: str
    task: Any
    model: Any
    processor: Any
    run: Path
    folder: Path

    def batch(self) -> Any:
        """Return rows from our own data path."""
        config = self.task.config
        if isinstance(self.task, MaskedSignal):
            dataset = MaskedPairs([pairs(5)], config, TOKENIZER, training=True)
        elif isinstance(self.task, Retrieval):
            dataset = train_set(config, 5)
        else:
            dataset = eval_set(config, 5)
        return rows_of(dataset, 5)


@pytest.fixture(scope="module")
def write_hub(tmp_path_factory) -> Callable[[str], Hub]:
    """Return a function that writes a kind of task, once."""

    @cache
    def write_once(kind: str) -> Hub:
        top = tmp_path_factory.mktemp(kind)
        task = write(kind, top / "run")
        model, processor = hf.from_run(top / "run")
        assert type(model) is CLASSES[kind]
        model.save_pretrained(top / "hub")
        processor.save_pretrained(top / "hub")
        return Hub(kind, task, model, processor, top / "run", top / "hub")

    return write_once


@pytest.fixture
def hub(request, write_hub) -> Hub:
    """A saved model of the kind that a test's marks name."""
    return write_hub(request.param)


def kinds(*names: str) -> pytest.MarkDecorator:
    """Run a test with saved models of some kinds."""
    return pytest.mark.parametrize("hub", names, indirect=True)


def inputs_of(task: Task[Any], batch: Any) -> dict[str, Tensor]:
    """Return a batch by the names of transformers, pixels in plain arithmetic."""
    ids_BT = batch.ids_BT
    if isinstance(task, MaskedSignal):
        ids_BT = ids_BT.masked_fill(batch.is_masked_BT, TOKENIZER.mask_id)
    inputs = {
        "pixel_values": batch.images_BCHW / 127.5 - 1,
        "input_ids": ids_BT,
        "attention_mask": (~batch.is_padding_BT).long(),
    }
    if isinstance(task, NLVR2):
        inputs["pixel_values_right"] = batch.right_BCHW / 127.5 - 1
    return inputs


# Models


@kinds("vqa", "nlvr2", "nlvr2_paired", "nlvr2_compare")
@torch.no_grad()
def test_logits_of_classifiers_are_those_of_the_task(hub):
    task = hub.task
    batch = hub.batch()
    logits = hub.model(**inputs_of(task, batch)).logits
    torch.testing.assert_close(logits, task.predict(batch)[0], rtol=1e-5, atol=1e-6)
    assert logits.std(0).min() > 1e-3


@kinds("masked")
@torch.no_grad()
def test_logits_of_masked_tokens_are_those_of_the_task(hub):
    task = hub.task
    batch = hub.batch()
    logits_BTV = hub.model(**inputs_of(task, batch)).logits
    expected_MV = task.predict_tokens(task.encode(batch, mask=True), batch)
    assert logits_BTV.shape == (*batch.ids_BT.shape, TOKENIZER.vocab_size)
    actual_MV = logits_BTV[batch.is_masked_BT]
    torch.testing.assert_close(actual_MV, expected_MV, rtol=1e-5, atol=1e-5)


@kinds("retrieval", "retrieval_merged", "retrieval_itc")
@torch.no_grad()
def test_features_and_logits_of_retrieval_are_those_of_the_task(hub):
    task = hub.task
    batch = hub.batch()
    output = hub.model(**inputs_of(task, batch))
    image_Id = task.image_features(batch.images_BCHW)
    text_Cd = task.text_features(batch.ids_BT, batch.is_padding_BT)
    torch.testing.assert_close(output.image_embeds, image_Id, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.text_embeds, text_Cd, rtol=1e-5, atol=1e-6)
    temperature = task.contrast.features.temperature
    expected_IC = image_Id @ text_Cd.T / temperature
    torch.testing.assert_close(output.logits_per_image, expected_IC, rtol=1e-4, atol=1e-4)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)

    if hub.kind == "retrieval_itc":
        assert output.match_logits is None
        return
    image = task.encoder.image(batch.images_BCHW / 127.5 - 1)
    text = task.encoder.text(batch.ids_BT, batch.is_padding_BT)
    states_BTD = task.encoder.encode(image, text).text_BTD
    expected_B2 = task.contrast.match_head(states_BTD[:, 0])
    torch.testing.assert_close(output.match_logits, expected_B2, rtol=1e-4, atol=1e-5)


def labels_of(task: Task[Any], batch: Any) -> Tensor:
    """Return what transformers takes as labels."""
    if isinstance(task, VQA):
        labels = task.targets(batch)
        assert labels.sum() > 0
        return labels
    if isinstance(task, NLVR2):
        return torch.tensor(batch.labels).long()
    if isinstance(task, MaskedSignal):
        return batch.ids_BT.masked_fill(~batch.is_masked_BT, -100)
    return batch.image_id_B


@kinds(*CLASSES)
def test_loss_is_that_of_our_tasks(hub):
    task = hub.task
    batch = hub.batch()
    torch.manual_seed(0)  # hard negatives are sampled
    expected = task(batch).loss
    torch.manual_seed(0)
    loss = hub.model(**inputs_of(task, batch), labels=labels_of(task, batch)).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert loss.requires_grad
    assert task.config.model.balance_weight > 0  # balance is part of the loss


@kinds("retrieval")
def test_retrieval_computes_what_its_inputs_allow(hub):
    model = hub.model
    inputs = inputs_of(hub.task, hub.batch())
    labels = hub.batch().image_id_B
    model.train()
    assert set(model(**inputs, labels=labels)) == {"loss"}
    model.eval()
    assert set(model(**inputs)) >= {"image_embeds", "match_logits"}
    assert set(model(pixel_values=inputs["pixel_values"])) == {"image_embeds"}
    assert set(model(input_ids=inputs["input_ids"])) == {"text_embeds"}
    inputs["pixel_values"] = inputs["pixel_values"][:2]
    output = model(**inputs)
    assert output.match_logits is None
    assert output.logits_per_image.shape == (2, 5)
    with pytest.raises(UserError, match="labels need as many"):
        model(**inputs, labels=labels)


@kinds("masked", "nlvr2", "retrieval")
@torch.no_grad()
def test_the_encoder_without_heads(hub):
    encoder = hub.task.encoder
    batch = hub.batch()
    model = AutoModel.from_pretrained(hub.folder)
    assert type(model) is hf.EveModel
    assert {name.split(".")[1] for name in model.state_dict()} == {"encoder"}
    inputs = inputs_of(hub.task, batch)
    inputs.pop("pixel_values_right", None)
    image = encoder.image(inputs["pixel_values"])
    text = encoder.text(inputs["input_ids"], batch.is_padding_BT)
    for names, tokens, cls_position in (
        (["pixel_values"], (image, None), 0),
        (["input_ids", "attention_mask"], (None, text), 0),
        (inputs, (image, text), 17),
    ):
        output = model(**{name: inputs[name] for name in names})
        expected_BND = encoder.encode(*tokens).x_BND
        torch.testing.assert_close(output.last_hidden_state, expected_BND, rtol=1e-5, atol=1e-6)
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, cls_position])
    with pytest.raises(UserError, match="give pixel_values, input_ids or both"):
        model()
    with pytest.raises(UserError, match="leave out labels"):
        model(**inputs, labels=torch.zeros(5))


@kinds("masked", "nlvr2", "retrieval", "retrieval_itc")
@torch.no_grad()
def test_features_are_those_of_eve(hub):
    model = hub.model
    inputs = hub.processor(images=IMAGES, text=TEXTS)
    eve = Eve.load(hub.run, device="cpu")
    image = model.get_image_features(inputs["pixel_values"]).pooler_output
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    np.testing.assert_allclose(image, eve.encode_image(IMAGES), atol=1e-5)
    np.testing.assert_allclose(text, eve.encode_text(TEXTS), atol=1e-5)
    ids = hub.processor(text=TEXTS[1])["input_ids"]
    single = model.get_text_features(ids).pooler_output
    np.testing.assert_allclose(single, text[1:2], atol=1e-5)
    with pytest.raises(UserError, match=r"are torch.float32 \(3, 3, 8, 8\)"):
        model.get_image_features(inputs["pixel_values"][:, :, :8, :8])


# There and back


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    weights = second.state_dict()
    assert first.state_dict().keys() == weights.keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@kinds(*CLASSES)
@torch.no_grad()
def test_saved_and_loaded_models_are_the_same_to_the_bit(hub):
    model = hub.model
    folder = hub.folder
    assert not list(folder.glob("*.bin"))
    again = type(model).from_pretrained(folder)
    assert not again.training
    assert_same_weights(again, model)
    unnamed = {"_name_or_path": ""}
    assert again.config.to_dict() | unnamed == model.config.to_dict() | unnamed
    inputs = inputs_of(hub.task, hub.batch())
    outputs = model(**inputs)
    again_outputs = again(**inputs)
    assert outputs.keys() == again_outputs.keys()
    for name, value in outputs.items():
        assert torch.equal(value, again_outputs[name]), name
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], next(iter(outputs.values())))


@kinds(*CLASSES)
def test_a_run_folder_comes_back(hub, tmp_path):
    task = hub.task
    hf.to_run(hub.model, hub.processor, tmp_path / "back")
    run = load_run(tmp_path / "back")
    assert run.config.model == task.config.model
    assert run.config.task.name == task.config.task.name
    assert_same_weights(run.task, task)
    ids, _ = run.tokenizer.encode(CAPTIONS[0], 12)
    assert ids.tolist() == TOKENIZER.encode(CAPTIONS[0], 12)[0].tolist()
    if isinstance(run.task, VQA):
        assert run.task.answers == ANSWER_LIST


@kinds("vqa")
def test_a_run_folder_in_use_and_a_foreign_tokenizer_are_refused(hub, tmp_path):
    model = hub.model
    with pytest.raises(UserError, match="already exists"):
        hf.to_run(model, hub.processor, hub.run)
    large = Tokenizer.train([" ".join(f"word{number}" for number in range(300))], 400)
    assert large.vocab_size > TOKENIZER.vocab_size
    processor = hf.EveProcessor.from_eve(large, InputConfig())
    with pytest.raises(UserError, match=f"but the model has {TOKENIZER.vocab_size}"):
        hf.to_run(model, processor, tmp_path / "new")


@kinds("vqa")
def test_saved_files_name_no_folder_of_this_machine(hub):
    folder = str(hub.run.parent)
    assert folder in (hub.run / "config.json").read_text()
    for path in hub.folder.glob("*.json"):
        assert folder not in path.read_text(), path


@kinds(*AUTO_CLASSES)
def test_auto_classes_find_ours(hub):
    folder = hub.folder
    assert type(AUTO_CLASSES[hub.kind].from_pretrained(folder)) is CLASSES[hub.kind]
    assert type(AutoConfig.from_pretrained(folder)) is hf.EveConfig
    assert type(AutoTokenizer.from_pretrained(folder)) is EveTokenizerFast
    assert type(AutoImageProcessor.from_pretrained(folder)) is hf.EveImageProcessor
    assert type(AutoProcessor.from_pretrained(folder)) is hf.EveProcessor


def test_config_has_the_labels_and_sizes_that_transformers_expects(write_hub):
    config = write_hub("vqa").model.config
    assert config.id2label == dict(enumerate(ANSWER_LIST))
    assert config.label2id["3"] == ANSWER_LIST.index("3")
    assert config.hidden_size == 16
    assert config.num_hidden_layers == 3
    assert config.num_attention_heads == 2
    assert write_hub("nlvr2").model.config.id2label == {0: "False", 1: "True"}


def test_a_run_without_a_head_for_tokens_gives_its_encoder(tmp_path):
    config = tiny_config(task={"mlm_weight": 0.0})
    task = build(config)
    write_run(tmp_path / "run", config, TOKENIZER, task)
    model, _ = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveModel
    assert_same_weights(model.task.encoder, task.encoder)
    with pytest.raises(UserError, match=r"needs the head for tokens, but task.mlm_weight is 0"):
        hf.EveForMaskedModeling(
            hf.EveConfig(model=to_dict(config.model), task=to_dict(config.task))
        )


@pytest.mark.parametrize(
    "model",
    [MEDFLIP, tiny_config().model],
    ids=["towers", "eve"],
)
@torch.no_grad()
def test_contrast_without_a_head_for_tokens_is_retrieval(model, tmp_path):
    """As in MedFLIP's pre-training, and EVE's with ITC only: features have the width of the
    projection, not of the states."""
    section = ContrastMatchConfig(mlm_weight=0.0, itm_weight=0.0, projection_dim=6)
    config = dataclasses.replace(tiny_config(task=section), model=model)
    write_run(tmp_path / "run", config, TOKENIZER, build(config))
    model, processor = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveForRetrieval
    model.save_pretrained(tmp_path / "hub")
    again = hf.EveForRetrieval.from_pretrained(tmp_path / "hub")

    eve = Eve.load(tmp_path / "run", device="cpu")
    contrast: Any = eve.task.contrast
    images = eve.encode_image(IMAGES)
    texts = eve.encode_text(TEXTS)
    assert images.shape == (3, 6)
    logits = images @ texts.T / contrast.features.temperature.item()
    output = again(**processor(images=IMAGES, text=TEXTS))
    np.testing.assert_allclose(output.image_embeds, images, atol=1e-5)
    np.testing.assert_allclose(output.text_embeds, texts, atol=1e-5)
    np.testing.assert_allclose(output.logits_per_image, logits, rtol=1e-4, atol=1e-4)


# Mistakes


@pytest.mark.parametrize(
    ("hub", "changes", "message"),
    [
        (
            "vqa",
            {"pixel_values": torch.zeros(5, 3, 8, 8)},
            r"are torch.float32 \(5, 3, 8, 8\), expected float \(B, 3, 16, 16\)",
        ),
        (
            "vqa",
            {"pixel_values": torch.zeros(5, 3, 16, 16, dtype=torch.uint8)},
            r"are torch.uint8 \(5, 3, 16, 16\)",
        ),
        (
            "vqa",
            {"input_ids": torch.ones(5, 13, dtype=torch.int64), "attention_mask": None},
            r"text of 13 tokens, but input.text_length is 12",
        ),
        ("masked", {"pixel_values": None}, "^pixel_values is missing"),
        ("vqa", {"input_ids": None}, "^input_ids is missing"),
        ("nlvr2", {"pixel_values_right": None}, "^pixel_values_right is missing"),
        (
            "retrieval",
            {"pixel_values_right": torch.zeros(5, 3, 16, 16)},
            "reads one image; leave out pixel_values_right",
        ),
    ],
    indirect=["hub"],
)
def test_inputs_that_do_not_fit_are_named(hub, changes, message):
    inputs = inputs_of(hub.task, hub.batch())
    with pytest.raises(UserError, match=message):
        hub.model(**inputs | changes)


def test_without_transformers_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "eve_vl.interop.hf")
    message = r"^eve_vl.interop.hf needs transformers: pip install 'eve-vl\[hf\]'$"
    with pytest.raises(ImportError, match=message):
        importlib.import_module("eve_vl.interop.hf")
