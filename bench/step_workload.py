"""The workload of the step bench, for both sides: a model with random weights, and prompts.

    python bench/step_workload.py FOLDER

Qwen2 shape, tied. On a CPU 39M weights: hidden 512, 8 layers, 8 heads, 2 of keys and values, feed-
forward 1408, a vocabulary of 32,000. On CUDA the shape of Qwen2.5-0.5B. 1.2% of the vocabulary end
a completion, so lengths are ragged; prompts have 32 to 128 tokens; the reward is 0 for every second
prompt and a hash of the completion for the others, so half of the groups carry no signal. Needs
torch and transformers only.
"""

from __future__ import annotations

import json
import random
import sys
import zlib
from pathlib import Path

WORDS = 32_000  # prompts are made of
SHAPES = {
    "cpu": {
        "vocab_size": WORDS,
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1408,
    },
    "cuda": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
    },
}
END_SHARE = 0.012
PROMPTS_PER_STEP, GROUP_SIZE, MAX_TOKENS = 4, 8, 256
NUM_STEPS = 8  # prompts for so many


def build(folder: Path) -> None:
    """Write `model/` and `prompts.jsonl`, the same at every call."""
    build_model(folder / "model")
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts()):
            row = {"id": str(i), "question": prompt, "answer": str(i)}
            file.write(json.dumps(row) + "\n")


def build_model(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    shape = SHAPES["cuda" if torch.cuda.is_available() else "cpu"]
    words = {f"w{i}": i for i in range(shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="w0", pad_token="w1", unk_token="w3"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    torch.manual_seed(0)
    config = Qwen2Config(
        **shape,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = Qwen2ForCausalLM(config)
    ends = random.Random(1).sample(range(4, len(words)), round(END_SHARE * len(words)) - 1)
    end_ids = sorted({0, *ends})
    model.generation_config.eos_token_id = end_ids
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def prompts() -> list[str]:
    generator = random.Random(0)
    return [
        " ".join(f"w{generator.randrange(4, WORDS)}" for _ in range(generator.randint(32, 128)))
        for _ in range(PROMPTS_PER_STEP * NUM_STEPS)
    ]


def reward(index: int, completion: str) -> float:
    """0 for odd prompts; otherwise as good as a coin, and the same at every call."""
    return 0.0 if index % 2 else float(zlib.crc32(completion.encode()) & 1)


def rewards(completions, id, **_):  # type: ignore[no-untyped-def]
    """`reward` for a batch, as Forethought calls functions in TRL's convention."""
    pairs = zip(id, completions, strict=True)
    return [reward(int(i), completion[0]["content"]) for i, completion in pairs]


if __name__ == "__main__":
    build(Path(sys.argv[1]))
