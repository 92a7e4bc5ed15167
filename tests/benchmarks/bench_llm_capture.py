"""Per-sample gradients of a language model by hooks, against training and against bergson.

    python -m tests.benchmarks.bench_llm_capture
    BERGSON_PYTHON=/path/to/python python -m tests.benchmarks.bench_llm_capture

A Llama of 4 layers, width 256, random weights, 128 tokens a sample, 8 samples a batch, one torch
thread. "frozen": all 28 linear weights projected to 16 x 16 by their factors, over a forward and
backward pass that trains all weights; aim at most 0.85, and no slower than bergson 2.5.1 on the
same blocks, which BERGSON_PYTHON's environment has. "lora": rank 4 on query and value and the head,
unprojected, over a LoRA training pass; aim at most 1.1. Rounds take all kinds of work in turn, each
in a process of its own kept waiting; medians and the least, of processor time and of wall time.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

ROUNDS = 9
BATCH, TOKENS, VOCABULARY, RANK = 8, 128, 1000, 16
SIZE = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
OWN = ("training", "frozen", "frozen + embedding", "lora training", "lora", "lora + embedding")
Work = Callable[[], object]


def llama(kind: str) -> Any:
    """A Llama of random weights: "CausalLM" or "SequenceClassification"."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZE)
    return getattr(transformers, f"LlamaFor{kind}")(config)


def tokens() -> Any:
    """[batch, tokens], without padding."""
    import torch

    return torch.randint(1, VOCABULARY, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))


def language_loss(model: Any, batch: Any) -> Any:
    """[batch]: cross-entropy summed over the next tokens."""
    import torch

    logits = model(input_ids=batch).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.mT, batch[:, 1:], reduction="none")
    return losses.sum(1)


def class_loss(model: Any, batch: Any) -> Any:
    """[batch]: cross-entropy of class 0."""
    import torch

    logits = model(input_ids=batch).logits
    labels = torch.zeros(len(batch), dtype=torch.int64)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def training(model: Any, loss: Callable[[Any, Any], Any]) -> Work:
    """One forward and backward pass in training mode."""
    batch = tokens()

    def work() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        loss(model, batch).mean().backward()

    return work


def captured(model: Any, loss: Any, blocks: str, embeddings: bool, rank: int | None) -> Work:
    """One pass of distinf's hooks."""
    from distinf.numerics.hooks import block_gradients
    from distinf.numerics.parameters import Layout
    from distinf.numerics.projection import TwoSided

    layout, batch = Layout.of(model, blocks, embeddings=embeddings), tokens()
    project = TwoSided(seed=0, rank=rank) if rank else None
    return lambda: block_gradients(model, loss, batch, layout, project=project)


def with_adapters() -> Any:
    """LoRA of rank 4 on query and value, without dropout."""
    import peft

    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"]
    )
    return peft.get_peft_model(llama("SequenceClassification"), config)


def bergsons() -> Work:
    """bergson's own loop over one batch, weights frozen as its build does."""
    import tempfile

    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    model = llama("CausalLM").requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    rows = tokens().tolist()
    data = Dataset.from_dict({"input_ids": rows, "length": [TOKENS] * BATCH})
    config = IndexConfig(
        run_path=tempfile.mkdtemp(), projection_dim=RANK, token_batch_size=BATCH * TOKENS,
        loss_reduction="sum",
    )  # fmt: skip
    config.partial_run_path.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        processor = GradientProcessor(projection_dim=RANK)
        collector = InMemoryCollector(
            model=model.base_model, data=data, cfg=config, processor=processor
        )
        computer = CollectorComputer(
            model, data, collector=collector, batches=[[*range(BATCH)]], cfg=config
        )
        computer.run_with_collector_hooks()
        assert len(collector.gradients) == 28

    return work


def prepare(work: str) -> Work:
    """One call of the named work."""
    if work == "bergson":
        return bergsons()
    if work == "training":
        return training(llama("CausalLM"), language_loss)
    if work.startswith("frozen"):
        blocks, embeddings = r"layers.*proj\.weight", work.endswith("embedding")
        return captured(llama("CausalLM"), language_loss, blocks, embeddings, RANK)
    if work == "lora training":
        return training(with_adapters(), class_loss)
    return captured(with_adapters(), class_loss, "all", work.endswith("embedding"), None)


def serve(work: str) -> None:
    """For every line read: one call, its seconds of processor and wall time on a line."""
    import torch

    torch.set_num_threads(1)
    call = prepare(work)
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        processor, wall = process_time(), perf_counter()
        call()
        print(json.dumps([process_time() - processor, perf_counter() - wall]), flush=True)


def started(work: str) -> subprocess.Popen[str]:
    """A process that waits to be asked for the work; freed memory stays with each alike."""
    python = os.environ["BERGSON_PYTHON"] if work == "bergson" else sys.executable
    kept = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [python, "-m", "tests.benchmarks.bench_llm_capture", "--serve", work],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | kept, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    answer(process)
    return process


def answer(process: subprocess.Popen[str]) -> Any:
    """The next line that is an answer, past what libraries print."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready"):
            return None
        if line.startswith("["):
            return json.loads(line)
    raise RuntimeError(f"{process.args!r} ended with {process.wait()}")


def measure(names: list[str]) -> dict[str, list[tuple[float, float]]]:
    """(processor, wall) seconds of every round by kind of work."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    processes = {name: started(name) for name in names}
    for _ in range(ROUNDS):
        for name, process in processes.items():
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            found[name].append(tuple(answer(process)))
    for process in processes.values():
        process.communicate()
    return found


def main() -> None:
    """A line per kind of work: seconds, and ratios to the training pass of its kind."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
        return
    names = [*OWN, "bergson"] if "BERGSON_PYTHON" in os.environ else [*OWN]
    found = measure(names)
    print(f"{'work':<20}{'seconds':>9}{'median':>9}{'least':>9}{'median, wall':>14}")
    for name, times in found.items():
        base = found["lora training" if name.startswith("lora") else "training"]
        ratios = [[t[clock] / b[clock] for t, b in zip(times, base)] for clock in (0, 1)]
        least = min(t[0] for t in times) / min(b[0] for b in base)
        seconds = median(t[0] for t in times)
        print(
            f"{name:<20}{seconds:9.3f}{median(ratios[0]):9.3f}{least:9.3f}{median(ratios[1]):14.3f}"
        )


if __name__ == "__main__":
    main()
