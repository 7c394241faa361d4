"""The command line for whoever publishes to a fleet: keys, releases and channels.

A part of `cli`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilltrack.cli_parts import CHANNELS, new_command, say
from pilltrack.core.errors import InputRejected

if TYPE_CHECKING:
    from pilltrack.pipeline.keys import Proposal
    from pilltrack.pipeline.publish import Publisher
    from pilltrack.pipeline.roots import Days

RELEASES = "PILLTRACK_RELEASES"
BUNDLE = "artifacts/package/bundle"


def add_fleet(commands: Any) -> None:
    """Add the commands of a publisher."""
    _add_keys(commands)
    _add_publish(commands)
    _add_releases(commands)
    _add_yank(commands)
    _add_channel(commands)
    _add_renew(commands)


def _add_keys(commands: Any) -> None:
    keys = new_command(
        commands,
        "keys",
        "the keys that sign releases: make, replace, renew and show them",
        "pilltrack keys init\n"
        "pilltrack keys show\n"
        "pilltrack keys rotate online\n"
        "pilltrack keys sign --with /media/usb/keys",
    )
    keys.description = (
        "Make, replace, renew and show the keys that sign releases (docs/fleet.md).\n\n"
        "Private keys are encrypted with the passphrase in PILLTRACK_KEY_PASSPHRASE, which is\n"
        "never an argument."
    )
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True)
    init = new_command(
        actions,
        "init",
        "make a folder with new keys, and the first root, which devices trust",
        "pilltrack keys init\npilltrack keys init --root-keys 5 --threshold 3 --keys ceremony",
    )
    init.add_argument("--root-keys", type=int, default=3, metavar="N", help="how many (3)")
    init.add_argument(
        "--threshold", type=int, default=2, metavar="K", help="of them must sign a root (2)"
    )
    init.set_defaults(run=_keys_init)
    rotate = new_command(
        actions,
        "rotate",
        "replace a key, also one that is lost",
        "pilltrack keys rotate online\npilltrack keys rotate root --key 3f9a12c4",
    )
    rotate.add_argument("role", choices=("root", "targets", "online"))
    rotate.add_argument(
        "--key", default="", metavar="ID", help="the beginning of its id, where there are several"
    )
    rotate.set_defaults(run=_keys_rotate)
    renew = new_command(
        actions,
        "renew",
        "make the next root with the same keys, before the last one ends",
        "pilltrack keys renew\npilltrack keys renew --online-days 14",
    )
    renew.set_defaults(run=_keys_renew)
    for action in (init, renew):
        for role, days in (("root", 730), ("targets", 365), ("online", 30)):
            action.add_argument(
                f"--{role}-days",
                type=int,
                metavar="D",
                help=f"how long its signatures hold ({days if action is init else 'as before'})",
            )
    sign = new_command(
        actions,
        "sign",
        "sign the root that waits, with a root key from another folder",
        "pilltrack keys sign --with /media/usb/keys",
    )
    sign.add_argument(
        "--with", type=Path, dest="holder", metavar="DIR", help="where a root key lies"
    )
    sign.set_defaults(run=_keys_sign)
    show = new_command(
        actions,
        "show",
        "who may sign, until when, which private keys are here, which signatures are missing",
        "pilltrack keys show\npilltrack keys show --json",
    )
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(run=_keys_show)
    for action in (init, rotate):
        action.add_argument(
            "--no-passphrase", action="store_true", help="leave new private keys unencrypted"
        )
    for action in (init, rotate, renew, sign, show):
        _add_key_folder(action)


def _keys_init(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from pilltrack.pipeline.keys import as_text, describe, init
    from pilltrack.pipeline.roots import Days

    now = datetime.now(UTC)
    init(
        arguments.keys,
        now=now,
        passphrase=None if arguments.no_passphrase else _check_passphrase(arguments),
        root_keys=arguments.root_keys,
        threshold=arguments.threshold,
        days=_days(arguments, Days()),
    )
    print(as_text(describe(arguments.keys, now)))
    print(f"devices trust {arguments.keys / '1.root.json'}; now move the root keys apart")
    return 0


def _keys_rotate(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from pilltrack.pipeline.keys import rotate

    return _told(
        rotate(
            arguments.keys,
            arguments.role,
            now=datetime.now(UTC),
            passphrase=_check_passphrase(arguments),
            is_encrypted=not arguments.no_passphrase,
            key=arguments.key,
        )
    )


def _keys_renew(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from pilltrack.pipeline.keys import passphrase_from, renew_root
    from pilltrack.pipeline.roots import read_chain

    return _told(
        renew_root(
            arguments.keys,
            now=datetime.now(UTC),
            passphrase=passphrase_from(os.environ),
            days=_days(arguments, read_chain(arguments.keys)[-1].days),
        )
    )


def _keys_sign(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline.keys import passphrase_from, sign

    holder = arguments.holder or arguments.keys
    return _told(sign(arguments.keys, holder, passphrase=passphrase_from(os.environ)))


def _keys_show(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from pilltrack.pipeline.keys import as_text, describe

    told = describe(arguments.keys, datetime.now(UTC))
    print(json.dumps(told) if arguments.json else as_text(told))
    return 0


def _told(proposal: Proposal) -> int:
    print(proposal)
    return 0


def _days(arguments: argparse.Namespace, before: Days) -> Days:
    from pydantic import ValidationError

    given = {name: getattr(arguments, f"{name}_days") for name in ("root", "targets", "online")}
    changed = {name: days for name, days in given.items() if days is not None}
    try:
        return type(before).model_validate({**before.model_dump(), **changed})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputRejected(
            f"--{first['loc'][0]}-days",
            found=str(first["input"]),
            expected=first["msg"],
            remedy="Devices refuse what has ended: take what can be renewed in time.",
        ) from error


def _check_passphrase(arguments: argparse.Namespace) -> bytes | None:
    """The passphrase of the environment; refuses new keys without, unless that was asked for."""
    from pilltrack.pipeline.keys import PASSPHRASE, passphrase_from

    passphrase = passphrase_from(os.environ)
    if passphrase is None and not arguments.no_passphrase:
        raise InputRejected(
            PASSPHRASE,
            found="not set",
            expected="the passphrase of the private keys",
            remedy="Set it in the environment; --no-passphrase leaves new keys unencrypted.",
        )
    return passphrase


def _add_publish(commands: Any) -> None:
    publish = new_command(
        commands,
        "publish",
        "publish a bundle to the devices of a channel",
        "pilltrack publish --channel beta --to s3://pills/fleet\n"
        "pilltrack publish v0.1.0 --channel stable\n"
        "pilltrack publish old/bundle --channel stable --after-loss",
    )
    publish.description = (
        "Publish a bundle to the devices of a channel (docs/fleet.md).\n\n"
        "It is written to a directory or to S3 and signed, so that devices take it whole or not\n"
        "at all. The same bundle again is the same release, assigned to the channel anew."
    )
    publish.add_argument(
        "bundle",
        nargs="?",
        default=BUNDLE,
        metavar="BUNDLE_OR_REVISION",
        help=f"a directory, or a git revision whose bundle is meant (default: {BUNDLE})",
    )
    publish.add_argument("--channel", choices=CHANNELS, required=True)
    publish.add_argument("--json", action="store_true", help="print the release as one JSON object")
    _add_change(publish)
    publish.set_defaults(run=_publish)


def _publish(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pilltrack.pipeline.releases import opened_bundle

    publisher = _publisher(arguments)
    with opened_bundle(arguments.bundle) as (bundle, _):
        size = sum(path.stat().st_size for path in bundle.iterdir())
        with tqdm(total=size, desc="publish", unit="B", unit_scale=True, disable=None) as bar:
            release = publisher.publish(bundle, arguments.channel, bar.update)
    if arguments.json:
        print(release.model_dump_json())
        return 0
    print(f"release {release.number} ({release.name}) is what {arguments.channel} runs")
    say(f"its manifest is {release.manifest}")
    return 0


def _add_releases(commands: Any) -> None:
    releases = new_command(
        commands,
        "releases",
        "what is published, and what each channel runs",
        "pilltrack releases\npilltrack releases --from s3://pills/fleet --root 1.root.json --json",
    )
    _add_place(releases, "--from")
    trust = releases.add_mutually_exclusive_group()
    trust.add_argument(
        "--keys", type=Path, default=Path("keys"), metavar="DIR", help="default: keys"
    )
    trust.add_argument("--root", type=Path, metavar="FILE", help="or a root that is trusted")
    releases.add_argument("--json", action="store_true", help="print one JSON object")
    releases.set_defaults(run=_releases)


def _releases(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from pilltrack.pipeline.repository import (
        Seen,
        as_rows,
        as_text,
        bundle_bytes,
        read_repository,
        recall,
    )
    from pilltrack.pipeline.roots import read_chain, read_root
    from pilltrack.pipeline.store import open_store

    store = open_store(arguments.place, os.environ)
    if arguments.root:
        chain, last_root = [read_root(arguments.root)], 0
    else:
        chain = read_chain(arguments.keys)
        last_root = recall(arguments.keys).get(str(store), Seen()).root
    found, chain = read_repository(store, chain, last_root)
    now = datetime.now(UTC)
    expired = [*(["root"] if chain[-1].is_expired(now) else []), *found.expired(now)]
    if expired:
        remedy = "pilltrack keys renew" if "root" in expired else "pilltrack renew"
        say(f"devices refuse what has ended ({', '.join(expired)}): `{remedy}`")
    rows = as_rows(found, bundle_bytes(store, found))
    if arguments.json:
        print(json.dumps({"from": str(store), "expired": expired, "releases": rows}))
    elif rows:
        print(as_text(rows))
    else:
        say(f"nothing is published in {store}")
    return 0


def _add_yank(commands: Any) -> None:
    yank = new_command(
        commands,
        "yank",
        "take a release back for good: devices go back to the one before",
        "pilltrack yank 7 --reason 'confuses the two strengths of ibuprofen'",
    )
    _add_number(yank)
    yank.add_argument("--reason", required=True, metavar="TEXT", help="why; devices keep it")
    yank.add_argument("--json", action="store_true", help="print the release as one JSON object")
    _add_change(yank)
    yank.set_defaults(run=_yank)


def _yank(arguments: argparse.Namespace) -> int:
    from pilltrack.core.channels import release_in

    releases = _publisher(arguments).yank(arguments.number, arguments.reason)
    yanked = next(release for release in releases if release.number == arguments.number)
    if arguments.json:
        print(yanked.model_dump_json())
        return 0
    print(f"release {yanked.number} is yanked: {yanked.yanked}")
    for channel in yanked.channels:
        now_run = release_in(channel, releases)
        if now_run is None:
            say(
                f"{channel} has no release left; devices that run a yanked one go back to their "
                "last that is not, at last to the install's own"
            )
        else:
            print(f"{channel} runs release {now_run.number} ({now_run.name})")
    return 0


def _add_channel(commands: Any) -> None:
    channel = new_command(
        commands,
        "channel",
        "assign a release to a channel",
        "pilltrack channel set stable 7",
    )
    actions = channel.add_subparsers(title="actions", metavar="ACTION", required=True)
    assign = new_command(
        actions, "set", "assign a published release to a channel", "pilltrack channel set stable 7"
    )
    assign.add_argument("channel", choices=CHANNELS)
    _add_number(assign)
    assign.add_argument("--json", action="store_true", help="print the release as one JSON object")
    _add_change(assign)
    assign.set_defaults(run=_channel_set)


def _channel_set(arguments: argparse.Namespace) -> int:
    releases = _publisher(arguments).set_channel(arguments.channel, arguments.number)
    assigned = next(release for release in releases if release.number == arguments.number)
    if arguments.json:
        print(assigned.model_dump_json())
        return 0
    print(f"{arguments.channel} runs release {assigned.number} ({assigned.name})")
    return 0


def _add_renew(commands: Any) -> None:
    renew = new_command(
        commands,
        "renew",
        "sign again what is published, before the signatures end: for a timer",
        "pilltrack renew --to s3://pills/fleet\npilltrack renew --clock-is-right",
    )
    renew.add_argument("--json", action="store_true", help="print all releases as one JSON object")
    _add_change(renew)
    renew.set_defaults(run=_renew)


def _renew(arguments: argparse.Namespace) -> int:
    releases = _publisher(arguments).renew()
    if arguments.json:
        print(json.dumps({"releases": [one.model_dump(mode="json") for one in releases]}))
        return 0
    say(f"signed again: {len(releases)} releases")
    return 0


def _add_number(action: argparse.ArgumentParser) -> None:
    action.add_argument("number", type=int, metavar="NUMBER", help="of the release")


def _add_change(action: argparse.ArgumentParser) -> None:
    """What every command takes that changes a repository."""
    _add_place(action, "--to")
    _add_key_folder(action)
    action.add_argument(
        "--after-loss",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="the repository was lost or is an old copy: continue above all versions that devices "
        "may have seen, or above N",
    )
    action.add_argument(
        "--clock-is-right",
        action="store_true",
        help="sign although this machine's clock does not fit what was signed last: that clock was "
        "wrong, or nobody signed for long; releases of a day to come are dated today",
    )


def _add_place(action: argparse.ArgumentParser, option: str) -> None:
    action.add_argument(
        option,
        dest="place",
        default=os.environ.get(RELEASES, ""),
        metavar="DEST",
        help=f"a directory, or s3://BUCKET/PREFIX (default: {RELEASES})",
    )


def _add_key_folder(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--keys", type=Path, default=Path("keys"), metavar="DIR", help="default: keys"
    )


def _publisher(arguments: argparse.Namespace) -> Publisher:
    from pilltrack.pipeline.keys import passphrase_from
    from pilltrack.pipeline.publish import Publisher
    from pilltrack.pipeline.store import open_store

    return Publisher(
        open_store(arguments.place, os.environ),
        arguments.keys,
        passphrase=passphrase_from(os.environ),
        after_loss=arguments.after_loss,
        clock_is_right=arguments.clock_is_right,
    )
