"""Distances between hidden states and between attention maps, one number a token.

Hidden states: FitNets (Romero et al. 2015, arXiv:1412.6550) and TinyBERT (Jiao et al. 2020,
arXiv:1909.10351). Attention maps: MobileBERT (Sun et al. 2020, arXiv:2004.02984) and TinyBERT. The gradient
is autograd's and flows into both arguments: detach the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evolve.tensors.divergence import wide


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``1 - cos`` of the angle between two vectors.

    A zero vector has no direction: its cosine with any other counts as 0.

    Args:
        student: (..., width), any floating type.
        teacher: Of the same shape.

    Returns:
        (...), from 0 to 2; float32, or float64 for float64.
    """
    return 1 - (_unit(wide(student)) * _unit(wide(teacher))).sum(-1)


def _unit(vectors: Tensor) -> Tensor:
    # First by the largest magnitude, so that squares neither overflow nor vanish.
    size = vectors.detach().abs().amax(-1, keepdim=True)
    scaled = vectors / torch.where(size > 0, size, 1)
    length = torch.where(size > 0, scaled, 1).square().sum(-1, keepdim=True).sqrt()
    return scaled / length


def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of the squared differences over the width; see :func:`cosine_distance`."""
    return (wide(student) - wide(teacher)).square().mean(-1)


def attention_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over heads of ``KL(teacher || student)`` between attention probabilities.

    Args:
        student: (..., heads, keys), probabilities; 0 where a key may not be looked at.
        teacher: (..., heads of the teacher, keys); see :func:`same_heads`.

    Returns:
        (...); float32, or float64 for float64.
    """
    ours, theirs = wide(student), same_heads(wide(teacher), student.shape[-2])
    tiny = torch.finfo(torch.float32).tiny
    # Zeros of the teacher add nothing; where the student alone has one, the logarithm stays finite.
    return (theirs * (theirs.clamp(min=tiny).log() - ours.clamp(min=tiny).log())).sum(-1).mean(-1)


def attention_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over heads of the summed squared differences; see :func:`attention_kl`."""
    ours, theirs = wide(student), same_heads(wide(teacher), student.shape[-2])
    return (ours - theirs).square().sum(-1).mean(-1)


def same_heads(teacher: Tensor, heads: int) -> Tensor:
    """Return the teacher's maps for as many heads: as they are, or means of groups of neighbours.

    Args:
        teacher: (..., a multiple of ``heads``, keys).
        heads: The student's number.
    """
    *front, theirs, keys = teacher.shape
    if theirs % heads:
        raise ValueError(f"attention: the teacher's {theirs} heads are no multiple of the student's {heads}")
    return teacher.reshape(*front, heads, theirs // heads, keys).mean(-2)
