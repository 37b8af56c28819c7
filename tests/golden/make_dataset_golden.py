#!/usr/bin/env python3
"""Writes tests/golden/dataset_golden.h: what Megatron-LM's datasets give, restated with NumPy.

The rules (document, sample and shuffle index, splits, blends, mock data) are written down here a second time,
in the plainest way and sharing nothing with the C code; the random numbers are NumPy's own. Needs numpy.
Run:  python3 tests/golden/make_dataset_golden.py > tests/golden/dataset_golden.h
"""
import math
import sys

import numpy as np


def fnv(values):
    """FNV-1a over the values as 8-byte little-endian words."""
    h = 0xCBF29CE484222325
    for v in values:
        for b in int(v).to_bytes(8, "little", signed=True):
            h = ((h ^ b) * 0x100000001B3) & (2**64 - 1)
    return h


def lcg_lengths(count, longest, seed):
    """Pseudo-random lengths 1 .. longest that the C test can make as well."""
    out, x = [], seed
    for _ in range(count):
        x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(1 + (x >> 33) % longest)
    return out


def gpt_indices(lengths, first, end, seq, wanted, seed):
    docs = list(range(first, end))
    per_epoch = sum(lengths[d] for d in docs)
    epochs = 1
    if wanted is not None:
        while epochs * per_epoch < wanted * seq + 1:
            epochs += 1
    separate = False
    if epochs > 1:
        sans = ((epochs - 1) * per_epoch - 1) // seq
        separate = wanted - sans < int(0.80 * ((per_epoch - 1) // seq))
    state = np.random.RandomState(seed)
    if separate:
        a = np.tile(np.array(docs, dtype=np.int32), epochs - 1)
        state.shuffle(a)
        b = np.array(docs, dtype=np.int32)
        state.shuffle(b)
        document = np.concatenate([a, b])
    else:
        document = np.tile(np.array(docs, dtype=np.int32), epochs)
        state.shuffle(document)
    samples = (epochs * per_epoch - 1) // seq
    # the stream as (position, offset) of every token; sample j starts at token j * seq
    rows, begin = [], np.concatenate([[0], np.cumsum([lengths[d] for d in document])])
    for j in range(samples + 1):
        t = j * seq  # the row belongs to the last token of the sample before: its position holds that token
        p = int(np.searchsorted(begin, t, side="right")) - 1
        rows.append((p, int(t - begin[p])) if j else (0, 0))
    if separate:
        s1 = np.arange(0, sans, dtype=np.uint32)
        state.shuffle(s1)
        s2 = np.arange(sans, samples, dtype=np.uint32)
        state.shuffle(s2)
        shuffle = np.concatenate([s1, s2])
    else:
        shuffle = np.arange(0, samples, dtype=np.uint32)
        state.shuffle(shuffle)
    return epochs, separate, document.tolist(), rows, shuffle.tolist()


def blend_order(weights, size):
    counts, picks = [0] * len(weights), []
    for i in range(size):
        errors = [w * max(float(i), 1.0) - float(c) for w, c in zip(weights, counts)]
        d = errors.index(max(errors))
        picks.append((d, counts[d]))
        counts[d] += 1
    return picks


def blend_exhaustive(sizes):
    total, counts, picks = float(sum(sizes)), [0] * len(sizes), []
    weights = [s / total for s in sizes]
    for i in range(sum(sizes)):
        left = [d for d in range(len(sizes)) if counts[d] < sizes[d]]
        errors = [weights[d] * max(float(i), 1.0) - float(counts[d]) for d in left]
        d = left[errors.index(max(errors))]
        picks.append((d, counts[d]))
        counts[d] += 1
    return picks


def normalize(weights):
    w = np.array(weights, dtype=np.float64)
    return (w / np.sum(w)).tolist()


def split_ranges(numbers, n):
    shares, at, out = normalize(numbers), 0, []
    for s in shares:
        out.append((int(round(at * float(n))), int(round((at + s) * float(n)))))
        at = at + s
    return out


def array(name, values, kind="int64_t"):
    print(f"static const {kind} {name}[] = {{")
    values = list(values)
    for i in range(0, len(values), 12):
        print("    " + ", ".join(str(v) for v in values[i : i + 12]) + ",")
    print("};")


def emit_generator():
    state = np.random.RandomState(1234)
    array("golden_u32", [int(x) for x in state.randint(0, 2**32, 8, dtype=np.uint32)], "uint32_t")
    state = np.random.RandomState(5)
    array("golden_double", [float(x).hex() for x in state.random_sample(6)], "double")
    rows = []
    for seed, n in ((0, 10), (42, 10), (1234, 8), (4294967295, 20), (7, 1), (7, 2), (9, 0), (99, 100000)):
        a = np.arange(n, dtype=np.uint32)
        state = np.random.RandomState(seed)
        state.shuffle(a)
        b = np.arange(5, dtype=np.uint32)  # the state afterwards
        state.shuffle(b)
        rows.append((seed, n, fnv(a), fnv(b)))
    print("static const struct { uint32_t seed; int64_t count; uint64_t first, second; } golden_shuffle[] = {")
    for r in rows:
        print(f"    {{{r[0]}u, {r[1]}, 0x{r[2]:x}u, 0x{r[3]:x}u}},")
    print("};")


def emit_indices():
    cases = []
    tiny = [5, 3, 7, 4, 6, 2, 8, 1]
    for wanted in (8, 11, 17, 1, None, 100, 9, 13, 14, 15, 18):
        cases.append((tiny, 0, 8, 4, wanted, 1234, 0, 0))
    cases.append((tiny, 2, 7, 4, 9, 1234, 0, 0))  # a split in the middle
    cases.append((tiny, 2, 3, 1, 30, 3, 0, 0))
    cases.append(([0, 3, 0, 0, 5, 1, 0], 0, 7, 2, 11, 77, 0, 0))  # sequences without tokens
    cases.append(([1] * 6, 0, 6, 5, 7, 8, 0, 0))  # shorter than a sample
    for count, longest, seq, wanted, seed in ((3000, 700, 128, 9000, 1234), (3000, 700, 128, 12000, 1), (20000, 60, 1024, None, 42),
                                              (1000, 3, 1024, 10, 5)):
        cases.append((lcg_lengths(count, longest, seed), 0, count, seq, wanted, seed, count, longest))
    for i, c in enumerate(cases):
        if not c[6]:
            array(f"golden_lengths_{i}", c[0], "int32_t")
    print("static const struct { const int32_t *lengths; int64_t count, longest, first, end, seq, wanted; uint32_t seed; int64_t epochs; int separate; "
          "int64_t positions, samples; uint64_t documents, rows, shuffle; } golden_index[] = {")
    for i, (lengths, first, end, seq, wanted, seed, count, longest) in enumerate(cases):
        epochs, separate, document, rows, shuffle = gpt_indices(lengths, first, end, seq, wanted, seed)
        flat = [v for r in rows for v in r]
        name = "NULL" if count else f"golden_lengths_{i}"
        print(f"    {{{name}, {len(lengths)}, {longest}, {first}, {end}, {seq}, {-1 if wanted is None else wanted}, {seed}u, {epochs}, {int(separate)}, "
              f"{len(document)}, {len(shuffle)}, 0x{fnv(document):x}u, 0x{fnv(flat):x}u, 0x{fnv(shuffle):x}u}},")
    print("};")
    # two written out in full, to read
    e, s, document, rows, shuffle = gpt_indices(tiny, 0, 8, 4, 11, 1234)
    array("golden_documents_full", document)
    array("golden_rows_full", [v for r in rows for v in r])
    array("golden_shuffle_full", shuffle)


def emit_splits():
    cases = [("969, 30, 1", [969, 30, 1]), ("1,1,1", [1, 1, 1]), ("99,1,0", [99, 1, 0]), ("8/1/1", [8, 1, 1]), ("0.5 .25 .25", [0.5, 0.25, 0.25]),
             ("100", [100, 0, 0]), ("949,50,1", [949, 50, 1]), ("0.9 0.07 0.03", [0.9, 0.07, 0.03])]
    print("static const struct { const char *text; int64_t sequences, at[6]; } golden_split[] = {")
    for text, numbers in cases:
        for n in (1, 2, 5, 10, 33, 100, 500, 1001, 99999, 100000, 12345678, 2**31 - 1):
            flat = [v for r in split_ranges(numbers, n) for v in r]
            print(f'    {{"{text}", {n}, {{{", ".join(map(str, flat))}}}}},')
    print("};")


def emit_blends():
    cases = [[0.3, 0.5, 0.2], [30, 70], [1, 1, 1], [0.1] * 10, [5], list(range(1, 41)), [1 / k for k in range(1, 301)]]
    print("static const struct { int count; double weights[300]; int64_t size; double first, last; uint64_t order; } golden_blend[] = {")
    for w in cases:
        n = normalize(w)
        size = 2000
        picks = blend_order(n, size)
        print(f"    {{{len(w)}, {{{', '.join(float(x).hex() for x in w)}}}, {size}, {n[0].hex()}, {n[-1].hex()}, 0x{fnv([v for p in picks for v in p]):x}u}},")
    print("};")
    picks = blend_exhaustive([7, 1, 300, 41])
    print(f"static const uint64_t golden_exhaustive = 0x{fnv([v for p in picks for v in p]):x}u; /* lengths 7 1 300 41 */")
    shares = []
    for size, weight, surplus in ((100, 0.3, 0.0), (100, 0.3, 0.005), (12345, 1 / 3, 0.005), (1, 0.001, 0.005), (10**9, 0.7, 0.005), (1000, 0.2, 0.005)):
        shares.append(f"{{{size}, {weight.hex()}, {surplus.hex()}, {int(math.ceil(math.ceil(size * weight) * (1 + surplus)))}}}")
    print("static const struct { int64_t size; double weight, surplus; int64_t share; } golden_share[] = {" + ", ".join(shares) + "};")


def sample_tokens(index, read, seq, k):
    _, _, document, rows, shuffle = index
    j = shuffle[k]
    (p, o), (q, e) = rows[j], rows[j + 1]
    out = []
    for i in range(p, q + 1):
        doc = read(document[i])
        begin = o if i == p else 0
        out += doc[begin : e + 1] if i == q else doc[begin:]
    assert len(out) == seq + 1
    return out


def emit_pipeline():
    """Two corpora blended 0.3 / 0.7 with --split 90,10,0, and the mock corpus: all samples hashed."""
    seq, seed, wanted, vocab = 64, 1234, (300, 40), 50000
    corpora = [(lcg_lengths(200, 90, 11), 1), (lcg_lengths(500, 40, 12), 2)]
    read = lambda c, d: [(corpora[c][1] * 7919 + d * 131 + t) % vocab for t in range(corpora[c][0][d])]
    weights = normalize([0.3, 0.7])
    print("static const struct { int64_t length; uint64_t tokens; } golden_pipeline[] = {")
    for split in (0, 1):
        indices = []
        for c, (lengths, _) in enumerate(corpora):
            first, end = split_ranges([90, 10, 0], len(lengths))[split]
            indices.append(gpt_indices(lengths, first, end, seq, int(math.ceil(math.ceil(wanted[split] * weights[c]) * (1 + 0.005))), seed))
        size = sum(int(math.ceil(wanted[split] * w)) for w in weights)
        stream = []
        for d, k in blend_order(normalize(weights), size):
            stream += sample_tokens(indices[d], lambda doc, d=d: read(d, doc), seq, k)
        print(f"    {{{size}, 0x{fnv(stream):x}u}},")
    # no weights: one epoch each, blended by length
    indices = [gpt_indices(l, *split_ranges([90, 10, 0], len(l))[0], seq, None, seed) for l, _ in corpora]
    lengths = [len(i[4]) for i in indices]
    for size in (100, 10**6):
        size = min(size, sum(lengths))
        stream = []
        for d, k in blend_order(normalize(lengths), size):
            stream += sample_tokens(indices[d], lambda doc, d=d: read(d, doc), seq, k)
        print(f"    {{{size}, 0x{fnv(stream):x}u}},")
    print("};")
    lengths = np.random.default_rng(0).integers(1, 4096, 100000, dtype=np.int32).tolist()
    mock_vocab, eod, seq = 1024, 1023, 256
    mock = lambda d: [(t + 1) % mock_vocab for t in range(lengths[d] - 1)] + [eod]
    ranges = split_ranges([1, 1, 1], 100000)
    print("static const struct { int64_t length; uint64_t tokens; } golden_mock[] = { /* vocabulary 1024, end 1023, s 256, 100 samples each */")
    for first, end in ranges:
        index = gpt_indices(lengths, first, end, seq, 100, seed)
        stream = []
        for k in range(100):
            stream += sample_tokens(index, mock, seq, k)
        print(f"    {{{len(index[4])}, 0x{fnv(stream):x}u}},")
    print("};")
    print(f"static const uint64_t golden_mock_lengths = 0x{fnv(lengths):x}u;")


def main():
    print("/* Made by make_dataset_golden.py with numpy " + np.__version__ + "; do not edit. */")
    print("#pragma once\n#include <stddef.h>\n#include <stdint.h>\n")
    emit_generator()
    emit_indices()
    emit_splits()
    emit_blends()
    emit_pipeline()


if __name__ == "__main__":
    sys.exit(main())
