"""Runs and icons that the package ships.

A run is named builtin:NAME in each place that takes a run folder.

    drawings/       a run folder with float16 weights; its README.md says how it was made
    scenes*/        three more, for masked signals, questions and statements
    lucide.zip      1,778 icons that drawings/ was not trained on, with their names
    lucide.LICENSE

examples/drawings/ship.py and examples/scenes/ship.py write them. Nothing else writes into this
folder.
"""
