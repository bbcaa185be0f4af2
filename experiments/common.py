"""What the mains share: flags and errors, progress."""

import difflib
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_dict
from tqdm import tqdm

from ld3_jax import batches

_DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")
_LINE_EVERY_S = 5.0
_COMPILING = [
    f"/jax/core/compile/{part}_duration" for part in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
]


def run(main: Callable[[], None]) -> None:
    """Run a main: parse its flags, switch the compilation cache on, and end an error in one line."""

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: arguments that no flag takes: {argv[1:]}")
        if not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/ld3_jax/compiled").expanduser()))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        _hush()
        try:
            with jax.set_mesh(batches.all_devices()) if len(jax.local_devices()) > 1 else nullcontext():
                main()
        except (ValueError, OSError, FloatingPointError, ImportError) as error:
            if _DEBUG.value:
                raise
            print(f"error: {error}", file=sys.stderr)
            if isinstance(error, OSError):  # Orbax's threads may wait for ever for what a full disk did not take
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit("\ninterrupted; the same command goes on from here")

    app.run(guarded, flags_parser=_parse_flags)


def _hush() -> None:
    """Leave errors to the main thread, which ends in one line: Orbax's threads report each of theirs, too."""
    absl_logging.set_verbosity(absl_logging.ERROR if _DEBUG.value else absl_logging.FATAL)
    if not _DEBUG.value:
        threading.excepthook = sys.unraisablehook = lambda _: None


def _parse_flags(argv: list[str]) -> list[str]:
    given = dict(arg.lstrip("-").split("=", 1) for arg in argv[1:] if "=" in arg)
    if "config" in given:
        _check_config(Path(given["config"]), [name.removeprefix("config.") for name in given if "config." in name])
    return app.parse_flags_with_usage(argv)


def _check_config(path: Path, keys: Sequence[str]) -> None:
    """End with one line if there is no such file, or name a key that it lacks and the nearest one that it has."""
    if not path.is_file():
        sys.exit(f"error: no configuration file {path}")
    known = set(flat(runpy.run_path(str(path))["get_config"]()))
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            sys.exit(f"error: unknown key --config.{key}; did you mean --config.{nearest[0]}?")


def flat(config: config_dict.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """A configuration's keys, joined by dots, and their values."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, config_dict.ConfigDict)
        leaves |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return leaves


def differences(config: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where two configurations differ, a line each."""
    a, b = (flat(config_dict.ConfigDict(c)) for c in (config, other))
    return [f"{key}: {a.get(key)!r}, here {b.get(key)!r}" for key in sorted(a | b) if a.get(key) != b.get(key)]


class Stopwatch:
    """Seconds that each part of a run took, those of compiling apart from it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begun, compiled = time.monotonic(), self._compiling
        yield
        compiling = self._compiling - compiled
        self.seconds[part] = time.monotonic() - begun - compiling
        self.seconds["compiling"] = self.seconds.get("compiling", 0.0) + compiling

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if event in _COMPILING:
            self._compiling += seconds


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar, or on a pipe one line every few seconds.

    Yields:
        update(done, **figures): so many of the total are done; the figures are shown beside.
    """
    if sys.stderr.isatty():
        with tqdm(
            total=total, desc=label, bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        ) as bar:

            def update(done: int, **figures: float) -> None:
                bar.set_postfix({name: f"{value:.5f}" for name, value in figures.items()}, refresh=False)
                bar.update(done - bar.n)
                bar.refresh()

            yield update
        return
    started, printed, first = time.monotonic(), -_LINE_EVERY_S, None

    def update(done: int, **figures: float) -> None:
        nonlocal printed, first
        now = time.monotonic() - started
        first = (done, now) if first is None else first
        if now - printed < _LINE_EVERY_S and done < total:
            return
        printed = now
        shown = "".join(f"  {name} {value:.5f}" for name, value in figures.items())
        left = ""
        if first[0] < done < total:  # the first item's time is mostly compilation
            left = f", {(now - first[1]) / (done - first[0]) * (total - done):.0f} s left"
        print(f"{label} {done}/{total}{shown}  {now:.0f} s{left}", file=sys.stderr, flush=True)

    yield update
