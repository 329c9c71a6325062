"""The demo on built-in scenes: pre-train, fine-tune on three tasks, compare with random weights."""
