"""What a device refuses, and how: every byte is signed, nothing escapes, nothing is read before its size is known."""

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgraft.backbones import Backbone
from fedgraft.core.errors import UserError
from fedgraft.device import BundleError, DeviceError, Predictor, open_bundle, read_public_key
from fedgraft.device.commands import verify
from fedgraft.device.manifest import canonical
from fedgraft.edge_export.bundle_manifest import SCHEMA, BundleManifest, manifest_schema
from fedgraft.edge_export.encoder import bundled_encoder
from fedgraft.edge_export.signing import public_bytes, signature_file, signing_key


def _resigned(bundle: Path, change: Callable[[dict], None], key: Path) -> None:
    """A manifest that the holder of the key has changed."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    content = canonical(manifest)
    (bundle / "manifest.json").write_bytes(content)
    (bundle / "manifest.sig").write_bytes(signature_file(signing_key(key), content))


def _zipped(bundle: Path, out: Path, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(bundle.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(bundle).as_posix())
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return out


def test_a_bundle_that_was_not_touched_is_verified(
    exported: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(exported)
    assert "pin the signer with --key" in capsys.readouterr().out
    verify(exported, str(key.with_suffix(".pub")), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["pinned"]
    assert found["golden_cosine"] > 0.9999


def test_every_changed_byte_is_found(exported: Path, bundle: Path) -> None:
    names = [path.relative_to(exported) for path in sorted(exported.rglob("*")) if path.is_file()]
    assert len(names) >= 7
    for name in names:
        content = bytearray((exported / name).read_bytes())
        for place in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            (bundle / name).write_bytes(changed)
            with pytest.raises(BundleError):
                verify(bundle)
        (bundle / name).write_bytes(content)
    verify(bundle)


def test_a_file_that_is_missing_and_one_that_is_not_listed(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds notes\.txt, which its manifest does not list"):
        open_bundle(bundle)
    (bundle / "notes.txt").unlink()
    (bundle / "labels.json").unlink()
    with pytest.raises(BundleError, match=r"lacks labels\.json"):
        open_bundle(bundle)
    (bundle / "manifest.sig").unlink()
    with pytest.raises(BundleError, match=r"no manifest\.sig"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../outside", "web/../../outside", "a//b", "C:\\x", "manifest.json", ""]
)
def test_a_path_that_escapes_is_refused_also_when_it_is_signed(name: str, bundle: Path, key: Path) -> None:
    def add(manifest: dict) -> None:
        manifest["files"][name] = manifest["files"]["labels.json"]

    _resigned(bundle, add, key)
    with pytest.raises(BundleError, match="is not a relative path"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "..\\outside"])
def test_a_zip_with_a_path_that_escapes(name: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="a path outside the bundle"):
        open_bundle(_zipped(bundle, tmp_path / "b.zip", {name: b"x"}))


def test_links_are_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "labels.json").rename(tmp_path / "labels.json")
    (bundle / "labels.json").symlink_to(tmp_path / "labels.json")
    with pytest.raises(BundleError, match="no links"):
        open_bundle(bundle)


def test_ten_gigabytes_are_refused_before_anything_is_read(bundle: Path, key: Path) -> None:
    def grow(manifest: dict) -> None:
        manifest["files"]["model.onnx"]["bytes"] = 10 * 10**9

    _resigned(bundle, grow, key)
    with pytest.raises(BundleError, match=r"model\.onnx is listed with 10,000,000,000 bytes; the limit"):
        open_bundle(bundle)


def test_a_sparse_file_of_ten_gigabytes_is_refused(bundle: Path) -> None:
    with (bundle / "model.onnx").open("r+b") as file:
        file.truncate(10 * 10**9)
    with pytest.raises(BundleError, match="more than a bundle may have"):
        open_bundle(bundle)


def test_a_zip_bomb_is_not_unpacked(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(bundle.iterdir()):
            content = path.read_bytes() if path.name != "labels.json" else bytes(2**23)
            file.writestr(path.name, content)
    with pytest.raises(BundleError, match=r"labels\.json"):
        open_bundle(archive)


def test_a_zip_answers_as_its_directory_does(exported: Path, tmp_path: Path) -> None:
    archive = _zipped(exported, tmp_path / "b.zip")
    verify(archive)
    assert Predictor(archive).labels == Predictor(exported).labels


def test_a_newer_format_version_is_refused_in_a_sentence(bundle: Path, key: Path) -> None:
    _resigned(bundle, lambda manifest: manifest.update(format_version=2), key)
    with pytest.raises(BundleError, match="format version 2, and this runtime reads version 1; install a newer"):
        open_bundle(bundle)


def test_another_signer_than_the_pinned_one(bundle: Path, key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    _resigned(bundle, lambda manifest: manifest.update(licence="mine"), other)
    assert open_bundle(bundle).signer == public_bytes(signing_key(other))
    with pytest.raises(BundleError, match="not by the required key"):
        open_bundle(bundle, read_public_key(str(key.with_suffix(".pub"))))


def test_a_signature_of_something_else(bundle: Path, key: Path) -> None:
    (bundle / "manifest.sig").write_bytes(signature_file(signing_key(key), b"something else"))
    with pytest.raises(BundleError, match="does not match"):
        open_bundle(bundle)
    (bundle / "manifest.sig").write_text("{}")
    with pytest.raises(BundleError, match="is not a signature"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("calibration"),
        lambda manifest: manifest.update(version=-1),
        lambda manifest: manifest.update(encoder="0" * 64),
        lambda manifest: manifest.update(kind="other"),
        lambda manifest: manifest["calibration"].update(temperature=0),
        lambda manifest: manifest["calibration"].update(unknown_below="0.5"),
        lambda manifest: manifest["files"].pop("model.onnx"),
        lambda manifest: manifest["files"].update({"model.onnx": 3}),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.update(golden=None),
    ],
)
def test_a_manifest_that_is_signed_but_not_sound(change: Callable[[dict], None], bundle: Path, key: Path) -> None:
    _resigned(bundle, change, key)
    with pytest.raises(BundleError, match=r"The manifest of the bundle .* is invalid"):
        open_bundle(bundle)


def test_the_published_schema_is_that_of_the_code_and_a_bundle_fits_it(exported: Path) -> None:
    assert SCHEMA.read_text() == manifest_schema()
    content = json.loads((exported / "manifest.json").read_text())
    assert BundleManifest.model_validate(content).model_dump(mode="json") == content
    required = set(json.loads(SCHEMA.read_text())["required"])
    assert required <= set(content)


def test_a_bundle_whose_manifest_no_exporter_wrote_gets_no_class_bank(bundle: Path, key: Path, mini: Backbone) -> None:
    _resigned(bundle, lambda manifest: manifest.update(backbone="mine"), key)
    with pytest.raises(UserError, match=r"The manifest of the bundle .* is invalid"):
        bundled_encoder(open_bundle(bundle), mini)


# --- keys -----------------------------------------------------------------------------------------


def test_a_signing_key_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "config" / "signing.key"
    made = signing_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_bytes(signing_key(path)) == public_bytes(made)
    assert read_public_key(str(path.with_suffix(".pub"))) == public_bytes(made)
    assert read_public_key(public_bytes(made).hex()) == public_bytes(made)


def test_a_key_that_others_may_read_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    signing_key(path)
    path.chmod(0o644)
    with pytest.raises(UserError, match="Others may read"):
        signing_key(path)
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(UserError, match="not a private key"):
        signing_key(path)


@pytest.mark.parametrize("text", ["/no/such/key.pub", "abc"])
def test_what_is_not_a_public_key(text: str) -> None:
    with pytest.raises(DeviceError, match="not a public key"):
        read_public_key(text)


def test_a_private_key_is_not_a_public_key(tmp_path: Path) -> None:
    signing_key(tmp_path / "signing.key")
    with pytest.raises(DeviceError, match="not an Ed25519 public key"):
        read_public_key(str(tmp_path / "signing.key"))


def test_the_two_halves_of_the_signature_are_those_of_the_library(tmp_path: Path) -> None:
    private = Ed25519PrivateKey.generate()
    stated = json.loads(signature_file(private, b"text"))
    private.public_key().verify(bytes.fromhex(stated["signature"]), b"text")
