"""Pretrains the embedded base: `python -m lrsweep.embedded.pretrain [--out DIR] [--steps N]`.

It trains on the standard library of the Python that runs it, without the modules on the task's eval side, and takes
about six minutes on two CPU cores. The same seed, versions and machine give the same weights.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lrsweep.embedded import BASE, corpus

SEED = 0
VOCABULARY = 2048
STEPS = 1500
WARMUP = 50  # steps
BATCH = 16
LENGTH = 128  # tokens
LR = 3e-3
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
LOG_EVERY = 10  # steps
HELD_OUT_BLOCKS = 512  # of LENGTH tokens each

# Turns are marked with plain text: a special token's row of the embedding would not have been trained on any text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '# ' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '# assistant\\n' }}{% endif %}"
)


def pretrain(texts: Sequence[str], held_out: Sequence[str], out: Path, steps: int = STEPS) -> float:
    """Trains a tokenizer and a model.

    Args:
        texts: The texts to train on.
        held_out: The texts to measure the final loss on.
        out: The folder for the model, the tokenizer and the log; created if missing.
        steps: Optimizer steps. Default 1500.

    Returns:
        The mean loss on `held_out`, in nats.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)

    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",  # noqa: S106 - a token, not a password
        eos_token="<eos>",  # noqa: S106 - a token, not a password
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(out)

    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.train()

    # Weight decay applies to the matrices, not to the weights of the norms.
    decayed = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}], lr=LR, betas=BETAS
    )

    stream = _stream(bpe, texts)  # (N,)
    with (out / "pretrain.log").open("w", encoding="utf-8") as log:
        _note(
            log,
            python=platform.python_version(),
            torch=torch.__version__,
            transformers=transformers.__version__,
            tokenizers=tokenizers.__version__,
            seed=SEED,
            threads=torch.get_num_threads(),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            files=len(texts),
            corpus_tokens=len(stream),
            trained_tokens=steps * BATCH * LENGTH,
        )

        for step in range(steps):
            lr = LR * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = lr
            starts = torch.randint(len(stream) - LENGTH + 1, (BATCH, 1))
            batch = stream[starts + torch.arange(LENGTH)]  # (B, T)
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
            if step % LOG_EVERY == 0 or step == steps - 1:
                _note(log, step=step, loss=round(loss.item(), 4), lr=float(f"{lr:.4g}"))

        model.eval()
        stream = _stream(bpe, held_out)
        blocks = stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
        blocks = blocks[:: max(1, len(blocks) // HELD_OUT_BLOCKS)][:HELD_OUT_BLOCKS]  # spread over the modules
        held_out_loss = 0.0
        with torch.no_grad():
            for batch in torch.split(blocks, BATCH):
                held_out_loss += model(input_ids=batch, labels=batch).loss.item() * len(batch) / len(blocks)
        _note(
            log,
            held_out_loss=round(held_out_loss, 4),
            held_out_tokens=blocks.numel(),
            seconds=round(time.perf_counter() - started),
        )

    model.save_pretrained(out)  # fp32, as trained
    return held_out_loss


def _stream(bpe: tokenizers.Tokenizer, texts: Sequence[str]) -> Tensor:
    """The texts as one row of token ids, shape (N,), with <eos> after each text."""
    eos = bpe.token_to_id("<eos>")
    return torch.tensor([token for encoded in bpe.encode_batch(texts) for token in (*encoded.ids, eos)])


def _note(log: TextIO, **record: Any) -> None:
    """Writes a record to the log and to the terminal, as a line of JSON."""
    line = json.dumps(record)
    print(line, flush=True)
    print(line, file=log, flush=True)


def main() -> None:
    """Runs the command line. `--out` defaults to the packaged base."""
    parser = argparse.ArgumentParser(prog="python -m lrsweep.embedded.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, default=BASE, help="folder to write (default: the packaged base)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps (default: {STEPS})")
    arguments = parser.parse_args()
    pretrain(corpus.pretraining_texts(), corpus.held_out_texts(), arguments.out, arguments.steps)


if __name__ == "__main__":
    main()
