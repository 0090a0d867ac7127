"""Content credentials (C2PA): an image says, signed, that it was generated, and by what."""

import io
import json
from pathlib import Path
from typing import Any

import c2pa

from dreambooth_ray.config.serving import ProvenanceConfig
from dreambooth_ray.errors import ConfigError
from dreambooth_ray.version import __version__

_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_MEDIA_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
# An image may name an address where its manifest lies: it is not ours to call.
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_RECEIPT = "org.dreambooth.receipt"


class Signer:
    """Signs with one certificate."""

    def __init__(self, config: ProvenanceConfig) -> None:
        """raises ConfigError if certificate or key can't be used."""
        if config.certificate is None or config.private_key is None:
            raise ConfigError("provenance.certificate and provenance.private_key are not set")
        try:
            certificate = Path(config.certificate).read_text()
            private_key = Path(config.private_key).read_text()
            signer_info = c2pa.C2paSignerInfo(
                alg=b"es256",
                sign_cert=certificate.encode(),
                private_key=private_key.encode(),
                ta_url=None,
            )
            self._signer = c2pa.Signer.from_info(signer_info)
        except (OSError, c2pa.C2paError) as error:
            raise ConfigError(
                f"provenance.certificate={config.certificate!r} and its private key can't be used "
                f"({error}); give an ES256 certificate chain and key in PEM form"
            ) from error

    def sign(self, data: bytes, receipt: dict[str, object]) -> bytes:
        """The same image file with a signed manifest that holds the receipt.

        Prompts stay out of it, since images are passed on.
        """
        public_receipt = {
            k: v for k, v in receipt.items() if k not in ("prompt", "negative_prompt")
        }
        provenance_manifest = {
            "claim_generator_info": [{"name": "dreambooth", "version": __version__}],
            "assertions": [
                {
                    "label": "c2pa.actions",
                    "data": {
                        "actions": [{"action": "c2pa.created", "digitalSourceType": _GENERATED}]
                    },
                },
                {"label": _RECEIPT, "data": public_receipt},
            ],
        }
        signed_image = io.BytesIO()
        with c2pa.Builder(provenance_manifest) as builder:
            builder.sign(self._signer, _media_type(data), io.BytesIO(data), signed_image)
        return signed_image.getvalue()


def read_provenance(data: bytes) -> dict[str, Any]:
    """What an image says of its origin.

    returns: {"found": False} without a manifest; else found, valid, generator, receipt and
        problems. valid says that image and manifest are as they were signed; who the signer
        is to be trusted as is for the reader to decide: issuer names the certificate's
    raises: ConfigError if it is no PNG, JPEG or WebP file
    """
    try:
        with (
            c2pa.Context.from_dict(_OFFLINE) as c2pa_context,
            c2pa.Reader(
                _media_type(data), io.BytesIO(data), context=c2pa_context
            ) as provenance_reader,
        ):
            c2pa_manifests = json.loads(provenance_reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return {"found": False}
    except c2pa.C2paError as error:
        return {"found": True, "valid": False, "problems": [str(error)]}
    active_manifest = c2pa_manifests["manifests"][c2pa_manifests["active_manifest"]]
    validation_problems = [
        validation_problem["code"]
        for validation_problem in c2pa_manifests.get("validation_status", [])
        # An issuer that is on no public list is no damage to the image.
        if validation_problem["code"] != "signingCredential.untrusted"
    ]
    generator_infos = active_manifest.get("claim_generator_info", [])
    embedded_receipts = [
        a["data"] for a in active_manifest.get("assertions", []) if a["label"] == _RECEIPT
    ]
    return {
        "found": True,
        "valid": not validation_problems,
        "generator": generator_infos[0] if generator_infos else None,
        "issuer": active_manifest.get("signature_info", {}).get("issuer"),
        "receipt": embedded_receipts[0] if embedded_receipts else None,
        "problems": validation_problems,
    }


def _media_type(data: bytes) -> str:
    for magic_bytes, media_type in _MEDIA_TYPES.items():
        if data.startswith(magic_bytes):
            return media_type
    raise ConfigError("image is no PNG, JPEG or WebP file")
