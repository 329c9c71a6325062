"""False reports of a phantom, each with one change to the true one."""

from random import Random

from eve_vl.synthetic.random_choices import pick, pick_distinct
from eve_vl.systems.medical.phantoms.reports import (
    ABSENT,
    NAMES,
    PRESENT,
    Mention,
    Report,
    name_of,
    sample_report,
)
from eve_vl.systems.medical.phantoms.world import (
    FINDINGS,
    Finding,
    Phantom,
    is_possible,
    variants,
)

NUM_DISTRACTORS = 3


def distractors(split: str, phantom: Phantom) -> list[str]:
    """Return NUM_DISTRACTORS false but possible reports, each with one finding changed.

    One denies a present finding; the others have a wrong side, zone or grade. If there are too few
    of these, they state a finding that the true report denies, then one that it does not mention.

    That balances words: a report without findings has longer distractors, every other one a shorter
    one and some of its length.
    """
    rng = Random(f"distractors/{phantom.seed}")
    report = sample_report(split, phantom)
    denials = _denials(rng, report, phantom)
    claims = _claims(rng, report, split)
    changes = [*denials[:1], *claims, *denials[1:]]
    return [_changed(rng, report, mention).text for mention in changes[:NUM_DISTRACTORS]]


def _denials(rng: Random, report: Report, phantom: Phantom) -> list[Mention]:
    """Return denials of the findings that the report mentions and the phantom has."""
    kinds = []
    for kind, state in report.state_of.items():
        if state != ABSENT and phantom.finding(kind):
            kinds.append(kind)
    shuffled = pick_distinct(rng, kinds, len(kinds))
    return [Mention(Finding(kind), ABSENT, pick(rng, NAMES[kind])) for kind in shuffled]


def _claims(rng: Random, report: Report, split: str) -> list[Mention]:
    """Return false claims: first of findings that the report states, denies, then leaves out."""
    findings = _false_findings(rng, report)
    claims = [Mention(finding, PRESENT, name_of(finding, split)) for finding in findings]
    state_of = report.state_of
    in_turn = []
    for state in (PRESENT, ABSENT, None):
        in_turn += [claim for claim in claims if state_of.get(claim.finding.kind) == state]
    return in_turn


def _false_findings(rng: Random, report: Report) -> list[Finding]:
    """Sample up to NUM_DISTRACTORS findings of each kind, in random order.

    They are compatible with the other findings of the report. Of kinds in the report, they differ
    from it in one attribute.
    """
    present = {}
    for mention in report.mentions:
        if mention.state == PRESENT:
            present[mention.finding.kind] = mention.finding

    sampled: list[Finding] = []
    for kind in FINDINGS:
        stated = present.get(kind)
        rest = [finding for finding in present.values() if finding.kind != kind]
        fitting = []
        for variant in variants(kind):
            is_one_change = stated is None or stated.num_changes(variant) == 1
            if is_one_change and is_possible([*rest, variant]):
                fitting.append(variant)
        sampled += pick_distinct(rng, fitting, min(NUM_DISTRACTORS, len(fitting)))
    return pick_distinct(rng, sampled, len(sampled))


def _changed(rng: Random, report: Report, new: Mention) -> Report:
    """Return a report with one finding changed, or added at a random place."""
    mentions = []
    for mention in report.mentions:
        mentions.append(new if mention.finding.kind == new.finding.kind else mention)
    if new not in mentions:
        place = pick(rng, range(len(mentions) + 1))
        mentions.insert(place, new)
    return report._replace(mentions=tuple(mentions))
