"""The verb convert: foreign weights in, ours out."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from eve_vl.cli.common import check_writable, parse, say
from eve_vl.config.model import Routing
from eve_vl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ConvertArgs:
    """Flags of `eve convert`."""

    source: Positional[Path]
    """A published EVE checkpoint or a BEiT or ViT image encoder (.pth, .safetensors); or a run folder, to turn it back."""
    target: Positional[Path]
    """Run folder to write; or, for a run folder, the .safetensors or .pth file."""
    tokenizer: Path | None = None
    """The tokenizer.json or BERT vocab.txt that goes with the weights; for an image encoder any."""
    answers: Path | None = None
    """VQA: the answer list that the head was trained with."""
    routing: Routing = "official-dropless"
    """EVE checkpoints: official as published, official-dropless the same without noise and drops, stable as the paper says."""
    text_tokens: int = 40
    """EVE checkpoints: tokens that every text is padded to, as in their training."""
    clean_text: bool = True
    """EVE checkpoints: strip texts of punctuation and capitals, as in their training."""
    image_size: int = 0
    """EVE checkpoints: resize the picture positions for pictures of this size; 0: leave them."""
    num_heads: int = 0
    """Attention heads; 0: width / 64, as in all published EVE sizes, and 16 in image encoders wider than 1024."""
    architecture: Literal["eve", "source"] = "eve"
    """Image encoders: keep EVE's blocks (quick-GELU, a norm before the first), or set them to the source's."""
    copy: Literal["all", "text", "none"] = "all"
    """Image encoders: what gets copies of the image feed-forward networks: text networks and experts, text networks, nothing;
    the others are random."""
    num_experts: int = 32
    """Image encoders: experts in each of the last blocks."""
    num_deep_blocks: int = 2
    """Image encoders: last blocks that have experts."""
    seed: int = 0
    """Image encoders: of what is random."""
    drop: tuple[str, ...] = ()
    """Leave out keys that have one of these in their names."""


FOR_BOTH = ("source", "target", "tokenizer", "num_heads", "drop")
FOR_PUBLISHED = ("answers", "routing", "text_tokens", "clean_text", "image_size")
FOR_VISION = ("architecture", "copy", "num_experts", "num_deep_blocks", "seed")


def _refuse(args: ConvertArgs, kind: str, known: set[str]) -> None:
    """Raise UserError for a flag that has no meaning for this kind of source."""
    for field in dataclasses.fields(args):
        if field.name not in known and getattr(args, field.name) != field.default:
            raise UserError(f"{args.source}: is {kind}, for which --{field.name.replace('_', '-')} has no use; leave it out")


def run_convert(argv: Sequence[str]) -> None:
    """Turn published EVE, BEiT or ViT weights into a run folder, or a run back: eve convert SRC DST [flags]."""
    args = parse(ConvertArgs, argv, "eve convert", run_convert.__doc__)
    from eve_vl.config import EveModelConfig
    from eve_vl.convert import export_published, import_published, import_vision, is_vision, read_tensors
    from eve_vl.train import checkpoint

    if args.source.is_dir():
        checkpoint.chosen_checkpoint(args.source)  # before all else: any folder may have been named
        _refuse(args, "a run folder", {"source", "target"})
        check_writable(args.target)
        say(f"{args.target}: {export_published(args.source, args.target)}")
        return
    tensors = read_tensors(args.source)
    kind, flags = ("an image encoder", FOR_VISION) if is_vision(tensors) else ("an EVE checkpoint", FOR_PUBLISHED)
    _refuse(args, kind, {*flags, *FOR_BOTH})
    if args.tokenizer is None:
        raise UserError(f"{args.source}: holds no tokenizer; name the file with --tokenizer")
    if is_vision(tensors):
        model = EveModelConfig(
            num_experts=args.num_experts, num_deep_blocks=args.num_deep_blocks, top_k=min(2, args.num_experts)
        )
        values = {"model": model, "architecture": args.architecture, "copies": args.copy, "seed": args.seed}
        write = import_vision
    else:
        values = {name: getattr(args, name) for name in FOR_PUBLISHED}
        write = import_published
    values |= {"tokenizer": args.tokenizer, "num_heads": args.num_heads, "drop": args.drop}
    words = write(tensors, str(args.source), args.target, **values)
    say(f"{args.target}: {words}")
