"""k-diffusion's samplers alone: the package as a whole needs NumPy below 2, and its samplers import little of it.

pip install --no-deps k-diffusion torchdiffeq torchsde trampoline
"""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest


def sampling() -> ModuleType:
    """`k_diffusion.sampling`, or the test is skipped."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("needs k-diffusion; see tests/samplers_of_k_diffusion.py")
    package, pictures = ModuleType("k_diffusion"), ModuleType("torchvision.transforms")
    package.__path__ = spec.submodule_search_locations
    pictures.functional = None  # of torchvision: what loads pictures, which no sampler does
    with pytest.MonkeyPatch.context() as patch:  # mock.patch.dict would forget all that is imported meanwhile
        for module in (package, pictures):
            patch.setitem(sys.modules, module.__name__, module)
        return importlib.import_module("k_diffusion.sampling")
