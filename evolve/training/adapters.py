"""Low-rank adapters around a network: put on before training, merged into the weights after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError, MissingDependency
from evolve.training.phases import EMBEDDINGS
from evolve.training.seeds import seed_of

if TYPE_CHECKING:
    from evolve.training.arguments import PeftConfig
    from evolve.weights.model import Model

_TIED = (
    "the model's head is its embedding, and a low-rank change of one of them cannot be merged into both: "
    "list it in modules_to_save, or leave it out"
)


def adapter_problems(config: PeftConfig | None, model: Model) -> list[tuple[str, str]]:
    """Return ``(path, message with the mend)`` for what an adapter cannot do with a model's headers."""
    named = [] if config is None or isinstance(config.target_modules, str) else config.target_modules
    tables = [name for name in named if name.rpartition(".")[2] in EMBEDDINGS]
    return [("peft_config.target_modules", f"{tables[0]}: {_TIED}")] if tables and model.tied else []


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
    tied = _tied(network)
    if tied and given.get("modules_to_save"):
        # Else a copy of the embedding is trained while the head keeps the old one.
        given["ensure_weight_tying"] = True
    given["lora_alpha"] = given.pop("lora_alpha_ratio") * given["r"]
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "adapter"))
        try:
            found = peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM", **given))
        except (ValueError, TypeError) as error:
            raise CandidateError("build", f"peft_config: {error}") from error
    tables = (found.get_input_embeddings(), found.get_output_embeddings())
    if tied and any(hasattr(table, "lora_A") for table in tables):
        raise CandidateError("invalid_recipe", f"peft_config.target_modules: {_TIED}")
    return found


def _tied(network: Any) -> bool:
    tables = (network.get_input_embeddings(), network.get_output_embeddings())
    return None not in tables and tables[0].weight is tables[1].weight


def merged(network: Any) -> Any:
    """Return the network with its adapter in the weights, under the names that it had without one.

    Raises:
        CandidateError: The adapter has made two tables out of one that head and embedding shared.
    """
    if not hasattr(network, "merge_and_unload"):
        return network
    before = bool(getattr(network.get_base_model().config, "tie_word_embeddings", False))
    found = network.merge_and_unload()
    if before and not _tied(found):
        raise CandidateError("build", f"peft_config: {_TIED}")
    return found
