"""MedFLIP (arXiv 2403.04626): recipes."""
