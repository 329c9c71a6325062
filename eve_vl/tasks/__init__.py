"""Tasks: each joins a batch type, the model and its objectives."""
