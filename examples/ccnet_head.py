"""A CCNet segmentation head on a photograph, before and after: the same weights, the same output, less memory and time.

    python examples/ccnet_head.py [--channels 512] [--sizes 97x97 128x256] [--dtype float32] [--repeats 3]

The head follows the paper (Huang et al. 2019): a 3x3 convolution, criss-cross attention applied twice, a classifier.
"Before" computes the attention as the usual PyTorch code does, with batched products of rows and of columns and all
energies stored. A few fixed filters of several widths stand for the backbone, so that no weights are downloaded; the
photograph comes with scikit-image.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler that counts memory writes about missing GPUs otherwise

import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import attnkernels
from attnkernels.layers import CrissCrossAttention


def stored_energies(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Criss-cross attention by batched products: the energies [N, H, W, H + W] and both halves of them are stored."""
    n, _, h, w = value.shape

    def columns(x: Tensor) -> Tensor:  # [N W, C, H]
        return x.permute(0, 3, 1, 2).reshape(n * w, -1, h)

    def rows(x: Tensor) -> Tensor:  # [N H, C, W]
        return x.permute(0, 2, 1, 3).reshape(n * h, -1, w)

    itself = torch.eye(h, dtype=torch.bool, device=value.device)
    of_column = torch.bmm(columns(query).transpose(1, 2), columns(key)).masked_fill(itself, -torch.inf)
    of_row = torch.bmm(rows(query).transpose(1, 2), rows(key))
    energies = torch.cat((of_column.view(n, w, h, h).transpose(1, 2), of_row.view(n, h, w, w)), 3)
    weights = energies.softmax(3)
    to_columns = weights[..., :h].transpose(1, 2).reshape(n * w, h, h)
    to_rows = weights[..., h:].reshape(n * h, w, w)
    out = torch.bmm(columns(value), to_columns.transpose(1, 2)).view(n, w, -1, h).permute(0, 2, 3, 1)
    return out + torch.bmm(rows(value), to_rows.transpose(1, 2)).view(n, h, -1, w).transpose(1, 2)


class StoredEnergies(CrissCrossAttention):
    """The same layer with the usual computation."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            x = self.gamma * stored_energies(self.query_conv(x), self.key_conv(x), self.value_conv(x)) + x
        return x


class Head(nn.Module):
    def __init__(self, channels: int, classes: int, attention: type[CrissCrossAttention]):
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.attention = attention(channels, recurrence=2)
        self.classify = nn.Conv2d(channels, classes, 1)
        nn.init.constant_(self.attention.gamma, 0.5)  # as after training; it starts at 0, where attention does nothing

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.attention(F.relu(self.reduce(x))))


def features(height: int, width: int, channels: int) -> Tensor:
    """[1, channels, height, width] of the photograph: differences of blurs at several scales, mixed at random."""
    image = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255 - 0.5
    blurs = [F.avg_pool2d(image, 2 * r + 1, 1, r, count_include_pad=False) for r in (0, 1, 2, 4, 8, 16)]
    bands = torch.cat([a - b for a, b in itertools.pairwise(blurs)] + blurs[-1:], 1)
    bands = F.interpolate(bands, (height, width), mode="bilinear", antialias=True)
    mixing = torch.randn(channels, bands.shape[1], 1, 1, generator=torch.Generator().manual_seed(0))
    return F.relu(F.conv2d(bands / bands.std((2, 3), keepdim=True), mixing))


def seconds(call, repeats: int) -> float:
    """The median time of a call: of the processor where one thread works, by the clock otherwise."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(repeats):
        start = now()
        call()
        times.append(now() - start)
    return statistics.median(times)


def peak_mib(call) -> float:
    """What the call allocates at most at one time, by the allocator's own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--sizes", nargs="+", default=["97x97", "128x256"], help="feature maps, height x width")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    torch.manual_seed(0)
    before = Head(options.channels, options.classes, StoredEnergies)
    after = Head(options.channels, options.classes, CrissCrossAttention)
    after.load_state_dict(before.state_dict(), strict=True)
    dtype = getattr(torch, options.dtype)
    for head in (before, after):
        head.to(dtype=dtype, memory_format=torch.channels_last).eval()
    small = [
        torch.empty(1, channels, 8, 8, dtype=dtype) for channels in (options.channels // 8,) * 2 + (options.channels,)
    ]
    print(f"criss_cross_attention runs on: {attnkernels.backend_of('criss_cross_attention', *small)}")
    print(f"{options.channels} channels, {options.dtype}, channels_last, {torch.get_num_threads()} thread(s)\n")
    columns = ("feature map", "part", "before", "after", "faster", "peak before", "peak after")
    print("{:<12} {:<22} {:>10} {:>10} {:>8} {:>12} {:>12}".format(*columns))
    for size in options.sizes:
        height, width = map(int, size.split("x"))
        x = features(height, width, options.channels).to(dtype).contiguous(memory_format=torch.channels_last)
        compare(size, x, before, after, options.repeats)


def compare(size: str, x: Tensor, before: Head, after: Head, repeats: int) -> None:
    """Prints the rows of one feature map."""
    with torch.no_grad():
        want, got = before(x), after(x)
        reduced, layer = F.relu(before.reduce(x)), before.attention
        query, key, value = layer.query_conv(reduced), layer.key_conv(reduced), layer.value_conv(reduced)
        grad_out = torch.ones_like(value)
    inputs = [part.clone().requires_grad_() for part in (query, key, value)]

    def inference(function, *arguments: Tensor) -> None:
        with torch.no_grad():
            function(*arguments)

    def training(function, *arguments: Tensor) -> None:
        torch.autograd.grad(function(*arguments), arguments, grad_out)

    functions = (stored_energies, attnkernels.criss_cross_attention)
    for name, run, pair, arguments, times in (
        ("attention, inference", inference, functions, (query, key, value), repeats),
        ("attention, training", training, functions, inputs, repeats),
        ("whole head, inference", inference, (before, after), (x,), 1),
    ):
        calls = [lambda run=run, one=one, arguments=arguments: run(one, *arguments) for one in pair]
        peaks = [peak_mib(call) for call in calls]  # the first calls, which are not timed
        old, new = (seconds(call, times) for call in calls)
        row = f"{old * 1e3:>7.0f} ms {new * 1e3:>7.0f} ms {old / new:>7.2f}x {peaks[0]:>8.0f} MiB {peaks[1]:>8.0f} MiB"
        print(f"{size:<12} {name:<22} {row}", flush=True)
    error = ((got - want).abs().max() / want.abs().max()).item()
    agreement = (got.argmax(1) == want.argmax(1)).double().mean().item()
    print(f"{size:<12} largest difference {error:.1e} of the largest logit; same class at {agreement:.2%} of pixels\n")


if __name__ == "__main__":
    main()
