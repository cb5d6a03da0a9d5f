"""The command `aether`: a table of sub-commands, each of which is imported only when it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "import-aetherv1": ("aether_env.world_model.import_aetherv1", "make one folder of the published checkpoint"),
    "evaluate": ("training.evaluation.evaluate", "measure a checkpoint: tables, JSON, intervals"),
}
"""Name -> (module with a `main` of typed arguments, what it does)."""
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

    module = importlib.import_module(COMMANDS[name][0])
    try:
        tyro.cli(module.main, prog=f"aether {name}", description=module.__doc__, args=rest)
    except (ValueError, FileNotFoundError) as error:  # a user's mistake is one line; --debug shows where it was found
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
    lines += [f"  {name:<{width}}  {does}" for name, (_, does) in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "aether COMMAND --help tells the arguments; --debug shows the traceback of an error."]
    )


if __name__ == "__main__":
    sys.exit(main())
