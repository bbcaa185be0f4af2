"""One noise schedule of each kind, for tests that run over all of them."""

import numpy as np

from ld3_jax import schedules

SCHEDULES = {
    "VELinear": schedules.VELinear(),
    "VEGeometric": schedules.VEGeometric(),
    "VPLinear": schedules.VPLinear(),
    "VPCosine": schedules.VPCosine(),
    "VPDiscrete": schedules.VPDiscrete(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))),
    "RectifiedFlow": schedules.RectifiedFlow(),
}
