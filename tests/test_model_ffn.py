"""The table of feed-forward policies: what each builds, computes and costs, and what its weights are called elsewhere."""

import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_model_encoder import SIZES, VOCAB, model_config, pixels, slow_norm
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from twins import in_rows, randomize, slow_ffn, slow_moe, tiny_config

from eve_vl.config import (
    ClassificationConfig,
    ContrastMatchConfig,
    EveModelConfig,
    FFNPolicy,
    HeadlessConfig,
    MaskedSignalConfig,
    NLVR2Config,
    RetrievalConfig,
    TaskConfig,
    VQAConfig,
)
from eve_vl.data.kinds.captions import CaptionBatch
from eve_vl.model import moe
from eve_vl.model.build import build_backbone
from eve_vl.model.encoder import Block, Encoder
from eve_vl.model.encoder_reference import OfficialEncoder
from eve_vl.model.ffn import POLICIES, ModalityFeedForward, PassFeedForward
from eve_vl.model.layers import FeedForward
from eve_vl.model.moe import MoE
from eve_vl.model.moe_reference import OfficialMoE
from eve_vl.model.packing import Tokens
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.classification import READS, Classification
from eve_vl.tasks.masked_signal import MaskedSignalTask
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.tasks.task import Sizes
from eve_vl.tasks.vqa import VQA

ROUTINGS = typing.get_args(typing.get_type_hints(EveModelConfig)["routing"])
DECODER: dict[str, Any] = {"decoder_depth": 2, "decoder_dim": 16, "decoder_num_heads": 2}
MIXED = [("shared", "shared"), ("modality", "moe"), ("moe", "modality"), ("shared", "moe"), ("modality", "modality_vl")]
P, T = 16, 12  # patches of the tiny images, tokens of a full text


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_every_policy_of_the_config_is_in_the_table():
    assert set(POLICIES) == set(typing.get_args(FFNPolicy))


# Building and running


@pytest.mark.parametrize("num_image", [0, 4, 7])
def test_hard_router_sends_each_token_to_its_modalitys_norm_and_network(num_image):
    ffn = ModalityFeedForward(16, 32)
    randomize(ffn, 4)
    x = torch.randn(2, 7, 16)
    x_SD, rows = in_rows(x, num_image)
    output = rows.grid(ffn(x_SD, rows))
    for b in range(2):
        for n in range(7):
            is_text = n >= num_image
            norm, net = (ffn.norm_text, ffn.text) if is_text else (ffn.norm_image, ffn.image)
            weights = (net.fc1.weight, net.fc1.bias, net.fc2.weight, net.fc2.bias)
            torch.testing.assert_close(output[b, n], slow_ffn(slow_norm(norm, x[b, n]), *weights), rtol=1e-4, atol=1e-4)


def test_ffn_policies_reach_their_blocks():
    def kinds(**changes: object) -> list[type]:
        return [type(block.ffn) for block in Encoder(model_config(**changes), SIZES, VOCAB).blocks]  # pyright: ignore

    assert kinds() == [ModalityFeedForward, MoE, MoE]
    assert kinds(num_deep_blocks=0) == [ModalityFeedForward] * 3
    assert kinds(shallow_ffn="shared", deep_ffn="modality", num_deep_blocks=1) == [
        FeedForward,
        FeedForward,
        ModalityFeedForward,
    ]
    assert kinds(shallow_ffn="moe", deep_ffn="shared", num_deep_blocks=2) == [MoE, FeedForward, FeedForward]
    assert kinds(deep_ffn="moe", num_deep_blocks=3) == [MoE] * 3
    blocks = Encoder(model_config(modality_routing=False, num_experts=5, top_k=1), SIZES, VOCAB).blocks
    ffn = blocks[2].ffn
    assert isinstance(ffn, MoE)
    assert ffn.router.weight.shape == (5, 16)
    assert ffn.router.top_k == 1
    assert ffn.router.modality_embed is None


