"""What every room needs: errors, console, files, JSON, threads, memory, seeds and signals of this
process."""
