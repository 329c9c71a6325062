"""VLMo (Bao et al. 2022, arXiv 2111.02358)."""
