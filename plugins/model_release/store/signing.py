"""Signatures of versions, by `model-signing` (OpenSSF) with elliptic-curve key files.

Signed is `version.json`. It names every file of the version with its SHA-256, and the store verifies each file against
it; so the signature covers the version, and verifying it needs no download of gigabytes. It lies beside the versions,
in `signatures/<version>.json`: a version can be signed by another key later and stays the same version.

It is a Sigstore bundle. With a version's files in a folder anyone can check it:

    model_signing verify key FOLDER --signature SIGNATURE --public_key KEY --ignore_unsigned_files

and then the files against version.json. Keys: `openssl ecparam -name prime256v1 -genkey -noout -out private.pem`
and `openssl ec -in private.pem -pubout -out public.pem`.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from model_release.errors import SignatureRefused, SpecError, StoreUnavailable, VersionDamaged
from model_release.store.store import RECORD

if TYPE_CHECKING:
    from model_release.store.store import Store, Version


def sign(record: bytes, private_key: Path) -> bytes:
    """The signature of a `version.json`: a Sigstore bundle as JSON. Another one each time: ECDSA has a random part.

    Raises `SpecError` for a key file that is none.
    """
    from model_signing import signing

    config = signing.Config()  # type: ignore[no-untyped-call]
    _with_key(lambda: config.use_elliptic_key_signer(private_key=private_key), private_key, "private")
    with TemporaryDirectory(prefix="sign-") as scratch:
        folder = _folder(scratch, record)
        config.sign(folder, Path(scratch, "signature.json"))
        return Path(scratch, "signature.json").read_bytes()


def verify(record: bytes, signature: bytes, public_key: Path) -> None:
    """Nothing, when the signature is of this `version.json` and by this key.

    Raises `SignatureRefused` otherwise, and `SpecError` for a key file that is none.
    """
    from model_signing import verifying

    config = verifying.Config()  # type: ignore[no-untyped-call]
    _with_key(lambda: config.use_elliptic_key_verifier(public_key=public_key), public_key, "public")
    with TemporaryDirectory(prefix="verify-") as scratch:
        Path(scratch, "signature.json").write_bytes(signature)
        try:
            config.verify(_folder(scratch, record), Path(scratch, "signature.json"))
        except Exception as error:  # whatever a signature is that cannot be verified: it is refused
            raise SignatureRefused(f"{RECORD} is not signed by {public_key}: {_why(error)}") from error


def sign_version(store: Store, version: Version, private_key: Path, public_key: Path, *, replace: bool = False) -> None:
    """Signs a published version. One that has a good signature by this key keeps it, and nothing is written.

    Whoever calls this vouches for the version: it has to be one whose files were just built or verified. A signature
    by another key stands unless `replace`: a person who changes keys says so (`python -m model_release sign`).
    Raises `SignatureRefused` where one stands in the way.
    """
    key = _place(version.name)
    record = _record(store, version.name)
    for _ in range(2):  # the second look is at what somebody else signed meanwhile
        there, tag = store.read_json(key)
        if there is not None:
            try:
                verify(record, json.dumps(there).encode(), public_key)
                return
            except SignatureRefused:
                if not replace:
                    raise
        signature = sign(record, private_key)
        verify(record, signature, public_key)  # or the two keys are no pair, and nobody could stage the version
        try:
            store.write_json(key, json.loads(signature), if_match=tag)
            return
        except StoreUnavailable as error:
            lost = error
    raise lost


def check_version(store: Store, name: str, public_key: Path) -> Version:
    """The version `name`, verified: signed by this key, and its files what the signed `version.json` says.

    Raises `SignatureRefused` for a signature that is missing or wrong, and what `Store.version` raises.
    """
    version = store.version(name)
    signature, _ = store.read_json(_place(name))
    if signature is None:
        raise SignatureRefused(
            f"{version.storage_uri} is not signed, and its model file asks for a signature; "
            f"`python -m model_release sign MODEL {name}` signs it, by whoever has the key"
        )
    record = _record(store, name)
    try:
        verify(record, json.dumps(signature).encode(), public_key)
    except SignatureRefused as error:
        raise SignatureRefused(f"{version.storage_uri}: {error}") from error
    if json.loads(record)["files"] != version.files:
        raise VersionDamaged(f"{version.storage_uri}{RECORD} was changed while it was verified")
    store.reread(version)
    return version


def key_file(path: str, root: Path) -> Path:
    """A key file of a model file: absolute, or relative to the project."""
    return root / path


def _with_key(use: Any, key: Path, kind: str) -> None:
    try:
        use()
    except OSError as error:
        raise SpecError(f"signing.{kind}_key: {key} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"signing.{kind}_key: {key} is no {kind} key: {_why(error)}; right would be PEM without a password, "
            "on the curve prime256v1, secp384r1 or secp521r1"
        ) from error


def _folder(scratch: str, record: bytes) -> Path:
    folder = Path(scratch, "version")
    folder.mkdir()
    (folder / RECORD).write_bytes(record)
    return folder


def _place(name: str) -> str:
    return f"signatures/{name}.json"


def _record(store: Store, name: str) -> bytes:
    record = store.read(f"versions/{name}/{RECORD}")
    if record is None:
        raise VersionDamaged(f"{store.uri}versions/{name}/ has no {RECORD}")
    return record


def _why(error: Exception) -> str:
    said = str(error)
    if said.startswith("Signature mismatch"):
        return "it was changed after it was signed"
    if isinstance(error, KeyError | TypeError | AttributeError):
        return "the signature is none"
    return said.splitlines()[0] if said else "the signature is another key's"
