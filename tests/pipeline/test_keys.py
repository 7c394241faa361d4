"""Keys are made, kept from others, replaced and signed with; nothing is in force too early."""

from __future__ import annotations

import json
import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pilltrack import cli
from pilltrack.core.errors import InputRejected, StageFailed
from pilltrack.pipeline import keys
from pilltrack.pipeline.keys import KeyMissing
from pilltrack.pipeline.roots import Days, RootRejected, follow, parse, read_chain, read_root
from tests.releases import PASSPHRASE, some_keys

NOW = datetime.now(UTC)


def root_keys(folder: Path) -> list[Path]:
    return sorted(folder.glob("root-*.pem"))


def move(folder: Path, other: Path, *paths: Path) -> Path:
    """Root keys as they lie on another medium."""
    other.mkdir(exist_ok=True)
    for path in paths:
        path.rename(other / path.name)
    return other


def test_init_makes_a_root_that_is_signed_by_its_threshold(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys", root_keys=5, threshold=3)
    [root] = read_chain(folder)
    assert (len(root.keys("root")), root.root.roles["root"].threshold) == (5, 3)
    assert root.root.roles["snapshot"].keyids == root.root.roles["timestamp"].keyids
    assert root.root.roles["snapshot"].keyids != root.root.roles["targets"].keyids
    assert {key.scheme for key in root.root.keys.values()} == {"ed25519"}
    assert root.days == Days(root=730, targets=365, online=30)
    assert abs(root.root.expires - (datetime.now(UTC) + timedelta(days=730))) < timedelta(minutes=5)
    assert len(list(folder.glob("*.pem"))) == 7


def test_private_keys_are_readable_by_their_owner_only_and_encrypted(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys", passphrase=PASSPHRASE)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.glob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----"), path
    proposal = keys.rotate(folder, "online", now=NOW, passphrase=PASSPHRASE)
    assert proposal.missing == 0
    for path in [*folder.glob("*.pem"), *(folder / "retired").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert b"ENCRYPTED" in path.read_bytes()
    assert stat.S_IMODE((folder / "retired").stat().st_mode) == 0o700


@pytest.mark.parametrize("passphrase", [b"another passphrase altogether", None])
def test_wrong_or_missing_passphrase_opens_nothing(
    tmp_path: Path, passphrase: bytes | None
) -> None:
    folder = some_keys(tmp_path / "keys", passphrase=PASSPHRASE)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(KeyMissing, match="passphrase"):
        keys.renew_root(folder, now=NOW, passphrase=passphrase)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRejected, match="passphrase of 6 bytes; expected at least 20"):
        some_keys(tmp_path / "keys", passphrase=b"secret")
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(
    ("passphrase", "said"),
    [
        (b"f\xfcnf sichere W\xf6rter hier", "not UTF-8"),
        (b"x" * 1024, "of 1024 bytes; expected at most 1023"),
    ],
)
def test_a_passphrase_that_cannot_be_used_is_refused(
    passphrase: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(keys.PASSPHRASE, os.fsdecode(passphrase))
    assert cli.main(["keys", "init", "--keys", str(tmp_path / "keys")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


def test_the_longest_passphrase_opens_what_it_encrypted(tmp_path: Path) -> None:
    longest = keys.passphrase_from({keys.PASSPHRASE: "x" * 1023})
    folder = some_keys(tmp_path / "keys", passphrase=longest)
    assert keys.renew_root(folder, now=NOW, passphrase=longest).missing == 0


def test_init_replaces_nothing(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputRejected, match="not empty"):
        some_keys(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(("n_keys", "threshold"), [(3, 0), (3, 4), (0, 0), (17, 2)])
def test_a_threshold_that_cannot_be_is_refused(tmp_path: Path, n_keys: int, threshold: int) -> None:
    with pytest.raises(InputRejected, match="threshold"):
        some_keys(tmp_path / "keys", root_keys=n_keys, threshold=threshold)


@pytest.mark.parametrize("role", ["targets", "online"])
def test_rotate_replaces_a_key_and_puts_the_old_one_aside(tmp_path: Path, role: str) -> None:
    folder = some_keys(tmp_path / "keys")
    [old] = folder.glob(f"{role}-*.pem")
    proposal = keys.rotate(folder, role, now=NOW, passphrase=None)  # type: ignore[arg-type]
    first, second = read_chain(folder)
    assert (proposal.version, proposal.missing) == (2, 0)
    assert [path.name for path in (folder / "retired").iterdir()] == [old.name]
    [new] = folder.glob(f"{role}-*.pem")
    assert new.name != old.name
    assert len(second.root.keys) == len(first.root.keys)
    assert old.stem[-8:] not in {key[:8] for key in second.root.keys}


def test_rotate_root_asks_which_key(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys")
    with pytest.raises(InputRejected, match="--key"):
        keys.rotate(folder, "root", now=NOW, passphrase=None)
    with pytest.raises(InputRejected, match="0 keys"):
        keys.rotate(folder, "root", now=NOW, passphrase=None, key="x")


def test_a_lost_root_key_is_replaced_by_those_that_are_left(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys")
    lost = root_keys(folder)[0]
    lost.unlink()
    proposal = keys.rotate(folder, "root", now=NOW, passphrase=None, key=lost.stem[-8:])
    assert proposal.missing == 0
    assert [root.version for root in read_chain(folder)] == [1, 2]
    assert len(root_keys(folder)) == 3
    assert not (folder / "retired").exists()


def test_one_signature_of_two_puts_nothing_in_force(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys")
    first, second, third = root_keys(folder)
    away = move(folder, tmp_path / "stick", first)
    lost = move(folder, tmp_path / "safe", second)
    [online] = folder.glob("online-*.pem")
    proposal = keys.rotate(folder, "online", now=NOW, passphrase=None)
    assert (proposal.version, proposal.missing) == (2, 1)
    assert [root.version for root in read_chain(folder)] == [1]
    assert online.exists()  # and goes on signing
    part = folder / "2.root.json.part"
    with pytest.raises(RootRejected, match="1 valid signatures by keys of root 1; expected at"):
        follow(read_chain(folder)[0], part.read_bytes())
    with pytest.raises(KeyMissing, match="no root key that may sign"):
        keys.sign(folder, folder, passphrase=None)  # the third has signed already
    with pytest.raises(StageFailed, match="waits for signatures"):
        keys.rotate(folder, "targets", now=NOW, passphrase=None)
    signed = keys.sign(folder, away, passphrase=None)
    assert signed.missing == 0
    assert [root.version for root in read_chain(folder)] == [1, 2]
    assert not part.exists()
    assert (folder / "retired" / online.name).exists()
    assert {path.name for path in lost.iterdir()} == {second.name}
    with pytest.raises(StageFailed, match="no root that waits"):
        keys.sign(folder, lost, passphrase=None)
    assert third.exists()


def test_a_root_is_signed_where_the_root_key_lies(tmp_path: Path) -> None:
    """Each holder gets the roots and the waiting one, on a machine without any other key."""
    folder = some_keys(tmp_path / "keys")
    holders = [
        move(folder, tmp_path / f"holder{number}", path)
        for number, path in enumerate(root_keys(folder))
    ]
    assert keys.rotate(folder, "targets", now=NOW, passphrase=None).missing == 2
    part = folder / "2.root.json.part"
    for holder, missing in zip(holders[:2], (1, 0), strict=True):
        shutil.copy(folder / "1.root.json", holder)
        shutil.copy(part, holder)
        assert keys.sign(holder, holder, passphrase=None).missing == missing
        done = holder / (part.name if missing else "2.root.json")
        shutil.copy(done, folder)
    assert [root.version for root in read_chain(folder)] == [1, 2]
    told = keys.describe(folder, NOW)
    assert told["root"] == 2
    assert told["waiting"] is None


def test_renew_keeps_the_keys_and_changes_for_how_long(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys")
    later = NOW + timedelta(days=700)
    proposal = keys.renew_root(folder, now=later, passphrase=None, days=Days(online=14))
    first, second = read_chain(folder)
    assert proposal.changes == [f"holds until {later + timedelta(days=730):%Y-%m-%d}"]
    assert second.root.keys == first.root.keys
    assert second.days.online == 14


def test_an_expired_root_can_still_be_renewed(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys", days=Days(root=1))
    later = NOW + timedelta(days=2)
    assert keys.describe(folder, later)["expired"]
    keys.renew_root(folder, now=later, passphrase=None)
    assert not keys.describe(folder, later)["expired"]


def test_show_says_what_is_here_and_what_is_missing(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys")
    away, *_ = root_keys(folder)
    move(folder, tmp_path / "stick", away)
    files = [key["file"] for key in keys.describe(folder, NOW)["roles"]["root"]["keys"]]
    assert sorted(filter(None, files)) == [path.name for path in root_keys(folder)]
    assert len(files) == 3
    for path in root_keys(folder):
        move(folder, tmp_path / "stick", path)
    keys.rotate(folder, "online", now=NOW, passphrase=None)
    waiting = keys.describe(folder, NOW)["waiting"]
    assert waiting["root"] == 2
    assert (waiting["missing_of_old"], waiting["missing_of_new"]) == (2, 2)
    assert len(waiting["may_sign"]) == 3
    assert waiting["signed"] == []
    text = keys.as_text(keys.describe(folder, NOW))
    assert "root 2 waits for 2 signatures by keys of root 1 and 2 by its own" in text
    assert "not here" in text


def test_a_root_of_somebody_else_is_not_followed(tmp_path: Path) -> None:
    folder, other = some_keys(tmp_path / "keys"), some_keys(tmp_path / "other")
    keys.rotate(other, "online", now=NOW, passphrase=None)
    shutil.copy(other / "2.root.json", folder)
    with pytest.raises(RootRejected, match="0 valid signatures by keys of root 1"):
        read_chain(folder)


def test_a_changed_or_missing_root_is_refused(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys")
    keys.renew_root(folder, now=NOW, passphrase=None)
    keys.renew_root(folder, now=NOW, passphrase=None)
    (folder / "2.root.json").rename(tmp_path / "2.root.json")
    with pytest.raises(RootRejected, match=r"no 2\.root\.json"):
        read_chain(folder)
    content = json.loads((tmp_path / "2.root.json").read_bytes())
    content["signed"]["expires"] = "2040-01-01T00:00:00Z"
    (folder / "2.root.json").write_text(json.dumps(content))
    with pytest.raises(RootRejected, match="0 valid signatures"):
        read_chain(folder)
    (folder / "2.root.json").write_bytes(b"{}")
    with pytest.raises(RootRejected):
        read_chain(folder)


def test_a_root_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys")
    for _ in range(3):
        keys.renew_root(folder, now=NOW, passphrase=None)
    first, _, third, _ = read_chain(folder)
    with pytest.raises(RootRejected, match="root 3: it follows root 1; expected numbers without"):
        follow(first, third.data)
    shutil.copy(folder / "3.root.json", folder / "2.root.json")
    with pytest.raises(RootRejected, match="root 3: it follows root 1"):
        read_chain(folder)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "3.root.json", alone / "2.root.json")
    with pytest.raises(RootRejected, match=r"2\.root\.json: root 3; expected root 2"):
        read_chain(alone)


def test_a_waiting_root_under_the_name_of_another_is_not_signed(tmp_path: Path) -> None:
    folder = some_keys(tmp_path / "keys")
    away = move(folder, tmp_path / "stick", *root_keys(folder)[1:])
    keys.rotate(folder, "online", now=NOW, passphrase=None)
    part = folder / "2.root.json.part"
    waiting = parse(part.read_bytes())
    waiting.signed.version = 3
    part.write_bytes(waiting.to_bytes())
    with pytest.raises(RootRejected, match=r"part: root 3; expected root 2"):
        keys.sign(folder, away, passphrase=None)
    assert part.read_bytes() == waiting.to_bytes()


def test_only_ed25519_keys_may_sign(tmp_path: Path) -> None:
    root = read_root(some_keys(tmp_path / "keys") / "1.root.json")
    content = json.loads(root.data)
    key = next(iter(content["signed"]["keys"].values()))
    key.update({"keytype": "rsa", "scheme": "rsassa-pss-sha256"})
    with pytest.raises(RootRejected, match="expected only ed25519"):
        parse(json.dumps(content).encode())


def test_a_private_key_under_anothers_name_is_refused(tmp_path: Path) -> None:
    folder, other = some_keys(tmp_path / "keys"), some_keys(tmp_path / "other")
    shutil.copy(root_keys(other)[0], root_keys(folder)[0])
    with pytest.raises(KeyMissing, match="another key"):
        keys.renew_root(folder, now=NOW, passphrase=None)


def test_a_private_key_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = some_keys(tmp_path / "keys")
    root_keys(folder)[0].chmod(0o644)
    keys.renew_root(folder, now=NOW, passphrase=None)
    assert "chmod 600" in caplog.text


def test_openssl_can_open_and_strengthen_a_key(tmp_path: Path) -> None:
    """As docs/fleet.md says for keys that leave the house."""
    import subprocess

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    folder = some_keys(tmp_path / "keys", passphrase=PASSPHRASE)
    for path in root_keys(folder):
        strong = path.with_suffix(".new")
        words = PASSPHRASE.decode()
        subprocess.run(
            [openssl, "pkcs8", "-topk8", "-scrypt", "-in", path, "-out", strong,
             "-passin", "env:WORDS", "-passout", "env:WORDS"],
            check=True, env={"WORDS": words},
        )  # fmt: skip
        strong.rename(path)
    assert keys.renew_root(folder, now=NOW, passphrase=PASSPHRASE).missing == 0


class TestCommands:
    def test_keys_without_a_passphrase_only_if_that_is_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "keys"
        for value in ("", None):
            if value is None:
                monkeypatch.delenv(keys.PASSPHRASE)
            else:
                monkeypatch.setenv(keys.PASSPHRASE, value)
            assert cli.main(["keys", "init", "--keys", str(folder)]) == 1
            assert "--no-passphrase" in capsys.readouterr().err
            assert not folder.exists()
        assert cli.main(["keys", "init", "--keys", str(folder), "--no-passphrase"]) == 0
        assert cli.main(["keys", "rotate", "online", "--keys", str(folder)]) == 1
        assert not (folder / "2.root.json").exists()

    def test_the_passphrase_is_never_said(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        words = "wrong horse battery staple"
        folder = ["--keys", str(tmp_path / "keys")]
        monkeypatch.setenv(keys.PASSPHRASE, PASSPHRASE.decode())
        assert cli.main(["-v", "keys", "init", *folder]) == 0
        assert cli.main(["-v", "keys", "rotate", "targets", *folder]) == 0
        monkeypatch.setenv(keys.PASSPHRASE, words)
        assert cli.main(["-v", "keys", "rotate", "online", *folder]) == 1
        said = "".join(capfd.readouterr())
        assert words not in said
        assert PASSPHRASE.decode() not in said
        assert "that the passphrase does not open" in said

    def test_show_as_json(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv(keys.PASSPHRASE, raising=False)
        folder = ["--keys", str(tmp_path / "keys")]
        days = ["--root-days", "400", "--online-days", "7"]
        assert cli.main(["keys", "init", "--no-passphrase", *days, *folder]) == 0
        assert "1.root.json" in capsys.readouterr().out
        assert cli.main(["keys", "show", "--json", *folder]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [told["roles"][role]["days"] for role in ("root", "targets", "online")] == [
            400, 365, 7,
        ]  # fmt: skip
        assert cli.main(["keys", "renew", "--online-days", "0", *folder]) == 1
        assert "--online-days: 0" in capsys.readouterr().err
