"""The kinds of rows: each file has records, columns in tables, batches, samples."""
