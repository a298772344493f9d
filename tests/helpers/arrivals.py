"""When simulated calls come and how long they are: draws from distributions, seeded by whoever asks."""

import itertools
import math


def poisson(rate):
    """Returns a function of a random.Random that yields the times of arrivals, `rate` a second on average."""

    def times(draw):
        now = 0.0
        while True:
            now += draw.expovariate(rate)
            yield now

    return times


def bursty(rate, on=0.1, off=0.1):
    """The same mean rate, but all in bursts of `on` seconds, between pauses of `off`, give or take half."""

    def times(draw):
        begun, dense = 0.0, rate * (on + off) / on
        while True:
            ends, now = begun + on * draw.uniform(0.5, 1.5), begun
            while (now := now + draw.expovariate(dense)) < ends:
                yield now
            begun = ends + off * draw.uniform(0.5, 1.5)

    return times


def between(times, start, end):
    """Returns the same arrivals, moved so that they begin at `start`, and no more of them after `end`."""

    def moved(draw):
        shifted = (start + time for time in times(draw))
        return itertools.takewhile(lambda time: time < end, shifted)

    return moved


def at_once(count, now=0.0):
    """Returns a burst: `count` arrivals at one time."""
    return lambda draw: itertools.repeat(now, count)


def fixed(steps):
    """Returns lengths that are all the same; this and the others are functions of a random.Random."""
    return lambda draw: steps


def speech_like(mean):
    """Returns log-normal lengths as recordings of sentences have: few are shorter than a fifth or three times as long
    as the mean."""
    spread = 0.5
    middle = math.log(mean) - spread**2 / 2
    return lambda draw: round(min(max(draw.lognormvariate(middle, spread), mean / 5), 3 * mean))


def heavy_tailed(mean, longest=6.0):
    """Returns Pareto lengths: most are shorter than the mean, and a few up to `longest` times as long."""
    shape = 1.5
    least = mean * (shape - 1) / shape
    return lambda draw: max(1, round(min(least * draw.paretovariate(shape), longest * mean)))
