"""A hostile or damaged archive is refused by name, and nothing of it stays on disk."""

import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilltrack.core.errors import ArchiveRejected
from pilltrack.pipeline.archive import MAX_RATIO, Extraction, extract, files_outside, unwrapped
from tests.pipeline.pill_zips import zip_bytes, zipped

LIMIT = 10_000_000


def unzip(archive: Path, **limits: int) -> Extraction:
    return extract(archive, archive.parent / "target", **{"max_bytes": LIMIT, **limits})


def refusal(archive: Path, **limits: int) -> ArchiveRejected:
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(ArchiveRejected) as caught:
        unzip(archive, **limits)
    assert sorted(archive.parent.rglob("*")) == before, "something was left behind"
    assert str(archive) in caught.value.subject
    assert caught.value.remedy
    return caught.value


def one_member(path: Path, info: zipfile.ZipInfo, data: bytes = b"data") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fine.txt", b"fine")
        archive.writestr(info, data)
    return path


def test_files_and_folders_come_out_as_they_were(tmp_path: Path) -> None:
    files = {"a/1.png": b"one", "a/deep/2.png": b"two", "empty.txt": b""}
    extraction = unzip(zipped(tmp_path / "x.zip", files))
    assert (extraction.n_files, extraction.n_bytes, extraction.skipped) == (3, 6, ())
    found = {
        path.relative_to(extraction.directory).as_posix(): path.read_bytes()
        for path in extraction.directory.rglob("*")
        if path.is_file()
    }
    assert found == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "x.zip"]


def test_junk_of_desktop_systems_is_left_out_and_reported(tmp_path: Path) -> None:
    junk = ["__MACOSX/a/._1.png", "a/.DS_Store", "a/Thumbs.db", "a/._1.png", "desktop.ini"]
    extraction = unzip(zipped(tmp_path / "x.zip", dict.fromkeys(["a/1.png", *junk], b"x")))
    assert extraction.skipped == tuple(junk)
    assert [path.name for path in extraction.directory.rglob("*.*")] == ["1.png"]


@pytest.mark.parametrize(
    "name",
    ["../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "C:/evil.txt", "c:evil.txt",
     "a\\..\\evil.txt", "a/\x07bell.txt", ".", "a/" + "n" * 201, "d/" * 501 + "x"],
)  # fmt: skip
def test_name_that_leaves_the_folder_or_fits_no_disk_is_refused(tmp_path: Path, name: str) -> None:
    error = refusal(zipped(tmp_path / "x.zip", {"fine.txt": b"", name: b"evil"}))
    assert repr(name)[1:20] in error.subject
    assert not (tmp_path.parent / "evil.txt").exists()


def test_name_with_a_nul_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zip_bytes({"aXb.png": b"x"}).replace(b"aXb.png", b"a\0b.png"))
    assert "control character" in refusal(path).found


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (stat.S_IFLNK, "a symbolic link"),
        (stat.S_IFIFO, "not a regular file"),
        (stat.S_IFCHR, "not a regular file"),
        (stat.S_IFSOCK, "not a regular file"),
    ],
)
def test_link_or_device_is_refused(tmp_path: Path, kind: int, message: str) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    error = refusal(one_member(tmp_path / "x.zip", info, b"/etc/passwd"))
    assert error.found == message
    assert "'link'" in error.subject


def test_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"secret.png": b"data"})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # general purpose flag of the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and of the central directory
    path.write_bytes(data)
    error = refusal(path)
    assert error.found == "encrypted"
    assert "'secret.png'" in error.subject


@pytest.mark.parametrize("second", ["a/1.png", "A/1.PNG", "a/./1.png"])
def test_name_given_twice_is_refused_also_by_case(tmp_path: Path, second: str) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/1.png", b"one")
        if second == "a/1.png":
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(second, b"two")
        else:
            archive.writestr(second, b"two")
    assert "the same name" in refusal(path).found


def test_same_name_in_two_unicode_forms_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"caf\u00e9.png": b"1", "cafe\u0301.png": b"2"})
    assert "the same name" in refusal(path).found


