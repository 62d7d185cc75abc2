#!/usr/bin/env python3
"""Makes small vocabularies and the ids that the reference tokenizers give for some texts.

    python generate_tokens.py SHARED_FOLDER [MODEL.gguf..]

Writes tests/data/tokens/*.gguf (cut from the shared vocabularies; a unigram and a tokenizer.json trained here) and
tests/data/tokens/ids.json. The ids of MODEL files are kept by file name. References: llama.cpp (llama-cpp-python) for
GGUF, sentencepiece for the unigram model, tokenizers for tokenizer.json. Also needs gguf and numpy.
"""
import contextlib
import io
import json
import os
import pathlib
import sys

import gguf
import sentencepiece
import tokenizers
from llama_cpp import Llama

OUT = pathlib.Path(__file__).parent / "data" / "tokens"
TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\t\n", " \n ", "Hello world", " Hello world", "Hello  World!", "  Hello",
    "    Hello\n    Hello", "I'll say it's John's, DON'T, we've", "3 33 333 3333 33333333 3.14 1,000,000", "x=1;y+=2 // ok\n\treturn f(x)[0];\n",
    "naïve café Äpfel übung ß œ", "нещо на Български", "កាន់តែពិសេស", "我想在apple工作1314151天～", "日本語のテキスト、です。", "안녕하세요 세계", "שלום עולם مرحبا",
    "🚀 (normal) 😶‍🌫️ (multiple) ✅ 🏳️‍🌈", "a\u0301 e\u0308 \u200b\u00a0|\u3000|\u2028|", "\u0000\u0001\u007f\u0085", "''''''```````\"\"\"\"......!!!!!!??????", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<s>[INST] Hi [/INST]</s>", "<bos><start_of_turn>user\nHi<end_of_turn>\n", "<|endoftext|><|user|> x <|end|>\n y", "[CLS] a [SEP] [MASK]", "▁under▁score▁", "ſ ſt ﬁ Å Ⅷ ½ ²", "a" * 70, "ab" * 40, " " * 33 + "x", "1" * 40,
    "The quick brown fox jumps over the lazy dog. " * 3, "https://example.org/a_b?c=d&e=%20f#g", "#include <stdio.h>\r\nint main(void) {\r\n  return 0;\r\n}", "e=mc^2 ≈ 9×10¹⁶ J — “quotes” … ‘x’", "𝕳𝖊𝖑𝖑𝖔 𐍈 \U0010ffff",
]


def cut(source, name, keep, merges=0, more=(), model_name=None):
    """The tokens `keep(id)` of a vocabulary, its first merges, and further (text, type) tokens."""
    reader = gguf.GGUFReader(source)
    field = lambda key: reader.get_field(key).contents() if reader.get_field(key) else None
    writer = gguf.GGUFWriter(OUT / name, field("general.architecture"))
    tokens, types, scores = (field("tokenizer.ggml." + k) for k in ("tokens", "token_type", "scores"))
    ids = [i for i in range(len(tokens)) if keep(i, tokens[i], types[i] if types else 1)]
    new = {old: i for i, old in enumerate(ids)}
    for key, f in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "tokenizer.chat_template"):
            continue
        value = f.contents()
        if key == "general.name" and model_name:
            value = model_name
        if key.endswith("_token_id"):
            value = new.get(value)
            if value is None:
                continue
        if key == "tokenizer.ggml.tokens":
            value = [tokens[i] for i in ids] + [t for t, _ in more]
        if key == "tokenizer.ggml.token_type":
            value = [int(types[i]) for i in ids] + [k for _, k in more]
        if key == "tokenizer.ggml.scores":
            value = [float(scores[i]) for i in ids] + [0.0 for _ in more]
        if key == "tokenizer.ggml.merges":
            value = value[:merges]
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, f.types[0])
    close(writer)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def unigram():
    text = [t for t in TEXTS if t.strip() and "\0" not in t] * 4
    rules = OUT / "rules.tsv"
    pairs = [("ﬁ", "fi"), ("Ⅷ", "VIII"), ("½", "1⁄2"), ("²", "2"), ("\u3000", " "), ("\u00a0", " "), ("\t", " "), ("\n", " "), ("e\u0308", "ë"), ("\u200b", "")]
    points = lambda t: " ".join(f"{ord(c):X}" for c in t)
    rules.write_text("".join(f"{points(a)}\t{points(b)}\n" for a, b in pairs))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=model, model_type="unigram", vocab_size=420,
                                             character_coverage=0.98, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
                                             normalization_rule_tsv=str(rules))
    rules.unlink()
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    from sentencepiece import sentencepiece_model_pb2 as pb
    proto = pb.ModelProto()
    proto.ParseFromString(model.getvalue())
    writer = gguf.GGUFWriter(OUT / "unigram.gguf", "t5")
    writer.add_tokenizer_model("t5")
    writer.add_token_list([p.piece for p in proto.pieces])
    writer.add_token_scores([p.score for p in proto.pieces])
    writer.add_token_types([p.type for p in proto.pieces])
    writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(proto.normalizer_spec.remove_extra_whitespaces)
    writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
    close(writer)
    return [sp.encode(t) for t in TEXTS]


def tokenizer_json():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"], show_progress=False))
    t.add_tokens([AddedToken("<think>", special=False)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    t.enable_truncation(16)
    t.enable_padding(length=16)
    t.save(str(OUT / "tokenizer.json"), pretty=False)
    t.no_truncation()
    t.no_padding()
    parse = [t.encode(x, add_special_tokens=False).ids for x in TEXTS]
    t.encode_special_tokens = True
    return {"parse": parse, "plain": [t.encode(x, add_special_tokens=False).ids for x in TEXTS]}


def llama(path):
    with contextlib.redirect_stderr(io.StringIO()):
        model = Llama(str(path), vocab_only=True, verbose=False)
    one = lambda text, special: model.tokenize(text.encode(), add_bos=False, special=special)
    return {"parse": [one(t, True) for t in TEXTS], "plain": [one(t, False) for t in TEXTS]}


def main():
    shared = pathlib.Path(sys.argv[1], "tokenizers")
    source = lambda n: shared / f"ggml-vocab-{n}.gguf"
    ids = {}
    cut(source("gpt-2"), "bpe-gpt2.gguf", lambda i, t, k: i < 256 + 700 or k != 1, merges=700)
    cut(source("qwen2"), "bpe-qwen2.gguf", lambda i, t, k: i < 256 + 700 or t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), merges=700)
    cut(source("phi-3"), "spm-phi3.gguf", lambda i, t, k: i < 1500 or 29871 <= i < 29950 or i >= 32000 and k not in (1, 6), model_name="Phi-3 tiny")
    cut(source("bert-bge"), "wordpiece.gguf", lambda i, t, k: i in (0, 100, 101, 102, 103) or 999 <= i < 3200)
    for name in ("bpe-gpt2", "bpe-qwen2", "spm-phi3", "wordpiece"):
        ids[name + ".gguf"] = llama(OUT / (name + ".gguf"))
    ids["unigram.gguf"] = {"plain": unigram()}
    ids["tokenizer.json"] = tokenizer_json()
    for path in sys.argv[2:]:
        ids[os.path.basename(path)] = llama(path)
    (OUT / "texts.json").write_text(json.dumps(TEXTS) + "\n")
    lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in ids.items())
    (OUT / "ids.json").write_text("{" + lines + "}\n")


main()
