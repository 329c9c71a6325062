"""The model: embeddings, blocks, mixture of experts, backbones, heads and the pixel decoder."""
