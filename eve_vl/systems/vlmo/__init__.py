"""VLMo (Bao et al. 2022, arXiv 2111.02358): EVE's encoder with a third expert for pairs, trained in three stages."""
