"""Certificates with which a dask scheduler, its workers and clients know each other. Knows nothing of segmentation.

dask asks both sides of a connection for a certificate of one authority, and checks no host names: whoever holds a key of the folder
may execute code on the cluster, and nobody else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from unet_core.errors import JobError

ROLES = ("scheduler", "worker", "client")
CA, CONFIG = "ca.pem", "dask.yaml"
LOOPBACK = ("localhost", "127.0.0.1")
MOST_DAYS = 3650
_CLOCKS = timedelta(minutes=5)  # by which those of two machines may differ


@dataclass(frozen=True)
class Certificates:
    """An authority of its own, whose key is not kept, and what it signed, as PEM."""

    ca: str
    pairs: Mapping[str, tuple[str, str]]
    expires: datetime

    def files(self, place: str) -> dict[str, str]:
        """Contents by name of file, the configuration of dask included.

        Args:
            place: folder of the files where they are used.
        """
        found = {CA: self.ca}
        for role, (certificate, key) in self.pairs.items():
            found |= {f"{role}.pem": certificate, f"{role}-key.pem": key}
        return found | {CONFIG: yaml.safe_dump({"distributed": {"comm": configuration(place)}}, sort_keys=False)}

    def in_memory(self) -> dict[str, Any]:
        """What ``dask.config.set`` takes, for this process alone."""
        found: dict[str, Any] = {"distributed.comm.require-encryption": True, "distributed.comm.tls.ca-file": self.ca}
        for role, (certificate, key) in self.pairs.items():
            found |= {f"distributed.comm.tls.{role}.cert": certificate, f"distributed.comm.tls.{role}.key": key}
        return found


def configuration(place: str) -> dict[str, Any]:
    """What dask is to be told, below ``distributed.comm``, of files in a folder."""
    pairs = {role: {"cert": f"{place}/{role}.pem", "key": f"{place}/{role}-key.pem"} for role in ROLES}
    return {"require-encryption": True, "tls": {"ca-file": f"{place}/{CA}", **pairs}}


def make_certificates(hosts: Sequence[str] = (), days: int = 365) -> Certificates:
    """A new authority, and a pair of certificate and key for each role.

    Args:
        hosts: names and addresses under which scheduler and workers are reached; loopback is added.
        days: after which they are worth nothing.

    Raises:
        JobError: naming a value that cannot be.
    """
    if not 1 <= days <= MOST_DAYS:
        raise JobError(f"--days is {days}; give 1 to {MOST_DAYS}.")
    names = x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys([*hosts, *LOOPBACK])])
    now = datetime.now(UTC)
    ends = now.replace(microsecond=0) + timedelta(days=days)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _name("unet-flows dask authority")
    usage = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
    about_ca = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())

    def build(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        built = x509.CertificateBuilder().subject_name(subject).issuer_name(authority).public_key(key.public_key())
        built = built.serial_number(x509.random_serial_number()).not_valid_before(now - _CLOCKS).not_valid_after(ends)
        return built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(about_ca), critical=False)

    ca = build(authority, authority_key).add_extension(x509.BasicConstraints(True, 0), critical=True)
    ca = ca.add_extension(usage, critical=True).add_extension(about_ca, critical=False)
    pairs = {}
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        # Scheduler and workers call each other as clients; a client's certificate makes no server.
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([] if role == "client" else [ExtendedKeyUsageOID.SERVER_AUTH])
        own = build(_name(f"unet-flows dask {role}"), key).add_extension(x509.BasicConstraints(False, None), critical=True)
        own = own.add_extension(x509.ExtendedKeyUsage(purposes), critical=False).add_extension(names, critical=False)
        pairs[role] = (_pem(own.sign(authority_key, hashes.SHA256())), _key_pem(key))
    return Certificates(_pem(ca.sign(authority_key, hashes.SHA256())), pairs, ends)


def write_certificates(folder: Path, certificates: Certificates, place: str | None = None) -> dict[str, str]:
    """Write the files, keys readable by their owner alone; names and contents.

    Args:
        folder: new, or empty.
        certificates: to be written.
        place: folder of the files where they are used, if it is another.

    Raises:
        JobError: if something is there: who holds old keys would not fit the new ones.
    """
    place = str(folder.resolve()) if place is None else place.rstrip("/")
    if not place.startswith("/"):
        raise JobError(f"--used-at is '{place}'; give the whole path, as the configuration of dask needs it.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise JobError(f"{folder} holds something; certificates belong together: name a new folder, or remove that one.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = certificates.files(place)
    for name, text in files.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if name.endswith("-key.pem") else 0o644)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    return files


def expiry(certificate: str) -> datetime:
    """When a certificate ends, given as PEM or as the path of its file."""
    data = certificate.encode() if "\n" in certificate else Path(certificate).read_bytes()
    return x509.load_pem_x509_certificate(data).not_valid_after_utc


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        if 0 < len(host) <= 253 and host.isascii() and host.replace("-", "").replace(".", "").isalnum():
            return x509.DNSName(host)
    except ValueError:
        pass
    raise JobError(f"--host '{host[:60]}' is no name or address of a machine.")


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
