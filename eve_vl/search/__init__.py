"""Images and captions found by words and by images: an index on the disk, kept up to date, and the search in it."""
