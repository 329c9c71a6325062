"""A server: every call of `Eve` and the search in an index as JSON over HTTP."""
