"""MLIM (arXiv 2109.12178): masked texts and images in one pass; pairs of items."""
