"""transformers: weights of other tasks, foreign files and configs, and the Trainer."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    Trainer,
    TrainingArguments,
)

from eve_vl.config import EveModelConfig, to_dict
from eve_vl.interop import hf
from eve_vl.run.writing import write_run
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.utils.errors import UserError
from helpers.hf_runs import noise_image, write
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import CAPTIONS
from helpers.tiny_tasks import ANSWER_LIST, TOKENIZER, build


def save_model(name: str, folder: Path) -> Path:
    """Save a tiny task as transformers does; return its folder."""
    write(name, folder / "run")
    hf.from_run(folder / "run")[0].save_pretrained(folder / "hub")
    return folder / "hub"


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    weights = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_fine_tuning_starts_from_the_encoder_of_another_task(tmp_path):
    task = write("masked", tmp_path / "run")
    hf.from_run(tmp_path / "run")[0].save_pretrained(tmp_path / "hub")
    names = {0: "yes", 1: "no", 2: "red"}
    model = hf.EveForVisualQuestionAnswering.from_pretrained(tmp_path / "hub", id2label=names)
    assert_same_weights(task.encoder, model.task.encoder)
    assert model.task.answers == ("yes", "no", "red")
    assert model.config.task["name"] == "vqa"
    last = model.task.answer_head[3]
    torch.testing.assert_close(last.bias.detach(), torch.full((3,), -math.log(2)))  # as VQA starts
    assert 0.2 < last.weight.std() < 0.4  # model.init_std 0.3
    model.save_pretrained(tmp_path / "vqa")
    again = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "vqa")
    assert again.task.answers == ("yes", "no", "red")


class Evil:
    """What a pickle may do: write a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code ran")


def test_pickles_are_refused(tmp_path):
    hub = save_model("vqa", tmp_path)
    proof = tmp_path / "proof"
    pickled = hub / "pytorch_model.bin"
    weights = hub / "model.safetensors"
    torch.save({"task.encoder.image.cls": Evil(proof)}, pickled)
    torch.load(pickled, weights_only=False)
    assert proof.read_text() == "code ran"  # the file is armed
    proof.unlink()
    hf.EveModel.from_pretrained(hub, use_safetensors=False)
    weights.unlink()
    for load in (hf.EveModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            load(hub)
    weights.write_bytes(pickled.read_bytes())
    with pytest.raises(Exception, match=r"(?i)header|safetensor"):
        hf.EveModel.from_pretrained(hub)
    assert not proof.exists()


def test_weights_stay_float32(tmp_path):
    hub = save_model("vqa", tmp_path)
    assert hf.EveModel.from_pretrained(hub, dtype="auto").dtype == torch.float32
    with pytest.raises(UserError, match="the weights stay float32"):
        hf.EveModel.from_pretrained(hub, dtype=torch.bfloat16)


def test_configs_are_checked(tmp_path):
    model = to_dict(tiny_config().model)
    with pytest.raises(UserError, match="unknown key 'dpeth'; did you mean 'depth'"):
        hf.EveConfig(model=model | {"dpeth": 3})
    with pytest.raises(UserError, match="embed_dim 15 is not divisible by num_heads 2"):
        hf.EveConfig(model=model | {"embed_dim": 15})
    assert hf.EveConfig().run.model == EveModelConfig()
    assert hf.EveConfig(model=model) != hf.EveConfig()


def test_a_saved_config_is_read_again_unless_it_has_another_format(tmp_path):
    config = hf.EveConfig(model=to_dict(tiny_config().model), vocab_size=99)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert again | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="config format 99 is not supported"):
        AutoConfig.from_pretrained(tmp_path)


def test_baselines_have_a_class_of_their_own(tmp_path):
    config = tiny_config(task=ContrastMatchConfig(projection_dim=8))
    write_run(tmp_path / "run", config, TOKENIZER, build(config))
    model, _ = hf.from_run(tmp_path / "run")
    assert type(model) is hf.EveForContrastMatch
    assert isinstance(model, hf.EveForMaskedModeling)
    model.save_pretrained(tmp_path / "hub")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "hub")
    assert again.config.task["name"] == "contrast_match"
    assert_same_weights(model, again)
    with pytest.raises(AttributeError, match="EveForNothing"):
        _ = hf.EveForNothing


def test_a_step_of_the_trainer_changes_weights_and_saves_them(tmp_path):
    task = write("vqa", tmp_path / "run")
    model, processor = hf.from_run(tmp_path / "run")
    rows = []
    for number in range(4):
        inputs = processor(
            images=noise_image(number),
            text=CAPTIONS[number],
            padding="max_length",
        )
        row = {name: value[0] for name, value in inputs.items()}
        row["labels"] = F.one_hot(torch.tensor(number), len(ANSWER_LIST)).float() * 0.9
        rows.append(row)
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
    assert 0 < trainer.train().training_loss < math.inf
    weights = model.task.state_dict()
    for name in ("encoder.image.proj.weight", "encoder.text.words.weight", "answer_head.3.weight"):
        assert not torch.equal(task.state_dict()[name], weights[name]), name
    (saved,) = (tmp_path / "trainer").glob("checkpoint-1")
    assert_same_weights(hf.EveForVisualQuestionAnswering.from_pretrained(saved), model)
    assert math.isfinite(trainer.evaluate(rows)["eval_loss"])  # pyright: ignore
    architectures = json.loads((saved / "config.json").read_text())["architectures"]
    assert architectures == ["EveForVisualQuestionAnswering"]
    assert AutoProcessor.from_pretrained(saved).tokenizer.model_max_length == 12