def test_routing_says_which_experts_are_built():
    def built(routing: str) -> MoE:
        ffn = Block(model_config(routing=routing, activation="gelu"), "moe", sizes=SIZES).ffn
        assert isinstance(ffn, MoE)
        assert ffn.experts.activation is nn.functional.gelu
        return ffn

    assert type(built("dropless")) is MoE
    for routing, drops in (("reference", True), ("reference-dropless", False)):
        ffn = built(routing)
        assert isinstance(ffn, OfficialMoE)
        assert (ffn.drops, ffn.num_image) == (drops, 1 + P)
        assert type(Block(model_config(routing=routing), "moe").ffn) is MoE  # without an image there is no fixed boundary
    assert [type(build_backbone(model_config(routing=routing), SIZES, VOCAB)) for routing in ROUTINGS] == [
        Encoder,
        OfficialEncoder,
        OfficialEncoder,
    ]


@pytest.mark.parametrize("policy", POLICIES)
@torch.no_grad()
def test_a_block_adds_what_its_policy_makes_of_each_token(policy):
    """With the block's own norm where one is for all, and statistics from experts alone."""
    block = Block(model_config(), policy, sizes=SIZES)
    randomize(block, 2, std=0.4)
    nn.init.zeros_(block.scale1)  # no attention
    x_BND, num_image = torch.randn(2, 7, 16), 4
    x_SD, rows = in_rows(x_BND, num_image, num_heads=2)
    y_SD, stats = block(x_SD, rows)
    assert (stats is not None) == (policy == "moe") == POLICIES[policy].has_router
    assert hasattr(block, "norm2") == ("modality" not in policy) == POLICIES[policy].has_norm
    expected = x_BND.clone()
    for b in range(2):
        for n in range(7):
            if isinstance(block.ffn, PassFeedForward):
                branch = slow_ffn(slow_norm(block.ffn.norm_vl, x_BND[b, n]), *block.ffn.vl.parameters())
            elif isinstance(block.ffn, ModalityFeedForward):
                norm, net = [(block.ffn.norm_image, block.ffn.image), (block.ffn.norm_text, block.ffn.text)][n >= num_image]
                branch = slow_ffn(slow_norm(norm, x_BND[b, n]), *net.parameters())
            elif isinstance(block.ffn, MoE):
                normed = slow_norm(block.norm2, x_BND[b, n])[None, None]
                branch = slow_moe(block.ffn, normed, torch.tensor([[n >= num_image]]), None)[0][0, 0]
            else:
                branch = slow_ffn(slow_norm(block.norm2, x_BND[b, n]), *block.ffn.parameters())
            expected[b, n] += block.scale2 * branch
    torch.testing.assert_close(rows.grid(y_SD), expected, rtol=1e-4, atol=1e-4)


# Names elsewhere


