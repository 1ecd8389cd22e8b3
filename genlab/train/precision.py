"""`trainer.precision=auto`: bfloat16 where this machine trains faster with it, float32 elsewhere.

The name of an instruction set does not decide it. On CPUs with AMX, training in bf16 is several times as fast as in
float32. With avx512_bf16 it is nearly twice as fast on AMD's processors and slower on Intel's. Without either it is
half as fast. So the convolution that most of a step's time goes into is timed in both precisions, forward and backward
under autocast, as in training. This takes about a tenth of a second. GPUs of compute capability 8 or more have units
for bf16 and are not timed.

The outcome is written into the run's config.yaml. So all ranks use the same precision, and a resumed run keeps it.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from omegaconf import DictConfig
from torch import nn

WIDTH, SIDE, BATCH, ROUNDS = 64, 32, 2, 4  # the convolution: 64 -> 128 channels, 3x3, on images of 32 x 32
GAIN = 1.1  # bf16 must be this many times as fast, because it rounds


def settle(config: DictConfig, accelerator: str) -> str:
    """Replace `trainer.precision=auto` in the config of a run by the faster precision.

    Returns a line that says why; "" if the config names a precision.
    """
    if config.trainer.precision != "auto":
        return ""
    config.trainer.precision, reason = faster(accelerator)
    return f"trainer.precision=auto: {config.trainer.precision}, because {reason}"


def faster(accelerator: str) -> tuple[str, str]:
    """The precision to train in, `bf16-mixed` or `32`, and the reason in a few words."""
    if accelerator == "gpu":
        major, minor = torch.cuda.get_device_capability()
        return ("bf16-mixed" if major >= 8 else "32"), f"the GPU has compute capability {major}.{minor}"
    gain = bf16_gain(torch.get_num_threads())
    return ("bf16-mixed" if gain >= GAIN else "32"), f"bf16 is {gain:.2f} times as fast as float32 here"


@cache
def bf16_gain(threads: int) -> float:
    """How many times as fast as float32 a convolution is in bf16 on this CPU, measured with this number of threads.

    Both precisions are timed in turn and the fastest round of each counts, so that other work on the machine disturbs
    the comparison little. Random numbers are not drawn.
    """
    conv = nn.utils.skip_init(nn.Conv2d, WIDTH, 2 * WIDTH, 3, padding=1).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.fill_(0.01)
    x = torch.linspace(-1, 1, BATCH * WIDTH * SIDE * SIDE).view(BATCH, WIDTH, SIDE, SIDE)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with torch.enable_grad():
        for _ in range(1 + ROUNDS):
            for bf16, times in seconds.items():
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    y = conv(x)
                torch.autograd.grad(y, [x, *conv.parameters()], torch.ones_like(y))
                times.append(time.perf_counter() - start)
    # The first round prepares the kernels.
    return min(seconds[False][1:]) / min(seconds[True][1:])
