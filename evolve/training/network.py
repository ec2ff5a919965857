"""From a model to a network that can be trained, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError
from evolve.weights.model import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from evolve.training.arguments import PeftConfig
    from evolve.weights.model import Model


@dataclass
class Trainee:
    """A network in training.

    Attributes:
        network: What is trained, with adapters where there are some.
        names: Tensor of the model to parameter of the bare network.
        start: The model that it began as.
    """

    network: Any
    names: Mapping[str, str]
    start: Model


def open_trainee(
    model: Model,
    *,
    peft: PeftConfig | None = None,
    frozen: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
) -> Trainee:
    """Return a network to train: float32, what is frozen marked.

    Args:
        model: The start.
        peft: Adapters, of which only the new parameters are trained; None: everything is.
        frozen: Regular expressions; parameters whose name one of them is found in rest.
        seed: Of the adapters' first values.
        device: Where it goes.

    Raises:
        CandidateError: The model does not fit, a pattern matches nothing, or peft refuses.
    """
    import torch

    from evolve.weights.network import open_network

    network, names = open_network(model, device)
    network.config.use_cache = False
    own = [name for name, _ in network.named_parameters()]
    for pattern in frozen:
        if not any(re.search(pattern, name) for name in own):
            raise CandidateError("invalid_recipe", f"frozen_res: no parameter matches {pattern!r}")
    if peft is not None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed % 2**63)
        given = peft.model_dump(exclude={"lora_alpha_ratio"})
        options = {**given, "lora_alpha": peft.lora_alpha_ratio * given["r"], "task_type": "CAUSAL_LM"}
        try:
            network = get_peft_model(network, LoraConfig(**options))
        except (ValueError, TypeError) as error:
            raise CandidateError("invalid_recipe", f"peft_config: {error}") from error
    for name, parameter in network.named_parameters():
        if any(re.search(pattern, name) for pattern in frozen):
            parameter.requires_grad_(False)
    return Trainee(network, names, model)


def trained_model(trainee: Trainee, dtype: str | None = None) -> Model:
    """Return the network as a model, adapters merged into it.

    Args:
        trainee: After training. It must not be trained on.
        dtype: Type of all floating tensors; None: that which each had at the start.
    """
    network = trainee.network
    if hasattr(network, "merge_and_unload"):
        network = network.merge_and_unload()
    state = network.state_dict()
    specs = {
        name: spec if dtype is None or not _floating(spec.dtype) else TensorSpec(spec.shape, dtype)
        for name, spec in trainee.start.specs.items()
    }
    # What the network does not hold is no parameter: it stays as it was.
    names = dict(trainee.names)

    def tensor(name: str) -> Tensor:
        import torch

        if name not in names:
            return trainee.start.tensor(name)
        found: Tensor = state[names[name]]
        return found.detach().cpu().to(getattr(torch, specs[name].dtype))

    return replace(trainee.start, specs=specs, tensor=tensor, exact=None, finite=False, content="", same={})


def _floating(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))
