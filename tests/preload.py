"""Imported once by the fork server, so that each start of a small search costs a fraction of a second."""

import accelerate  # noqa: F401
import datasets  # noqa: F401
import lm_eval.evaluator
import lm_eval.models.huggingface
import lm_eval.tasks  # noqa: F401
import optuna  # noqa: F401
import torch
import transformers  # noqa: F401
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

import evolve.run
import evolve.score.engines.hf
import evolve.score.scorer
import evolve.search.study_searcher
import evolve.validation  # noqa: F401

torch.set_num_threads(1)
