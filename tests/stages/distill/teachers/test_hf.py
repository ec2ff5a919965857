"""A live teacher beside transformers itself, one document at a time in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evolve.errors import CandidateError
from evolve.registry import TEACHERS
from evolve.stages.distill.forward import forward, head_rule
from evolve.stages.distill.objective import distillation_loss
from evolve.stages.distill.signals import Signals, count_items
from evolve.stages.distill.teachers.base import Batch, Opening, batch_of, temperature_of
from evolve.stages.distill.terms import make_terms
from evolve.tensors.logits import Head, Logits
from tests.stages.distill.teachers.kit import alone, documents, opening, packed, reference
from tests.tiny import make_config, make_model

if TYPE_CHECKING:
    from pathlib import Path


def logits(signals: Signals) -> Any:
    scores = signals.scores
    assert isinstance(scores, Head | Logits)
    rows = torch.arange(scores.shape[0] * scores.shape[1])
    with torch.no_grad():
        return scores.finish(scores.raw(rows, scores.vocabulary)).view(*scores.shape, -1)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_packed_documents_are_as_alone(tmp_path: Path, arch: str) -> None:
    make_model(tmp_path / "m", arch)
    teacher = TEACHERS.load("hf")(
        TEACHERS.load("hf").block.model_validate({"kind": "hf", "model": "m"}), opening(tmp_path / "m")
    )
    found = documents(9, seed=3)
    rows = [packed(found[:5]), packed(found[5:8]), packed(found[8:])]
    batch = batch_of(rows, width=110)
    signals = teacher.signals(batch, hidden=True, attentions=True)
    assert isinstance(signals.scores, Head), "the full logits never exist"
    whole = logits(signals)
    network = reference(tmp_path / "m")
    spans = list(batch.spans())
    assert [end - begin for _, begin, end in spans] == [len(one) for one in found]
    for (row, begin, end), one in zip(spans, found, strict=True):
        truth = alone(network, one, output_hidden_states=True, output_attentions=True)
        torch.testing.assert_close(whole[row, begin:end].double(), truth.logits[0], atol=2e-5, rtol=1e-4)
        for layer, real in zip(signals.hidden, truth.hidden_states, strict=True):
            torch.testing.assert_close(layer[row, begin:end].double(), real[0], atol=2e-5, rtol=1e-4)
        for layer, real in zip(signals.attentions, truth.attentions, strict=True):
            torch.testing.assert_close(
                layer[row, :, begin:end, begin:end].double(), real[0], atol=2e-5, rtol=1e-4
            )
    maps = signals.attentions[0]
    assert maps.shape == (3, 2, 110, 110)
    assert float(maps[0].sum()) == pytest.approx(2 * sum(map(len, found[:5])), rel=1e-4), "none between them"
    assert not signals.scores.hidden.requires_grad
    teacher.close()
    teacher.close()


def test_what_is_behind_the_documents_changes_nothing(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    teacher = TEACHERS.load("hf")(
        TEACHERS.load("hf").block.model_validate({"kind": "hf", "model": "m"}), opening(tmp_path / "m")
    )
    batch = batch_of([packed(documents(2)), packed(documents(4, seed=1))], width=100)
    changed = batch.tokens.clone()
    for row, lengths in enumerate(batch.lengths):
        changed[row, sum(lengths) :] = 77
    one, two = (logits(teacher.signals(Batch(tokens, batch.lengths))) for tokens in (batch.tokens, changed))
    for row, begin, end in batch.spans():
        assert torch.equal(one[row, begin:end], two[row, begin:end])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 5.0, "head_dim": 32, "query_pre_attn_scalar": 32}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_capped_and_scaled_heads(kind: str, changes: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    small = make_config("llama", layers=1).to_dict()
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = CONFIG_MAPPING[kind](**{key: small[key] for key in keys}, num_key_value_heads=1, **changes)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    rule = head_rule(network)
    assert rule is not None
    assert (rule.scale, rule.softcap) != (1.0, None)
    [one] = documents(1, seed=5)
    with torch.no_grad():
        found = logits(forward(network, batch_of([packed([one])]), rule=rule))
    torch.testing.assert_close(found[0], alone(network, one).logits[0], atol=1e-4, rtol=1e-3)


def test_a_head_that_is_no_plain_matrix_gives_logits(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    network = reference(tmp_path / "m", torch.float32)

    class Doubled(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    network.lm_head.__class__ = Doubled
    assert head_rule(network) is None
    network.lm_head.__class__ = torch.nn.Linear
    network.lm_head.register_forward_hook(lambda _m, _i, output: output * 1.5)
    assert head_rule(network) is None, "the config does not say it, the logits do"
    [one] = documents(1, seed=5)
    with torch.no_grad():
        found = forward(network, batch_of([packed([one])]), rule=None)
    assert isinstance(found.scores, Logits)
    torch.testing.assert_close(logits(found)[0], alone(network, one).logits[0])


def test_gradients_flow_as_through_the_network_itself(tmp_path: Path) -> None:
    make_model(tmp_path / "m", tied=False)
    rows = [packed(documents(3, seed=8)), packed(documents(2, seed=9))]
    batch = batch_of(rows)
    labels = torch.full(batch.shape, -100)
    for number, row in enumerate(rows):
        labels[number, : len(row)] = torch.from_numpy(row.labels.astype("int64"))
    items = count_items(labels)
    terms = make_terms([{"function": "cross_entropy"}])

    ours = reference(tmp_path / "m", torch.float32)
    signals = forward(ours, batch, rule=head_rule(ours))
    loss = distillation_loss(terms, signals, None, labels, num_items=items)
    loss.total.backward()

    theirs = reference(tmp_path / "m", torch.float32)
    total = torch.zeros(())
    for row in rows:
        begin = 0
        for length in row.lengths:
            tokens = torch.from_numpy(row.tokens[begin : begin + length].astype("int64"))[None]
            if length > 1:
                out = theirs(tokens).logits[0, :-1]
                total = total + torch.nn.functional.cross_entropy(out, tokens[0, 1:], reduction="sum")
            begin += length
    (total / items).backward()
    assert loss.total.item() == pytest.approx((total / items).item(), rel=1e-5)
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None and two.grad is not None, name
        torch.testing.assert_close(one.grad, two.grad, atol=1e-6, rtol=1e-3, msg=name)


def test_a_model_that_nobody_gives(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    whole = opening(tmp_path / "m")
    factory = TEACHERS.load("hf")
    with pytest.raises(CandidateError, match="no model 'x'"):
        factory(factory.block.model_validate({"kind": "hf", "model": "x"}), Opening(None, whole.student))


def test_k_best_tokens_are_of_one_temperature() -> None:
    def of(*temperatures: float) -> float:
        entries = [{"function": "kl", "temperature": one} for one in temperatures]
        return temperature_of(make_terms([*entries, {"function": "cross_entropy"}, {"function": "hs_mse"}]))

    assert of() == of(1.0) == 1.0
    assert of(2.0, 2.0) == 2.0
    with pytest.raises(CandidateError, match="temperatures 1, 2"):
        of(2.0, 1.0)


def test_a_row_must_fit() -> None:
    with pytest.raises(ValueError, match="width 2"):
        batch_of([packed(documents(3))], width=2)
