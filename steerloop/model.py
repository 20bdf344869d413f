"""Find and load a model, wrap its projections, and hold the one road from text to probabilities:

render (text → prompt ids) · batches (ids → Batch) · trunk, hidden (→ states) · head (→ logits)

Letters: b rows, t tokens, T tokens with those in the cache, n predictions, d width, v vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.cache_utils import Cache

from steerloop import UserError, lora
from steerloop.barrier import Head
from steerloop.config import PACKAGE, Config, band

Ids = list[list[int]]


@dataclass
class Batch:
    """Right-padded prompts and completions, and where completion tokens are predicted."""

    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    positions: Int[Tensor, "n"]  # in the flattened (b t), each one before its target
    targets: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]  # sorted
    dose: Float[Tensor, "b"]

    def split(self, x: Float[Tensor, "n *d"]) -> tuple[Tensor, ...]:
        """What belongs to the n predictions, row by row."""
        return x.split(torch.bincount(self.rows, minlength=len(self.ids)).tolist())


@dataclass
class Model:
    """A wrapped language model: the untouched base, the gated stack, and how to talk to it."""

    hf: PreTrainedModel
    tokenizer: Tokenizer
    decoder: nn.Module
    head: Head
    gates: lora.Gates
    layers: lora.Layers
    stop_ids: list[int]
    device: torch.device
    system_role: bool

    def render(self, user: str, system: str | None = None) -> list[int]:
        """Chat prompt → ids, up to the assistant tag; the template alone writes BOS.

        Where the template has no system role, the system text opens the user's turn.
        """
        turns = [{"role": "user", "content": user}]
        if system and self.system_role:
            turns.insert(0, {"role": "system", "content": system})
        elif system:
            turns[0]["content"] = f"{system}\n\n{user}"
        return self.encode(self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True))

    def encode(self, text: str) -> list[int]:
        """Text → ids, no special token added."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: list[int], special: bool = False) -> str:
        """Ids → text for people; nothing is tokenised again from it."""
        return self.tokenizer.decode(ids, skip_special_tokens=not special)

    def trunk(
        self, ids: Int[Tensor, "b t"], mask: Bool[Tensor, "b T"], cache: Cache | None = None
    ) -> Float[Tensor, "b t d"]:
        """Final hidden states. `mask` spans cache and ids; its true entries count positions."""
        place = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self.decoder(input_ids=ids, attention_mask=mask.long(), position_ids=place,
                            past_key_values=cache, use_cache=cache is not None).last_hidden_state

    def hidden(self, batch: Batch) -> Float[Tensor, "n d"]:
        """The hidden states from which the completion tokens of a batch are predicted."""
        return rearrange(self.trunk(batch.ids, batch.mask), "b t d -> (b t) d")[batch.positions]

    def pad(self, rows: Ids, left: bool) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Rows of several lengths → ids and mask that end (left) or start together."""
        t = max(map(len, rows))
        blank = [[self.stop_ids[0]] * (t - len(x)) for x in rows]
        ids = [b + x if left else x + b for x, b in zip(rows, blank, strict=True)]
        size = torch.tensor([len(x) for x in rows])[:, None]
        mask = torch.arange(t) >= t - size if left else torch.arange(t) < size
        return torch.tensor(ids, device=self.device), mask.to(self.device)

    def collate(self, prompts: Ids, completions: Ids, dose: list[float]) -> Batch:
        """Rows of ids → Batch; an empty completion predicts nothing."""
        pairs = list(zip(prompts, completions, strict=True))
        ids, mask = self.pad([p + c for p, c in pairs], left=False)
        at = torch.arange(ids.shape[1])
        size = torch.tensor([(len(p) - 1, len(p) + len(c) - 1) for p, c in pairs])
        predicts = ((at >= size[:, :1]) & (at < size[:, 1:])).to(self.device)
        return Batch(ids, mask, predicts.flatten().nonzero()[:, 0],
                     torch.tensor([x for c in completions for x in c], device=self.device).long(),
                     predicts.nonzero()[:, 0], torch.tensor(dose, device=self.device).float())

    def batches(
        self, prompts: Ids, completions: Ids, dose: list[float], size: int
    ) -> Iterator[Batch]:
        """The rows in order, `size` at a time."""
        for i in range(0, len(prompts), size):
            at = slice(i, i + size)
            yield self.collate(prompts[at], completions[at], dose[at])


def load(cfg: Config) -> Model:
    """Load weights and tokenizer, freeze and wrap: the student starts as the base, exactly.

    Raises UserError when the model is not found or does not fit.
    """
    name = str(PACKAGE / "tinyworld/model") if cfg.model == "embedded" else cfg.model
    cuda = cfg.device == "auto" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu" if cfg.device == "auto" else cfg.device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        hf = AutoModelForCausalLM.from_pretrained(
            name, dtype=getattr(torch, cfg.dtype), attn_implementation=cfg.attn,
            trust_remote_code=False, use_safetensors=True).to(device).eval()
        probe = [{"role": "system", "content": "PROBE"}, {"role": "user", "content": "x"}]
        decoder, config = hf.get_decoder(), hf.config.get_text_config()
        blocks = {decoder.layers[i]: i for i in band(
            cfg.lora_blocks, cfg.lora_band, len(decoder.layers), "lora")}
    except (OSError, ValueError, RuntimeError, AttributeError) as e:
        raise UserError(f"cannot load --model {cfg.model}: {' '.join(str(e).split())[:300]}") from e
    inside = [f"{path}." for path, module in hf.named_modules() if module in blocks]
    names = [path for path, module in hf.named_modules() if isinstance(module, nn.Linear)
             and path.startswith(tuple(inside)) and path.rpartition(".")[2] in cfg.targets]
    if missing := set(cfg.targets) - {path.rpartition(".")[2] for path in names}:
        raise UserError(f"--targets {' '.join(missing)}: no such linear layer in {cfg.model}")
    gates, stops = lora.Gates(cfg.rounds), hf.generation_config.eos_token_id
    model = Model(
        hf, tokenizer, decoder,
        Head(hf.get_output_embeddings().weight, getattr(config, "final_logit_softcapping", None)),
        gates, lora.wrap(hf, names, gates, cfg.r, cfg.alpha),
        stops if isinstance(stops, list) else [stops], device,
        "PROBE" in tokenizer.apply_chat_template(probe, tokenize=False))
    with torch.no_grad():
        ids = torch.tensor([model.render("Hello", "Be brief.")], device=device)
        ours, theirs = model.head(model.trunk(ids, ids >= 0)), hf(input_ids=ids).logits.float()
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
        raise UserError(f"--model {cfg.model} does not fit: its logits are not head(trunk(ids))")
    return model
