"""Phantoms: schematic chest radiographs with reports, labels and questions, true by construction.

They are pure functions of (split, seed, index), without files. They prove code and protocols, and
say nothing about medicine. In `test_shift` a shortcut of the training data is broken. `test_novel`
combines findings with sides, zones and grades in wordings that training never showed.
"""