def own_names(config: EveModelConfig, policy: FFNPolicy) -> set[str]:
    """Names of the feed-forward part's parameters in a block."""
    return {name for name in Block(config, policy, sizes=SIZES).state_dict() if name.startswith(("ffn.", "norm2."))}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("modality_routing", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_published_names_are_told_for_exactly_the_parameters_that_there_are(policy, modality_routing, routing):
    config = model_config(modality_routing=modality_routing, routing=routing, num_experts=3)
    table = POLICIES[policy].published(config)
    if policy == "shared":
        assert table is None
        return
    assert table is not None
    assert set(table) == own_names(config, policy)
    theirs = [name for names in table.values() for name in names]
    assert len(theirs) == len(set(theirs))
    block = Block(config, policy, sizes=SIZES)
    for ours, names in table.items():
        if len(names) > 1:  # a stack: experts, or the embeddings of the two modalities
            assert len(names) == block.get_parameter(ours).shape[0], ours


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("copies", ["all", "text", "none"])
def test_copied_names_are_parameters_and_all_of_them_with_all_copies(policy, copies):
    config = model_config()
    table, own = dict(POLICIES[policy].copied(copies)), own_names(config, policy)
    assert set(table) <= own
    experts, text = ({name for name in own if any(part in name for part in new)} for new in (("experts", "vl"), ("text",)))
    router = {name for name in own if "router" in name}  # image encoders have none
    new = {"all": router, "text": router | experts, "none": router | experts | text}[copies]
    assert set(table) == own - new
    whole = Block(config, "shared")
    shapes = {name.replace("ffn.", "mlp."): tensor.shape for name, tensor in whole.state_dict().items()}
    block = Block(config, policy, sizes=SIZES)
    for ours, theirs in table.items():
        shape = block.get_parameter(ours).shape
        assert (shape[1:] if "experts" in ours else shape) == shapes[theirs], ours


# Arithmetic, as torch counts it


@pytest.fixture
def counted(monkeypatch) -> Iterator[Callable[[Callable[[], object]], int]]:
    """torch counts neither grouped_mm nor the fused attention of CPUs: both take their plain form here."""
    monkeypatch.setattr(moe, "grouped_mm_works", lambda *_: False)

    def count(call: Callable[[], object]) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    yield count


def inputs_of(encoder: Encoder, num_kept: int | None, num_text: int) -> tuple[Tokens | None, Tokens | None]:
    """One image, of which so many patches are kept, if there is one, and one text without padding, if it has tokens."""
    image = None if num_kept is None else encoder.image(pixels(1), torch.randperm(P)[None, :num_kept])
    return image, encoder.text(torch.randint(1, VOCAB, (1, num_text)), None) if num_text else None


@pytest.mark.parametrize("routing", ["dropless", "reference-dropless"])  # what official drops depends on the draw
@pytest.mark.parametrize("policies", MIXED)
@pytest.mark.parametrize(("num_kept", "num_text"), [(P, T), (4, 9), (P, 0), (None, T)])
def test_flops_of_the_encoder_are_those_that_torch_counts(routing, policies, num_kept, num_text, counted):
    config = model_config(shallow_ffn=policies[0], deep_ffn=policies[1], routing=routing, embed_dim=32, num_experts=5)
    encoder = build_backbone(config, SIZES, VOCAB)
    assert isinstance(encoder, Encoder)
    randomize(encoder, 1, std=0.3)
    num_image = 0 if num_kept is None else 1 + num_kept
    # what is left out of the count: the weighted sum of the K experts, the router's product with the two modalities and, of
    # all routing, its statistics
    N, D, E = num_image + num_text, 32, config.num_experts
    left_out = (2 * N * config.top_k * D + 2 * 2 * E * D) * (routing == "dropless") + 2 * 2 * N * 4 * E
    found = counted(lambda: encoder.encode(*inputs_of(encoder, num_kept, num_text)))
    assert found - left_out * config.ffn_policies.count("moe") == encoder.flops(num_image, num_text)
    if POLICIES[config.deep_ffn].has_pairs and not (num_image and num_text):
        alone = counted(lambda: encoder.alone(*inputs_of(encoder, num_kept, num_text)))
        assert alone == encoder.flops_alone(num_image, num_text) > encoder.flops(num_image, num_text, "cls")


SECTIONS: dict[str, TaskConfig] = {
    "encoder": HeadlessConfig(),
    "masked": MaskedSignalConfig(**DECODER),
    "masked together": MaskedSignalConfig(joint_masking=True, **DECODER),
    "tokens alone": MaskedSignalConfig(mim_weight=0.0),
    "contrast": ContrastMatchConfig(mim_weight=1.0, **DECODER),
    "retrieval": RetrievalConfig(),
    "retrieval without matching": RetrievalConfig(itm_weight=0.0, rerank=0),
    "vqa": VQAConfig(),
    "nlvr2": NLVR2Config(head="compare"),
    **{f"classification of {reads}": ClassificationConfig(inputs=reads) for reads in READS},  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("name", SECTIONS)
def test_flops_of_tasks_are_those_that_torch_counts(name, counted):
    """Of each loss, a row with a text of full length; heads of one row per pair and the like are less than a hundredth."""
    config = tiny_config(task=SECTIONS[name], model={"embed_dim": 48, "shallow_ffn": "shared", "modality_routing": False})
    task = build_untrained(config, Sizes(vocab_size=VOCAB, labels=("a", "b"))).train()
    encoder, found = task.encoder, {}
    assert isinstance(encoder, Encoder)
    images, ids = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8), torch.randint(1, VOCAB, (1, T))
    if isinstance(task, MaskedSignalTask):
        order = torch.randperm(P)[None]
        keep, hidden = order[:, :4], order[:, 4:]  # 0.75 of 16 patches are hidden
        image, text = inputs_of(encoder, 4, T)
        encoded = encoder.encode(image, text)
        if task.settings.mim_weight:
            found["image pass"] = counted(lambda: encoder.encode(*inputs_of(encoder, 4, T)))
            found["pixel decoder"] = counted(lambda: task.pixel_decoder(encoded, keep, hidden))
        if name != "masked together":
            masked_M = torch.arange(1, 1 + round((T - 1) * 0.5))
            found["text pass"] = counted(lambda: encoder.some(*inputs_of(encoder, P, T), masked_M))  # pyright: ignore
        found["token head"] = counted(lambda: task.token_head(encoded.text_BTD[0, : round((T - 1) * 0.5)]))
    if isinstance(task, Retrieval) or name == "contrast":
        assert not isinstance(task, VQA | NLVR2)
        found["contrast, image alone"] = counted(lambda: encoder.cls(*inputs_of(encoder, P, 0)))
        found["contrast, text alone"] = counted(lambda: encoder.cls(*inputs_of(encoder, None, T)))
        if "without" not in name:
            embeds = counted(lambda: inputs_of(encoder, P, T))
            pair = CaptionBatch(
                images_BCHW=images,
                ids_BT=ids,
                is_padding_BT=torch.zeros(1, T, dtype=torch.bool),
                image_id_B=torch.zeros(1),
                caption_B=torch.zeros(1),
                where=(),
            )
            everything = counted(lambda: task.contrast(encoder, pair))  # pyright: ignore
            image, text = inputs_of(encoder, P, T)
            alone = counted(lambda: (encoder.cls(image, None), encoder.cls(None, text)))
            found["matching, three fusion passes"] = everything - embeds - alone + 3 * embeds
    if isinstance(task, VQA):
        found["fusion pass"] = counted(lambda: task.logits(images, ids, None))
    if isinstance(task, NLVR2):
        rows: tuple[Tensor, ...] = images.repeat(2, 1, 1, 1), images.repeat(2, 1, 1, 1), ids.repeat(2, 1)  # a batch to norm by
        found["two fusion passes"] = counted(lambda: task.logits(*rows, None)) / 2
    if isinstance(task, Classification):
        given = {"pixels": images, "ids": ids, "is_padding": torch.zeros(1, T, dtype=torch.bool)}
        found["pass"] = counted(lambda: task.logits(*(given[name] for name in READS[task.settings.inputs])))
    assert list(found) == list(task.flops())
    assert found == {part: pytest.approx(flops, rel=0.02) for part, flops in task.flops().items()}


@pytest.mark.parametrize(("rows", "off"), [("image_text", "none"), ("image", "mlm_weight"), ("text", "mim_weight")])
def test_rows_of_one_modality_cost_nothing_for_the_other(rows, off):
    weights = {"mim_weight": 1.0, "mlm_weight": 1.0} | ({off: 0.0} if off != "none" else {})
    config = tiny_config(task=MaskedSignalConfig(**weights, **DECODER), data={"modality": rows})
    task = build_untrained(config, Sizes(vocab_size=VOCAB))
    assert isinstance(task, MaskedSignalTask)
    found, num_seen, num_text = task.flops(), 1 + 4, T * (rows != "image")  # 0.75 of 16 patches are hidden
    if rows != "text":
        assert found["image pass"] == task.encoder.flops(num_seen, num_text)
        assert found["pixel decoder"] == task.pixel_decoder.flops(num_seen + num_text, 12)
    if rows != "image":
        assert found["text pass"] == task.encoder.flops(0 if rows == "text" else 1 + P, T, 6)  # half of 11 words are hidden
    assert ("image pass" in found, "text pass" in found) == (rows != "text", rows != "image")
