"""Refusals of requests: an HTTP status with one line."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from eve_vl.utils.errors import printable, shortened


class RequestRefusedError(Exception):
    """An HTTP status with one line: the problem, the value given, the fix."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        self.status = status
        self.message = printable(shortened(message))
        self.headers = headers
        super().__init__(self.message)

    def response(self) -> JSONResponse:
        """Return the response to the request."""
        return JSONResponse({"error": self.message}, self.status, self.headers)


def busy(reason: str, seconds: int = 1) -> RequestRefusedError:
    """Return a 503 for a request that may be sent again."""
    message = f"{reason}; send it again in {seconds} s"
    return RequestRefusedError(503, message, {"retry-after": str(seconds)})
