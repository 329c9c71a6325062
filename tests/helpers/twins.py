"""Slow, obvious twins of the package's fast code, and their tiny inputs.

Letters: B batch, N tokens, S real tokens, D width, F feed-forward width, E experts, K chosen
experts, P patches, T text tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from eve_vl.config import (
    Config,
    DataConfig,
    EveModelConfig,
    InputConfig,
    ModelConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
)
from eve_vl.data.image_refs import ImagePixels
from eve_vl.data.kinds.captions import ImageText
from eve_vl.data.kinds.questions import ImageQuestion
from eve_vl.data.kinds.statements import ImagesStatement
from eve_vl.data.records import Record
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.model.moe import MoE
from eve_vl.model.packing import PackedTokens
from eve_vl.model.tokens import Tokens
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.utils.errors import BadSampleError

Row = TypeVar("Row", bound=Record)
ANSWERS = ("red", "2", "yes", "left", "ring")
CAPTIONS = (
    "a red circle",
    "two small blue squares on gray",
    "a big green star left of a tiny white ring",
    "one yellow cross at the top",
    "purple triangle, orange heart",
    "a circle",
)


# Mixture of experts


@dataclass
class TwinStats:
    """What the twin counted; gates, choices and modality of each real token in order."""

    gates: list[list[float]] = field(default_factory=list)
    choices: list[list[int]] = field(default_factory=list)
    is_text: list[bool] = field(default_factory=list)


def slow_quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), by autograd."""
    return x * (1 / (1 + torch.exp(-1.702 * x)))


def slow_ffn(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor
) -> Tensor:
    """One feed-forward network on one token (D,)."""
    return fc2_weight @ slow_quick_gelu(fc1_weight @ x + fc1_bias) + fc2_bias


def slow_moe(
    moe: MoE, x_BND: Tensor, is_text_BN: Tensor, is_padding_BN: Tensor | None
) -> tuple[Tensor, TwinStats]:
    """Send token after token through the router's formula and the chosen experts' matrices.

    It reads the weights, nothing else.
    """
    stats = TwinStats()
    B, N, D = x_BND.shape
    rows = []
    for b in range(B):
        for n in range(N):
            if is_padding_BN is not None and is_padding_BN[b, n]:
                rows.append(torch.zeros(D, dtype=x_BND.dtype))
                continue
            x = x_BND[b, n]
            is_text = bool(is_text_BN[b, n])
            gates = slow_gates(moe, x, is_text)
            order = sorted(range(len(gates)), key=lambda expert: -gates[expert].item())
            chosen = order[: moe.router.top_k]
            rows.append(slow_mixture(moe, x, gates, chosen))
            stats.gates.append([gate.item() for gate in gates])
            stats.choices.append(chosen)
            stats.is_text.append(is_text)
    return torch.stack(rows).view(B, N, D), stats


def slow_gates(moe: MoE, x: Tensor, is_text: bool) -> list[Tensor]:
    """Return the router's softmax of one token."""
    router = moe.router
    if router.modality_embed is not None:
        x = x + router.modality_embed[int(is_text)]
    logits = [weight @ x for weight in router.weight]
    largest = max(logit.item() for logit in logits)
    exponentials = [torch.exp(logit - largest) for logit in logits]
    total = sum(exponentials)
    return [exponential / total for exponential in exponentials]


