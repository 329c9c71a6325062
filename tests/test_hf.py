"""The hub interface against our own data path and our own tasks.

Letters: B batch, T text tokens, A answers, D width.
"""

import dataclasses
import importlib
import io
import json
import math
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_data_tokenizer import TRICKY, word_level
from tiny_tasks import ANSWER_LIST, TOKENIZER, build, config_of, eval_set, rows_of, train_set
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)
from twins import CAPTIONS, ListSource, pairs, tiny_config

from eve_vl import hf
from eve_vl.config import Config, ContrastMatchConfig, EveModelConfig, InputConfig, VQAConfig, to_dict
from eve_vl.convert.published import write_run
from eve_vl.data.batch import Sample, Texts
from eve_vl.data.dataset import MaskedPairs
from eve_vl.data.downstream import QuestionRows
from eve_vl.data.records import ImageBytes, ImageFile, ImageQuestion
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.errors import UserError
from eve_vl.eve import Eve
from eve_vl.hf.processing import EveTokenizerFast
from eve_vl.loading import load_run
from eve_vl.tasks.masked_signal import MaskedSignal
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.tasks.task import Task
from eve_vl.tasks.vqa import VQA

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


def tiny(name: str, **sections: dict) -> tuple[Config, Task[Any]]:
    config = tiny_config(task={"mim_weight": 0.0}, **sections) if name == "masked" else config_of(name, **sections)
    return config, build(config)


def write(name: str, folder: Path, **sections: dict) -> Task[Any]:
    """Write a run folder and return its task."""
    config, task = tiny(name, **sections)
    config = dataclasses.replace(config, out=folder, init=folder / "init")
    if isinstance(config.task, VQAConfig):
        config = dataclasses.replace(config, task=VQAConfig(answers=folder / "answers.txt"))
    write_run(folder, config, TOKENIZER, task)
    return task


def batch_of(task: Task[Any], count: int = 5) -> Any:
    """A batch of rows from our own data path."""
    if isinstance(task, MaskedSignal):
        return rows_of(MaskedPairs([pairs(count)], task.config, TOKENIZER, training=True), count)
    return rows_of(train_set(task.config, count) if isinstance(task, Retrieval) else eval_set(task.config, count), count)


def inputs_of(task: Task[Any], batch: Any) -> dict[str, torch.Tensor]:
    """The same batch by the names of transformers, pixels in plain arithmetic."""
    ids_BT = batch.ids_BT
    if isinstance(task, MaskedSignal):
        ids_BT = ids_BT.masked_fill(batch.is_masked_BT, TOKENIZER.mask_id)
    found = {
        "pixel_values": batch.images_BCHW / 127.5 - 1,
        "input_ids": ids_BT,
        "attention_mask": (~batch.is_padding_BT).long(),
    }
    return found | ({"pixel_values_right": batch.right_BCHW / 127.5 - 1} if isinstance(task, NLVR2) else {})


