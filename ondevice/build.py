"""The whole compiler on one page: recipe -> checkpoint -> graph -> program -> bundle."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import llvmlite
import numpy

from ondevice import targets, tokenizer
from ondevice.bundle.format import (
    PROGRAM_FILE,
    Libraries,
    ModelInfo,
    ProgramInfo,
    PromptInfo,
    TokenizerInfo,
)
from ondevice.bundle.program import KV_DTYPES, KvCache, Program, step_bytes
from ondevice.bundle.program_text import print_program
from ondevice.bundle.write import BundleWriter
from ondevice.checkpoint.generation import end_tokens, first_token, read_sampling
from ondevice.checkpoint.hub import fetch
from ondevice.checkpoint.open import Checkpoint, architecture_of, open_checkpoint
from ondevice.checkpoint.weights import bind
from ondevice.codegen.cache import cached
from ondevice.codegen.compile import KernelJobs, LinkedModel, compile_kernels, link_model
from ondevice.codegen.link import NATIVE, compile_runtime, runtime_sources
from ondevice.debug import Dump
from ondevice.dtypes import DType, f16, f32, i8
from ondevice.errors import CheckpointError, RecipeError, nearest
from ondevice.graph.graph import Graph
from ondevice.graph.text import print_graph
from ondevice.graph.verify import verify
from ondevice.kernels import LIBRARY
from ondevice.kernels.packers import Packers
from ondevice.lang.text import print_kernel
from ondevice.models import Family, family_of, trace
from ondevice.models.family import ModelConfig
from ondevice.package import package_hash
from ondevice.passes import PASS_NAMES, PASSES, SCHEDULE
from ondevice.passes.context import Begin, Context, VariantKernels, ignore_kernel
from ondevice.passes.plan_memory import slots
from ondevice.passes.report import predicted_times, report_program
from ondevice.passes.schedule import Frame, schedule
from ondevice.passes.times import Times
from ondevice.progress import SILENT, Progress, Seconds
from ondevice.quant.activations import quantize_activations
from ondevice.quant.balance import Heads, balanced
from ondevice.quant.policy import WeightPlan, plan
from ondevice.quant.report import QuantReport
from ondevice.quant.scheme import is_integer
from ondevice.quant.stream import Tensor, stream
from ondevice.recipe import Recipe
from ondevice.targets import Target

PROMPT_FILE = "prompt/system.kv"
LOGIT_ROWS = 64  # most rows of logits that one step gives
STEP_TOKENS, STEP_BYTES = 512, 64 << 20  # most of a step where the recipe leaves it open


@dataclass(frozen=True)
class Parts:
    """A bundle that lacks its manifest, under `directory`."""

    directory: Path
    libraries: Libraries
    tokenizer: TokenizerInfo
    abi_hash: str
    identity: str


# Writes the saved conversation that ships, to the path, and returns how many tokens it has. Only
# who may also run a bundle can do that: the compiler takes it as a value.
WritePrompt = Callable[[Recipe, Parts, Path], int]


def build(
    recipe: Recipe,
    out: Path,
    dump: Dump | None = None,
    stop_after: str | None = None,
    report: QuantReport | None = None,
    progress: Progress = SILENT,
    write_prompt: WritePrompt | None = None,
) -> Path:
    """Compile the recipe's model into the bundle directory `out`; returns its absolute path.

    `dump` receives every stage as text. `stop_after` names the pass that ends the build early;
    then nothing is written and the dump's directory is returned. `report` is filled with what
    quantization made of each tensor, `progress` hears of every long step. A recipe with a system
    prompt needs `write_prompt` (`gate.prompt`). A build that was killed goes on with the weights
    that it left in OUT.partial. Raises OndeviceError.
    """
    _check_passes(recipe, dump, stop_after)
    target, seconds = targets.load(recipe.target), Seconds()
    report = QuantReport() if report is None else report
    with open_checkpoint(_locate(recipe.model, progress)) as checkpoint, KernelJobs(target) as jobs:
        family = family_of(checkpoint.architecture)
        config = family.parse_config(checkpoint.config)
        bound = bind(family.weights(config), checkpoint.tensors)
        begin = ignore_kernel if stop_after else jobs.start
        with _uncollected():
            planned = rewrite(family, config, recipe, target, dump, stop_after, begin)
            compiled = None if planned is None else _schedule(planned, recipe, report, dump)
        if compiled is None or stop_after == SCHEDULE:
            assert dump is not None  # checked above
            return dump.directory
        seconds.end("plan")
        code = _compile(compiled, jobs, dump, progress)
        with BundleWriter(out) as writer:
            names = _write_code(writer, compiled.program, code, target)
            words = _write_tokenizer(writer, checkpoint, config.vocab_size)
            seconds.end("code")
            inputs = _weights_inputs(recipe, checkpoint, compiled.program)
            sources = _sources(bound, config, compiled.program.kv)
            _write_weights(writer, compiled.program, sources, inputs, report, dump, progress)
            seconds.end("weights")
            parts = Parts(writer.partial, names, words, compiled.program.abi_hash, writer.identity)
            place = writer.finish(
                name=recipe.name,
                target=target.name,
                variants=[variant.name for variant in target.cpu.variants],
                abi_hash=compiled.program.abi_hash,
                model=_model_info(checkpoint, config, compiled.program),
                program=_program_info(compiled.program),
                tokenizer=words,
                sampling=read_sampling(checkpoint),
                prompt=_write_prompt(writer, recipe, parts, write_prompt),
                libraries=names,
                tensors=compiled.program.weights,
            )
            seconds.end("rest")
    report.add_section("seconds", lambda: seconds.phases, seconds.summary())
    return place


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage: graphs and kernels are trees, and to go through them again and again
    takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _predicted(planned: Planned, compiled: Compiled) -> dict[str, Any]:
    cpu = planned.context.target.cpu
    times = Times(planned.graph, compiled.program, compiled.kernels, cpu)
    return predicted_times(times, compiled.program)


def _locate(model: str, progress: Progress) -> Path:
    """The checkpoint's directory; from the hub it is fetched, if a family knows its config.json."""
    if Path(model).is_dir():
        return Path(model)

    def accept(config: Mapping[str, Any]) -> None:
        family_of(architecture_of(Path("config.json"), config)).parse_config(config)

    return fetch(model, progress, accept)


