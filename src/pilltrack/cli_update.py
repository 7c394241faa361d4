"""The command line for a device that follows a publisher: join, look, status, back, leave.

A part of `cli`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pilltrack.cli_parts import CHANNELS, add_home, home_of, new_command, positive, say, slots_of
from pilltrack.core.errors import BundleRejected, InputRejected, StageFailed


def add_update(commands: Any) -> None:
    """Add the command `update` and its actions."""
    update = new_command(
        commands,
        "update",
        "follow a publisher: new models and galleries, proven and tried before they count",
        "pilltrack update join --from https://pills.example.org/releases --root 1.root.json\n"
        "pilltrack update now\n"
        "pilltrack update status",
    )
    actions = update.add_subparsers(title="actions", metavar="ACTION", required=True)
    join = new_command(
        actions,
        "join",
        "name the publisher, and hand over the root that this device shall trust",
        "pilltrack update join --from https://pills.example.org/releases --root 1.root.json\n"
        "pilltrack update join --from /media/stick/releases --root 1.root.json --channel beta",
    )
    join.add_argument(
        "--from", dest="url", required=True, metavar="ADDRESS", help="https://... or a directory"
    )
    join.add_argument(
        "--root", type=Path, required=True, metavar="FILE", help="the publisher's N.root.json"
    )
    join.add_argument("--channel", choices=CHANNELS, default="stable")
    join.add_argument(
        "--every-hours", type=float, default=6.0, metavar="N", help="between two looks; default: 6"
    )
    join.add_argument(
        "--max-kb-per-s", type=positive, default=0, metavar="N", help="default: no limit"
    )
    join.add_argument(
        "--max-frame-ms",
        type=float,
        default=1000.0,
        metavar="N",
        help="a bundle that takes longer for a frame is refused; default: 1000",
    )
    join.add_argument(
        "--watch-s",
        type=positive,
        default=600,
        metavar="N",
        help="how long a new bundle is on trial while serving; default: 600",
    )
    join.set_defaults(run=_update_join)
    check = new_command(
        actions, "check", "ask whether there is another bundle", "pilltrack update check --json"
    )
    now = new_command(
        actions,
        "now",
        "fetch, prove, try and switch to the channel's bundle, if it is another one",
        "pilltrack update now\npilltrack update now --retry",
    )
    now.add_argument("--retry", action="store_true", help="try again what was refused before")
    status = new_command(
        actions,
        "status",
        "which bundle is active, whom this device follows, what happened",
        "pilltrack update status\npilltrack update status --json",
    )
    back = new_command(
        actions,
        "back",
        "go back to the bundle before; the one left is not tried again",
        "pilltrack update back",
    )
    leave = new_command(
        actions, "leave", "follow nobody; the active bundle stays", "pilltrack update leave"
    )
    check.set_defaults(run=_update_now, only_ask=True, retry=False)
    now.set_defaults(run=_update_now, only_ask=False)
    status.set_defaults(run=_update_status)
    back.set_defaults(run=_update_back)
    leave.set_defaults(run=_update_leave)
    for action in (join, check, now, status, back, leave):
        add_home(action)
    for action in (check, now, status):
        action.add_argument("--json", action="store_true", help="print JSON")


def _update_join(arguments: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from pilltrack.edge.source import UpdateSource, join

    try:
        source = UpdateSource(
            url=arguments.url,
            channel=arguments.channel,
            interval_s=round(3600 * arguments.every_hours),
            bytes_per_s=1000 * arguments.max_kb_per_s,
            max_frame_ms=arguments.max_frame_ms,
            watch_s=arguments.watch_s,
        )
    except (ValidationError, ValueError, OverflowError) as error:
        options = {"url": "--from", "interval_s": "--every-hours", "watch_s": "--watch-s",
                   "bytes_per_s": "--max-kb-per-s", "max_frame_ms": "--max-frame-ms"}  # fmt: skip
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        option = "--every-hours" if first is None else options[str(first["loc"][0])]
        ranges = {
            "--from": "https://... or http://... without a login, or a directory",
            "--every-hours": "one minute to 30 days",
            "--max-frame-ms": "a number above 0",
            "--watch-s": "at most 7 days",
        }
        raise InputRejected(
            option,
            found=str(getattr(arguments, option[2:].replace("-", "_"), arguments.url)),
            expected=ranges.get(option, "a number from 0"),
            remedy="See `pilltrack update join --help`.",
        ) from error
    join(slots_of(arguments), source, arguments.root.read_bytes())
    say(f"{home_of(arguments)} follows {source.url}, {source.channel}")
    return 0


def _update_now(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pilltrack.edge.follow import update_apart
    from pilltrack.edge.happenings import utc_now
    from pilltrack.edge.source import source_of
    from pilltrack.edge.updater import as_json

    slots, home = slots_of(arguments), home_of(arguments)
    source = source_of(slots)
    if source is None:
        raise StageFailed(
            str(home),
            found="follows nobody",
            expected="a publisher",
            remedy="Run `pilltrack update join`.",
        )
    if arguments.retry:
        slots.forgive()
    before = slots.slot(slots.state().active)
    with tqdm(desc="update", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        outcome = update_apart(
            slots, source, home, utc_now(), only_ask=arguments.only_ask, progress=bar.update
        )
    release = outcome.release
    called = "" if release is None else f"release {release.number} ({release.name})"
    if arguments.json:
        print(json.dumps(as_json(outcome), ensure_ascii=False))
    elif outcome.kind in ("switched", "current", "available"):
        what = {
            "switched": f"{called} is active, on trial; {outcome.received_bytes / 1e6:.1f} MB came",
            "current": f"{called} is active: nothing to do",
            "available": f"{called} can be had: `pilltrack update now`",
        }
        print(what[outcome.kind])
    else:
        print(" ".join(f"{outcome.kind} {called}".split()) + f": {outcome.reason}")
        active = slots.slot(slots.state().active)
        stays = "stays active" if active == before else "is active now"
        say(f"{outcome.detail}. {active} {stays}.")
    return 0 if outcome.kind in ("switched", "current", "available") else 1


def _update_status(arguments: argparse.Namespace) -> int:
    from pilltrack.core.bundle import read_bundle
    from pilltrack.edge.source import source_of

    slots = slots_of(arguments)
    state, source = slots.state(), source_of(slots)
    happenings = slots.happenings(20)
    if arguments.json:
        content = {
            "state": state.model_dump(mode="json"),
            "source": source.model_dump(mode="json") if source else None,
            "happenings": [happening.model_dump(mode="json") for happening in happenings],
        }
        print(json.dumps(content, ensure_ascii=False))
        return 0
    shown = [("active", state.active)]
    if state.active is not None:
        shown.append(("before", state.previous))
    for what, manifest in shown:
        try:
            name = read_bundle(slots.slot(manifest)).name
        except BundleRejected as error:
            name = f"damaged: {error.found}"
        trial = f", on trial since {state.trial.since:%Y-%m-%d %H:%M}" if state.trial else ""
        whose = f"manifest {manifest[:12]}" if manifest else "of the install"
        print(f"{what:8}{name} ({whose}{trial if what == 'active' else ''})")
    print(f"follows {source.url}, {source.channel}" if source else "follows nobody")
    for happening in happenings:
        whose = f" {happening.manifest[:12]}" if happening.manifest else ""
        line = f"{happening.time:%Y-%m-%d %H:%M}  {happening.kind}{whose}: {happening.reason}"
        print(f"{line} ({happening.detail})" if happening.detail else line)
    return 0


def _update_back(arguments: argparse.Namespace) -> int:
    slots = slots_of(arguments)
    active = slots.state().active
    if active is None:
        raise StageFailed(
            str(home_of(arguments)),
            found="the bundle of the install is active",
            expected="another one, to go back from",
            remedy="Nothing is to be done.",
        )
    after = slots.roll_back(active, "an operator went back")
    say(f"active is {slots.slot(after.active)}")
    return 0


def _update_leave(arguments: argparse.Namespace) -> int:
    from pilltrack.edge.source import leave

    leave(slots_of(arguments))
    return 0
