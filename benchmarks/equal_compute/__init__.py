"""Training at equal compute: arms, cells, tables and the open_clip baseline."""
