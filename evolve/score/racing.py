"""Which candidates of a generation are settled before all items are asked: pure functions over tables.

CMA-ES takes from a generation only who is in the better half, and in what order. All candidates get the same
items in the same seeded order, in growing prefixes; after each prefix every pair is compared on the items
that both have. A candidate that is worse than enough others is out, one that is better than enough others is
in, and both stop. This is the race of Heidrich-Meisner and Igel (2009), "Hoeffding and Bernstein races for
selecting policies in evolutionary direct policy search", with paired tests in place of their bounds.

The test. With the differences d of a pair on the asked items, and each item counting by its share w of the
objective, ``z = (|sum w d| - max |w d|) / sqrt(sum (w d)^2 (1 - m / N))``, stratum by stratum. For items that
are 0 or 1 it is McNemar's test with Edwards' continuity correction (Edwards 1948, Psychometrika 13:185), for
others the self-normalised sum, whose tail is below the normal one's bound for symmetric differences (Efron
1969, J. Am. Stat. Assoc. 64:1278). The last factor is the finite-population correction: what is to be
predicted is the score on the N items of this search, so at the last item nothing is left to err about.

The error level. A candidate that belongs in, of true rank r among n with the first k in, is wrongly out only
if k - r + 1 of the n - r worse ones look better. At level e a pair this has a probability of at most
e (n - r) / (k - r + 1) (Markov), and the same from the other end. :func:`level_of_a_pair` sums this over all
ranks, so that the expected share of wrongly settled candidates is at most ``error``, over all looks.
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


def z_scores(first: Array, others: Array, strata: Strata) -> Array:
    """Return how many standard errors ``first`` is better than each of the others, minus for worse.

    Args:
        first: Values of one candidate on a prefix.
        others: Candidates by items, on the same prefix.
        strata: All items.
    """
    count = len(first)
    asked, sizes = strata.asked(count), strata.sizes
    left = 1.0 - asked / np.maximum(sizes, 1)
    parts = (first - others) * strata.weights(count)
    sums = parts.sum(axis=1)
    if not (left * (asked > 0)).any():
        exact = np.where(np.abs(sums) > 1e-12, np.inf, 0.0)
        return np.asarray(np.sign(sums) * exact)
    spread = np.sqrt((parts**2 @ left[strata.of[:count]]).clip(min=0.0))
    step = np.abs(parts).max(axis=1)
    clear = np.maximum(np.abs(sums) - step, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(clear > 0, np.sign(sums) * clear / spread, 0.0))


def level_of_a_pair(error: float, count: int, chosen: int, tests: int) -> float:
    """Return the one-sided level of one paired test: see the module's text.

    Args:
        error: Accepted share of wrongly settled candidates.
        count: Candidates in the race.
        chosen: How many of them are in.
        tests: Looks at which something can go wrong.
    """
    upper = sum((count - rank) / (chosen - rank + 1) for rank in range(1, chosen + 1))
    rest = count - chosen
    lower = sum((count - rank) / (rest - rank + 1) for rank in range(1, rest + 1))
    return min(0.5, error * count / ((upper + lower) * max(1, tests)))


def settle(
    values: Sequence[Array],
    verdicts: Sequence[int],
    strata: Strata,
    *,
    chosen: int,
    level: float,
) -> list[int]:
    """Return the verdict on each candidate: ``IN``, ``OUT`` or ``OPEN``. What was settled stays so.

    Args:
        values: Each candidate's values on its prefix; a settled one's may be shorter.
        verdicts: What was settled before.
        strata: All items.
        chosen: How many are in.
        level: One-sided level of one paired test.
    """
    quantile = NormalDist().inv_cdf(1 - level)
    count = len(values)
    found = list(verdicts)
    for one in range(count):
        if verdicts[one] != OPEN:
            continue
        z = _against(one, values, strata)
        if (z < -quantile).sum() >= chosen:
            found[one] = OUT
        elif (z > quantile).sum() >= count - chosen:
            found[one] = IN
    return found


def _against(one: int, values: Sequence[Array], strata: Strata) -> Array:
    """Return the z scores of a candidate against all, 0 against itself, each on the common prefix."""
    lengths = np.array([min(len(values[one]), len(other)) for other in values])
    z = np.zeros(len(values))
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        block = np.stack([values[other][:length] for other in same])
        z[same] = z_scores(values[one][:length], block, strata)
    z[one] = 0.0
    return z


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
    difference (empirical Bayes, normal). Noise alone gives 0.4 to 0.5. This is what says that a generation had too
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
    left = 1.0 - strata.asked(length) / np.maximum(strata.sizes, 1)
    weights = strata.weights(length)
    parts = (table[:, None, :] - table[None, :, :]) * weights
    variance = np.maximum(0.0, parts**2 @ left[strata.of[:length]])
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
