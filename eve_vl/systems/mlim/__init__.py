"""MLIM (arXiv 2109.12178): masked texts and whole reconstructed images in one pass, and pairs of items."""
