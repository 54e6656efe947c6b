"""The memory of a training step without memory, compared with real steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segkit import Labels
from segkit.losses import build_loss
from segkit.losses.deep_supervision import DeepSupervision
from segkit.models import MODELS
from segkit.training.optimizers import build_optimizer, freeze
from segkit.training.step_memory import Layout, multiply_adds, step_memory

LABELS = Labels(["background", "a", "b"])
STEPS = {  # network, options, shape of a batch
    "unet": ("unet", {"widths": [16, 32, 64]}, [2, 1, 64, 64]),
    "volumes": ("unet", {"widths": [16, 32], "norm": "instance", "residual": True}, [2, 2, 32, 16, 16]),
    "gates": ("unet", {"widths": [16, 32, 64], "attention": True, "deep_supervision": True}, [2, 1, 96, 96]),
    "groups": ("unet", {"widths": [8, 16, 32], "norm": "group"}, [2, 1, 96, 96]),
    "residual": (
        "residual_encoder_unet",
        {"widths": [8, 16, 32], "deep_supervision": True, "stochastic_depth": 0.2},
        [2, 1, 32, 32, 16],
    ),
}


def build_step(name, options, shape, layout):
    """A training step as a function, and the network."""
    torch.manual_seed(0)
    network = MODELS[name](in_channels=shape[1], out_channels=3, dims=len(shape) - 2, **options).train()
    image, mask = torch.randn(shape), torch.zeros(shape[0], *shape[2:], dtype=torch.uint8)
    if layout.channels_last:
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        network, image = network.to(memory_format=last), image.to(memory_format=last)
    loss, optimizer = DeepSupervision(build_loss("dice_ce", LABELS)), build_optimizer("adamw", network, {})

    def step():
        optimizer.zero_grad()
        for _ in range(layout.micro_batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=layout.precision == "bf16"):
                logits = network(image)
            value = loss(logits, mask)
            del logits
            value.backward()
        optimizer.step()

    return step, network, [image, mask]


def predicted(name, options, shape, layout=Layout(), frozen=()):  # noqa: B008
    with torch.device("meta"):
        network = MODELS[name](in_channels=shape[1], out_channels=3, dims=len(shape) - 2, **options)
    freeze(network, frozen)
    loss = DeepSupervision(build_loss("dice_ce", LABELS))
    mask = ((shape[0], *shape[2:]), torch.uint8)
    return step_memory(network, shape, mask, loss, lambda model: build_optimizer("adamw", model, {}), layout)


def allocated(step):
    """The largest sum of what the allocator of torch hands out during a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        *((case, Layout()) for case in STEPS),
        ("unet", Layout(precision="bf16")),
        ("volumes", Layout(channels_last=True)),
        ("residual", Layout(micro_batches=3)),
    ],
)
def test_the_peak_is_that_of_the_allocator(case, layout):
    step, network, batch = build_step(*STEPS[case], layout)
    step()
    weights = [*network.parameters(), *network.buffers()]
    moments = 2 * sum(parameter.nbytes for parameter in network.parameters())
    network.zero_grad()
    real = allocated(step) + moments + sum(tensor.nbytes for tensor in [*weights, *batch])
    memory = predicted(*STEPS[case], layout)
    assert memory.peak == pytest.approx(real, rel=0.1)
    assert memory.weights == sum(tensor.nbytes for tensor in weights)
    assert memory.moments == pytest.approx(moments, rel=0.01)  # and the counters of steps


def test_frozen_parameters_need_no_gradients_and_moments():
    whole, frozen = predicted(*STEPS["unet"]), predicted(*STEPS["unet"], frozen=["encoder.*"])
    assert frozen.weights == whole.weights
    assert frozen.gradients < 0.7 * whole.gradients
    assert frozen.moments < 0.7 * whole.moments
    assert frozen.activations < 0.7 * whole.activations


def test_a_moving_average_is_a_second_set_of_weights():
    plain, averaged = predicted(*STEPS["unet"]), predicted(*STEPS["unet"], Layout(averaged=True))
    assert averaged.weights == 2 * plain.weights
    assert averaged.peak == plain.peak + plain.weights


def test_multiply_adds_are_the_formula():
    with torch.device("meta"):
        network = MODELS["unet"](in_channels=1, out_channels=3, dims=2, widths=[4, 8], encoder_convs=1, decoder_convs=1)
    counts = multiply_adds(network, [1, 1, 16, 16])
    fine, coarse = 16 * 16, 8 * 8
    assert counts["encoder.0"] == fine * 4 * 9
    assert counts["encoder.1"] == coarse * 8 * 4 * 9
    assert counts["upsample.0"] == fine * 4 * 8
    assert counts["decoder.0"] == fine * 4 * 8 * 9
    assert counts["head"] == fine * 3 * 4
    assert counts[""] == sum(counts[name] for name in ("encoder.0", "encoder.1", "upsample.0", "decoder.0", "head"))


MEASURE = """
import gc, json, resource, sys
import psutil, torch
from training.test_step_memory import build_step
from segkit.training.step_memory import Layout
name, options, shape, layout = json.loads(sys.argv[1])
layout = Layout(**layout)
small = [1, shape[1], *[side // 4 for side in shape[2:]]]
step, *rest = build_step(name, options, small, layout)
step(), step()
del step, rest
gc.collect()
before = psutil.Process().memory_info().rss
step, network, batch = build_step(name, options, shape, layout)
step(), step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "shape", "layout"),
    [
        ("unet", {}, [4, 1, 256, 256], {}),
        ("unet", {}, [4, 1, 256, 256], {"channels_last": True}),
        ("unet", {"norm": "instance", "residual": True}, [2, 1, 64, 64, 32], {}),
        ("unet", {"norm": "instance", "attention": True, "deep_supervision": True}, [2, 1, 64, 64, 32], {}),
        ("residual_encoder_unet", {"widths": [16, 32, 64, 128]}, [2, 1, 64, 64, 32], {}),
        ("monai_dynunet", {}, [2, 1, 64, 64, 32], {}),
        ("monai_segresnet", {}, [2, 1, 64, 64, 32], {"micro_batches": 2}),
        ("fcn_resnet50", {}, [4, 3, 128, 128], {}),
    ],
)
def test_the_peak_is_that_of_a_process(name, options, shape, layout):
    """The memory of the system, if the C library returns freed blocks at once; by default, glibc keeps many."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    tests = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([tests, str(Path(tests).parent), environment.get("PYTHONPATH", "")])
    arguments = json.dumps([name, options, shape, layout])
    command = [sys.executable, "-c", MEASURE, arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    real = int(done.stdout.split()[-1])
    assert predicted(name, options, shape, Layout(**layout)).peak == pytest.approx(real, rel=0.1)
