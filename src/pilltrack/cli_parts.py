"""What the commands share: how one is made, who speaks, and where a device keeps what it learns."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilltrack.core.errors import BundleRejected

if TYPE_CHECKING:
    from pilltrack.edge.slots import Slots

CHANNELS = ("stable", "beta")  # as in core.channels, which takes long to import


def new_command(commands: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """Add a command: its summary for the list of commands, its examples for its own help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def say(text: str) -> None:
    """Speak to a person, on standard error."""
    sys.stderr.write(f"pilltrack: {text}\n")


def slots_of(arguments: argparse.Namespace) -> Slots:
    """The slots of the device's home."""
    from pilltrack.edge.slots import Slots

    return Slots(home_of(arguments), starter_bundle())


def add_bundle(command: argparse.ArgumentParser) -> None:
    """Which bundle a command asks."""
    command.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="default: the bundle that this device was updated to, else the starter bundle",
    )


def bundle_of(arguments: argparse.Namespace) -> Path:
    """The bundle that is named, else the one that is active in the home."""
    return arguments.bundle or slots_of(arguments).active()


def starter_bundle() -> Path:
    """The bundle of this install.

    Raises BundleRejected when the install has none.
    """
    from pilltrack.core.identify import STARTER_BUNDLE

    if not STARTER_BUNDLE.is_dir():
        raise BundleRejected(
            str(STARTER_BUNDLE),
            found="missing",
            expected="the starter bundle of this install",
            remedy="Name a bundle with --bundle DIR.",
        )
    return STARTER_BUNDLE


def add_home(command: argparse.ArgumentParser) -> None:
    """Where the device keeps what it learns."""
    command.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="where this device keeps what it learns; default: $PILLTRACK_HOME, else ~/.pilltrack",
    )


def home_of(arguments: argparse.Namespace) -> Path:
    """The home that is named, else that of the environment or the user."""
    named: Path | None = getattr(arguments, "home", None)
    home = named or Path(os.environ.get("PILLTRACK_HOME") or "~/.pilltrack")
    return home.expanduser()


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """A whole number from 0, for argparse."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return value
