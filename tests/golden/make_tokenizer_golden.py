#!/usr/bin/env python3
"""Trains small byte-level BPE tokenizers with Hugging Face's `tokenizers` and writes what they give.

The oracle of tests/unit/tokenizer_bpe_test.c: tests/golden/tokenizers/NAME.json (a tokenizer.json), gpt2.vocab.json
and gpt2.merges.txt, and cases.json (texts and the ids that the package gives). The split patterns are those of
GPT-2, Llama 3, Qwen and others; the vocabularies are tiny and trained on Python's own documentation strings.
Needs: pip install tokenizers.   Run: python3 tests/golden/make_tokenizer_golden.py
"""
import inspect
import json
import os
import random
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizers")
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OTHER = ["Grüße aus Köln, naïve façade; São Paulo, Łódź, Ærøskøbing.", "Привет, мир! Как дела? Всё хорошо.", "你好，世界。今天天气很好。",
         "こんにちは世界、元気ですか。", "안녕하세요 세계", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Γειά σου Κόσμε", "Tiếng Việt có dấu"]


def corpus():
    import argparse, collections, datetime, email, json as j, logging, os as o, pathlib, random as r, re, string, subprocess, textwrap, typing, unittest

    for m in (argparse, collections, datetime, email, j, logging, o, pathlib, r, re, string, subprocess, textwrap, typing, unittest):
        text = inspect.getsource(m)
        yield from (text[i : i + 2000] for i in range(0, len(text), 2000))
    for _ in range(40):
        yield from OTHER
        yield from (f"{w} it's I'm don't we've they'll you're I'd IT'S DON'T" for w in ("so", "but", "and", "if", "or"))


def build(size, normalizer, pre, ignore_merges, special, post, extra):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False)
    t.train_from_iterator(corpus(), trainer)
    t.add_special_tokens(special)
    t.add_tokens(extra)
    if post:
        bos = special[0]
        t.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False),
             processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, t.token_to_id(bos))])]
        )
    return t


def split(pattern):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def tokenizers():
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    yield "gpt2", build(700, None, byte_level, False, ["<|endoftext|>"], False, [])
    yield "llama3", build(800, None, split(LLAMA3), True, ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], True, [])
    yield "qwen", build(700, normalizers.NFC(), split(QWEN), False, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], False,
                        [AddedToken("<tool_call>", normalized=False), AddedToken("é<x>", normalized=True)])
    yield "o200k", build(500, None, split(O200K), False, ["<|endoftext|>"], False, [])
    yield "starcoder", build(450, None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]), False, ["<|endoftext|>"], False, [])
    yield "prefix", build(450, None, pre_tokenizers.ByteLevel(add_prefix_space=True), False, ["<s>", "</s>"], True,
                          [AddedToken("<mask>", lstrip=True, rstrip=False, normalized=False), AddedToken("<gap>", rstrip=True, normalized=True)])


