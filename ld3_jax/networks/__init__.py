"""Networks and the readers of published weights, most of which need the extra `models`; loaded when asked for."""

from types import ModuleType

from ld3_jax import extras


def __getattr__(name: str) -> ModuleType:
    try:
        return extras.load(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
