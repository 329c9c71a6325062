"""The errors that are meant for people. Everything else that is raised is a bug and keeps its traceback."""


class UserError(ValueError):
    """A mistake in what the user gave, in one line: where, what was found, what to do. The command line prints it and exits."""


class BadSampleError(UserError):
    """One sample cannot be used. Training skips and counts it, `eve data check` lists it."""

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason

    def __reduce__(self):
        return (BadSampleError, (self.where, self.reason))  # survives the trip from a loader worker
