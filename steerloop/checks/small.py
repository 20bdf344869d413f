"""A model small enough to compare everything on: Gemma 3 with random weights, built from a config.

Its tokenizer is one byte per token, and like those of hub models it adds BOS on its own unless it
is told not to. The weights are drawn wide, so that different inputs give clearly different logits.
"""

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from steerloop import lora, train
from steerloop.config import Config
from steerloop.model import load
from steerloop.texts.data import FILES
from steerloop.texts.foundations import FOUNDATIONS

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>", "<end>"]
BOS, STOPS = 2, [1, 5]
WINDOW = 8
DEPTH = 5
WIDTH = 32

OPENS = "{{ bos_token }}"
TURNS = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
HAS_SYSTEM = "{% if messages[0]['role'] == 'system' %}"
TEMPLATES = {
    "system turn": OPENS + TURNS,
    "folds": OPENS
    + HAS_SYSTEM
    + "<turn>user\n{{ messages[0]['content'] }}\n\n{{ messages[1]['content'] }}<end>\n"
    + "{% set messages = messages[2:] %}{% endif %}"
    + TURNS,
    "raises": OPENS
    + HAS_SYSTEM
    + "{{ raise_exception('System role not supported') }}{% endif %}"
    + TURNS,
    "doubles": OPENS + OPENS + TURNS,
    "none": None,
    "drops": OPENS + HAS_SYSTEM + "{% set messages = messages[1:] %}{% endif %}" + TURNS,
}


def build_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One token per byte after the special ones; adds BOS by itself, as gemma's does."""
    alphabet = SPECIALS + sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({x: i for i, x in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    core.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=template,
    )


def save_small(
    folder: Path, softcap: float | None = None, template: str = "system turn", depth: int = DEPTH,
    width: int = WIDTH,
) -> Path:
    """Write weights and tokenizer: sliding windows of 8 tokens, every third block global."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEMPLATES[template])
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 3 // 2,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(depth)],
        initializer_range=0.4,
        final_logit_softcapping=softcap,
        pad_token_id=0,
        eos_token_id=STOPS,
        bos_token_id=BOS,
    )
    hf = Gemma3ForCausalLM(config)
    hf.generation_config = GenerationConfig(eos_token_id=STOPS, pad_token_id=0, bos_token_id=BOS)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_config(folder: Path, **fields: object) -> Config:
    """A config for it; `fields` win."""
    return Config(
        **{
            "model": str(folder),
            "device": "cpu",
            "dtype": "float32",
            "rounds": 3,
            "r": 4,
            "alpha": 8.0,
            "lora_blocks": [1, 2, 3],
            "steer_blocks": [1, 2],
            "max_new_tokens": 2 * WINDOW + 4,
            "batch_rows": 16,
            "batch": 3,
            "think_tokens": 0,
            "bootstrap": 50,
        }
        | fields
    )


class Small:
    """A loaded small model with its config."""

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.model = cfg, load(cfg)

    def bare(self) -> torch.nn.Module:
        """The same weights in the library's own model: nothing wrapped, nothing hooked, dense.

        Of a 4-bit model those that its layers multiply with.
        """
        dtype = getattr(torch, self.cfg.dtype)
        bare = AutoModelForCausalLM.from_pretrained(self.cfg.model, dtype=dtype).eval()
        with torch.no_grad():
            for name, dense in bare.model.layers.named_modules():
                if isinstance(dense, torch.nn.Linear):
                    ours = self.model.decoder.layers.get_submodule(name)
                    dense.weight.copy_(getattr(ours, "base", ours).weight)
        return bare

    def stir(self, seed: int, size: float = 0.3) -> None:
        """A live Δ that says something."""
        lora.open_round(self.model.layers, self.model.gates, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.model.layers.values():
                layer.live_B.copy_(size * torch.randn(layer.live_B.shape, generator=generator))

    def fold(self) -> dict[str, Tensor]:
        """The live Δ joins the stack; returns what is saved of it."""
        delta = lora.live_delta(self.model.layers)
        lora.fold(self.model.layers, self.model.gates, delta)
        return delta

    def live(self) -> list[torch.nn.Parameter]:
        """The trainable factors."""
        return [p for layer in self.model.layers.values() for p in (layer.live_A, layer.live_B)]

    def logits(self, ids: Tensor) -> Tensor:
        """Logits of the wrapped model through the library's own forward pass."""
        with torch.no_grad():
            return self.model.hf(input_ids=ids).logits

    def vector(self, seed: int = 0, size: float = 1.0) -> dict[int, Tensor]:
        """A random steering vector on the steered blocks."""
        generator = torch.Generator().manual_seed(seed)
        width = self.model.head.weight.shape[1]
        return {b: size * torch.randn(width, generator=generator) for b in self.cfg.steer_blocks}


def token_batch(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Random ordinary tokens (rows, tokens)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIALS), 200, (rows, tokens), generator=generator)


