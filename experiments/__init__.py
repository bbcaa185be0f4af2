"""The mains. As a command, `python -m experiments.<name>`, each ends cleanly if interrupted or if its pipe closes."""

import atexit
import contextlib
import io
import os
import signal
import sys
from types import SimpleNamespace

_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
# The number of the signal that arrived, and whether it must wait for steps of learning that are not on the disk yet.
ending = SimpleNamespace(number=0, waits=False)


def _end(number: int, frame: object) -> None:
    """Print a line and end at once, without an exception, which other code may swallow; files on disk stay complete."""
    if not ending.number:
        with contextlib.suppress(OSError):
            os.write(2, f"{os.isatty(2) * chr(10)}{_SIGNALS[number]}; the same command continues from here\n".encode())
    ending.number = number
    if not ending.waits:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(128 + number)


class _Output(io.FileIO):
    """A standard stream. If its reader closes it, as `head` does, the rest is dropped and the work continues."""

    def write(self, data: bytes) -> int:
        with contextlib.suppress(BrokenPipeError):
            return super().write(data)
        return len(data)


if sys.argv[0] == "-m":  # run as a command, before anything else is imported
    for _number in _SIGNALS:
        if signal.getsignal(_number) != signal.SIG_IGN:  # unless ignored, as in the background or under nohup
            signal.signal(_number, _end)
            atexit.register(signal.signal, _number, signal.SIG_IGN)  # everything is done by then
    for _name in ("stdout", "stderr"):
        if _old := getattr(sys, _name):
            _raw = io.BufferedWriter(_Output(_old.fileno(), "w", closefd=False))
            _like = (_old.encoding, _old.errors, None, _old.line_buffering, _old.write_through)
            setattr(sys, _name, io.TextIOWrapper(_raw, *_like))
    from ld3_jax import extras

    try:
        extras.require(__name__, "experiments", "models")
    except ImportError as _error:
        sys.exit(str(_error))
