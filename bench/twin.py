"""PyTorch twin of `numalign bench step`: one stage-`nn` training step on a randomly initialised GPT-2, timed.

Usage: python twin.py [--batch B] [--positions P] [--steps N] [--size small|medium|large|xl] [--original] [--threads N]
                      [--device cpu|cuda] [--dtype f32|bf16] [--tf32] [--compile]

Values -> Linear(1, d) -> the same embedding at P positions -> GPT-2 -> hidden state of the last position -> Linear(d, 1)
-> mean squared error -> backward -> Adam on the two Linears. f32, eager, CPU, `transformers`' default attention, no dropout,
unless the options say otherwise. The two Linears, the loss and Adam are f32 in any case, as numalign has them.
The language model is frozen (no weight gradients), and no LM head is computed.
--original: the job as the original project does it: LM head computed, autograd through weights that all ask for gradients.
--dtype bf16: the language model's weights and activations. --tf32: f32 products of the GPU in TF32. --compile: torch.compile.
`gpu_table.py` takes class Twin from here.
Prints one JSON object: ms_per_step (median), samples_per_s, peak_rss_mib (of the whole process), peak_device_mib (cuda).
"""
import argparse
import json
import os
import resource
import statistics
import time

import sys

if __name__ == "__main__" and not any(argument.split("=")[-1].startswith("cuda") for argument in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

SIZES = {"small": (768, 12, 12), "medium": (1024, 24, 16), "large": (1280, 36, 20), "xl": (1600, 48, 25)}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Twin:
    """A randomly initialised GPT-2 with two Linears around it, and their optimizer."""

    def __init__(self, size, device="cpu", dtype="f32", original=False):
        torch.manual_seed(0)
        self.device, self.dtype, self.original = torch.device(device), DTYPES[dtype], original
        width, layers, heads = SIZES[size]
        config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads)
        if original:
            model = GPT2LMHeadModel(config).eval()
        else:
            model = GPT2Model(config).eval().requires_grad_(False)
        self.model = self.forward = model.to(device=self.device, dtype=self.dtype)
        self.input_projection = torch.nn.Linear(1, width).to(self.device)
        self.output_projection = torch.nn.Linear(width, 1).to(self.device)
        self.optimizer = torch.optim.Adam([*self.input_projection.parameters(), *self.output_projection.parameters()], lr=0.003)

    def compile(self):
        self.forward = torch.compile(self.model)

    def hidden_state(self, embeddings):
        if self.original:
            output = self.forward(inputs_embeds=embeddings, output_hidden_states=True)
            return output.hidden_states[-1][:, -1]
        return self.forward(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, -1]

    def step(self, batch, positions):
        # Standardised values, uniform as a stage's samples are.
        values = (torch.rand(batch, 1, device=self.device) - 0.5) * 12**0.5
        embeddings = self.input_projection(values)[:, None, :].expand(-1, positions, -1)
        prediction = self.output_projection(self.hidden_state(embeddings.to(self.dtype)).float())
        loss = torch.nn.functional.mse_loss(prediction, values)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        # Reading the loss waits for the device.
        return loss.item()

    def timed(self, batch, positions):
        start = time.perf_counter()
        self.step(batch, positions)
        return time.perf_counter() - start

    def median(self, batch, positions, steps):
        """Median seconds of a step, after a warm-up; one step is enough where a step is long."""
        if self.timed(batch, positions) < 5:
            for _ in range(3):
                self.timed(batch, positions)
        return statistics.median(self.timed(batch, positions) for _ in range(steps))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--positions", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--original", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high" if arguments.tf32 else "highest")
    twin = Twin(arguments.size, arguments.device, arguments.dtype, arguments.original)
    if arguments.compile:
        twin.compile()
    seconds = twin.median(arguments.batch, arguments.positions, arguments.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = {"ms_per_step": round(1000 * seconds, 3), "samples_per_s": round(arguments.batch / seconds, 3), "peak_rss_mib": round(peak, 1)}
    if arguments.device == "cuda":
        report["peak_device_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
