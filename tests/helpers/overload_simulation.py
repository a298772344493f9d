"""More is offered to a simulated server than it can do: what is answered in time, and what was computed in vain.

`python -m helpers.overload_simulation` prints a table; `large` or `small` chooses the network.
"""

import functools
import sys
from dataclasses import dataclass

from helpers.arrivals import between, bursty, fixed, heavy_tailed, poisson, speech_like
from helpers.call_tally import tally
from helpers.simulated_callers import Caller, ClosedLoop
from helpers.virtual_device import TimedWeights, VirtualDevice

FACTORS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
ARRIVALS = {"poisson": poisson, "bursty": bursty}
LENGTHS = {"fixed": fixed, "speech": speech_like, "heavy": heavy_tailed}


@dataclass(frozen=True)
class Network:
    """The true cost of a network's slices (seconds a slice, a step, a cell) and the mean steps of its calls."""

    cost: tuple[float, float, float]
    steps: int


NETWORKS = {"large": Network((8e-3, 0.5e-3, 70e-6), 43), "small": Network((0.1e-3, 30e-6, 3e-6), 450)}


def make_device(network="large", **options):
    """Returns (device, weights) of a network whose cost the scheduler knows."""
    return VirtualDevice(**options), TimedWeights(NETWORKS[network].cost)


def assert_clean(device, *callers):
    """All calls have ended, nothing is left of them in the scheduler, and nothing was done for those who had gone."""
    assert all(call.outcome for caller in callers for call in caller.calls)
    scheduler = device.scheduler
    assert (scheduler.queued, scheduler.waiting_steps, scheduler.waiting_bytes) == (0, 0, 0)
    assert all(caller.weights.slots.in_use == 0 for caller in callers)
    assert device.dead_steps == 0, "steps were computed for callers who had gone"


@functools.cache
def capacity(network, lengths="fixed", *, slowness=1.0, width=256, seconds=6.0):
    """Returns the calls a second that callers get who wait for their answers, without deadlines."""
    net = NETWORKS[network]
    device = VirtualDevice(slowness=lambda now: slowness)
    weights = TimedWeights(net.cost)
    caller = ClosedLoop(device, weights, LENGTHS[lengths](net.steps), timeout=None, width=width, until=seconds)
    device.run()
    return tally([caller], 1.0, seconds).goodput


def offer(network, factor, *, arrivals="poisson", lengths="fixed", seconds=10.0, guess=1.0, seed=0, **device_options):
    """Offers `factor` times the capacity for so many seconds, and runs until all is over. Returns (device, caller)."""
    net = NETWORKS[network]
    device = VirtualDevice(seed=seed, **device_options)
    weights = TimedWeights(net.cost, guess=guess)
    rate = factor * capacity(network, lengths)
    times = between(ARRIVALS[arrivals](rate), 0.0, seconds)
    caller = Caller(device, weights, LENGTHS[lengths](net.steps), times)
    device.run()
    return device, caller


def report(network, **options):
    """Prints one line for each factor of the capacity that is offered."""
    peak = capacity(network, options.get("lengths", "fixed"))
    print(f"{network} {options}: capacity {peak:.1f}/s")
    for factor in FACTORS:
        device, caller = offer(network, factor, **options)
        line = tally([caller], 1.0, 10.0)
        busy = device.busy_seconds / device.now
        print(f"{factor:3.1f} x good/peak {line.goodput / peak:4.2f} {line} busy {busy:4.2f} dead {device.dead_steps}")


if __name__ == "__main__":
    for name in sys.argv[1:] or NETWORKS:
        for kind in ARRIVALS:
            for drawn in LENGTHS:
                report(name, arrivals=kind, lengths=drawn)
