"""Slow imports that commands without training do without."""

import subprocess
import sys
from pathlib import Path

from PIL import Image

# each takes a third to all of the time that importing torch takes
SLOW_MODULES = ("torch._dynamo", "torch.distributed.fsdp", "torchvision", "sympy")
CODE = f"""import sys
from eve_vl.eve import Eve
eve = Eve.load("builtin:drawings")
assert eve.encode_image(["red.png"]).shape == (1, 192)
imported = [name for name in {SLOW_MODULES} if name in sys.modules]
assert not imported, imported"""


def test_using_a_run_imports_neither_the_compiler_nor_torchvision(tmp_path: Path):
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "red.png")
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
