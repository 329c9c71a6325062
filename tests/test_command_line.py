"""The list of verbs and flags is frozen: whoever adds one, adds it here, on purpose."""

import pytest

from eve_vl.cli import VERBS, CheckArgs, EvaluateArgs, InspectArgs, PretrainArgs, ReportArgs, TokenizerArgs, flag_names, main

FLAGS = {
    PretrainArgs: """
        --out
        --model.image-size --model.patch-size --model.text-length --model.embed-dim --model.depth --model.num-heads
        --model.mlp-ratio --model.shallow-ffn --model.deep-ffn --model.num-deep-blocks --model.num-experts --model.top-k
        --model.modality-routing --model.balance-weight --model.drop-path --model.dropout --model.layer-scale --model.init-std
        --model.position-std
        --task.image-mask-ratio --task.text-mask-ratio --task.mim-weight --task.mlm-weight --task.joint-masking
        --task.normalize-targets --task.decoder-depth --task.decoder-dim --task.decoder-num-heads
        --data.train --data.train-weights --data.val --data.val-samples --data.format --data.image-root --data.image-column
        --data.text-column --data.label-column --data.crop-scale --data.flip --data.num-workers --data.max-bad-share
        --tokenizer.path --tokenizer.vocab-size
        --train.steps --train.batch-size --train.accumulation --train.lr --train.warmup --train.schedule --train.betas
        --train.weight-decay --train.clip-norm --train.dtype --train.device --train.threads --train.seed --train.log-every
        --train.val-every --train.save-every --train.keep --resume
    """,
    EvaluateArgs: "--format --image-root --image-column --text-column --label-column --data --samples --json",
    CheckArgs: "--format --image-root --image-column --text-column --label-column --json",
    TokenizerArgs: "--format --image-root --image-column --text-column --label-column --out --vocab-size",
    InspectArgs: "--json",
    ReportArgs: "--out",
}


def test_verbs():
    assert list(VERBS) == ["pretrain", "evaluate", "data check", "tokenizer train", "inspect", "report"]


def test_flags():
    for cls, text in FLAGS.items():
        known = [flag for flag in flag_names(cls) if "no-" not in flag]
        assert known == text.split(), cls.__name__


def test_flags_are_those_that_help_shows(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "tiny", "--help"])
    text = capsys.readouterr().out
    assert [flag for flag in flag_names(PretrainArgs) if flag not in text] == []


@pytest.mark.parametrize("argv", [["help"], ["data", "--help"], ["tokenizer"], ["evaluate", "--help"], ["pretrain", "-h"]])
def test_help_at_every_level(argv, capsys):
    main(argv)
    assert "usage: eve" in capsys.readouterr().out
