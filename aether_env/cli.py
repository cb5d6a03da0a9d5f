"""The command `aether`: a table of sub-commands, each of which is imported only when it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "reconstruct": ("aether_env.commands", "reconstruct", "depth and camera path of a video"),
    "predict": ("aether_env.commands", "predict", "dream what a camera sees that goes on from a picture"),
    "plan": ("aether_env.commands", "plan", "dream the way from a picture to a goal picture"),
    "import-aetherv1": ("aether_env.world_model.import_aetherv1", "main", "make a folder of the published checkpoint"),
    "annotate": ("training.annotate.run", "main", "find the cameras of RGB-D videos and make clips of them"),
    "evaluate": ("training.evaluation.evaluate", "main", "measure a checkpoint: tables, JSON, intervals"),
}
"""Name -> (module, its function of typed arguments, what it does)."""
USAGE = "usage: aether COMMAND [ARGUMENTS] [--debug]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        argv: Words after `aether`; None takes those of the process.

    Returns:
        Exit code: 0 done, 1 failed, 2 for a mistake in the arguments, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"aether: there is no command {name!r}; choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    import tyro

    module, function, _ = COMMANDS[name]
    run = getattr(importlib.import_module(module), function)
    description = importlib.import_module(module).__doc__ if function == "main" else None  # None: the function's own
    try:
        tyro.cli(run, prog=f"aether {name}", description=description, args=rest)
    except (ValueError, OSError) as error:  # a user's mistake is one line; --debug shows where it was found
        if debug:
            raise
        print(f"aether {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"aether {name}: interrupted", file=sys.stderr)
        return 130
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [USAGE, "", "commands:"]
    lines += [f"  {name:<{width}}  {does}" for name, (_, _, does) in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "aether COMMAND --help tells the arguments; --debug shows the traceback of an error."]
    )


if __name__ == "__main__":
    sys.exit(main())