@pytest.fixture(scope="module", params=KINDS)
def loaded(request, tmp_path_factory) -> tuple[Task[Any], Any, Any, Path]:
    """A task, its model and processor by way of a run folder, and the folder that they were saved in."""
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
            torch.testing.assert_close(output.logits[batch.is_masked_BT], expected_MV, rtol=1e-5, atol=1e-5)
        else:
            image_Id, text_Cd = task.image_features(batch.images_BCHW), task.text_features(batch.ids_BT, batch.is_padding_BT)
            torch.testing.assert_close(output.image_embeds, image_Id, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(output.text_embeds, text_Cd, rtol=1e-5, atol=1e-6)
            for i, image in enumerate(image_Id):
                for c, text in enumerate(text_Cd):
                    expected = (image @ text).item() / task.contrast.features.temperature.item()
                    assert output.logits_per_image[i, c].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert torch.equal(output.logits_per_text, output.logits_per_image.T)
            if task.contrast.match_head is None:
                assert output.match_logits is None
            else:
                text = task.encoder.text(batch.ids_BT, batch.is_padding_BT)
                states_BTD = task.encoder.encode(task.encoder.image(batch.images_BCHW / 127.5 - 1), text).text_BTD
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
        labels = batch.picture_B
    torch.manual_seed(0)  # hard negatives are drawn
    expected = task(batch).loss
    torch.manual_seed(0)
    found = model(**inputs_of(task, batch), labels=labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.requires_grad
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


def test_retrieval_in_training_computes_the_loss_alone(tmp_path):
    task = write("retrieval", tmp_path / "run")
    model, _ = hf.from_run(tmp_path / "run")
    batch = batch_of(task)
    output = model.train()(**inputs_of(task, batch), labels=batch.picture_B)
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
        model(**inputs, labels=batch.picture_B)


def test_the_encoder_alone(loaded):
    task, _, _, folder = loaded
    model = AutoModel.from_pretrained(folder)
    assert type(model) is hf.EveModel
    assert {name.split(".")[1] for name in model.state_dict()} == {"encoder"}
    batch = batch_of(task)
    inputs = inputs_of(task, batch)
    inputs.pop("pixel_values_right", None)
    image, text = task.encoder.image(inputs["pixel_values"]), task.encoder.text(inputs["input_ids"], batch.is_padding_BT)
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
    assert all(torch.equal(one, other) for one, other in zip(with_mask, without, strict=True))


# There and back


def test_saved_and_loaded_models_are_the_same_to_the_bit(loaded):
    task, model, _, folder = loaded
    assert not list(folder.glob("*.bin"))
    again = type(model).from_pretrained(folder)
    assert not again.training
    tensors = again.state_dict()
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
    inputs = inputs_of(task, batch_of(task))
    with torch.no_grad():
        first, second = model(**inputs), again(**inputs)
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
    assert run.tokenizer.encode(CAPTIONS[0], 12)[0].tolist() == TOKENIZER.encode(CAPTIONS[0], 12)[0].tolist()
    if isinstance(run.task, VQA):
        assert run.task.answers == ANSWER_LIST
        assert Eve.load(tmp_path / "back", device="cpu").answer(noise_picture(0), "which?")[0].answer in ANSWER_LIST
    with pytest.raises(UserError, match="already exists"):
        hf.to_run(model, processor, tmp_path / "back")
    processor = hf.EveProcessor.from_eve(Tokenizer.train(["many other words"] * 9, 900), InputConfig())
    model.config.vocab_size, size = 100, model.config.vocab_size
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
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.num_attention_heads) == (16, 3, 2)


def test_a_run_without_a_head_for_tokens_gives_its_encoder(tmp_path):
    config = tiny_config(task={"mlm_weight": 0.0})
    task = build(config)
    write_run(tmp_path / "run", config, TOKENIZER, task)
    model, _ = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveModel
    encoder = {name: tensor for name, tensor in task.state_dict().items() if name.startswith("encoder.")}
    assert all(torch.equal(tensor, model.task.state_dict()[name]) for name, tensor in encoder.items())
    with pytest.raises(UserError, match=r"needs the head for tokens, but task.mlm_weight is 0"):
        hf.EveForMaskedModeling(hf.EveConfig(**hf_sections(task), vocab_size=300))


def test_what_earlier_versions_saved_still_loads(tmp_path):
    """Sizes were part of the model, which had no name; a bare encoder was masked_signal without losses, a rival with more."""
    bare = {"name": "masked_signal", "mim_weight": 0.0, "mlm_weight": 0.0, "itc_weight": 0.0}
    rival = {"name": "masked_signal", "mim_weight": 0.0, "itc_weight": 1.0, "itm_weight": 1.0}
    run = write("vqa", tmp_path / "run")
    hf.from_run(tmp_path / "run")[0].save_pretrained(tmp_path / "hub")
    now = json.loads((tmp_path / "hub" / "config.json").read_text())
    for task, kind, name in (
        (now["task"], hf.EveForVisualQuestionAnswering, "vqa"),
        (bare, hf.EveModel, "encoder"),
        (rival, hf.EveForMaskedModeling, "contrast_match"),
    ):
        model = {key: value for key, value in now["model"].items() if key != "name"} | now["input"]
        old = {key: value for key, value in now.items() if key not in ("input", "format")} | {"model": model, "task": task}
        (tmp_path / "hub" / "config.json").write_text(json.dumps(old))
        loaded = kind.from_pretrained(tmp_path / "hub")
        assert (loaded.config.task["name"], loaded.task.config.input) == (name, run.config.input)
        for key, tensor in run.encoder.state_dict().items():
            assert torch.equal(tensor, loaded.task.encoder.state_dict()[key])
    (tmp_path / "hub" / "config.json").write_text(json.dumps(now | {"format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        AutoConfig.from_pretrained(tmp_path / "hub")


def test_rivals_have_a_class_of_their_own(tmp_path):
    config = tiny_config(task=ContrastMatchConfig(projection_dim=8))
    write_run(tmp_path / "run", config, TOKENIZER, build(config))
    model, _ = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveForContrastMatch
    assert isinstance(model, hf.EveForMaskedModeling)
    model.save_pretrained(tmp_path / "hub")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "hub")
    assert again.config.task["name"] == "contrast_match"
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(AttributeError, match="EveForNothing"):
        _ = hf.EveForNothing


# Loading


def test_fine_tuning_starts_from_the_encoder_of_another_task(tmp_path):
    task = write("masked", tmp_path / "run")
    hf.from_run(tmp_path / "run")[0].save_pretrained(tmp_path / "hub")
    model = hf.EveForVisualQuestionAnswering.from_pretrained(tmp_path / "hub", id2label={0: "yes", 1: "no", 2: "red"})
    for name, tensor in task.encoder.state_dict().items():
        assert torch.equal(tensor, model.task.encoder.state_dict()[name])
    assert model.task.answers == ("yes", "no", "red")
    assert model.config.task["name"] == "vqa"
    last = model.task.answer_head[3]
    torch.testing.assert_close(last.bias.detach(), torch.full((3,), -math.log(2)))  # as VQA starts
    assert 0.2 < last.weight.std() < 0.4  # model.init_std 0.3
    model.save_pretrained(tmp_path / "vqa")
    assert AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "vqa").task.answers == ("yes", "no", "red")


class Evil:
    """What a pickle may do: write a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code ran")


def test_pickles_are_refused(tmp_path):
    write("vqa", tmp_path / "run")
    hf.from_run(tmp_path / "run")[0].save_pretrained(tmp_path / "hub")
    proof, hub = tmp_path / "proof", tmp_path / "hub"
    torch.save({"task.encoder.image.cls": Evil(proof)}, hub / "pytorch_model.bin")
    torch.load(hub / "pytorch_model.bin", weights_only=False)
    assert proof.read_text() == "code ran"  # the file is armed
    proof.unlink()
    with pytest.raises(UserError, match="would load a pickle, which can run code"):
        hf.EveModel.from_pretrained(hub, use_safetensors=False)
    hf.EveModel.from_pretrained(hub, dtype="auto")
    with pytest.raises(UserError, match=r"the weights stay float32"):
        hf.EveModel.from_pretrained(hub, dtype=torch.bfloat16)
    (hub / "model.safetensors").unlink()
    for load in (hf.EveModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            load(hub)
    shutil.copy(hub / "pytorch_model.bin", hub / "model.safetensors")
    with pytest.raises(Exception, match=r"(?i)header|safetensor"):
        hf.EveModel.from_pretrained(hub)
    (hub / "model.safetensors").write_bytes(pickle.dumps(Evil(proof)))
    with pytest.raises(Exception, match=r"(?i)header|safetensor"):
        hf.EveModel.from_pretrained(hub)
    assert not proof.exists()


def test_configs_are_checked(tmp_path):
    model = to_dict(tiny_config().model)
    with pytest.raises(UserError, match="unknown key 'dpeth'; did you mean 'depth'"):
        hf.EveConfig(model=model | {"dpeth": 3})
    with pytest.raises(UserError, match="embed_dim 15 is not divisible by num_heads 2"):
        hf.EveConfig(model=model | {"embed_dim": 15})
    assert hf.EveConfig().run.model == EveModelConfig()
    assert hf.EveConfig(model=model) != hf.EveConfig()
    config = hf.EveConfig(model=model, vocab_size=99)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


def test_inputs_that_do_not_fit_are_named(loaded):
    task, model, _, _ = loaded
    inputs = inputs_of(task, batch_of(task))
    with pytest.raises(UserError, match=r"are torch.float32 \(5, 3, 8, 8\), expected float \(B, 3, 16, 16\)"):
        model(**inputs | {"pixel_values": inputs["pixel_values"][:, :, :8, :8]})
    with pytest.raises(UserError, match=r"are torch.uint8 \(5, 3, 16, 16\)"):
        model(**inputs | {"pixel_values": inputs["pixel_values"].byte()})
    with pytest.raises(UserError, match=r"text of 13 tokens, but input.text_length is 12"):
        model(**inputs | {"input_ids": torch.ones(5, 13, dtype=torch.int64), "attention_mask": None})
    if not isinstance(task, Retrieval):
        for name in inputs.keys() - {"attention_mask"}:
            with pytest.raises(UserError, match=f"^{name} is missing"):
                model(**inputs | {name: None})
    if not isinstance(task, NLVR2):
        with pytest.raises(UserError, match="looks at one picture: leave out pixel_values_right"):
            model(**inputs, pixel_values_right=inputs["pixel_values"])
    if isinstance(task, VQA):
        with pytest.raises(UserError, match=r"labels of shape \(5,\), expected soft targets \(5, 8\)"):
            model(**inputs, labels=torch.zeros(5))


def test_without_transformers_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "eve_vl.hf")
    with pytest.raises(ImportError, match=r"^eve_vl.hf needs transformers: pip install 'eve-vl\[hf\]'$"):
        importlib.import_module("eve_vl.hf")


# Processors


def noise_picture(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def test_pixels_are_those_of_our_evaluation(tmp_path):
    smooth = Image.fromarray(noise_picture(1, 12, 9)).resize((150, 90), Image.Resampling.BICUBIC)
    files = [encoded(smooth, "JPEG"), encoded(smooth, "PNG"), encoded(smooth.convert("L"), "JPEG")]
    files += [encoded(smooth.convert("RGBA"), "PNG"), encoded(smooth.resize((16, 16)), "PNG")]
    rows = [
        ImageQuestion(
            image=ImageBytes(data=data), question="a", question_id=number, answers=("red",), answer_type="", where="x"
        )
        for number, data in enumerate(files)
    ]
    config = config_of("vqa")
    expected = rows_of(QuestionRows([ListSource(rows)], config, TOKENIZER, training=False), len(rows)).pixels()
    processor = hf.EveProcessor.from_eve(TOKENIZER, config.input)
    paths = []
    for number, data in enumerate(files):
        paths.append(tmp_path / f"{number}.img")
        paths[-1].write_bytes(data)
    for given in (files, paths, list(map(str, paths)), [ImageFile(path=path) for path in paths]):
        found = processor(images=given)["pixel_values"]
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
    opened = processor(images=[Image.open(path) for path in paths[1:2] + paths[3:]])["pixel_values"]
    assert torch.equal(opened, expected[[1, 3, 4]])
    assert torch.equal(processor(images=files[1])["pixel_values"], expected[1:2])
    assert expected.min() < -0.5
    assert expected.max() > 0.5
    both = processor(images=files[0], images_right=files[1], text="a red circle")
    assert set(both) == {"pixel_values", "pixel_values_right", "input_ids", "attention_mask"}
    assert torch.equal(both["pixel_values_right"], expected[1:2])
    with pytest.raises(UserError, match="give images, text or both"):
        processor()
    with pytest.raises(UserError, match="expected a square"):
        hf.EveImageProcessor(size={"height": 16, "width": 20})


def bert(folder: Path) -> Tokenizer:
    """It puts a [SEP] last."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "red",
        "circle",
        "##s",
        "two",
        "on",
        "gray",
        ",",
        "[",
        "]",
        "mask",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    return Tokenizer.load(folder / "vocab.txt")


def words(folder: Path) -> Tokenizer:
    """It adds no [CLS] by itself, and knows its special tokens as plain words."""
    word_level({"<pad>": 0, "<unk>": 1, "<s>": 2, "<mask>": 3, "red": 4, "circle": 5}).save(str(folder / "words.json"))
    return Tokenizer.load(folder / "words.json")


@pytest.mark.parametrize("make", [lambda _: TOKENIZER, bert, words], ids=["bpe", "bert", "words"])
def test_ids_are_those_of_our_tokenizer(tmp_path, make):
    own = make(tmp_path)
    texts = [*CAPTIONS, *TRICKY, "red " * 30, "a [MASK] circle, <mask>", " red"]
    before = own.to_json()
    EveTokenizerFast.from_eve(own, tiny_config().input).save_pretrained(tmp_path / "hub")
    assert own.to_json() == before
    tokenizer = EveTokenizerFast.from_pretrained(tmp_path / "hub")
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id) == (own.pad_id, own.cls_id, own.mask_id)
    assert len(tokenizer) <= own.vocab_size
    expected = [own.encode(text, 12)[0].tolist() for text in texts]
    assert [tokenizer(text, truncation=True)["input_ids"] for text in texts] == expected
    assert tokenizer(texts, truncation=True)["input_ids"] == expected
    assert tokenizer(texts)["input_ids"] == [own.encode(text, 999)[0].tolist() for text in texts]
    for padding, length in ((True, 0), ("max_length", 12)):
        found = tokenizer(texts, truncation=True, padding=padding, return_tensors="pt")
        batch = batch_of_ids(expected, own.pad_id, length)
        assert torch.equal(found["input_ids"], batch.ids_BT)
        assert torch.equal(found["attention_mask"] == 0, batch.is_padding_BT)
    one = tokenizer(texts[0], return_tensors="pt")
    assert one["input_ids"].tolist() == [own.encode(texts[0], 999)[0].tolist()]


def batch_of_ids(rows: list[list[int]], pad_id: int, length: int) -> Texts:
    return Texts.collate([Sample(ids_T=np.array(row), where="") for row in rows], pad_id, length)


def test_masks_are_those_of_fill_mask(tmp_path):
    tokenizer = EveTokenizerFast.from_eve(TOKENIZER, tiny_config().input)
    for text in ("a [MASK] circle", "[MASK] triangle, [MASK] heart", "a [MASK], two", "red " * 20 + "[MASK]", "no mask"):
        found = tokenizer(text, truncation=True, split_special_tokens=False)
        assert found["input_ids"] == TOKENIZER.encode_with_masks(text, 12)[0].tolist()
        assert found["attention_mask"] == [1] * len(found["input_ids"])
    assert TOKENIZER.mask_id in tokenizer(["a", "a [MASK]"], split_special_tokens=False)["input_ids"][1]
    write("masked", tmp_path / "run")
    model, processor = hf.from_run(tmp_path / "run")
    picture, text = noise_picture(0), "a [MASK] circle"
    inputs = processor(images=picture, text=text, split_special_tokens=False)
    assert isinstance(model, hf.EveForMaskedModeling)
    place = (inputs["input_ids"][0] == TOKENIZER.mask_id).nonzero().item()
    best = model(**inputs).logits[0, int(place)].softmax(0).max()
    guess = Eve.load(tmp_path / "run", device="cpu").fill_mask(picture, text).guesses[0][0]
    assert best.item() == pytest.approx(guess.probability, rel=1e-4)


def test_texts_are_padded_as_a_run_wants_them(tmp_path):
    write("vqa", tmp_path / "run", input={"padded_text_length": 10}, model={"routing": "official-dropless"})
    model, processor = hf.from_run(tmp_path / "run")
    processor.save_pretrained(tmp_path / "hub")
    processor = AutoProcessor.from_pretrained(tmp_path / "hub")
    assert processor(text="a red circle")["input_ids"].shape == (1, 10)
    assert processor(text="red " * 30)["input_ids"].shape == (1, 10)
    picture = noise_picture(0)
    logits_A = model(**processor(images=picture, text="a red circle")).logits[0]
    answers = Eve.load(tmp_path / "run", device="cpu").answer(picture, "a red circle", top=8)
    expected = {answer.answer: answer.probability for answer in answers}
    assert dict(zip(ANSWER_LIST, logits_A.sigmoid().tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)


# Trainer


def test_one_step_of_the_trainer(tmp_path):
    task = write("vqa", tmp_path / "run")
    model, processor = hf.from_run(tmp_path / "run")
    rows = []
    for number in range(4):
        inputs = processor(images=noise_picture(number), text=CAPTIONS[number], padding="max_length")
        labels = F.one_hot(torch.tensor(number), len(ANSWER_LIST)).float() * 0.9
        rows.append({name: value[0] for name, value in inputs.items()} | {"labels": labels})
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, processing_class=processor)  # pyright: ignore
    loss = trainer.train().training_loss
    assert 0 < loss < math.inf
    changed = [name for name, tensor in task.state_dict().items() if not torch.equal(tensor, model.task.state_dict()[name])]
    assert {"encoder.image.proj.weight", "encoder.text.words.weight", "answer_head.3.weight"} <= set(changed)
    (saved,) = (tmp_path / "trainer").glob("checkpoint-1")
    again = hf.EveForVisualQuestionAnswering.from_pretrained(saved)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert torch.isfinite(torch.tensor(trainer.evaluate(rows)["eval_loss"]))  # pyright: ignore
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["EveForVisualQuestionAnswering"]
    assert transformers.AutoProcessor.from_pretrained(saved).tokenizer.model_max_length == 12
