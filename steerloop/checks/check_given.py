"""--template: a model without a chat template gets one, and what it got is said and kept."""

import pytest
from transformers import AutoTokenizer

from steerloop import UserError
from steerloop.checks.small import TEMPLATES, build_tokenizer, save_small, small_config
from steerloop.config import Config, parse
from steerloop.loading.given import give_template
from steerloop.model import load
from steerloop.score import bare
from steerloop.score.__main__ import parse as asked
from steerloop.texts.data import TEMPLATES as PACKAGED


def tokenizer_of(own=None, markers=(), bos=True):
    """One without a template, that begins every text with BOS or does not."""
    tokenizer = build_tokenizer(own)
    tokenizer.add_special_tokens({"additional_special_tokens": list(markers)})
    if not bos:
        tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


def rendered(tokenizer):
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."},
             {"role": "user", "content": "Oh."}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


SAYS = {
    "plain": ((), "User:\nWhy?\n\nAssistant:\nSo.<eos>\n\nUser:\nOh.\n\nAssistant:\n"),
    "chatml": (("<|im_start|>", "<|im_end|>"),
               "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
               "<|im_start|>user\nOh.<|im_end|>\n<|im_start|>assistant\n"),
    "gemma": (("<start_of_turn>", "<end_of_turn>"),
              "<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\nSo.<end_of_turn>\n"
              "<start_of_turn>user\nOh.<end_of_turn>\n<start_of_turn>model\n"),
}


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("name", SAYS)
def check_what_the_packages_templates_write(name, bos):
    markers, says = SAYS[name]
    tokenizer = tokenizer_of(markers=markers, bos=bos)
    give_template(tokenizer, PACKAGED[name])
    assert rendered(tokenizer) == "<bos>" * bos + says


@pytest.mark.parametrize("name", ["chatml", "gemma"])
def check_markers_that_are_no_tokens_are_refused(name):
    with pytest.raises(UserError, match="no token of this model: take plain"):
        give_template(tokenizer_of(), PACKAGED[name])


def base_model(folder, own=None):
    """A pretrained model as it is published: its tokenizer has no template."""
    save_small(folder)
    build_tokenizer(own).save_pretrained(folder)
    if own is None:
        (folder / "chat_template.jinja").unlink()
    return folder


def check_a_base_model_runs_with_one_and_is_one_line_without(tmp_path):
    cfg = small_config(base_model(tmp_path / "m"), quant="none")
    with pytest.raises(UserError, match="--template plain"):
        load(cfg)
    model = load(Config(**vars(cfg) | {"template": "plain"}))
    ids = model.render("Why?", "Be brief.")
    assert model.to_text(ids, True) == "<bos>Be brief.\n\nUser:\nWhy?\n\nAssistant:\n"
    assert model.system_role and model.end == 1  # <eos>
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template is None


def check_score_gives_it_too(tmp_path):
    cfg = small_config(base_model(tmp_path / "m"), quant="none")
    with pytest.raises(UserError, match="--template plain"):
        bare(cfg)
    _, said, *_ = asked([str(tmp_path / "m"), "--template", "plain"])
    model = bare(Config(**vars(cfg) | {"template": said.template}))
    assert model.to_text(model.render("Why?"), True).endswith("User:\nWhy?\n\nAssistant:\n")


def check_a_file_stands_in_for_the_models_own(tmp_path, caplog):
    base_model(tmp_path / "m", TEMPLATES["system turn"])
    (tmp_path / "own.jinja").write_text(TEMPLATES["raises"])
    flags = ["--model", str(tmp_path / "m"), "--quant", "none", "--steer_blocks", "2"]
    plain, own = (load(parse([*flags, *x])) for x in ([], ["--template",
                                                          str(tmp_path / "own.jinja")]))
    assert plain.system_role and not own.system_role
    with pytest.raises(UserError, match=r"cannot read .*none\.jinja"):
        load(parse([*flags, "--template", str(tmp_path / "none.jinja")]))
