"""MedFLIP (arXiv 2403.04626): contrast between two towers, from images with half of their patches dropped."""
