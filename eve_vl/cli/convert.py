"""The verb convert: foreign weights in, ours out."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from eve_vl import builtin
from eve_vl.cli.common import check_writable, print_line
from eve_vl.config.model import Routing
from eve_vl.utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ConvertArgs:
    """Flags of `eve convert`."""

    source: Positional[Path]
    """A published EVE, VLMo or M3AE checkpoint, or a BEiT or ViT image encoder of timm or transformers (.pth, .bin,
    .safetensors); or a run folder, to turn it back."""
    target: Positional[Path]
    """Run folder to write; or, for a run folder, the .safetensors or .pth file."""
    tokenizer: Path | None = None
    """The tokenizer.json or BERT vocab.txt that goes with the weights; for an image encoder any."""
    answers: Path | None = None
    """VQA: the answer list that the head was trained with; classification: the list of labels."""
    routing: Routing = "reference-dropless"
    """EVE checkpoints. reference: as published. reference-dropless: without noise and drops. dropless: as in the paper."""
    text_tokens: int = 40
    """EVE checkpoints: tokens that every text is padded to, as in their training; VLMo, M3AE: longest text, 0: all."""
    clean_text: bool = True
    """EVE checkpoints: strip texts of punctuation and capitals, as in their training."""
    image_size: int = 0
    """Resize the image positions for images of this size; 0: leave them."""
    num_heads: int = 0
    """Attention heads; 0: as published, 64 wide but in VLMo's base_plus, and 16 in image encoders wider than 1024."""
    architecture: Literal["eve", "source", "vlmo"] = "eve"
    """Image encoders: keep EVE's blocks (quick-GELU, a norm before the first), set them to the source's, or make VLMo's of a
    BEiT with relative positions."""
    copy: Literal["all", "text", "none"] | None = None
    """Image encoders: what gets copies of the image feed-forward networks: text networks and experts, text networks, nothing;
    the others are random. By default all, in VLMo none."""
    num_experts: int = 32
    """Image encoders: experts in each of the last blocks."""
    num_deep_blocks: int | None = None
    """Image encoders: last blocks that have experts, in VLMo networks for pairs. By default 2, of 24 and more 3."""
    seed: int = 0
    """Image encoders: of what is random."""
    drop: tuple[str, ...] = ()
    """Leave out keys that have one of these in their names."""


def _values(args: ConvertArgs, kind: str, convert: Callable[..., str]) -> dict[str, Any]:
    """Return what a kind of source is converted with, by the flags' names. Raises UserError for another flag, which has no
    meaning for it."""
    flags = inspect.getfullargspec(convert).kwonlyargs
    for field in dataclasses.fields(args):
        if field.name not in ("source", "target", *flags) and getattr(args, field.name) != field.default:
            raise UserError(f"{args.source}: is {kind}, for which --{field.name.replace('_', '-')} has no use; leave it out")
    return {name: getattr(args, name) for name in flags}


def run_convert(args: ConvertArgs) -> None:
    """Turn published EVE, VLMo, M3AE, BEiT or ViT weights into a run folder, or a run back: eve convert SRC DST [flags]."""
    from eve_vl.interop import convert
    from eve_vl.train import checkpoint

    if builtin.located(args.source).is_dir():
        checkpoint.chosen_checkpoint(args.source)  # before all else: any folder may have been named
        _values(args, "a run folder", convert.export_published)
        check_writable(args.target)
        print_line(f"{args.target}: {convert.export_published(args.source, args.target)}")
        return
    tensors = convert.read_tensors(args.source)
    kinds: list[tuple[bool, Callable[..., str], str]] = [
        (convert.is_vlmo(tensors), convert.import_vlmo, "a VLMo checkpoint"),
        (convert.is_m3ae(tensors), convert.import_m3ae, "an M3AE checkpoint"),
        (convert.is_vision(tensors), convert.import_vision, "an image encoder"),
        (True, convert.import_published, "an EVE checkpoint"),
    ]
    write, kind = next((write, kind) for is_it, write, kind in kinds if is_it)
    values = _values(args, kind, write)
    if args.tokenizer is None:
        raise UserError(f"{args.source}: holds no tokenizer; name the file with --tokenizer")
    print_line(f"{args.target}: {write(tensors, str(args.source), args.target, **values)}")
