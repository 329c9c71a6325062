"""What tasks with logits over labels share."""
