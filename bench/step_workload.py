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
import resource
import string
import sys
import zlib
from pathlib import Path

PROMPT_TOKENS = (32, 128)
NUM_BYTES = 256
SHAPES = {
    "cpu": {
        "vocab_size": 32_000,
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
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = SHAPES["cuda" if torch.cuda.is_available() else "cpu"]
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
    with torch.no_grad():  # zeros, as a padding token begins with, have gradients without bound
        model.get_input_embeddings().weight[config.pad_token_id].normal_(std=0.02)
    size = shape["vocab_size"]
    ends = random.Random(1).sample(range(NUM_BYTES + 4, size), round(END_SHARE * size) - 1)
    end_ids = sorted({0, *ends})
    model.generation_config.eos_token_id = end_ids
    model.save_pretrained(folder)
    build_tokenizer(folder, size)


def build_tokenizer(folder: Path, size: int) -> None:
    """A byte is a token, and all others are words that only a model writes. Of the kind that
    transformers makes of every tokenizer of a Qwen2 model, whatever was saved."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    names = ["<end>", "<pad>", "<begin>", "<unknown>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"w{i}" for i in range(len(names), size)]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unknown>"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    lengths = [len(loaded(prompt)["input_ids"]) for prompt in prompts()]
    assert lengths == list(map(len, prompts())), "a letter of a prompt is a token"
    assert min(i for prompt in prompts() for i in loaded(prompt)["input_ids"]) > 3


def prompts() -> list[str]:
    generator = random.Random(0)
    return [
        "".join(generator.choices(string.ascii_lowercase, k=generator.randint(*PROMPT_TOKENS)))
        for _ in range(PROMPTS_PER_STEP * NUM_STEPS)
    ]


def reward(index: int, completion: str) -> float:
    """0 for odd prompts; otherwise as good as a coin, and the same at every call."""
    return 0.0 if index % 2 else float(zlib.crc32(completion.encode()) & 1)


def rewards(completions, id, **_):  # type: ignore[no-untyped-def]
    """`reward` for a batch, as Forethought calls functions in TRL's convention."""
    pairs = zip(id, completions, strict=True)
    return [reward(int(i), completion[0]["content"]) for i, completion in pairs]


def peak_megabytes() -> float:
    """What this process held at most: of the GPU where there is one, as torch reserved it, else
    what was resident."""
    import torch  # not sooner: the command sets how its threads wait before it loads

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    build(Path(sys.argv[1]))
