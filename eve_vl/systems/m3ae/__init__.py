"""M3AE (Chen et al. 2022, MICCAI): masked tokens, masked pixels and matching on medical images, by towers with co-attention."""
