"""The command line `eve VERB …`: a file per verb; `main.py` chooses the verb."""
