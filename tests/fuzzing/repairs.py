"""Checksums of damaged files put right, so that the damage gets past the first check."""

from __future__ import annotations

import struct
import zlib

PNG_SIGNATURE_BYTES = 8
TAR_BLOCK = 512
ZIP_LOCAL, ZIP_CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def repair_png(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of their content, as far as chunks can be found."""
    fixed, place = bytearray(data), PNG_SIGNATURE_BYTES
    while place + 12 <= len(fixed):
        length = int.from_bytes(fixed[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[place + 4 : end]))
        place = end + 4
    return bytes(fixed)


def repair_tar(data: bytes) -> bytes:
    """A tar in which every block that looks like a header has the checksum of its content."""
    fixed = bytearray(data)
    for start in range(0, len(fixed) - TAR_BLOCK + 1, TAR_BLOCK):
        header = fixed[start : start + TAR_BLOCK]
        if header[257:262] != b"ustar":
            continue
        header[148:156] = b" " * 8
        fixed[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(fixed)


def repair_zip(data: bytes) -> bytes:
    """A zip whose last directory entry is found again after bytes were inserted or removed."""
    fixed = bytearray(data)
    central, end = fixed.find(ZIP_CENTRAL), fixed.rfind(b"PK\x05\x06")
    if central < 0 or end < central or end + 20 > len(fixed):
        return data
    fixed[end + 12 : end + 16] = struct.pack("<I", end - central)
    fixed[end + 16 : end + 20] = struct.pack("<I", central)
    return bytes(fixed)
