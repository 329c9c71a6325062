"""Compare our arithmetic with recorded outputs of the published code: python tests/golden_check.py
DIR

DIR holds manifest.json, the weights under their published names, inputs, and outputs in two
versions: `released` (with the recorded noise) and `dropless` (without noise and drops, with losses
and gradients). Sizes come from the tensors and the manifest. Prints the largest difference per
kind. Exits with 1 if a difference exceeds its tolerance or a recorded tensor was not compared.

Letters: B batch, N tokens, D width, S tokens of the whole batch, E experts.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eve_vl import objectives
from eve_vl.config import Config
from eve_vl.data.kinds.captions import CaptionBatch
from eve_vl.interop import eve_checkpoints
from eve_vl.interop.convert import Conversion, config_for
from eve_vl.interop.eve_checkpoints import key_table, to_published
from eve_vl.interop.weight_table import convert_tensor, resolve
from eve_vl.model.reference_moe import Assignment, ReferenceMoE
from eve_vl.model.tokens import Tokens
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.task import Sizes, routing_terms
from eve_vl.tasks.vqa.config import VQAConfig
from helpers.slow_experts import router_sums

ABSOLUTE = 2e-5  # tolerance of recorded outputs
RELATIVE = 2e-5  # additional tolerance of gradients and their norms
HEADS = {
    "vqa": VQAConfig(),
    "nlvr": NLVR2Config(head="concat"),
    "nlvr_biattn": NLVR2Config(head="paired"),
    "retrieval": RetrievalConfig(final_norm=False),
}
VERSIONS = {"released": "reference", "dropless": "reference-dropless"}


class Comparison:
    """Recorded tensors and their differences from ours."""

    def __init__(self, recorded: dict[str, Tensor]):
        self.recorded = recorded
        self.worst: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []
        self.compared: set[str] = set()

    def __call__(
        self,
        kind: str,
        name: str,
        ours: Tensor,
    ) -> None:
        """Compare one tensor; numbers of kind "exact" must be equal."""
        self.compared.add(name)
        theirs = self.recorded[name]
        if ours.ndim == 0:
            theirs = theirs.squeeze()
        if ours.shape != theirs.shape:
            self.failed.append(f"{name}: shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}")
            return
        difference = (ours.detach().double() - theirs.double()).abs()
        self.worst[kind] = max(self.worst[kind], difference.max().item())
        allowed = torch.full_like(difference, 0 if "exact" in kind else ABSOLUTE)
        if kind.startswith("gradient"):
            allowed += RELATIVE * theirs.double().abs()
        if not (difference <= allowed).all():
            self.failed.append(f"{name}: differs by {difference.max():.2e}")


class Fixture:
    """A folder of recorded inputs and outputs."""

    def __init__(self, folder: Path):
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = {
            version: load_file(folder / f"outputs_{version}.safetensors") for version in VERSIONS
        }
        self.backbone = load_file(folder / "state_backbone.safetensors")
        self.heads = {name: load_file(folder / f"state_head_{name}.safetensors") for name in HEADS}

    def task(self, name: str, version: str) -> tuple[Any, dict[str, tuple[str, ...]]]:
        """Return a task with the recorded weights (evaluation mode, all states computed) and its
        key table."""
        tensors = self.backbone | self.heads[name]
        derived = self.manifest["derived"]
        num_heads = self.manifest["vlmo_config"]["num_attention_heads"]
        sizes, model, section = eve_checkpoints.infer(tensors, name, num_heads)
        expected = HEADS[name]
        if isinstance(expected, RetrievalConfig):
            expected = replace(expected, projection_dim=len(tensors["itc_vision_proj_head.weight"]))
        assert section == expected, section
        sizes = replace(sizes, padded_text_length=derived["text_length_pair"])
        balance_weight = derived["gate_loss_weight"]
        model = replace(model, routing=VERSIONS[version], balance_weight=balance_weight)
        plan = Conversion(
            tensors=tensors,
            sizes=sizes,
            model=model,
            section=section,
            unused="",
        )
        config: Config = config_for(plan, Path("golden"), "golden")
        labels = tuple(str(number) for number in range(len(tensors.get("output.3.bias", ()))))
        vocab_size = len(tensors[eve_checkpoints.WORDS])
        task = build_untrained(config, Sizes(vocab_size=vocab_size, labels=labels))

        state = task.state_dict()
        table = resolve(key_table(model, section), state)
        weights = {}
        for key, computed in table.items():
            weights[key] = convert_tensor(key, computed, tensors, state[key], name)
        for key, tensor in to_published(weights, table, sizes).items():
            assert torch.equal(tensor, tensors[key]), key
        task.load_state_dict(weights)
        task.encoder.computes_all = True
        return task.eval(), {key: computed.sources for key, computed in table.items()}

    @property
    def texts(self) -> tuple[Tensor, Tensor]:
        """Token ids and padding mask."""
        return self.inputs["text_ids"], self.inputs["text_atts"] == 0

    def tokens(self, encoder: Any) -> tuple[Tokens, Tokens]:
        """Return the embedded images and texts."""
        return encoder.image(self.inputs["image"]), encoder.text(*self.texts)


@contextmanager
def watching(
    encoder: Any,
    check: Comparison,
    tag: str,
    *,
    has_states: bool = False,
) -> Iterator[list[Tensor]]:
    """Give the routers the recorded noise, compare routers and blocks, and yield the balance of
    each call."""
    balances: list[Tensor] = []
    undo: list[Callable[[], None]] = []
    handles = []

    def watched(moe: ReferenceMoE) -> Callable[[Tensor], Assignment]:
        route = type(moe).assign

        def run(x_SD: Tensor) -> Assignment:
            name = f"{tag}.moe{len(balances)}"
            if moe.drops:
                moe.noise = lambda _: check.recorded[f"{name}.gumbel_noise"]
                check.compared.add(f"{name}.gumbel_noise")
            routed = route(moe, x_SD)
            check("router logits", f"{name}.router_logits", routed.logits_SE)
            check("choices (exact)", f"{name}.expert_idx", routed.experts_S2)
            check("gates", f"{name}.gates", routed.gates_S2)
            if moe.drops:
                check("slots (exact)", f"{name}.slot", routed.places_S2)
            stats = moe.statistics(routed, torch.zeros(len(x_SD), dtype=torch.long))
            sums = router_sums(stats)
            balances.append(objectives.balance(sums.first_E, sums.gate_E, sums.num_tokens))
            check("balance loss", f"{name}.l_aux", balances[-1][None])
            return routed

        return run

    for number, block in enumerate(encoder.blocks):
        name = f"{tag}.layer{number}"
        if isinstance(block.ffn, ReferenceMoE):
            moe: Any = block.ffn
            moe.assign = watched(moe)
            undo.append(lambda moe=moe: delattr(moe, "assign"))
            if has_states:
                handles.append(moe.register_forward_hook(_compare_ffn(check, name)))
        if has_states:
            handles.append(block.register_forward_hook(_compare_state(check, name)))
    if has_states:
        compare_input = _compare_input(check, f"{tag}.embed")
        handles.append(encoder.blocks[0].register_forward_pre_hook(compare_input))
    yield balances
    for restore in undo:
        restore()
    for handle in handles:
        handle.remove()


def _compare_state(check: Comparison, name: str) -> Callable[..., None]:
    return lambda _module, inputs, output: check("states", name, inputs[1].unpack(output[0]))


def _compare_input(check: Comparison, name: str) -> Callable[..., None]:
    return lambda _module, inputs: check("states", name, inputs[1].unpack(inputs[0]))


def _compare_ffn(check: Comparison, name: str) -> Callable[..., None]:
    def compare(_module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
        x_SD, rows, *_ = inputs
        check("states", f"{name}.moe_in", rows.unpack(x_SD))
        check("states", f"{name}.moe_out", rows.unpack(output[0]))

    return compare


def check_encoder(fixture: Fixture, version: str, check: Comparison) -> None:
    """Compare images, texts and pairs block by block."""
    encoder = fixture.task("vqa", version)[0].encoder
    image, text = fixture.tokens(encoder)
    for tag, tokens in (
        ("vl", (image, text)),
        ("vision", (image, None)),
        ("text", (None, text)),
    ):
        with watching(encoder, check, f"backbone.{tag}", has_states=True):
            check("states", f"backbone.{tag}.out", encoder.encode(*tokens).x_BND)


def check_classifiers(fixture: Fixture, version: str, check: Comparison) -> None:
    """Compare VQA and both heads of NLVR2: logits, losses and (dropless) gradients."""
    inputs = fixture.inputs
    for name in ("vqa", "nlvr", "nlvr_biattn"):
        task, table = fixture.task(name, version)
        images = [inputs["image"]]
        if name != "vqa":
            images.append(inputs["image2"])
        with watching(task.encoder, check, name):
            logits, _ = task.logits(*images, *fixture.texts)
        check("logits", f"{name}.logits", logits)
        if not task.encoder.results_depend_on_batch:  # as in evaluation, without unused states
            task.encoder.computes_all = False
            check("logits", f"{name}.logits", task.logits(*images, *fixture.texts)[0])
            task.encoder.computes_all = True
        tag = f"{name}_loss"
        with watching(task.encoder, check, tag):
            logits, routers = task.logits(*images, *fixture.texts)
        if name == "vqa":
            loss = objectives.answer_bce(logits, inputs["vqa_targets"])
        else:
            loss = objectives.matching(logits, inputs["nlvr_targets"].bool())
        gate = task.encoder.balance_weight * routing_terms(routers)["balance"]
        check("losses", f"{tag}.loss", loss)
        check("losses", f"{tag}.gate_loss", gate)
        if name == "vqa":
            check_gradients(fixture, check, f"{tag}.task", name, task, table, loss)
            check_gradients(fixture, check, f"{tag}.gate", name, task, table, gate)
        else:
            check_gradients(fixture, check, f"{tag}.total", name, task, table, loss + gate)


def check_retrieval_scores(fixture: Fixture, version: str, check: Comparison) -> None:
    """Compare features and matching logits."""
    task, _ = fixture.task("retrieval", version)
    assert isinstance(task, Retrieval)
    encoder = task.encoder
    contrast = task.contrast
    features = contrast.features
    image, text = fixture.tokens(encoder)
    with watching(encoder, check, "retrieval_train_feats"):
        image_Bd = features.image_features(encoder.encode(image, None).cls_BD)
        text_Bd = features.text_features(encoder.encode(None, text).cls_BD)
    check("features", "retrieval_train_feats.image", image_Bd)
    check("features", "retrieval_train_feats.text", text_Bd)
    check("logits", "retrieval_train_feats.itc_logits", image_Bd @ text_Bd.T / features.temperature)
    for tag, tokens in (
        ("vision", (image, None)),
        ("text", (None, text)),
    ):
        with watching(encoder, check, f"retrieval_eval_feats.{tag}"):
            projected_Bd = task._state(*tokens)
        features_Bd = torch.nn.functional.normalize(projected_Bd, dim=1)
        check("features", f"retrieval_eval_feats.{tag}.feat", features_Bd)
    with watching(encoder, check, "retrieval_itm"):
        check("logits", "retrieval_itm.itm_logits", contrast.match(encoder, image, text)[0])


def check_retrieval_loss(fixture: Fixture, version: str, check: Comparison) -> None:
    """Compare the whole loss with recorded negatives, and (dropless) its gradients."""
    tag = "retrieval_loss"
    task, table = fixture.task("retrieval", version)
    encoder = task.encoder
    ids_BT, is_padding_BT = fixture.texts
    image_id_B = fixture.inputs["retrieval_idx"]
    pairs = CaptionBatch(
        images_BCHW=fixture.inputs["image"],
        ids_BT=ids_BT,
        is_padding_BT=is_padding_BT,
        image_id_B=image_id_B,
        caption_B=image_id_B,
        where=(),
    )
    order = iter((("weights_t2i", "neg_image_idx"), ("weights_i2t", "neg_text_idx")))
    seen: dict[str, Tensor] = {}
    drawn = objectives.hard_negatives
    matching = objectives.matching

    def recorded_negatives(similarity_BB: Tensor, is_match_BB: Tensor, *_: Any) -> Tensor:
        weights, chosen = next(order)
        ours = objectives.negative_weights(similarity_BB, is_match_BB)
        check("weights of negatives", f"{tag}.{weights}", ours)
        check.compared.add(f"{tag}.{chosen}")
        return check.recorded[f"{tag}.{chosen}"].long()

    def seen_matching(logits: Tensor, is_match: Tensor) -> Tensor:
        seen["logits"] = logits
        return matching(logits, is_match)

    objectives.hard_negatives = recorded_negatives
    objectives.matching = seen_matching
    try:
        with watching(encoder, check, tag):
            result = task.contrast(encoder, pairs)
    finally:
        objectives.hard_negatives = drawn
        objectives.matching = matching
    losses = result.losses
    gate = encoder.balance_weight * routing_terms(result.routers)["balance"]
    check("logits", f"{tag}.itm_logits", seen["logits"])
    check("losses", f"{tag}.itc_loss", losses["itc"])
    check("losses", f"{tag}.itm_loss", losses["itm"])
    check("losses", f"{tag}.gate_loss", gate)
    loss = losses["itc"] + losses["itm"] + gate
    check_gradients(fixture, check, f"{tag}.total", "retrieval", task, table, loss)


def check_gradients(
    fixture: Fixture,
    check: Comparison,
    tag: str,
    name: str,
    task: Any,
    table: dict[str, tuple[str, ...]],
    loss: Tensor,
) -> None:
    """Compare the norm of each gradient and some whole gradients, where recorded."""
    if f"{tag}.grad_norms" not in check.recorded:
        return
    parameters = dict(task.named_parameters())
    grads = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, retain_graph=True
    )
    gradients = {}
    for (key, parameter), gradient in zip(parameters.items(), grads, strict=True):
        gradients[key] = torch.zeros_like(parameter) if gradient is None else gradient
    key_tables = resolve(key_table(task.config.model, task.settings), gradients)
    published = to_published(gradients, key_tables, task.config.input)

    norms = []
    recorded_norms = check.recorded[f"{tag}.grad_norms"].tolist()
    names = fixture.manifest["param_order"][name]
    for key, recorded_norm in zip(names, recorded_norms, strict=True):
        norm = published[key].double().norm().item()
        if norm == 0 and recorded_norm < 0:
            norm = recorded_norm  # no gradient, which is 0 for a part of a stacked tensor
        norms.append(norm)
    check("gradient norms", f"{tag}.grad_norms", torch.tensor(norms, dtype=torch.float64))
    for key in check.recorded:
        if key.startswith(f"{tag}.grad/"):
            check("gradients", key, published[key.partition(".grad/")[2]])


CHECKS = (check_encoder, check_classifiers, check_retrieval_scores, check_retrieval_loss)


def main(folder: Path) -> int:
    """Compare everything; return the exit status."""
    torch.set_num_threads(1)
    fixture = Fixture(folder)
    status = 0
    for version in VERSIONS:
        check = Comparison(fixture.outputs[version])
        for part in CHECKS:
            part(fixture, version, check)
        num_compared = len(check.compared)
        print(f"{version}: {num_compared} of {len(check.recorded)} recorded tensors compared")
        for kind, worst in sorted(check.worst.items()):
            print(f"  {kind:22} {worst:.1e}")
        for name in sorted(check.recorded.keys() - check.compared):
            check.failed.append(f"{name}: not compared")
        for problem in check.failed:
            print(f"  FAILED {problem}")
        status |= bool(check.failed)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
