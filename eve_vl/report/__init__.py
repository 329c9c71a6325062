"""Reports: self-contained HTML pages about runs, comparisons of runs, searches."""
