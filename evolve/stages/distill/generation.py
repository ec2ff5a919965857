"""Text that a student or a teacher writes, through transformers' ``generate``.

What is drawn for a prompt depends on the seed and the prompt alone, not on what else is in the batch: each
step takes one uniform number of the prompt's own generator and inverts the distribution function. (Up to
rounding: a batch of another shape has sums in another order, and a number within 1e-6 of a border may fall
on its other side.)
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evolve.training.rows import IGNORED, WRITTEN, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

_TOGETHER = 64
_AREA = 1 << 15
"""Most places of a batch, prompts and what is written."""


@dataclass(frozen=True)
class Generation:
    """How text is sampled. The defaults are the model's own distribution, as on-policy distillation needs.

    Attributes:
        temperature: 0: always the most likely token.
        top_p: Smallest set of tokens with this much probability; 1: all.
        top_k: Most likely tokens; 0: all.
        max_new_tokens: Most tokens that are written; at least 1.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128

    def as_plain(self) -> dict[str, float]:
        """Return the settings as plain data, for a key."""
        return asdict(self)


class Completion(NamedTuple):
    """What was written behind a prompt.

    Attributes:
        tokens: With the end token, where there is one.
        finished: Whether the end token came; False: cut at ``max_new_tokens``.
    """

    tokens: tuple[int, ...]
    finished: bool


def student_rollouts(
    network: Any,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    seed: int,
    eos: Iterable[int] | None = None,
    room: int | None = None,
) -> list[Row]:
    """Return one row a prompt: the prompt, ignored, and what the network wrote, labelled.

    Args:
        network: A causal language model of transformers; its mode (training or not) is as before afterwards.
        prompts: Token ids, each at least one.
        settings: How to sample.
        seed: Another one gives other texts; keyed with the prompt, and its number among equal prompts.
        eos: Tokens that end a text; None: those of the network's generation config.
        room: Most tokens of a row; what is written is cut there. None: no bound.

    Raises:
        ValueError: An empty prompt, or one that leaves no room.
    """
    found = complete(network, prompts, settings, seed=seed, eos=eos, room=room)
    return [row_of(prompt, one, part=WRITTEN) for prompt, one in zip(prompts, found, strict=True)]


def row_of(prompt: Sequence[int], completion: Completion, *, part: str = "data") -> Row:
    """Return a prompt and its completion as a row of one document; the completion's labels count."""
    tokens = np.array([*prompt, *completion.tokens], np.int32)
    labels = tokens.copy()
    labels[: len(prompt)] = IGNORED
    return Row(tokens, labels, (len(tokens),), part)


def complete(
    network: Any,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    seed: int,
    eos: Iterable[int] | None = None,
    room: int | None = None,
) -> list[Completion]:
    """Return what a network writes behind each prompt. See :func:`student_rollouts`."""
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("an empty prompt: give it the token that begins a text")
    longest = max((len(prompt) for prompt in prompts), default=0)
    if room is not None and longest >= room:
        raise ValueError(f"a prompt of {longest} tokens leaves no room in {room}")
    stops = tuple(sorted(set(ends_of(network) if eos is None else eos)))
    draws = _draws(prompts, seed, settings.max_new_tokens)
    found: list[Completion | None] = [None] * len(prompts)
    for group in _batches(prompts, settings.max_new_tokens):
        written = _generate(network, [prompts[i] for i in group], settings, stops, draws[group])
        for place, tokens in zip(group, written, strict=True):
            most = settings.max_new_tokens if room is None else room - len(prompts[place])
            found[place] = _cut(tokens[: min(most, len(tokens))], stops)
    return [one for one in found if one is not None]


def ends_of(network: Any) -> tuple[int, ...]:
    """Return the tokens that end a text, as the network's generation config has them; may be none."""
    value = getattr(network.generation_config, "eos_token_id", None)
    if value is None:
        value = network.config.get_text_config().eos_token_id
    return tuple(value) if isinstance(value, list | tuple) else () if value is None else (int(value),)


