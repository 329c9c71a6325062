"""An independent reader of reports and questions about phantoms."""

import re
from itertools import chain
from typing import NamedTuple

from eve_vl.systems.medical.phantoms.reports import ABSENT, NAMES, PRESENT, UNCERTAIN
from eve_vl.systems.medical.phantoms.world import GRADES, ZONED, Finding, Phantom

KIND_OF_NAME: dict[str, str] = {}
for _kind, _names in NAMES.items():
    KIND_OF_NAME |= dict.fromkeys(_names, _kind)
STATE_OF_OPENING = {"no ": ABSENT, "there is ": PRESENT, "possible ": UNCERTAIN}

_ANY_NAME = "|".join(KIND_OF_NAME)
_ANY_GRADE = "|".join(chain.from_iterable(GRADES.values()))
PHRASE = re.compile(
    rf"(?:({_ANY_GRADE}) )?(?:(left|right) )?({_ANY_NAME})"
    r"(?: in the (left|right) (upper|middle|lower) zone| at the (left|right) base)?"
)


class Claim(NamedTuple):
    """What a text says about one finding; variant: its side, zone and grade."""

    state: int
    kind: str
    variant: tuple[str, str, str]
    name: str


def read_claims(report: str) -> list[Claim]:
    """Return what a report says before its impression; remarks on view and devices do not count."""
    claims = []
    for sentence in report.partition("impression :")[0].split(" . "):
        for opening, state in STATE_OF_OPENING.items():
            if sentence.startswith(opening):
                claims += read_phrases(sentence, state)
    return claims


def read_phrases(text: str, state: int = PRESENT) -> list[Claim]:
    claims = []
    for grade, side, name, zone_side, zone, base_side in PHRASE.findall(text):
        variant = (side or zone_side or base_side, zone, grade)
        claims.append(Claim(state, KIND_OF_NAME[name], variant, name))
    return claims


def is_true(report: str, phantom: Phantom) -> bool:
    """Return whether findings are as the report says; what is only possible is never wrong."""
    for claim in read_claims(report):
        finding = phantom.finding(claim.kind)
        if claim.state == ABSENT and finding is not None:
            return False
        if claim.state == PRESENT and (finding is None or finding.variant != claim.variant):
            return False
    return True


def is_possible(report: str) -> bool:
    """Return whether an image can show all that a report calls present: nothing hides another."""
    findings = [claim for claim in read_claims(report) if claim.state == PRESENT]
    parts = list(chain.from_iterable(map(_occupied_parts, findings)))
    return len(findings) <= 3 and len(set(parts)) == len(parts)


def _occupied_parts(claim: Claim) -> list[str]:
    side, zone, grade = claim.variant
    if claim.kind == "cardiomegaly":
        return ["heart"]
    if claim.kind == "edema":
        return ["right middle", "left middle"]
    if claim.kind == "pneumothorax":
        return [f"{side} upper"]
    if claim.kind == "pleural effusion":
        parts = [f"{side} lower"]
        if grade == "large":
            parts.append(f"{side} middle")
        return parts
    part = f"{side} {zone or 'lower'}"
    if part == "left lower":
        return [part, "heart"]
    return [part]


def answer_of(question: str, phantom: Phantom) -> str:
    """Answer by reading the question and looking at what is there."""
    if question == "is the heart enlarged":
        return _yes_or_no(phantom.finding("cardiomegaly") is not None)
    if question == "is there a pacemaker":
        return _yes_or_no("pacemaker" in phantom.patient.devices)
    if question == "are there wires over the sternum":
        return _yes_or_no("wires" in phantom.patient.devices)
    if question == "which finding is there":
        assert len(phantom.findings) < 2
        return _first_kind(phantom.findings)
    if question == "how many findings are there":
        return ("zero", "one", "two", "three")[len(phantom.findings)]
    if question == "which view is it":
        return phantom.view
    if question.startswith("what is in the "):
        *_, side, zone, _ = question.split()
        findings = [f for f in phantom.findings if f.kind in ZONED]
        return _first_kind([f for f in findings if (f.side, f.zone) == (side, zone)])
    (claim,) = read_phrases(question)
    return _answer_about(phantom.finding(claim.kind), question, claim)


def _answer_about(finding: Finding | None, question: str, claim: Claim) -> str:
    """Answer a question about one finding, None if it is absent."""
    opening = question.partition(claim.name)[0]
    if finding is None:
        if opening.startswith(("on which ", "in which ", "how ")):
            return "none"
        return _yes_or_no(opening.startswith("is there no "))

    last_word = question.split()[-1]
    if opening == "is there no ":
        return "no"
    if opening == "on which side is the ":
        return finding.side
    if opening == "in which zone is the ":
        return finding.zone
    if opening == "how severe is the ":
        return finding.grade
    if opening == "is the " and question.endswith(f" on the {last_word}"):
        return _yes_or_no(finding.side == last_word)
    if opening == "is the " and question.endswith(f" more than {last_word}"):
        return _yes_or_no(finding.grade != last_word)
    assert opening.startswith("is there ")
    return _yes_or_no(claim.variant in (("", "", ""), finding.variant))


def _first_kind(findings: list[Finding] | tuple[Finding, ...]) -> str:
    if findings:
        return findings[0].kind
    return "none"


def _yes_or_no(is_so: bool) -> str:
    if is_so:
        return "yes"
    return "no"
