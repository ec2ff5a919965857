"""A model as a transformers network: do its tensors fit its config, and where does each of them go?"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

from evolve.errors import CandidateError, some
from evolve.weights.skeleton import Skeleton

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from evolve.weights.model import Model, TensorSpec


def open_network(model: Model, device: str = "cpu") -> tuple[Any, dict[str, str]]:
    """Load a model into transformers in float32, in evaluation mode, without a copy on disk.

    Args:
        model: The model.
        device: Where the parameters go, as torch spells it.

    Returns:
        The network, and the name of each of the model's tensors to that of its parameter.

    Raises:
        CandidateError: The tensors do not fit the config, or transformers converts them while loading.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    names = parameter_names(model) or _renamed(model)
    if names is None:
        kind = model.config.get("model_type")
        raise CandidateError(
            "build",
            f"transformers stores the tensors of a {kind!r} in another form than its files: nothing can be "
            "gathered of it; use a merge method without statistics",
        )
    with no_init_weights():
        network = AutoModelForCausalLM.from_config(hf_config(model), dtype=torch.float32)
    network.tie_weights()
    table = network.get_input_embeddings()
    if getattr(table, "padding_idx", None) is not None:
        # torch gives this row no gradient, and where padding is the end token that is a row that matters.
        table.padding_idx = None
    state = network.state_dict()
    with torch.no_grad():
        for name, own in names.items():
            state[own].copy_(model.tensor(name))
    return network.to(device).eval(), names


def _renamed(model: Model) -> dict[str, str] | None:
    """Map tensors to parameters where transformers renames them while loading; None: it does more."""
    skeleton = Skeleton.of(model.config)
    if skeleton is None:
        return None
    places = skeleton.loaded(model.specs)
    if any(pattern is not None for _, pattern in places.values()):
        return None
    originals = {place: name for name, (place, _) in places.items()}
    try:
        found = match({new: model.specs[old] for new, old in originals.items()}, skeleton.memory)
    except CandidateError:
        return None
    return {originals[new]: own for new, own in found.items()}


def hf_config(model: Model) -> Any:
    """Return the model's config as a transformers config object.

    Raises:
        CandidateError: transformers does not know the model type, or refuses the values.
    """
    from transformers import CONFIG_MAPPING

    kind = model.config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise CandidateError("engine", f"config.json: transformers does not know model_type {kind!r}")
    try:
        return CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(model.config)))
    except (TypeError, ValueError, KeyError) as error:
        raise CandidateError("engine", f"config.json: {error}") from error


def parameter_names(model: Model) -> dict[str, str] | None:
    """Map each tensor of ``model`` to the parameter that transformers keeps it in.

    Tensors that the architecture is known to carry without using them are left out. None means that
    transformers converts the tensors of this architecture when it loads them, so that only a real load works.

    Raises:
        CandidateError: Tensors are missing, left over, or of the wrong shape.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.conversion_mapping import get_model_conversion_mapping

    config = hf_config(model)
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise CandidateError("engine", f"config.json: {error}") from error
    tied = frozenset(getattr(skeleton, "all_tied_weights_keys", None) or ())
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items() if name not in tied}
    unused = [re.compile(key) for key in skeleton._keys_to_ignore_on_load_unexpected or ()]
    try:
        return match(model.specs, wanted, f"{skeleton.base_model_prefix}.", unused)
    except CandidateError:
        if get_model_conversion_mapping(skeleton, add_legacy=False):
            return None
        raise


def match(
    specs: Mapping[str, TensorSpec],
    wanted: Mapping[str, tuple[int, ...]],
    prefix: str = "",
    unused: Iterable[re.Pattern[str]] = (),
) -> dict[str, str]:
    """Pair the tensors of ``specs`` with the parameters ``wanted``, whose names may begin with ``prefix``."""
    names: dict[str, str] = {}
    extra: list[str] = []
    for name in specs:
        if name in wanted:
            names[name] = name
        elif prefix + name in wanted:
            names[name] = prefix + name
        elif not any(pattern.search(name) for pattern in unused):
            extra.append(name)
    missing = sorted(wanted.keys() - names.values())
    bad = [
        f"{name} is {list(specs[name].shape)}, not {list(wanted[own])}"
        for name, own in names.items()
        if specs[name].shape != wanted[own]
    ]
    problems = [
        f"{title} {some(found)}"
        for title, found in (("missing:", missing), ("unknown:", extra), ("wrong shape:", bad))
        if found
    ]
    if problems:
        raise CandidateError("engine", f"the tensors do not fit config.json: {'; '.join(problems)}")
    return names
