"""The bare products of a slice: all of its rows, each product right, and the ceiling the sum of the fastest."""

import pytest
import torch
from seqloom import ModelSpec

from benchmarks.baselines.bare_products import _INT8_LIBRARIES, _LIBRARIES, Slice, round_of

SPEC = {"cell": "elman", "input_size": 16, "hidden_size": 24, "output_size": 40}


@pytest.mark.parametrize("library", _LIBRARIES)
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_each_library_computes_the_same_product(library, rows):
    weight, x = torch.randn(24, 16), torch.randn(rows, 16)
    torch.testing.assert_close(_LIBRARIES[library](weight)(x), x @ weight.t(), rtol=1e-5, atol=1e-5)


def test_those_of_int8_multiply_the_same_whole_numbers():
    weight, x = torch.randn(24, 16), torch.randint(129, 255, (7, 16), dtype=torch.uint8)
    scales = weight.abs().amax(1, keepdim=True) / 127
    numbers = (weight / scales).round()
    wanted = (x.float() - 128) @ numbers.t() * scales.t() / 127
    torch.testing.assert_close(_INT8_LIBRARIES["onednn_qlinear"](weight)(x), wanted, rtol=1e-5, atol=1e-5)
    signed = _INT8_LIBRARIES["torch_int_mm"](weight)(x - 128)
    torch.testing.assert_close(signed, ((x.float() - 128) @ numbers.t()).to(torch.int32))


def test_a_slice_has_the_products_of_all_of_its_rows():
    assert Slice(ModelSpec(**SPEC), 5, 7).parts == {
        "input": (35, 16, 24, 1),
        "recurrent": (5, 24, 24, 7),
        "output": (35, 24, 40, 1),
    }


def test_the_ceiling_is_the_sum_of_the_fastest_and_no_library_is_below_it():
    found = round_of(Slice(ModelSpec(**SPEC), 4, 5), 0.05)
    assert found["ceiling_us"] == pytest.approx(found["input_us"] + found["recurrent_us"] + found["output_us"])
    assert 0 < found["ceiling_us"] <= min(found[f"{name}_us"] for name in _LIBRARIES)
    small = round_of(Slice(ModelSpec(**SPEC, precision="int8"), 4, 5), 0.05)
    assert small.keys() == found.keys() - {f"{name}_us" for name in _LIBRARIES} | {f"{n}_us" for n in _INT8_LIBRARIES}
