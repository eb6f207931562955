"""The kernel of a sweep's job, `python -m acertlab.sweep.kernel -f CONNECTION_FILE`: ipykernel, dying with its parent.

A kernel that outlives its worker would go on training in a folder that the resumed sweep trains in, too. ipykernel
looks once a second whether its parent has changed, but not before it is up, and not where orphans are adopted by
another process than number 1. So Linux is asked to kill this process together with the thread that started it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Runs the kernel until it is shut down; ends at once where the parent (JPY_PARENT_PID) is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if sys.platform != "win32" and os.getppid() != int(os.environ["JPY_PARENT_PID"]):
        sys.exit("the process that wanted this kernel has ended")
    from ipykernel.kernelapp import launch_new_instance  # a second: after the lines that must not come late

    launch_new_instance()


if __name__ == "__main__":
    main()
