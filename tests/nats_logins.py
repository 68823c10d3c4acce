"""NATS servers that ask who is there, for tests: keys, tokens of operator, account and user, certificates."""

import base64
import ipaddress
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nkeys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# Seeds that protect nothing: made for these tests, the same in each run.
OPERATOR, ACCOUNT, USER, OTHER = (
    nkeys.encode_seed(bytes([number]) * 32, prefix)
    for number, prefix in (
        (1, nkeys.PREFIX_BYTE_OPERATOR),
        (2, nkeys.PREFIX_BYTE_ACCOUNT),
        (3, nkeys.PREFIX_BYTE_USER),
        (4, nkeys.PREFIX_BYTE_USER),
    )
)


def public(seed: bytes) -> str:
    return nkeys.from_seed(bytearray(seed)).public_key.decode()


def _token(issuer: bytes, subject: bytes, kind: str, **claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    body = {"iss": public(issuer), "sub": public(subject), "name": kind, "iat": 1_700_000_000, "jti": kind}
    nats = {"type": kind, "version": 2} | claims
    signed = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(body | {'nats': nats})}"
    signature = nkeys.from_seed(bytearray(issuer)).sign(signed.encode())
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def operator_config() -> str:
    """A server that knows one account by its operator's signature."""
    limits = dict.fromkeys(
        ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage", "disk_storage", "streams",
         "consumer"), -1,
    )  # fmt: skip
    account = _token(OPERATOR, ACCOUNT, "account", limits=limits | {"wildcards": True})
    return (
        f"operator: {_token(OPERATOR, OPERATOR, 'operator')}\n"
        f"jetstream: disabled\nresolver: MEMORY\nresolver_preload: {{ {public(ACCOUNT)}: {account} }}\n"
    )


def credentials(folder: Path) -> Path:
    """The file a user logs in with."""
    token = _token(ACCOUNT, USER, "user", subs=-1, data=-1, payload=-1)
    path = folder / "user.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{USER.decode()}\n------END USER NKEY SEED------\n"
    )
    return path


def certificates(folder: Path) -> dict[str, Path]:
    """`ca`, and `cert` and `key` signed by it, for 127.0.0.1: for the server and for clients alike."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    paths = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    paths["ca"].write_bytes(_certificate(authority, issuer, authority, issuer))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    paths["cert"].write_bytes(_certificate(key, subject, authority, issuer))
    paths["key"].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def _certificate(key, subject, authority, issuer) -> bytes:
    now, own = datetime.now(UTC), key is authority
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(authority, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)
