"""Image search by text or image: an index on the disk, its updates, and the search in it."""
