import io
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreambooth_ray.config.serving import ProvenanceConfig
from dreambooth_ray.errors import ConfigError
from serve.provenance import Signer, read_provenance

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype"
RECEIPT: dict[str, object] = {"seed": 7, "model": "toyworld", "prompt": "a secret wish"}


def certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now_utc, is_root = datetime.now(tz=UTC), key is signer
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=is_root, crl_sign=is_root,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now_utc - timedelta(days=1))
        .not_valid_after(now_utc + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    if not is_root:
        allowed = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(allowed, critical=True)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ProvenanceConfig:
    folder = tmp_path_factory.mktemp("keys")
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test root")])
    root = certificate("Test root", root_key, root_name, root_key)
    leaf = certificate("Test studio", key, root_name, root_key)
    pem = serialization.Encoding.PEM
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ProvenanceConfig(
        certificate=str(folder / "chain.pem"), private_key=str(folder / "key.pem")
    )


def image(kind: str) -> bytes:
    data = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_signed_image_tells_its_origin_and_not_the_prompt(
    config: ProvenanceConfig, kind: str
) -> None:
    plain = image(kind)
    signed = Signer(config).sign(plain, RECEIPT)
    origin = read_provenance(signed)
    assert origin["found"]
    assert origin["valid"], origin
    assert origin["receipt"] == {"seed": 7, "model": "toyworld"}
    assert origin["generator"]["name"] == "dreambooth"
    assert b"a secret wish" not in signed
    with Image.open(io.BytesIO(plain)) as one, Image.open(io.BytesIO(signed)) as other:
        assert one.tobytes() == other.tobytes()


def test_a_changed_image_is_found_out(config: ProvenanceConfig) -> None:
    signed = bytearray(Signer(config).sign(image("JPEG"), RECEIPT))
    signed[-40] ^= 0xFF
    origin = read_provenance(bytes(signed))
    assert origin["found"]
    assert not origin["valid"]


def test_images_without_a_manifest_and_other_files(config: ProvenanceConfig) -> None:
    assert read_provenance(image("PNG")) == {"found": False}
    with pytest.raises(ConfigError, match="no PNG"):
        read_provenance(b"GIF89a")


@pytest.fixture(scope="module")
def signed(config: ProvenanceConfig) -> list[bytes]:
    return [Signer(config).sign(image(kind), RECEIPT) for kind in ("PNG", "JPEG")]


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as opened:
        return opened.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    which=st.integers(0, 1), at=st.floats(0, 1, exclude_max=True), gone=st.integers(0, 200),
    new=st.binary(max_size=200),
)  # fmt: skip
def test_no_change_to_an_image_is_called_valid(
    signed: list[bytes], which: int, at: float, gone: int, new: bytes
) -> None:
    file = signed[which]
    start = 4 + int(at * (len(file) - 4))
    changed = file[:start] + new + file[start + gone :]
    origin = read_provenance(changed)
    assert not origin.get("valid") or pixels(changed) == pixels(file)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_that_names_an_address_makes_nobody_call_it(
    config: ProvenanceConfig, kind: str
) -> None:
    calls, out = list[str](), io.BytesIO()

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            self.send_error(404)

    actions = [{"action": "c2pa.created", "digitalSourceType": f"{IPTC}/digitalCreation"}]
    builder = c2pa.Builder(
        {"assertions": [{"label": "c2pa.actions", "data": {"actions": actions}}]}
    )
    builder.set_no_embed()
    with ThreadingHTTPServer(("127.0.0.1", 0), Inside) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        builder.set_remote_url(f"http://127.0.0.1:{server.server_port}/manifest")
        data, media = io.BytesIO(image(kind)), f"image/{kind.lower()}"
        builder.sign(Signer(config)._signer, media, data, out)
        origin = read_provenance(out.getvalue())
        server.shutdown()
    assert calls == []
    assert not origin["valid"]


def test_keys_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("nonsense")
    bad = ProvenanceConfig(certificate=str(tmp_path / "x.pem"), private_key=str(tmp_path / "x.pem"))
    with pytest.raises(ConfigError, match=r"provenance\.certificate"):
        Signer(bad)
    with pytest.raises(ConfigError, match="not set"):
        Signer(ProvenanceConfig())
