"""Built-in data that code generates, and how to write it to files."""
