"""All keys of a configuration. The other files start from here and change what differs."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The configuration that all others start from."""
    c = config_dict.ConfigDict()
    c.seed = 0  # seed of the noise, the conditions and the order of the batches

    c.network = config_dict.ConfigDict()
    c.network.name = "quasar72"  # a name that ld3_jax.pretrained knows
    c.network.file = ""  # its weights, downloaded if an official file is missing; the folder of a diffusers pipeline
    c.network.first_stage = ""  # weights of a latent model's first stage, where they are in a file of their own
    c.network.prediction = ""  # what a latent model's network predicts: noise v data ...; "": as its file says
    c.network.dtype = "float32"  # of the computation inside the network: float32 bfloat16
    c.network.guidance = 1.0  # scale of classifier-free guidance; 1: none
    c.network.options = ""  # keywords of a diffusers pipeline's call as JSON: '{"guidance_scale": 3, "height": 512}'
    c.network.decoded = True  # whether latents are decoded before they are compared, in learning and at the end
    c.network.prompts = ""  # a file of prompts, one per line, or MS-COCO's captions
    c.network.text_encoder = ""  # folder of the encoder that turns them into conditions
    c.network.num_prompts = 0  # how many of the prompts are used, starting with the first; 0: all
    c.network.random_weights = False  # random weights in a small size instead of the files, to try a run

    c.solver = config_dict.ConfigDict()  # the student
    c.solver.name = "dpmpp"  # euler ddim heun dpm2 dpmpp unipc ipndm deis
    c.solver.nfe = 5  # network calls
    c.solver.order = config_dict.placeholder(int)  # None: the highest that the solver has
    c.solver.variant = config_dict.placeholder(str)  # for UniPC: bh1 bh2; None: the first
    c.solver.lower_order_final = True  # whether the order falls over the last steps (dpmpp, unipc)
    c.solver.last_sigma = config_dict.placeholder(float)  # 0: ends in a data prediction; None: ends at t_min

    c.solver.start = ""  # below full noise, for image to image: t=0.5, sigma=2.0 or strength=0.6; "": at full noise

    c.teacher = config_dict.ConfigDict()
    c.teacher.name = "unipc"
    c.teacher.nfe = 40
    c.teacher.order = config_dict.placeholder(int)
    c.teacher.variant = config_dict.placeholder(str)
    c.teacher.lower_order_final = True
    c.teacher.last_sigma = config_dict.placeholder(float)
    c.teacher.grid = "logsnr"  # uniform quadratic logsnr edm
    c.teacher.batch_size = 25
    c.teacher.cache = "runs/teacher"  # folder of the teacher's samples, shared by all runs
    c.teacher.pairs = config_dict.placeholder(str)  # a folder of LD3's own pairs (latent_*.pt) to learn from instead
    c.teacher.drop_not_finite = False  # leave out samples that hold NaN, instead of stopping

    c.data = config_dict.ConfigDict()  # how many pairs of noise and teacher's sample
    c.data.train = 100  # for the gradient
    # Candidate noises for the pairs of train and valid, which cost 15 network calls each; 0: all drawn noises are
    # used. None: ten for each pair, but none with solver.start or network.prompts, nor for poses.
    c.data.candidates = config_dict.placeholder(int)
    c.data.valid = 0  # to choose the best step; 0: the training pairs do both
    c.data.test = 100  # for the comparison at the end: never seen while learning
    c.data.file = ""  # for solver.start: states to start from, .npy, .npz or a folder; "": the teacher's own samples

    c.learn = config_dict.ConfigDict()
    # l1 l2 rmse lpips inception, or both: l2 and rmse. The comparison at the end also shows the squared error.
    c.learn.loss = "both"
    # best: the best standard grid, or the second one if the two are close and it is better after four steps; or a
    # grid's name, or a schedule.json to continue from.
    c.learn.init = "best"
    c.learn.what = ("times", "shifts", "coefficients")  # the groups of numbers to learn
    c.learn.by_part = False  # own times and coefficients for each part of a state with several parts (a pose)
    c.learn.consistent = False  # whether constants must still integrate exactly when coefficients are learned
    c.learn.history = config_dict.placeholder(int)  # predictions that coefficients look back at; None: all
    c.learn.learner = "gn"  # gn: Gauss-Newton, lm: Levenberg-Marquardt, both without rates; or optax: gradient descent
    c.learn.tangents = 40  # for gn and lm: directions times samples in a network call; use more on an accelerator
    c.learn.ridge = 0.0  # for gn: weight of a pull back to the start
    c.learn.space = "lambda"  # where gaps and shifts are measured: lambda (half-log-SNR) or t
    c.learn.steps = 24
    c.learn.batch_size = 10
    c.learn.max_shift = 0.5  # bound on |t_c - t|, in smallest gaps
    c.learn.validate_every = 12
    c.learn.valid_batch = 25
    # The rest is only for the learner optax.
    c.learn.logits_rule = "adam"  # adam rmsprop sgd
    c.learn.logits_rate = config_dict.placeholder(float)  # divided by n; None: 0.12
    c.learn.shifts_rule = "adam"
    c.learn.shifts_rate = config_dict.placeholder(float)  # likewise, in units of the space; None: 0.05
    c.learn.coefficients_rule = "adam"
    c.learn.coefficients_rate = config_dict.placeholder(float)  # likewise; None: 0.05
    c.learn.frozen_steps = 0  # number of steps at the beginning in which the shifts do not move
    c.learn.patience = 0  # validations without a better one before the rates fall; 0: never
    c.learn.decay = 0.8  # factor on the rates then
    c.learn.logits_floor = 0.01  # lowest factor on the rates
    c.learn.shifts_floor = 0.01
    c.learn.floor_visits = 5  # stop after this many times at both floors
    c.learn.gamma = 0.0  # radius of the soft surrogate's ball, gamma d / n^2; 0: off
    c.learn.noise_rate = 12.0  # rate of the noise's own step, divided by n
    c.learn.move_validation = False  # whether validation noise moves too
    c.learn.remat = True  # recompute activations in the backward pass
    return c
