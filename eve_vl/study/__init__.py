"""Studies: the paper's comparisons, measured on this library."""
