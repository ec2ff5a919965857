from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evolve.errors import CandidateError
from evolve.statistics.gram import LinearLayer, input_grams, linear_layers, sources
from tests.tiny import WIDTH, make_config

if TYPE_CHECKING:
    from collections.abc import Iterator


def network_of(arch: str, *, tied: bool = False, layers: int = 2) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(make_config(arch, tied=tied, layers=layers)).eval()


def texts(count: int = 3, length: int = 20) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(128, (length + i,), generator=generator) for i in range(count)]


def seen(network: Any, text: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs of every linear layer, one row a token, taken down by hooks of our own."""
    rows: dict[str, list[torch.Tensor]] = {}

    def note(name: str) -> Any:
        return lambda _, args: rows.setdefault(name, []).append(
            args[0].detach().reshape(-1, args[0].shape[-1])
        )

    handles = [
        module.register_forward_pre_hook(note(name))
        for name, module in network.named_modules()
        if type(module).__name__ in {"Linear", "Conv1D"}
    ]
    with torch.no_grad():
        for one in text:
            network(input_ids=one[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).double() for name, parts in rows.items()}


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_the_inner_products_of_all_inputs(arch: str) -> None:
    network, text = network_of(arch), texts()
    layers = linear_layers(network)
    leaders = sources(network, layers, text[0])
    inputs = seen(network, text)
    assert set(leaders) == set(inputs)
    wanted = {name: layers[name] for name in leaders if leaders[name] == name}
    found = dict(input_grams(network, wanted, lambda: text))
    tokens = sum(map(len, text))
    assert {len(rows) for rows in inputs.values()} == {tokens}
    for name, rows in inputs.items():
        expected = rows.T @ rows / tokens
        assert torch.allclose(found[leaders[name]], expected, rtol=1e-4, atol=1e-6), name
        weight = layers[name].module.weight
        assert weight.shape[layers[name].input_axis] == rows.shape[1]
        assert layers[name].input_axis == (0 if arch == "gpt2" and name != "lm_head" else 1)


def test_layers_with_one_input_share_the_products() -> None:
    network = network_of("llama", layers=1)
    found = sources(network, linear_layers(network), texts()[0])
    layer = "model.layers.0."
    assert found == {
        f"{layer}self_attn.q_proj": f"{layer}self_attn.q_proj",
        f"{layer}self_attn.k_proj": f"{layer}self_attn.q_proj",
        f"{layer}self_attn.v_proj": f"{layer}self_attn.q_proj",
        f"{layer}self_attn.o_proj": f"{layer}self_attn.o_proj",
        f"{layer}mlp.gate_proj": f"{layer}mlp.gate_proj",
        f"{layer}mlp.up_proj": f"{layer}mlp.gate_proj",
        f"{layer}mlp.down_proj": f"{layer}mlp.down_proj",
        "lm_head": "lm_head",
    }


class Odd(torch.nn.Module):
    """A layer that is used twice, one that shares the first of its inputs, and one that is not used."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(128, 6)
        self.twice, self.once, self.never = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        hidden = self.table(input_ids)
        return self.twice(self.twice(hidden)) + self.once(hidden)


def test_a_layer_that_is_used_twice_has_all_of_its_inputs() -> None:
    network, text = Odd(), texts()
    layers = linear_layers(network)
    found = sources(network, layers, text[0])
    assert found == {"twice": "twice", "once": "once"}
    grams = dict(input_grams(network, {name: layers[name] for name in found}, lambda: text))
    inputs = seen(network, text)
    tokens = sum(map(len, text))
    assert len(inputs["twice"]) == 2 * tokens
    for name, rows in inputs.items():
        assert torch.allclose(grams[name], rows.T @ rows / tokens, rtol=1e-4, atol=1e-6)


class Held(TorchDispatchMode):
    """Counts the bytes of the memory behind matrices of certain widths, and the most there was at a time."""

    def __init__(self, widths: set[int], network: Any) -> None:
        super().__init__()
        self.widths = widths
        self.weights = {one.untyped_storage().data_ptr() for one in network.parameters()}
        self.alive: dict[int, list[int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        matrix = isinstance(result, torch.Tensor) and result.ndim == 2 and result.shape[1] in self.widths
        if matrix and result.shape[0] in self.widths and not any(result is arg for arg in args):
            place = result.untyped_storage().data_ptr()
            if place not in self.weights:
                self.alive.setdefault(place, []).append(result.untyped_storage().nbytes())
                self.most = max(self.most, sum(sizes[0] for sizes in self.alive.values()))
                weakref.finalize(result, self.gone, place)
        return result

    def gone(self, place: int) -> None:
        self.alive[place].pop()
        if not self.alive[place]:
            del self.alive[place]


# Sums in float64, and a product beside them in float32 and float64: fewer rows than are made at a time.
SIZE = {width: 20 * width**2 for width in (WIDTH, 2 * WIDTH)}


@pytest.mark.parametrize("max_bytes", [SIZE[2 * WIDTH], 500_000, 1 << 30])
def test_no_more_bytes_are_held_than_are_allowed(max_bytes: int) -> None:
    network, text = network_of("llama", layers=3), texts()
    layers = linear_layers(network)
    wanted = {
        name: layers[name] for name, first in sources(network, layers, text[0]).items() if name == first
    }
    everything = sum(8 * layer.inputs**2 for layer in wanted.values())
    passes = 0

    def sequences() -> Iterator[torch.Tensor]:
        nonlocal passes
        passes += 1
        yield from text

    found = {}
    with Held({WIDTH, 2 * WIDTH}, network) as held:
        for name, gram in input_grams(network, wanted, sequences, max_bytes=max_bytes):
            found[name] = gram.numpy().copy()  # not a tensor: it is the caller's memory
            del gram
    assert 0 < held.most <= max_bytes
    if max_bytes < everything:
        assert passes > 1
    else:
        assert passes == 1
        assert held.most > everything, "the count counts"
    whole = dict(input_grams(network, wanted, lambda: text))
    for name, gram in found.items():
        assert (gram == whole[name].numpy()).all(), "groups change no bit"


def test_wide_layers_are_added_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    network, text = network_of("llama"), texts()
    layers = linear_layers(network)
    whole = dict(input_grams(network, layers, lambda: text))
    monkeypatch.setattr("evolve.statistics.gram._ROWS", 48)
    for name, gram in input_grams(network, layers, lambda: text, max_bytes=14 * (2 * WIDTH) ** 2):
        assert torch.allclose(gram, whole[name], rtol=1e-6, atol=1e-9)


def test_what_cannot_be_gathered() -> None:
    network, text = network_of("llama"), texts()
    layers = linear_layers(network)
    with pytest.raises(CandidateError, match=r"down_proj need 0\.00 GB"):
        list(input_grams(network, layers, lambda: text, max_bytes=SIZE[2 * WIDTH] - 1))
    with pytest.raises(CandidateError, match="no tokens"):
        list(input_grams(network, layers, list))
    network.model.layers[0].self_attn.q_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CandidateError, match="NaN or infinite") as caught:
        list(input_grams(network, layers, lambda: text))
    assert caught.value.kind == "non_finite"
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_no_layers() -> None:
    empty: dict[str, LinearLayer] = {}
    assert list(input_grams(network_of("llama"), empty, texts)) == []
