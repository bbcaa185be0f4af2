"""The mains within this process: what a command would print and return, without imports and compilation of its own."""

import contextlib
import importlib
import io
import runpy
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import ModuleType
from unittest import mock

from absl import flags

import experiments.command  # noqa: F401, it defines the flags of all mains

_OF_ALL = ("debug", "distributed", "modules")  # flags of experiments.command


def main(name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    """What `python -m experiments.<name> <arguments>` does, from its flags to its exit code.

    Flags, messages and exit codes are the command's own. What a process of its own shows besides (that its imports
    suffice, signals, a kill) takes `command` and a subprocess.

    Args:
        name: of the main.
        arguments: its flags.
        check: whether an exit code other than 0 fails the test.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        _flags_of_one_main(),
        mock.patch.object(sys, "argv", [name, *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        # As in a separate process; it does not matter here that a test has also imported the main.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
        code = _exit_code(name, err)
    assert not check or code == 0, err.getvalue()
    return subprocess.CompletedProcess([name, *arguments], code, out.getvalue(), err.getvalue())


def module(name: str) -> ModuleType:
    """The module of a main, whose flags do not stay: two mains may define a flag of one name."""
    with _flags_of_one_main():
        return importlib.import_module(f"experiments.{name}")


def command(name: str, *arguments: str) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", f"experiments.{name}", *arguments]


def _exit_code(name: str, err: io.StringIO) -> int:
    try:
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=False)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=err)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc(file=err)
        return 1
    return 0


@contextlib.contextmanager
def _flags_of_one_main() -> Iterator[None]:
    """A main defines its flags when it runs: flags of other mains that tests imported are put aside until it ends."""
    known = flags.FLAGS
    of_absl = [own for module, own in known.flags_by_module_dict().items() if module.startswith("absl")]
    kept = {*_OF_ALL, *(flag.name for own in of_absl for flag in own)}
    shared = {name: known[name].value for name in known if known[name].name in kept}
    aside = {name: known[name] for name in known if name not in shared}
    for name in aside:
        delattr(known, name)
    try:
        yield
    finally:
        for name in set(known) - set(shared):
            delattr(known, name)
        for name, value in shared.items():
            known[name].value = value
        for name, flag in aside.items():
            known[name] = flag
        known.unparse_flags()