def by_hand(pre, ignore_merges, merges, tokens):
    """A vocabulary that training never gives: words that no merge makes, and merges across what the splitter cuts."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for t in [a + b for a, b in merges] + tokens:
        vocab.setdefault(t, len(vocab))
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    return t


def hand_made():
    merges = [("1", "2"), ("12", "3"), ("a", "b"), ("b", "c"), ("Ġ", "Ġ"), ("'", "s"), ("h", "e"), ("l", "l"), ("ĠĠ", "1"), ("\u010a", "\u010a"), ("s", "Ġ"), ("!", "a"), ("b", "1")]
    tokens = ["abc", "hello", "Ġhe", "123456", "Ġ12"]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits = lambda one: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=one), byte_level])
    cut = lambda pattern, behavior, invert=False: pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior, invert), byte_level])
    yield "hand_whole", by_hand(split(LLAMA3), True, merges, tokens)
    yield "hand_merged", by_hand(split(LLAMA3), False, merges, tokens)
    yield "hand_digits", by_hand(digits(False), True, merges, tokens)
    yield "hand_digit", by_hand(digits(True), True, merges, tokens)
    yield "hand_gpt2", by_hand(pre_tokenizers.ByteLevel(add_prefix_space=False), False, merges, tokens)
    yield "hand_removed", by_hand(cut(Regex(r"[\s']+"), "removed"), False, merges, tokens)
    yield "hand_kept", by_hand(cut(Regex(r"\p{L}+|\d"), "removed", True), False, merges, tokens)
    yield "hand_literal", by_hand(cut("b", "isolated"), False, merges, tokens)
    yield "hand_empty", by_hand(cut(Regex(r"(?=b)|^\s*"), "isolated"), False, merges, tokens)


def random_text(rng):
    """Code points that are old enough for every Unicode version in question."""
    pools = [range(32, 127), range(32, 127), [9, 10, 13, 32, 32, 32], range(0xA0, 0x250), range(0x370, 0x400), range(0x400, 0x460), range(0x5D0, 0x5EB),
             range(0x620, 0x64B), range(0x905, 0x940), range(0xE01, 0xE3A), range(0x1100, 0x1120), range(0x3041, 0x3097), range(0x4E00, 0x4F00),
             range(0xAC00, 0xAC40), range(0x300, 0x320), range(0x1F600, 0x1F640), [0x85, 0xA0, 0x1680, 0x180E, 0x2003, 0x200B, 0x200D, 0x2028, 0x202F, 0x3000, 0xFEFF],
             [0x17F, 0x212A, 0x130, 0x131, 0xDF], [0xBC, 0xB2, 0x2160, 0x2460, 0x660, 0x966, 0xFF11]]
    out = []
    for _ in range(rng.randint(1, 18)):
        pool = rng.choice(pools)
        out += [chr(rng.choice(list(pool))) for _ in range(rng.randint(1, 4))]
    return "".join(c for c in out if unicodedata.category(c) != "Cn")


def texts():
    rng = random.Random(7)
    fixed = [
        "abc ab bc 123 1234 123456 hello hellohe 12 b1 !ab\n\n\nabc", "it's   12  3 's ll\n\n 1", "   b\u180e\u180eb   \u180e", "s s  1\n b 1",
        "", " ", "  ", "\n", "\r\n\r\n", "\t\t x", "Hello world", " Hello  world  ", "hello\n\n  world\n", "a" * 90, " " * 50 + "x", "ab" * 40,
        "I'm you're he's they'll we've I'd don't DON'T I'LL it'S", "x'ſ 'K 'K'll", "''s 's", "1 12 123 1234 12345678 3.14159 1,000,000",
        "٣٤٥ ½ Ⅷ ①② １２３", "x=1;y=[2,3];/* c */ if(a<b){return -1;}", "https://example.org/a?b=c&d=%20#e", "tabs\tand\x0bvt\x0cff", "nbsp\u00a0x\u3000y\u180ez\u0085w\u2028v",
        "trailing   ", "   leading", "mixed \t \n \t end", "e\u0301 vs é, \u1100\u1161\u11a8 vs 각, q\u0323\u0307", "👍🏽👩‍👩‍👧 flags 🇩🇪🇫🇷", "zero\u200bwidth\ufeff", "\x00nul\x01\x7f",
        "<|endoftext|>", "a<|endoftext|>b<|endoftext|><|endoftext|> c", "<|begin_of_text|>x<|eot_id|>", "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext", "<|im_start|",
        "a <mask> b<mask>c  <gap>  d <gap>", "<tool_call>{}</tool_call>", "e\u0301<x> é<x> <x>", "<s>x</s>", "def f(self, *args):\n    return self.x  # comment\n",
        "Line one.\r\nLine two.\r\n\r\n\r\nLine five.", "...!!!???---===", "CamelCaseHTTPServer snake_case", "日本語とEnglishとрусский混在テキスト", "ὈΔΥΣΣΕΎΣ ʼn ǅ ﬁ",
        "word" + "\n" * 30 + "word", "x" + " " * 30 + "\n" + " " * 30 + "y",
    ] + OTHER
    return fixed + [random_text(rng) for _ in range(28)]


def main():
    os.makedirs(HERE, exist_ok=True)
    out = {}
    for name, t in [*tokenizers(), *hand_made()]:
        spec = json.loads(t.to_str())
        with open(os.path.join(HERE, name + ".json"), "w", encoding="utf-8") as f:
            json.dump(spec, f, ensure_ascii=False, separators=(",", ":"))
            f.write("\n")
        if name == "gpt2":
            with open(os.path.join(HERE, "gpt2.vocab.json"), "w", encoding="utf-8") as f:
                json.dump(t.get_vocab(), f, ensure_ascii=True, separators=(",", ":"))
            with open(os.path.join(HERE, "gpt2.merges.txt"), "w", encoding="utf-8") as f:
                f.write("#version: 0.2\n" + "".join((m if isinstance(m, str) else " ".join(m)) + "\n" for m in spec["model"]["merges"]))
        mine = texts()[:24] if name.startswith("hand_") else texts()  # the first texts are those that tell the hand-made ones apart
        out[name] = [t.encode(x).ids for x in mine]
    with open(os.path.join(HERE, "cases.json"), "w", encoding="utf-8") as f:
        json.dump({"texts": texts(), "ids": out}, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


main()
