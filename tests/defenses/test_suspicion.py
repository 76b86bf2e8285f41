"""Scores and p-values of the audit's witnesses."""

from __future__ import annotations

import numpy as np
import torch

from fedgan.defenses._suspicion import p_values, scores


def test_p_values_are_those_of_the_highest_of_several_normals():
    from scipy.stats import norm

    found = p_values(torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64), 6)
    np.testing.assert_allclose(found, np.minimum(1, 6 * norm.sf([0.0, 2.0, 4.0])))


def test_scores_do_not_depend_on_units_or_order():
    strengths, spreads = torch.rand((7, 12), dtype=torch.float64) + 0.5, torch.full((12,), 0.2)
    expected = scores(strengths, spreads)
    torch.testing.assert_close(scores(strengths * torch.arange(1.0, 13.0), spreads), expected)
    order = torch.randperm(7)
    torch.testing.assert_close(scores(strengths[order], spreads), expected[order])