@dataclass(frozen=True)
class Compiled:
    """A program and the kernels it names, in its order."""

    program: Program
    kernels: tuple[VariantKernels, ...]


@dataclass(frozen=True)
class Planned:
    """A model's graphs, what its program says besides, and the plan of its weights."""

    stages: Mapping[str, Graph]  # as traced, then behind each pass
    frame: Frame
    weights: WeightPlan
    context: Context

    @property
    def graph(self) -> Graph:
        """The graph behind the last pass."""
        return list(self.stages.values())[-1]


def rewrite(
    family: Family[Any],
    config: ModelConfig,
    recipe: Recipe,
    target: Target,
    dump: Dump | None = None,
    stop_after: str | None = None,
    begin: Begin = ignore_kernel,
) -> Planned | None:
    """Trace the model and run the passes, each verified and dumped; None where one ended it.

    `begin` hears of each kernel that the program will need.
    """
    context = Context(target, LIBRARY, begin)
    weights = plan(family.weights(config).shapes(), recipe.quant)
    frame = _frame(recipe, config, weights)
    graph = verify(_trace(family, config, frame, weights, recipe))
    stages = {"trace": graph}
    if dump:
        dump.stage("trace", "graph", print_graph(graph))
    for row in PASSES:
        change = row.trivial if row.name in recipe.passes.disable else row.rewrite
        graph = verify(change(graph, context))
        stages[row.name] = graph
        if dump:
            dump.stage(row.name, "graph", print_graph(graph))
        if stop_after == row.name:
            return None
    if recipe.prefill_chunk_tokens == 0:
        frame = replace(frame, prefill_chunk_tokens=_largest_step(graph, frame))
    return Planned(stages, frame, weights, context)


def _largest_step(graph: Graph, frame: Frame) -> int:
    """Tokens of a step whose activations stay small: more make no model faster, but use memory."""
    tokens = STEP_TOKENS
    while (
        tokens > LOGIT_ROWS
        and step_bytes(slots(graph), tokens, frame.logit_rows, frame.vocab_size) > STEP_BYTES
    ):
        tokens //= 2
    return min(tokens, frame.context_tokens)


