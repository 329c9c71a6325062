"""Other formats: foreign checkpoints in and ours out, transformers, ONNX."""
