"""Data: records and readers, built-in scenes, transforms, tokenizer, masks, batches and loaders."""
