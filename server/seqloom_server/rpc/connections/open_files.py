"""The process's limit of open files: raised as far as the connections need it, with a reserve that they never take."""

import contextlib
import resource

RESERVE = 256  # for models, runs, libraries, a GPU, HTTP, and connections that are just being refused


def raise_limit(connections: int) -> None:
    """Raises the soft limit of this process so that so many connections fit, as far as its hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS allows less than its hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def that_fit(connections: int) -> int:
    """Returns how many of so many connections the soft limit has room for beside the reserve, at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - min(RESERVE, soft // 2)))
