"""Scenes of coloured shapes, whose captions, questions, statements and labels are true by
construction.

They are pure functions of (split, seed, index), without files. `test_novel` shows (kind, colour)
pairs that no other split shows. Splits named `hard_…` show more and smaller shapes, described by
two sentences.
"""
