"""The list of verbs and flags is frozen; a new one must be added here."""

import pytest

from eve_vl.cli.average import AverageArgs
from eve_vl.cli.bench import BenchArgs
from eve_vl.cli.calls import call_flags, call_verbs
from eve_vl.cli.data_answers import AnswersArgs
from eve_vl.cli.data_check import CheckArgs
from eve_vl.cli.data_write import WriteArgs
from eve_vl.cli.evaluate import task_flags
from eve_vl.cli.export import ExportArgs
from eve_vl.cli.features import FeaturesArgs
from eve_vl.cli.index import IndexArgs
from eve_vl.cli.inspect import InspectArgs
from eve_vl.cli.learn import LearnArgs
from eve_vl.cli.main import main
from eve_vl.cli.plan import PlanArgs
from eve_vl.cli.report import ReportArgs
from eve_vl.cli.runs import RunsArgs
from eve_vl.cli.search import SearchArgs
from eve_vl.cli.serve import ServeArgs
from eve_vl.cli.tokenizer_train import TokenizerArgs
from eve_vl.cli.train import TrainArgs
from eve_vl.cli.try_page import TryArgs
from eve_vl.cli.verbs import VERBS
from eve_vl.cli.zero_shot import ZeroShotArgs
from eve_vl.config import Config, TaskConfig
from eve_vl.config.kinds import all_kinds
from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.recipes.registry import get_finetune_recipe, get_recipe, recipes
from eve_vl.tasks.predictor import predictor_class
from helpers.verb_flags import flags_of

START = "--out --init --init-allow-missing --scratch"
INPUT = """
    --input.image-size --input.patch-size --input.resize --input.interpolation --input.text-length
    --input.padded-text-length
"""
MODEL = """
    --model.embed-dim --model.layer-scale-init --model.init-std --model.pos-embed-init-std
    --model.stem --model.depth --model.num-heads --model.mlp-ratio --model.shallow-ffn
    --model.deep-ffn --model.num-deep-blocks --model.num-experts --model.expert-ratio
    --model.top-k --model.modality-routing --model.routing --model.activation
    --model.text-embedding --model.norm-pre --model.balance-weight --model.drop-path
    --model.dropout
"""
TOWERS = """
    --model.embed-dim --model.layer-scale-init --model.init-std --model.pos-embed-init-std
    --model.stem --model.image-depth --model.text-depth --model.towers --model.num-heads
    --model.mlp-ratio --model.text-dim --model.text-num-heads --model.text-mlp-ratio
    --model.activation --model.dropout
"""
CONTRAST = "--task.memory-batches"
MASKS = """
    --task.image-mask-ratio --task.text-mask-ratio --task.whole-word-masking
    --task.mask-replace-prob --task.mask-replace-source --task.mim-weight --task.mim-share
    --task.mlm-weight --task.joint-masking --task.normalize-targets --task.decoder-depth
    --task.decoder-dim --task.decoder-num-heads
"""
TASK = {
    "masked_signal": MASKS,
    "contrast_match": f"""
        {CONTRAST} {MASKS} --task.itc-weight --task.itm-weight --task.projection-dim
        --task.itc-masked-image --task.itc-targets --task.itm-negatives --task.svd-form
        --task.svd-weight
    """,
    "mlim": """
        --task.image-mask-ratio --task.text-mask-ratio --task.whole-word-masking
        --task.mask-replace-prob --task.mask-replace-source --task.mim-weight --task.mlm-weight
        --task.masking --task.heavy-mask-ratio
    """,
    "retrieval": f"""
        {CONTRAST} --task.itc-weight --task.itm-weight --task.itm-loss --task.ranking-candidates
        --task.projection-dim --task.itm-batchnorm --task.pooling --task.final-norm --task.rerank
        --task.rerank-by --task.captions-per-image --task.dedup-captions
    """,
    "vqa": "--task.answers --task.min-answer-count",
    "nlvr2": "--task.head --task.second-image-type-embedding",
    "pair": "--task.modality-dropout",
    "classification": "--task.inputs --task.multilabel --task.classes",
}
REST = """
    --data.modality --data.train --data.train-weights --data.order --data.val --data.val-fraction
    --data.test-fraction --data.split-file --data.val-samples --data.skip-invalid-val
    --data.format --data.image-root --data.image-column --data.text-column --data.label-column
    --data.crop-scale --data.flip --data.augment --data.caption-augment --data.batches-from
    --data.num-workers --data.max-invalid-fraction --tokenizer.path --tokenizer.vocab-size
    --train.steps --train.batch-size --train.accumulation --train.optimizer --train.lr
    --train.head-lr-multiplier --train.lr-multipliers --train.freeze --train.warmup
    --train.schedule --train.betas --train.weight-decay --train.clip-norm --train.ema-decay
    --train.dtype --train.device --train.threads --train.compile --train.layout
    --train.checkpoint-activations --train.seed --train.log-every --train.val-every
    --train.patience --train.save-every --train.keep-checkpoints --resume --accept-changed-data
"""
SOURCE = "--format --image-root --image-column --text-column --label-column"
SERVE = """
    --queue --batch --memory-mb --body-mb --items --pixels --body-seconds --wait-seconds --device
    --index --host --port --token --page --browser
"""
FLAGS = {
    TryArgs: "--out --port --browser",
    IndexArgs: f"--device {SOURCE} --run --out --drop --batch-size",
    FeaturesArgs: f"--device {SOURCE} --out --texts --texts-of --part-rows --batch-size",
    LearnArgs: f"--device {SOURCE} --for --task --out --val --test",
    SearchArgs: """
        --device --json --image --caption --by --min-score --top --rerank --folder --where --run
        --html
    """,
    ServeArgs: SERVE,
    WriteArgs: "--rows --seed",
    CheckArgs: f"{SOURCE} --json --kind --recipe --init --samples --against",
    AnswersArgs: f"{SOURCE} --out",
    TokenizerArgs: f"{SOURCE} --out --vocab-size",
    InspectArgs: "--json --init",
    ReportArgs: "--out",
    RunsArgs: "--json",
    ExportArgs: "--json --parts",
    AverageArgs: "--out",
    ZeroShotArgs: f"--device {SOURCE} --json --data --samples --skip-invalid --prompts --by",
    ConvertArgs: """
        --tokenizer --answers --routing --text-tokens --clean-text --image-size --num-heads
        --architecture --copy --num-experts --num-deep-blocks --drop
    """,
}
EVALUATE = f"""
    --device {SOURCE} --json --data --samples --skip-invalid --no-skip-invalid --ablations
    --no-ablations --predictions
"""
EVALUATION = {
    "masked_signal": EVALUATE,
    "contrast_match": EVALUATE,
    "mlim": EVALUATE,
    "retrieval": f"{EVALUATE} --rerank --rerank-by --captions-per-image --dedup-captions",
    "vqa": EVALUATE,
    "nlvr2": EVALUATE,
    "pair": EVALUATE,
    "classification": EVALUATE,
}
CALLS = {
    "answer": "--device --top --json",
    "verify": "--device --json",
    "same": "--device --json",
    "classify": "--device --text --top --json",
    "match": "--device --json",
    "zero-shot": "--device --by --top --json",
    "fill-mask": "--device --top --json",
    "reconstruct": "--device --share --keep --seed --out",
    "explain": "--device --right --word --answer --block --out --json",
    "experts": "--device --out --json",
}
PRETRAIN = ("tiny", "demo_mlm_itc_itm", "mlim_tiny", "m3ae_tiny", "medflip_tiny")


