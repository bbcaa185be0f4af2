# %% [markdown]
# # Learn five steps for a galaxy network
#
# What you will see: galaxies that a diffusion model draws with 40 network calls, the same galaxies with 5 calls, and
# how learning where the 5 steps lie (and the weights of the solver) brings the second close to the first.
#
# The network was trained on galaxies of the Hyper Suprime-Cam survey, in 32 x 32 pixels. Its weights come with the
# package galaxygrad, which `pip install '.[galaxies,experiments]'` installs.

# %%
import jax
import numpy as np

import ld3_jax
from ld3_jax import learning, plots

galaxies = ld3_jax.pretrained.load("hsc32")
model, schedule = galaxies.model, galaxies.schedule

# %% [markdown]
# How much is done: network calls, pairs to learn from, noises that they are chosen among, held-out noises, learning
# steps, and the grid that learning starts from, or "best" of them.

# %% tags=["parameters"]
nfe, count, candidates, held_out, steps, start = 5, 100, 500, 100, 24, "best"

# %% [markdown]
# ## The teacher
#
# A **teacher** solves the sampling ODE accurately, here with 40 network calls, and a **pair** is a noise with the
# teacher's sample. A few samples hold most of the error of a solver with few steps, so the pairs to learn from are
# chosen among more noises, and weighted so that means stay right. The held-out pairs are drawn at random.

# %%
keys = jax.random.split(jax.random.key(0), 3)
pairs = ld3_jax.make_pairs(model, schedule, *galaxies.draw(keys[0], candidates), choose=count)
test = ld3_jax.make_pairs(model, schedule, *galaxies.draw(keys[1], held_out))
teacher = np.asarray(test.x_0)
plots.image_grid(None, galaxies.display(teacher[:16], teacher))

# %% [markdown]
# ## The student and its start
#
# A **student** has 5 calls of DPM-Solver++. The standard grids (uniform in time, quadratic, uniform in log-SNR,
# EDM's) are ranked by their error, with several solvers that the learned coefficients can express. Learning starts
# from the best, or from the second one if the two are close and it is better after four steps.

# %%
student = ld3_jax.make_student(model, schedule, ld3_jax.Solver("dpmpp", nfe=nfe))
learner = ld3_jax.GaussNewton(steps=steps)
task = learning.make_task(student, pairs, keys[2], ld3_jax.WithCoefficients(), learner)
ended = learning.learn(task, start)
learned = learning.describe(task, ended.state)

print("loss before learning:")
for one in ended.ranked:
    print(f"  {one.name:<24}{one.loss:.4f}")
print("after four steps:", {name: round(loss, 4) for name, loss in ended.tried.items()})
print(f"loss on all pairs: {ended.state.start_loss:.4f} before learning, {ended.state.best_loss:.4f} after")

# %% [markdown]
# The three lines from `make_task` to `describe` are what `ld3_jax.fit(student, pairs, key)` does; written out, they
# also give the ranking.
#
# ## How close are five calls?
#
# Squared error to the teacher, from noise that learning has not seen:

# %%
grids = {name: learning.on_grid(name, schedule, student.solver) for name in ld3_jax.grids.GRIDS}
times = {"learned": learned.discretization, **grids}
errors = {name: learning.distances(student, one, test) for name, one in times.items()}
for name, error in sorted(errors.items(), key=lambda item: float(item[1].mean())):
    print(f"{name:<12}mean {error.mean():.4f}   median {np.median(error):.4f}")

# %% [markdown]
# The same galaxies, from the same noise, with the squared error of each below it:

# %%
best = min(grids, key=lambda name: float(errors[name].mean()))
samples = {
    "learned": learned.sample(model, schedule, test.x_T[:8]),
    best: ld3_jax.sample(model, schedule, test.x_T[:8], grids[best].t, solver=student.solver),
}
rows = {name: galaxies.display(np.asarray(images), teacher) for name, images in samples.items()}
notes = {name: [f"{error:.4f}" for error in errors[name][:8]] for name in rows}
plots.image_rows(
    None, {"teacher": galaxies.display(teacher[:8], teacher), **rows}, f"40 calls (teacher) and {nfe} calls", notes
)

# %% [markdown]
# ## Where the steps lie
#
# The picture shows half the log-SNR, $\lambda = \log(\alpha / \sigma)$, at each step: noise is at the bottom, data at
# the top. The crosses are the times that the network is given, which are learned apart from the solver's own.

# %%
lam = {"learned": learned.lam, "learned, for the network": schedule.lam(learned.t_c)}
plots.grids(None, lam, {name: schedule.lam(one.t) for name, one in grids.items()}, f"hsc32, {nfe} calls")

# %% [markdown]
# ## Keep it, and draw new galaxies
#
# `schedule.json` holds the times and coefficients, and needs no configuration. Any program that has the network can
# use it.

# %%
learned.save("runs/galaxies.json", schedule)
again = ld3_jax.load("runs/galaxies.json")
new = np.asarray(again.sample(model, schedule, *galaxies.draw(jax.random.key(7), 16)))
plots.image_grid(None, galaxies.display(new, teacher))
