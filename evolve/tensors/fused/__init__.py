"""One pass over one tensor of every model: task vectors, what stays of them, their sum, one cast.

:func:`merge` is the whole interface. On a CPU, for tensors of one of the types that models are stored in, it
runs a kernel that numba compiles: each element is read once, in its stored type, and written once. Anywhere
else (a GPU, mixed types) it runs the same operations one by one in torch. Both give the same bits.
"""

from evolve.tensors.fused.buffers import Buffers
from evolve.tensors.fused.finite import all_finite
from evolve.tensors.fused.merge import Sink, merge
from evolve.tensors.fused.terms import Chance, Everything, Keep, Magnitude, RankedChance, Term, chance

__all__ = [
    "Buffers",
    "Chance",
    "Everything",
    "Keep",
    "Magnitude",
    "RankedChance",
    "Sink",
    "Term",
    "all_finite",
    "chance",
    "merge",
]
