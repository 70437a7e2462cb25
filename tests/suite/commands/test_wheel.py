"""What of a wheel one GPU needs: fat binaries of our own bytes, a real one where nvcc is, bad input."""

from __future__ import annotations

import ctypes
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from validators.__main__ import main
from validators.kernels import fatbin

PTX, ELF = 1, 2
SCHEMA = b"\0fp8_scaled_mm(Tensor mat_a) -> Tensor\0"


def entry(kind: int, arch: int, payload: bytes, header: int = 64) -> bytes:
    start = struct.pack("<HHIQ", kind, 0x0101, header, len(payload)) + bytes(12) + struct.pack("<I", arch)
    return start.ljust(header, b"\x11") + payload


def region(*entries: bytes) -> bytes:
    body = b"".join(entries)
    packed = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body
    return packed + bytes(-len(packed) % 8)


def elf(section: bytes, name: bytes = b".nv_fatbin", rest: bytes = SCHEMA) -> bytes:
    """A 64-bit ELF file with one section ``name`` that holds ``section``, and ``rest`` outside of it."""
    names = b"\0.shstrtab\0" + name + b"\0"
    head = 64
    table = head + len(names) + len(rest) + len(section)
    rows = [(0, 0, 0), (1, head, len(names)), (11, head + len(names) + len(rest), len(section))]
    header = (
        b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<Q", table) + bytes(10) + struct.pack("<HHH", 64, 3, 1)
    )
    sections = b"".join(struct.pack("<IIQQQQ", n, 0, 0, 0, at, size).ljust(64, b"\0") for n, at, size in rows)
    return header.ljust(head, b"\0") + names + rest + section + sections


A80, A90, A100, P80, P90 = b"a80" * 40, b"a90" * 41, b"a100" * 42, b"p80" * 43, b"p90" * 44
BOTH = region(
    entry(ELF, 80, A80), entry(ELF, 90, A90), entry(ELF, 100, A100, header=112), entry(PTX, 90, P90, header=80)
)
ONLY_PTX = region(entry(ELF, 80, A80), entry(PTX, 80, P80, header=80))
LIBRARY = elf(BOTH + bytes(16) + ONLY_PTX)


# ---- fat binaries ---------------------------------------------------------------------------------


def test_regions_are_read_with_their_images() -> None:
    found = fatbin.regions(LIBRARY)
    assert [[(i.kind, i.arch) for i in r.images] for r in found] == [
        [("ELF", 80), ("ELF", 90), ("ELF", 100), ("PTX", 90)],
        [("ELF", 80), ("PTX", 80)],
    ]
    assert [LIBRARY[i.start : i.start + i.size] for i in found[0].images] == [A80, A90, A100, P90]


@pytest.mark.parametrize(
    ("arch", "stay", "gone"),
    [
        # A region without code for the GPU is compiled from its PTX, so that stays.
        (90, (A90, P80), (A80, A100, P90)),
        (86, (A80,), (A90, A100, P80, P90)),
        (103, (A100, P80), (A80, A90, P90)),
        (120, (P90, P80), (A80, A90, A100)),
    ],
)
def test_slim_keeps_what_the_gpu_loads_and_every_offset(
    arch: int, stay: tuple[bytes, ...], gone: tuple[bytes, ...]
) -> None:
    data = bytearray(LIBRARY)
    kept = fatbin.slim(data, arch)
    assert len(data) == len(LIBRARY)
    assert {LIBRARY[i.start : i.start + i.size] for i in kept} == set(stay)
    assert all(payload in data for payload in stay)
    assert not any(payload in data for payload in gone)
    assert fatbin.regions(bytes(data)) == fatbin.regions(LIBRARY)
    changed = [i for i, (a, b) in enumerate(zip(data, LIBRARY, strict=True)) if a != b]
    payloads = [i for r in fatbin.regions(LIBRARY) for i in r.images]
    assert all(any(p.start <= i < p.start + p.size for p in payloads) for i in changed)


def test_architectures() -> None:
    assert [fatbin.architecture(name) for name in ("sm_90", "sm_90a", "90", "sm_120f")] == [90, 90, 90, 120]
    with pytest.raises(fatbin.FatbinError, match="'gfx942' is no architecture"):
        fatbin.architecture("gfx942")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"MZ and so on", "is no 64-bit little-endian ELF file"),
        (LIBRARY[:-100], "is cut: its table of sections is not whole"),
        (elf(BOTH, name=b".text"), "holds no GPU code"),
        (elf(bytes(64)), "holds no GPU code"),
        (elf(b"\x07" * 64), "has something other than a fat binary at offset"),
        (elf(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 40) + bytes(64)), "something other than a fat binary"),
        (elf(region(entry(ELF, 90, A90)[:-8])), "has an entry of a fat binary that is not whole"),
    ],
    ids=["not-elf", "cut", "no-section", "empty", "other-bytes", "too-long", "cut-entry"],
)
def test_files_that_hold_no_readable_gpu_code(data: bytes, words: str) -> None:
    with pytest.raises(fatbin.FatbinError, match=words):
        fatbin.regions(data)


def test_a_gpu_for_which_nothing_is_there() -> None:
    with pytest.raises(fatbin.FatbinError, match="holds no GPU code that sm_75 could load"):
        fatbin.slim(bytearray(elf(region(entry(ELF, 90, A90)))), 75)


# ---- wheels ---------------------------------------------------------------------------------------


