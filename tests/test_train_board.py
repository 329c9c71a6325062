"""What TensorBoard shows besides curves: images and texts of validation, the config beside the last numbers; for free."""

import json
from pathlib import Path

import torch
from report_page import tiny
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.masked_signal import MaskedSignalEvaluator
from eve_vl.run.training import train
from eve_vl.synthetic.scenes import ScenePairs
from eve_vl.train.log import TIMING, read_log


def test_images_texts_and_hparams(tmp_path: Path, monkeypatch):
    captions = [caption for row in range(200) for caption in ScenePairs(split="train", image_size=32)[row].captions]
    (tmp_path / "tokenizer.json").write_text(Tokenizer.train(captions, 400).to_json())
    noise = {"model": {"dropout": 0.1}, "data": {"flip": True, "val_samples": 8}}
    train(tiny(tmp_path / "run", tmp_path / "tokenizer.json", steps=4, **noise))
    board = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()
    (image,) = board.Tags()["images"]
    assert [(event.step, event.width, event.height) for event in board.Images(image)] == [(2, 96, 128), (4, 96, 128)]
    text = board.Tensors("texts, true and filled/text_summary")[-1].tensor_proto.string_val[0].decode()
    true, filled = text.split("\n\n")[:2]
    tokenizer = Tokenizer.load(tmp_path / "run/tokenizer.json")
    assert len(tokenizer.encode(true, 64)[0]) == len(tokenizer.encode(filled, 64)[0]) and true != filled
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    shown = board.Tags()["scalars"]
    del metrics["certainty"]
    assert {f"hparams/{name}" for name in metrics} <= set(shown)
    assert board.Scalars("hparams/mlm_loss")[-1].value == torch.tensor(metrics["mlm_loss"]).item()
    assert "_hparams_/session_start_info" in board.summary_metadata
    hparams = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"train.lr" in hparams and b"model.depth" in hparams

    monkeypatch.setattr(MaskedSignalEvaluator, "log_samples", lambda *_: {})
    train(tiny(tmp_path / "without", tmp_path / "tokenizer.json", steps=4, **noise))
    for file in ("model", "rng_0"):
        one, two = (load_file(tmp_path / run / f"checkpoints/step_00000004/{file}.safetensors") for run in ("run", "without"))
        assert all(torch.equal(one[name], two[name]) for name in one if "/" not in name and one[name].isfinite().all())
    logs = [
        [{name: row[name] for name in row if name not in TIMING} for row in read_log(tmp_path / run)]
        for run in ("run", "without")
    ]
    assert logs[0] == logs[1]
