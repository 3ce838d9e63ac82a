"""PyTorch twin of `numalign bench step`: one stage-`nn` training step on a randomly initialised GPT-2, timed.

Usage: python twin.py [--batch B] [--positions P] [--steps N] [--size small|medium|large|xl] [--original] [--threads N]

Values -> Linear(1, d) -> the same embedding at P positions -> GPT-2 -> hidden state of the last position -> Linear(d, 1)
-> mean squared error -> backward -> Adam on the two Linears. f32, eager, CPU, `transformers`' default attention, no dropout.
The language model is frozen (no weight gradients), and no LM head is computed.
--original: the job as the original project does it: LM head computed, autograd through weights that all ask for gradients.
Prints one JSON object: ms_per_step (median), samples_per_s, peak_rss_mib (of the whole process).
"""
import argparse
import json
import os
import resource
import statistics
import time

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
arguments = parser.parse_args()
if arguments.threads:
    torch.set_num_threads(arguments.threads)
torch.manual_seed(0)

width, layers, heads = SIZES[arguments.size]
config = GPT2Config(n_embd=width, n_layer=layers, n_head=heads)
if arguments.original:
    model = GPT2LMHeadModel(config).eval()
else:
    model = GPT2Model(config).eval().requires_grad_(False)
input_projection, output_projection = torch.nn.Linear(1, width), torch.nn.Linear(width, 1)
optimizer = torch.optim.Adam([*input_projection.parameters(), *output_projection.parameters()], lr=0.003)


def hidden_state(embeddings):
    if arguments.original:
        output = model(inputs_embeds=embeddings, output_hidden_states=True)
        return output.hidden_states[-1][:, -1]
    return model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, -1]


def step():
    # Standardised values, uniform as a stage's samples are.
    values = (torch.rand(arguments.batch, 1) - 0.5) * 12**0.5
    embeddings = input_projection(values)[:, None, :].expand(-1, arguments.positions, -1)
    prediction = output_projection(hidden_state(embeddings))
    loss = torch.nn.functional.mse_loss(prediction, values)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
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
print(json.dumps({"ms_per_step": round(1000 * seconds, 3), "samples_per_s": round(arguments.batch / seconds, 3), "peak_rss_mib": round(peak, 1)}))
