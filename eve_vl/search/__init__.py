"""Image search by text or image: an index on the disk, its updates, the search."""
