"""Data: readers and records, images, tokenizer, masks, batches and loaders."""
