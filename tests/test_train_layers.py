from __future__ import annotations

import pytest
import torch

from ipsrec_train.layers import Dropout


def drop(share, shape=(40, 50, 10), dtype=torch.float32):
    return Dropout(share).train()(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize(("share", "exact"), [(0.5, 0.5), (0.3, 77 / 256), (0.2, 51 / 256), (0.999, 255 / 256)])
def test_dropout_zeroes_a_share_and_keeps_the_mean(share, exact):
    torch.manual_seed(1)
    dropped = drop(share)
    assert (dropped == 0).double().mean().item() == pytest.approx(exact, abs=0.01)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - exact)))


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (3, 0, 5), (2, 3, 5)])
def test_dropout_takes_any_shape_and_type(shape):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        dropped = drop(0.5, shape, dtype)
        assert dropped.shape == torch.Size(shape)
        assert dropped.dtype == dtype
        assert set(dropped.flatten().tolist()) <= {0.0, 2.0}


def test_each_draw_is_another_and_the_seed_gives_it_again():
    torch.manual_seed(3)
    first, second = drop(0.5), drop(0.5)
    torch.manual_seed(3)
    again = drop(0.5)
    assert torch.equal(first, again)
    assert (first != second).double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_draw_does_not_depend_on_the_number_of_threads():
    before, draws = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        draws.append(drop(0.4, (300, 400)))
    torch.set_num_threads(before)
    assert torch.equal(*draws)


def test_neighbouring_elements_are_drawn_independently():
    torch.manual_seed(7)
    dropped = (drop(0.5, (80_000,)) == 0).double()
    for distance in range(1, 17):  # one word of random bits serves eight elements
        both = (dropped[:-distance] * dropped[distance:]).mean().item()
        assert both == pytest.approx(0.25, abs=0.01)


def test_gradients_flow_through_what_stayed_alone():
    torch.manual_seed(9)
    states = torch.randn(200, requires_grad=True)
    dropped = Dropout(0.5).train()(states)
    dropped.sum().backward()
    torch.testing.assert_close(states.grad, torch.where(dropped == 0, 0.0, 2.0))


@pytest.mark.parametrize("module", [Dropout(0.5).eval(), Dropout(0.0).train(), Dropout(0.001).train()])
def test_dropout_does_nothing_in_evaluation_or_for_a_share_of_nothing(module):
    states = torch.randn(5, 6)
    assert module(states) is states
