"""The verb data answers: the list of answers of questions."""

from pathlib import Path

from tyro.conf import Positional

from eve_vl.cli.flags import SourceArgs
from eve_vl.cli.output_files import check_writable, write_json
from eve_vl.config import DataConfig
from eve_vl.utils.console import pluralize, print_line
from eve_vl.utils.errors import UserError

GENERATED_SIZE = 64  # pixels of generated images, which are not looked at


class AnswersArgs(SourceArgs):
    """Flags of `eve data answers`."""

    data: Positional[tuple[str, ...]]
    """Sources of questions."""
    out: Path = Path("answers.json")
    """File to write, for --task.answers."""


def run_data_answers(args: AnswersArgs) -> None:
    """Write the answers of questions, most frequent first: eve data answers PATH …"""
    check_writable(args.out)
    from eve_vl.data.opening import open_sources
    from eve_vl.data.records import usable_rows
    from eve_vl.metrics.vqa import build_answers

    sources = open_sources(args.data, DataConfig(**args.reading()), GENERATED_SIZE, "questions")
    answer_lists = (row.answers for source in sources for _, row in usable_rows(source))
    answers = build_answers(answer_lists, min_count=1)
    if not answers:
        raise UserError(f"{' '.join(args.data)}: no question has an answer")
    write_json(args.out, answers)
    print_line(f"{args.out}: {pluralize(len(answers), 'answer')}")
