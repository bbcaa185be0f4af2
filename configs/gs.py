"""Learning as the Generalized Solver does (arXiv:2510.17699), which is GAS without its adversarial loss.

python -m experiments.train --config=configs/gs.py --workdir=runs/gs

Measured on 2 CPU cores, 14 s. Squared error against the teacher on 200 held-out noises, mean (median): 0.00052
(0.00019); the default settings, configs/gaussian.py: 0.00002 (below 0.00001), against a teacher of 40 calls; best
standard grid with this solver, logsnr: 0.07384 (0.08272).
"""

from ml_collections import config_dict

from configs import gaussian


def get_config() -> config_dict.ConfigDict:
    """The ring of configs/gaussian.py, learned with the settings of GS."""
    c = with_gs_settings(gaussian.get_config())
    c.learn.loss = "l2"
    return c


def with_gs_settings(c: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Change a configuration to the settings of GS's published code for pixel models, with LPIPS as the loss.

    The same: DPM-Solver++ 3M with learned changes added to its coefficients, for all past predictions; times, and
    shifts of the network's times, starting even in t; Adam with the rate 1e-3 for all numbers, gradients clipped to
    norm 1; 10,000 steps of 24 out of 1,400 pairs; a teacher of UniPC-3 with 20 calls; no soft surrogate.

    Different: changes are relative to a row's weights; changes of past states, which are sums of the initial state
    and past predictions, are in the factor of the base and in the history. Gaps are a softmax and not broken sticks,
    shifts stay within half a gap and the first call has none. The rate falls along a cosine, for each group of numbers.
    The best step is used, not an average of steps. There is no adversarial loss.
    """
    c.solver.name, c.solver.order, c.solver.lower_order_final = "dpmpp", 3, False
    c.teacher.name, c.teacher.order, c.teacher.nfe = "unipc", 3, 20
    c.data.train, c.data.valid = 1400, 0
    c.data.candidates = 0
    learn = c.learn
    learn.learner, learn.loss, learn.what = "optax", "lpips", ("times", "shifts", "coefficients")
    learn.init, learn.space = "uniform", "t"
    learn.batch_size, learn.steps, learn.validate_every = 24, 10_000, 500
    rate = c.solver.get_ref("nfe").to_float() * 1e-3  # stays right when the command line sets another nfe
    learn.logits_rate = learn.shifts_rate = learn.coefficients_rate = rate
    return c
