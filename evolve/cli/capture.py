"""``evolve capture``: what a teacher says of a text, kept for any number of students."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from evolve.cli.options import FILE, FOLDER
from evolve.cli.paths import shown
from evolve.errors import CandidateError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evolve.stages.distill.capture import Progress
    from evolve.stages.distill.captured import CaptureKey
    from evolve.stages.distill.teachers.base import Opening, Teacher


@click.command()
@click.argument("model")
@click.argument("out", type=FOLDER)
@click.option("--data", required=True, type=FILE, help="Text: .jsonl with a `text` a line, or paragraphs.")
@click.option("--top-k", default=64, show_default=True, type=click.IntRange(1), help="Tokens at every place.")
@click.option(
    "--max-length",
    default=512,
    show_default=True,
    type=click.IntRange(2),
    help="Tokens of a document; longer ones are cut into parts. As in the training that reads it.",
)
@click.option("--max-tokens", type=click.IntRange(1), help="Where to stop; absent: the whole text.")
@click.option(
    "--temperature",
    "temperatures",
    multiple=True,
    type=click.FloatRange(0, min_open=True),
    help="Of a loss that will read it, beside 1; may be given again. Only with --backend hf.",
)
@click.option(
    "--backend", default="hf", show_default=True, type=click.Choice(["hf", "vllm"]), help="Who answers."
)
def capture(
    model: str,
    out: Path,
    data: Path,
    top_k: int,
    max_length: int,
    max_tokens: int | None,
    temperatures: tuple[float, ...],
    backend: str,
) -> None:
    """Write the best tokens of MODEL at every place of a text into the folder OUT.

    MODEL is a folder or a hub id. A stage `distill` reads the result with
    `teacher: {kind: dataset, path: OUT/capture.json}`. The same command goes on after any stop, also a kill.
    """
    from evolve.stages.distill.capture import capture as run
    from evolve.stages.distill.capture_text import end_token, text_documents
    from evolve.stages.distill.captured import Captured, CaptureKey, tokenizer_key
    from evolve.stages.distill.teachers.base import Opening
    from evolve.weights.content import content_of, file_content
    from evolve.weights.hub import resolve
    from evolve.weights.reader import open_model
    from evolve.weights.tokenizer import load_tokenizer

    if backend == "vllm" and set(temperatures) - {1.0}:
        raise UserError("--temperature: vLLM answers at temperature 1 alone; use --backend hf")
    place = resolve("teacher", model).path
    opened = open_model(place)
    tokenizer = load_tokenizer(opened.files, opened.config)
    key = CaptureKey(
        teacher=content_of(place),
        tokenizer=tokenizer_key(tokenizer),
        data=file_content(data),
        top_k=min(top_k, tokenizer.size),
        temperatures=(1.0, *sorted(set(temperatures) - {1.0})),
        max_length=max_length,
        max_tokens=max_tokens,
        vocabulary=tokenizer.size,
        source=backend,
    )
    where = Opening(opened, tokenizer, device=_device(), threads=os.cpu_count() or 1, max_length=max_length)
    documents = text_documents(data, tokenizer, end_token(opened, tokenizer), max_length, max_tokens)
    try:
        manifest = run(_opener(backend, key, where), documents, out, key, progress=_line)
    except CandidateError as error:
        raise UserError(str(error)) from error
    summary = Captured(manifest).summary
    click.echo(
        f"{shown(manifest.absolute())}: {summary['documents']:,} documents, {summary['tokens']:,} tokens, "
        f"{summary['bytes_per_token']:g} bytes a token (all logits in 16 bits: {2 * tokenizer.size:,}); the "
        f"{key.top_k} best have {summary['mass']['mean']:.4f} of the probability, and at least "
        f"{summary['mass']['lowest_5_percent']:.4f} at 95 % of the places"
    )


def _opener(backend: str, key: CaptureKey, where: Opening) -> Callable[[], Teacher]:
    from evolve.registry import TEACHERS

    def opened() -> Teacher:
        factory = TEACHERS.load(backend)
        block = {"kind": backend, "model": "teacher"}
        more = {"top_k": key.top_k} if backend == "vllm" else {}
        return factory(factory.block.model_validate({**block, **more}), where)

    return opened


def _line(progress: Progress) -> None:
    click.echo(
        f"{progress.documents:,} documents, {progress.tokens:,} tokens, "
        f"{progress.tokens_per_second:,.0f} tokens/s, captured mass {progress.mass:.4f}",
        err=True,
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