def test_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a": b"file", "a/1.png": b"in a folder"})
    assert "the same name" in refusal(path).found


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zip_bytes({"bomb.png": bytes(5_000_000)}, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 5_000_000 / MAX_RATIO
    error = refusal(path)
    assert "unpack to 5000000" in error.found
    assert "'bomb.png'" in error.subject


def test_small_text_may_compress_well(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zip_bytes({"images.csv": b"a,b\n" * 200_000}, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 800_000 / MAX_RATIO
    assert unzip(path).n_bytes == 800_000


def test_more_bytes_than_the_limit_are_refused_and_the_limit_itself_is_not(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"1.bin": b"x" * 600, "2.bin": b"x" * 400})
    assert "max_unzipped_gb" in refusal(path, max_bytes=999).remedy
    assert unzip(path, max_bytes=1000).n_bytes == 1000


def test_member_larger_than_its_header_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    data = bytearray(zip_bytes({"liar.png": b"x" * 50_000}, zipfile.ZIP_DEFLATED))
    directory = data.index(b"PK\x01\x02")
    for place in (22, directory + 24):  # uncompressed size, local and central
        assert struct.unpack_from("<I", data, place) == (50_000,)
        struct.pack_into("<I", data, place, 10)
    path.write_bytes(data)
    error = refusal(path, max_bytes=1000)
    assert "damaged" in error.found
    assert "'liar.png'" in error.subject


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {f"{n}.txt": b"" for n in range(11)})
    assert refusal(path, max_members=10).found == "11 members"


def test_flipped_bit_is_refused_by_its_checksum(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"fine.png": b"fine", "hurt.png": b"0123456789"})
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123406789"))
    error = refusal(path)
    assert "'hurt.png'" in error.subject
    assert "damaged" in error.found


def test_damaged_compressed_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    data = bytearray(zip_bytes({"hurt.png": bytes(range(256)) * 40}, zipfile.ZIP_DEFLATED))
    data[60:70] = b"\xff" * 10
    path.write_bytes(data)
    assert "damaged" in refusal(path).found


def test_unknown_compression_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(zip_bytes({"a.png": b"x" * 500}, zipfile.ZIP_LZMA))
    assert refusal(path).expected == "stored or deflated"


@pytest.mark.parametrize("kept", [0, 1, 100, -1, -30])
def test_truncated_zip_is_refused(tmp_path: Path, kept: int) -> None:
    path = zipped(tmp_path / "x.zip", {f"{n}.png": b"data" * 30 for n in range(5)})
    path.write_bytes(path.read_bytes()[:kept])
    assert "not a whole zip" in refusal(path).found


def test_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"Rar!\x1a\x07\x00 not a zip")
    assert "not a whole zip" in refusal(path).found


def test_missing_archive_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere.zip").found


def test_existing_target_is_never_touched(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(FileExistsError):
        extract(zipped(tmp_path / "x.zip", {"a": b""}), target, max_bytes=LIMIT)
    assert list(target.iterdir()) == []


def test_member_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"\u00e9.png": b"x"})
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    assert "not a whole zip" in refusal(path).found


@settings(max_examples=250, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_damaged_zip_is_refused_or_unpacked_inside_its_folder(
    changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("zip")
    data = bytearray(zip_bytes({"a/1.png": b"one" * 9, "b/\u00e9.png": b"two" * 9}, 8))
    for place, value in changes:
        data[place % len(data)] = value
    path = directory / "x.zip"
    path.write_bytes(data)
    try:
        extraction = unzip(path)
    except ArchiveRejected:
        assert [entry.name for entry in directory.iterdir()] == ["x.zip"]
    else:
        assert sorted(entry.name for entry in directory.iterdir()) == ["target", "x.zip"]
        written = [entry for entry in extraction.directory.rglob("*") if entry.is_file()]
        assert len(written) == extraction.n_files


@pytest.mark.parametrize(
    ("files", "root"),
    [
        (["set/pill/1.png"], "set"),
        (["set/pill/1.png", "set/images.csv"], "set"),
        (["pill/1.png"], "."),
        (["a/1.png", "b/1.png"], "."),
        (["set/pill/1.png", "README.txt", "LICENSE", ".hidden"], "set"),
        (["set/pill/1.png", "1.png"], "."),
        (["set/pill/1.png", "data.yaml"], "."),
        (["set/pill/1.png", "images.csv"], "."),
        (["pill/1.png", "README.txt"], "."),
        (["train/pill/1.png"], "."),
    ],
)
def test_only_a_single_folder_of_folders_is_a_wrapper(
    tmp_path: Path, files: list[str], root: str
) -> None:
    extraction = unzip(zipped(tmp_path / "x.zip", dict.fromkeys(files, b"")))
    assert (
        unwrapped(extraction.directory, keep={"train", "data.yaml"}) == extraction.directory / root
    )


def test_files_beside_the_wrapping_folder_are_named(tmp_path: Path) -> None:
    files = ["set/pill/1.png", "README.txt", ".hidden"]
    directory = unzip(zipped(tmp_path / "x.zip", dict.fromkeys(files, b""))).directory
    assert files_outside(directory, directory / "set") == (".hidden", "README.txt")
    assert files_outside(directory, directory) == ()
