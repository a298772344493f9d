#!/usr/bin/env bash
# torch 2.13.0 on Linux (its wheel brings GNU's libgomp): as soon as a second thread of the process has computed in
# parallel once, and only lives on and waits, every parallel call of the first thread is slower, for good. Each of the two
# has an OpenMP team of its own; together these have more threads than there are processors, and then libgomp lets the
# members of all teams sleep between calls after 100 turns of waiting in place of 300,000
# (gomp_throttled_spin_count_var in libgomp/env.c of GCC, which GOMP_SPINCOUNT does not set).
# A service that loads a model in a worker thread and runs it in another one is such a process. What makes many short
# calls, as a recurrent network does, pays a wake-up for each.
# Expected: a thread that waits costs nothing.
# Seen (two processors): 0.0 sleeps a step of the thread that slept most before, 2 after; the steps took 1.3 to 1.8
# times as long. It ends when the second thread ends. Only the sleeps are asserted.
# Seqloom therefore has one thread that computes in parallel; the others compute alone or end at once.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'torch==2.13.0' numpy
cat >"$place/steps.py" <<'PYTHON'
import os
import re
import statistics
import threading
import time

import torch

assert torch.get_num_threads() > 1, "one processor has no teams"
CALLS = 400


def sleeps():
    """Voluntary context switches of this process's threads."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/status") as status:
            found[task] = int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", status.read())[1])
    return found


def measure(name):
    """Returns the sleeps a call of the thread that slept most, of many products in a thread of its own."""
    result = []

    def run():
        state, weight = torch.rand(32, 1000), torch.rand(1000, 1000) / 1000
        taken = []
        with torch.inference_mode():
            for number in range(-50, CALLS):
                if not number:
                    before = sleeps()
                begun = time.perf_counter()
                state = torch.tanh(state @ weight)
                taken.append(time.perf_counter() - begun)
        after = sleeps()
        most = max(count - before.get(task, 0) for task, count in after.items()) / CALLS
        print(f"  {name}: {most:.2f} sleeps a step, {1e6 * statistics.median(taken[50:]):.0f} us a step")
        result.append(most)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


done, computed = threading.Event(), threading.Event()


def other():
    torch.rand(1000, 1000).tanh()
    computed.set()
    done.wait()


print("torch", torch.__version__, "with", torch.get_num_threads(), "threads")
alone = measure("alone")
waiting = threading.Thread(target=other)
waiting.start()
computed.wait()
beside = measure("beside a thread that computed once and waits")
done.set()
waiting.join()
again = measure("after that has ended")
assert beside > 0.5, "a second team has no effect any more"
assert max(alone, again) < 0.25, "they sleep without a second team as well, or this machine is busy: try again"
PYTHON
"$place/venv/bin/python" "$place/steps.py"
