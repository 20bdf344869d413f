"""What a run came to, as digests: `python -m steerloop.checks.digest RUN [RUN ...]`.

Two runs with the same lines are the same run to the last bit: adapters, vectors, kept rows and
evaluation tables. Columns are taken by name, so that their order plays no part. For the journal:
did a change of the code change a result?
"""

import hashlib
import sys
from pathlib import Path

import polars as pl
from safetensors import safe_open


def of_table(path: Path) -> str:
    """Digest of a table's values, columns by name."""
    table = pl.read_parquet(path)
    text = table.select(sorted(table.columns)).write_json()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_tensors(path: Path) -> str:
    """Digest of the tensors of a file, by name."""
    digest = hashlib.sha256()
    with safe_open(path, "np") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return digest.hexdigest()[:16]


def digests(run: Path) -> dict[str, str]:
    """File → digest, for all that a run measured and trained."""
    tables = {str(x.relative_to(run)): of_table(x) for x in sorted(run.rglob("*.parquet"))}
    tensors = {str(x.relative_to(run)): of_tensors(x) for x in sorted(run.rglob("*.safetensors"))}
    return tables | tensors


def main(runs: list[str]) -> None:
    """Print a line a file; with several runs, which files differ."""
    known = [digests(Path(run)) for run in runs]
    for name in sorted({name for run in known for name in run}):
        values = [run.get(name, "absent") for run in known]
        print(f"{name:40} {'  '.join(values)}{'' if len(set(values)) == 1 else '  DIFFER'}")
    if any(run != known[0] for run in known):
        sys.exit("error: the runs are not the same")


if __name__ == "__main__":
    main(sys.argv[1:])
