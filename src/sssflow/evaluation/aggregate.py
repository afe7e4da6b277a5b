"""From scores per case and class to means, intervals over patients and a paired test.

The statistic is one everywhere: mean over cases per class, then over classes. It is linear in the
scores, so the gain of one model over another is the same statistic of the differences.
Axis letters: n cases, c foreground classes, p patients, r resamples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.evaluation import Figure
from sssflow.errors import InternalError

Floats = NDArray[np.float64]

EXACT_PATIENTS = 12
"""Up to so many patients the sign-flip test counts all 2^p sign patterns."""

_BLOCK = 4096
_RESAMPLES_AT_ONCE = 1 << 16
"""Their weights take 16 bytes a patient each."""


@dataclass(frozen=True)
class ScoreTable:
    """One metric of one model: NaN where a score is left out.

    Attributes:
        score_nc: One row per case, one column per foreground class.
        patient_n: Patient of each row.
    """

    score_nc: Floats
    patient_n: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse rows without a patient."""
        if self.score_nc.ndim != 2 or len(self.patient_n) != self.score_nc.shape[0]:
            raise InternalError(
                "A score table needs one patient per row.",
                expected=self.score_nc.shape,
                found=len(self.patient_n),
            )

    @property
    def patients(self) -> tuple[str, ...]:
        """Distinct patients, sorted."""
        return tuple(sorted(set(self.patient_n)))

    def column(self, index: int) -> ScoreTable:
        """The table of one class only."""
        return ScoreTable(self.score_nc[:, index : index + 1], self.patient_n)

    def mean(self) -> float | None:
        """Mean over cases per class, then over the classes that have a value; None without any."""
        sums, counts = self._per_patient()
        value = float(_statistic(np.ones((1, len(self.patients))), sums, counts)[0])
        return None if np.isnan(value) else value

    def _per_patient(self) -> tuple[Floats, Floats]:
        position = {name: i for i, name in enumerate(self.patients)}
        rows = np.array([position[name] for name in self.patient_n], dtype=np.intp)
        shape = (len(position), self.score_nc.shape[1])
        sums, counts = np.zeros(shape), np.zeros(shape)
        defined = ~np.isnan(self.score_nc)
        np.add.at(sums, rows, np.where(defined, self.score_nc, 0.0))
        np.add.at(counts, rows, defined.astype(np.float64))
        return sums, counts


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: patients are drawn with replacement, percentile interval."""

    resamples: int
    confidence: float
    seed: int

    def describe(self) -> str:
        """Name of the interval, in words."""
        return (
            f"{100 * self.confidence:g} % percentile bootstrap interval over patients, "
            f"{self.resamples} resamples, seed {self.seed}"
        )


def figure(table: ScoreTable, resampling: Resampling) -> Figure:
    """Mean of a table with its interval, if there is one: see `interval`."""
    low, high = interval(table, resampling)
    defined = int(np.count_nonzero(~np.isnan(table.score_nc)))
    return Figure(
        value=table.mean(),
        low=low,
        high=high,
        count=defined,
        excluded=int(table.score_nc.size) - defined,
    )


def interval(table: ScoreTable, resampling: Resampling) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval of `table.mean()`, resampling whole patients.

    None with fewer than two patients that have a score: all resamples of one are equal, and an
    interval of no width would say that the mean is certain. Resamples without any defined score
    are left out. Cases of one patient stay together, because they are not independent. The same
    seed gives the same draws for any table of these patients.
    """
    sums, counts = table._per_patient()
    patients = sums.shape[0]
    if np.count_nonzero(counts.any(axis=1)) < 2:
        return None, None
    generator = np.random.default_rng(resampling.seed)
    share_p = np.full(patients, 1 / patients)
    blocks = []
    for start in range(0, resampling.resamples, _RESAMPLES_AT_ONCE):
        size = min(_RESAMPLES_AT_ONCE, resampling.resamples - start)
        weight_rp = generator.multinomial(patients, share_p, size=size).astype(np.float64)
        blocks.append(_statistic(weight_rp, sums, counts))
    values = np.concatenate(blocks)
    values = values[~np.isnan(values)]
    if not values.size:
        return None, None
    tail = (1 - resampling.confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(headline: ScoreTable, baseline: ScoreTable, *, absent: float) -> ScoreTable:
    """Headline minus baseline, score by score.

    Left out where both leave out. Where only one does (a correctly empty mask against a
    hallucination) the correct one counts as `absent`, the best value of the metric, because
    leaving the pair out would forgive the hallucination.

    Raises:
        InternalError: The tables are not of the same cases.
    """
    if headline.patient_n != baseline.patient_n or (
        headline.score_nc.shape != baseline.score_nc.shape
    ):
        raise InternalError("Two models were not measured on the same cases.")
    gone = np.isnan(headline.score_nc) & np.isnan(baseline.score_nc)
    difference = np.nan_to_num(headline.score_nc, nan=absent) - np.nan_to_num(
        baseline.score_nc, nan=absent
    )
    return ScoreTable(np.where(gone, np.nan, difference), headline.patient_n)


def unequal_pairs(headline: ScoreTable, baseline: ScoreTable) -> int:
    """Number of pairs where only one of the two scores is left out."""
    return int(np.count_nonzero(np.isnan(headline.score_nc) ^ np.isnan(baseline.score_nc)))


def sign_flip_test(difference: ScoreTable, *, flips: int, seed: int) -> tuple[float | None, str]:
    """Two-sided paired sign-flip (permutation) test over patients of a mean difference of zero.

    All scores of one patient change sign together. Up to `EXACT_PATIENTS` patients every sign
    pattern is counted; above, `flips` seeded ones, with the observed one added to both counts.

    Returns:
        The p-value (None with fewer than two patients with a difference defined) and the name of
        the test.
    """
    weight_p = _contributions(difference)
    patients = weight_p.size
    if patients < 2:
        return None, "no test: fewer than two patients"
    observed = abs(float(weight_p.sum()))
    # Sums in another order differ in the last bits; a tie must count as reached.
    limit = observed - 1e-12 * max(1.0, float(np.abs(weight_p).sum()))
    if patients <= EXACT_PATIENTS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=patients)))
        reached = int(np.count_nonzero(np.abs(signs @ weight_p) >= limit))
        return reached / len(signs), f"exact paired sign-flip test over {patients} patients"
    generator = np.random.default_rng(seed)
    reached = 0
    for start in range(0, flips, _BLOCK):
        size = (min(_BLOCK, flips - start), patients)
        signs = generator.integers(0, 2, size=size).astype(np.float64) * 2 - 1
        reached += int(np.count_nonzero(np.abs(signs @ weight_p) >= limit))
    name = f"paired sign-flip test over {patients} patients, {flips} flips, seed {seed}"
    return (reached + 1) / (flips + 1), name


