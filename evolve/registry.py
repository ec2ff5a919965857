"""Names to implementations, without importing any of them.

Each kind of extension is one read-only table ``name -> "module:attribute"``. A name is visible without
its module being imported; the module is imported when the name is loaded. Third parties add names by
entry points in the group ``evolve.<kind>``. Nothing registers itself on import.
"""

from __future__ import annotations

import difflib
import importlib
from functools import cached_property
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from evolve.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.generate.filters.base import Filter
    from evolve.generate.styles.base import Style
    from evolve.generate.verifiers.base import Verifier
    from evolve.score.engines.base import EngineFactory
    from evolve.score.scorers.base import ModelScorer
    from evolve.search.base import SamplerFactory
    from evolve.stages.base import Stage
    from evolve.stages.distill.losses.base import Loss
    from evolve.stages.distill.teachers.base import Teacher
    from evolve.stages.merge.base import MergeMethod
    from evolve.training.regularizers.base import Regularizer

T = TypeVar("T")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of ``known``, or the list of all of them."""
    names = sorted(known)
    # Comparing costs the product of the lengths, and no name is that long.
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6) if len(word) <= 200 else []
    if not close:
        folded = {name.casefold(): name for name in names}
        close = [folded[word.casefold()]] if word.casefold() in folded else []
    if close:
        return f" (did you mean {close[0]!r}?)"
    more = ", ..." if len(names) > _MOST_LISTED else ""
    return f" (known: {', '.join(names[:_MOST_LISTED])}{more})" if names else ""


_MOST_LISTED = 40


class Registry(Generic[T]):
    """A read-only table of one kind of extension."""

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._own = MappingProxyType(dict(table))

    @cached_property
    def _table(self) -> dict[str, str]:
        found = {point.name: point.value for point in entry_points(group=f"evolve.{self.kind}")}
        return {**found, **self._own}

    def names(self) -> tuple[str, ...]:
        """Every known name, in the order of the table."""
        return tuple(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def load(self, name: str) -> T:
        """Import and return what ``name`` stands for.

        Raises:
            UserError: No such name; the message suggests the closest one.
        """
        if name not in self._table:
            raise UserError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._table)}")
        module, _, attribute = self._table[name].partition(":")
        return cast("T", getattr(importlib.import_module(module), attribute))


STAGES: Registry[type[Stage]] = Registry(
    "stage",
    {
        "merge": "evolve.stages.merge:MergeStage",
        "distill": "evolve.stages.distill:DistillStage",
        "cpt": "evolve.stages.cpt:CptStage",
    },
)

MERGE_METHODS: Registry[type[MergeMethod]] = Registry(
    "merge_method",
    {
        "linear": "evolve.stages.merge.linear:Linear",
        "slerp": "evolve.stages.merge.slerp:Slerp",
        "nuslerp": "evolve.stages.merge.nuslerp:NuSlerp",
        "multislerp": "evolve.stages.merge.multislerp:MultiSlerp",
        "karcher": "evolve.stages.merge.karcher:Karcher",
        "task_arithmetic": "evolve.stages.merge.task_arithmetic:TaskArithmetic",
        "ties": "evolve.stages.merge.ties:Ties",
        "dare_linear": "evolve.stages.merge.dare:DareLinear",
        "dare_ties": "evolve.stages.merge.dare:DareTies",
        "della": "evolve.stages.merge.della:Della",
        "della_linear": "evolve.stages.merge.della:DellaLinear",
        "breadcrumbs": "evolve.stages.merge.breadcrumbs:Breadcrumbs",
        "breadcrumbs_ties": "evolve.stages.merge.breadcrumbs:BreadcrumbsTies",
        "sce": "evolve.stages.merge.sce:Sce",
        "ram": "evolve.stages.merge.ram:Ram",
        "ramplus_tl": "evolve.stages.merge.ram:RamPlusTensorLocal",
        "model_stock": "evolve.stages.merge.model_stock:ModelStock",
        "nearswap": "evolve.stages.merge.nearswap:NearSwap",
        "arcee_fusion": "evolve.stages.merge.arcee_fusion:ArceeFusion",
        "passthrough": "evolve.stages.merge.passthrough:Passthrough",
        "uniform_soup": "evolve.stages.merge.soup:UniformSoup",
        "wise_ft": "evolve.stages.merge.wise_ft:WiseFt",
        "geometric_median": "evolve.stages.merge.geometric_median:GeometricMedian",
        "tsv": "evolve.stages.merge.tsv:Tsv",
        "fisher": "evolve.stages.merge.fisher:Fisher",
        "regmean": "evolve.stages.merge.regmean:RegMean",
    },
)

LOSSES: Registry[type[Loss]] = Registry(
    "loss",
    {
        "cross_entropy": "evolve.stages.distill.losses.cross_entropy:CrossEntropy",
        "kl": "evolve.stages.distill.losses.kl:ForwardKl",
        "reverse_kl": "evolve.stages.distill.losses.reverse_kl:ReverseKl",
        "jsd": "evolve.stages.distill.losses.jsd:GeneralizedJsd",
        "skew_kl": "evolve.stages.distill.losses.skew_kl:SkewKl",
        "skew_reverse_kl": "evolve.stages.distill.losses.skew_reverse_kl:SkewReverseKl",
        "tvd": "evolve.stages.distill.losses.tvd:TotalVariation",
        "hs_cosine": "evolve.stages.distill.losses.hs_cosine:HiddenCosine",
        "hs_mse": "evolve.stages.distill.losses.hs_mse:HiddenMse",
        "attention_kl": "evolve.stages.distill.losses.attention_kl:AttentionKl",
        "attention_mse": "evolve.stages.distill.losses.attention_mse:AttentionMse",
    },
)

TEACHERS: Registry[type[Teacher]] = Registry(
    "teacher",
    {
        "hf": "evolve.stages.distill.teachers.hf:HfTeacher",
        "vllm": "evolve.stages.distill.teachers.vllm:VllmTeacher",
        "dataset": "evolve.stages.distill.teachers.dataset:DatasetTeacher",
    },
)

STYLES: Registry[type[Style]] = Registry(
    "style",
    {
        "completion": "evolve.generate.styles.completion:Completion",
        "explanation": "evolve.generate.styles.explanation:Explanation",
        "textbook": "evolve.generate.styles.textbook:Textbook",
        "reasoning": "evolve.generate.styles.reasoning:Reasoning",
    },
)

VERIFIERS: Registry[type[Verifier]] = Registry(
    "verifier",
    {
        "exact": "evolve.generate.verifiers.exact:Exact",
        "numeric": "evolve.generate.verifiers.numeric:Numeric",
        "math": "evolve.generate.verifiers.math:Math",
        "regex": "evolve.generate.verifiers.regex:Regex",
        "python": "evolve.generate.verifiers.python:Python",
    },
)

FILTERS: Registry[type[Filter]] = Registry(
    "filter",
    {
        "length": "evolve.generate.filters.length:Length",
        "refusals": "evolve.generate.filters.refusals:Refusals",
        "exact_duplicates": "evolve.generate.filters.exact_duplicates:ExactDuplicates",
        "ngram_overlap": "evolve.generate.filters.ngram_overlap:NgramOverlap",
        "near_duplicate": "evolve.generate.filters.near_duplicate:NearDuplicate",
        "quality": "evolve.generate.filters.quality:Quality",
    },
)
"""In the order in which they run."""

REGULARIZERS: Registry[type[Regularizer]] = Registry(
    "regularizer",
    {
        "ewc": "evolve.training.regularizers.ewc:Ewc",
        "l2sp": "evolve.training.regularizers.l2sp:L2Sp",
        "lwf": "evolve.training.regularizers.lwf:Lwf",
    },
)

SAMPLERS: Registry[SamplerFactory] = Registry(
    "sampler",
    {
        "cmaes": "evolve.search.cmaes:make_sampler",
        "tpe": "evolve.search.tpe:make_sampler",
        "random": "evolve.search.random:make_sampler",
        "grid": "evolve.search.grid:make_sampler",
        "greedy_soup": "evolve.search.greedy_soup:make_sampler",
    },
)

SCORERS: Registry[type[ModelScorer]] = Registry(
    "scorer",
    {
        "bits_per_byte": "evolve.score.scorers.bits_per_byte:BitsPerByte",
        "size": "evolve.score.scorers.size:Size",
        "latency": "evolve.score.scorers.latency:Latency",
        "kl_to_teacher": "evolve.score.scorers.kl_to_teacher:KlToTeacher",
        "speculative": "evolve.score.scorers.speculative:Speculative",
        "python": "evolve.score.scorers.python:Python",
    },
)

ENGINES: Registry[EngineFactory] = Registry(
    "engine",
    {
        "vllm": "evolve.score.engines.vllm:open_engine",
        "hf": "evolve.score.engines.hf:open_engine",
    },
)