def _trace(
    family: Family[Any], config: ModelConfig, frame: Frame, weights: WeightPlan, recipe: Recipe
) -> Graph:
    graph = trace(
        family,
        config,
        weight_types=weights.types,
        context_tokens=frame.context_tokens,
        kv_dtype=frame.kv.dtype,
    )
    return quantize_activations(graph) if recipe.quant.activations == "int8" else graph


def _schedule(planned: Planned, recipe: Recipe, report: QuantReport, dump: Dump | None) -> Compiled:
    everywhere = SCHEDULE in recipe.passes.disable
    program, kernels = schedule(
        planned.graph, planned.context, planned.frame, barriers_everywhere=everywhere
    )
    moved = report_program(planned.stages, program, planned.context)
    report.add_section("program", moved.figures, moved.summary())
    compiled = Compiled(program, kernels)
    report.add_section("predicted", partial(_predicted, planned, compiled))
    if dump:
        dump.stage("program", "txt", print_program(program))
        for variants, row in zip(kernels, program.kernels, strict=True):
            texts = dict.fromkeys(map(print_kernel, variants))
            dump.file(f"kernels/{row.symbol}.kir", "\n".join(texts))
    return compiled


def _frame(recipe: Recipe, config: ModelConfig, weights: WeightPlan) -> Frame:
    dtype = _kv_dtype(recipe, weights, config.head_dim)
    kv = KvCache(config.layers, config.kv_heads, config.head_dim, dtype)
    context_tokens = recipe.context_for(config.context_tokens)
    return Frame(
        name=recipe.name,
        vocab_size=config.vocab_size,
        context_tokens=context_tokens,
        prefill_chunk_tokens=min(recipe.prefill_chunk_tokens or STEP_TOKENS, context_tokens),
        logit_rows=LOGIT_ROWS,
        kv=kv,
        ropes=(config.rope,),
        weights=weights.entries,
        weights_bytes=weights.size_bytes,
    )


def _kv_dtype(recipe: Recipe, weights: WeightPlan, head_dim: int) -> DType:
    if recipe.kv.dtype != "auto":
        return KV_DTYPES[recipe.kv.dtype]
    if all(entry.scheme in ("", "f32") for entry in weights.entries):
        return f32
    multiplied = any(is_integer(entry.scheme) for entry in weights.entries)
    coded = multiplied and recipe.quant.activations == "int8" and head_dim % 4 == 0
    return i8 if coded else f16


@dataclass(frozen=True)
class Code:
    """What a target runs, as files."""

    runtime: bytes
    model: LinkedModel


def _compile(compiled: Compiled, jobs: KernelJobs, dump: Dump | None, progress: Progress) -> Code:
    program, kernels, target = compiled.program, compiled.kernels, jobs.target
    with progress.step("kernels", len(target.cpu.variants), "variants") as advance:
        variants = compile_kernels(program, kernels, jobs, dump, advance)
    with progress.step("runtime", len(runtime_sources()), "files") as advance:
        runtime = compile_runtime(target, advance)
    return Code(runtime, link_model(program, variants, target))


def _write_code(writer: BundleWriter, program: Program, code: Code, target: Target) -> Libraries:
    libraries = Libraries(
        runtime=f"lib/{target.runtime_library}",
        model=f"lib/{target.model_library_name(program.abi_hash)}",
    )
    writer.add(libraries.runtime, code.runtime)
    writer.add(libraries.model, code.model.library)
    writer.add(f"bin/{target.runner}", code.model.runner, executable=True)
    writer.add("include/ondevice.h", (NATIVE / "ondevice.h").read_bytes())
    writer.add(PROGRAM_FILE, print_program(program).encode())
    return libraries


