"""Official metrics; no torch modules."""
