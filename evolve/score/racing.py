"""Which candidates of a generation are settled before all items are asked: pure functions over tables.

CMA-ES takes from a generation only who is in the better half, and in what order. All candidates get the same
items in the same seeded order, in growing prefixes. After each prefix, a candidate that is in the half, or
out of it, with a probability of at least ``1 - error`` is settled and stops; the others go on, for the places
that are left. Racing for the places of a selection is due to Heidrich-Meisner and Igel (2009), "Hoeffding and
Bernstein races for selecting policies in evolutionary direct policy search". Their bounds, and paired tests
corrected for the number of comparisons, settle next to nobody here: candidates of one generation are alike.

The probability. The estimates of n candidates are normal around their scores on all items, with the variance
s^2 of a paired comparison: half the mean over pairs of ``sum (w d)^2 (1 - m / N)``, d being the differences
on the asked items, w what an item counts, m of N the items asked of its stratum. The last factor is the
finite-population correction: at the last item nothing is left to err about. The scores of the generation are
normal around their mean with variance t^2, and t is integrated over a grid, so that ten candidates that
happen to lie apart are not taken at their word (a hierarchical normal model: Gelman et al., Bayesian Data
Analysis, 3rd ed. 2013, ch. 5.4). Seeded draws from the posterior are ranked. What is settled with probability
``1 - error`` or more is wrong with an expected share of at most ``error``, however often one looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Array = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

OUT, OPEN, IN = -1, 0, 1

_DRAWS = 4000
_GRID = 40


@dataclass(frozen=True)
class Strata:
    """How the items of all tasks add up to the objective, in the order in which they are asked.

    Attributes:
        share: Stratum to what its mean is multiplied by in the objective; the sign is the metric's direction.
        of: Item to its stratum.
    """

    share: Array
    of: Ints

    @property
    def sizes(self) -> Ints:
        """Stratum to the number of its items."""
        return np.bincount(self.of, minlength=len(self.share)).astype(np.int64)

    def asked(self, count: int) -> Ints:
        """Return stratum to the number of its items among the first ``count``."""
        return np.bincount(self.of[:count], minlength=len(self.share)).astype(np.int64)

    def smallest(self, least: int = 2) -> int:
        """Return the shortest prefix with ``least`` items, or all, of every stratum that counts."""
        ends = []
        for stratum in np.flatnonzero(self.share):
            places = np.flatnonzero(self.of == stratum)
            ends.append(int(places[min(least, len(places)) - 1]) + 1)
        return max(ends)

    def weights(self, count: int) -> Array:
        """Return what each of the first ``count`` items counts when they stand for all of their strata."""
        per_item = self.share / np.maximum(self.asked(count), 1)
        return np.asarray(per_item[self.of[:count]])

    def estimate(self, values: Array) -> float:
        """Return the estimated objective of a candidate from its values on a prefix of the items."""
        return float(self.weights(len(values)) @ values)


def looks(total: int, first: float, growth: float, *, least: int, most: int | None = None) -> list[int]:
    """Return after how many items the candidates are compared: growing geometrically, up to ``most``.

    Args:
        total: Number of items.
        first: Share of the items in the first look.
        growth: Factor from look to look.
        least: Shortest prefix that makes sense.
        most: Where the race ends; None for all items.
    """
    end = total if most is None else min(total, max(most, least))
    sizes = []
    size = max(float(least), first * total)
    while math.ceil(size) < end:
        sizes.append(math.ceil(size))
        size = max(size * growth, size + 1)
    return [*sizes, end]


def paired(first: Array, second: Array, strata: Strata) -> tuple[float, float]:
    """Return the estimated difference of two candidates and its standard error.

    Args:
        first: Values of one candidate on a prefix.
        second: Values of the other on the same prefix.
        strata: All items.
    """
    parts = (first - second) * strata.weights(len(first))
    return float(parts.sum()), math.sqrt(max(0.0, float(parts**2 @ _left(strata, len(first)))))


def chance_to_lead(first: Array, second: Array, strata: Strata) -> float:
    """Return the probability that the first candidate is better on all items, by a normal posterior."""
    difference, error = paired(first, second, strata)
    if error <= 0:
        return float(difference > 0)
    return NormalDist().cdf(difference / error)


def chances(values: Sequence[Array], strata: Strata, *, chosen: int) -> Array:
    """Return each candidate's probability to be among the ``chosen`` best on all items.

    Args:
        values: Each candidate's values on one common prefix.
        strata: All items.
        chosen: How many places there are.
    """
    table = np.stack(values)
    count, length = table.shape
    estimates = table @ strata.weights(length)
    variance = _pair_variances(table, strata)
    noise = float(variance[np.triu_indices(count, 1)].mean()) / 2
    if noise <= 0:
        ranks = np.argsort(np.argsort(-estimates, kind="stable"), kind="stable")
        return np.asarray(ranks < chosen, dtype=np.float64)
    centre = estimates.mean()
    apart = estimates - centre
    # The spread t of the scores, on a grid in the standard deviation, flat.
    grid = np.linspace(0.0, 3.0, _GRID) * math.sqrt(noise + float(np.mean(apart**2)))
    total = grid**2 + noise
    likelihood = -0.5 * (count - 1) * np.log(total) - 0.5 * float((apart**2).sum()) / total
    weight = np.exp(likelihood - likelihood.max())
    draw = np.random.default_rng(count)
    spread = grid[draw.choice(_GRID, _DRAWS, p=weight / weight.sum())] ** 2
    kept = (spread / (spread + noise))[:, None]
    scores = kept * apart + np.sqrt(kept * noise) * draw.standard_normal((_DRAWS, count))
    cut = -np.partition(-scores, chosen - 1, axis=1)[:, chosen - 1]
    return np.asarray((scores >= cut[:, None]).mean(axis=0))


def settle(
    values: Sequence[Array], verdicts: Sequence[int], strata: Strata, *, chosen: int, error: float
) -> list[int]:
    """Return the verdict on each candidate: ``IN``, ``OUT`` or ``OPEN``. What was settled stays so.

    Args:
        values: Each candidate's values on its prefix; those of the open ones are equally long.
        verdicts: What was settled before.
        strata: All items.
        chosen: How many candidates are in, those settled before included.
        error: Accepted probability that a settled one is on the wrong side.
    """
    found = list(verdicts)
    left = [place for place, verdict in enumerate(verdicts) if verdict == OPEN]
    places = chosen - sum(verdict == IN for verdict in verdicts)
    if places <= 0 or places >= len(left):
        for place in left:
            found[place] = OUT if places <= 0 else IN
        return found
    chance = chances([values[place] for place in left], strata, chosen=places)
    for rank, one in enumerate(np.argsort(-chance, kind="stable")):
        if rank >= places and chance[one] <= error:
            found[left[one]] = OUT
        elif rank < places and chance[one] >= 1 - error:
            found[left[one]] = IN
    return found


def _left(strata: Strata, length: int) -> Array:
    """Return for each of the first ``length`` items the finite-population correction of its stratum."""
    share = 1.0 - strata.asked(length) / np.maximum(strata.sizes, 1)
    return np.asarray(share[strata.of[:length]])


def _pair_variances(table: Array, strata: Strata) -> Array:
    """Return the variance of the estimated difference of every pair of rows."""
    length = table.shape[1]
    parts = (table[:, None, :] - table[None, :, :]) * strata.weights(length)
    return np.maximum(0.0, parts**2 @ _left(strata, length))


def order_of(estimates: Sequence[float], verdicts: Sequence[int]) -> list[int]:
    """Return the candidates, the best first: those that are in, the open ones, those that are out.

    Within a group the estimate decides, then the earlier one.
    """
    places = range(len(estimates))
    return sorted(places, key=lambda place: (-verdicts[place], -estimates[place], place))


def told_values(estimates: Sequence[float], verdicts: Sequence[int]) -> list[float]:
    """Return what a sampler is told: the estimates, dealt out so that their order is that of the race.

    A candidate that stopped early keeps its place although its own estimate may lie on the other side.
    """
    told = [0.0] * len(estimates)
    ladder = sorted(estimates, reverse=True)
    for place, value in zip(order_of(estimates, verdicts), ladder, strict=True):
        told[place] = float(value)
    return told


def reversed_share(values: Sequence[Array], strata: Strata, *, chosen: int) -> float:
    """Return the expected share of pairs across the cut that stand in the wrong order.

    The estimates are shrunk first: of the variance between candidates, what the items' noise explains is no
    difference (empirical Bayes, normal). Noise alone gives 0.4 to 0.5. This says that a generation had too
    few items, as the change of ranks does in the uncertainty handling of Hansen, Niederberger, Guzzella and
    Koumoutsakos (2009), IEEE Trans. Evol. Comput. 13:180, without asking anything twice.

    Args:
        values: Each candidate's values on its prefix.
        strata: All items.
        chosen: How many are in.
    """
    length = min(len(one) for one in values)
    table = np.stack([one[:length] for one in values])
    estimates = table @ strata.weights(length)
    order = np.argsort(-estimates, kind="stable")
    variance = _pair_variances(table, strata)
    pairs = variance[np.triu_indices(len(values), 1)]
    observed = float(np.var(estimates, ddof=1))
    noise = float(pairs.mean()) / 2
    if noise <= 0:
        return 0.0
    kept = max(0.0, 1 - noise / observed) if observed > 0 else 0.0
    better, worse = order[:chosen], order[chosen:]
    gaps = estimates[better][:, None] - estimates[worse][None, :]
    errors = np.sqrt(np.maximum(variance[np.ix_(better, worse)], 1e-300))
    z = math.sqrt(kept) * gaps / errors
    normal = NormalDist()
    return float(np.mean([normal.cdf(-min(value, 40.0)) for value in z.ravel()]))
