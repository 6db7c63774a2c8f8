"""The files of a bundle and their hash. Unlike `bundle`, this module does not import CatBoost."""

import hashlib
from pathlib import Path

from utils.errors import IntegrityError

FILES = ("model.cb", "spec.json", "profile.json", "golden.json")


def bundle_hash(folder: Path) -> str:
    """The SHA-256, in hex, over the names and the bytes of the bundle's files.

    Raises: IntegrityError if a file is missing.
    """
    digest = hashlib.sha256()
    for name in FILES:
        if not (folder / name).is_file():
            raise IntegrityError(what=f"model folder {folder.name}", expected=f"a file {name}", found="none")
        digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()
