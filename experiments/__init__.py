"""The mains. As a command, `python -m experiments.<name>`, each ends well if it is interrupted or its reader leaves."""

import atexit
import contextlib
import io
import os
import signal
import sys
from types import SimpleNamespace

_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
# The number of the signal that came, and whether it must wait: for steps of learning that are not on the disk yet.
ending = SimpleNamespace(number=0, waits=False)


def _end(number: int, frame: object) -> None:
    """Say so and end at once, without an exception, which foreign code may lose; files on the disk are always whole."""
    if not ending.number:
        with contextlib.suppress(OSError):
            os.write(2, f"{os.isatty(2) * chr(10)}{_SIGNALS[number]}; the same command goes on from here\n".encode())
    ending.number = number
    if not ending.waits:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(128 + number)


class _Output(io.FileIO):
    """A standard stream. If its reader leaves, as `head` does, the rest is dropped, and the work goes on."""

    def write(self, data: bytes) -> int:
        with contextlib.suppress(BrokenPipeError):
            return super().write(data)
        return len(data)


if sys.argv[0] == "-m":  # a command, of which nothing else is loaded yet
    for _number in _SIGNALS:
        if signal.getsignal(_number) != signal.SIG_IGN:  # as in the background, or under nohup
            signal.signal(_number, _end)
            atexit.register(signal.signal, _number, signal.SIG_IGN)  # all is done then
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
