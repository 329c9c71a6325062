"""The config that a stage of `eve learn` is trained with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from eve_vl.builtin.names import folder_of
from eve_vl.config import HELD_OUT, Config
from eve_vl.learn import settings
from eve_vl.learn.decisions import Stage
from eve_vl.learn.plan import Plan
from eve_vl.recipes import get_finetune_recipe, get_recipe
from eve_vl.recipes.settings import changed
from eve_vl.run.absolute_paths import with_absolute_paths
from eve_vl.run.loading import read_config
from eve_vl.train import processes
from eve_vl.train.checkpoint_folders import chosen_checkpoint


def stage_config(plan: Plan, name: str) -> Config:
    """Return the config of a stage."""
    stage = plan.stages[name]
    if stage.start is None:
        config = _pretraining(plan)
    else:
        config = _fine_tuning(plan, stage, stage.start)
    train = _training_options(plan, name, _batch_size(config, plan.facts.train))
    config = changed(config, config.recipe, train=train, input={"image_size": stage.size})
    return with_absolute_paths(replace(with_data(plan, config), out=plan.folder(name)))


def with_data(plan: Plan, config: Config) -> Config:
    """Return a config on the sources, with their held-out splits."""
    held = dict(plan.facts.held)
    if "split_file" in held:
        held["split_file"] = plan.out / held["split_file"]
    sources = plan.request.data
    data = replace(
        config.data,
        train=sources.train,
        val=sources.val,
        skip_invalid_val=HELD_OUT not in sources.val,  # held-out always does
        **plan.request.reading(),
        **held,
    )
    return replace(config, data=data)


def _pretraining(plan: Plan) -> Config:
    """Return the config of masked prediction from random weights."""
    return changed(
        get_recipe("icons"),
        "icons",
        data={"augment": "none", "crop_scale": (0.7, 1.0), "flip": True},
        # patch size and depth are those with which the pilots were measured (LOG.md)
        input={"text_length": plan.facts.text_length, "patch_size": 16},
        model={"depth": 4, "num_deep_blocks": 2},
        tokenizer={"vocab_size": plan.facts.vocab},
    )


def _fine_tuning(plan: Plan, stage: Stage, start: str) -> Config:
    """Return the config of the task's recipe, which starts from another run."""
    is_bundled = start == settings.BUNDLED
    init = Path(start) if is_bundled else plan.out / start
    folder = init
    if is_bundled or not stage.scratch:
        folder = chosen_checkpoint(folder_of(init))
    config = get_finetune_recipe(plan.learn_task.recipe, replace(read_config(folder), out=init))

    task = config.task
    if hasattr(task, "min_answer_count"):
        task = replace(task, min_answer_count=max(1, min(9, plan.facts.train // 500)))
    if hasattr(task, "multilabel"):
        task = replace(task, multilabel=plan.facts.many_labels)
    data = {"caption_augment": stage.caption} if plan.is_search else {}
    config = replace(config, init=init, scratch=stage.scratch, task=task)
    return changed(config, plan.learn_task.recipe, data=data)


def _batch_size(config: Config, num_rows: int) -> int:
    """Return the recipe's batch size, less for few rows, a multiple of the processes."""
    batch_size = min(config.train.batch_size, max(2, num_rows // 2))
    num_processes = processes.world_size()
    return max(num_processes, batch_size // num_processes * num_processes)


def _training_options(plan: Plan, name: str, batch_size: int) -> dict[str, Any]:
    """Return options of TrainConfig."""
    stage = plan.stages[name]
    steps = stage.steps
    options = {
        "seed": stage.seed,
        "steps": steps,
        "batch_size": batch_size,
        "threads": plan.decisions.threads,
        "device": plan.request.device,
        "val_every": steps,
        "save_every": max(1, steps // 10),
        "log_every": max(1, min(50, steps // 10)),
    }
    if name == settings.FINAL:
        options["val_every"] = max(1, steps // 5)
    if name.startswith(settings.FINAL):  # the number of steps may change at each log row
        options["log_every"] = max(1, min(50, steps // 50))
    if plan.is_search and stage.start not in (None, settings.BUNDLED):
        options["lr"] = settings.LR_WITHOUT_BUNDLED
    return options
