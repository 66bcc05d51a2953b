"""Certificates for tests, and those who sign them."""

import datetime as dt
import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM = serialization.Encoding.PEM


class Files(NamedTuple):
    """A certificate and its key."""

    certificate: str
    key: str


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Python 3.13 wants to be told what a key is for."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


class Authority:
    """Signs certificates of servers and clients."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.file = str(folder / f"{name}.pem")
        usage = x509.BasicConstraints(ca=True, path_length=None)
        own = (
            self._builder(self._name, self._key)
            .add_extension(usage, critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        Path(self.file).write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    def sign(self, name: str, password: bytes = b"", *, days: int = 1) -> Files:
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = self._builder(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), key, days)
        signed = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).add_extension(
            _usage(signs_certificates=False), critical=True
        )
        files = Files(str(self._folder / f"{name}.pem"), str(self._folder / f"{name}.key"))
        Path(files.certificate).write_bytes(signed.sign(self._key, hashes.SHA256()).public_bytes(PEM))
        secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        Path(files.key).write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, secret))
        return files

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 1) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .issuer_name(self._name)
            .subject_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )

    def context(self, own: Files | None = None) -> ssl.SSLContext:
        """A client that trusts this authority, and shows a certificate if it has one."""
        context = ssl.create_default_context(cafile=self.file)
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)
        return context
