"""Verbs that measure the paper's claims on this library: study speed."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from eve_vl.cli.common import check_writable, parse, say, write_json, write_text
from eve_vl.errors import UserError
from eve_vl.recipes import get_recipe


@dataclass(frozen=True, kw_only=True)
class SpeedArgs:
    """Flags of `eve study speed`."""

    recipe: str = "base"
    """Whose shapes to measure; nothing is trained, pictures and texts are made up."""
    batch: int = 8
    """Pairs per step, the same for every task."""
    decoder_depths: tuple[int, ...] = (1, 2, 4, 8)
    """Blocks of EVE's pixel decoder, a row each."""
    repeats: int = 3
    """Rounds in which the tasks take turns, after one that does not count."""
    texts: Literal["captions", "full"] = "captions"
    """Length of the texts: as captions usually are (14 ± 4 tokens, padded to the longest), or as long as the model takes."""
    memory: bool = True
    """Measure memory too: each task in processes of its own."""
    memory_cap: float | None = None
    """GiB for the search for the largest batch; default: all of a GPU, and no search on CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type, as for --train.dtype."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure."""
    threads: int = 0
    """Processor threads; 0: OMP_NUM_THREADS if set, else all cores. With 1, times are of the processor, not the wall."""
    json: Path | None = None
    """Also write the numbers to this file."""
    out: Path | None = None
    """Also draw the picture: FILE.html or FILE.svg."""

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = [
            f"--{name} {value} is not positive"
            for name, value in (("batch", self.batch), ("repeats", self.repeats))
            if value < 1
        ]
        if self.threads < 0:
            found.append(f"--threads {self.threads} is negative")
        if self.memory_cap is not None and self.memory_cap <= 0:
            found.append(f"--memory-cap {self.memory_cap} is not positive")
        if self.memory_cap is not None and not self.memory:
            found.append("--memory-cap has no use with --no-memory")
        if self.out is not None and self.out.suffix not in (".html", ".svg"):
            found.append(f"--out {self.out} ends in neither .html nor .svg")
        return found


def run_study_speed(argv: Sequence[str]) -> None:
    """Measure what pre-training steps of EVE and its rivals cost (paper Table 1): eve study speed [flags]."""
    args = parse(SpeedArgs, argv, "eve study speed", run_study_speed.__doc__)
    if problems := args.problems():
        raise UserError("; ".join(problems))
    check_writable(args.json, args.out)
    config = get_recipe(args.recipe)
    train = dataclasses.replace(config.train, dtype=args.dtype, device=args.device, threads=args.threads)
    from eve_vl.study.speed import measure_speed
    from eve_vl.study.speed_table import render

    console = Console()
    result = measure_speed(
        dataclasses.replace(config, train=train),
        batch=args.batch,
        decoder_depths=args.decoder_depths,
        repeats=args.repeats,
        texts=args.texts,
        memory=args.memory,
        memory_cap=args.memory_cap,
        console=console,
    )
    render(result, console)
    write_json(args.json, result.to_dict())
    if args.out is not None:
        from eve_vl.study.speed_picture import drawing, page

        write_text(args.out, drawing(result) if args.out.suffix == ".svg" else page(result))
        say(f"picture: {args.out}")
