"""The command `eve`, also as `python -m eve_vl`, the form that torchrun needs."""

import os
import signal
from types import FrameType

# no slower imports here: Ctrl-C would print a traceback during them


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    from eve_vl.cli.main import main as run  # now, so that Ctrl-C may come meanwhile

    run()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or end at once while a module loads.

    Nothing is to be saved yet then, and libraries that are cut off half-way raise other errors.
    """
    caller = frame
    while caller is not None:
        if caller.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"eve: interrupted\n")
            os._exit(128 + number)
        caller = caller.f_back
    signal.default_int_handler(number, frame)


if __name__ == "__main__":
    main()
