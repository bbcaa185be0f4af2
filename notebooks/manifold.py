# %% [markdown]
# # A schedule on a manifold
#
# What you will see: a diffusion of angles on a circle, how far five steps on a standard grid end from the teacher's
# angles, and how near learned times come.
#
# Angles are not vectors: 3.1 and -3.1 are close to each other. A noise schedule names the **space** of its states,
# which says how an update moves a state. Solvers and learners need nothing else. Poses of molecules (positions,
# rotations and torsion angles) work in the same way.

# %%
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import ld3_jax
from ld3_jax import learning
from ld3_jax.space import Space

# %% tags=["parameters"]
nfe, count, steps, batch_size = 5, 1000, 40, 100

# %% [markdown]
# ## The space and the noise
#
# An update moves an angle, and the result is wrapped into $[-\pi, \pi)$. Noise is added with $\sigma = t$. On a
# manifold a state cannot be scaled, so $\alpha = 1$.


# %%
def wrapped(angle):
    return jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi


@dataclass(frozen=True)
class CircleNoise(ld3_jax.schedules.NoiseSchedule):
    t_min, t_max = 0.05, 4.0
    space = Space(retract=lambda angle, update: wrapped(angle + update), flat=False)

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def log_sigma(self, t):
        return jnp.log(t)

    def inverse_lam(self, lam):
        return jnp.exp(-lam)


# %% [markdown]
# ## The model
#
# The data are three peaks, at -2, 0.5 and 1.5 radians. The noisy density is a sum of wrapped Gaussians, and the noise
# prediction is $-\sigma$ times the gradient of its logarithm. A network would learn this function.

# %%
peaks = jnp.array([-2.0, 0.5, 1.5])


def log_density(x, t):
    turns = peaks[:, None] + 2 * jnp.pi * jnp.arange(-3, 4)[None]
    return jax.nn.logsumexp(-((x - turns) ** 2) / (2 * (0.1**2 + t**2)))


def noise(x, t, cond=None):
    return -t * jax.vmap(jax.grad(log_density), (0, None))(x[:, 0], t)[:, None]


# %% [markdown]
# ## Learn
#
# The loss takes the difference of two angles the short way around. The rest is as for vectors: pairs, student, `fit`.
# Learned are the times, and the times that the network is given (`Gaps`). With more pairs than these, coefficients
# can be learned as well.

# %%
schedule, loss = CircleNoise(), ld3_jax.losses.Loss(lambda x, y: [wrapped(x - y)])
x_T = jax.random.uniform(jax.random.key(0), (2, count, 1), minval=-jnp.pi, maxval=jnp.pi)
known, test = (ld3_jax.make_pairs(noise, schedule, angles) for angles in x_T)
student = ld3_jax.make_student(noise, schedule, ld3_jax.Solver("dpmpp", nfe=nfe, order=2), loss)
learner = ld3_jax.GaussNewton(steps=steps, batch_size=batch_size)
learned = ld3_jax.fit(
    student, known, jax.random.key(1), parametrisation=ld3_jax.Gaps(), learner=learner, start="logsnr"
)

times = {grid: learning.on_grid(grid, schedule, student.solver) for grid in ld3_jax.grids.GRIDS}
times["learned"] = learned.discretization
errors = {name: learning.distances(student, one, test) for name, one in times.items()}
for name, error in errors.items():
    print(f"{name:<12}mean squared angle to the teacher's {error.mean():.5f}, median {np.median(error):.5f}")

# %% [markdown]
# The median is the error of a usual sample. The mean is mostly that of the few samples that end at another peak than
# the teacher's, in **another basin**: a small error early on the way sends them elsewhere.
#
# ## See it
#
# Each dot is a sample: its direction is the angle, and its distance from the centre is drawn at random so that dots
# do not hide each other. A line leads to the teacher's sample from the same noise, so perfect samples show no lines.

# %%
shown = min(count, 200)
best = min(ld3_jax.grids.GRIDS, key=lambda name: float(errors[name].mean()))
samples = {
    best: ld3_jax.sample(noise, schedule, test.x_T, times[best].t, solver=student.solver)[:, 0],
    "learned": learned.sample(noise, schedule, test.x_T)[:, 0],
}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", subplot_kw={"projection": "polar"})
radius, teacher = np.random.default_rng(0).uniform(0.6, 1.0, shown), np.asarray(test.x_0[:shown, 0])
for one, (name, angles) in zip(axes, {"teacher": teacher, **samples}.items(), strict=True):
    ends = teacher + np.asarray(wrapped(angles[:shown] - teacher))
    one.plot(np.stack([teacher, ends]), np.stack([radius, radius]), color="#c8102e", linewidth=0.8)
    one.scatter(ends, radius, s=6)
    one.set(title=name, yticks=[], ylim=(0, 1.05))
plt.show()

# %% [markdown]
# And where the steps lie: half the log-SNR, which on a manifold is $\lambda = -\log \sigma$.

# %%
lam = {"learned": learned.lam, "learned, for the network": schedule.lam(learned.t_c)}
standard = {name: schedule.lam(times[name].t) for name in ld3_jax.grids.GRIDS}
ld3_jax.plots.grids(None, lam, standard, f"angles, {nfe} calls")
