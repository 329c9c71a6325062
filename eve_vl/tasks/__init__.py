"""Tasks: what every task has, and a folder for each."""
