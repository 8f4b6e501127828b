"""A new key pair for a site, beside the old one until the server has issued a certificate for it.

keys/new/site, keys/new/site.pub   the new pair; it takes the old one's place once site.pem is a certificate for it
"""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_private, write_text
from fedgraft.runs.site_folder import SiteFolder

_PEM, _INFO = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


def new_key_pair(site: SiteFolder) -> Path:
    """The new public key, for `fedgraft server admit --replace`; made unless a new pair waits for its certificate."""
    folder = site.path / "keys" / "new"
    if not (folder / "site.pub").exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        key = ec.generate_private_key(ec.SECP384R1())
        openssh = serialization.PrivateFormat.OpenSSH
        write_private(folder / "site", key.private_bytes(_PEM, openssh, serialization.NoEncryption()))
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_text(folder / "site.pub", f"{public.decode()} {site.settings.name}\n")
    return folder / "site.pub"


def adopt_certificate(site: SiteFolder) -> None:
    """Put the new key pair in the old one's place if the site's certificate is for it; an interrupted call is finished.

    Raises:
        UserError: the certificate cannot be read, or is for neither key.
    """
    new = site.path / "keys" / "new"
    if _is_for(site.certificate, new / "site.pub"):
        if (new / "site").exists():
            (new / "site").replace(site.private_key)
        (site.path / "keys" / "site.pem").unlink(missing_ok=True)  # the old key as TLS reads it
        (new / "site.pub").replace(site.public_key)
    elif not _is_for(site.certificate, site.public_key):
        raise UserError(
            f"The certificate {site.certificate} is for another key than {site.public_key}; take the one that "
            "`fedgraft server admit` issued for this key."
        )


def _is_for(certificate: Path, key: Path) -> bool:
    if not key.exists():
        return False
    try:
        certified = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    except (OSError, ValueError) as error:
        raise UserError(f"The site's certificate {certificate} cannot be read: {error}.") from error
    public = serialization.load_ssh_public_key(key.read_bytes())
    return certified.public_bytes(_PEM, _INFO) == public.public_bytes(_PEM, _INFO)
