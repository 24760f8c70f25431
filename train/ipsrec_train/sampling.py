"""A sample of items that stands for the whole catalog in the softmax."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ipsrec_train.history_scores import ScoredItems, scored_items

# Sampling weight of an item: (1 + training interactions) to this power (word2vec: Mikolov et al. 2013, section 2.2).
POPULARITY_POWER = 0.75


class NegativeSampler:
    """Draws items independently, each with a probability of its own (Poisson sampling).

    An item drawn with probability q counts 1/q times in the softmax's sum (Horvitz and Thompson 1952): its score gets
    -log q added. The sum's expectation is then the sum over all items, and the popular ones, drawn with certainty, add
    no noise to it.

    Args:
        popularity: (num_items + 1,) training interactions of each item_index.
        negatives: how many items to draw on average, at least 1.
    """

    def __init__(self, popularity: npt.NDArray[np.int64], negatives: int) -> None:
        weights = np.power(1.0 + popularity[1:], POPULARITY_POWER, dtype=np.float64)
        self.probability = inclusion_probabilities(weights, min(negatives, len(weights)))
        self.bias = torch.from_numpy(-np.log(self.probability).astype(np.float32))

    def draw(self, rng: np.random.Generator, item_provider: Tensor) -> ScoredItems:
        """Draw once; at least one item.

        Args:
            rng: of this draw.
            item_provider: (num_items + 1,), on the device where scores are made.
        """
        drawn = np.flatnonzero(rng.random(len(self.probability)) < self.probability)
        if not len(drawn):
            drawn = np.array([int(self.probability.argmax())])
        return scored_items(item_provider, drawn + 1, bias=self.bias[drawn].to(item_provider.device))


def inclusion_probabilities(weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Probabilities min(1, c w) whose sum is `count`.

    Args:
        weights: (V,) positive.
        count: 1 to V.
    """
    falling = np.sort(weights)[::-1]
    rest = np.append(np.cumsum(falling[::-1])[::-1], 0.0)  # rest[k]: weight of all but the k heaviest
    # With the k heaviest certain, c = (count - k) / rest[k]; k is the least for which the next one stays below 1.
    certain = np.arange(count)
    fits = falling[:count] * (count - certain) <= rest[:count] * (1 + 1e-12)
    k = int(fits.argmax()) if fits.any() else count
    scale = (count - k) / rest[k] if k < count else 0.0
    probability: npt.NDArray[np.float64] = np.minimum(1.0, weights * scale)
    if k:
        probability[weights >= falling[k - 1]] = 1.0
    return np.maximum(probability, 1e-12)
