"""Pictures and captions found by words and by pictures: an index on the disk, kept up to date, and the search in it."""
