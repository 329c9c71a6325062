"""M3AE, the medical one (Chen et al. 2022, MICCAI): recipes and conversion of its checkpoints."""
