"""What ComfyUI 0.3.64 hands to a node and to a sampler, in stand-ins with its names; run beside its public source once.

A sampler function gets a model, whose `inner_model` is the guider, whose `inner_model` is the network's model with its
`model_sampling`: its class is made of a range of noise (ModelSampling...) and of a prediction (EPS, CONST, ...).
"""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace


class EPS:
    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image + noise * (math.sqrt(1 + sigma**2) if max_denoise else sigma)

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class V_PREDICTION(EPS):
    pass


class EDM(V_PREDICTION):
    pass


class X0(EPS):
    pass


class CONST:
    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma)


class LCM(EPS):
    pass


class IMG_TO_IMG(X0):
    pass


class V_PREDICTION_DDPM:
    pass


class COSMOS_RFLOW(EPS):
    pass


class _Range:
    def __init__(self, sigma_max, sigma_min):
        self.sigma_max, self.sigma_min = sigma_max, sigma_min


class ModelSamplingDiscrete(_Range):
    sigma_data = 1.0


class ModelSamplingContinuousEDM(_Range):
    sigma_data = 1.0


class ModelSamplingDiscreteFlow(_Range):
    pass


class NoisyFlow(ModelSamplingDiscreteFlow):
    """HiDream-O1's: x = (1 - sigma) data + sigma noise_scale noise."""

    noise_scale = 8.0


def model_sampling(of_range, of_prediction, sigma_max, sigma_min):
    return type("ModelSampling", (of_range, of_prediction), {})(sigma_max, sigma_min)


class Guider:
    """Calls the network's model; here what it would call, model(x, sigma) -> data."""

    def __init__(self, sampling, denoiser):
        self.inner_model, self.denoiser = SimpleNamespace(model_sampling=sampling), denoiser

    def __call__(self, x, sigma, model_options, seed):
        return self.denoiser(x, sigma)


class KSamplerX0Inpaint:
    def __init__(self, guider, sigmas, latent_image=None):
        self.inner_model, self.sigmas, self.latent_image = guider, sigmas, latent_image

    def __call__(self, x, sigma, denoise_mask, model_options, seed):
        denoised = self.inner_model(x, sigma, model_options, seed)
        return denoised if denoise_mask is None else denoised * denoise_mask + self.latent_image * (1 - denoise_mask)


class KSAMPLER:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def max_denoise(self, guider, sigmas):
        most, first = float(guider.inner_model.model_sampling.sigma_max), float(sigmas[0])
        return math.isclose(most, first, rel_tol=1e-5) or first > most

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False):
        extra_args["denoise_mask"] = denoise_mask
        sampling = guider.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(guider, sigmas))
        model, given = (
            KSamplerX0Inpaint(guider, sigmas, latent_image),
            {"extra_args": extra_args, "disable": disable_pbar},
        )
        x = self.sampler_function(model, x, sigmas, callback=callback, **given, **self.extra_options)
        return sampling.inverse_noise_scaling(sigmas[-1], x)


def modules(models_dir):
    """`comfy.samplers` and `folder_paths`, for sys.modules; folders of models may be missing."""
    comfy, samplers, paths = ModuleType("comfy"), ModuleType("comfy.samplers"), ModuleType("folder_paths")
    comfy.samplers, samplers.KSAMPLER, paths.models_dir, folders = samplers, KSAMPLER, str(models_dir), {}

    def full_path(folder, name):
        inside = Path("/", name).relative_to("/")
        found = (Path(path, inside) for path in folders[folder])
        return next((str(path) for path in found if path.is_file()), None)

    def names(folder):
        return sorted(
            str(file.relative_to(path)) for path in folders[folder] for file in Path(path).rglob("*") if file.is_file()
        )

    paths.add_model_folder_path = lambda folder, path, is_default=False: folders.setdefault(folder, []).append(path)
    paths.get_full_path, paths.get_filename_list = full_path, names
    return {"comfy": comfy, "comfy.samplers": samplers, "folder_paths": paths}


def nodes(folder):
    """Loads a custom node as ComfyUI does: `__init__.py` by its path, under that path as a name with dots replaced."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, Path(folder, "__init__.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return module.NODE_CLASS_MAPPINGS