def made_wheel(folder: Path) -> Path:
    """A wheel as sglang-kernel's: two builds of one library, another library, Python files, metadata."""
    path = folder / "double-9.9-cp310-abi3-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sgl_kernel/sm90/common_ops.abi3.so", LIBRARY)
        archive.writestr("sgl_kernel/sm100/common_ops.abi3.so", LIBRARY)
        archive.writestr("sgl_kernel/flash_ops.abi3.so", elf(BOTH, rest=b"\0other(Tensor x) -> ()\0"))
        archive.writestr("sgl_kernel/__init__.py", "raise SystemExit")
        archive.writestr("sglang_kernel-9.9.dist-info/METADATA", "Version: 9.9\n")
    return path


def test_slim_takes_the_library_of_the_ops_and_the_build_of_the_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sgl.zip"
    assert main(["wheel", "slim", str(made_wheel(tmp_path)), "--arch", "sm_90", "--zip", str(out)]) == 0
    said = capsys.readouterr().out
    assert "kept 1 PTX of sm_80, 1 ELF of sm_90" in said
    assert "left out: 2 shared objects" in said
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(out), str(tmp_path / "there")], check=True)
    library = tmp_path / "there" / "sgl_kernel" / "sm90" / "common_ops.abi3.so"
    files = sorted(p.relative_to(tmp_path / "there").as_posix() for p in (tmp_path / "there").rglob("*") if p.is_file())
    assert files == [
        "sgl_kernel/sm90/common_ops.abi3.so",
        "sgl_kernel/sm90/common_ops.abi3.so.slim.json",
        "sglang_kernel-9.9.dist-info/METADATA",
    ]
    wanted = bytearray(LIBRARY)
    fatbin.slim(wanted, 90)
    assert library.read_bytes() == wanted
    note = json.loads(library.with_name(library.name + ".slim.json").read_text())
    assert (note["arch"], note["bytes"]) == ("sm_90", len(LIBRARY))


def test_the_same_wheel_gives_the_same_archive(tmp_path: Path) -> None:
    made = made_wheel(tmp_path)
    for name in ("a.zip", "b.zip"):
        assert main(["wheel", "slim", str(made), "--arch", "sm_90", "--zip", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_folder_and_a_single_library_do_as_well(tmp_path: Path) -> None:
    with zipfile.ZipFile(made_wheel(tmp_path)) as archive:
        archive.extractall(tmp_path / "there")
    one = tmp_path / "there" / "sgl_kernel" / "sm90" / "common_ops.abi3.so"
    for source, inside in ((tmp_path / "there", "sgl_kernel/sm90/common_ops.abi3.so"), (one, one.name)):
        assert main(["wheel", "slim", str(source), "--arch", "sm_90", "--zip", str(tmp_path / "out.zip")]) == 0
        with zipfile.ZipFile(tmp_path / "out.zip") as archive:
            assert inside in archive.namelist()


def test_show_lists_code_by_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wheel", "show", str(made_wheel(tmp_path))]) == 0
    said = capsys.readouterr().out
    assert f"sgl_kernel/sm90/common_ops.abi3.so: {len(LIBRARY):,} bytes, 2 regions of GPU code" in said
    assert f"  sm_90   ELF  {len(A90):>12,} bytes" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["slim", "{}/none.whl", "--arch", "sm_90", "--zip", "{}/o.zip"], "none.whl does not exist"),
        (["slim", "{}/text.txt", "--arch", "sm_90", "--zip", "{}/o.zip"], "holds no shared object"),
        (["slim", "{}/x.so", "--arch", "sm_75", "--zip", "{}/o.zip"], "x.so holds no GPU code that sm_75 could load"),
        (["slim", "{}/x.so", "--arch", "hopper", "--zip", "{}/o.zip"], "'hopper' is no architecture"),
        (["slim", "{}/x.so", "--arch", "sm_90", "--library-op", "nope", "--zip", "{}/o.zip"], "that registers nope"),
        (["slim", "{}/x.so", "--arch", "sm_90", "--zip", "{}/no/o.zip"], "No such file or directory"),
        (["slim", "{}/x.so", "--arch", "sm_90"], "required: --zip"),
        (["show", "{}/text.txt"], "holds no shared object"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "x.so").write_bytes(elf(region(entry(ELF, 90, A90))))
    assert main(["wheel", *(a.format(tmp_path) for a in arguments)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt", "x.so"]


# ---- a real one -----------------------------------------------------------------------------------


def test_a_library_that_nvcc_made_still_loads(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed, so no real fat binary can be made")
    source, library = tmp_path / "k.cu", tmp_path / "k.so"
    source.write_text('__global__ void k(float* x) { *x += 1; }\nextern "C" int answer() { return 42; }\n')
    codes = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"]
    made = subprocess.run(
        [nvcc, "-shared", "-Xcompiler", "-fPIC", "-cudart", "static", *codes, "-o", str(library), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"this nvcc makes no code for sm_80 and sm_90: {made.stderr.strip().splitlines()[-1:]}")
    before = library.read_bytes()
    assert main(["wheel", "show", str(library)]) == 0
    data = bytearray(before)
    kept = fatbin.slim(data, 90)
    images = {(i.kind, i.arch) for r in fatbin.regions(before) for i in r.images}
    assert {("ELF", 80), ("ELF", 90), ("PTX", 90)} <= images
    assert {(i.kind, i.arch) for i in kept} == {("ELF", 90)}
    slimmed = tmp_path / "slim.so"
    slimmed.write_bytes(data)
    assert ctypes.CDLL(str(slimmed)).answer() == 42
