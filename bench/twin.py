"""PyTorch twin of `numalign bench step`: one stage-`nn` training step on a randomly initialised GPT-2, timed.

Usage: python twin.py [--batch B] [--positions P] [--steps N] [--size small|medium|large|xl] [--original] [--threads N]
                      [--device cpu|cuda] [--dtype f32|bf16] [--tf32] [--compile]

Values -> Linear(1, d) -> the same embedding at P positions -> GPT-2 -> hidden state of the last position -> Linear(d, 1)
-> mean squared error -> backward -> Adam on the two Linears. f32, eager, CPU, `transformers`' default attention, no dropout,
unless the options say otherwise. The two Linears, the loss and Adam are f32 in any case, as numalign has them.
The language model is frozen (no weight gradients), and no LM head is computed.
--original: the job as the original project does it: LM head computed, autograd through weights that all ask for gradients.
--dtype bf16: the language model's weights and activations. --tf32: f32 products of the GPU in TF32. --compile: torch.compile.
Prints one JSON object: ms_per_step (median), samples_per_s, peak_rss_mib (of the whole process), peak_device_mib (cuda).
The options for cuda have not been run on hardware by those who wrote them.
"""
import argparse
import json
import os
import resource
import statistics
import time

import sys

if not any(argument.split("=")[-1].startswith("cuda") for argument in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

SIZES = {"small": (768, 12, 12), "medium": (1024, 24, 16), "large": (1280, 36, 20), "xl": (1600, 48, 25)}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--positions", type=int, default=1)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--size", choices=SIZES, default="small")
parser.add_argument("--original", action="store_true")
parser.add_argument("--threads", type=int)
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
parser.add_argument("--tf32", action="store_true")
parser.add_argument("--compile", action="store_true")
arguments = parser.parse_args()
if arguments.threads:
    torch.set_num_threads(arguments.threads)
torch.set_float32_matmul_precision("high" if arguments.tf32 else "highest")
torch.manual_seed(0)
device = torch.device(arguments.device)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]

width, layers, heads = SIZES[arguments.size]
config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads)
if arguments.original:
    model = GPT2LMHeadModel(config).eval()
else:
    model = GPT2Model(config).eval().requires_grad_(False)
model = model.to(device=device, dtype=dtype)
input_projection, output_projection = torch.nn.Linear(1, width).to(device), torch.nn.Linear(width, 1).to(device)
forward = torch.compile(model) if arguments.compile else model
optimizer = torch.optim.Adam([*input_projection.parameters(), *output_projection.parameters()], lr=0.003)


def hidden_state(embeddings):
    if arguments.original:
        output = forward(inputs_embeds=embeddings, output_hidden_states=True)
        return output.hidden_states[-1][:, -1]
    return forward(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, -1]


def step():
    # Standardised values, uniform as a stage's samples are.
    values = (torch.rand(arguments.batch, 1, device=device) - 0.5) * 12**0.5
    embeddings = input_projection(values)[:, None, :].expand(-1, arguments.positions, -1)
    prediction = output_projection(hidden_state(embeddings.to(dtype)).float())
    loss = torch.nn.functional.mse_loss(prediction, values)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    # Reading the loss waits for the device.
    return loss.item()


def timed():
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if timed() < 5:  # warm-up: one step is enough where a step is long
    for _ in range(3):
        timed()
seconds = statistics.median(timed() for _ in range(arguments.steps))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
report = {"ms_per_step": round(1000 * seconds, 3), "samples_per_s": round(arguments.batch / seconds, 3), "peak_rss_mib": round(peak, 1)}
if arguments.device == "cuda":
    report["peak_device_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
print(json.dumps(report))