def prompt_key(prompt: Sequence[int]) -> bytes:
    """Return 16 bytes that stand for a prompt."""
    return hashlib.blake2b(np.array(prompt, "<i8").tobytes(), digest_size=16).digest()


def prompt_seeds(prompts: Sequence[Sequence[int]], seed: int, *, bits: int = 63) -> list[int]:
    """Return one number a prompt, by the seed, the prompt, and its number among equal prompts."""
    seen: Counter[bytes] = Counter()
    found = []
    for prompt in prompts:
        key = prompt_key(prompt)
        material = b"%d:%d:" % (seed, seen[key]) + key
        seen[key] += 1
        word = int.from_bytes(hashlib.blake2b(material, digest_size=16).digest(), "little")
        found.append(word >> (128 - bits))
    return found


def _draws(prompts: Sequence[Sequence[int]], seed: int, count: int) -> NDArray[np.float64]:
    """Return uniform numbers, (prompts, count), each row of its own generator."""
    words = prompt_seeds(prompts, seed, bits=128)
    rows = [np.random.Generator(np.random.Philox(key=word)).random(count) for word in words]
    return np.array(rows).reshape(len(prompts), count)


def _batches(prompts: Sequence[Sequence[int]], more: int) -> Iterator[list[int]]:
    """Yield places of prompts of like length, as many as fit."""
    order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
    group: list[int] = []
    for place in order:
        if group and (len(group) >= _TOGETHER or (len(group) + 1) * (len(prompts[place]) + more) > _AREA):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _cut(tokens: Sequence[int], stops: Sequence[int]) -> Completion:
    """Cut behind the first end token, by its place: where it is also the padding, the padding goes."""
    for place, token in enumerate(tokens):
        if token in stops:
            return Completion(tuple(tokens[: place + 1]), finished=True)
    return Completion(tuple(tokens), finished=False)


def _generate(
    network: Any,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    stops: Sequence[int],
    draws: NDArray[np.float64],
) -> list[list[int]]:
    import torch

    device = network.get_input_embeddings().weight.device
    width = max(len(prompt) for prompt in prompts)
    # Padded on the left: a text goes on at its right end.
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    with torch.no_grad(), _neutral(network, settings, stops) as config:
        output = network.generate(
            tokens,
            attention_mask=mask,
            generation_config=config,
            logits_processor=_processors(settings, torch.from_numpy(draws).to(device), width),
        )
    written: list[list[int]] = output[:, width:].tolist()
    return written


def _processors(settings: Generation, draws: Tensor, width: int) -> Any:
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    found = LogitsProcessorList()
    if settings.temperature == 0:
        return found
    if settings.temperature != 1:
        found.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        found.append(TopKLogitsWarper(int(settings.top_k)))
    if settings.top_p < 1:
        found.append(TopPLogitsWarper(float(settings.top_p)))

    def draw(tokens: Tensor, scores: Tensor) -> Tensor:
        import torch

        sums = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        wanted = draws[:, tokens.shape[1] - width, None] * sums[:, -1:]
        # The first place whose sum is above the number: never one of probability 0.
        chosen = torch.searchsorted(sums, wanted, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(1, chosen, 0.0)

    found.append(draw)
    return found


@contextlib.contextmanager
def _neutral(network: Any, settings: Generation, stops: Sequence[int]) -> Iterator[Any]:
    """Yield a generation config without anything of the network's own, such as a repetition penalty.

    ``generate`` fills gaps of the config that it is given from the network's, so that one is set aside.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=list(stops) or None,
        pad_token_id=stops[0] if stops else 0,
        use_cache=True,
    )
    own, training = network.generation_config, network.training
    remembers = network.config.use_cache if hasattr(network.config, "use_cache") else None
    network.generation_config = GenerationConfig()
    network.eval()
    try:
        yield config
    finally:
        network.generation_config = own
        network.train(training)
        if remembers is not None:
            network.config.use_cache = remembers
