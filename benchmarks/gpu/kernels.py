"""Where the time of a packed step goes on this device: kernels by time, launches, and how long the device idles."""

import functools
import time

from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu.models import ON_GPU, SMALL, TINY, clock, timed
from gpu.speed import EAGER, KERNELS, PACKED, Cell, admit, gradients, make_pack, make_rows, stack
from gpu.steps import Found, Step, arguments_of_child, run_steps
from lrsweep.training.packing.graphs import EagerRunner, GraphRunner

STEPS, SHOWN = 3, 40


def profiled(cell: Cell, tokens: int) -> Found:
    """The time of a step by the clock and on the device, and the kernels that take most of it."""
    batch = stack(make_rows(cell.model, cell.batch, tokens))
    pack = make_pack(cell, batch)
    schedules = admit(pack, cell.k)

    runner = EagerRunner(pack) if cell.arm == EAGER else GraphRunner(pack)

    def step() -> None:
        gradients(runner, cell.k, batch, cell.k)
        pack.arena.step(range(cell.k))
        for schedule in schedules:
            schedule.step()

    seconds = timed(step)
    begun = clock()
    step()
    host = time.monotonic() - begun  # until the last launch: the device is not waited for
    clock()
    activities = [ProfilerActivity.CUDA] if ON_GPU else [ProfilerActivity.CPU]
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            step()
        clock()
    kernels = [event for event in found.key_averages() if not ON_GPU or event.device_type == DeviceType.CUDA]
    spent = {event.key: (_microseconds(event) / STEPS / 1000, event.count / STEPS) for event in kernels}
    busy = sum(ms for ms, _ in spent.values())
    longest = sorted(spent.items(), key=lambda item: -item[1][0])[:SHOWN]
    return {
        "ok": None,
        "ms": round(1000 * seconds, 2),
        "host_ms": round(1000 * host, 2),
        "device_ms": round(busy, 2),
        "launches": round(sum(count for _, count in spent.values())),
        "kernels": [[name[:90], round(ms, 3), round(count)] for name, (ms, count) in longest],
    }


def _microseconds(event: object) -> float:
    name = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    return float(getattr(event, name))


def main() -> None:
    arguments = arguments_of_child()
    cells = [
        Cell(SMALL, 8, KERNELS, 8),
        Cell(SMALL, 1, KERNELS, 8),
        Cell(SMALL, 1, EAGER, 8),
        Cell(SMALL, 1, PACKED, 1),
    ]
    if arguments.smoke:
        cells = [Cell(TINY, 2, PACKED, 2)]
    tokens = 16 if arguments.smoke else 512
    steps = [
        Step(str(cell), 60, functools.partial(profiled, cell, tokens), 0.0 if arguments.smoke else 6.0)
        for cell in cells
    ]
    run_steps(steps, arguments)


if __name__ == "__main__":
    main()
