"""Signatures of versions, with real keys and a real store."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_release.errors import SignatureRefused, SpecError, VersionDamaged
from model_release.store import signing
from model_release.store.store import Store

RECORD = b'{"version": "0123456789abcdef", "files": {}}\n'


@pytest.fixture(autouse=True)
def pairs(keys: Callable[[str], None]) -> None:
    keys("a")
    keys("b")


def test_signed_and_verified_by_the_pair_of_one_key(tmp_path: Path) -> None:
    signature = signing.sign(RECORD, tmp_path / "a.pem")
    signing.verify(RECORD, signature, tmp_path / "a.pub")
    with pytest.raises(SignatureRefused, match=r"b.pub: Key mismatch"):
        signing.verify(RECORD, signature, tmp_path / "b.pub")
    with pytest.raises(SignatureRefused, match="it was changed after it was signed"):
        signing.verify(RECORD.replace(b"0", b"1"), signature, tmp_path / "a.pub")


def test_a_signature_that_says_another_keys_name_is_refused(tmp_path: Path) -> None:
    """The hint of the key is not signed: what counts is the signature."""
    by_b, by_a = (json.loads(signing.sign(RECORD, tmp_path / f"{name}.pem")) for name in "ba")
    by_b["verificationMaterial"] = by_a["verificationMaterial"]
    with pytest.raises(SignatureRefused, match="another key's"):
        signing.verify(RECORD, json.dumps(by_b).encode(), tmp_path / "a.pub")


@pytest.mark.parametrize("signature", [b"", b"{}", b"no json", b'{"dsseEnvelope": {"payload": ""}}', b"[]", b"null"])
def test_what_is_no_signature_is_refused_in_one_line(tmp_path: Path, signature: bytes) -> None:
    with pytest.raises(SignatureRefused, match=r"version.json is not signed by \S+/a.pub: ") as refusal:
        signing.verify(RECORD, signature, tmp_path / "a.pub")
    assert "\n" not in str(refusal.value)


def test_key_files_that_are_none(tmp_path: Path) -> None:
    signature = signing.sign(RECORD, tmp_path / "a.pem")
    for name, why in (("missing", "cannot be read: No such file"), ("a.pub", "is no private key")):
        with pytest.raises(SpecError, match=rf"signing.private_key: \S+/{name} {why}"):
            signing.sign(RECORD, tmp_path / name)
    for name, why in (("missing", "cannot be read: No such file"), ("a.pem", "is no public key")):
        with pytest.raises(SpecError, match=rf"signing.public_key: \S+/{name} {why}"):
            signing.verify(RECORD, signature, tmp_path / name)
    assert signing.key_file("keys/a.pem", Path("/project")) == Path("/project/keys/a.pem")
    assert signing.key_file("/run/secrets/a.pem", Path("/project")) == Path("/run/secrets/a.pem")


def test_a_version_is_signed_beside_itself_and_checked(store: Store, publish: Any, tmp_path: Path) -> None:
    version = store.version(publish(1))
    private, public = tmp_path / "a.pem", tmp_path / "a.pub"
    with pytest.raises(SignatureRefused, match="is not signed, and its model file asks for a signature"):
        signing.check_version(store, version.name, public)
    signing.sign_version(store, version, private, public)
    assert signing.check_version(store, version.name, public) == version == store.version(version.name)
    tag = store.tag(f"signatures/{version.name}.json")
    signing.sign_version(store, version, private, public)
    assert store.tag(f"signatures/{version.name}.json") == tag, "signed already: nothing is written"


def test_another_keys_signature_is_refused_and_replaced_only_when_told(
    store: Store, publish: Any, tmp_path: Path
) -> None:
    version = store.version(publish(1))
    signing.sign_version(store, version, tmp_path / "b.pem", tmp_path / "b.pub")
    pair = tmp_path / "a.pem", tmp_path / "a.pub"
    with pytest.raises(SignatureRefused, match="Key mismatch"):
        signing.check_version(store, version.name, tmp_path / "a.pub")
    with pytest.raises(SignatureRefused):
        signing.sign_version(store, version, *pair)
    signing.sign_version(store, version, *pair, replace=True)
    assert signing.check_version(store, version.name, tmp_path / "a.pub") == version
    with pytest.raises(SignatureRefused, match="Key mismatch"):
        signing.sign_version(store, store.version(publish(2)), tmp_path / "b.pem", tmp_path / "a.pub")
    assert len(store.names("signatures/")) == 1, "two keys that are no pair sign nothing"


def test_whoever_changes_a_version_cannot_sign_it(store: Store, publish: Any, tmp_path: Path) -> None:
    """With the right to write to the store, but without the key: files and record changed together."""
    one, two = store.version(publish(1)), store.version(publish(2))
    for version in (one, two):
        signing.sign_version(store, version, tmp_path / "a.pem", tmp_path / "a.pub")
    smoke = b'{"instances": [], "expected": [], "changed": true}'
    store.write_bytes(f"versions/{one.name}/smoke.json", smoke, "application/json")
    with pytest.raises(VersionDamaged, match=r"smoke.json has 50 bytes instead of"):
        signing.check_version(store, one.name, tmp_path / "a.pub")
    record, _ = store.read_json(f"versions/{one.name}/version.json")
    record["files"]["smoke.json"] = {"sha256": hashlib.sha256(smoke).hexdigest(), "size": len(smoke)}
    store.write_bytes(f"versions/{one.name}/version.json", json.dumps(record).encode(), "application/json")
    assert store.version(one.name).files != one.files, "whole, by its own record"
    with pytest.raises(SignatureRefused, match=rf"versions/{one.name}/: .* it was changed after it was signed"):
        signing.check_version(store, one.name, tmp_path / "a.pub")
    there, _ = store.read_json(f"signatures/{two.name}.json")
    store.write_bytes(f"signatures/{one.name}.json", json.dumps(there).encode(), "application/json")
    with pytest.raises(SignatureRefused):
        signing.check_version(store, one.name, tmp_path / "a.pub")


def test_another_archive_under_a_versions_name_is_no_version(store: Store, publish: Any) -> None:
    """Signed or not: a name is the digest of what is served, and that is held, too."""
    one, two = store.version(publish(1)), store.version(publish(2))
    mar = "model-store/digits.mar"
    store.write_bytes(f"versions/{one.name}/{mar}", store.read(f"versions/{two.name}/{mar}") or b"", "x/y")
    record, _ = store.read_json(f"versions/{one.name}/version.json")
    record["files"][mar] = two.files[mar]
    store.write_bytes(f"versions/{one.name}/version.json", json.dumps(record).encode(), "application/json")
    with pytest.raises(VersionDamaged, match="lists other files than those that gave it its name"):
        store.version(one.name)


def test_anyone_can_verify_a_download_with_the_public_tool(tmp_path: Path) -> None:
    """The command of the docstring."""
    folder = tmp_path / "version"
    folder.mkdir()
    (folder / "version.json").write_bytes(RECORD)
    (folder / "other.mar").write_bytes(b"named by version.json")
    (tmp_path / "signature.json").write_bytes(signing.sign(RECORD, tmp_path / "a.pem"))
    tool = [str(Path(sys.executable).with_name("model_signing")), "verify", "key", str(folder)]
    words = ["--signature", str(tmp_path / "signature.json"), "--ignore_unsigned_files", "--public_key"]
    for name, code in (("a", 0), ("b", 1)):
        assert subprocess.run([*tool, *words, str(tmp_path / f"{name}.pub")], capture_output=True).returncode == code
