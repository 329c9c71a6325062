"""The model: embedding, layers, experts, encoder, heads and pixel decoder."""