def _write_weights(
    writer: BundleWriter,
    program: Program,
    sources: Mapping[str, Tensor],
    inputs: str,
    report: QuantReport,
    dump: Dump | None,
    progress: Progress,
) -> None:
    """Stream the weights, from where a killed build of the same inputs came to."""
    size_bytes = program.weights_bytes
    with (
        writer.weights(program.abi_hash, size_bytes, inputs) as file,
        progress.step("weights", size_bytes, "bytes", file.offset) as advance,
    ):
        report.resume(file.notes, file.note)
        pieces = stream(program.weights, sources, Packers(), report, file.offset)
        with closing(pieces):
            for piece in pieces:
                file.write(piece)
                advance(len(piece))
    if dump:
        dump.file("quant.tsv", report.tsv())


def _weights_inputs(recipe: Recipe, checkpoint: Checkpoint, program: Program) -> str:
    """A hash of all that determines the weights: what is packed, how, and by which code."""
    tools = numpy.__version__, llvmlite.__version__, package_hash()
    parts = repr(recipe.quant), checkpoint.source_hash(), program.abi_hash, *tools
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _sources(
    tensors: Mapping[str, Tensor], config: ModelConfig, kv: KvCache
) -> Mapping[str, Tensor]:
    """The checkpoint's tensors as they are packed: a cache of int8 wants even keys."""
    if kv.dtype != i8:
        return tensors
    return balanced(tensors, Heads(config.layers, config.heads, config.kv_heads, config.head_dim))


def _write_tokenizer(
    writer: BundleWriter, checkpoint: Checkpoint, vocab_size: int
) -> TokenizerInfo:
    """Compile tokenizer and chat template, and say which tokens begin and end a text."""
    if not checkpoint.tokenizer.is_file():
        raise CheckpointError(f"{checkpoint.path} has no tokenizer.json; save the tokenizer there")
    sources = checkpoint.tokenizer, checkpoint.tokenizer_config
    compiled = tokenizer.unpack(
        cached(
            tokenizer.dependencies(*sources, vocab_size),
            lambda: tokenizer.compile_tokenizer(*sources, vocab_size=vocab_size).pack(),
        )
    )
    file, template = "tokenizer/tokenizer.bin", "tokenizer/template.bin"
    writer.add(file, compiled.data)
    if compiled.template is not None:
        writer.add(template, compiled.template)
    return TokenizerInfo(
        file=file,
        chat_template=None if compiled.template is None else template,
        bos_token_id=first_token(checkpoint),
        eos_token_ids=tuple(dict.fromkeys((*end_tokens(checkpoint), *compiled.turn_ends))),
        notes=compiled.notes,
    )


def _write_prompt(
    writer: BundleWriter, recipe: Recipe, parts: Parts, write: WritePrompt | None
) -> PromptInfo:
    """Let `write` compute what ships of the system prompt."""
    system, tokens = recipe.prompt.system, 0
    if not system:
        return PromptInfo()
    if write is None:
        raise RecipeError("prompt.system is set, but this build was given nothing to compute it")

    def written(place: Path) -> None:
        nonlocal tokens
        tokens = write(recipe, parts, place)

    writer.add_written(PROMPT_FILE, written)
    return PromptInfo(system, PROMPT_FILE, tokens)


def _program_info(program: Program) -> ProgramInfo:
    return ProgramInfo(
        kernels=tuple(kernel.symbol for kernel in program.kernels),
        launches=len(program.launches),
        step_bytes=program.step_bytes,
        kv_block_bytes=program.kv.block_bytes,
    )


def _model_info(checkpoint: Checkpoint, config: ModelConfig, program: Program) -> ModelInfo:
    return ModelInfo(
        architecture=checkpoint.architecture,
        vocab_size=config.vocab_size,
        context_tokens=program.context_tokens,
        prefill_chunk_tokens=program.prefill_chunk_tokens,
        hidden_size=config.hidden_size,
        layers=config.layers,
        kv_dtype=next(n for n, dtype in KV_DTYPES.items() if dtype == program.kv.dtype),
    )


def _check_passes(recipe: Recipe, dump: Dump | None, stop_after: str | None) -> None:
    for name in (*recipe.passes.disable, *([stop_after] if stop_after else ())):
        if name not in PASS_NAMES:
            raise RecipeError(f"unknown pass {name!r}{nearest(name, PASS_NAMES)}")
    if stop_after and dump is None:
        raise RecipeError(f"stopping after {stop_after!r} shows nothing without a dump directory")
