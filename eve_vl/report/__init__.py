"""Pages about runs, each one self-contained HTML file: numbers, curves, examples with images, routing."""
