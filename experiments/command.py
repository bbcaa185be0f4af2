"""What all commands share: flags, one-line errors, progress."""

import difflib
import glob
import importlib
import io
import os
import re
import runpy
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_dict, config_flags
from tqdm import tqdm

from experiments import ending
from experiments.configuration import flat, naming
from ld3_jax import batches, processes
from ld3_jax.disk import CACHE, check_writable, read_json

_DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Work with the other processes of this command on all their devices. SLURM, Open MPI, Kubernetes and TPU pods say "
    "which they are; elsewhere JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
)
_MODULES = flags.DEFINE_list(
    "modules", [], "Python modules to import first, which register models, losses, solvers or formats of your own."
)
flags.disclaim_key_flags()  # --help shows the flags that are defined below as the main's own
_LINE_EVERY_S = 5.0
_PYTORCH = "PyTorchError: "
_NO_MEMORY = re.compile("RESOURCE_EXHAUSTED|bad_alloc|out.of.memory|allocate", re.IGNORECASE)
_COMPILING = [
    f"/jax/core/compile/{part}_duration" for part in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
]


def run(main: Callable[[], None]) -> None:
    """Run a main: parse its flags, switch the compilation cache on, and end an error in one line."""

    def guarded(argv: Sequence[str]) -> None:
        if not _DEBUG.value:
            absl_logging.set_verbosity(absl_logging.WARNING)  # JAX reports each backend that is missing
        if len(argv) > 1:
            sys.exit(f"error: arguments that no flag takes: {argv[1:]}")
        if CACHE and not jax.config.jax_compilation_cache_dir:
            _keep_compiled(CACHE / "compiled")
        warnings.showwarning = _show_warning
        try:
            for module in _MODULES.value:
                importlib.import_module(module)
            _check_out()
            if _DISTRIBUTED.value:
                with naming("--distributed"):
                    processes.join()
            with jax.set_mesh(batches.all_devices()) if jax.device_count() > 1 else nullcontext():
                main()
        except KeyboardInterrupt:  # if this is its own process, the signal handler has printed it
            message = "" if ending.number else "interrupted; the same command continues from here\n"
            _end(message, 128 + (ending.number or signal.SIGINT))
        except Exception as error:
            if _DEBUG.value:
                raise
            _end(f"error: {_message(error)}\n", 1)

    app.run(guarded, flags_parser=_parse_flags)


def _keep_compiled(folder: Path) -> None:
    """Keep compiled programs in a folder of bounded size, if it is writable."""
    with suppress(OSError):
        check_writable(folder / "any")
        for program in folder.glob("*-cache"):  # a killed process may have lost the time of last use, which JAX needs
            used = folder / f"{program.name.removesuffix('-cache')}-atime"
            used.exists() or used.write_bytes(bytes(8))
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", 4 << 30)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _show_warning(message: Warning | str, *_: Any) -> None:
    """A warning in one line. A damaged program in JAX's cache is removed, so that a new one can take its place."""
    if damaged := re.match("Error reading persistent compilation cache entry for '(.+?)'", str(message)):
        for program in Path(jax.config.jax_compilation_cache_dir).glob(f"{glob.escape(damaged[1])}-*-cache"):
            program.unlink(missing_ok=True)
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _end(message: str, code: int) -> None:
    print(message, end="", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        os._exit(code)  # other processes may wait forever for this one: this way the runtime ends them too
    sys.exit(code)


def _message(error: Exception) -> str:
    """The line for an error; for an unexpected error it also says where the traceback is."""
    text = " ".join(str(error).split())
    if _PYTORCH in text:  # JAX puts its traceback before the module's error
        return text.rpartition(_PYTORCH)[2]
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError | FloatingPointError | ImportError):
        return text
    if isinstance(error, MemoryError | OverflowError) or _NO_MEMORY.search(text):
        return f"not enough memory; fewer samples or smaller batches need less ({text:.200})"
    with tempfile.NamedTemporaryFile("w", prefix="ld3_jax-", suffix=".txt", delete=False) as file:
        file.write(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}")
    return (
        f"{type(error).__name__}: {text:.200}. This is an error in ld3_jax; its traceback is in {file.name}. "
        "Please report it with that file."
    )


def path_flag(name: str, default: str | None, what: str) -> flags.FlagHolder:
    """A flag that names a file or a folder; it must not be empty, which would mean the current folder."""
    holder = flags.DEFINE_string(name, default, what)
    flags.register_validator(name, lambda value: value != "", "it must not be empty")
    return holder


def config_flag(what: str) -> flags.FlagHolder:
    """The flag --config: a file whose get_config() makes a configuration, perhaps with an argument after a colon."""
    holder = config_flags.DEFINE_config_file("config", None, what, lock_config=True)
    flags.FLAGS["config"].parser = _Configuration()
    return holder


