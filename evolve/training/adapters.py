"""Low-rank adapters around a network: put on before training, merged into the weights after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError, MissingDependency
from evolve.training.seeds import seed_of

if TYPE_CHECKING:
    from evolve.training.arguments import PeftConfig


def with_adapter(network: Any, config: PeftConfig, *, seed: int) -> Any:
    """Return the network with an adapter on it; only the adapter is trained.

    Args:
        network: A causal language model of transformers.
        config: With every value fixed.
        seed: Decides the adapter's first values.

    Raises:
        CandidateError: peft refuses, as where there is no module of a name.
        MissingDependency: peft is not installed.
    """
    import torch

    try:
        import peft
    except ImportError as error:
        raise MissingDependency("peft_config", "peft>=0.18") from error
    given = config.model_dump(exclude_none=True)
    given["lora_alpha"] = given.pop("lora_alpha_ratio") * given["r"]
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "adapter"))
        try:
            return peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM", **given))
        except (ValueError, TypeError) as error:
            raise CandidateError("build", f"peft_config: {error}") from error


def merged(network: Any) -> Any:
    """Return the network with its adapter in the weights, under the names that it had without one."""
    return network.merge_and_unload() if hasattr(network, "merge_and_unload") else network
