"""The command line: one sub-command for each stage and each thing a person does with a bundle.

A command's modules are imported only when it is called, so that `identify` starts without torch.
Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 refused or
failed, 2 wrong usage, 3 a gate is broken, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilltrack import __version__
from pilltrack.cli_fleet import add_fleet
from pilltrack.cli_parts import (
    add_bundle,
    add_home,
    bundle_of,
    home_of,
    new_command,
    not_negative,
    positive,
    say,
    starter_bundle,
)
from pilltrack.cli_update import add_update
from pilltrack.core.errors import (
    GateFailed,
    InputRejected,
    PillTrackError,
    StageFailed,
)

if TYPE_CHECKING:
    from pilltrack.edge.enrol import PhotosRefused

STAGES = {
    "prepare": "check the photos of the zip and split them by pill",
    "train": "train the teacher",
    "distill": "teach the student",
    "convert": "export the student as int8 LiteRT and fp32 ONNX",
    "enroll": "build the gallery with the exported student",
    "evaluate": "calibrate, measure and gate the exported student",
    "locate": "train the locator, which finds the pills in a frame",
    "package": "write the bundle",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="%(message)s",
        stream=sys.stderr,
    )
    for noisy in ("matplotlib", "jax", "torch", "absl", "alembic", "mlflow", "botocore", "tuf"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code: int = arguments.run(arguments)
        return code
    except PillTrackError as error:
        return _complain(error)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, a missing permission: where the system says
        found = error.strerror or str(error)
        where = str(error.filename or "file system")
        remedy = "Check the path, its permissions and the free space."
        expected = "files and folders that can be read and written"
        return _complain(StageFailed(where, found=found, expected=expected, remedy=remedy))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "pilltrack":
            raise
        missing = StageFailed(
            f"package {error.name}",
            found="not installed",
            expected="the training install (this may be the device install)",
            remedy="Run `pip install 'pilltrack[train]'`.",
        )
        return _complain(missing)
    except KeyboardInterrupt:
        sys.stderr.write("pilltrack: interrupted; nothing half-written is left\n")
        return 130


def _complain(error: PillTrackError) -> int:
    kind = "gate failed" if isinstance(error, GateFailed) else "error"
    sys.stderr.write(f"pilltrack: {kind}: {error}\n")
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pilltrack",
        description="From photos of pills to a bundle that names them on a small device.",
        epilog="The whole pipeline: dvc repro",
    )
    parser.add_argument("--version", action="version", version=f"pilltrack {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="show debug messages")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for stage, summary in STAGES.items():
        command = new_command(
            commands, stage, f"stage: {summary}", f"pilltrack {stage}\ndvc repro {stage}"
        )
        _add_run(command)
        if stage == "prepare":
            command.add_argument(
                "--data",
                type=Path,
                default=Path("data/pills_dataset_resnet.zip"),
                help="default: data/pills_dataset_resnet.zip",
            )
        command.set_defaults(run=_run_stage, stage=stage)
    _add_identify(commands)
    _add_count(commands)
    _add_gallery(commands)
    _add_serve(commands)
    add_update(commands)
    _add_audit(commands)
    _add_evaluate_folder(commands)
    _add_evaluate_epillid(commands)
    _add_report(commands)
    _add_compare(commands)
    _add_track(commands)
    _add_tune(commands)
    _add_promote(commands)
    _add_comment(commands)
    _add_release(commands)
    _add_bench(commands)
    _add_selftest(commands)
    _add_synth(commands)
    _add_crop_boxes(commands)
    _add_summary(commands)
    _add_remote(commands)
    _add_doctor(commands)
    add_fleet(commands)
    return parser


def _add_run(command: argparse.ArgumentParser) -> None:
    """Which run of the pipeline: its parameters and its results."""
    command.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="default: params.yaml"
    )
    command.add_argument(
        "--artifacts", type=Path, default=Path("artifacts"), help="default: artifacts"
    )


def _run_stage(arguments: argparse.Namespace) -> int:
    from importlib import import_module

    from pilltrack.pipeline.params import load_params
    from pilltrack.pipeline.tracking import tracked

    params = load_params(arguments.params)
    stage = import_module(f"pilltrack.pipeline.{arguments.stage}")
    inputs = [arguments.data] if arguments.stage == "prepare" else []
    for path in inputs:
        if not path.is_file():
            raise InputRejected(
                str(path),
                found="missing",
                expected="the zip of photos",
                remedy="Run `dvc pull` for data that was pushed, or put your zip there.",
            )
    with tracked(arguments.stage, params, arguments.artifacts):
        stage.main(params, arguments.artifacts, *inputs)
    return 0


def _add_identify(commands: Any) -> None:
    command = new_command(
        commands,
        "identify",
        "find and name the pills in photos",
        "pilltrack identify photo.jpg --draw named.png\n"
        "pilltrack identify --json photos/*.jpg --home /var/lib/pilltrack\n"
        "pilltrack identify --crop --json crops/*.png --bundle artifacts/package/bundle",
    )
    command.description = (
        "Find and name the pills in photos.\n\n"
        "Without --bundle, by the starter bundle and what `pilltrack gallery add` has enrolled in\n"
        "the home. With --bundle by what that bundle holds; add --home to search the home as well."
    )
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    add_bundle(command)
    add_home(command)
    command.add_argument("--json", action="store_true", help="one JSON object per image")
    _add_crop(command)
    _add_draw(command)
    command.set_defaults(run=_identify)


def _identify(arguments: argparse.Namespace) -> int:
    from pilltrack.core.draw import identified_marks
    from pilltrack.core.identify import open_identifier, sentence, to_json
    from pilltrack.core.local import is_store
    from pilltrack.core.locate import MAX_PILLS

    # A run with a bundle of its own must not depend on what else this device has learnt.
    local = home_of(arguments) if arguments.home or not arguments.bundle else None
    drawings = _drawings(arguments)
    with open_identifier(bundle_of(arguments), local=local) as identifier:
        if not len(identifier.gallery):
            say("no pill is enrolled, so every pill is unknown; " + _how_to_enrol(local))
        elif arguments.home and not is_store(home_of(arguments)):
            say(f"no pill is enrolled in {local}; " + _how_to_enrol(local))

        def answer(image: Path, photo: Any) -> None:
            pills = (identifier.identify_crop if arguments.crop else identifier.identify)(photo)
            if len(pills) == MAX_PILLS:
                say(f"{image}: {MAX_PILLS} pills are all that one photo can give; show fewer")
            if arguments.json:
                print(json.dumps(to_json(str(image), pills), ensure_ascii=False))
            elif not pills:
                print(f"{image}: no pill found")
            elif arguments.crop or len(pills) == 1:
                print(f"{image}: {sentence(pills[0].decision)}")
            else:
                for number, pill in enumerate(pills, 1):
                    print(f"{image}, pill {number}: {sentence(pill.decision)}")
            _draw(drawings[image], photo, identified_marks(pills))

        return _for_each_image(arguments.images, answer)


def _for_each_image(images: Sequence[Path], answer: Callable[[Path, Any], None]) -> int:
    """Answer for each image that can be read; complain of the others and go on."""
    from pilltrack.core.image import read_image

    code = 0
    for image in images:
        try:
            answer(image, read_image(image))
        except (InputRejected, StageFailed) as error:
            code = _complain(error)
    return code


def _add_count(commands: Any) -> None:
    command = new_command(
        commands,
        "count",
        "count the pills in photos, of whatever kind",
        "pilltrack count tray.jpg\n"
        "pilltrack count tray.jpg --draw numbered.png\n"
        "pilltrack count --json trays/*.jpg",
    )
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    add_bundle(command)
    command.add_argument("--json", action="store_true", help="one JSON object per image")
    _add_draw(command)
    command.set_defaults(run=_count)


def _count(arguments: argparse.Namespace) -> int:
    from pilltrack.core.draw import counted_marks
    from pilltrack.core.identify import open_locator
    from pilltrack.core.locate import MAX_PILLS

    drawings = _drawings(arguments)
    locator = open_locator(bundle_of(arguments))

    def answer(image: Path, photo: Any) -> None:
        found = locator.locate(photo)
        more = len(found) == MAX_PILLS
        if more:
            say(f"{image}: {MAX_PILLS} pills are all that one photo can give; count fewer at once")
        if arguments.json:
            pills = [{"box": pill.box, "confidence": round(pill.confidence, 4)} for pill in found]
            counted = {"image": str(image), "count": len(found), "or_more": more, "pills": pills}
            print(json.dumps(counted, ensure_ascii=False))
        else:
            print(f"{image}: {len(found)}{' or more' if more else ''}")
        _draw(drawings[image], photo, counted_marks(found))

    return _for_each_image(arguments.images, answer)


def _add_crop(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--crop", action="store_true", help="each image is nothing but one pill: do not locate"
    )


def _add_draw(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--draw",
        type=Path,
        metavar="OUT",
        help="paint what was found: OUT.png for one image, or a folder OUT for any number",
    )
    command.set_defaults(usage_error=command.error)


def _drawings(arguments: argparse.Namespace) -> dict[Path, Path | None]:
    """Where each image is drawn, if at all; ends with wrong usage where that cannot be."""
    images, out = arguments.images, arguments.draw
    if out is None:
        return dict.fromkeys(images)
    if out.suffix.lower() == ".png" and not out.is_dir():
        if len(images) > 1:
            arguments.usage_error(
                f"--draw {out} is one file for {len(images)} images: name a folder"
            )
        if out.resolve() == images[0].resolve():
            arguments.usage_error(f"--draw {out} would replace the photo: name another file")
        return {images[0]: out}
    if out.suffix and not out.is_dir():
        arguments.usage_error(f"--draw {out} is neither a folder nor a file that ends in .png")
    names = [f"{image.stem}-pills" for image in images]
    if len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, 1)]
    return {image: out / f"{name}.png" for image, name in zip(images, names, strict=True)}


def _draw(to: Path | None, photo: Any, marks: Any) -> None:
    if to is None:
        return
    import io

    from PIL import Image

    from pilltrack.core.draw import draw
    from pilltrack.core.files import write_atomically

    written = io.BytesIO()
    Image.fromarray(draw(photo, marks)).save(written, "png", compress_level=1)
    try:
        write_atomically(to, written.getvalue())
    except OSError as error:
        raise StageFailed(
            str(to),
            found=error.strerror or str(error),
            expected="a file that can be written",
            remedy="Name another place with --draw.",
        ) from error


def _add_gallery(commands: Any) -> None:
    gallery = new_command(
        commands,
        "gallery",
        "teach this device pills from photos, list, show, pass on and forget them",
        "pilltrack gallery add ibuprofen-200 --front 1.jpg 2.jpg --back 3.jpg\n"
        "pilltrack gallery list\n"
        "pilltrack gallery remove ibuprofen-200",
    )
    actions = gallery.add_subparsers(title="actions", metavar="ACTION", required=True)
    add = new_command(
        actions,
        "add",
        "enrol photos of a pill, each showing it alone: all of them or none",
        "pilltrack gallery add ibuprofen-200 --front 1.jpg 2.jpg --back 3.jpg\n"
        "pilltrack gallery add ibuprofen-200 more/*.jpg --side back\n"
        "pilltrack gallery add vitamin-d 1.jpg 2.jpg 3.jpg --override 'both sides are plain'",
    )
    add.description = (
        "Enrol photos of a pill, each showing it alone: all of them or none.\n\n"
        "Photos are refused that are blurred, badly lit, cut off, too small, unlike each other,\n"
        "of one side only, or taken for another enrolled pill; each refusal says what to do\n"
        "(docs/device.md). --override enrols them all the same and puts the reason on record."
    )
    add.add_argument("name", metavar="NAME", help="of the pill, as identify shall say it")
    add.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    for side in ("front", "back"):
        add.add_argument(
            f"--{side}", nargs="+", type=Path, default=[], metavar="IMAGE", help=f"of its {side}"
        )
    add.add_argument(
        "--side", choices=("front", "back"), default="", help="shown by photos that do not say it"
    )
    add.add_argument(
        "--override",
        default="",
        metavar="REASON",
        help="enrol in spite of faults; `pilltrack audit overrides` lists why",
    )
    _add_crop(add)
    add_bundle(add)
    add.set_defaults(run=_gallery_add, usage_error=add.error)
    listing = new_command(
        actions,
        "list",
        "the pills enrolled on this device and how many references each has",
        "pilltrack gallery list\npilltrack gallery list --json",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(run=_gallery_list)
    remove = new_command(
        actions,
        "remove",
        "forget a pill and delete its photos",
        "pilltrack gallery remove ibuprofen-200",
    )
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_gallery_remove)
    show = new_command(
        actions,
        "show",
        "the photos that this device keeps of a pill",
        "pilltrack gallery show ibuprofen-200\npilltrack gallery show ibuprofen-200 --json",
    )
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true", help="print one JSON object")
    show.set_defaults(run=_gallery_show)
    export = new_command(
        actions,
        "export",
        "write all pills enrolled on this device to a zip, for another device",
        "pilltrack gallery export pills.zip",
    )
    export.add_argument("zip", type=Path, metavar="ZIP")
    export.set_defaults(run=_gallery_export)
    importing = new_command(
        actions,
        "import",
        "enrol the pills of such a zip on this device",
        "pilltrack gallery import pills.zip",
    )
    importing.add_argument("zip", type=Path, metavar="ZIP")
    add_bundle(importing)
    importing.set_defaults(run=_gallery_import)
    for action in (add, listing, remove, show, export, importing):
        add_home(action)


def _gallery_add(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from pilltrack.core.identify import open_identifier
    from pilltrack.core.image import read_image
    from pilltrack.edge.enrol import PhotosRefused, enrol

    sides = {"front": arguments.front, "back": arguments.back}
    images = [(image, arguments.side) for image in arguments.images]
    images += [(image, side) for side, of_side in sides.items() for image in of_side]
    if not images:
        arguments.usage_error("name at least one IMAGE")
    home, photos, code = home_of(arguments), [], 0
    with open_identifier(bundle_of(arguments), local=home) as identifier:
        for image, _ in images:
            try:
                photos.append((image.name, read_image(image)))
            except InputRejected as error:  # the other bad files shall be named too
                code = _complain(error)
        if code:
            say("nothing was added")
            return code
        try:
            done = enrol(
                identifier,
                home,
                arguments.name,
                photos,
                [side for _, side in images],
                datetime.now(UTC),
                crops=arguments.crop,
                reason=arguments.override,
            )
        except PhotosRefused as refused:
            _complain_of_faults(refused, [str(image) for image, _ in images], home)
            return refused.exit_code
    print(f"{arguments.name}: {_references(done.references)} ({done.new} new)")
    if done.overridden:
        kinds = ", ".join(dict.fromkeys(fault.kind for fault in done.overridden))
        say(f"enrolled all the same ({kinds}); the reason is on record")
    if done.references < 3:
        say("three or more photos, turned and lit differently, are recognised more surely")
    return 0


def _complain_of_faults(refused: PhotosRefused, images: Sequence[str], home: Path) -> None:
    from pilltrack.core.local import CROPS_DIRECTORY

    judged = refused.judged
    for fault in judged.faults:
        subject = images[judged.names.index(fault.image)] if fault.image else refused.subject
        found, remedy = f"{fault.kind}: {fault.found}", fault.remedy
        if fault.other and judged.alike:
            picture = home / CROPS_DIRECTORY / f"{judged.alike}.png"
            remedy += f" The picture of {fault.other}: {picture}."
        _complain(InputRejected(subject, found=found, expected=fault.expected, remedy=remedy))
    if judged.can_override:
        say("nothing was added; --override REASON enrols all the same, and keeps the reason")
    else:
        say(
            "nothing was added; of none or several pills there is nothing to enrol, whatever the "
            "reason; --crop takes a photo that is nothing but the pill as it is"
        )


def _gallery_list(arguments: argparse.Namespace) -> int:
    from pilltrack.core.local import LocalReferences, is_store

    home, pills = home_of(arguments), {}
    if is_store(home):
        with LocalReferences(home) as local:
            pills = local.pills()
    if arguments.json:
        rows = [{"pill": pill, "references": count} for pill, count in pills.items()]
        print(json.dumps({"home": str(home), "pills": rows}, ensure_ascii=False))
        return 0
    for pill, count in pills.items():
        print(f"{count:6}  {pill}")
    if not pills:
        say(f"no pill is enrolled in {home}; " + _how_to_enrol(home))
    return 0


def _gallery_remove(arguments: argparse.Namespace) -> int:
    from difflib import get_close_matches

    from pilltrack.core.local import LocalReferences, is_store

    home, n_removed, names = home_of(arguments), 0, []
    if is_store(home):
        with LocalReferences(home) as local:
            n_removed = local.remove(arguments.name)
            names = list(local.pills())
    if n_removed:
        print(f"{arguments.name}: {_references(n_removed)} removed")
        return 0
    similar = get_close_matches(arguments.name, names)
    remedy = f"Similar names: {', '.join(similar)}." if similar else "See `pilltrack gallery list`."
    raise InputRejected(
        arguments.name, found="not enrolled", expected=f"a pill enrolled in {home}", remedy=remedy
    )


def _gallery_show(arguments: argparse.Namespace) -> int:
    from pilltrack.core.local import CROPS_DIRECTORY, LocalReferences, is_store

    home, kept = home_of(arguments), []
    if is_store(home):
        with LocalReferences(home) as local:
            kept = local.kept(arguments.name)
    if not kept:
        raise InputRejected(
            arguments.name,
            found="not enrolled",
            expected=f"a pill enrolled in {home}",
            remedy="See `pilltrack gallery list`.",
        )
    rows = [
        {
            "side": reference.side,
            "image": reference.image,
            "added_at": reference.added_at,
            "photo": str(home / CROPS_DIRECTORY / f"{reference.crop}.png"),
        }
        for reference in kept
    ]
    if arguments.json:
        print(json.dumps({"pill": arguments.name, "references": rows}, ensure_ascii=False))
        return 0
    for row in rows:
        print(f"{row['added_at']}  {row['side'] or '-':5}  {row['image']}  {row['photo']}")
    return 0


def _gallery_export(arguments: argparse.Namespace) -> int:
    from pilltrack.core.exchange import export_references
    from pilltrack.core.local import LocalReferences, is_store

    home = home_of(arguments)
    if not is_store(home):
        raise InputRejected(
            str(home), found="no enrolled pill", expected="some", remedy=_how_to_enrol(home)
        )
    with LocalReferences(home) as local:
        print(f"{arguments.zip}: {_references(export_references(local, arguments.zip))}")
    return 0


def _gallery_import(arguments: argparse.Namespace) -> int:
    from pilltrack.core.exchange import import_references
    from pilltrack.core.identify import open_identifier
    from pilltrack.core.local import LocalReferences

    with (
        open_identifier(bundle_of(arguments)) as identifier,
        LocalReferences(home_of(arguments)) as local,
    ):
        added = import_references(local, arguments.zip)
        local.embedded(identifier.embedder)  # the next identify is fast
    for pill, n_new in sorted(added.items()):
        print(f"{pill}: {_references(n_new)} new")
    return 0


def _add_audit(commands: Any) -> None:
    audit = new_command(
        commands,
        "audit",
        "the decisions on record: list them, check that none was changed, make one again",
        "pilltrack audit list\npilltrack audit verify\npilltrack audit replay 17\n"
        "pilltrack audit overrides",
    )
    actions = audit.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = new_command(
        actions,
        "list",
        "the newest decisions on record",
        "pilltrack audit list\npilltrack audit list --limit 5 --json",
    )
    listing.add_argument("--limit", type=positive, default=20, help="default: 20")
    listing.add_argument("--json", action="store_true", help="one JSON object per decision")
    listing.set_defaults(run=_audit_list)
    verify = new_command(
        actions,
        "verify",
        "check the chain: no row changed, taken out or put in between",
        "pilltrack audit verify\npilltrack audit verify --head 17:5d41...",
    )
    verify.add_argument(
        "--head", metavar="HEAD", help="what verify printed before: that row must still be there"
    )
    verify.set_defaults(run=_audit_verify)
    replay = new_command(
        actions,
        "replay",
        "make a decision again from its crops and compare",
        "pilltrack audit replay 17\npilltrack audit replay 17 --bundle artifacts/package/bundle",
    )
    replay.add_argument("number", type=positive, metavar="ID")
    add_bundle(replay)
    replay.set_defaults(run=_audit_replay)
    overrides = new_command(
        actions,
        "overrides",
        "pills that were enrolled in spite of faults, and why",
        "pilltrack audit overrides\npilltrack audit overrides --limit 5 --json",
    )
    overrides.add_argument("--limit", type=positive, default=20, help="default: 20")
    overrides.add_argument("--json", action="store_true", help="one JSON object per override")
    overrides.set_defaults(run=_audit_overrides)
    for action in (listing, verify, replay, overrides):
        add_home(action)


def _audit_list(arguments: argparse.Namespace) -> int:
    from pilltrack.edge.audit import AuditLog

    with AuditLog(home_of(arguments), create=False) as log:
        for entry in log.records(arguments.limit):
            record = entry.record
            if arguments.json:
                row = {"id": entry.id, "hash": entry.hash, **record.model_dump(mode="json")}
                row["actions"] = [action.model_dump(mode="json") for action in entry.actions]
                print(json.dumps(row, ensure_ascii=False))
                continue
            verdict = "" if record.check is None else (" ok" if record.check["ok"] else " not ok")
            done = "".join(f", {action.action}" for action in entry.actions)
            count = "1 pill" if len(record.pills) == 1 else f"{len(record.pills)} pills"
            print(f"{entry.id:6}  {record.time:%Y-%m-%d %H:%M:%S}Z  {count}{verdict}{done}")
    return 0


def _audit_verify(arguments: argparse.Namespace) -> int:
    from pilltrack.edge.audit import AuditLog, parse_head

    head = parse_head(arguments.head) if arguments.head else None
    with AuditLog(home_of(arguments), create=False) as log:
        now = log.verify(head)
        print(f"{now.id} rows, none changed; head {now}")
    if head is None:
        say("keep this head elsewhere: without it nobody can see that the end was cut off")
    return 0


def _audit_replay(arguments: argparse.Namespace) -> int:
    from pilltrack.core.identify import open_identifier
    from pilltrack.edge.audit import AuditLog
    from pilltrack.edge.replay import replay

    home = home_of(arguments)
    with (
        AuditLog(home, create=False) as log,
        open_identifier(bundle_of(arguments), local=home) as identifier,
    ):
        again = replay(
            log,
            arguments.number,
            identifier.embedder,
            identifier.gallery,
            identifier.calibration,
            identifier.manifest.pills,
        )
    for difference in again.differences:
        print(difference)
    if again.equal:
        print(f"decision {arguments.number}: the same again ({len(again.decisions)} pills)")
    return 0 if again.equal else 1


def _audit_overrides(arguments: argparse.Namespace) -> int:
    from pilltrack.edge.audit import AuditLog

    with AuditLog(home_of(arguments), create=False) as log:
        for number, override in log.overrides(arguments.limit):
            if arguments.json:
                row = {"id": number, **override.model_dump(mode="json")}
                print(json.dumps(row, ensure_ascii=False))
                continue
            kinds = ", ".join(dict.fromkeys(fault.kind for fault in override.faults))
            reason = " ".join(override.reason.split())
            time = f"{override.time:%Y-%m-%d %H:%M:%S}Z"
            print(f"{number:6}  {time}  {override.pill} ({kinds}): {reason}")
    return 0


def _add_serve(commands: Any) -> None:
    command = new_command(
        commands,
        "serve",
        "open the device's page and API on this machine",
        "pilltrack serve\n"
        "pilltrack serve --camera 0\n"
        "PILLTRACK_TOKEN=... pilltrack serve --host 192.168.1.20\n"
        "PILLTRACK_MQTT_PASSWORD=... pilltrack serve --mqtt-host broker.local --mqtt-tls",
    )
    add_bundle(command)
    add_home(command)
    command.add_argument(
        "--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only"
    )
    command.add_argument("--port", type=_port, default=8000, help="default: 8000")
    command.add_argument(
        "--camera", metavar="SOURCE", help="of the device: a number, /dev/video0, or a video file"
    )
    command.add_argument(
        "--threads", type=positive, default=2, help="that each model may use; default: 2"
    )
    command.add_argument(
        "--mqtt-host", metavar="HOST", help="a broker that is told of events (docs/device.md)"
    )
    command.add_argument(
        "--mqtt-port", type=_port, metavar="PORT", help="default: 1883, with TLS 8883"
    )
    command.add_argument("--mqtt-topic", metavar="TOPIC", help="default: pilltrack")
    command.add_argument(
        "--mqtt-tls", action="store_true", default=None, help="encrypt the connection to the broker"
    )
    command.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    from pilltrack.edge.serve import serve
    from pilltrack.edge.settings import Settings, broker_of, token_of

    settings = Settings(
        bundle=arguments.bundle or starter_bundle(),
        follow=arguments.bundle is None,
        home=home_of(arguments),
        host=arguments.host,
        port=arguments.port,
        token=token_of(),
        camera=arguments.camera,
        threads=arguments.threads,
        mqtt=broker_of(
            arguments.mqtt_host, arguments.mqtt_port, arguments.mqtt_topic, arguments.mqtt_tls
        ),
    )
    serve(settings)
    return 0


def _references(count: int) -> str:
    return "1 reference" if count == 1 else f"{count} references"


def _how_to_enrol(home: Path | None) -> str:
    enrol = "enrol one with `pilltrack gallery add NAME PHOTO...`"
    return enrol if home else f"{enrol} and name its --home"


def _add_evaluate_folder(commands: Any) -> None:
    command = new_command(
        commands,
        "evaluate-folder",
        "measure a bundle on photos of your own, without training",
        "pilltrack evaluate-folder --bundle artifacts/package/bundle \\\n"
        "    --gallery mine/gallery --probes mine/probes --strangers mine/strangers\n"
        "pilltrack evaluate-folder --bundle artifacts/package/bundle \\\n"
        "    --gallery mine/gallery --probes mine/probes --references 3 --json",
    )
    for name, required in (("bundle", True), ("gallery", True), ("probes", True)):
        command.add_argument(f"--{name}", type=Path, required=required, metavar="DIR")
    command.add_argument("--strangers", type=Path, metavar="DIR", help="pills never enrolled")
    command.add_argument(
        "--references", type=positive, metavar="K", help="enrol K photos of each pill (all)"
    )
    command.add_argument(
        "--rule-for",
        type=positive,
        metavar="N",
        help="decide by the rule for N pills (those of the gallery); more pills err more often",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_evaluate_folder)


def _evaluate_folder(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline.evaluate_folder import evaluate_folder

    report = evaluate_folder(
        arguments.bundle,
        arguments.gallery,
        arguments.probes,
        arguments.strangers,
        references=arguments.references,
        rule_for=arguments.rule_for,
    )
    if arguments.json:
        print(json.dumps(report))
        return 0
    from pilltrack.pipeline.results import Measure
    from pilltrack.pipeline.words import in_words

    for name, value in report.items():
        if isinstance(value, dict):
            measure = Measure.model_validate(value)
            share = name not in ("map", "auroc")
            value = in_words(measure, report.get("n_stranger_pills", 0), is_share=share)
        print(f"{name:24} {value}")
    return 0


def _add_evaluate_epillid(commands: Any) -> None:
    command = new_command(
        commands,
        "evaluate-epillid",
        "run the ePillID benchmark's protocol with a bundle's model, without training",
        "pilltrack evaluate-epillid ePillID_data --bundle artifacts/package/bundle\n"
        "pilltrack evaluate-epillid ePillID_data --bundle artifacts/package/bundle \\\n"
        "    --fold 4 --json",
    )
    command.add_argument(
        "directory", type=Path, metavar="DIR", help="holds classification_data/ and folds/"
    )
    command.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    command.add_argument(
        "--fold",
        type=not_negative,
        action="append",
        dest="folds",
        metavar="N",
        help="0 to 4, repeatable (all); 4 is the benchmark's holdout",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_evaluate_epillid)


def _evaluate_epillid(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline.epillid import as_text, evaluate_epillid

    report = evaluate_epillid(arguments.bundle, arguments.directory, arguments.folds)
    print(json.dumps(report) if arguments.json else as_text(report))
    return 0


def _add_report(commands: Any) -> None:
    command = new_command(
        commands,
        "report",
        "write what evaluate found as a page (report.html) and a pull-request comment (report.md)",
        "pilltrack report\npilltrack report --against v0.1.0 --out reports/today",
    )
    _add_run(command)
    command.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts/report"),
        metavar="DIR",
        help="default: artifacts/report",
    )
    command.add_argument(
        "--against", metavar="REV", help="git revision whose metrics stand beside today's"
    )
    command.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline.params import load_params
    from pilltrack.pipeline.report import report

    params = load_params(arguments.params)
    for path in report(params, arguments.artifacts, arguments.out, against=arguments.against):
        print(path)
    return 0


def _add_compare(commands: Any) -> None:
    command = new_command(
        commands,
        "compare",
        "may bundle B take the place of bundle A?",
        "pilltrack compare v1.0 artifacts/package/bundle\n"
        "pilltrack compare v1.0 HEAD --require-better --markdown comparison.md",
    )
    command.description = (
        "Put two bundles before one frozen test set and judge the differences.\n\n"
        "A and B are each a directory with a bundle, else a git revision. Exit code 3 when B is\n"
        "worse, breaks a promise, or when there are too few pills to tell; with --require-better\n"
        "also when B is not shown to be better."
    )
    command.add_argument("champion", metavar="A", help="the bundle in use")
    command.add_argument("challenger", metavar="B", help="the one that may follow it")
    _add_run(command)
    command.add_argument(
        "--captures",
        choices=("real", "rendered", "augmented"),
        help="default: evaluate.captures of the params",
    )
    command.add_argument(
        "--require-better", action="store_true", help="no difference is not enough"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument(
        "--markdown", type=Path, metavar="FILE.md", help="also write a pull-request comment"
    )
    command.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from pilltrack.core.files import write_atomically
    from pilltrack.pipeline.compare import compare, exit_code
    from pilltrack.pipeline.comparison_text import to_json, to_markdown, to_text
    from pilltrack.pipeline.params import load_params

    comparison = compare(
        load_params(arguments.params),
        arguments.artifacts,
        arguments.champion,
        arguments.challenger,
        captures=arguments.captures,
    )
    print(to_json(comparison) if arguments.json else to_text(comparison))
    if arguments.markdown:
        write_atomically(arguments.markdown, to_markdown(comparison).encode())
    return exit_code(comparison, arguments.require_better)


def _add_comment(commands: Any) -> None:
    comment = new_command(
        commands,
        "comment",
        "tell a pull request what the pipeline found",
        "pilltrack comment write --pr 12 --commit $(git rev-parse HEAD) --out note.json\n"
        "pilltrack comment post note.json",
    )
    actions = comment.add_subparsers(title="actions", metavar="ACTION", required=True)
    write = new_command(
        actions,
        "write",
        "write the report of this commit as a note, where the pipeline ran",
        "pilltrack comment write --pr 12 --commit $(git rev-parse HEAD) --out note.json \\\n"
        "    --comparison comparison.md --link run=https://example.org/runs/1",
    )
    write.add_argument("--pr", type=positive, required=True, metavar="N", help="the pull request")
    write.add_argument("--commit", type=_commit, required=True, metavar="SHA", help="its head")
    write.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    write.add_argument(
        "--artifacts", type=Path, default=Path("artifacts"), help="default: artifacts"
    )
    write.add_argument(
        "--comparison", type=Path, metavar="FILE.md", help="of `pilltrack compare --markdown`"
    )
    write.add_argument(
        "--link", type=_link, action="append", default=[], dest="links", metavar="NAME=URL"
    )
    write.set_defaults(run=_comment_write)
    post = new_command(
        actions,
        "post",
        "put a note on its pull request: one comment, written anew each time",
        "pilltrack comment post note.json",
    )
    post.description = (
        "Put a note on its pull request: one comment, written anew each time.\n\n"
        "Environment: GITHUB_TOKEN, GITHUB_REPOSITORY and GITHUB_EVENT_PATH, which GitHub Actions\n"
        "sets; GITHUB_API_URL, where it is not github.com; GITHUB_STEP_SUMMARY, which takes the\n"
        "note where a fork's token may not comment."
    )
    post.add_argument("note", type=Path, metavar="FILE.json")
    post.add_argument(
        "--author",
        default="github-actions[bot]",
        metavar="LOGIN",
        help="whose comment is renewed (github-actions[bot])",
    )
    post.set_defaults(run=_comment_post)


def _comment_write(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline.comment import write_note

    has_figures = write_note(
        arguments.out,
        pull_request=arguments.pr,
        commit=arguments.commit,
        artifacts=arguments.artifacts,
        comparison=arguments.comparison,
        links=dict(arguments.links),
    )
    print(arguments.out)
    if has_figures:
        return 0
    say("the note says why there are no figures for this commit")
    return GateFailed.exit_code


def _comment_post(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline.comment import read_note
    from pilltrack.pipeline.github import GitHub, post_note, read_event

    note = read_note(arguments.note)
    github = GitHub(
        os.environ.get("GITHUB_API_URL") or "https://api.github.com",
        _required("GITHUB_REPOSITORY"),
        _required("GITHUB_TOKEN"),
    )
    event = read_event(Path(_required("GITHUB_EVENT_PATH")))
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    done = post_note(
        note, event, github, author=arguments.author, summary=Path(page) if page else None
    )
    print(done)
    return 0


def _add_release(commands: Any) -> None:
    command = new_command(
        commands,
        "release",
        "pack the bundle of a tag, and nothing that is not the tag's",
        "pilltrack release v0.1.0 --out dist",
    )
    command.add_argument("tag", metavar="TAG", help="v and the version")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument(
        "--artifacts", type=Path, default=Path("artifacts"), help="default: artifacts"
    )
    command.set_defaults(run=_release)


def _release(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline.release import release

    for path in release(arguments.tag, arguments.artifacts, arguments.out):
        print(path)
    return 0


def _required(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise StageFailed(
            name,
            found="not set",
            expected="what GitHub Actions gives a job",
            remedy=f"Pass {name} in the environment of this step.",
        )
    return value


def _add_track(commands: Any) -> None:
    command = new_command(
        commands,
        "track",
        "send to MLflow the runs that it has not taken yet",
        "pilltrack track sync\nMLFLOW_TRACKING_URI=https://mlflow.example.org pilltrack track sync",
    )
    actions = command.add_subparsers(title="actions", metavar="ACTION", required=True)
    sync = new_command(
        actions, "sync", "send what waits in the spool, each run once", "pilltrack track sync"
    )
    sync.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    sync.set_defaults(run=_track_sync)


def _track_sync(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline.tracking import as_text, experiment_name, send, spool_of, tracking_uri

    uri = tracking_uri()
    print(as_text(send(spool_of(arguments.artifacts), uri, experiment_name()), uri))
    return 0


def _add_tune(commands: Any) -> None:
    command = new_command(
        commands,
        "tune",
        "search temperature, alpha and learning rate of distill",
        "pilltrack tune --trials 30\n"
        "pilltrack tune --trials 60 --workers 4 --temperature 0.05:0.2 --alpha 0.5\n"
        "PILLTRACK_TUNE_STORAGE=postgresql://ann@db/pills pilltrack tune --study may",
    )
    command.description = (
        "Search temperature, alpha and learning rate of distill, by recall@1 on validation\n"
        "pills. Teacher and data are those of `dvc repro train`.\n\n"
        "A study goes on where it stopped: start the command again, also several times over, or\n"
        "on other machines with the same storage. Ctrl-C keeps all trials that ended. Each trial\n"
        "becomes a run in MLflow."
    )
    command.add_argument("--study", default="distill", metavar="NAME", help="default: distill")
    command.add_argument(
        "--trials",
        type=positive,
        default=20,
        metavar="N",
        help="until so many have finished or been pruned, in all (20)",
    )
    command.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="processes at a time (1)"
    )
    for name, wide in (
        ("temperature", "0.02:0.5"),
        ("alpha", "0:1"),
        ("learning-rate", "a tenth of params.yaml's to ten times it"),
    ):
        command.add_argument(
            f"--{name}", type=_range, metavar="LOW:HIGH", help=f"or one value; default: {wide}"
        )
    command.add_argument(
        "--seed", type=not_negative, default=0, metavar="S", help="of the draw (0)"
    )
    command.add_argument(
        "--storage",
        metavar="URL",
        help="sqlite:///FILE or postgresql://USER@HOST/DATABASE; default: PILLTRACK_TUNE_STORAGE, "
        "else sqlite:///tune.db. A password belongs in PGPASSWORD or in that variable",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pilltrack.pipeline.params import load_params
    from pilltrack.pipeline.tune import Plan, as_text, command, ranges_of, tune
    from pilltrack.pipeline.tune_storage import DEFAULT_URL, STORAGE_VARIABLE

    params = load_params(Path("params.yaml"))
    ranges = {name: getattr(arguments, name) for name in ("temperature", "alpha", "learning_rate")}
    plan = Plan(
        storage=arguments.storage or os.environ.get(STORAGE_VARIABLE) or DEFAULT_URL,
        study=arguments.study,
        trials=arguments.trials,
        ranges=ranges_of(params.distill, {name: ends for name, ends in ranges.items() if ends}),
        seed=arguments.seed,
    )
    outcome = tune(params, Path("artifacts"), plan, arguments.workers)
    if arguments.json:
        print(json.dumps({**asdict(outcome), "command": command(outcome.values)}))
    else:
        print(as_text(outcome))
    return 0


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    ends = float(low), float(high or low)
    if not -math.inf < ends[0] <= ends[1] < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not LOW:HIGH")
    return ends


def _add_promote(commands: Any) -> None:
    command = new_command(
        commands,
        "promote",
        "make the challenger champion, if it is not worse",
        'pilltrack promote --reason "new pills of May, no harm shown"\n'
        'pilltrack promote 3 --first --by "A. Chemist" --reason "the first release"',
    )
    command.description = (
        "Compare the challenger in MLflow's registry with the champion on this machine's test\n"
        "split, and move the alias `champion` only if it is not worse. Who, when, why and the\n"
        "verdict are kept with the version."
    )
    _add_run(command)
    command.add_argument("version", nargs="?", metavar="VERSION", help="default: the challenger")
    command.add_argument("--reason", required=True, metavar="TEXT", help="why; kept")
    command.add_argument("--by", metavar="NAME", help="who; default: git's user.name")
    command.add_argument(
        "--model", metavar="NAME", help="the registered model; default: package.name of the params"
    )
    command.add_argument(
        "--first", action="store_true", help="there is no champion yet to be compared with"
    )
    command.add_argument(
        "--require-better", action="store_true", help="no difference is not enough"
    )
    command.set_defaults(run=_promote)


def _promote(arguments: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from pilltrack.pipeline.params import load_params
    from pilltrack.pipeline.promote import as_text, promote
    from pilltrack.pipeline.spool import user_name
    from pilltrack.pipeline.tracking import Registry, tracking_uri

    params = load_params(arguments.params)
    promotion = promote(
        Registry(tracking_uri(), arguments.model or params.package.name),
        params,
        arguments.artifacts,
        by=user_name() if arguments.by is None else arguments.by,
        reason=arguments.reason,
        now=datetime.now(UTC),
        number=arguments.version,
        first=arguments.first,
        require_better=arguments.require_better,
    )
    print(as_text(promotion))
    return 0


def _add_bench(commands: Any) -> None:
    command = new_command(
        commands,
        "bench",
        "how fast and how large a bundle is on this machine",
        "pilltrack bench\n"
        "pilltrack bench --bundle artifacts/package/bundle --check --out bench.json\n"
        "pilltrack bench --bundle artifacts/package/bundle \\\n"
        "    --against build/mobilenetv2_224.tflite",
    )
    add_bundle(command)
    command.add_argument(
        "--against", type=Path, metavar="FILE.tflite", help="another model, measured in turns"
    )
    command.add_argument("--runs", type=positive, default=500, metavar="N", help="crops (500)")
    command.add_argument(
        "--references",
        type=positive,
        default=10_000,
        metavar="N",
        help="fill the gallery up to N (10000)",
    )
    command.add_argument("--threads", type=positive, default=1, metavar="N", help="default: 1")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument("--out", type=Path, metavar="FILE.json", help="also write the JSON")
    command.add_argument(
        "--check", action="store_true", help="exit code 3 when a limit is broken (docs/bench.md)"
    )
    command.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from pilltrack.core.bench import as_text, bench, require_limits
    from pilltrack.core.files import write_atomically

    report = bench(
        bundle_of(arguments),
        against=arguments.against,
        runs=arguments.runs,
        references=arguments.references,
        threads=arguments.threads,
    )
    print(report.model_dump_json() if arguments.json else as_text(report))
    if arguments.out:
        write_atomically(arguments.out, f"{report.model_dump_json(indent=1)}\n".encode())
    if arguments.check:
        require_limits(report)
    return 0


def _add_selftest(commands: Any) -> None:
    command = new_command(
        commands,
        "selftest",
        "does a bundle keep its promises on this device, and which own pills does it confuse",
        "pilltrack selftest\n"
        "pilltrack selftest --bundle artifacts/package/bundle --home /var/lib/pilltrack\n"
        "pilltrack selftest --bundle bundle --max-frame-ms 200 --json",
    )
    command.description = (
        "Try a bundle as an update does before it serves: its golden probes, the time of a frame,\n"
        "and the pills enrolled on this device (docs/bundle.md).\n\n"
        "Exit code 3 when it fails. Which home is asked: as `pilltrack identify`."
    )
    add_bundle(command)
    add_home(command)
    command.add_argument(
        "--max-frame-ms", type=float, default=1000.0, metavar="N", help="of one core (1000)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_selftest)


def _selftest(arguments: argparse.Namespace) -> int:
    from pilltrack.edge.selftest import as_text, require_passed, self_test

    home = home_of(arguments) if arguments.home or not arguments.bundle else None
    bundle = bundle_of(arguments)
    found = self_test(bundle, home, arguments.max_frame_ms)
    print(found.model_dump_json() if arguments.json else as_text(found))
    require_passed(found, bundle)
    return 0


def _add_synth(commands: Any) -> None:
    command = new_command(
        commands,
        "synth",
        "render the embedded data set",
        "pilltrack synth --pills 60 --photos 20 --seed 7 --out data/pills_dataset_resnet.zip",
    )
    command.add_argument("--pills", type=positive, required=True, metavar="N")
    command.add_argument("--photos", type=positive, required=True, metavar="M", help="per pill")
    command.add_argument("--seed", type=not_negative, required=True, metavar="S")
    command.add_argument("--out", type=Path, required=True, metavar="FILE.zip")
    command.add_argument(
        "--sheet", type=Path, metavar="FILE.jpg", help="also write a contact sheet"
    )
    command.set_defaults(run=_synth)


def _synth(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pilltrack.pipeline.synth import contact_sheet, synth

    with tqdm(total=arguments.pills, desc="synth", unit="pill", disable=None) as bar:
        synth(
            arguments.out,
            pills=arguments.pills,
            photos=arguments.photos,
            seed=arguments.seed,
            progress=lambda done: bar.update(done - bar.n),
        )
    print(arguments.out)
    if arguments.sheet:
        contact_sheet(arguments.out, arguments.sheet)
        print(arguments.sheet)
    return 0


def _add_crop_boxes(commands: Any) -> None:
    command = new_command(
        commands,
        "crop-boxes",
        "cut the boxes of a YOLO data set into folders for evaluate-folder",
        "pilltrack crop-boxes phone_pills.zip --out crops\n"
        "pilltrack crop-boxes phone_pills --out phone_crops --references 5 --strangers 5 --seed 1",
    )
    command.description = (
        "Cut every box of a YOLO data set into a square PNG.\n\n"
        "Without --references they become OUT/<class>/<photo>_<n>.png. With it, OUT/gallery/,\n"
        "OUT/probes/ and OUT/strangers/ hold such folders, ready for evaluate-folder: no probe is\n"
        "from the photo of a reference of its pill."
    )
    command.add_argument("source", type=Path, metavar="DIR_OR_ZIP")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument(
        "--references", type=positive, metavar="K", help="photos of each pill for gallery/"
    )
    command.add_argument(
        "--strangers", type=not_negative, metavar="N", help="pills for strangers/ (0)"
    )
    command.add_argument("--seed", type=not_negative, metavar="S", help="of the draw (0)")
    command.add_argument("--json", action="store_true", help="print the report as one JSON object")
    command.set_defaults(run=_crop_boxes, wrong=command.error)


def _crop_boxes(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pilltrack.pipeline.yolo import crop_boxes, split_folders

    if arguments.references is not None:
        report = asdict(
            split_folders(
                arguments.source,
                arguments.out,
                references=arguments.references,
                strangers=arguments.strangers or 0,
                seed=arguments.seed or 0,
            )
        )
    elif arguments.strangers is None and arguments.seed is None:
        report = asdict(crop_boxes(arguments.source, arguments.out))
    else:
        arguments.wrong("--strangers and --seed need --references")
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
        return 0
    for line in _crop_lines(report):
        print(line)
    return 0


def _crop_lines(report: dict[str, Any]) -> list[str]:
    """Say what a CropReport or FolderReport, as a dictionary, holds; nothing about zeros."""
    lines = []
    for part in ("crops", "gallery", "probes", "strangers"):
        if part in report:
            counts = [count for count in report[part].values() if count]
            lines.append(f"{part:11} {sum(counts)} crops of {len(counts)} pills")
    if report["n_copies_left_out"]:
        lines.append(f"left out    {report['n_copies_left_out']} Roboflow copies of photos used")
    if report.get("n_left_out"):
        lines.append(f"left out    {report['n_left_out']} crops from the photo of a reference")
    if report.get("short"):
        lines.append(f"too few     references of {', '.join(report['short'])}")
    lines += [f"note        {note}" for note in report["notes"]]
    if report["ignored"]:
        names = ", ".join([*report["ignored"][:3], "..."][: len(report["ignored"])])
        lines.append(f"ignored     {len(report['ignored'])} other files: {names}")
    return lines


def _add_summary(commands: Any) -> None:
    command = new_command(
        commands,
        "summary",
        "the result of the last `dvc repro` in a few lines",
        "pilltrack summary",
    )
    command.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    command.set_defaults(run=_summary)


def _summary(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline.summary import summary

    print(summary(arguments.artifacts))
    return 0


def _add_remote(commands: Any) -> None:
    command = new_command(
        commands,
        "remote",
        "where DVC keeps data and models: the folder dvc-remote/, or S3",
        "pilltrack remote\n"
        "PILLTRACK_REMOTE=s3://pills/team pilltrack remote s3\n"
        "pilltrack remote folder",
    )
    command.description = (
        "Say where `dvc push` and `dvc pull` go, or change it for this clone.\n\n"
        "`s3` takes the address from the environment (.env.example), tries to write there, and\n"
        "only then makes it the default in .dvc/config.local. Keys stay in the environment."
    )
    command.add_argument("place", nargs="?", choices=("s3", "folder"), help="default: only say")
    command.set_defaults(run=_remote)


def _remote(arguments: argparse.Namespace) -> int:
    from pilltrack.pipeline import doctor, remote

    project = Path.cwd()
    if arguments.place == "folder":
        remote.use_folder(project)
    elif arguments.place == "s3":
        address = remote.s3_from(os.environ)
        if address is None:
            raise InputRejected(
                "PILLTRACK_REMOTE",
                found="not set",
                expected="s3://BUCKET/PREFIX",
                remedy="Fill in the variables of .env.example.",
            )
        doctor.require_s3(address, os.environ)
        remote.use_s3(project, address)
    print(remote.current_remote(project))
    return 0


def _add_doctor(commands: Any) -> None:
    command = new_command(
        commands,
        "doctor",
        "what this machine lacks for the pipeline, and how to mend it",
        "pilltrack doctor\npilltrack doctor --json --require 's3 write' --require gpu",
    )
    command.description = (
        "Check Python, packages, disk, GPU, DVC's remote, writing to S3, and MLflow.\n\n"
        "Exit code 1 when something is missing or broken; what nothing asks for is `not used`."
    )
    command.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="CHECK",
        help="may not be `not used`, such as 's3 write' in CI; repeatable",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pilltrack.pipeline.doctor import as_text, examine, exit_code

    checks = examine(Path.cwd(), os.environ, arguments.require)
    code = exit_code(checks)
    if arguments.json:
        print(json.dumps({"healthy": code == 0, "checks": [asdict(check) for check in checks]}))
    else:
        print(as_text(checks))
    return code


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..65535")
    return port


def _commit(text: str) -> str:
    if len(text) != 40 or set(text) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text} is not a whole commit: 40 digits 0-9a-f")
    return text


def _link(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=URL")
    return name, url
