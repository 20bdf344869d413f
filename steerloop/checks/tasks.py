"""Small tasks for lm-evaluation-harness, of every kind of question that it asks, and its slow twin:
each request by itself, in plain passes of the library's own model."""

import json
from pathlib import Path

import torch
from torch import Tensor

from steerloop.model import Model

QUESTIONS = [
    ("Is it right to lie?", ["No, it hurts.", "Yes.", "It is so."], 0),
    ("Who bakes bread?", ["The sea", "A baker", "Nobody does"], 1),
    ("What is one and one?", ["Two", "Nine and a half", "A"], 0),
    ("Where do birds sleep at night when it is cold outside?", ["In trees", "On the moon"], 0),
    ("Why?", ["So.", "Because it is."], 1),
    ("Say it.", ["It", "That thing there"], 1),
    ("Must I go?", ["You may stay", "Go"], 1),
]
OWN = {  # by name, what a task says beside its data
    "own_choice": """output_type: multiple_choice
doc_to_text: "{{ask}}"
doc_to_choice: "{{options}}"
doc_to_target: right
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "own_text": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{ask}} {{options[0]}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "own_answer": """output_type: generate_until
doc_to_text: "{{ask}}"
doc_to_target: "{{options[0]}}"
generation_kwargs:
  until: ["e", "o"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
""",
    "own_ending": """output_type: loglikelihood
doc_to_text: "{{ask}}"
doc_to_target: "{{options[1]}}"
metric_list:
  - metric: perplexity
  - metric: acc
""",
    "own_f1": """output_type: multiple_choice
doc_to_text: "{{ask}}"
doc_to_choice: "{{options[:2]}}"
doc_to_target: right
metric_list:
  - metric: f1
""",
}
OWN["own_broken"] = OWN["own_f1"].replace("options[:2]", "options")  # of three there is none
ASKED = [x for x in OWN if x not in ("own_f1", "own_broken")]


def write_tasks(folder: Path) -> Path:
    """A folder of those tasks, and a group of two."""
    folder.mkdir(parents=True)
    rows = [{"ask": ask, "options": options, "right": right} for ask, options, right in QUESTIONS]
    (folder / "items.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    for name, text in OWN.items():
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  cache_dir: {folder / 'cache'}\n"
            f"  data_files:\n    test: {folder / 'items.jsonl'}\ntest_split: test\n{text}")
    (folder / "group.yaml").write_text("group: own_group\ntask:\n  - own_choice\n  - own_ending\n")
    return folder


def logits_of(model: Model, ids: list[int]) -> Tensor:
    """Logits (t, v) of one row in a plain pass, fp32."""
    with torch.no_grad():
        return model.hf(input_ids=torch.tensor([ids])).logits[0].float()


def plain_likelihood(model: Model, prompt: list[int], ending: list[int]) -> tuple[float, bool]:
    """Log-probability of an ending, nats, token by token, and whether greedy decoding writes it."""
    logp, greedy = 0.0, True
    for n, token in enumerate(ending):
        z = logits_of(model, prompt + ending[:n])[-1]
        logp += z.double().log_softmax(-1)[token].item()
        greedy &= z.argmax().item() == token
    return logp, greedy


def plain_answer(model: Model, prompt: list[int], most: int, until: list[str]) -> str:
    """What is written greedily, a pass a token, up to the first of some texts."""
    ids: list[int] = []
    while len(ids) < most and (not ids or ids[-1] not in model.stop_ids):
        ids.append(logits_of(model, prompt + ids)[-1].argmax().item())
    text = model.tokenizer.decode(ids, skip_special_tokens=True)
    return min((text.split(x)[0] for x in until), key=len)