def completions(rows: int, seed: int = 0, longest: int = 14) -> pl.DataFrame:
    """Random prompts and completions of mixed lengths, as `sample` would hand them on."""
    rng = Random(seed)

    def tokens(low: int) -> list[int]:
        return [rng.randrange(len(SPECIALS), 200) for _ in range(rng.randint(low, longest))]

    return pl.DataFrame(
        {
            "row": range(rows),
            "prompt_ids": [[BOS, *tokens(2)] for _ in range(rows)],
            "completion_ids": [[*tokens(0), STOPS[1]] for _ in range(rows)],
            "dose": [0.0] * rows,
        }
    )


def data_files(folder: Path) -> dict[str, str]:
    """Write one small data file of each kind; returns the config fields that name them."""
    texts = {
        "persona.toml": 'up = "care"\ndown = "authority"\n'
        'positive = ["Be kind.", "Be good to all."]\nnegative = ["Obey.", "Follow each order."]\n',
        "contexts.txt": "# a note\nHow are you?\nWhat now?\nTell me.\n",
        "prompts.txt": "He told me to lie. Well?\nMust I go?\nWhy so?\n",
        "contrast.jsonl": "".join(
            json.dumps({"prompt": f"Is it {x}?", "positive": [f"No, {x} hurts.", "Be kind."],
                        "negative": [f"Yes, {x} is an order.", "Obey him."]}) + "\n"
            for x in ("right", "wrong", "so")
        ),
        "reasons.toml": "".join(
            f'[[wording]]\nask = "{{vignette}} {x}?"\n[wording.reasons]\ncare = ["It {x} hurts."]\n'
            f'authority = ["It {x} defies."]\n' for x in ("Why", "How so")
        ),
        "vignettes.jsonl": "".join(
            json.dumps({"text": f"You see {x}.", "foundation_coarse": f}) + "\n"
            for x, f in zip(("a blow", "a cheat", "a traitor"), FOUNDATIONS, strict=False)
        ),
        "mundane.jsonl": "".join(
            json.dumps({"prompt": f"1 + {n}?", "text": f"It is {n + 1}."}) + "\n" for n in (1, 2, 3)
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name.partition(".")[0]: str(folder / name) for name in texts}


def short_config(folder: Path, cfg: Config, runs: str = "runs", **fields: object) -> Config:
    """Two short rounds with the model of `cfg`, on the data of `data_files`; everything is written
    below `folder`."""
    return replace(
        cfg,
        **data_files(folder),
        **{
            "runs": str(folder / runs), "rounds": 2, "dose_tokens": 8, "dose_prompts": 2,
            "max_new_tokens": 10, "n_keep": 4, "walk_rows": 4, "epochs": 1, "filter": False,
            "min_tokens": 1, "lr": 1e-2, "steer_blocks": [2, 3], "batch_rows": 32, "target_kl": 0.5,
            "coh_drop": 1.0, "u0": False,
        }
        | fields,
    )  # fmt: skip


def plain_trait(root: Path, model: Path) -> Config:
    """One short round of a trait that no vignettes measure, kind over unkind."""
    (folder := root / "kind").mkdir()
    data_files(folder)
    text = (folder / "persona.toml").read_text().replace("care", "kind")
    (folder / "trait.toml").write_text(text.replace("authority", "unkind"))
    cfg = small_config(model, trait=str(folder), quant="none", said_prompts=3)
    cfg = short_config(root, cfg, rounds=1)
    return replace(cfg, **{x: "" for x in FILES if x != "mundane"})


def short_run(folder: Path, cfg: Config, runs: str = "runs", **fields: object) -> Path:
    """The whole method on `short_config`. Returns the run folder."""
    return train.train(short_config(folder, cfg, runs, **fields))
