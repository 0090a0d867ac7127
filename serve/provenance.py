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
            key = Path(config.private_key).read_text()
            signer_info = c2pa.C2paSignerInfo(
                alg=b"es256", sign_cert=certificate.encode(), private_key=key.encode(), ta_url=None
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
        manifest = {
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
        with c2pa.Builder(manifest) as builder:
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
            c2pa.Context.from_dict(_OFFLINE) as context,
            c2pa.Reader(_media_type(data), io.BytesIO(data), context=context) as reader,
        ):
            manifest_store = json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return {"found": False}
    except c2pa.C2paError as error:
        return {"found": True, "valid": False, "problems": [str(error)]}
    active = manifest_store["manifests"][manifest_store["active_manifest"]]
    problems = [
        problem["code"]
        for problem in manifest_store.get("validation_status", [])
        # An issuer that is on no public list is no damage to the image.
        if problem["code"] != "signingCredential.untrusted"
    ]
    generators = active.get("claim_generator_info", [])
    receipts = [a["data"] for a in active.get("assertions", []) if a["label"] == _RECEIPT]
    return {
        "found": True,
        "valid": not problems,
        "generator": generators[0] if generators else None,
        "issuer": active.get("signature_info", {}).get("issuer"),
        "receipt": receipts[0] if receipts else None,
        "problems": problems,
    }


def _media_type(data: bytes) -> str:
    for magic_bytes, media_type in _MEDIA_TYPES.items():
        if data.startswith(magic_bytes):
            return media_type
    raise ConfigError("image is no PNG, JPEG or WebP file")
