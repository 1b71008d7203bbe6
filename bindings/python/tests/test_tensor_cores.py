"""How sm90's tensor cores add, which the reference of gradients follows (tests/support/sum_order.hpp)."""

import numpy
import pytest


def sums_cut_off(a, b, at_once):
    """a @ b of so many exact products at a time, each sum cut off to 24 bits."""
    sums = numpy.zeros((a.shape[0], b.shape[1]))
    for begin in range(0, a.shape[1], at_once):
        exact = sums + a[:, begin : begin + at_once] @ b[begin : begin + at_once]
        nearest = exact.astype(numpy.float32)
        beyond = numpy.abs(nearest.astype(numpy.float64)) > numpy.abs(exact)
        nearest[beyond] = numpy.nextafter(nearest[beyond], numpy.float32(0))
        sums = nearest.astype(numpy.float64)
    return sums


@pytest.mark.gpu
@pytest.mark.parametrize(("terms", "least_equal"), [(16, 0.98), (64, 0.9), (256, 0.7)])
def test_products_of_16_terms_are_cut_off(terms, least_equal):
    torch = pytest.importorskip("torch", reason="SKIPPED: no PyTorch")
    torch.manual_seed(0)
    a, b = (torch.randn(*shape, device="cuda").bfloat16() for shape in ((128, terms), (terms, 128)))
    got = torch.mm(a, b, out_dtype=torch.float32).double().cpu().numpy()
    a, b = a.double().cpu().numpy(), b.double().cpu().numpy()
    equal = {at_once: (sums_cut_off(a, b, at_once) == got).mean() for at_once in (8, 16, 32)}
    assert equal[16] > least_equal, equal
    assert equal[16] >= max(equal.values()), equal

    def error(sums):
        return numpy.sqrt(((sums - a @ b) ** 2).mean())

    assert 0.85 < error(sums_cut_off(a, b, 16)) / error(got) < 1.25
