"""The scripts of examples, as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[2] / "examples"


def load_example(name: str, script: str = "build") -> ModuleType:
    """A script of an example."""
    spec = importlib.util.spec_from_file_location(
        f"{name}_{script}", EXAMPLES / name / f"{script}.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
