"""The type of a file by its first bytes: only UTF-8 text, with or without a BOM, can be JSONL."""

from xalen_batch.validation.errors import Fault

UTF8_BOM = b"\xef\xbb\xbf"
# Bytes of the longest signature.
LONGEST = 4
# Longer signatures come first: the UTF-16LE one is the beginning of the UTF-32LE one.
ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32LE",
    b"\x00\x00\xfe\xff": "UTF-32BE",
    b"{\x00\x00\x00": "UTF-32LE",
    b"\x00\x00\x00{": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
    b"{\x00": "UTF-16LE",
    b"\x00{": "UTF-16BE",
}
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
}


def refusal(head: bytes) -> Fault | None:
    """Why a file that begins with `head` cannot be JSONL; None if it may be."""
    for signature, encoding in ENCODINGS.items():
        if head.startswith(signature):
            remedy = f"Save it as UTF-8: iconv -f {encoding} -t UTF-8 input.jsonl > utf8.jsonl"
            return Fault("invalid_encoding", f"The file is {encoding}, not UTF-8. {remedy}")
    for signature, name in COMPRESSED.items():
        if head.startswith(signature):
            return Fault(
                "invalid_encoding",
                f"The file is compressed ({name}), not JSONL text. Decompress it before you"
                " upload it.",
            )
    return None
