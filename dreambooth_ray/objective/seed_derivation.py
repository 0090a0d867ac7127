"""One hash from an address to a seed: every random number of the product comes by it."""

import hashlib


def derive_seed(*address: object) -> int:
    """A seed from 0 to 2**63 - 1, a pure function of the address' parts as text."""
    address_text = "/".join(str(address_part) for address_part in address)
    address_digest = hashlib.blake2b(address_text.encode(), digest_size=8).digest()
    return int.from_bytes(address_digest, "little") >> 1
