# %% [markdown]
# # Write your own solver and learn it
#
# What you will see: a solver in five lines, a plot that shows its order of convergence, and its error in six network
# calls before and after learning its times and its coefficients.
#
# Every solver here is a **table**: a row of numbers for each network call, which depend on the times alone. So a new
# solver is a function from times to a table, and sampling, gradients and learning follow.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import ld3_jax
from ld3_jax import learning
from ld3_jax.solvers import SOLVERS, Family, explicit

# %% tags=["parameters"]
nfe, count, steps, calls = 6, 200, 150, (5, 10, 20, 40, 80)

# %% [markdown]
# ## The solver
#
# With $\lambda = \log(\alpha / \sigma)$ and $h = \lambda' - \lambda$, DDIM goes from a state $x$ to the next one by
#
# $$x' = \frac{\sigma'}{\sigma} x - \alpha' (e^{-h} - 1) D,$$
#
# where $D$ is the network's prediction of the data. DDIM takes the prediction at the beginning of the step. Ours
# extrapolates it to the middle of the step, $D = \tfrac32 D_i - \tfrac12 D_{i-1}$. The first step has no earlier
# prediction and takes $D_0$.


# %%
def halfway(schedule, t, t_c, **_):
    sigma, weight = schedule.sigma(t), -schedule.alpha(t[1:]) * jnp.expm1(-jnp.diff(schedule.lam(t)))
    newest_first = jnp.array([[1.0, 0.0]] + [[1.5, -0.5]] * (len(weight) - 1))
    return explicit(t_c[:-1], sigma[1:] / sigma[:-1], weight[:, None] * newest_first)


SOLVERS["halfway"] = Family(halfway, prediction="data", orders=(2,))

# %% [markdown]
# Its table on a grid of four steps: the factor of the state, and the factors of the newest and the previous
# prediction.

# %%
ring = ld3_jax.pretrained.load("ring")
model, schedule = ring.model, ring.schedule
table = ld3_jax.make_table(schedule, ld3_jax.grid("logsnr", schedule, 4), solver="halfway")
print(np.round(np.column_stack([table.predict_base, table.predict_history]), 3))

# %% [markdown]
# ## Does it converge, and how fast?
#
# The data are six Gaussians on a ring. Their exact noise prediction is known, so that only the solver makes errors.
# On a double logarithmic scale a solver of order $p$ falls along a line of slope $-p$ (the squared error, as here, of
# slope $-2p$).

# %%
known, test = (ld3_jax.make_pairs(model, schedule, *ring.draw(jax.random.key(seed), count)) for seed in (0, 1))


def error(solver, grid="logsnr"):
    student = ld3_jax.make_student(model, schedule, solver)
    return float(learning.distances(student, learning.on_grid(grid, schedule, solver), test).mean())


figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name in ("ddim", "halfway"):
    axes.loglog(calls, [error(ld3_jax.Solver(name, n)) for n in calls], "o-", label=name)
for order in (1, 2):
    axes.loglog(calls, 3 * np.float64(calls) ** (-2 * order), ":", color="gray")
    axes.annotate(f"order {order}", (calls[-1], 3 * calls[-1] ** (-2.0 * order)), color="gray")
axes.set(xlabel="network calls", ylabel="mean squared error to the teacher")
axes.set_xticks(calls, calls)
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Learn it
#
# In six calls: on the best of the standard grids, with learned times, and with learned times and coefficients. The
# learner is Gauss-Newton, which has no learning rate. A sample has only two numbers here, so a batch takes 50 of
# them.

# %%
solver = ld3_jax.Solver("halfway", nfe)
student = ld3_jax.make_student(model, schedule, solver)
learner = ld3_jax.GaussNewton(steps=steps, batch_size=50)
found = {
    what: ld3_jax.fit(student, known, jax.random.key(2), parametrisation=one, learner=learner, start="quadratic")
    for what, one in {"times": ld3_jax.Gaps(), "times + coefficients": ld3_jax.WithCoefficients()}.items()
}
errors = {f"standard grid {grid}": error(solver, grid) for grid in ld3_jax.grids.GRIDS}
errors |= {f"learned: {what}": float(one.distances(student, test).mean()) for what, one in found.items()}
for name, value in errors.items():
    print(f"{name:<32}{value:.6f}")

# %%
standard = ld3_jax.grid("quadratic", schedule, nfe)
clouds = {
    "teacher": test.x_0,
    "halfway on quadratic": ld3_jax.sample(model, schedule, test.x_T, standard, solver=solver),
}
clouds["halfway, learned"] = found["times + coefficients"].sample(model, schedule, test.x_T)
ld3_jax.plots.scatter_rows(None, {name: np.asarray(points) for name, points in clouds.items()}, f"{nfe} network calls")

# %% [markdown]
# The coefficients that were learned change the table of the solver. Every solver that predicts data can be changed
# into every other one in this way, so with free coefficients the solver's name says where learning starts.
