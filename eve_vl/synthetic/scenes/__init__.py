"""Built-in data: generated images with captions, questions, statements and labels that are true by construction.

Pure functions of (split, seed, index), no files. `test_novel` shows (kind, colour) pairs that no other split shows.
"""

from eve_vl.synthetic.scenes.rows import SCENES, SceneLabels, ScenePairs, SceneQuestions, SceneStatements

__all__ = ["SCENES", "SceneLabels", "ScenePairs", "SceneQuestions", "SceneStatements"]