def configs_of_each_kind() -> list[Config]:
    """Return a config of each task with each model."""
    configs = [get_recipe(name) for name in PRETRAIN]
    for name, recipe in recipes("finetune").items():
        start = getattr(recipe, "start", "base")
        configs.append(get_finetune_recipe(name, get_recipe(start)))
    of_kinds = {(config.task.name, config.model.name): config for config in configs}
    return list(of_kinds.values())


def test_verbs():
    assert list(VERBS) == [
        *("try", "index", "features", "search", "serve"),
        *("learn", "demo", "pretrain", "finetune", "average", "runs", "bench", "plan"),
        *("evaluate", "inspect", "report", "export", "convert"),
        *("data check", "data answers", "data write", "tokenizer train"),
        "completion",
    ]


def test_flags():
    for cls, text in FLAGS.items():
        flags = [flag for flag in flags_of(cls) if "no-" not in flag]
        assert flags == text.split(), cls.__name__


def test_flags_of_evaluation_are_those_of_its_task():
    flags = {}
    for name, kind in all_kinds(TaskConfig, "tasks").items():
        if kind.has_numbers:
            flags[name] = list(flags_of(task_flags(kind.evaluation)))
    assert flags == {name: text.split() for name, text in EVALUATION.items()}


def test_each_call_of_a_task_is_a_verb_with_its_own_flags():
    assert list(call_verbs()) == sorted(CALLS)
    flags = {}
    for kind in all_kinds(TaskConfig, "tasks").values():
        for call, request in predictor_class(kind).requests().items():
            verb = call.replace("_", "-")
            flags[verb] = list(flags_of(call_flags(request)))
            assert flags[verb] == CALLS[verb].split()
    assert flags.keys() == CALLS.keys()


def test_flags_of_a_run_are_those_of_its_task():
    """And of `eve bench` and `eve plan`, which do not train."""
    with_positions = MODEL.replace("--model.stem", "--model.positions --model.stem")
    models = {
        "eve": MODEL,
        "vlmo": f"{with_positions} --model.pooler",
        "dual_encoder": TOWERS,
        "m3ae": f"{TOWERS} --model.fusion-depth --model.pixel-layer",
    }
    resume = "--resume --accept-changed-data"
    for config in configs_of_each_kind():
        run = f"{START} {INPUT} {models[config.model.name]} {TASK[config.task.name]} {REST}"
        texts = {
            TrainArgs: run,
            BenchArgs: f"--json {run}".replace(resume, "--steps"),
            PlanArgs: f"--json {run}".replace(resume, "--gpus --per-machine --memory"),
        }
        for cls, text in texts.items():
            flags = [flag for flag in flags_of(cls, cls(config=config)) if "no-" not in flag]
            assert sorted(flags) == sorted(text.split()), config.recipe


@pytest.mark.parametrize("recipe", ["tiny", "demo_mlm_itc_itm", "m3ae_tiny"])
def test_flags_are_those_that_help_shows(recipe, capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", recipe, "--help"])
    text = capsys.readouterr().out
    in_help = {word.strip(",.│") for word in text.split() if word.startswith("--")}
    flags = set(flags_of(TrainArgs, TrainArgs(config=get_recipe(recipe))))
    assert flags <= in_help
    assert not {flag for flag in in_help - flags if flag.startswith("--task.")}
