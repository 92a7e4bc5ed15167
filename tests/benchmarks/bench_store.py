"""Which library and which chunks should hold our arrays? 1.6 GB, 2 writers, durable units.

Every candidate does what a unit of work needs: write one Zarr group, fsync it, read it back,
sha256 it. Then a resume: how long until a fresh process knows which units are done and intact.

    python -m tests.benchmarks.bench_store [--folder DIR] [--chunk-rows 500 5000]
"""

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import zarr

ROWS, WIDTH, ROWS_PER_UNIT, WRITERS = 100_000, 4_096, 5_000, 2


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _digest_tree(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def zarr_local(folder: Path, rows_ND: np.ndarray, chunk_rows: int) -> None:
    group = zarr.create_group(zarr.storage.LocalStore(folder))
    array = group.create_array(
        "g", shape=rows_ND.shape, chunks=(chunk_rows, WIDTH), dtype="f4", compressors=None
    )
    array[:] = rows_ND
    _sync_tree(folder)


def zarr_obstore(folder: Path, rows_ND: np.ndarray, chunk_rows: int) -> None:
    from obstore.store import LocalStore

    folder.mkdir(parents=True)
    group = zarr.create_group(zarr.storage.ObjectStore(LocalStore(folder)))
    array = group.create_array(
        "g", shape=rows_ND.shape, chunks=(chunk_rows, WIDTH), dtype="f4", compressors=None
    )
    array[:] = rows_ND
    _sync_tree(folder)


def ours(folder: Path, rows_ND: np.ndarray, chunk_rows: int) -> None:
    """`write_group`, which syncs, hashes and reads back by itself."""
    from distinf.store import open_root, write_group

    write_group(open_root(str(folder)), "g", {"g": rows_ND}, chunk_rows=chunk_rows)


def tensorstore_file(folder: Path, rows_ND: np.ndarray, chunk_rows: int) -> None:
    import tensorstore

    array = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder}/g/"},
            "metadata": {
                "shape": list(rows_ND.shape),
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [chunk_rows, WIDTH]},
                },
                "data_type": "float32",
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            },
            "create": True,
        }
    ).result()
    array[:] = rows_ND  # its file driver fsyncs by itself


OURS = "distinf write_group"
CANDIDATES: dict[str, Callable[[Path, np.ndarray, int], None]] = {
    "zarr LocalStore": zarr_local,
    "zarr over obstore": zarr_obstore,
    OURS: ours,
    "tensorstore zarr3": tensorstore_file,
}


def _unit(name: str, folder: str, unit: int, chunk_rows: int) -> str:
    rows_ND = np.random.default_rng(unit).standard_normal((ROWS_PER_UNIT, WIDTH), dtype="f4")
    started = time.perf_counter()
    target = Path(folder) / f"{unit:04d}"
    CANDIDATES[name](target, rows_ND, chunk_rows)
    if name != OURS:
        _digest_tree(target)  # read back
    took = time.perf_counter() - started
    return f"{_digest_tree(target)} {took}"


def _read(folder: str, unit: int) -> float:
    inside = f"{folder}/{unit:04d}"
    if os.path.exists(f"{inside}/g/g"):
        inside += "/g"
    group = zarr.open_group(zarr.storage.LocalStore(inside), mode="r")
    return float(np.asarray(group["g"])[:, 0].sum())


def _read_bare(folder: str, unit: int) -> float:
    array = zarr.open_array(zarr.storage.LocalStore(f"{folder}/{unit:04d}/g"), mode="r")
    return float(np.asarray(array)[:, 0].sum())


def measure(name: str, folder: Path, chunk_rows: int) -> dict[str, float]:
    units = range(ROWS // ROWS_PER_UNIT)
    gigabytes = ROWS * WIDTH * 4 / 1e9
    with ProcessPoolExecutor(WRITERS) as pool:
        list(pool.map(_digest_tree, [folder] * WRITERS))
        done = list(pool.map(_unit, *zip(*[(name, str(folder), u, chunk_rows) for u in units])))
        write_s = sum(float(line.split()[1]) for line in done) / WRITERS
        started = time.perf_counter()
        reader = _read_bare if name.startswith("tensorstore") else _read
        list(pool.map(reader, [str(folder)] * len(units), units))
        read_s = time.perf_counter() - started
        started = time.perf_counter()
        again = list(pool.map(_digest_tree, sorted(folder.iterdir())))
        resume_s = time.perf_counter() - started
    if again != [line.split()[0] for line in done]:
        raise AssertionError(f"{name}: bytes differ when read again")
    return {
        "write MB/s": gigabytes * 1e3 / write_s,
        "read MB/s": gigabytes * 1e3 / read_s,
        "resume with full check s": resume_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--chunk-rows", type=int, nargs="+", default=[500, 5_000])
    arguments = parser.parse_args()
    print("| library | chunk rows | write+fsync+sha MB/s | read MB/s | resume, all sha s |")
    print("|---|---|---|---|---|")
    for chunk_rows in arguments.chunk_rows:
        for name in CANDIDATES:
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
            result = measure(name, folder, chunk_rows)
            shutil.rmtree(folder)
            numbers = " | ".join(f"{value:,.1f}" for value in result.values())
            print(f"| {name} | {chunk_rows} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
