"""Rounding by chance and codes of 8 bits in NumPy, written from their definition.

As ``oracle.py`` it takes nothing from the package. Words are uint32 and wrap.
"""

from __future__ import annotations

import numpy as np

BLOCK = 256
GOLDEN = np.uint32(0x9E3779B9)
PARAM = 0x85EBCA6B
NEAREST = np.uint32(0x8000)


def hash32(x):
    x = np.asarray(x, np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def key_of(seed, number, step, upper):
    key = np.zeros((1,), np.uint32)
    for word in (seed, seed >> 32, number, number >> 32, step, upper):
        key = hash32((key ^ np.uint32(word & 0xFFFFFFFF)) + GOLDEN)
    return key


def draws(seed, number, step, numel, first=0, param=False):
    """The 32 random bits of each of ``numel`` elements, from the index ``first`` on."""
    index = np.arange(first, first + numel, dtype=np.uint64)
    upper, lower = index >> np.uint64(32), index.astype(np.uint32)
    key = np.zeros(numel, np.uint32)
    for each in np.unique(upper):
        key[upper == each] = key_of(seed, number, step, int(each))
    return hash32(lower * GOLDEN + key + np.uint32(PARAM if param else 0))


def bits_of(x):
    return np.asarray(x, np.float32).view(np.uint32)


def to_bfloat16(x, drawn):
    """Bits of bfloat16."""
    bits = bits_of(x)
    raised = (bits + (drawn & np.uint32(0xFFFF))) >> np.uint32(16)
    return np.where(np.isnan(x), (bits >> np.uint32(16)) | 0x40, raised).astype(np.uint16)


def to_float16(x, drawn):
    """Bits of float16: the two neighbours, the upper one with the chance of the rest."""
    x = np.asarray(x, np.float32)
    size = np.abs(x).astype(np.float64)
    exponent = np.where(size > 0, np.frexp(size)[1] - 1, -15)
    unit = np.ldexp(1.0, np.maximum(exponent, -14) - 10)
    with np.errstate(invalid="ignore"):
        whole = np.floor(size / unit)
        rest = size / unit - whole
    chance = np.where(
        exponent < -14, (drawn >> np.uint32(8)) / 2.0**24, (drawn & np.uint32(0x1FFF)) / 2.0**13
    )
    # A normal number goes up where rest + chance reaches one, a subnormal where rest exceeds it.
    up = np.where(exponent < -14, rest > chance, rest + chance >= 1)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.minimum((whole + up) * unit, 65504.0)
    rounded = np.where(size >= 65536, np.inf, rounded)
    rounded = np.where(np.isnan(x), np.nan, rounded)
    found = np.copysign(rounded, x).astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), np.where(np.signbit(x), 0xFE00, 0x7E00), found).astype(np.uint16)


def encode(x, second, chances):
    """(codes, exponents) of a first or a second moment, in flat order."""
    x = np.asarray(x, np.float32)
    lowest, top = (31, 255) if second else (15, 127)
    magnitude = bits_of(np.abs(x))
    codes, exponents = np.zeros(x.size, np.uint8), []
    for begin in range(0, x.size, BLOCK):
        at = slice(begin, begin + BLOCK)
        finite = magnitude[at][magnitude[at] < 0x7F800000]
        exponent = min(max(int(finite.max(initial=0)) >> 23, lowest), 253)
        raised = (magnitude[at].astype(np.int64) + (chances[at].astype(np.int64) << 4)) >> 20
        code = raised - 8 * (exponent - (lowest - 1))
        if second:
            code = np.where(magnitude[at] > 0, np.clip(code, 1, top), 0)
        else:
            code = np.clip(code, 0, top)
            negative = (code > 0) & np.signbit(x[at]) & ~np.isnan(x[at])
            code = np.where(negative, code | 0x80, code)
        codes[at] = code
        exponents.append(exponent)
    return codes, np.array(exponents, np.uint8)


def decode(codes, exponents, second):
    """The numbers that codes stand for, in float64."""
    lowest, top = (31, 0xFF) if second else (15, 0x7F)
    exponents = np.repeat(exponents.astype(np.int64), BLOCK)[: codes.size]
    magnitude = (codes & top).astype(np.int64)
    place = magnitude + 8 * (exponents - (lowest - 1))  # exponent and three bits of mantissa
    values = np.ldexp(1 + (place % 8) / 8, place // 8 - 127)
    return np.where(magnitude == 0, 0.0, values) * np.where(codes > top, -1.0, 1.0)
