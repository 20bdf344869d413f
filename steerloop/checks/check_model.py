"""One road from text to probabilities: prompts as the template writes them, no BOS doubled, and the
logits of the model's own forward pass."""

import json
import shutil

import polars as pl
import pytest
import torch

from steerloop import UserError
from steerloop.checks.small import BOS, completions, small_config, token_batch
from steerloop.checks.twins import row_logits
from steerloop.config import parse
from steerloop.model import load
from steerloop.sample import completion_losses

USER, SYSTEM = "Must I go?", "You are kind."
WRITTEN = {  # what each template should make of a system text
    "system turn": f"<turn>system\n{SYSTEM}<end>\n<turn>user\n{USER}<end>\n<turn>model\n",
    "folds": f"<turn>user\n{SYSTEM}\n\n{USER}<end>\n<turn>model\n",
    "raises": f"<turn>user\n{SYSTEM}\n\n{USER}<end>\n<turn>model\n",
    "drops": f"<turn>user\n{SYSTEM}\n\n{USER}<end>\n<turn>model\n",
}


@pytest.mark.parametrize("template", WRITTEN)
def check_render_is_what_the_template_means(small, template):
    model = small(saved={"template": template}).model
    wanted = [BOS, *model.to_ids(WRITTEN[template])]
    assert model.render(USER, SYSTEM) == wanted
    plain = model.render(USER)
    assert plain == [BOS, *model.to_ids(f"<turn>user\n{USER}<end>\n<turn>model\n")]
    assert plain == model.tokenizer.apply_chat_template(
        [{"role": "user", "content": USER}], add_generation_prompt=True, return_dict=False)
    assert plain.count(BOS) == wanted.count(BOS) == 1


def check_the_tokenizer_would_double_bos(small):
    """The trap is really there: tokenised carelessly, a rendered prompt opens with two BOS."""
    model = small().model
    text = model.to_text(model.render(USER), special=True)
    assert model.tokenizer(text).input_ids[:2] == [BOS, BOS]
    assert model.to_ids(text) == model.render(USER)


@pytest.mark.parametrize("template", ["doubles", "none"])
def check_a_template_that_cannot_work_is_refused(small, template):
    with pytest.raises(UserError, match=r"BOS|chat template"):
        small(saved={"template": template})


def check_embedded_prompts_have_one_bos(world):
    model, bos = world.model, world.model.tokenizer.bos_token_id
    for system in (None, world.data.pairs[0][0]):
        ids = model.render(world.data.prompts[0], system)
        assert ids[0] == bos and ids.count(bos) == 1
        text = model.to_text(ids, special=True)
        assert text.count(world.data.prompts[0]) == 1 and (not system or text.count(system) == 1)
        assert model.to_ids(text) == ids


def check_render_and_decode_are_inverse(small):
    model = small().model
    text = "Ünïcode, {braces}, <b> and\na second line 🙂"
    assert model.to_text(model.to_ids(text)) == text
    assert text in model.to_text(model.render(text), special=True)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def check_head_of_trunk_is_the_models_own_logits(small, softcap, dtype):
    s, ids = small(saved={"softcap": softcap}, dtype=dtype), token_batch(2, 20)
    with torch.no_grad():
        found, wanted = s.model.head(s.model.trunk(ids, ids >= 0)), s.bare()(input_ids=ids).logits
    assert found.dtype == torch.float32
    limit = 1e-5 if dtype == "float32" else 2e-2
    assert torch.allclose(found, wanted.float(), atol=limit, rtol=limit)
    assert (wanted.abs().max() <= 3) == (softcap is not None)


def check_left_padded_prompts_are_single_prompts(small):
    s = small()
    prompts = completions(6, seed=3, longest=25)["prompt_ids"].to_list()
    ids, mask = s.model.pad(prompts)
    with torch.no_grad():
        together = s.model.head(s.model.trunk(ids, mask)[:, -1])
    assert len({len(x) for x in prompts}) > 3 and min(map(len, prompts)) < ids.shape[1] - 8
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.allclose(row, row_logits(s.bare(), prompt)[-1], atol=1e-4, rtol=1e-4)


def check_scores_are_those_of_rows_alone(small):
    s, table = small(batch_rows=4), completions(9, seed=2, longest=20)
    texts = table["completion_ids"].to_list()
    texts[4] = []  # the fifth row completes nothing
    table = table.with_columns(pl.Series("completion_ids", texts))
    nlls, kls = completion_losses(s.model, table, s.cfg)
    assert len(nlls) == len(kls) == len(table) and not torch.cat(kls).any()
    bare = s.bare()
    for nll, p, c in zip(nlls, table["prompt_ids"], table["completion_ids"], strict=True):
        logp = row_logits(bare, p.to_list() + c.to_list()).log_softmax(-1)
        wanted = [-logp[len(p) + i - 1, x].item() for i, x in enumerate(c.to_list())]
        assert torch.allclose(nll, torch.tensor(wanted), atol=1e-4, rtol=1e-4)


def check_wrapped_layers_are_the_ones_asked_for(small):
    s = small(lora_blocks=[0, 3], targets=["q_proj", "down_proj"])
    suffixes = ("self_attn.q_proj", "mlp.down_proj")
    wanted = {f"model.layers.{i}.{x}" for i in (0, 3) for x in suffixes}
    assert set(s.model.layers) == wanted
    for name in wanted:
        assert s.model.hf.get_submodule(name) is s.model.layers[name]


def check_a_target_that_is_not_there_is_refused(small):
    with pytest.raises(UserError, match="w_proj"):
        small(targets=["q_proj", "w_proj"])


def check_stop_tokens_come_from_the_model(small, world):
    assert small().model.stop_ids == [1, 5]
    ends = {world.model.to_text([x], special=True) for x in world.model.stop_ids}
    assert "<end_of_turn>" in ends


def check_an_unknown_model_is_one_clear_line():
    with pytest.raises(UserError, match="no-such-owner/no-such-model") as failure:
        load(parse(["--model", "no-such-owner/no-such-model", "--device", "cpu"]))
    assert "\n" not in str(failure.value)


def check_the_end_of_a_turn_stops_where_the_config_forgot_it(folders, tmp_path):
    """Generation config without the end-of-turn token, or without any: the template has it."""
    for eos, wanted in ((1, [1, 5]), (None, [5])):
        folder = shutil.copytree(folders(), tmp_path / str(eos))
        for name in ("generation_config.json", "config.json"):
            found = json.loads((folder / name).read_text()) | {"eos_token_id": eos}
            (folder / name).write_text(json.dumps(found))
        assert load(small_config(folder, quant="none")).stop_ids == wanted