class _Configuration(flags.ArgumentParser):
    """Reads the file of --config, and refuses unknown keys."""

    def parse(self, path: str) -> config_dict.ConfigDict:
        file, *of = os.path.expanduser(path).split(":", 1)
        if not Path(file).is_file():
            raise ValueError(f"no configuration file {file}")
        try:
            config = runpy.run_path(file)["get_config"](*of)
        except Exception as error:  # get_config() is the user's code
            raise ValueError(f"{path}: get_config() fails ({type(error).__name__}: {error})") from error
        if not isinstance(config, config_dict.ConfigDict):
            raise ValueError(f"{path}: get_config() must return a ConfigDict, got {config!r}")
        known = flat(config)
        for given in filter(None, map(re.compile(r"--?(?:no)?config\.([^=]*)").match, sys.argv)):
            if (key := given[1]) not in known:
                nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
                raise ValueError(f"unknown key --config.{key}; did you mean --config.{nearest[0]}?")
        return config.lock()


def _check_out() -> None:
    """Refuse an --out that the command reads, or that is neither a file nor a folder."""
    read = flat(flags.FLAGS.flag_values_dict())
    if not (given := read.pop("out", None)) or not (out := Path(given).resolve()).exists() or out.is_dir():
        return
    if "config" in flags.FLAGS:
        read["config"] = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    schedule = read.pop("schedule", None) or ""  # one file, whose name may contain a comma, or several
    for path in {schedule, *schedule.split(",")}:
        read[f"--schedule={path}"] = path
        with suppress(OSError, ValueError, LookupError, TypeError):  # a bad schedule is reported where it is read
            read |= read_json(Path(path))["model"]
    for name, path in read.items():
        if isinstance(path, str) and out == Path(path).resolve():
            raise ValueError(f"--out={given} is what {name} names, and this command reads that; give another file")
    if not out.is_file():
        raise ValueError(f"--out={given} is neither a file nor a folder")


SEED = {"lower_bound": 0, "upper_bound": 2**32 - 1}
COUNT = {"lower_bound": 1, "upper_bound": 2**31 - 1}


def _parse_flags(argv: list[str]) -> list[str]:
    argv = [re.sub("^~[^,]*|(?<=[=,])~[^,]*", lambda found: os.path.expanduser(found[0]), word) for word in argv]
    try:
        rest = flags.FLAGS(argv)
        _read_paths()
        return rest
    except (flags.Error, ValueError, TypeError, AttributeError) as error:  # the latter from a configuration's values
        sys.exit(f"error: {' '.join(str(error).split())}")


def _read_paths() -> None:
    """Refuse addresses in flags and configuration, and expand the home folder in the configuration."""
    for name, value in flat(flags.FLAGS.flag_values_dict()).items():
        if isinstance(value, str) and (value.startswith("~") or "://" in value):
            path = os.path.expanduser(value)
            if path.startswith("~") or "://" in path:
                raise ValueError(f"flag --{name}={value}: it must be a path on this machine's disks, in a known home")
            flags.FLAGS.config.update_from_flattened_dict({name.removeprefix("config."): path})


class Stopwatch:
    """Seconds that each part of a run took, with compiling counted separately."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begun, compiled = time.monotonic(), self._compiling
        try:
            yield
        finally:
            compiling = self._compiling - compiled
            self.seconds[part] = time.monotonic() - begun - compiling
            self.seconds["compiling"] = self.seconds.get("compiling", 0.0) + compiling

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if event in _COMPILING:
            self._compiling += seconds


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar, or one line every few seconds on a pipe.

    Yields:
        update(done, **figures): how many of the total are done; the figures are shown next to it.
    """
    bar: dict[str, Any] = {"bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"}
    line = "{desc} {n_fmt}/{total_fmt}{postfix}, {elapsed_s:.0f} s, {remaining_s:.0f} s left"
    lines = {"bar_format": line, "file": _Lines(), "mininterval": _LINE_EVERY_S, "leave": False, "delay": 1e-3}
    with tqdm(
        desc=label, total=total, disable=not processes.is_first(), **(bar if sys.stderr.isatty() else lines)
    ) as shown:

        def update(done: int, **figures: float) -> None:
            shown.set_postfix({name: f"{value:.5f}" for name, value in figures.items()}, refresh=False)
            shown.update(done - shown.n)
            if done == total:
                shown.refresh()

        yield update


class _Lines(io.StringIO):
    """Each state of a bar as a separate line."""

    last = ""

    def write(self, text: str) -> int:
        if (line := text.strip()) and line != self.last:
            print(line, file=sys.stderr, flush=True)
            self.last = line
        return len(text)
