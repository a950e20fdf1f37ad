"""Training speed of each backbone, against the machine's largest matrix product.

Reads     nothing; makes random images of 32 px.
Writes    a Markdown row per backbone on stdout, and a JSON line on stderr.

    python benchmarks/training.py                                     five minutes on two cores
    python benchmarks/training.py --backbones ResNet12 --widths 0.25
    python benchmarks/training.py --precision bf16-mixed              for processors with AMX or AVX512_BF16
    python benchmarks/training.py --accelerator cuda --batch_size 512

A step is forward, backward and update of a batch, without loading. Operations are those of
`lowshot.representation.operations`. The product is the faster of 1024 x 1024 x 1024 and 256 x 2304 x 8192 in the
same precision. It alternates with the steps, so that other work on the machine slows both; shares are medians over
rounds. The last columns are from torch's profiler: seconds of convolutions, forward and backward, as a share of a step.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lowshot.core.cli import run
from lowshot.core.errors import InputError
from lowshot.core.runtime import open_fabric
from lowshot.core.settings import NetworkPrecision, PositiveFloat, PositiveInt
from lowshot.representation.backbones import Extractor, ModelConfig
from lowshot.representation.image_training import build_optimizer
from lowshot.representation.operations import PASSES_OF_A_STEP, operations_per_image
from lowshot.representation.settings import TrainingSettings

N_CLASSES, SIDE = 64, 32
PRODUCTS = ((1024, 1024, 1024), (256, 2304, 8192))
OPTIONS = {"Airbench": {"widths": [64, 104, 160], "depth": 3}}
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass
class Config:
    backbones: list[str] = field(default_factory=lambda: ["Conv4", "ResNet10", "ResNet12", "ResNet12"])
    """Backbones to time."""
    widths: list[PositiveFloat] = field(default_factory=lambda: [1.0, 0.25, 0.25, 0.5])
    """Width of each backbone."""
    batch_size: PositiveInt = 128
    """Batch size."""
    rounds: PositiveInt = 7
    """Number of rounds of product and steps, after a warm-up."""
    n_steps: PositiveInt = 3
    """Number of steps in a round."""
    precision: NetworkPrecision = "32-true"
    """Precision of the network and of the matrix product."""
    accelerator: str = "cpu"
    """Device type: auto, cpu, cuda, ..."""


def main(config: Config) -> None:
    """Time every backbone."""
    if len(config.backbones) != len(config.widths):
        raise InputError(
            f"--backbones, --widths: {len(config.backbones)} and {len(config.widths)} values. Give a width for each"
        )
    print("| backbone | step, ms | images/s | GFLOP/s | product, GFLOP/s | share | convolutions |")
    print("|---|---|---|---|---|---|---|")
    for name, width in zip(config.backbones, config.widths):
        record = measure(config, ModelConfig(name, N_CLASSES, 3, SIDE, width, options=OPTIONS.get(name, {})))
        print(json.dumps({"benchmark": "training", **record}), file=sys.stderr)
        print("| {backbone} x {width:g} | {step_ms:.0f} | {images_s:.0f} | {gflops:.0f} | {product_gflops:.0f} "
              "| {share:.0%} | {convolutions:.0%} |".format(**record), flush=True)  # fmt: skip


def measure(config: Config, model_config: ModelConfig) -> dict:
    """Return the speed of one backbone."""
    fabric = open_fabric(config.accelerator, config.precision)
    step, operations = build_step(config, model_config, fabric)
    dtype = DTYPES.get(config.precision, torch.float32)
    step(), product(dtype, fabric.device)
    times, products = [], []
    for _ in range(config.rounds):
        products.append(product(dtype, fabric.device))
        times.append(seconds(step, config.n_steps))
    speeds = [config.batch_size * operations / took for took in times]
    return {
        "backbone": model_config.name,
        "width": model_config.width,
        "precision": config.precision,
        "threads": torch.get_num_threads(),
        "operations_per_image": operations,
        "step_ms": round(1000 * statistics.median(times), 1),
        "images_s": round(config.batch_size / statistics.median(times), 1),
        "gflops": round(statistics.median(speeds) / 1e9, 1),
        "product_gflops": round(statistics.median(products) / 1e9, 1),
        "share": round(statistics.median(speed / peak for speed, peak in zip(speeds, products)), 3),
        "convolutions": round(share_of_convolutions(step, fabric.device), 3),
    }


def build_step(config: Config, model_config: ModelConfig, fabric: Fabric) -> tuple[Callable[[], None], int]:
    """Return a function that runs a training step, and its operations per image."""
    model = Extractor(model_config).to(memory_format=torch.channels_last).train()
    operations = PASSES_OF_A_STEP * operations_per_image(model, SIDE)
    network, optimizer = fabric.setup(model, build_optimizer(TrainingSettings(), model))
    images = torch.rand(config.batch_size, 3, SIDE, SIDE, device=fabric.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(config.batch_size, device=fabric.device) % N_CLASSES

    def step() -> None:
        loss = F.cross_entropy(network(images)[0].float(), labels)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()

    return step, operations


def seconds(call: Callable[[], None], n: int) -> float:
    """Return the mean seconds of a call."""
    start = now()
    for _ in range(n):
        call()
    return (now() - start) / n


def now() -> float:
    """Return the time, after a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def product(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of the fastest matrix product."""
    return max(_speed_of_product(*sides, dtype, device) for sides in PRODUCTS)


def _speed_of_product(n: int, k: int, m: int, dtype: torch.dtype, device: torch.device, repeats: int = 10) -> float:
    a, b = torch.rand(n, k, dtype=dtype, device=device), torch.rand(k, m, dtype=dtype, device=device)
    out: Tensor = a @ b
    return 2 * n * k * m / seconds(lambda: torch.mm(a, b, out=out), repeats)


def share_of_convolutions(step: Callable[[], None], device: torch.device) -> float:
    """Return the share of convolutions in a step on `device`."""
    with profile() as profiler:
        step()
    name = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    # On a GPU, a kernel's time is that of its operation and of an event of its own.
    operations = [event for event in profiler.key_averages() if event.device_type == DeviceType.CPU]
    times = {event.key: getattr(event, name) for event in operations}
    return sum(time for key, time in times.items() if "conv" in key) / sum(times.values())


if __name__ == "__main__":
    run(main, Config, __doc__)
