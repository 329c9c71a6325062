"""`eve inspect` counts parameters and arithmetic of recipes, own recipes and runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.config import Config, TaskConfig, config_to_json
from eve_vl.recipes.registry import find_recipe, get_finetune_recipe, get_recipe
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.vqa.config import VQAConfig
from helpers import paper_sizes
from helpers.model_counts import count_parameters, inspect_once
from helpers.paper_sizes import TINY, DecoderShape

OWN_RECIPES = """
from dataclasses import replace
from eve_vl.recipes import get_finetune_recipe, get_recipe, starts_from
def small():
    tiny = get_recipe("tiny")
    return replace(tiny, tokenizer=replace(tiny.tokenizer, vocab_size=300))
@starts_from("tiny")
def ask(init):
    return get_finetune_recipe("demo_vqa", init)
def judge(init):
    return get_finetune_recipe("demo_nlvr2", init)
def three(a, b, c): ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a file of recipes and a run of tiny shape with smaller images."""
    (tmp_path / "own_recipes.py").write_text(OWN_RECIPES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_recipes", raising=False)
    (tmp_path / "run").mkdir()
    tiny = get_recipe("tiny")
    config = replace(tiny, input=replace(tiny.input, image_size=16))
    (tmp_path / "run/config.json").write_text(config_to_json(config))
    (tmp_path / "run/model.safetensors").write_text("")
    (tmp_path / "run/state.json").write_text("{}")
    return tmp_path


def inspected_parameters(done) -> int:
    """Return the number of parameters that a finished `eve inspect` wrote."""
    assert done.returncode == 0, done.stderr
    return json.loads(Path("numbers.json").read_text())["parameters"]["total"]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("demo_retrieval", "demo"),
        ("own_recipes.py:ask", "tiny"),
        ("own_recipes.py:judge", "base"),
    ],
)
def test_inspect_counts_a_finetuning_recipe_and_names_its_start(eve, folder, name, start):
    done = eve("inspect", name, "--json", "numbers.json")
    first_line = f"{name}: starts from the recipe {start}; --init RUN selects a run\n"
    assert done.stdout.startswith(first_line)
    config = find_recipe("finetune", name)(get_recipe(start))
    assert inspected_parameters(done) == count_parameters(config)


def test_inspect_counts_a_finetuning_recipe_on_a_run(eve, folder):
    done = eve("inspect", "own_recipes.py:ask", "--init", "run", "--json", "numbers.json")
    assert done.stdout.startswith("own_recipes.py:ask: starts from run\n")
    encoder = paper_sizes.encoder_parameters(replace(TINY, image=16))
    assert inspected_parameters(done) == encoder + paper_sizes.head_parameters("labels", TINY.D)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("own_recipes.py:small", replace(TINY, V=300)),
        ("run/config.json", replace(TINY, image=16)),
    ],
)
def test_inspect_counts_own_recipes_and_configs_of_runs(eve, folder, name, shape):
    done = eve("inspect", name, "--json", "numbers.json")
    assert "starts from" not in done.stdout
    decoder = DecoderShape(48, 192, 1)
    heads = paper_sizes.pretraining_head_parameters(("mlm", "mim"), shape, decoder)
    assert inspected_parameters(done) == paper_sizes.encoder_parameters(shape) + heads


def test_inspect_prints_the_name_of_a_recipe_as_it_is(eve, folder):
    """A run's config.json may name any recipe."""
    path = folder / "run/config.json"
    config = json.loads(path.read_text()) | {"recipe": "[/red] :x:.py:a"}
    path.write_text(json.dumps(config))
    done = eve("inspect", "run/config.json")
    assert done.stdout.startswith("[/red] :x:.py:a: 3 blocks"), done


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "inspect own_recipes.py:three",
            "is no recipe for eve pretrain or finetune: a function of no argument for eve pretrain",
        ),
        ("inspect own_recipes.py:aks", "own_recipes.py: no recipe 'aks'; did you mean 'ask'?"),
        ("inspect demo_vqs", "no recipe 'demo_vqs'; did you mean 'demo_vqa'?"),
        (
            "inspect own_recipes.py:small --init run",
            "--init has no effect: own_recipes.py:small is not a fine-tuning recipe",
        ),
        ("inspect runs/none", "runs/none: no such run folder"),
        ("inspect run --init run", "--init has no effect: run is a run"),
        ("inspect demo_vqa --init nowhere", "nowhere: no such run folder"),
        ("data check own_recipes.py --init run", "--init has no effect without --recipe; name one"),
    ],
)
def test_commands_on_wrong_recipes_fail_with_one_line(eve, folder, command, message):
    done = eve(*command.split())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_the_baseline_takes_the_arithmetic_that_its_docstring_says():
    words = inspect_once(get_recipe("demo_words")).flops_per_step
    baseline = inspect_once(get_recipe("demo_mlm_itc_itm")).flops_per_step
    docstring = find_recipe("pretrain", "demo_mlm_itc_itm").__doc__ or ""
    assert f"{baseline / words:.1f} times the arithmetic" in docstring


def block_flops(config: Config, task: TaskConfig) -> float:
    """Return the arithmetic of the encoder's blocks for a task on a config's model."""
    return inspect_once(replace(config, task=task)).flops["blocks"]


@pytest.mark.parametrize(
    ("name", "least_passes", "most_passes"),
    [
        ("demo_vqa", 1, 1),
        ("scenes_nlvr2", 2, 2),
        ("retrieval", 3.5, 4),  # matches three pairs, and each modality alone
        ("classification", 0, 0.999),  # images alone
    ],
)
def test_arithmetic_of_finetuning_is_counted_in_passes_over_the_pair(
    name, least_passes, most_passes
):
    config = get_finetune_recipe(name, get_recipe("tiny"))
    inspection = inspect_once(config)
    passes = inspection.flops["blocks"] / block_flops(config, VQAConfig())
    assert least_passes * (1 - 1e-5) <= passes <= most_passes * (1 + 1e-5)
    num_parameters = sum(inspection.parameters.values())
    assert num_parameters == count_parameters(config)
    assert inspection.active_parameters < num_parameters


def test_the_last_block_of_a_task_that_reads_all_states_computes_all():
    """VQA reads [CLS] alone, the paired head of NLVR2 and the mean of retrieval all states."""
    config = get_finetune_recipe("nlvr2", get_recipe("tiny"))
    cls_only = block_flops(config, VQAConfig())
    all_states = block_flops(config, NLVR2Config(head="paired")) / 2
    assert inspect_once(config).flops["blocks"] == pytest.approx(2 * all_states, rel=1e-5)
    assert cls_only < all_states < 2 * cls_only


def test_arithmetic_of_contrast_alone_and_of_classified_pairs():
    search = get_finetune_recipe("demo_retrieval", get_recipe("tiny"))
    whole_pass = block_flops(search, NLVR2Config(head="paired")) / 2
    assert 0.5 * whole_pass < inspect_once(search).flops["blocks"] < whole_pass

    labels = get_finetune_recipe("classification", get_recipe("tiny"))
    pairs = block_flops(labels, replace(labels.task, inputs="both"))
    assert pairs == block_flops(labels, VQAConfig())
