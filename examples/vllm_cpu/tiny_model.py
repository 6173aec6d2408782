"""Writes a tiny chat model's directory: a Qwen2 of 22 million parameters, its tokenizer, its chat template.

No weights are written: vLLM makes random ones (``--load-format dummy``), so the answers mean nothing, but their cost
in KV cache, prefill and decoding is a real engine's. The tokenizer is a byte-pair encoding trained on the sources of
Python's standard library, about 3.5 bytes per token on such text. Run with a Python that has ``tokenizers``:

    .venv-vllm/bin/python examples/vllm_cpu/tiny_model.py DIRECTORY
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = 4096
MAX_MODEL_LEN = 32_768
_CORPUS_BYTES = 2_000_000
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Single tokens, but text: the tool parser reads them in the answer."""
_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
_STAMP = "made-from"


def write_tokenizer(directory: Path) -> dict[str, int]:
    """Train the tokenizer and write its files; the ids of the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(_MARKS),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in _MARKS])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_MODEL_LEN,
            "chat_template": _TEMPLATE.read_text(encoding="utf-8"),
        },
    )
    return {name: number for number, name in enumerate(_SPECIAL)}


def write_model(directory: Path, ids: dict[str, int]) -> None:
    """The configuration. 6 layers of 2 KV heads of 64: 3,072 bytes of KV cache per token in bfloat16."""
    _write_json(
        directory / "config.json",
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "vocab_size": VOCABULARY,
            "max_position_embeddings": MAX_MODEL_LEN,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
            "dtype": "bfloat16",
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
    )
    _write_json(directory / "generation_config.json", {"do_sample": True, "eos_token_id": ids["<|im_end|>"]})


def _corpus() -> Iterator[str]:
    """Text that every machine with Python has, in the same order."""
    size_bytes = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        yield text
        size_bytes += len(text)
        if size_bytes > _CORPUS_BYTES:
            return


def _digest() -> str:
    return hashlib.sha256(Path(__file__).read_bytes() + _TEMPLATE.read_bytes()).hexdigest()


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tiny model; nothing where it is there already.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    stamp, sources = directory / _STAMP, _digest()
    if stamp.exists() and stamp.read_text(encoding="ascii") == sources:
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_model(directory, write_tokenizer(directory))
    stamp.write_text(sources, encoding="ascii")
    print(f"wrote {directory}: Qwen2 with 22 million random parameters, {VOCABULARY} tokens")


if __name__ == "__main__":
    main()
