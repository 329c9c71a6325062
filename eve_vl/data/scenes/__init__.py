"""Built-in data: generated pictures with captions, questions and statements that are true by construction.

Pure functions of (split, seed, index), no files. `test_novel` shows (kind, colour) pairs that no other split shows.
"""

from eve_vl.data.scenes.questions import ANSWERS, QUESTION_KINDS, Question, sample_question
from eve_vl.data.scenes.render import render
from eve_vl.data.scenes.rows import (
    DEFAULT_NUM_ROWS,
    ScenePairs,
    SceneQuestions,
    SceneStatements,
)
from eve_vl.data.scenes.statements import STATEMENT_KINDS, Statement, sample_statement
from eve_vl.data.scenes.text import all_captions, caption_is_true, captions
from eve_vl.data.scenes.world import HELD_OUT, SPLITS, Scene, Shape, sample_scene

__all__ = [
    "ANSWERS",
    "DEFAULT_NUM_ROWS",
    "HELD_OUT",
    "QUESTION_KINDS",
    "SPLITS",
    "STATEMENT_KINDS",
    "Question",
    "Scene",
    "ScenePairs",
    "SceneQuestions",
    "SceneStatements",
    "Shape",
    "Statement",
    "all_captions",
    "caption_is_true",
    "captions",
    "render",
    "sample_question",
    "sample_scene",
    "sample_statement",
]
