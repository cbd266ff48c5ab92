"""XXH3-64 with seed 0, and BLAKE3, for peers that may not use more than the standard library."""

import struct

MASK = (1 << 64) - 1
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def word(data, at):
    return int.from_bytes(data[at : at + 8], "little")


def fold(left, right):
    product = left * right
    return (product & MASK) ^ (product >> 64)


def avalanche(value):
    value ^= value >> 37
    value = value * 0x165667919E3779F9 & MASK
    return value ^ value >> 32


def avalanche_64(value):
    value ^= value >> 33
    value = value * P2 & MASK
    value ^= value >> 29
    value = value * P3 & MASK
    return value ^ value >> 32


def rotate(value, count):
    return (value << count | value >> (64 - count)) & MASK


def xxh3(data):
    """The hash as a number."""
    size = len(data)
    if size > 240:
        return long(data)
    if size > 16:
        return middle(data)
    if size > 8:
        low = word(data, 0) ^ word(SECRET, 24) ^ word(SECRET, 32)
        high = word(data, size - 8) ^ word(SECRET, 40) ^ word(SECRET, 48)
        swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
        return avalanche(size + swapped + high + fold(low, high) & MASK)
    if size >= 4:
        first, last = struct.unpack("<I", data[:4])[0], struct.unpack("<I", data[-4:])[0]
        value = (last + (first << 32)) ^ word(SECRET, 8) ^ word(SECRET, 16)
        value ^= rotate(value, 49) ^ rotate(value, 24)
        value = value * 0x9FB21C651E98DF25 & MASK
        value ^= (value >> 35) + size
        value = value * 0x9FB21C651E98DF25 & MASK
        return value ^ value >> 28
    if size:
        combined = data[0] << 16 | data[size >> 1] << 24 | data[-1] | size << 8
        flip = struct.unpack("<I", SECRET[:4])[0] ^ struct.unpack("<I", SECRET[4:8])[0]
        return avalanche_64(combined ^ flip)
    return avalanche_64(word(SECRET, 56) ^ word(SECRET, 64))


def middle(data):
    size = len(data)

    def mix(at, secret):
        return fold(word(data, at) ^ word(SECRET, secret), word(data, at + 8) ^ word(SECRET, secret + 8))

    total = size * P1
    if size <= 128:
        for step in range((size - 1) // 32, -1, -1):
            total += mix(16 * step, 32 * step) + mix(size - 16 * step - 16, 32 * step + 16)
        return avalanche(total & MASK)
    total += sum(mix(16 * step, 16 * step) for step in range(8))
    total = avalanche(total & MASK)
    total += sum(mix(16 * step, 16 * (step - 8) + 3) for step in range(8, size // 16))
    return avalanche(total + mix(size - 16, 119) & MASK)


def long(data):
    size = len(data)
    lanes = [P32_3, P1, P2, P3, P4, P32_2, P5, P32_1]

    def accumulate(at, secret):
        words = struct.unpack_from("<8Q", data, at)
        keys = struct.unpack_from("<8Q", SECRET, secret)
        for lane in range(8):
            key = words[lane] ^ keys[lane]
            lanes[lane ^ 1] += words[lane]
            lanes[lane] += (key & 0xFFFFFFFF) * (key >> 32)

    blocks = (size - 1) // 1024
    for block in range(blocks):
        for stripe in range(16):
            accumulate(1024 * block + 64 * stripe, 8 * stripe)
        keys = struct.unpack_from("<8Q", SECRET, 128)
        for lane in range(8):
            value = lanes[lane] & MASK
            lanes[lane] = (value ^ value >> 47 ^ keys[lane]) * P32_1 & MASK
    for stripe in range((size - 1 - 1024 * blocks) // 64):
        accumulate(1024 * blocks + 64 * stripe, 8 * stripe)
    accumulate(size - 64, 121)
    lanes = [lane & MASK for lane in lanes]
    total = size * P1
    for pair in range(4):
        low, high = word(SECRET, 11 + 16 * pair), word(SECRET, 19 + 16 * pair)
        total += fold(lanes[2 * pair] ^ low, lanes[2 * pair + 1] ^ high)
    return avalanche(total & MASK)


IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
QUARTERS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
QUARTERS += ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8


def compress(chaining, block, counter, flags):
    """The chaining value of one block."""
    words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    state = [*chaining, *IV[:4], counter & 0xFFFFFFFF, counter >> 32, len(block), flags]
    for step in range(7):
        for which, (a, b, c, d) in enumerate(QUARTERS):
            for message, turn_d, turn_b in ((words[2 * which], 16, 12), (words[2 * which + 1], 8, 7)):
                state[a] = state[a] + state[b] + message & 0xFFFFFFFF
                value = state[d] ^ state[a]
                state[d] = (value >> turn_d | value << (32 - turn_d)) & 0xFFFFFFFF
                state[c] = state[c] + state[d] & 0xFFFFFFFF
                value = state[b] ^ state[c]
                state[b] = (value >> turn_b | value << (32 - turn_b)) & 0xFFFFFFFF
        words = [words[at] for at in ORDER]
    return [state[at] ^ state[at + 8] for at in range(8)]


def subtree(data, counter, flags):
    if len(data) > 1024:
        half = 1024
        while half * 2 < len(data):
            half *= 2
        left, right = subtree(data[:half], counter, 0), subtree(data[half:], counter + half // 1024, 0)
        return compress(IV, struct.pack("<16I", *left, *right), 0, PARENT | flags)
    chaining = IV
    blocks = [data[at : at + 64] for at in range(0, len(data), 64)] or [b""]
    for at, block in enumerate(blocks):
        of_block = CHUNK_START if at == 0 else 0
        if at + 1 == len(blocks):
            of_block |= CHUNK_END | flags
        chaining = compress(chaining, block, counter, of_block)
    return chaining


def blake3(data):
    """The hash as 32 bytes."""
    return struct.pack("<8I", *subtree(data, 0, ROOT))
