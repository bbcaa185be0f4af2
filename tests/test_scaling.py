"""The page of costs: its arithmetic, and its measurement on a small network."""

import dataclasses

import pytest

from experiments import scaling
from ld3_jax.networks import costs, latent

FLOPS = costs.Costs(call=1e12, derivative=2e12, decode=2e12)
MEASURED = costs.Measured(costs.Costs(0.01, 0.04, 0.02), 10**9, 10**9, 10**9, "NVIDIA H100", "0.1")


def test_times_are_those_of_the_samples_that_a_device_gets():
    seconds = costs.Costs(0.02, 0.04, 0.04)
    # 100 pairs of 40 calls; 27,600 derivatives; 50,000 samples of 5 or 50 calls and a decoding.
    assert scaling._row("chip", 1, seconds) == "| chip | 1 | 1.3 min | 18.4 min | 1.9 h | 14.4 h |"
    # 13 of them on the fullest of eight devices; batches of 16 instead of 10, two on each.
    assert scaling._row("chip", 8, seconds) == "| chip | 8 | 10.4 s | 3.7 min | 14.6 min | 1.8 h |"


def test_the_page_has_a_line_for_each_device_and_number():
    page = scaling.page(FLOPS, MEASURED)
    assert page.count("| H100 SXM |") == page.count("| TPU v5e |") == len(scaling.DEVICES)
    assert "| a call | 1.00 | 10.0 ms | 100 |" in page
    assert "| a derivative of it along one direction | 2.00 | 40.0 ms | 50 |" in page
    assert "| H100 SXM | 1 | 40.0 s |" in page


def test_another_device_than_those_whose_peak_is_known_is_named():
    on_tpu = scaling.page(FLOPS, MEASURED._replace(device="TPU v5 lite"))
    assert "| TPU v5e | 1 | 40.0 s |" in on_tpu
    with pytest.raises(ValueError, match=r"must be one of .*: NVIDIA A10"):
        scaling.page(FLOPS, MEASURED._replace(device="NVIDIA A10"))


def test_a_small_network_is_counted_and_measured():
    small = latent.shrink(scaling.NETWORK)
    unet, first_stage = small.unet.clone(channel_mult=(1,)), small.autoencoder.clone(channel_mult=(1,))
    small = dataclasses.replace(small, unet=unet, autoencoder=first_stage)
    assert min(costs.counted(small)) > 0
    found = costs.measured(small, 1)
    assert found.seconds.call > 0
    assert found.weights_bytes > found.call_bytes > 0


@pytest.mark.parametrize("content", [None, "{}", '{"call": "a"}', "[1]"])
def test_a_file_that_is_missing_or_damaged_is_named(content, tmp_path):
    path = tmp_path / "scaling.json"
    if content:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"scaling\.json"):
        scaling.read(path)