def slow_mixture(moe: MoE, x: Tensor, gates: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
    """Return the outputs of the chosen experts, weighted by gates that add up to 1."""
    experts = moe.experts
    total = sum(gates[expert] for expert in chosen)
    output = torch.zeros_like(x)
    for e in chosen:
        fc1 = (experts.fc1_weight[e], experts.fc1_bias[e])
        fc2 = (experts.fc2_weight[e], experts.fc2_bias[e])
        output = output + gates[e] / total * slow_ffn(x, *fc1, *fc2)
    return output


def router_sums(stats: Tensor) -> SimpleNamespace:
    """Return sums over both modalities: by expert first choices and gates (with gradient), over all
    experts entropy and tokens."""
    first_ME, gate_ME, entropy_ME, _ = stats.unflatten(1, (4, -1)).unbind(1)
    first_E = first_ME.detach().sum(0)
    return SimpleNamespace(
        first_E=first_E,
        gate_E=gate_ME.sum(0),
        entropy=entropy_ME.detach().sum(),
        num_tokens=first_E.sum(),
    )


def slow_balance(stats: TwinStats) -> float:
    """N · Σ f_i · p_i in plain Python (paper Eq. 7)."""
    num_experts = len(stats.gates[0])
    num_tokens = len(stats.gates)
    total = 0.0
    for expert in range(num_experts):
        f = sum(choice[0] == expert for choice in stats.choices) / num_tokens
        p = sum(gate[expert] for gate in stats.gates) / num_tokens
        total += f * p
    return num_experts * total


def slow_entropy(stats: TwinStats) -> float:
    """Entropy of the gates in nats, summed over tokens."""
    entropy = 0.0
    for gates in stats.gates:
        entropy -= sum(gate * math.log(gate) for gate in gates)
    return entropy


def random_moe(
    dim: int = 8,
    ffn: int = 12,
    experts: int = 4,
    top_k: int = 2,
    *,
    modality: bool = True,
    seed: int = 0,
) -> MoE:
    """Return a MoE whose every weight matters: nothing is zero or small."""
    moe = MoE(dim, ffn, experts, top_k, modality, "quick_gelu")
    randomize(moe, seed)
    return moe


def in_rows(
    x_BND: Tensor, num_image: int, is_padding_BN: Tensor | None = None, num_heads: int = 1
) -> tuple[Tensor, PackedTokens]:
    """Return a batch of pairs as rows, and where these lie; the first tokens are the image's."""
    tokens = Tokens(x_BND=x_BND, num_image=num_image, is_padding_BN=is_padding_BN)
    rows = PackedTokens.of(tokens, num_heads)
    return rows.pack(x_BND), rows


def randomize(module: torch.nn.Module, seed: int, std: float = 0.5) -> None:
    """Fill all parameters with noise, so that no bias is 0 and no two tokens look alike."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter.copy_(noise * std)


# Tiny configs and data


def tiny_config(
    *,
    input: dict | None = None,  # noqa: A002 (the section's name)
    model: dict | ModelConfig | None = None,
    task: dict | TaskConfig | None = None,
    data: dict | None = None,
    train: dict | None = None,
) -> Config:
    """Return a config of a few thousand weights: 16 patches of 4×4, at most 12 tokens.

    Initial weights are far from 0. Each argument changes fields of a section, or is another one.
    """
    base = Config(
        recipe="tiny",
        out=Path("unused"),
        input=InputConfig(image_size=16, patch_size=4, text_length=12),
        model=EveModelConfig(
            embed_dim=16,
            depth=3,
            num_heads=2,
            mlp_ratio=2.0,
            num_experts=4,
            drop_path=0.0,
            dropout=0.0,
            layer_scale_init=1.0,
            init_std=0.3,
        ),
        task=MaskedSignalConfig(decoder_depth=1, decoder_dim=16, decoder_num_heads=2),
        data=DataConfig(num_workers=0, val_samples=100),
        tokenizer=TokenizerConfig(vocab_size=300),
        train=TrainConfig(steps=10, batch_size=4),
    )
    return replace(
        base,
        input=changed_section(base.input, input),
        model=changed_section(base.model, model),
        task=changed_section(base.task, task),
        data=changed_section(base.data, data),
        train=changed_section(base.train, train),
    )


def changed_section(section: Any, changes: Any) -> Any:
    """Return a section with changed fields, or the one that takes its place."""
    if changes is None:
        return section
    if isinstance(changes, dict):
        return replace(section, **changes)
    return changes


class ListSource(Generic[Row]):
    """Rows at hand; a None is a row that cannot be used."""

    def __init__(self, rows: Sequence[Row | None], name: str = "list"):
        self.rows = rows
        self.name = name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Row:
        row = self.rows[index]
        if row is None:
            raise BadSampleError(f"{self.name}:{index}", "made to be broken")
        return row


def noise(*key: int, height: int = 20, width: int = 20) -> ImagePixels:
    """Return an image that no other key gives."""
    rng = np.random.default_rng(key)
    return ImagePixels(pixels=rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pairs(
    count: int, *, bad: Sequence[int] = (), size: int = 20, name: str = "list", captions: int = 2
) -> ListSource[ImageText]:
    """Return noise images of different shapes, with captions that name their row.

    Rows in `bad` cannot be used.
    """
    rows: list[ImageText | None] = []
    for row in range(count):
        image = noise(count, row, height=size + row % 3, width=size)
        texts = [f"{caption_of(row + turn)} {row}" for turn in range(captions)]
        rows.append(ImageText(image=image, captions=tuple(texts), where=f"{name}:{row}"))
    for row in bad:
        rows[row] = None
    return ListSource(rows, name)


def caption_of(row: int) -> str:
    return CAPTIONS[row % len(CAPTIONS)]


def questions(count: int, *, name: str = "asked") -> ListSource[ImageQuestion]:
    """Return noise images with questions of different lengths.

    Of every seven, one has ten answers, one none, the others one.
    """
    rows = []
    for row in range(count):
        answer = ANSWERS[row % len(ANSWERS)]
        answers = (answer,)
        if row % 7 == 5:
            answers = (answer, answer, *["no idea"] * 3, *ANSWERS)
        elif row % 7 == 6:
            answers = ()
        question = ImageQuestion(
            image=noise(count, row),
            question=f"is it {caption_of(row)} {row}",
            answers=answers,
            question_id=row,
            answer_type="colour" if row % 3 else "number",
            where=f"{name}:{row}",
        )
        rows.append(question)
    return ListSource(rows, name)


def statements(count: int, *, name: str = "said") -> ListSource[ImagesStatement]:
    """Return two noise images each, with statements of different lengths in groups of two.

    Every seventh has no label.
    """
    rows = []
    for row in range(count):
        statement = ImagesStatement(
            left=noise(count, row, 0),
            right=noise(count, row, 1),
            statement=f"both show {caption_of(row)} {row}",
            label=None if row % 7 == 6 else row % 3 > 0,
            identifier=f"x-{row // 2}-{row % 2}-0",
            group=f"x-{row // 2}--0",
            where=f"{name}:{row}",
        )
        rows.append(statement)
    return ListSource(rows, name)


def tiny_tokenizer() -> Tokenizer:
    """Return a byte-level BPE that knows CAPTIONS."""
    return Tokenizer.train(CAPTIONS * 3, 300)


# Checkpoints that are made up


class Shapes(dict[str, tuple[int, ...]]):
    """The names and shapes of a checkpoint."""

    def linear(self, name: str, rows: int, columns: int) -> None:
        """Add a layer with a bias."""
        self.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    def norm(self, name: str, width: int) -> None:
        """Add a LayerNorm."""
        self.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})
