"""The page of costs: its arithmetic."""

from experiments import scaling

COSTS = scaling.Costs(1e12, 5e12, 2e12, 4e9, 5e9, 6e9)


def test_times_are_those_of_the_samples_that_a_device_gets():
    device = scaling.Accelerator("chip", 1e14, 1e9, 1e9)
    # 100 pairs of 40 calls; 28,100 derivatives of 2 TFLOP; 50,000 samples of 5 or 50 calls and a decoding of 2 TFLOP.
    assert scaling._row(COSTS, device, 1, 0.5) == "| chip | 1 | 1.3 min | 18.7 min | 1.9 h | 14.4 h |"
    # 13 of them on the fullest of eight devices; batches of 16 instead of 10, two on each.
    assert scaling._row(COSTS, device, 8, 0.5) == "| chip | 8 | 10.4 s | 3.7 min | 14.6 min | 1.8 h |"


def test_the_page_has_a_line_for_each_device_and_number():
    page = scaling.page(COSTS, 0.4)
    assert page.count("| H100 SXM |") == page.count("| TPU v5e |") == len(scaling.DEVICES)
    assert "40% of the peak" in page