def check_identities(
    dice: Iterable[float], jaccard: Iterable[float], *, tolerance: float = 1e-9
) -> None:
    """Hold overlap scores to what mathematics says of them.

    Per mask pair J = D / (2 - D); over any set of them mean J >= mean D / (2 - mean D), because
    that function is convex (Jensen).

    Raises:
        InternalError: An identity is broken, so a metric is computed wrongly.
    """
    d = np.asarray(list(dice), dtype=np.float64)
    j = np.asarray(list(jaccard), dtype=np.float64)
    if d.size == 0 and j.size == 0:
        return
    if d.shape != j.shape:
        raise InternalError("Dice and Jaccard differ in number.", expected=d.size, found=j.size)
    worst = float(np.abs(j - d / (2 - d)).max())
    if not worst <= tolerance:
        raise InternalError("Jaccard is not D / (2 - D).", found=f"difference {worst:.3g}")
    if j.mean() < d.mean() / (2 - d.mean()) - tolerance:
        raise InternalError(
            "Mean Jaccard is below D / (2 - D) of the mean Dice.",
            expected=f">= {d.mean() / (2 - d.mean()):.6f}",
            found=f"{j.mean():.6f}",
        )


def table_of(rows: Sequence[Sequence[float | None]], patients: Sequence[str]) -> ScoreTable:
    """A ScoreTable from rows (one per case) of optional scores (one per class)."""
    values = [[np.nan if value is None else value for value in row] for row in rows]
    return ScoreTable(np.asarray(values, dtype=np.float64), tuple(patients))


def _statistic(weight_rp: Floats, sums_pc: Floats, counts_pc: Floats) -> Floats:
    total_rc, number_rc = weight_rp @ sums_pc, weight_rp @ counts_pc
    defined = number_rc > 0
    class_mean = np.divide(total_rc, number_rc, out=np.zeros_like(total_rc), where=defined)
    classes = defined.sum(axis=1)
    values = np.full(weight_rp.shape[0], np.nan)
    np.divide(class_mean.sum(axis=1), classes, out=values, where=classes > 0)
    return values


def _contributions(difference: ScoreTable) -> Floats:
    """What each patient adds to the mean; patients without any defined score are left out."""
    sums, counts = difference._per_patient()
    number_c = counts.sum(axis=0)
    used = number_c > 0
    if not used.any():
        return np.zeros(0)
    weights: Floats = (sums[:, used] / number_c[used]).sum(axis=1) / int(used.sum())
    present: Floats = weights[counts.sum(axis=1) > 0]
    return present
