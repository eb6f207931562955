"""The command `acertlab`, also `python -m acertlab`."""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {  # each in the module that does the work, which is loaded when it is asked for
    "demo": ("demo", "train on the embedded digits and draw the accuracy-robustness picture"),
    "sweep": ("sweep.executor", "execute a notebook over a grid of parameters"),
    "report": ("visualization.report", "one HTML page over many runs"),
    "table": ("analysis.method_table", "each method at the kappa that validation chose"),
    "compare": ("analysis.equal_accuracy", "ACR at equal accuracy, seed by seed"),
    "pack": ("data.pack", "many run folders into one packed folder"),
    "estimate": ("training.estimate", "how long a training will take"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sub-command that the first argument names; returns the exit status."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in COMMANDS:
        return import_module(f"acertlab.{COMMANDS[name][0]}").main(rest)
    print("usage: acertlab COMMAND [--help]\n")
    print("\n".join(f"  {command:10} {what}" for command, (_, what) in COMMANDS.items()))
    return 0 if name in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
