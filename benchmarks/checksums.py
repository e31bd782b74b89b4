"""Write the checksums of a model folder whose files were changed by hand, as the bundled model's are.

    python benchmarks/checksums.py zonkey_core/pretrained
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zonkey_core.checkpoint import CHECKSUMS, CONFIG, MODEL, OPTIMIZER, TRAINING, with_checksums
from zonkey_core.committed_files import write_files

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the model")
    folder: Path = parser.parse_args().folder
    found = [name for name in (CONFIG, MODEL, TRAINING, OPTIMIZER) if (folder / name).is_file()]
    if not found:
        parser.error(f"{folder}: no files of a model; give the folder of one")
    write_files(folder, {CHECKSUMS: with_checksums({name: (folder / name).read_bytes() for name in found})[CHECKSUMS]})
