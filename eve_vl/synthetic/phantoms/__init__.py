"""Built-in medical data: schematic chest radiographs with reports, labels and questions that are true by construction.

Pure functions of (split, seed, index), no files. They prove code and protocols, and say nothing about medicine. `test_shift`
breaks a shortcut of training, `test_novel` names findings as training never did beside that side, zone or grade.
"""

from eve_vl.synthetic.phantoms.rows import PHANTOMS, PhantomLabels, PhantomPairs, PhantomQuestions, PhantomRows

__all__ = ["PHANTOMS", "PhantomLabels", "PhantomPairs", "PhantomQuestions", "PhantomRows"]
