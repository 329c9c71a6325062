"""Two gloo processes under torchrun give the single-process curve at the same global batch."""

import json
from pathlib import Path

import pytest

from eve_vl.train.log import TIMING

FLAGS = (
    *("--train.steps", "8", "--train.log-every", "1", "--train.val-every", "4", "--train.batch-size", "16"),
    *("--model.dropout", "0", "--train.dtype", "float32", "--train.threads", "1", "--model.balance-weight", "0.5"),
    *("--train.accumulation", "2"),  # a step of one micro-batch: test_distributed_tasks
    *("--data.train", "scenes:val", "--data.val-samples", "32"),  # of all its rows both make a tokenizer (tests/conftest.py)
)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "eve_vl")


def test_two_processes_give_the_single_process_curve(eve, eve_process, tmp_path: Path):
    assert eve("pretrain", "tiny", "--out", "one", *FLAGS).returncode == 0
    process = eve_process("pretrain", "tiny", "--out", "two", *FLAGS, module=TORCHRUN)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        for timing in TIMING:
            a.pop(timing, None)
            b.pop(timing, None)
        assert (a.pop("kind"), a.pop("text", None)) == (b.pop("kind"), b.pop("text", None))
        sure_a, sure_b = (row.pop("certainty", {}) for row in (a, b))
        assert sure_a.keys() == sure_b.keys()
        for name, certain in sure_a.items():
            assert certain.pop("method") == sure_b[name].pop("method")
            differences, others = certain.pop("versus", {}), sure_b[name].pop("versus", {})
            assert certain == pytest.approx(sure_b[name], rel=2e-4, abs=2e-5)
            assert differences == {other: pytest.approx(ends, rel=2e-4, abs=2e-5) for other, ends in others.items()}
        assert a == pytest.approx(b, rel=2e-4, abs=2e-5)
